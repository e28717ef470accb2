// The draw: a random number, and the token to which it falls.
//
// The tokens that are left are walked in order of id until the sum of their weights passes the random number's share of it
// all: first to the slice or the high digit of the id, then to the token.
// Source:   Philox4x32-10: Salmon et al., SC11.
#pragma once

#include "filter.cuh"

namespace orcd {
namespace {

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
        const float x = id < from.n_vocab ? adjust(from.adjustment, sound(from.logits[id]), id) : -INFINITY;
        mass[i] = mass_of(weight_bits(x, s.maximum, from.temperature));
    }
    const Found pair = find(s, tid, 0, mass[0] + mass[1], true, target + 1);
    if (tid == pair.digit) s.id = slice.digit * kSlice + 2 * tid + (target - pair.before < mass[0] ? 0 : 1);
    __syncthreads();
    return s.id;
}

}  // namespace
}  // namespace orcd
