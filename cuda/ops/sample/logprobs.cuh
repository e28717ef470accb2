// Log-probabilities: of the model's own softmax, before any setting, and the most likely tokens by them.
//
// The first kernel lists each slice's most likely tokens; the second merges the lists, a thread for each.
#pragma once

#include "block.cuh"

namespace orcd {
namespace {

// The `n` greatest of a slice's logits, greatest first, ties by id. Spoils `raw`, kPerThread logits of each thread.
__device__ void find_top(float *raw, uint32_t start, uint32_t n, Best (*bests)[32], Best *tops) {
    for (uint32_t rank = 0; rank < n; rank++) {
        Best top{-INFINITY, kNoId};
#pragma unroll
        for (uint32_t i = 0; i < kPerThread; i++)
            if (raw[i] > top.value) top = Best{raw[i], start + offset_of(i)};
        top = block_best<kSliceThreads / 32>(top, bests[rank % 2]);
        if (threadIdx.x == 0) tops[rank] = top;
#pragma unroll
        for (uint32_t i = 0; i < kPerThread; i++)
            if (start + offset_of(i) == top.id) raw[i] = -INFINITY;
    }
}

// What is subtracted from a logit to make it a log-probability. `mine`: this thread's slice.
__device__ double normalizer_of(const Slice &mine, float raw_maximum, uint64_t *buffer) {
    uint64_t share = 0, total;
    if (mine.raw_sum > 0) share = __double2ull_rd((double)mine.raw_sum * scale_to(mine.raw_maximum, raw_maximum, 1.0f));
    __syncthreads();
    block_scan(share, buffer, total);
    return (double)raw_maximum + log((double)total / (double)(1ull << kUnit));
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

}  // namespace
}  // namespace orcd
