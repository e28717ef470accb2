"""Speed of this crate and of Hugging Face's tokenizers on one thread: the same texts, one run, medians of wall time.

Usage: python bench_vs_hf.py VOCAB_DIR [VOCAB]      (VOCAB: qwen2 by default)

Prose is Python's own documentation, code its standard library; Chinese is drawn from the vocabulary's tokens.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import hf

MEGABYTE = 1_000_000


def prose():
    import pydoc_data.topics
    return "\n".join(pydoc_data.topics.topics.values())[:MEGABYTE]


def code():
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return "".join(file.read_text(errors="replace") for file in files)[:MEGABYTE]


def chinese(tokenizer):
    rng = random.Random(1)
    words = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    words = [w for w in words if w and all("\u4e00" <= c <= "\u9fa5" for c in w)]
    # Zipf: the early tokens are the frequent ones.
    picks = rng.choices(words, weights=[1 / (i + 10) for i in range(len(words))], k=MEGABYTE // 5)
    text = "".join(w + rng.choices(["", "，", "。", "\n"], weights=[12, 2, 1, 0.2])[0] for w in picks)
    return text.encode()[:MEGABYTE].decode(errors="ignore")


def chat():
    turn = "<|im_start|>user\nWhat is {} + {}? Please explain, step by step.<|im_end|>\n<|im_start|>assistant\n"
    return "".join(turn.format(i, i * 7) for i in range(MEGABYTE // len(turn)))


def main():
    folder, name = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "qwen2"
    vocab = (folder / f"ggml-vocab-{name}.gguf").resolve()
    crate = Path(__file__).resolve().parent.parent
    began = time.perf_counter()
    tokenizer = hf.load(vocab)
    print(f"Hugging Face: vocabulary from GGUF in Python, {time.perf_counter() - began:.1f} s (not comparable)")
    texts = {"prose": prose(), "code": code(), "chinese": chinese(tokenizer), "chat": chat()}
    worst = {"one letter": "a" * MEGABYTE, "spaces": " " * MEGABYTE, "one emoji": "\U0001F600" * (MEGABYTE // 4)}
    # From a tokenizer.json, as a user of Hugging Face would load it.
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "tokenizer.json"
        tokenizer.save(str(path))
        loads = []
        for _ in range(3):
            began = time.perf_counter()
            hf.Tokenizer.from_file(str(path))
            loads.append(time.perf_counter() - began)
        files = []
        for what, text in texts.items():
            files.append(Path(tmp) / f"{what}.txt")
            files[-1].write_text(text, newline="")
        run = subprocess.run(["cargo", "bench", "-q", "-p", "tokenizer", "--bench", "encode", "--", vocab, *files],
                             capture_output=True, text=True, check=True, cwd=crate)
    ours = {row["what"]: row for row in map(json.loads, run.stdout.splitlines())}
    print(f"vocabulary ready: {ours['build vocabulary']['ms']:.1f} ms here (one thread), "
          f"{statistics.median(loads) * 1e3:.0f} ms Tokenizer.from_file")
    for what, text in (texts | worst).items():
        n_bytes, n_runs = len(text.encode()), 3 if what in worst else 7
        times = []
        for _ in range(n_runs):
            began = time.perf_counter()
            ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
            times.append(time.perf_counter() - began)
        row = ours[what]
        assert len(ids) == row["ids"] and n_bytes == row["bytes"], (what, len(ids), row)
        theirs_ms = statistics.median(times) * 1e3
        print(f"{what:12} {row['mb_per_s']:7.1f} MB/s here, {n_bytes / 1e3 / theirs_ms:6.1f} MB/s Hugging Face, "
              f"{theirs_ms / row['ms']:5.1f} times; {row['ids']} ids")
    for what, row in ours.items():
        if what not in texts and what not in worst and row["bytes"]:
            print(f"{what:16} {row['mb_per_s']:6.1f} MB/s here")


main()
