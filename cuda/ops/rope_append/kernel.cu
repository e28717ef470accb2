// rope_append: q[row, h] = R(position) qkv[row, h];  keys R(position) k and values v to the pool, as halves.
//              R turns each pair (a, b) of a head's first n_rope values: (a cos - b sin, a sin + b cos).
// rope_table:  cos_sin[position, i] = (cos, sin)(position * inv_freq[i]), in double, stored as f32.
//
// Shapes:   qkv [n_tokens, (n_heads + 2 n_kv_heads) * d_head] f32; q [n_tokens, n_heads * d_head] f32;
//           pools [block, n_kv_heads, 16, d_head_pad] f16.
// Aliasing: none.
// Mapping:  one block per row; a thread makes two neighbouring columns, and reads the ones they are paired with.
// Requires: d_head and n_rope even, n_rope <= d_head <= d_head_pad. Checked by the launcher.
// Cost:     reads and writes each value once, and L1 again for the pair's other half: bandwidth bound.
// Numerics: F32, one multiplication and one fused multiply-add; halves are rounded to nearest, and saturate at 65,504.
// Source:   Su et al. 2021 (RoFormer).
#include "dependency.cuh"
#include "launch.h"
#include "worker_cuda.h"

#include <cuda_fp16.h>

namespace orcd {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kBlockTokens = 16;
constexpr uint32_t kPaddingRow = 0xFFFFFFFFu;

__device__ __forceinline__ float turned(float x, float other, float cosine, float signed_sine) {
    return fmaf(x, cosine, other * signed_sine);
}

// Columns c and c + 1 of a head after RoPE; c is even.
__device__ __forceinline__ float2 turned_columns(const orcd_rope_append_args &a, const float *head,
                                                 const float2 *angles, uint32_t c) {
    float2 x = *reinterpret_cast<const float2 *>(head + c);
    if (c >= a.n_rope) return x;
    if (a.rope_adjacent) {
        const float2 angle = angles[c / 2];
        return make_float2(turned(x.x, x.y, angle.x, -angle.y), turned(x.y, x.x, angle.x, angle.y));
    }
    // n_rope / 2 may be odd, so that the two columns lie in different halves.
    const uint32_t half = a.n_rope / 2;
    auto one = [&](float value, uint32_t i) {
        const bool is_first = i < half;
        const float2 angle = angles[is_first ? i : i - half];
        return turned(value, head[is_first ? i + half : i - half], angle.x, is_first ? -angle.y : angle.y);
    };
    return make_float2(one(x.x, c), one(x.y, c + 1));
}

__device__ __forceinline__ __half2 saturated(float2 v) {
    return __floats2half2_rn(fminf(fmaxf(v.x, -65504.0f), 65504.0f), fminf(fmaxf(v.y, -65504.0f), 65504.0f));
}

__global__ void __launch_bounds__(kThreads) rotate_and_append(orcd_rope_append_args a) {
    let_successor_start();
    wait_for_predecessor();
    const uint32_t row = blockIdx.x, position = a.positions[row];
    float *q = a.q + (size_t)row * a.n_heads * a.d_head;
    const uint32_t q_pairs = a.n_heads * a.d_head / 2;
    if (position == kPaddingRow) {
        for (uint32_t i = threadIdx.x; i < q_pairs; i += kThreads) reinterpret_cast<float2 *>(q)[i] = make_float2(0, 0);
        return;
    }
    const float *heads = a.qkv + (size_t)row * (a.n_heads + 2 * a.n_kv_heads) * a.d_head;
    const float2 *angles = reinterpret_cast<const float2 *>(a.cos_sin) + (size_t)position * (a.n_rope / 2);
    for (uint32_t i = threadIdx.x; i < q_pairs; i += kThreads) {
        const uint32_t h = 2 * i / a.d_head, c = 2 * i % a.d_head;
        reinterpret_cast<float2 *>(q)[i] = turned_columns(a, heads + h * a.d_head, angles, c);
    }

    const uint32_t block = a.block_table[a.table_start[row] + position / kBlockTokens];
    __half *keys = reinterpret_cast<__half *>(a.k_pool), *values = reinterpret_cast<__half *>(a.v_pool);
    const uint32_t kv_pairs = a.n_kv_heads * a.d_head_pad / 2;
    for (uint32_t i = threadIdx.x; i < 2 * kv_pairs; i += kThreads) {
        const bool is_key = i < kv_pairs;
        const uint32_t at = 2 * (is_key ? i : i - kv_pairs), h = at / a.d_head_pad, c = at % a.d_head_pad;
        const float *head = heads + (a.n_heads + h + (is_key ? 0 : a.n_kv_heads)) * a.d_head;
        float2 v = make_float2(0, 0);
        if (c < a.d_head) v = is_key ? turned_columns(a, head, angles, c) : *reinterpret_cast<const float2 *>(head + c);
        const size_t slot = ((size_t)block * a.n_kv_heads + h) * kBlockTokens + position % kBlockTokens;
        *reinterpret_cast<__half2 *>((is_key ? keys : values) + slot * a.d_head_pad + c) = saturated(v);
    }
}

__global__ void __launch_bounds__(kThreads) fill_table(orcd_rope_table_args a) {
    let_successor_start();
    wait_for_predecessor();
    const uint32_t half = a.n_rope / 2;
    const uint64_t i = (uint64_t)blockIdx.x * kThreads + threadIdx.x;
    if (i >= (uint64_t)a.n_ctx * half) return;
    double sine, cosine;
    sincos((double)(i / half) * a.inv_freq[i % half], &sine, &cosine);
    reinterpret_cast<float2 *>(a.cos_sin)[i] = make_float2((float)cosine, (float)sine);
}

}  // namespace
}  // namespace orcd

extern "C" int32_t orcd_rope_append(const orcd_rope_append_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->qkv && args->q && args->k_pool && args->v_pool);
    ORCD_REQUIRE(args->block_table && args->table_start && args->positions);
    ORCD_REQUIRE(args->n_tokens > 0 && args->n_heads > 0 && args->n_kv_heads > 0);
    ORCD_REQUIRE(args->d_head > 0 && args->d_head % 2 == 0 && args->d_head_pad % 2 == 0 &&
                 args->d_head <= args->d_head_pad);
    ORCD_REQUIRE(args->n_rope % 2 == 0 && args->n_rope <= args->d_head && (args->n_rope == 0 || args->cos_sin));
    ORCD_REQUIRE(orcd::is_aligned(args->qkv, 8) && orcd::is_aligned(args->cos_sin, 8) && orcd::is_aligned(args->q, 8));
    ORCD_REQUIRE(orcd::is_aligned(args->k_pool, 4) && orcd::is_aligned(args->v_pool, 4));
    return orcd::launch(orcd::rotate_and_append, dim3(args->n_tokens), dim3(orcd::kThreads), 0, stream, *args);
}

extern "C" int32_t orcd_rope_table(const orcd_rope_table_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->n_ctx > 0 && args->n_rope % 2 == 0);
    const uint64_t n = (uint64_t)args->n_ctx * (args->n_rope / 2);
    if (n == 0) return (int32_t)cudaSuccess;
    ORCD_REQUIRE(args->inv_freq && args->cos_sin && orcd::is_aligned(args->cos_sin, 8));
    const uint64_t n_blocks = (n + orcd::kThreads - 1) / orcd::kThreads;
    ORCD_REQUIRE(n_blocks <= 0x7FFFFFFFu);
    return orcd::launch(orcd::fill_table, dim3((uint32_t)n_blocks), dim3(orcd::kThreads), 0, stream, *args);
}
