// From a format's bytes to halves in the order that matrix instructions want, and to floats.
//
// Here are the formats that are not quantised; planes.cuh has the others.
//
// A chunk is 32 columns. Lane t of a quad takes columns 8t to 8t+7 of it: contiguous, so that a quad reads 64 bytes of an F16
// row. The order of columns within a matrix instruction is free as long as both operands agree: the first instruction of
// a chunk takes columns {0, 1, 2, 3} of every lane's eight, the second {4, 5, 6, 7}.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"
#include "mma.cuh"
#include "planes.cuh"
#include "worker_cuda.h"

namespace orcd {

// What a lane has loaded of one row's chunk, and what it becomes.
template <int FORMAT> struct Piece;

template <> struct Piece<ORCD_FORMAT_F16> {
    uint4 bits;
    __device__ __forceinline__ void load(const orcd_matrix &w, uint32_t row, uint32_t chunk, int t) {
        bits = load_once_16(static_cast<const char *>(w.values) + row * w.row_bytes + chunk * 64 + t * 16);
    }
    __device__ __forceinline__ uint4 halves(float) const { return bits; }
};

template <> struct Piece<ORCD_FORMAT_BF16> {
    uint4 bits;
    __device__ __forceinline__ void load(const orcd_matrix &w, uint32_t row, uint32_t chunk, int t) {
        bits = load_once_16(static_cast<const char *>(w.values) + row * w.row_bytes + chunk * 64 + t * 16);
    }
    // Exact but for values 2^29 times smaller than the matrix's largest: bfloat16 has 8 bits, half has 11.
    __device__ __forceinline__ uint4 halves(float scale) const {
        auto pair = [scale](uint32_t two) {
            return pack_half2(__uint_as_float(two << 16) * scale, __uint_as_float(two & 0xFFFF0000u) * scale);
        };
        return make_uint4(pair(bits.x), pair(bits.y), pair(bits.z), pair(bits.w));
    }
};

template <> struct Piece<ORCD_FORMAT_F32> {
    uint4 low, high;
    __device__ __forceinline__ void load(const orcd_matrix &w, uint32_t row, uint32_t chunk, int t) {
        const char *p = static_cast<const char *>(w.values) + row * w.row_bytes + chunk * 128 + t * 32;
        low = load_once_16(p);
        high = load_once_16(p + 16);
    }
    // Rounded to 11 bits, as TF32 would.
    __device__ __forceinline__ uint4 halves(float scale) const {
        auto pair = [scale](uint32_t a, uint32_t b) {
            return pack_half2(__uint_as_float(a) * scale, __uint_as_float(b) * scale);
        };
        return make_uint4(pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y), pair(high.z, high.w));
    }
};

// One of a row's values of a quantised matrix, exactly.
__device__ __forceinline__ float quantised_value(const orcd_matrix &w, uint32_t row, uint32_t column) {
    const Planes k = planes_of(w.format);
    const int t = column % 16 / 4, group = column / 16 % 2;
    PlaneRow at;
    PlanePiece piece;
    at.find(k, w, row, t);
    piece.load(k, at, column / ORCD_CHUNK);
    const uint4 n = numbers_of(k, piece, t);
    const uint32_t first = group ? n.z : n.x, second = group ? n.w : n.y, pair = column % 4 < 2 ? first : second;
    return scaled(k, column % 2 ? high_half(pair) : low_half(pair), scale_of(k, piece), group);
}

// One of a row's values, exactly.
__device__ __forceinline__ float weight_value(const orcd_matrix &w, uint32_t row, uint32_t column) {
    if (is_quantised(w.format)) return quantised_value(w, row, column);
    const char *p = static_cast<const char *>(w.values) + row * w.row_bytes;
    switch (w.format) {
        case ORCD_FORMAT_F16: return __half2float(reinterpret_cast<const __half *>(p)[column]);
        case ORCD_FORMAT_BF16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(p)[column]);
        default: return reinterpret_cast<const float *>(p)[column];
    }
}

// Whether a quantised matrix has the planes of its format.
inline bool has_planes(const orcd_matrix &w) {
    const Planes k = planes_of(w.format);
    const uint32_t block = k.super_bytes() > 0 ? kChunksOfSuper * ORCD_CHUNK : ORCD_CHUNK;
    return w.n_cols % block == 0 && w.scales && is_aligned(w.scales, 4) && (k.high_bits == 0 || (w.high && is_aligned(w.high, 4))) &&
           (k.super_bytes() == 0 || (w.supers && is_aligned(w.supers, 4))) &&
           w.row_bytes == (uint64_t)w.n_cols / 8 * k.low_bits;
}

// What every launcher requires of a matrix.
inline bool is_matrix(const orcd_matrix &w) {
    if (!w.values || w.n_rows == 0 || w.n_cols == 0 || w.format >= ORCD_N_FORMATS || !(w.scale > 0) || !is_aligned(w.values, 16))
        return false;
    if (is_quantised(w.format)) return has_planes(w);
    const uint64_t columns = (uint64_t)div_ceil(w.n_cols, ORCD_CHUNK) * ORCD_CHUNK;
    return w.row_bytes % 16 == 0 && w.row_bytes >= columns * (w.format == ORCD_FORMAT_F32 ? 4 : 2);
}

}  // namespace orcd
