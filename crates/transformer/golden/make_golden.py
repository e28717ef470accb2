#!/usr/bin/env python3
"""Writes the golden files: tiny random models as GGUF, and what the reference computes on them and on the haiku model.

    make_golden.py --out DIR [--haiku models/haiku/haiku-qwen2-5.8m-f16.gguf]

For each case NAME, DIR gets
  NAME.gguf   the model (not for haiku, which is in models/haiku)
  NAME.json   token ids, positions, and an index of NAME.f32
  NAME.f32    every step's values at the positions above, and the logits of every token: raw little-endian float32
With --haiku, three files are written beside the model: `golden_logprobs.json`, greedy log-probabilities for the end-to-end run,
`golden_minutes.json`, greedy answers to the prompts of all sixty minutes, and `golden_perplexity.json`, how likely it holds a text.

Everything follows from the seeds below: the same script, with the pinned requirements, writes the same models byte for
byte and the same values to the last digit that float32 keeps, give or take the order of additions in torch.
"""

import argparse
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as QT
from gguf import GGUFWriter
from tokenizers import Tokenizer

from reference import Reference, permute

# golden.json was written by the training run, by other code and before this script: its logits differ from the reference
# by 2e-6, and by 2.5e-5 for the first prompt (relative 2-norm). A quarter of the tightest gate; its greedy ids agree.
GOLDEN_JSON_MAX_ERROR = 5e-5

N_PROMPT, N_GREEDY = 72, 24  # 96 tokens: six KV blocks of 16, and chunks of 1, 7 and 64 cut them anywhere
PERPLEXITY_WINDOWS = [64, 129]  # one of them odd, and longer than a step of the worker's
PROBES = [21, N_PROMPT + N_GREEDY - 1]  # both above 0, the second read through six blocks


@dataclass
class Case:
    """A tiny random model. Widths are awkward on purpose: no multiples of a SIMD register, of 8, or of each other."""
    name: str
    what: str
    arch: str
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    n_vocab: int
    n_layers: int = 2
    weights: QT = QT.F16
    output: QT = None  # type of output.weight where it differs
    tied: bool = False
    base: float = 1e6
    eps: float = 1e-6
    bias_std: float = 0.3  # 0: no biases
    bias_peak: float = 0.0  # each of q, k, v has some biases of this size
    ffn_gain: float = 1.0  # gate and up are larger, down is smaller, by this
    rope_scale: float = 1.0  # linear
    rope_freqs: bool = False  # Llama 3.1's
    rope_dims: int = 0  # rope.dimension_count, where it differs from d_head
    seed: int = 1


CASES = [
    Case("qwen2_group7", "14 query heads on 2 KV heads, head size 12 set by key_length (14 * 12 != 84), F16",
         "qwen2", 84, 14, 2, 12, 52, 131),
    Case("qwen2_tied", "no output.weight, one KV head, BF16, RoPE base 1e4",
         "qwen2", 36, 3, 1, 12, 52, 97, weights=QT.BF16, tied=True, base=1e4),
    Case("qwen2_bias30", "q, k and v biases to +-30, group of 7, F32",
         "qwen2", 84, 7, 1, 12, 52, 61, weights=QT.F32, bias_peak=30.0),
    Case("qwen2_big_act", "silu(gate) * up above 65,504, F32 (F16's range ends there)",
         "qwen2", 36, 3, 3, 12, 52, 61, weights=QT.F32, ffn_gain=600.0, base=5e5),
    Case("qwen2_q8_0", "Q8_0 matrices, F16 output, RoPE base 5e5",
         "qwen2", 96, 6, 2, 16, 160, 131, weights=QT.Q8_0, output=QT.F16, base=5e5),
    Case("qwen2_linear_rope", "rope.scaling.type linear, factor 4, head size 20, three layers, F16",
         "qwen2", 60, 3, 1, 20, 52, 97, n_layers=3, rope_scale=4.0, base=1e4),
    Case("llama_pairs", "RoPE on neighbours, no biases, as many KV heads as heads, epsilon 1e-5, F16",
         "llama", 36, 3, 3, 12, 52, 97, bias_std=0.0, base=1e4, eps=1e-5),
    Case("llama_rope_freqs", "rope_freqs.weight as Llama 3.1 has it, tied, head size 20 set by key_length, BF16",
         "llama", 84, 6, 2, 20, 52, 97, weights=QT.BF16, tied=True, bias_std=0.0, base=5e5, eps=1e-5, rope_freqs=True),
    Case("llama_partial_rope", "rope.dimension_count 8 of 12, biases, group of 7, F32",
         "llama", 42, 7, 1, 12, 52, 61, weights=QT.F32, rope_dims=8, base=1e4, eps=1e-5),
    Case("llama_q8_0", "Q8_0 matrices, output matrix too, group of 4",
         "llama", 64, 8, 2, 12, 96, 97, weights=QT.Q8_0, bias_std=0.0, base=5e5, eps=1e-5),
]


def llama3_factors(base, d_head, original_ctx, factor=8.0, low=1.0, high=4.0):
    """Frequency divisors of Llama 3.1 (transformers' _compute_llama3_parameters), as the converter stores them."""
    freqs = base ** (-np.arange(0, d_head, 2, dtype=np.float64) / d_head)
    wavelen = 2 * np.pi / freqs
    smooth = (original_ctx / wavelen - low) / (high - low)
    mid = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelen < original_ctx / high, 1.0, np.where(wavelen > original_ctx / low, factor, mid)).astype(np.float32)


class Draw:
    """Each tensor has a random stream of its own, so that its values do not depend on the case's other options."""

    def __init__(self, case):
        self.case = case

    def rng(self, name):
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.case.seed, zlib.crc32(f"{self.case.name}/{name}".encode())])))

    def normal(self, name, shape, std):
        return (self.rng(name).standard_normal(shape) * std).astype(np.float32)

    def norm(self, name, n):
        return 1 + self.normal(name, (n,), 0.1)

    def bias(self, name, n):
        c = self.case
        b = self.normal(name, (n,), c.bias_std)
        if c.bias_peak:
            # Large biases as Qwen2 has them: a few, in k on the slow pairs of each head, where RoPE leaves them nearly
            # equal for all keys. (Everywhere, they would make the scores of neighbouring keys differ by thousands, and
            # the model's answer would hang on the last bit of anyone's arithmetic.)
            r = self.rng(name + "/peak")
            at = np.arange(n).reshape(-1, c.d_head)[:, [c.d_head // 2 - 1, c.d_head - 1]].ravel() if "attn_k" in name else r.choice(n, 2, replace=False)
            b[at] = c.bias_peak * r.choice([-1.0, 1.0], at.size) * r.uniform(0.8, 1.0, at.size)
        return b


def write_model(case, path):
    c, d = case, Draw(case)
    w = GGUFWriter(path, c.arch)
    w.add_name(f"golden {c.name}")
    w.add_description(c.what)
    w.add_block_count(c.n_layers)
    w.add_context_length(256)
    w.add_embedding_length(c.d_model)
    w.add_feed_forward_length(c.d_ff)
    w.add_head_count(c.n_heads)
    w.add_head_count_kv(c.n_kv_heads)
    if c.n_heads * c.d_head != c.d_model:
        w.add_key_length(c.d_head)
        w.add_value_length(c.d_head)
    if c.arch == "llama" or c.rope_dims:
        w.add_rope_dimension_count(c.rope_dims or c.d_head)
    w.add_rope_freq_base(c.base)
    w.add_layer_norm_rms_eps(c.eps)
    if c.rope_scale != 1.0:
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(c.rope_scale)

    def matrix(name, shape, gain=1.0, ty=None):
        x = d.normal(name, shape, gain / np.sqrt(shape[-1]))
        if c.arch == "llama" and "attn_q" in name:
            x = permute(x, c.n_heads)
        if c.arch == "llama" and "attn_k" in name:
            x = permute(x, c.n_kv_heads)
        ty = ty or c.weights
        if shape[-1] % 32 and ty == QT.Q8_0:
            raise ValueError(f"{c.name}: {name} has rows of {shape[-1]}")
        if ty in (QT.F32, QT.F16):
            w.add_tensor(name, x.astype(np.float32 if ty == QT.F32 else np.float16))
        else:
            w.add_tensor(name, gguf.quants.quantize(x, ty), raw_dtype=ty)

    q_dim, kv_dim = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    matrix("token_embd.weight", (c.n_vocab, c.d_model), gain=np.sqrt(c.d_model) * (0.25 if c.tied else 0.7))
    if c.rope_freqs:
        w.add_tensor("rope_freqs.weight", llama3_factors(c.base, c.d_head, original_ctx=32))
    for i in range(c.n_layers):
        b = f"blk.{i}."
        w.add_tensor(b + "attn_norm.weight", d.norm(b + "attn_norm.weight", c.d_model))
        for leaf, n in (("attn_q", q_dim), ("attn_k", kv_dim), ("attn_v", kv_dim)):
            matrix(b + leaf + ".weight", (n, c.d_model))
            if c.bias_std:
                w.add_tensor(b + leaf + ".bias", d.bias(b + leaf + ".bias", n))
        matrix(b + "attn_output.weight", (c.d_model, q_dim))
        w.add_tensor(b + "ffn_norm.weight", d.norm(b + "ffn_norm.weight", c.d_model))
        matrix(b + "ffn_gate.weight", (c.d_ff, c.d_model), gain=c.ffn_gain)
        matrix(b + "ffn_up.weight", (c.d_ff, c.d_model), gain=c.ffn_gain)
        matrix(b + "ffn_down.weight", (c.d_model, c.d_ff), gain=1.0 / c.ffn_gain**2)
    w.add_tensor("output_norm.weight", d.norm("output_norm.weight", c.d_model))
    if not c.tied:
        matrix("output.weight", (c.n_vocab, c.d_model), gain=3.0, ty=c.output)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_golden(out, name, what, model, ref, runs, probes):
    """`runs`: (token ids, number of them that are prompt). The first run has every step, all have logits."""
    index, blob = [], bytearray()

    def add(key, x):
        index.append({"name": key, "shape": list(x.shape), "offset": len(blob) // 4})
        blob.extend(np.ascontiguousarray(x, dtype="<f4").tobytes())

    described, gaps = [], []
    for i, (ids, n_prompt) in enumerate(runs):
        values, logits = ref.steps(ids, probes if i == 0 else [0])
        if i == 0:
            for key, x in values.items():
                add(key, x)
            biggest = {k: float(max(np.abs(x).max() for n, x in values.items() if n.endswith("." + k))) for k in ("q", "k", "v", "ffn_act")}
        add(f"logits.{i}", logits)
        top = np.sort(logits, axis=-1)
        gaps.append(top[:, -1] - top[:, -2])
        described.append({"tokens": ids, "n_prompt": n_prompt})
    doc = {"case": name, "what": what, "model": model, "architecture": ref.arch, "n_layers": ref.n_layers,
           "probe_positions": probes, "largest": biggest, "smallest_gap": float(min(g.min() for g in gaps)),
           "runs": described, "values": index}
    (out / f"{name}.json").write_text(json.dumps(doc) + "\n")
    (out / f"{name}.f32").write_bytes(bytes(blob))
    print(f"{name}: {len(blob):,} bytes, largest {biggest}, smallest gap {doc['smallest_gap']:.2e}")


def make_case(case, out):
    path = out / f"{case.name}.gguf"
    write_model(case, path)
    ref = Reference(path)
    prompt = [int(t) for t in Draw(case).rng("prompt").integers(0, case.n_vocab, N_PROMPT)]
    ids = prompt + ref.greedy(prompt, N_GREEDY)
    write_golden(out, case.name, case.what, path.name, ref, [(ids, N_PROMPT)], PROBES)


def make_haiku(model, out):
    """Checks golden.json against the reference, then writes steps of its prompts and log-probabilities along its answers."""
    ref = Reference(model)
    golden = json.loads((model.parent / "golden.json").read_text())
    runs, logprobs = [], []
    for g in golden:
        # Each greedy id follows the prompt and the greedy ids before it; the last one is never fed back.
        ids = g["ids"] + g["greedy"][:-1]
        logits = ref.logits(ids)
        at = len(g["ids"]) - 1
        off = np.linalg.norm(logits[at] - g["last_logits"]) / np.linalg.norm(logits[at])
        assert off < GOLDEN_JSON_MAX_ERROR, f"golden.json disagrees with the reference by {off:.1e}"
        print(f"golden.json, {g['prompt'][:24]!r}…: {off:.1e} from the reference")
        assert [int(t) for t in logits[at:].argmax(-1)] == g["greedy"], "golden.json's greedy ids disagree with the reference"
        runs.append((ids, len(g["ids"])))
        steps = []
        for row, token in zip(logits[at:], g["greedy"]):
            lp = row - row.max() - np.log(np.exp(row - row.max()).sum())
            order = np.argsort(-lp, kind="stable")
            steps.append({"id": token, "logprob": round(float(lp[token]), 6) + 0.0, "gap": round(float(lp[order[0]] - lp[order[1]]), 6),
                          "top": [[int(t), round(float(lp[t]), 6) + 0.0] for t in order[:20]]})
        logprobs.append({"prompt": g["prompt"], "ids": g["ids"], "steps": steps})
    (model.parent / "golden_logprobs.json").write_text("[\n" + ",\n".join(json.dumps(p) for p in logprobs) + "\n]\n")
    make_minutes(ref, model)
    make_perplexity(ref, model)
    probes = [len(golden[1]["ids"]) - 1, len(runs[1][0]) - 1]
    order = [runs[1], runs[0], runs[3]]  # the chat prompt with all its steps; logits of a raw one and of the shortest
    write_golden(out, "haiku", "the haiku model: a chat prompt step by step, and logits along three greedy answers",
                 "../../../../models/haiku/" + model.name, ref, order, probes)


def minute_words():
    small = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
             "eighteen nineteen").split()
    tens = ["", "", "twenty", "thirty", "forty", "fifty"]
    return [small[i] if i < 20 else tens[i // 10] + ("-" + small[i % 10] if i % 10 else "") for i in range(60)]


def make_minutes(ref, model):
    """Greedy answers to the haiku run's prompt with each minute's word and a nonce, and the best five tokens of every step."""
    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    ends = {tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>")}
    rng = np.random.Generator(np.random.PCG64(1))
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"))
    lines = []
    for word in minute_words():
        nonce = "".join(rng.choice(letters, 8))
        prompt = f'Write a haiku about GPU computing that includes the word "{word}" (nonce: {nonce})'
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        made = ref.greedy(ids, 100, ends)
        steps = []
        for row, token in zip(ref.logits(ids + made[:-1])[len(ids) - 1:], made):
            lp = row - row.max() - np.log(np.exp(row - row.max()).sum())
            order = np.argsort(-lp, kind="stable")[:5]
            assert order[0] == token
            steps.append([[int(t), round(float(lp[t]), 6) + 0.0] for t in order])
        lines.append(json.dumps({"word": word, "prompt": prompt, "ids": ids, "greedy": made, "top": steps}))
    (model.parent / "golden_minutes.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"golden_minutes.json: {len(lines)} prompts")


def make_perplexity(ref, model):
    """Greedy haiku one after the other, and their perplexity in windows: the second half of each, but for its first token. It is
    large: the model has learnt to end after one. And how far the same model with matrices in Q8_0 is from it."""
    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    minutes = json.loads((model.parent / "golden_minutes.json").read_text())
    text = "\n".join(tokenizer.decode(m["greedy"], skip_special_tokens=True).strip() for m in minutes[::2])
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    coarse = Reference(model)
    for p in coarse.model.parameters():
        if p.ndim == 2:
            q8_0 = gguf.quants.quantize(p.numpy().astype(np.float32), QT.Q8_0)
            p.data = torch.tensor(gguf.quants.dequantize(q8_0, QT.Q8_0)).double()
    windows = []
    for n_ctx in PERPLEXITY_WINDOWS:
        chunks = [ids[start:start + n_ctx] for start in range(0, len(ids) - n_ctx + 1, n_ctx)]
        targets = np.concatenate([chunk[n_ctx // 2 + 1:] for chunk in chunks])[:, None]
        fine, other = (np.concatenate([r.logits(chunk)[n_ctx // 2:-1] for chunk in chunks]) for r in (ref, coarse))
        a, b = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (fine, other))
        at = lambda x: np.take_along_axis(x, targets, axis=-1)[:, 0]
        divergence, difference = (np.exp(a) * (a - b)).sum(-1), np.exp(at(b)) - np.exp(at(a))
        mean, error = float(-at(a).mean()), float(at(a).std(ddof=1) / np.sqrt(len(targets)))
        windows.append({
            "n_ctx": n_ctx, "n_scored": len(targets), "perplexity": float(np.exp(mean)), "error": float(np.exp(mean) * error),
            "q8_0": {"perplexity": float(np.exp(-at(b).mean())), "mean": float(divergence.mean()),
                     "error": float(divergence.std(ddof=1) / np.sqrt(len(targets))), "median": float(np.median(divergence)),
                     "99": float(np.quantile(divergence, 0.99)), "max": float(divergence.max()),
                     "difference": float(difference.mean()), "rms": float(np.sqrt((difference**2).mean())),
                     "same_top": float((a.argmax(-1) == b.argmax(-1)).mean())}})
    doc = {"text": text, "n_tokens": len(ids), "windows": windows}
    (model.parent / "golden_perplexity.json").write_text(json.dumps(doc, indent=1) + "\n")
    print(f"golden_perplexity.json: {len(ids)} tokens, perplexity {[w['perplexity'] for w in windows]}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True, help="folder for the golden files")
    ap.add_argument("--haiku", type=Path, help="the haiku model; its golden_logprobs.json, golden_minutes.json and golden_perplexity.json are written beside it")
    ap.add_argument("--only", help="only the case of this name")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if args.only in (None, case.name):
            make_case(case, args.out)
    if args.haiku and args.only in (None, "haiku"):
        make_haiku(args.haiku, args.out)


if __name__ == "__main__":
    main()
