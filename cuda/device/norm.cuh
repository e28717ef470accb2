// RMS norm of one row by a block of 256 threads: for the kernel that does only that, and for products that do it themselves
// when there are so few tokens that every block can afford to. Both give the same bits.
#pragma once

#include <cstdint>

namespace orcd {
namespace norm {

constexpr int kThreads = 256;
// Vectors a thread keeps between the two passes: 4 of 16 bytes cover a d_model of 4,096.
constexpr int kKept = 4;
// Partials that are loaded together. More are read one after the other.
constexpr uint32_t kTogether = 5;

template <int WIDTH> struct Vector {
    float v[WIDTH];
};

template <int WIDTH> __device__ __forceinline__ Vector<WIDTH> load(const float *p) {
    Vector<WIDTH> out;
    if constexpr (WIDTH == 4) {
        const float4 four = *reinterpret_cast<const float4 *>(p);
        out.v[0] = four.x, out.v[1] = four.y, out.v[2] = four.z, out.v[3] = four.w;
    } else {
        out.v[0] = *p;
    }
    return out;
}

template <int WIDTH> __device__ __forceinline__ void store(float *p, const Vector<WIDTH> &x) {
    if constexpr (WIDTH == 4) *reinterpret_cast<float4 *>(p) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
    else *p = x.v[0];
}

// Sums of both values over the block, to every thread, always in the same order. Ends with a barrier's worth of order: call it
// again only after one.
__device__ __forceinline__ float2 block_sum(float2 v) {
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

// A thread's part of the norm's weight, which can be fetched before the row is there.
template <int WIDTH, int KEPT> struct Weights {
    Vector<WIDTH> of[KEPT];
    __device__ __forceinline__ void load_from(const float *weight, uint32_t d_model) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const uint32_t i = threadIdx.x + k * kThreads;
            of[k] = i < d_model / WIDTH ? load<WIDTH>(weight + i * WIDTH) : Vector<WIDTH>{};
        }
    }
};

// The residual's row plus its partials, in the order of the partials. All loads of a vector are under way before the first is
// waited for: for one token a norm is nothing but latency.
template <int WIDTH>
__device__ __forceinline__ Vector<WIDTH> updated(const float *residual, const float *partials, uint32_t n_partials,
                                                 size_t partial_pitch, uint32_t i) {
    Vector<WIDTH> sum = load<WIDTH>(residual + i * WIDTH), parts[kTogether];
#pragma unroll
    for (uint32_t p = 0; p < kTogether; p++)
        if (p < n_partials) parts[p] = load<WIDTH>(partials + p * partial_pitch + i * WIDTH);
#pragma unroll
    for (uint32_t p = 0; p < kTogether; p++)
        if (p < n_partials)
            for (int j = 0; j < WIDTH; j++) sum.v[j] += parts[p].v[j];
#pragma unroll 1  // rarely any
    for (uint32_t p = kTogether; p < n_partials; p++) {
        const Vector<WIDTH> part = load<WIDTH>(partials + p * partial_pitch + i * WIDTH);
        for (int j = 0; j < WIDTH; j++) sum.v[j] += part.v[j];
    }
    return sum;
}

// Adds a vector's squares to `sum.x`, and the squares of its products with the weight to `sum.y`.
template <int WIDTH>
__device__ __forceinline__ void account(float2 &sum, const Vector<WIDTH> &value, const Vector<WIDTH> &weight) {
    for (int j = 0; j < WIDTH; j++) {
        const float weighted = value.v[j] * weight.v[j];
        sum.x += value.v[j] * value.v[j];
        sum.y += weighted * weighted;
    }
}

__device__ __forceinline__ float inverse_of(float2 sum, uint32_t d_model, float eps) {
    return 1.0f / sqrtf(sum.x / (float)d_model + eps);
}

// The power of two that keeps |silu(gate) up| times it below 2^14, where |silu(gate) up| <= |gate| |up| <= bound |y|^2
// (Cauchy-Schwarz): 2^14 and not 2^15, because the bound is of exact arithmetic.
__device__ __forceinline__ int ffn_exponent(float ffn_bound, float2 sum, float inverse) {
    const float bound = ffn_bound * (inverse * inverse * sum.y);
    int exponent = 0;
    if (bound > 0 && bound < INFINITY) frexpf(bound, &exponent);  // bound <= 2^exponent
    // The limits keep the power and its inverse normal numbers.
    return max(-100, min(100, 14 - exponent));
}

}  // namespace norm
}  // namespace orcd
