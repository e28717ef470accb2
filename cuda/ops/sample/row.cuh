// What sampling knows of a row, and its arithmetic: logits, their weights, and sums of weights in whole units.
//
// Shapes:   a row is cut into slices of kSlice tokens; n_slices = ceil(n_vocab / kSlice), at most one for each of a row's
//           kRowThreads threads.
// Weights:  exp((x - maximum) / T) in F32: the most likely token has exactly 1, and the order of weights is that of
//           their bits. Every rounding is spelled out, so that no compiler can change one.
// Units:    a weight is a whole number of 2^-kUnit, rounded down. 2^20 of them fit 64 bits, so that sums are exact and the
//           same in any order.
#pragma once

#include "launch.h"
#include "worker_cuda.h"

#include <cfloat>

namespace orcd {
namespace {

constexpr uint32_t kSlice = 2048;
constexpr uint32_t kSliceThreads = 256;
constexpr uint32_t kPerThread = kSlice / kSliceThreads;
constexpr uint32_t kSliceWords = kSlice / 32;
constexpr uint32_t kRowThreads = 1024;
constexpr uint32_t kTop = ORCD_SAMPLE_MAX_LOGPROBS;
constexpr uint32_t kNoId = 0xFFFFFFFFu;
constexpr uint32_t kAll = 0xFFFFFFFFu;
// Sums of weights count in units of 2^-43: 2^20 weights of 1 are 2^63.
constexpr int kUnit = 43;

static_assert(ORCD_SAMPLE_MAX_VOCAB / kSlice <= kRowThreads, "a thread for each slice");
static_assert(sizeof(orcd_sample_params) == 64 && sizeof(orcd_sample_change) == 8, "as Rust writes them");
static_assert(sizeof(orcd_sample_choice) == 180, "as Rust reads it");

// What is known of a slice of a row.
struct Slice {
    float maximum;      // as adjusted; -inf if no token is possible
    uint32_t id;        // of the maximum, the lowest of equals
    uint64_t sum;       // of weights against `maximum`, in units
    float raw_maximum;  // the model's own
    uint32_t unused;
    uint64_t raw_sum;   // of exp(logit - raw_maximum), in units
};

struct Best {
    float value;
    uint32_t id;
};

// Of listed tokens; see adjust.cuh. [kSliceWords] each for a slice, and one slice after the other for a row.
struct Marks {
    uint32_t *bits, *first;
};

struct Scratch {
    Slice *slices; // [n_rows, n_slices]
    Best *tops;    // [n_rows, n_slices, kTop]
    Marks marks;   // [n_rows, n_slices, kSliceWords]

    // Those from a slice on, counted over all rows.
    __device__ Marks marks_at(uint64_t slice) const {
        return Marks{marks.bits + slice * kSliceWords, marks.first + slice * kSliceWords};
    }
};

struct Job {
    orcd_sample_args a;
    Scratch scratch;
    uint32_t n_slices;
    bool aligned;
};

// NaN and -inf are impossible tokens; the two zeros are one.
__device__ float sound(float x) { return x == x ? x + 0.0f : -INFINITY; }

__device__ bool is_finite(float x) { return fabsf(x) <= FLT_MAX; }

// Logits of the tokens from `id` on; `id` is a multiple of 4.
__device__ float4 load4(const float *row, uint32_t id, uint32_t n_vocab, bool aligned) {
    float4 v;
    if (aligned && id + 4 <= n_vocab) {
        v = *reinterpret_cast<const float4 *>(row + id);
    } else {
        v.x = id + 0 < n_vocab ? row[id + 0] : -INFINITY;
        v.y = id + 1 < n_vocab ? row[id + 1] : -INFINITY;
        v.z = id + 2 < n_vocab ? row[id + 2] : -INFINITY;
        v.w = id + 3 < n_vocab ? row[id + 3] : -INFINITY;
    }
    return make_float4(sound(v.x), sound(v.y), sound(v.z), sound(v.w));
}

// exp(x) for x <= 0, to 2 units in the last place; 0 below -87 and for NaN. exp(0) is exactly 1. Cody and Waite's
// reduction and the polynomial of Cephes' expf, with every rounding spelled out.
__device__ float exp_of_negative(float x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    if (!(x > -87.0f)) return 0.0f;
    const float shifted = __fmaf_rn(x, 1.44269504f, kRound);
    const float n = __fsub_rn(shifted, kRound);
    float r = __fmaf_rn(n, -0.693359375f, x);
    r = __fmaf_rn(n, 2.12194440e-4f, r);
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3982e-3f);
    p = __fmaf_rn(p, r, 8.333452e-3f);
    p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666665e-1f);
    p = __fmaf_rn(p, r, 0.5f);
    const float mantissa = __fadd_rn(__fmaf_rn(__fmul_rn(p, r), r, r), 1.0f);
    const float two_to_n = __uint_as_float((__float_as_uint(shifted) - __float_as_uint(kRound) + 127u) << 23);
    return __fmul_rn(mantissa, two_to_n);
}

// A token's probability times a constant: the most likely has 1. The order of weights is that of their bits.
__device__ uint32_t weight_bits(float x, float maximum, float temperature) {
    return __float_as_uint(exp_of_negative(__fdiv_rn(__fsub_rn(x, maximum), temperature)));
}

// Whole units of `significands` * 2^(exponent - 150).
__device__ uint64_t to_units(uint64_t significands, uint32_t exponent) {
    const int shift = (int)exponent - (150 - kUnit);
    if (shift >= 0) return significands << shift;
    return shift > -64 ? significands >> -shift : 0;
}

__device__ uint64_t significand(uint32_t bits) { return (bits & 0x7FFFFFu) | 0x800000u; }

// A weight in units. 0 of 0.
__device__ uint64_t mass_of(uint32_t bits) { return to_units(significand(bits), bits >> 23); }

// A sum of units against one maximum, as one against another. Never more than `sum`.
__device__ double scale_to(float from, float to, float temperature) {
    return exp(((double)from - (double)to) / (double)temperature);
}

// Where element `i` of a thread lies in its slice: the tokens of a thread ascend with i.
__device__ uint32_t offset_of(uint32_t i) { return (i / 4 * kSliceThreads + threadIdx.x) * 4 + i % 4; }

}  // namespace
}  // namespace orcd
