//! Block formats of GGUF tensors: layout, dequantization and dot products, scalar and SIMD.
