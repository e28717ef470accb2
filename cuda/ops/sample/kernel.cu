// sample: a token from each row of logits: temperature, repetition penalty, top-k, top-p, min-p, draw; log-probabilities.
//
// Shapes:   logits [n_rows, row_pitch] f32; params, choices [n_rows].
// Aliasing: none. The logits are not changed: a penalized logit is made anew wherever it is read, because the
//           log-probabilities are those of the model's own softmax.
// Mapping:  slice_per_block: a block of 256 threads per row and slice of 2,048 tokens finds the slice's greatest logit,
//           the sum of its weights against that, and its most likely tokens if log-probabilities are wanted.
//           row_per_block: a block of 1,024 threads per row puts the slices together and draws. Greedy rows are done
//           after one reduction; a draw without filters reads one slice again; filters read the row again, twice if
//           they leave few tokens.
// Requires: n_vocab <= 2^20 (ids in two digits of 10 bits, slices one to a thread). Checked by the launcher.
// Cost:     reads 4 bytes a token once, from L2 if the output matrix has just written them; then it is latency.
// Numerics: weights exp((x - maximum) / T) in F32, as sampler.rs, their exponential the same polynomial. Sums of weights
//           are whole numbers of 2^-43: exact, so that no order of addition, no atomic and no number of rows can change
//           a bit of them. What is chosen differs from the CPU's choice only where the random number, or the edge of a
//           filter, lies within rounding of a boundary.
// Source:   Philox4x32-10: Salmon et al., SC11. The filters: engine/src/sampler.rs.
#include "dependency.cuh"
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
// Radix selection: digits of 10 bits, of weights (the bits of 1.0 shifted by 20 are 1016) and of ids.
constexpr uint32_t kDigitBits = 10;
constexpr uint32_t kDigits = 1u << kDigitBits;
// Tokens that are kept in shared memory while the filters narrow them down.
constexpr uint32_t kListed = 4096;

static_assert(kDigits == kRowThreads, "a thread for each digit");
static_assert(ORCD_SAMPLE_MAX_VOCAB == 1u << 2 * kDigitBits, "ids of two digits");
static_assert(ORCD_SAMPLE_MAX_VOCAB / kSlice <= kRowThreads, "a thread for each slice");
static_assert(sizeof(orcd_sample_params) == 48 && sizeof(orcd_sample_choice) == 180, "as Rust reads them");

// What is known of a slice of a row.
struct Slice {
    float maximum;      // after the penalty; -inf if no token is possible
    uint32_t id;        // of the maximum, the lowest of equals
    uint64_t sum;       // of weights against `maximum`, in units
    float raw_maximum;  // before the penalty
    uint32_t unused;
    uint64_t raw_sum;   // of exp(logit - raw_maximum), in units
};

struct Best {
    float value;
    uint32_t id;
};

struct Scratch {
    Slice *slices;       // [n_rows, n_slices]
    Best *tops;          // [n_rows, n_slices, kTop]
    uint32_t *penalized; // [n_rows, n_slices, kSliceWords]: a bit for each token of the history
};

struct Job {
    orcd_sample_args a;
    Scratch scratch;
    uint32_t n_slices;
    bool aligned;
};

__device__ bool is_better(Best a, Best b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }

__device__ Best warp_best(Best best) {
    for (int offset = 16; offset > 0; offset /= 2) {
        const Best other{__shfl_xor_sync(~0u, best.value, offset), __shfl_xor_sync(~0u, best.id, offset)};
        if (is_better(other, best)) best = other;
    }
    return best;
}

// The best of a block's, to every thread. Calls that follow one another use different buffers.
template <uint32_t N_WARPS> __device__ Best block_best(Best best, Best *buffer) {
    const uint32_t lane = threadIdx.x % 32;
    best = warp_best(best);
    if (lane == 0) buffer[threadIdx.x / 32] = best;
    __syncthreads();
    return warp_best(lane < N_WARPS ? buffer[lane] : Best{-INFINITY, kNoId});
}

// NaN and -inf are impossible tokens; the two zeros are one.
__device__ float sound(float x) { return x == x ? x + 0.0f : -INFINITY; }

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

// Against a penalty near 0, which is allowed, the quotient is beyond F32; it is then certain enough.
__device__ float penalize(float x, float penalty) {
    return x > 0.0f ? fminf(__fdiv_rn(x, penalty), FLT_MAX) : __fmul_rn(x, penalty) + 0.0f;
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

// The uniform number in [0, 1) that belongs to a position under a seed; 53 random bits of Philox4x32-10.
__device__ double uniform(uint64_t seed, uint64_t position) {
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)(((uint64_t)c0 << 32 | c1) >> 11) * (1.0 / 9007199254740992.0);
}

__device__ bool is_penalized(const orcd_sample_params &p) { return p.repetition_penalty != 1.0f && p.history_len > 0; }

__device__ bool is_finite(float x) { return fabsf(x) <= FLT_MAX; }

__device__ uint64_t block_sum(uint64_t v, uint64_t *buffer) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = v;
    __syncthreads();
    uint64_t sum = 0;
    for (uint32_t warp = 0; warp < kSliceThreads / 32; warp++) sum += buffer[warp];
    return sum;
}

// The sum of a slice's weights, to every thread. `x`: kPerThread logits of each thread.
__device__ uint64_t slice_sum(const float *x, float maximum, float temperature, uint64_t *buffer) {
    uint64_t sum = 0;
    if (is_finite(maximum)) {
#pragma unroll
        for (uint32_t i = 0; i < kPerThread; i++) sum += mass_of(weight_bits(x[i], maximum, temperature));
    }
    return block_sum(sum, buffer);
}

__global__ void __launch_bounds__(kSliceThreads) slice_per_block(const Job job) {
    __shared__ uint32_t penalized[kSliceWords];
    __shared__ Best bests[2][32];
    __shared__ uint64_t sums[32];
    let_successor_start();
    wait_for_predecessor();
    const orcd_sample_args &a = job.a;
    const uint32_t slice = blockIdx.x, row = blockIdx.y, tid = threadIdx.x;
    const orcd_sample_params p = a.params[row];
    if (p.temperature < 0.0f) return;

    const uint32_t start = slice * kSlice;
    const uint64_t at = (uint64_t)row * job.n_slices + slice;
    const float *logits = a.logits + (uint64_t)row * a.row_pitch;
    // Element i of a thread: the tokens of a thread ascend with i.
    auto offset_of = [&](uint32_t i) { return (i / 4 * kSliceThreads + tid) * 4 + i % 4; };

    float raw[kPerThread], x[kPerThread];
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; i += 4) {
        const float4 v = load4(logits, start + offset_of(i), a.n_vocab, job.aligned);
        raw[i] = v.x, raw[i + 1] = v.y, raw[i + 2] = v.z, raw[i + 3] = v.w;
    }
    if (is_penalized(p)) {
        if (tid < kSliceWords) penalized[tid] = 0;
        __syncthreads();
        for (uint32_t i = tid; i < p.history_len; i += kSliceThreads) {
            const uint32_t offset = a.history[p.history_start + i] - start;
            if (offset < kSlice) atomicOr(&penalized[offset / 32], 1u << offset % 32);
        }
        __syncthreads();
        if (tid < kSliceWords) job.scratch.penalized[at * kSliceWords + tid] = penalized[tid];
    }
    Best best{-INFINITY, kNoId}, raw_best{-INFINITY, kNoId};
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; i++) {
        const uint32_t offset = offset_of(i);
        x[i] = raw[i];
        if (is_penalized(p) && (penalized[offset / 32] >> offset % 32 & 1)) x[i] = penalize(raw[i], p.repetition_penalty);
        if (x[i] > best.value) best = Best{x[i], start + offset};
        if (raw[i] > raw_best.value) raw_best = Best{raw[i], start + offset};
    }
    Slice result{};
    best = block_best<kSliceThreads / 32>(best, bests[0]);
    result.maximum = best.value;
    result.id = best.id;
    if (p.temperature > 0.0f) result.sum = slice_sum(x, best.value, p.temperature, sums);
    if (p.n_logprobs != ORCD_SAMPLE_NO_LOGPROBS) {
        raw_best = block_best<kSliceThreads / 32>(raw_best, bests[1]);
        result.raw_maximum = raw_best.value;
        result.raw_sum = slice_sum(raw, raw_best.value, 1.0f, sums);
        const uint32_t n = min(p.n_logprobs, kTop);
        for (uint32_t rank = 0; rank < n; rank++) {
            Best top{-INFINITY, kNoId};
#pragma unroll
            for (uint32_t i = 0; i < kPerThread; i++)
                if (raw[i] > top.value) top = Best{raw[i], start + offset_of(i)};
            top = block_best<kSliceThreads / 32>(top, bests[rank % 2]);
            if (tid == 0) job.scratch.tops[at * kTop + rank] = top;
#pragma unroll
            for (uint32_t i = 0; i < kPerThread; i++)
                if (start + offset_of(i) == top.id) raw[i] = -INFINITY;
        }
    }
    if (tid == 0) job.scratch.slices[at] = result;
}

// What a scan found: the first digit at which the running sum reaches the goal.
struct Found {
    bool reached;
    uint32_t digit;
    uint32_t count;  // tokens of that digit
    uint64_t before; // of what the goal is of, in the digits before it
    uint64_t mass_before;
};

struct Shared {
    // Of each digit: tokens, and a 64-bit sum in two halves, because shared memory has no 64-bit addition.
    uint32_t counts[kDigits], low[kDigits], high[kDigits];
    uint32_t bits[kListed], ids[kListed];
    uint32_t n_listed;
    uint64_t sums[32];
    Best bests[2][32];
    Found found;
    float maximum;
    double scale;
    uint64_t sum;
    uint32_t id;
};

// Sums over threads 0 ..= its own to each thread, and over all of them.
__device__ uint64_t block_scan(uint64_t v, uint64_t *buffer, uint64_t &total) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int offset = 1; offset < 32; offset *= 2) {
        const uint64_t before = __shfl_up_sync(~0u, v, offset);
        if (lane >= (uint32_t)offset) v += before;
    }
    if (lane == 31) buffer[warp] = v;
    __syncthreads();
    uint64_t of_warps = buffer[lane];
    __syncthreads();
    for (int offset = 1; offset < 32; offset *= 2) {
        const uint64_t before = __shfl_up_sync(~0u, of_warps, offset);
        if (lane >= (uint32_t)offset) of_warps += before;
    }
    total = __shfl_sync(~0u, of_warps, 31);
    const uint64_t warps_before = __shfl_sync(~0u, of_warps, warp == 0 ? 0 : warp - 1);
    return v + (warp == 0 ? 0 : warps_before);
}

// Each thread brings a digit; they are walked in the order of the threads. `goal` is at least 1.
__device__ Found find(Shared &s, uint32_t digit, uint64_t count, uint64_t mass, bool by_mass, uint64_t goal) {
    if (threadIdx.x == 0) s.found = Found{};
    uint64_t n_counts, n_masses;
    const uint64_t counts = block_scan(count, s.sums, n_counts);
    const uint64_t masses = block_scan(mass, s.sums, n_masses);
    const uint64_t reached = by_mass ? masses : counts, before = reached - (by_mass ? mass : count);
    if (reached >= goal && before < goal) s.found = Found{true, digit, (uint32_t)count, before, masses - mass};
    __syncthreads();
    Found found = s.found;
    __syncthreads();
    if (!found.reached) found.mass_before = n_masses;
    return found;
}

// The tokens of a row that a filter may still keep.
struct Source {
    const float *logits;
    const uint32_t *penalized; // null: no penalty
    uint32_t n_vocab;
    bool aligned;
    float penalty, maximum, temperature;
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
            uint32_t word = 0;
            if (from.penalized && id < from.n_vocab) word = from.penalized[id / 32] >> id % 32;
            const float of_tokens[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                const float x = word >> j & 1 ? penalize(of_tokens[j], from.penalty) : of_tokens[j];
                if (!(x >= from.least) || x == -INFINITY) continue;
                const uint32_t bits = weight_bits(x, from.maximum, from.temperature);
                if (bits >= from.min_bits) visit(bits, id + j);
            }
        }
    }
}

__device__ void clear(Shared &s) {
    s.counts[threadIdx.x] = s.low[threadIdx.x] = s.high[threadIdx.x] = 0;
    __syncthreads();
}

__device__ void add(Shared &s, uint32_t digit, uint64_t v) {
    atomicAdd(&s.counts[digit], 1u);
    const uint32_t low = (uint32_t)v;
    uint32_t high = (uint32_t)(v >> 32);
    const uint32_t before = atomicAdd(&s.low[digit], low);
    high += before + low < before ? 1 : 0;
    if (high != 0) atomicAdd(&s.high[digit], high);
}

__device__ uint64_t sum_of(const Shared &s, uint32_t digit) { return (uint64_t)s.high[digit] << 32 | s.low[digit]; }

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

// The least id at which what `take(bits, id)` (0: nothing) gives, summed up in order of id, reaches a goal; the goal is a
// function of the sum of all.
template <class Take, class Goal>
__device__ uint32_t find_id(Shared &s, const Source &from, Take take, Goal goal_of) {
    clear(s);
    for_each_token(s, from, [&](uint32_t bits, uint32_t id) {
        const uint64_t v = take(bits, id);
        if (v != 0) add(s, id >> kDigitBits, v);
    });
    __syncthreads();
    uint64_t total;
    block_scan(sum_of(s, threadIdx.x), s.sums, total);
    uint64_t goal = goal_of(total);
    Found found = find(s, threadIdx.x, 0, sum_of(s, threadIdx.x), true, goal);
    const uint32_t high = found.digit;
    goal -= found.before;
    clear(s);
    for_each_token(s, from, [&](uint32_t bits, uint32_t id) {
        if (id >> kDigitBits != high) return;
        const uint64_t v = take(bits, id);
        if (v != 0) add(s, id & (kDigits - 1), v);
    });
    __syncthreads();
    found = find(s, threadIdx.x, 0, sum_of(s, threadIdx.x), true, goal);
    return high << kDigitBits | found.digit;
}

// What the running sum must reach to pass `u * total`.
__device__ uint64_t passing(double u, uint64_t total) { return min((uint64_t)((double)total * u), total - 1) + 1; }

__device__ uint32_t draw_from_kept(Shared &s, const Source &from, Cut cut, double u) {
    uint32_t last_equal = kNoId;
    if (cut.n_equal != kAll) {
        last_equal = find_id(
            s, from, [&](uint32_t bits, uint32_t) { return (uint64_t)(bits == cut.bits ? 1 : 0); },
            [&](uint64_t) { return (uint64_t)cut.n_equal; });
    }
    return find_id(
        s, from,
        [&](uint32_t bits, uint32_t id) {
            const bool kept = bits > cut.bits || (bits == cut.bits && id <= last_equal);
            return kept ? mass_of(bits) : (uint64_t)0;
        },
        [&](uint64_t total) { return passing(u, total); });
}

// `share`: of this thread's slice in the sum of all weights. `mine`: that slice.
__device__ uint32_t draw_from_all(Shared &s, const Source &from, const Slice &mine, uint64_t share, uint64_t total,
                                  double u) {
    const uint32_t tid = threadIdx.x;
    const uint64_t goal = passing(u, total);
    const Found slice = find(s, tid, 0, share, true, goal);
    if (tid == slice.digit) {
        s.maximum = mine.maximum;
        s.sum = mine.sum;
        s.scale = scale_to(mine.maximum, from.maximum, from.temperature);
    }
    __syncthreads();
    // Two tokens a thread; their weights are the ones that were summed up, against the slice's own maximum.
    const uint64_t target = min((uint64_t)((double)(goal - 1 - slice.before) / s.scale), s.sum - 1);
    uint64_t mass[2];
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t id = slice.digit * kSlice + 2 * tid + i;
        float x = id < from.n_vocab ? sound(from.logits[id]) : -INFINITY;
        if (from.penalized && (from.penalized[id / 32] >> id % 32 & 1)) x = penalize(x, from.penalty);
        mass[i] = mass_of(weight_bits(x, s.maximum, from.temperature));
    }
    const Found pair = find(s, tid, 0, mass[0] + mass[1], true, target + 1);
    if (tid == pair.digit) s.id = slice.digit * kSlice + 2 * tid + (target - pair.before < mass[0] ? 0 : 1);
    __syncthreads();
    return s.id;
}

// Merges the slices' most likely tokens and writes their log-probabilities.
__device__ void write_top(Shared &s, const Best *tops, uint32_t n_slices, uint32_t n, double normalizer,
                          orcd_sample_choice &choice) {
    const uint32_t tid = threadIdx.x;
    const Best none{-INFINITY, kNoId};
    const Best *mine = tops + (size_t)tid * kTop;
    uint32_t next = 1, n_top = 0;
    Best head = tid < n_slices && n > 0 ? mine[0] : none;
    // Of the thread's list, what follows the head: read before it is needed.
    Best second = tid < n_slices && n > 1 ? mine[1] : none;
    for (; n_top < n; n_top++) {
        const Best best = block_best<kRowThreads / 32>(head, s.bests[n_top % 2]);
        if (best.id == kNoId) break;
        if (tid == 0) {
            choice.top_ids[n_top] = best.id;
            choice.top_logprobs[n_top] = (float)((double)best.value - normalizer);
        }
        if (head.id == best.id) {
            head = second;
            next++;
            second = next < n ? mine[next] : none;
        }
    }
    if (tid == 0) choice.n_top = n_top;
}

__global__ void __launch_bounds__(kRowThreads) row_per_block(const Job job) {
    __shared__ Shared s;
    let_successor_start();
    wait_for_predecessor();
    const orcd_sample_args &a = job.a;
    const uint32_t row = blockIdx.x, tid = threadIdx.x;
    const orcd_sample_params p = a.params[row];
    if (p.temperature < 0.0f) return;

    orcd_sample_choice &choice = a.choices[row];
    const bool logprobs = p.n_logprobs != ORCD_SAMPLE_NO_LOGPROBS;
    Slice mine{};
    mine.maximum = mine.raw_maximum = -INFINITY;
    mine.id = kNoId;
    if (tid < job.n_slices) mine = job.scratch.slices[(uint64_t)row * job.n_slices + tid];
    const Best best = block_best<kRowThreads / 32>(Best{mine.maximum, mine.id}, s.bests[0]);
    float raw_maximum = best.value;
    if (logprobs) raw_maximum = block_best<kRowThreads / 32>(Best{mine.raw_maximum, tid}, s.bests[1]).value;
    if (!is_finite(best.value) || !is_finite(raw_maximum)) {
        if (tid == 0) {
            choice.id = kNoId;
            choice.status = 1;
            choice.maximum = is_finite(best.value) ? raw_maximum : best.value;
            choice.logprob = 0.0f;
            choice.n_top = 0;
        }
        return;
    }

    Source from{};
    from.logits = a.logits + (uint64_t)row * a.row_pitch;
    if (is_penalized(p)) from.penalized = job.scratch.penalized + (uint64_t)row * job.n_slices * kSliceWords;
    from.n_vocab = a.n_vocab;
    from.aligned = job.aligned;
    from.penalty = p.repetition_penalty;
    from.maximum = best.value;
    from.temperature = p.temperature;
    from.min_bits = 1;

    uint32_t id = best.id;
    if (p.temperature > 0.0f) {
        const double u = uniform(p.seed, p.position);
        uint64_t share = 0, total;
        if (mine.sum > 0)
            share = __double2ull_rd((double)mine.sum * scale_to(mine.maximum, from.maximum, from.temperature));
        block_scan(share, s.sums, total);
        const bool filtered = (p.top_k > 0 && p.top_k < a.n_vocab) || p.top_p < 1.0f || p.min_p > 0.0f;
        if (filtered) {
            const Cut cut = filter(s, from, p, total, mine.maximum, job.n_slices);
            id = draw_from_kept(s, from, cut, u);
        } else {
            id = draw_from_all(s, from, mine, share, total, u);
        }
    }
    double normalizer = 0.0;
    if (logprobs) {
        uint64_t share = 0, total;
        if (mine.raw_sum > 0) share = __double2ull_rd((double)mine.raw_sum * scale_to(mine.raw_maximum, raw_maximum, 1.0f));
        __syncthreads();
        block_scan(share, s.sums, total);
        normalizer = (double)raw_maximum + log((double)total / (double)(1ull << kUnit));
        write_top(s, job.scratch.tops + (uint64_t)row * job.n_slices * kTop, job.n_slices, min(p.n_logprobs, kTop),
                  normalizer, choice);
    }
    if (tid == 0) {
        choice.id = id;
        choice.status = 0;
        choice.maximum = best.value;
        choice.logprob = logprobs ? (float)((double)sound(from.logits[id]) - normalizer) : 0.0f;
        if (!logprobs) choice.n_top = 0;
    }
}

}  // namespace
}  // namespace orcd

extern "C" size_t orcd_sample_scratch_bytes(uint32_t n_rows, uint32_t n_vocab) {
    using namespace orcd;
    if (n_vocab > ORCD_SAMPLE_MAX_VOCAB) return 0;
    return (size_t)n_rows * div_ceil(n_vocab, kSlice) *
           (sizeof(Slice) + kTop * sizeof(Best) + kSliceWords * sizeof(uint32_t));
}

extern "C" int32_t orcd_sample(const orcd_sample_args *a, orcd_stream stream) {
    using namespace orcd;
    ORCD_REQUIRE(a && a->n_vocab > 0 && a->n_vocab <= ORCD_SAMPLE_MAX_VOCAB && a->row_pitch >= a->n_vocab);
    ORCD_REQUIRE(a->n_rows <= 65535);
    if (a->n_rows == 0) return (int32_t)cudaSuccess;
    ORCD_REQUIRE(a->logits && a->params && a->choices && is_aligned(a->scratch, 16) && a->scratch);
    Job job{};
    job.a = *a;
    job.n_slices = div_ceil(a->n_vocab, kSlice);
    job.aligned = is_aligned(a->logits, 16) && a->row_pitch % 4 == 0;
    const size_t n = (size_t)a->n_rows * job.n_slices;
    job.scratch.slices = static_cast<Slice *>(a->scratch);
    job.scratch.tops = reinterpret_cast<Best *>(job.scratch.slices + n);
    job.scratch.penalized = reinterpret_cast<uint32_t *>(job.scratch.tops + n * kTop);
    const int32_t status = launch(slice_per_block, dim3(job.n_slices, a->n_rows), dim3(kSliceThreads), 0, stream, job);
    if (status != (int32_t)cudaSuccess) return status;
    return launch(row_per_block, dim3(a->n_rows), dim3(kRowThreads), 0, stream, job);
}
