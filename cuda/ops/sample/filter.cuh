// Top-k, top-p and min-p: the edge of what they leave of a row.
//
// Each keeps the beginning of one order (most likely first, ties by id), so that together they are one Cut in it and
// nothing is ever sorted.
// Cost:     the first digit of the edge is counted over the whole row, less what cheap bounds exclude. What is at or above
//           that digit is copied to shared memory if it is at most kListed tokens; if it is more, each of the remaining
//           passes (3 for top-k, 3 for top-p, 2 for the draw) reads the row again.
#pragma once

#include "block.cuh"

namespace orcd {
namespace {

// The tokens of a row that a filter may still keep.
struct Source {
    const float *logits;
    Adjustment adjustment;
    uint32_t n_vocab;
    bool aligned;
    float maximum, temperature;
    float least;       // logits below it are not looked at
    uint32_t min_bits; // nor are weights below this; at least 1
    bool listed;       // they stand in shared memory
};

// Calls visit(bits of the weight, id) for each, in no particular order.
template <class Visit> __device__ void for_each_token(const Shared &s, const Source &from, Visit visit) {
    if (from.listed) {
        for (uint32_t i = threadIdx.x; i < s.n_listed; i += kRowThreads) visit(s.bits[i], s.ids[i]);
        return;
    }
    constexpr uint32_t kLoads = 4; // in flight at the same time
    for (uint32_t first = threadIdx.x * 4; first < from.n_vocab; first += kLoads * kRowThreads * 4) {
        float4 v[kLoads];
#pragma unroll
        for (uint32_t i = 0; i < kLoads; i++)
            v[i] = load4(from.logits, first + i * kRowThreads * 4, from.n_vocab, from.aligned);
#pragma unroll
        for (uint32_t i = 0; i < kLoads; i++) {
            const uint32_t id = first + i * kRowThreads * 4;
            const float4 w = adjust4(from.adjustment, v[i], id, from.n_vocab);
            const float x[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                if (!(x[j] >= from.least) || x[j] == -INFINITY) continue;
                const uint32_t bits = weight_bits(x[j], from.maximum, from.temperature);
                if (bits >= from.min_bits) visit(bits, id + j);
            }
        }
    }
}

// Counts tokens by the digit of their weight at `shift`, among those whose higher digits are `known`; sums what the
// digits leave of their significands.
__device__ void count_weights(Shared &s, const Source &from, uint32_t known, uint32_t shift) {
    clear(s);
    for_each_token(s, from, [&](uint32_t bits, uint32_t) {
        if ((uint64_t)(bits ^ known) >> (shift + kDigitBits) == 0)
            add(s, bits >> shift & (kDigits - 1), bits & ((1u << shift) - 1));
    });
    __syncthreads();
}

// Weights of one digit at `shift` have their exponent and the front of their significands in common.
__device__ uint64_t mass_of_digit(const Shared &s, uint32_t digit, uint32_t known, uint32_t shift) {
    const uint32_t bits = known | digit << shift;
    return to_units(s.counts[digit] * significand(bits) + sum_of(s, digit), bits >> 23);
}

// The digit, from the greatest down, in which the goal is reached.
__device__ Found find_weight(Shared &s, uint32_t known, uint32_t shift, bool by_mass, uint64_t goal) {
    const uint32_t digit = kDigits - 1 - threadIdx.x;
    return find(s, digit, s.counts[digit], mass_of_digit(s, digit, known, shift), by_mass, goal);
}

// The beginning of the order that a filter keeps: weights above `bits`, and the first `n_equal` of those equal to it.
struct Cut {
    uint32_t bits;
    uint32_t n_equal;
    uint64_t mass; // of what is kept
};

__device__ Cut keep(Shared &s, const Source &from, bool by_mass, uint64_t goal) {
    uint32_t known = 0, n_equal_in_all = 0;
    uint64_t mass = 0;
    for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
        count_weights(s, from, known, shift);
        const Found found = find_weight(s, known, shift, by_mass, goal);
        mass += found.mass_before;
        // More than there is, or rounding keeps a mass out of reach: everything with the digits found so far.
        if (!found.reached) return Cut{known, kAll, mass};
        goal -= found.before;
        known |= found.digit << shift;
        n_equal_in_all = found.count;
    }
    // All tokens with these bits are equal: the goal ends among them.
    const uint64_t each = mass_of(known);
    uint64_t n_equal = goal;
    if (by_mass) n_equal = each == 0 ? 1 : (goal - 1) / each + 1;
    if (n_equal >= n_equal_in_all) return Cut{known, kAll, mass + n_equal_in_all * each};
    return Cut{known, (uint32_t)n_equal, mass + n_equal * each};
}

// A logit that no token of at least this weight lies below.
__device__ float least_logit(const Source &from, double weight) {
    const double exponent = weight > 1.6e-38 ? log(weight) : -87.1;
    return __double2float_rd((double)from.maximum + (double)from.temperature * (exponent * 1.0001 - 0.01));
}

// The `k`-th greatest of the slices' maxima: at least `k` tokens are as great. -inf if there are fewer slices.
__device__ float kth_slice_maximum(Shared &s, float maximum, uint32_t n_slices, uint32_t k) {
    const uint32_t tid = threadIdx.x;
    if (k > n_slices) return -INFINITY;
    float *maxima = reinterpret_cast<float *>(s.bits);
    if (tid < n_slices) maxima[tid] = maximum;
    __syncthreads();
    uint32_t rank = 0;
    for (uint32_t i = 0; i < n_slices && tid < n_slices; i++)
        rank += maxima[i] > maximum || (maxima[i] == maximum && i < tid) ? 1 : 0;
    if (tid < n_slices && rank == k - 1) s.maximum = maximum;
    __syncthreads();
    const float kth = s.maximum;
    __syncthreads();
    return kth;
}

// Narrows `from` down to the tokens that may be kept, puts them into shared memory if they fit there, and applies the
// filters to them. `total`: all weights of the row. `maximum`: of this thread's slice.
__device__ Cut filter(Shared &s, Source &from, const orcd_sample_params &p, uint64_t total, float maximum,
                      uint32_t n_slices) {
    const bool top_k = p.top_k > 0 && p.top_k < from.n_vocab, top_p = p.top_p < 1.0f, min_p = p.min_p > 0.0f;
    // Cheap lower bounds first. Tokens below (1 - top_p) total / n add up to less than what top-p drops, so it keeps none
    // of them; but its share is of what top-k leaves, so not when there is a top-k.
    if (top_k) {
        const float kth = kth_slice_maximum(s, maximum, n_slices, p.top_k);
        from.least = fmaxf(least_logit(from, 0.0), __double2float_rd((double)kth - 0.01 * (double)p.temperature));
    } else {
        double weight = p.min_p;
        if (top_p) {
            const double dropped = (1.0 - (double)p.top_p) * ((double)total / (double)(1ull << kUnit));
            weight = fmax(weight, dropped / (double)from.n_vocab * 0.999);
        }
        from.least = least_logit(from, weight);
    }
    const uint32_t min_p_bits = min_p ? __float_as_uint(p.min_p) : 1;
    const uint64_t top_p_share = max((uint64_t)1, (uint64_t)__double2ull_ru((double)p.top_p * (double)total));

    // The first digit of the edge, from the whole row; then only what has at least that.
    const uint32_t shift = 2 * kDigitBits;
    count_weights(s, from, 0, shift);
    uint32_t first_digit = min_p_bits >> shift;
    if (top_k || top_p) {
        const Found found = find_weight(s, 0, shift, !top_k, top_k ? p.top_k : top_p_share);
        first_digit = found.reached ? found.digit : 0;
    }
    uint64_t n_left;
    block_scan(threadIdx.x >= first_digit ? s.counts[threadIdx.x] : 0, s.sums, n_left);
    from.min_bits = max(1u, first_digit << shift);
    from.least = fmaxf(from.least, least_logit(from, (double)__uint_as_float(from.min_bits)));
    if (n_left <= kListed) {
        if (threadIdx.x == 0) s.n_listed = 0;
        __syncthreads();
        for_each_token(s, from, [&](uint32_t bits, uint32_t id) {
            const uint32_t at = atomicAdd(&s.n_listed, 1u);
            s.bits[at] = bits;
            s.ids[at] = id;
        });
        __syncthreads();
        from.listed = true;
    }

    Cut cut{1, kAll, total};
    if (top_k) cut = keep(s, from, false, p.top_k);
    if (top_p) {
        const uint64_t share = max((uint64_t)1, (uint64_t)__double2ull_ru((double)p.top_p * (double)cut.mass));
        const Cut narrower = keep(s, from, true, share);
        if (narrower.bits > cut.bits || (narrower.bits == cut.bits && narrower.n_equal < cut.n_equal)) cut = narrower;
    }
    if (min_p && cut.bits < min_p_bits) cut = Cut{min_p_bits, kAll, cut.mass};
    return cut;
}

}  // namespace
}  // namespace orcd
