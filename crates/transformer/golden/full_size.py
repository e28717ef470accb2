#!/usr/bin/env python3
"""Logits of a full-size model in float64, at some positions of one long sequence: a developer's check, not part of CI.

    cargo xtask make-random random-f16.gguf
    full_size.py random-f16.gguf --out full_size         # needs 8 GB and some minutes; see requirements.txt
    cargo run --release -p transformer --example compare_logits -- random-f16.gguf full_size.json

Writes OUT.json (token ids, positions) and OUT.f32 (little-endian float32, `[n_positions, n_vocab]`).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from reference import Reference

SEED = 7


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("--out", type=Path, required=True, help="path of the two files, without their endings")
    ap.add_argument("--tokens", type=int, default=4096, help="length of the sequence")
    ap.add_argument("--positions", type=int, default=64, help="how many positions are kept, the first and last among them")
    args = ap.parse_args()
    ref = Reference(args.model)
    n_vocab = ref.model.config.vocab_size
    ids = [int(t) for t in np.random.Generator(np.random.PCG64(SEED)).integers(0, n_vocab, args.tokens)]
    # Powers of two, which are the ends of blocks and chunks, and places between them.
    marks = {0, args.tokens - 1} | {2**i - 1 for i in range(20) if 2**i <= args.tokens}
    spread = np.linspace(1, args.tokens - 2, max(args.positions - len(marks), 0)).astype(int)
    positions = sorted(marks | {int(p) for p in spread})
    logits = ref.logits(ids, keep=positions)
    assert logits.shape == (len(positions), n_vocab)
    args.out.with_suffix(".f32").write_bytes(logits.astype("<f4").tobytes())
    doc = {"model": args.model.name, "tokens": ids, "positions": positions, "n_vocab": n_vocab}
    args.out.with_suffix(".json").write_text(json.dumps(doc) + "\n")
    print(f"{args.out}: {len(positions)} positions up to {positions[-1]}")


if __name__ == "__main__":
    main()
