#!/usr/bin/env python3
"""Logits of a full-size model in float64, at some positions of one long sequence: a developer's check, not part of CI.

    cargo xtask make-random --hard hard-f16.gguf
    full_size.py hard-f16.gguf --out full_size           # needs 8 GB and some minutes; see requirements.txt
    cargo run --release -p transformer --example compare_logits -- hard-f16.gguf full_size.json

    full_size.py hard-f16.gguf --out full_size --device cuda --tokens 16385 --positions 200

Writes OUT.json (token ids, positions) and OUT.f32 (little-endian float32, `[n_positions, n_vocab]`).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from reference import Reference

SEED = 7


def wanted(n_tokens, about):
    """Powers of two less one, which are the ends of blocks and chunks, and the last position; of the others as many in short
    contexts as spread evenly."""
    marks = {0, n_tokens - 1} | {2**i - 1 for i in range(20) if 2**i <= n_tokens}
    n = max(about - len(marks), 0)
    evenly, short = np.linspace(1, n_tokens, n - n // 2), np.geomspace(1, n_tokens, n // 2)
    return sorted({int(p) for p in [*marks, *evenly, *short] if p < n_tokens})


def largest_activations(ref):
    """A list that gets each layer's largest silu(gate) * up when the model runs."""
    largest = []
    for layer in ref.model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: largest.append(float(args[0].abs().max())))
    return largest


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("--out", type=Path, required=True, help="path of the two files, without their endings")
    ap.add_argument("--tokens", type=int, default=4096, help="length of the sequence")
    ap.add_argument("--positions", type=int, default=64, help="about how many positions are kept, the first and last among them")
    ap.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda")
    args = ap.parse_args()
    began = time.time()
    ref = Reference(args.model, args.device)
    print(f"{ref.model.config.model_type} on {args.device}, read in {time.time() - began:.0f} s", flush=True)
    n_vocab = ref.model.config.vocab_size
    ids = [int(t) for t in np.random.Generator(np.random.PCG64(SEED)).integers(0, n_vocab, args.tokens)]
    positions = wanted(args.tokens, args.positions)
    largest = largest_activations(ref)
    began = time.time()
    logits = ref.logits(ids, keep=positions)
    print(f"{args.tokens} tokens in {time.time() - began:.0f} s; silu(gate) * up reaches {max(largest):.3g}")
    assert logits.shape == (len(positions), n_vocab)
    args.out.with_suffix(".f32").write_bytes(logits.astype("<f4").tobytes())
    doc = {"model": args.model.name, "tokens": ids, "positions": positions, "n_vocab": n_vocab, "largest_act": max(largest)}
    args.out.with_suffix(".json").write_text(json.dumps(doc) + "\n")
    print(f"{args.out}: {len(positions)} positions up to {positions[-1]}")


if __name__ == "__main__":
    main()
