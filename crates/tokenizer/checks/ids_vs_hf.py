"""Random texts through this crate and through Hugging Face's tokenizers: equal ids.

Usage: python ids_vs_hf.py VOCAB_DIR [N]      (N texts for each case, 20,000 by default)
"""

import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import hf

CASES = [
    ("qwen2", "qwen2"), ("qwen2", "qwen35"), ("qwen2", "deepseek-coder"), ("llama-bpe", "llama-bpe"), ("gpt-2", "gpt-2"),
]
SPECIAL = {"qwen2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "llama-bpe": ["<|eot_id|>", "<|begin_of_text|>"],
           "gpt-2": ["<|endoftext|>"]}
RANGES = [(0x20, 0x7F), (0xA0, 0x250), (0x250, 0x600), (0x600, 0x900), (0x900, 0x1200), (0x1100, 0x1200),
          (0x1E00, 0x2000), (0x2000, 0x2C00), (0x3000, 0x3400), (0x4E00, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0x10000),
          (0x10000, 0x10FFFF + 1), (0x1F300, 0x1FB00)]
WORDS = ("the of and I'm we'LL they'd isn't don'T naïve Straße ﬁne ǅ 中文 日本語 テスト 한국어 สวัสดี नमस्ते Привет "
         "αβγ مرحبا שלום function return i32 0x1F 3.14159 1234567 ４５ Ⅻ ½ ² 'ſ 'S 'RE").split()
BITS = ["\n", "\r\n", "\r", "\n\n\n", " ", "  ", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\v", "\f", "\x00", "\x1b",
        "👨‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇨🇭", "e\u0301", "a\u0308\u0323", "\u200d", "\ufeff", "\ufffd", "\ue000", "...", "?!", "=>",
        "{}", "'", "\"", "`", "\u1112\u1161\u11ab", "\u0344", "\u212b"]


def character(rng):
    first, last = rng.choice(RANGES)
    code = rng.randrange(first, last)
    return "" if 0xD800 <= code < 0xE000 else chr(code)


def text(rng, special):
    parts = []
    for _ in range(rng.randrange(1, 40)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS) + rng.choice(["", " ", " ", "\n"]))
        elif kind < 0.6:
            parts.append(rng.choice(BITS) * rng.choice([1, 1, 1, 2, 3, 17]))
        elif kind < 0.7:
            parts.append(str(rng.randrange(10 ** rng.randrange(1, 12))))
        elif kind < 0.73:
            parts.append(rng.choice(special))
        else:
            first, last = rng.choice(RANGES)
            run = (character(rng) for _ in range(rng.randrange(1, 12)))
            parts.append("".join(run))
    return "".join(parts)


def is_assigned(text):
    return not any(unicodedata.category(c) == "Cn" for c in text)


def main():
    folder, n = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    crate = Path(__file__).resolve().parent.parent
    bad = 0
    for vocab, pre in CASES:
        path = folder / f"ggml-vocab-{vocab}.gguf"
        rng = random.Random(f"{vocab} {pre}")
        texts = [text(rng, SPECIAL[vocab]) for _ in range(n)]
        run = subprocess.run(
            ["cargo", "run", "-q", "--release", "-p", "tokenizer", "--example", "encode_lines", "--", path, pre],
            input="".join(json.dumps(t) + "\n" for t in texts), capture_output=True, text=True, check=True, cwd=crate)
        ours = [json.loads(line) for line in run.stdout.splitlines()]
        tokenizer = hf.load(path, pre)
        theirs = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        different = [i for i in range(n) if ours[i] != theirs[i]]
        assigned = sum(is_assigned(texts[i]) for i in different)
        n_ids = sum(map(len, theirs))
        print(f"{vocab} with {pre}: {n - len(different)} of {n} texts equal ({n_ids} ids); of the others {assigned} hold "
              f"only characters assigned in Unicode {unicodedata.unidata_version}")
        for i in different[:3]:
            at = next((k for k, (a, b) in enumerate(zip(ours[i], theirs[i])) if a != b), -1)
            tail = tokenizer.decode(theirs[i][max(at - 1, 0):at + 3], skip_special_tokens=False)
            print("  near", [f"U+{ord(c):04X} {unicodedata.category(c)}" for c in tail], ours[i][at:at + 4], theirs[i][at:at + 4])
        bad += len(different)
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()
