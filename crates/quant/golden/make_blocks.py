#!/usr/bin/env python3
"""Writes the golden blocks: random blocks of every format, and what the Python package `gguf` makes of them.

    make_blocks.py --out DIR

For each format NAME, DIR gets NAME.bin: some blocks, and then their values in raw little-endian float32. The number of
blocks follows from the length. Needs gguf and numpy, as ../../transformer/golden/requirements.txt pins them.

Every byte of a block is random but those of its half-precision scales and minima, which go through the extremes: zeros of
both signs, the least and the greatest subnormal, the least normal, the greatest, and ordinary values. Infinities and NaN
are left out: what becomes of them is a NaN here or there, whose bits depend on the processor. Of the formats that are floats,
a block is one of them, and only NaN is left out; the first are zeros, the least and the greatest, and infinities.
"""

import argparse
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as QT
from gguf.quants import dequantize

# Where a block's half-precision numbers lie.
HALVES = {
    QT.Q8_0: [0], QT.Q4_0: [0], QT.Q4_1: [0, 2], QT.Q5_0: [0], QT.Q5_1: [0, 2],
    QT.Q2_K: [80, 82], QT.Q3_K: [108], QT.Q4_K: [0, 2], QT.Q5_K: [0, 2], QT.Q6_K: [208],
    QT.IQ4_NL: [0], QT.IQ4_XS: [0], QT.MXFP4: [],
}
# Of the formats that are floats: bits of an unsigned number, and where the exponent begins.
FLOATS = {QT.F32: ("<u4", 23), QT.F16: ("<u2", 10), QT.BF16: ("<u2", 7)}
EXTREMES = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF], "<u2").view("<f2")


def halves(rng, n):
    """Ordinary values of both signs, and an extreme in every third place."""
    values = (rng.normal(size=n) * 2.0 ** rng.integers(-12, 3, n)).astype("<f2")
    values[::3] = rng.permutation(np.resize(EXTREMES, len(values[::3])))
    return values


def blocks(rng, ty):
    block_len, block_bytes = GGML_QUANT_SIZES[ty]
    n = 8 if block_len == 256 else 24
    bytes_ = rng.integers(0, 256, (n, block_bytes), np.uint8)
    for at in HALVES[ty]:
        bytes_[:, at:at + 2] = halves(rng, n).view(np.uint8).reshape(n, 2)
    if ty == QT.MXFP4:
        bytes_[:6, 0] = [0, 1, 2, 127, 254, 255]  # exponents: the subnormal ones, 1/2, and two that overflow
    return bytes_


def floats(rng, ty):
    bits, mantissa = FLOATS[ty]
    sign = np.array(1, bits) << (8 * np.dtype(bits).itemsize - 1)
    infinity = (sign - 1) >> mantissa << mantissa
    least_normal = 1 << mantissa
    extremes = np.array([0, 1, least_normal - 1, least_normal, infinity - 1, infinity], bits)
    values = rng.integers(0, np.iinfo(bits).max, 1000, bits, endpoint=True)
    values = values[(values & ~sign) <= infinity]
    return np.concatenate([extremes, extremes | sign, values]).view(np.uint8).reshape(-1, np.dtype(bits).itemsize)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for ty in [*HALVES, *FLOATS]:
        rng = np.random.default_rng([2026, int(ty)])
        bytes_ = floats(rng, ty) if ty in FLOATS else blocks(rng, ty)
        with np.errstate(over="ignore"):
            values = dequantize(bytes_, ty).astype("<f4", copy=False)
        assert not np.isnan(values).any(), ty.name
        (out / f"{ty.name}.bin").write_bytes(bytes_.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
