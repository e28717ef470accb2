"""Reads a GGUF file with nothing but numpy: a GPU machine has PyTorch, and no package for this.

Knows what the reference needs: versions 2 and 3, every kind of metadata, and tensors in F32, F16, BF16 and Q8_0, which
float32 holds exactly. (Source: ggml `docs/gguf.md`.)
"""

import struct

import numpy as np

# Kinds of metadata: struct's letters by their number in the file; 8 is a string, 9 an array.
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def dequantize_q8_0(data):
    blocks = data.view([("scale", "<f2"), ("values", "i1", 32)])
    return (blocks["scale"].astype(np.float32)[:, None] * blocks["values"]).ravel()


# By the type's number in the file: its name, elements and bytes of a block, bytes to float32.
TYPES = {
    0: ("F32", 1, 4, lambda data: data.view("<f4")),
    1: ("F16", 1, 2, lambda data: data.view("<f2").astype(np.float32)),
    8: ("Q8_0", 32, 34, dequantize_q8_0),
    30: ("BF16", 1, 2, lambda data: (data.view("<u2").astype(np.uint32) << 16).view(np.float32)),
}


class GgufFile:
    """`meta`: every key; `tensors`: name to `(shape, slowest dimension first; type; place in the file)`."""

    def __init__(self, path):
        self.bytes = np.memmap(path, np.uint8, "r")
        self.at = 0
        magic, version, n_tensors, n_keys = self.read("4sIQQ")
        assert magic == b"GGUF" and version in (2, 3), (magic, version)
        self.meta = {self.string(): self.value() for _ in range(n_keys)}
        directory = [self.description() for _ in range(n_tensors)]
        alignment = self.meta.get("general.alignment", 32)
        data = -(-self.at // alignment) * alignment
        self.tensors = {name: (shape, ty, data + offset) for name, shape, ty, offset in directory}

    def read(self, letters):
        parts = struct.unpack_from("<" + letters, self.bytes, self.at)
        self.at += struct.calcsize("<" + letters)
        return parts

    def string(self):
        n, = self.read("Q")
        return self.read(f"{n}s")[0].decode()

    def value(self, kind=None):
        kind = self.read("I")[0] if kind is None else kind
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, n = self.read("IQ")
            return list(self.read(f"{n}{SCALARS[kind]}")) if kind in SCALARS else [self.value(kind) for _ in range(n)]
        return self.read(SCALARS[kind])[0]

    def description(self):
        name = self.string()
        n_dims, = self.read("I")
        shape = self.read(f"{n_dims}Q")[::-1]
        ty, offset = self.read("IQ")
        assert ty in TYPES, f"{name}: type {ty} is not known here"
        return name, shape, ty, offset

    def tensor(self, name):
        """A tensor's values in float32, row-major."""
        shape, ty, start = self.tensors[name]
        _, n_elements, n_bytes, to_float = TYPES[ty]
        n = int(np.prod(shape)) // n_elements * n_bytes
        return to_float(self.bytes[start:start + n]).reshape(shape)
