// rms_norm: x = residual + partials;  out = x / sqrt(mean(x^2) + eps) * weight, as halves times a power of two.
//
// Shapes:   residual [.., d_model] f32; partials [n_partials, n_tokens, d_model] f32; weight [d_model] f32;
//           out [n_tokens, out_pitch] f16.
// Aliasing: none; the residual is updated in place.
// Mapping:  one block of 256 threads per token; a thread keeps its elements in registers between the two passes, up to
//           kKept of them, and reads the rest again.
// Requires: out_pitch >= d_model; partials and rows not both.
// Cost:     reads 4 (1 + n_partials) and writes 4 + 2 bytes an element; for one token it is latency: two trips to L2
//           and one block-wide sum.
// Numerics: F32 sums in one order, given by d_model alone: 256 threads, then warps by shuffles, then the warps' sums in
//           order. One rounding to half at the end.
// Source:   Zhang & Sennrich 2019. The bound: |silu(g) u| <= |g| |u| <= |gate row| |up row| |x|^2 (Cauchy-Schwarz).
#include "dependency.cuh"
#include "launch.h"
#include "worker_cuda.h"

#include <cuda_fp16.h>

namespace orcd {
namespace {

constexpr int kThreads = 256;
// Elements a thread keeps: 16 cover a d_model of 4,096.
constexpr int kKept = 16;

// Sums of both values over the block, to every thread, always in the same order.
__device__ float2 block_sum(float2 v) {
    __shared__ float2 of_warps[kThreads / 32];
    for (int offset = 16; offset > 0; offset /= 2) {
        v.x += __shfl_xor_sync(~0u, v.x, offset);
        v.y += __shfl_xor_sync(~0u, v.y, offset);
    }
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = v;
    __syncthreads();
    float2 sum = make_float2(0, 0);
    for (int i = 0; i < kThreads / 32; i++) {
        sum.x += of_warps[i].x;
        sum.y += of_warps[i].y;
    }
    return sum;
}

__global__ void __launch_bounds__(kThreads) block_per_token(orcd_rms_norm_args a) {
    let_successor_start();
    const uint32_t token = blockIdx.x;
    // Weights do not depend on the kernel before.
    float w[kKept], x[kKept];
#pragma unroll
    for (int k = 0; k < kKept; k++) {
        uint32_t i = threadIdx.x + k * kThreads;
        w[k] = i < a.d_model ? a.weight[i] : 0;
    }
    wait_for_predecessor();
    float *residual = a.residual + (size_t)(a.rows ? a.rows[token] : token) * a.d_model;
    const float *partials = a.partials + (size_t)token * a.d_model;
    const size_t partial_pitch = (size_t)a.n_tokens * a.d_model;

    auto updated = [&](uint32_t i) {
        float v = residual[i];
        for (uint32_t p = 0; p < a.n_partials; p++) v += partials[p * partial_pitch + i];
        if (a.n_partials > 0) residual[i] = v;
        return v;
    };
    float2 sum = make_float2(0, 0);  // of x^2, and of (x weight)^2
    auto account = [&](float v, float weight) {
        sum.x += v * v;
        sum.y += (v * weight) * (v * weight);
    };
#pragma unroll
    for (int k = 0; k < kKept; k++) {
        uint32_t i = threadIdx.x + k * kThreads;
        x[k] = i < a.d_model ? updated(i) : 0;
        account(x[k], w[k]);
    }
    for (uint32_t i = threadIdx.x + kKept * kThreads; i < a.d_model; i += kThreads) account(updated(i), a.weight[i]);
    sum = block_sum(sum);

    const float inverse = 1.0f / sqrtf(sum.x / (float)a.d_model + a.eps);
    __half *out = reinterpret_cast<__half *>(a.out) + (size_t)token * a.out_pitch;
    auto write = [&](uint32_t i, float v, float weight) {
        float y = v * inverse * weight;
        out[i] = __float2half_rn(y * a.out_scale);
        if (a.out_f32) a.out_f32[(size_t)token * a.d_model + i] = y;
    };
#pragma unroll
    for (int k = 0; k < kKept; k++) {
        uint32_t i = threadIdx.x + k * kThreads;
        if (i < a.d_model) write(i, x[k], w[k]);
    }
    for (uint32_t i = threadIdx.x + kKept * kThreads; i < a.d_model; i += kThreads) write(i, residual[i], a.weight[i]);

    if (a.ffn_bound > 0 && threadIdx.x == 0) {
        float bound = a.ffn_bound * (inverse * inverse * sum.y);
        int exponent = 0;
        if (bound > 0 && bound < INFINITY) frexpf(bound, &exponent);  // bound <= 2^exponent
        // 2^14 and not 2^15: the bound is of exact arithmetic. The limits keep both powers normal numbers.
        exponent = max(-100, min(100, 14 - exponent));
        a.ffn_scale[token] = ldexpf(1.0f, exponent);
        a.ffn_unscale[token] = ldexpf(1.0f, -exponent);
    }
}

}  // namespace
}  // namespace orcd

extern "C" int32_t orcd_rms_norm(const orcd_rms_norm_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->residual && args->weight && args->out && args->n_tokens > 0 && args->d_model > 0);
    ORCD_REQUIRE(args->out_pitch >= args->d_model && args->out_scale > 0);
    ORCD_REQUIRE(args->n_partials == 0 || (args->partials && !args->rows));
    ORCD_REQUIRE(args->ffn_bound == 0 || (args->ffn_scale && args->ffn_unscale));
    return orcd::launch(orcd::block_per_token, dim3(args->n_tokens), dim3(orcd::kThreads), 0, stream, *args);
}
