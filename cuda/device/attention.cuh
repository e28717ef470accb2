// What both attention kernels share: where keys, values and queries lie in shared memory, and how scores become
// weights.
//
// A tile holds 16 or more tokens (or queries) of D halves, in chunks of 16 bytes. Chunks are swizzled, so that the
// eight rows of an 8x8 matrix, a column of chunks, lie in different banks.
#pragma once

#include "mma.cuh"

#include <cuda_fp16.h>

#include <cstdint>

namespace orcd {
namespace attention {

// positions[row] of a row that only fills up a batch.
constexpr uint32_t kPaddingRow = 0xFFFFFFFFu;
// Tokens of a block of the KV pool. A (block, KV head) is contiguous: 16 tokens of d_head_pad halves.
constexpr uint32_t kBlockTokens = 16;
// Weights exp(s - max) are halves times 2^15, so that those down to 2^-29 of the largest keep all their bits.
constexpr float kHeadroom = 15.0f;
constexpr float kLog2e = 1.4426950408889634f;

// Where chunk `chunk` of row `row` begins in a tile, in halves.
template <int D> __host__ __device__ constexpr uint32_t swizzled(uint32_t row, uint32_t chunk) {
    constexpr uint32_t spread = D / 8 < 8 ? D / 8 : 8;  // chunks a row can be turned by
    constexpr uint32_t rows_a_line = 8 / spread;        // rows that share 128 bytes
    return row * D + ((chunk ^ (row / rows_a_line % spread)) * 8);
}

// The row and chunk whose address a lane gives to ldmatrix, within 16 rows and two chunks.
//
// For `a` of the matrix instruction from queries [row, d], and, transposed, for `b` of two columns of eight from values
// [token, d]: r[0], r[1] are b of the first eight columns of d, r[2], r[3] of the next.
__host__ __device__ constexpr uint32_t row_of_lane(uint32_t lane) { return lane % 16; }
__host__ __device__ constexpr uint32_t chunk_of_lane(uint32_t lane) { return lane / 16; }
// For `b` of two times eight tokens from keys [token, d]: r[0], r[1] are b of the first eight tokens, r[2], r[3] of the
// next.
__host__ __device__ constexpr uint32_t key_row_of_lane(uint32_t lane) { return lane % 8 + lane / 16 * 8; }
__host__ __device__ constexpr uint32_t key_chunk_of_lane(uint32_t lane) { return lane / 8 % 2; }

// As ldmatrix_x4, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], uint32_t shared_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address)
                 : "memory");
}

// A load of what an earlier kernel has written: past L1, and never moved by the compiler.
__device__ __forceinline__ float2 load_written_8(const float *p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}

// Loads and stores by which blocks of one kernel show each other words, each word for itself: in no order.
__device__ __forceinline__ float2 load_shown_8(const float *p) {
    float2 v;
    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ float4 load_shown_16(const float *p) {
    float4 v;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

__device__ __forceinline__ void store_shown_8(float *p, float2 v) {
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1,%2};" ::"l"(p), "f"(v.x), "f"(v.y) : "memory");
}

__device__ __forceinline__ void store_shown_16(float *p, float4 v) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

// q = high + low to 22 bits, so that scores lose nothing but what keys in F16 have lost.
__device__ __forceinline__ void split_query(float2 q, __half2 &high, __half2 &low) {
    auto half = [](float x) { return __float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f)); };
    high = __halves2half2(half(q.x), half(q.y));
    low = __halves2half2(half(q.x - __low2float(high)), half(q.y - __high2float(high)));
}

// Two queries' values, columns 2 pair and 2 pair + 1, to their place in both tiles.
template <int D>
__device__ __forceinline__ void store_query(__half *high_tile, __half *low_tile, uint32_t row, uint32_t pair,
                                            float2 q) {
    __half2 high, low;
    split_query(q, high, low);
    const uint32_t at = swizzled<D>(row, pair / 4) + pair % 4 * 2;
    *reinterpret_cast<__half2 *>(high_tile + at) = high;
    *reinterpret_cast<__half2 *>(low_tile + at) = low;
}

__device__ __forceinline__ float maximum_of_quad(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float sum_of_quad(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// The running maximum and sum of one row of scores. `offset` is max * scale - kHeadroom, in powers of two: a weight is
// 2^(score * scale - offset), with the very same offset for all that are added up.
struct Softmax {
    float offset = -INFINITY;
    float sum = 0;  // this lane's columns

    // Takes in the largest score of a tile; returns what earlier sums are to be multiplied by. A tile with no score
    // above -inf changes nothing, and returns 1, once the row has any.
    __device__ __forceinline__ float raise(float largest, float scale) {
        const float raised = fmaxf(offset, fmaf(largest, scale, -kHeadroom));
        const float factor = exp2f(offset - raised);
        offset = raised;
        sum *= factor;
        return factor;
    }
    // Two scores' weights as halves; the sum is of what they were rounded to, so that the weights add up to one.
    __device__ __forceinline__ uint32_t weights(float a, float b, float scale) {
        const __half2 w = __floats2half2_rn(exp2f(fmaf(a, scale, -offset)), exp2f(fmaf(b, scale, -offset)));
        const float2 rounded = __half22float2(w);
        sum += rounded.x + rounded.y;
        return *reinterpret_cast<const uint32_t *>(&w);
    }
};

// Halves never overflow here: a result is a mean of halves. The limit is for the last bit of its rounding.
__device__ __forceinline__ __half2 to_halves(float a, float b) {
    return __floats2half2_rn(fminf(fmaxf(a, -65504.0f), 65504.0f), fminf(fmaxf(b, -65504.0f), 65504.0f));
}

}  // namespace attention
}  // namespace orcd
