// What the threads of a block find out together: the best token, sums, running sums, and where one reaches a goal.
//
// Every thread of the block calls each of these, and every thread gets the result. Sums are of whole numbers: exact in any
// order.
//
// Digits:   weights and ids have digits of kDigitBits bits, one for each thread of a row's block. Tokens are counted by a
//           digit, and the digits are walked until their sum reaches a goal: radix selection, which finds the edge of a
//           filter in three digits of weights and the token of a draw in two digits of ids.
#pragma once

#include "adjust.cuh"

namespace orcd {
namespace {

// Radix selection: digits of 10 bits, of weights (the bits of 1.0 shifted by 20 are 1016) and of ids.
constexpr uint32_t kDigitBits = 10;
constexpr uint32_t kDigits = 1u << kDigitBits;
// Tokens that are kept in shared memory while the filters narrow them down.
constexpr uint32_t kListed = 4096;

static_assert(kDigits == kRowThreads, "a thread for each digit");
static_assert(ORCD_SAMPLE_MAX_VOCAB == 1u << 2 * kDigitBits, "ids of two digits");

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

// Over a block of kSliceThreads threads.
__device__ uint64_t block_sum(uint64_t v, uint64_t *buffer) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = v;
    __syncthreads();
    uint64_t sum = 0;
    for (uint32_t warp = 0; warp < kSliceThreads / 32; warp++) sum += buffer[warp];
    return sum;
}

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
    List list;
    float maximum;
    double scale;
    uint64_t sum;
    uint32_t id;
};

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

}  // namespace
}  // namespace orcd
