// rms_norm: x = residual + partials;  out = x / sqrt(mean(x^2) + eps) * weight, as halves times a power of two.
//
// Shapes:   residual [.., d_model] f32; partials [n_partials, n_tokens, d_model] f32; weight [d_model] f32;
//           out [n_tokens, out_pitch] f16.
// Aliasing: none; the residual is updated in place.
// Mapping:  one block of 256 threads per token, 16 bytes a thread at a time where rows allow it; a thread keeps 4 such
//           vectors in registers between the two passes and reads the rest again. See norm.cuh.
// Requires: out_pitch >= d_model; partials and rows not both.
// Cost:     reads 4 (1 + n_partials) and writes 4 + 2 bytes an element; for one token it is latency: two trips to L2
//           and one block-wide sum.
// Numerics: F32 sums in one order, given by d_model alone: 256 threads, then warps by shuffles, then the warps' sums in
//           order. One rounding to half at the end.
// Source:   Zhang & Sennrich 2019. The bound: |silu(g) u| <= |g| |u| <= |gate row| |up row| |x|^2 (Cauchy-Schwarz).
#include "dependency.cuh"
#include "launch.h"
#include "mma.cuh"
#include "norm.cuh"
#include "worker_cuda.h"

#include <cuda_fp16.h>

namespace orcd {
namespace {

using namespace norm;

template <int WIDTH> __global__ void __launch_bounds__(kThreads) block_per_token(orcd_rms_norm_args a) {
    let_successor_start();
    const uint32_t token = blockIdx.x, n_vectors = a.d_model / WIDTH;
    Weights<WIDTH, kKept> w;
    w.load_from(a.weight, a.d_model);
    wait_for_predecessor();
    float *residual = a.residual + (size_t)(a.rows ? a.rows[token] : token) * a.d_model;
    const float *partials = a.partials + (size_t)token * a.d_model;
    const size_t partial_pitch = (size_t)a.n_tokens * a.d_model;
    const bool writes_back = a.n_partials > 0;

    Vector<WIDTH> x[kKept];
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int k = 0; k < kKept; k++) {
        const uint32_t i = threadIdx.x + k * kThreads;
        x[k] = i < n_vectors ? updated<WIDTH>(residual, partials, a.n_partials, partial_pitch, i) : Vector<WIDTH>{};
        account(sum, x[k], w.of[k]);
    }
    for (uint32_t i = threadIdx.x + kKept * kThreads; i < n_vectors; i += kThreads) {
        const Vector<WIDTH> value = updated<WIDTH>(residual, partials, a.n_partials, partial_pitch, i);
        if (writes_back) store(residual + i * WIDTH, value);
        account(sum, value, load<WIDTH>(a.weight + i * WIDTH));
    }
    sum = block_sum(sum);

    const float inverse = inverse_of(sum, a.d_model, a.eps);
    __half *out = reinterpret_cast<__half *>(a.out) + (size_t)token * a.out_pitch;
    auto write = [&](uint32_t i, const Vector<WIDTH> &value, const Vector<WIDTH> &weight) {
        Vector<WIDTH> y;
        for (int j = 0; j < WIDTH; j++) y.v[j] = value.v[j] * inverse * weight.v[j];
        if (a.out_f32) store(a.out_f32 + (size_t)token * a.d_model + i * WIDTH, y);
        if constexpr (WIDTH == 4) {
            *reinterpret_cast<uint2 *>(out + i * 4) = make_uint2(pack_half2(y.v[0] * a.out_scale, y.v[1] * a.out_scale),
                                                                 pack_half2(y.v[2] * a.out_scale, y.v[3] * a.out_scale));
        } else {
            out[i] = __float2half_rn(y.v[0] * a.out_scale);
        }
    };
#pragma unroll
    for (int k = 0; k < kKept; k++) {
        const uint32_t i = threadIdx.x + k * kThreads;
        if (i >= n_vectors) continue;
        write(i, x[k], w.of[k]);
        if (writes_back) store(residual + i * WIDTH, x[k]);
    }
    for (uint32_t i = threadIdx.x + kKept * kThreads; i < n_vectors; i += kThreads)
        write(i, load<WIDTH>(residual + i * WIDTH), load<WIDTH>(a.weight + i * WIDTH));

    if (a.ffn_bound > 0 && threadIdx.x == 0) {
        const int exponent = ffn_exponent(a.ffn_bound, sum, inverse);
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
    const bool is_wide = args->d_model % 4 == 0 && args->out_pitch % 4 == 0 && orcd::is_aligned(args->residual, 16) &&
                         orcd::is_aligned(args->partials, 16) && orcd::is_aligned(args->weight, 16) &&
                         orcd::is_aligned(args->out, 8) && orcd::is_aligned(args->out_f32, 16);
    const auto kernel = is_wide ? orcd::block_per_token<4> : orcd::block_per_token<1>;
    return orcd::launch(kernel, dim3(args->n_tokens), dim3(orcd::kThreads), 0, stream, *args);
}
