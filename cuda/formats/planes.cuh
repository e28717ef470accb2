// Quantised matrices: how a lane reads its eight numbers of a row's chunk, and what they are multiplied by.
//
// The planes are those of `quant::planes`: low bits, high bits, scales, supers. A lane t of a quad has columns 4t to 4t+3 and 16+4t to
// 16+4t+3 of a chunk, so that the first of two matrix instructions has a chunk's first 16 columns, which have a scale of their
// own in some formats.
//
// A number below 1024 becomes a half without a conversion: those bits in the mantissa of 1024 are the half 1024 + number; four bits
// higher they are 1024 + 16 * number. A byte becomes a float in the same way, in the mantissa of 2^23.
//
// Everything is written over `Planes`, which folds away where the format is known when compiling, and else is looked at.
#pragma once

#include "bits.cuh"
#include "launch.h"
#include "mma.cuh"
#include "worker_cuda.h"

namespace orcd {

// What a chunk's bytes in the plane of scales are; as `quant::planes::Scales`.
enum Scales { kHalf, kHalfAndOffset, kExponent, kByte, kTwoBytes, kByteAndMin, kTwoNibblesAndMins };
enum Table { kNoTable, kIq4, kMxfp4 };

// How a format's blocks lie in planes; as `quant::planes::Layout`.
struct Planes {
    int low_bits, high_bits, center;
    Scales scales;
    int scale_center;
    Table table;

    // Scales of a chunk.
    __host__ __device__ constexpr int n_groups() const { return scales == kTwoBytes || scales == kTwoNibblesAndMins ? 2 : 1; }
    __host__ __device__ constexpr bool has_offset() const {
        return scales == kHalfAndOffset || scales == kByteAndMin || scales == kTwoNibblesAndMins;
    }
    // Bytes of a chunk, and of eight.
    __host__ __device__ constexpr uint32_t scale_bytes() const {
        return scales == kHalfAndOffset ? 4 : scales == kExponent || scales == kByte ? 1 : 2;
    }
    __host__ __device__ constexpr uint32_t super_bytes() const {
        return scales == kByteAndMin || scales == kTwoNibblesAndMins ? 4 : scales == kByte || scales == kTwoBytes ? 2 : 0;
    }
};

constexpr uint32_t kChunksOfSuper = 8;

__host__ __device__ constexpr bool is_quantised(uint32_t format) { return format >= ORCD_FORMAT_Q8_0; }

__host__ __device__ constexpr Planes planes_of(uint32_t format) {
    switch (format) {
        case ORCD_FORMAT_Q8_0: return {8, 0, 128, kHalf, 0, kNoTable};
        case ORCD_FORMAT_Q4_0: return {4, 0, 8, kHalf, 0, kNoTable};
        case ORCD_FORMAT_Q4_1: return {4, 0, 0, kHalfAndOffset, 0, kNoTable};
        case ORCD_FORMAT_Q5_0: return {4, 1, 16, kHalf, 0, kNoTable};
        case ORCD_FORMAT_Q5_1: return {4, 1, 0, kHalfAndOffset, 0, kNoTable};
        case ORCD_FORMAT_Q2_K: return {2, 0, 0, kTwoNibblesAndMins, 0, kNoTable};
        case ORCD_FORMAT_Q3_K: return {2, 1, 4, kTwoBytes, 32, kNoTable};
        case ORCD_FORMAT_Q4_K: return {4, 0, 0, kByteAndMin, 0, kNoTable};
        case ORCD_FORMAT_Q5_K: return {4, 1, 0, kByteAndMin, 0, kNoTable};
        case ORCD_FORMAT_Q6_K: return {4, 2, 32, kTwoBytes, 128, kNoTable};
        case ORCD_FORMAT_IQ4_NL: return {4, 0, 0, kHalf, 0, kIq4};
        case ORCD_FORMAT_IQ4_XS: return {4, 0, 0, kByte, 32, kIq4};
        default: return {4, 0, 0, kExponent, 0, kMxfp4};
    }
}

// What the numbers of a table stand for, plus 128: four in a word, the first in its lowest byte.
constexpr int kTableCenter = 128;
__host__ __device__ constexpr uint32_t table_word(Table table, int i) {
    constexpr uint32_t iq4[4] = {0x3F2D1801, 0x766A5D4F, 0xA6998D81, 0xF1D9C5B5};
    constexpr uint32_t mxfp4[4] = {0x83828180, 0x8C888684, 0x7D7E7F80, 0x74787A7C};
    return table == kIq4 ? iq4[i] : mxfp4[i];
}

// A lane's places in a row.
struct PlaneRow {
    const char *low, *high, *scales, *supers;

    __device__ __forceinline__ void find(Planes k, const orcd_matrix &w, uint32_t row, int t) {
        const size_t n_chunks = w.n_cols / ORCD_CHUNK;
        const uint32_t low_at = k.low_bits == 2 ? t / 2 * 4 : t * k.low_bits;
        low = static_cast<const char *>(w.values) + row * w.row_bytes + low_at;
        if (k.high_bits > 0)
            high = static_cast<const char *>(w.high) + row * n_chunks * (4 * k.high_bits) + (k.high_bits == 2 ? t / 2 * 4 : 0);
        scales = static_cast<const char *>(w.scales) + row * n_chunks * k.scale_bytes();
        if (k.super_bytes() > 0) supers = static_cast<const char *>(w.supers) + row * (n_chunks / kChunksOfSuper) * k.super_bytes();
    }
};

// What a lane has loaded of one row's chunk.
struct PlanePiece {
    uint32_t low[2], high, scale, super;

    __device__ __forceinline__ void load(Planes k, const PlaneRow &row, uint32_t chunk) {
        const char *p = row.low + chunk * (4 * k.low_bits);
        if (k.low_bits == 8) {
            const uint2 both = load_once_8(p);
            low[0] = both.x;
            low[1] = both.y;
        } else {
            low[0] = load_constant_4(p);
        }
        if (k.high_bits > 0) high = load_constant_4(row.high + chunk * (4 * k.high_bits));
        const char *s = row.scales + chunk * k.scale_bytes();
        scale = k.scale_bytes() == 2 ? load_constant_2(s) : k.scale_bytes() == 4 ? load_constant_4(s) : load_constant_1(s);
        if (k.super_bytes() > 0) {
            const char *of = row.supers + chunk / kChunksOfSuper * k.super_bytes();
            super = k.super_bytes() == 2 ? load_constant_2(of) : load_constant_4(of);
        }
    }
};

// What a chunk's two times 16 columns are multiplied by, and what is then added.
struct PlaneScale {
    float scale[2], offset[2];
};

// A byte minus a constant.
__device__ __forceinline__ float byte_minus(uint32_t byte, int center) {
    return __uint_as_float(0x4B000000u | byte) - __uint_as_float(0x4B000000u | (uint32_t)center);
}

// By the order of operations that ggml dequantizes with, each rounded. With one group, only the first of each is set.
__device__ __forceinline__ PlaneScale scale_of(Planes k, const PlanePiece &piece) {
    PlaneScale s;
    const uint32_t bytes = piece.scale;
    switch (k.scales) {
        case kHalf: s.scale[0] = low_half(bytes); break;
        case kHalfAndOffset:
            s.scale[0] = low_half(bytes);
            s.offset[0] = high_half(bytes);
            break;
        case kExponent: s.scale[0] = __uint_as_float(bytes < 2 ? 0x00200000u << bytes : (bytes - 1) << 23); break;
        case kByte: s.scale[0] = __fmul_rn(low_half(piece.super), byte_minus(bytes, k.scale_center)); break;
        case kTwoBytes:
            s.scale[0] = __fmul_rn(low_half(piece.super), byte_minus(bytes & 0xFF, k.scale_center));
            s.scale[1] = __fmul_rn(low_half(piece.super), byte_minus(bytes >> 8, k.scale_center));
            break;
        case kByteAndMin:
            s.scale[0] = __fmul_rn(low_half(piece.super), byte_minus(bytes & 0xFF, 0));
            s.offset[0] = -__fmul_rn(high_half(piece.super), byte_minus(bytes >> 8, 0));
            break;
        default:
#pragma unroll
            for (int group = 0; group < 2; group++) {
                const uint32_t both = bytes >> (8 * group);
                s.scale[group] = __fmul_rn(low_half(piece.super), byte_minus(both & 0xF, 0));
                s.offset[group] = -__fmul_rn(high_half(piece.super), byte_minus(both >> 4 & 0xF, 0));
            }
    }
    return s;
}

// Both halves 1024, and both 1024 and a number.
constexpr uint32_t kHalf1024 = 0x64006400u;
__device__ __forceinline__ uint32_t half_1024_plus(int n) { return kHalf1024 + (uint32_t)n * 0x00010001u; }

// The table's values for the nibbles of the lower 16 bits: a byte each, plus 128.
__device__ __forceinline__ uint32_t look_up(Table table, uint32_t nibbles) {
    const uint32_t which = nibbles & 0x7777;
    const uint32_t lower = pick_bytes(table_word(table, 0), table_word(table, 1), which);
    const uint32_t upper = pick_bytes(table_word(table, 2), table_word(table, 3), which);
    return pick_bytes(lower, upper, 0x3210 | (nibbles & 0x8888) >> 1);
}

__device__ __forceinline__ uint4 looked_up(Table table, uint32_t low) {
    const uint32_t firsts = look_up(table, low), seconds = look_up(table, low >> 16), center = half_1024_plus(kTableCenter);
    auto pair = [=](uint32_t which) {
        return subtract_halves((pick_bytes(firsts, seconds, which) & 0x00FF00FFu) | kHalf1024, center);
    };
    return make_uint4(pair(0x4400), pair(0x5511), pair(0x6622), pair(0x7733));
}

// Numbers of four bits and more: pairs 0 and 2 are in the lowest bits, 1 and 3 four bits higher.
__device__ __forceinline__ uint4 from_nibbles(Planes k, const PlanePiece &piece, int t) {
    const uint32_t a = piece.low[0], b = a >> 8;
    uint32_t p0 = (a & 0x000F000Fu) | kHalf1024, p1 = (a & 0x00F000F0u) | kHalf1024;
    uint32_t p2 = (b & 0x000F000Fu) | kHalf1024, p3 = (b & 0x00F000F0u) | kHalf1024;
    if (k.high_bits == 1) {
        const uint32_t h = piece.high >> (4 * t);
        p0 |= h << 4 & 0x00100010u;
        p1 |= h << 7 & 0x01000100u;
        p2 |= h << 2 & 0x00100010u;
        p3 |= h << 5 & 0x01000100u;
    }
    if (k.high_bits == 2) {
        const uint32_t h = piece.high >> (8 * (t & 1));
        p0 |= h << 4 & 0x00300030u;
        p1 |= h << 6 & 0x03000300u;
        p2 |= h & 0x00300030u;
        p3 |= h << 2 & 0x03000300u;
    }
    // (1024 + 16 n) / 16 - (64 + center); a half from 64 to 128 has steps of 2^-4.
    constexpr uint32_t sixteenth = 0x2C002C00u;
    const uint32_t center = half_1024_plus(k.center), minus_64_and_center = 0xD400D400u + (uint32_t)k.center * 0x00100010u;
    return make_uint4(subtract_halves(p0, center), fma_halves(p1, sixteenth, minus_64_and_center), subtract_halves(p2, center),
                      fma_halves(p3, sixteenth, minus_64_and_center));
}

__device__ __forceinline__ uint4 from_two_bits(Planes k, const PlanePiece &piece, int t) {
    const uint32_t a = piece.low[0] >> (8 * (t & 1)), center = half_1024_plus(k.center);
    uint32_t p0 = (a & 0x00030003u) | kHalf1024, p1 = (a >> 2 & 0x00030003u) | kHalf1024;
    uint32_t p2 = (a >> 4 & 0x00030003u) | kHalf1024, p3 = (a >> 6 & 0x00030003u) | kHalf1024;
    if (k.high_bits == 1) {
        const uint32_t h = piece.high >> (4 * t);
        p0 |= h << 2 & 0x00040004u;
        p1 |= h << 1 & 0x00040004u;
        p2 |= h & 0x00040004u;
        p3 |= h >> 1 & 0x00040004u;
    }
    return make_uint4(subtract_halves(p0, center), subtract_halves(p1, center), subtract_halves(p2, center), subtract_halves(p3, center));
}

__device__ __forceinline__ uint4 from_bytes(Planes k, const PlanePiece &piece) {
    const uint32_t center = half_1024_plus(k.center);
    auto pair = [=](uint32_t four, uint32_t which) { return subtract_halves(pick_bytes(four, kHalf1024, which), center); };
    return make_uint4(pair(piece.low[0], 0x5150), pair(piece.low[0], 0x5352), pair(piece.low[1], 0x5150), pair(piece.low[1], 0x5352));
}

// A lane's eight numbers, or what they stand for, as halves: whole numbers of up to eight bits, exact.
__device__ __forceinline__ uint4 numbers_of(Planes k, const PlanePiece &piece, int t) {
    if (k.table != kNoTable) return looked_up(k.table, piece.low[0]);
    if (k.low_bits == 8) return from_bytes(k, piece);
    if (k.low_bits == 4) return from_nibbles(k, piece, t);
    return from_two_bits(k, piece, t);
}

// A number times its scale, as the CPU computes it.
__device__ __forceinline__ float scaled(Planes k, float number, const PlaneScale &s, int group) {
    if (k.n_groups() == 1) group = 0;
    const float product = __fmul_rn(group ? s.scale[1] : s.scale[0], number);
    return k.has_offset() ? __fadd_rn(product, group ? s.offset[1] : s.offset[0]) : product;
}

// A lane's eight values: columns 4t to 4t+3, then 16+4t to 16+4t+3.
__device__ __forceinline__ void values_of(Planes k, const PlanePiece &piece, int t, float (&out)[8]) {
    const uint4 n = numbers_of(k, piece, t);
    const PlaneScale s = scale_of(k, piece);
    const uint32_t pairs[4] = {n.x, n.y, n.z, n.w};
#pragma unroll
    for (int p = 0; p < 4; p++) {
        out[2 * p] = scaled(k, low_half(pairs[p]), s, p / 2);
        out[2 * p + 1] = scaled(k, high_half(pairs[p]), s, p / 2);
    }
}

}  // namespace orcd
