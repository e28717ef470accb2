// slice_per_block, the first of two kernels: what can be known of a slice of a row before the row's maximum is.
//
// Mapping:  a block of kSliceThreads threads per slice and row; kPerThread logits in each thread's registers.
// Result:   scratch.slices: the greatest logit as adjusted and the sum of the weights against it; the same of the model's own
//           logits where log-probabilities are wanted, with the slice's most likely tokens in scratch.tops. Listed tokens
//           are marked in scratch.marks, for the second kernel.
#pragma once

#include "block.cuh"
#include "dependency.cuh"
#include "logprobs.cuh"

namespace orcd {
namespace {

// The sum of a slice's weights, to every thread. `x`: kPerThread logits of each thread.
__device__ uint64_t slice_sum(const float *x, float maximum, float temperature, uint64_t *buffer) {
    uint64_t sum = 0;
    if (is_finite(maximum)) {
#pragma unroll
        for (uint32_t i = 0; i < kPerThread; i++) sum += mass_of(weight_bits(x[i], maximum, temperature));
    }
    return block_sum(sum, buffer);
}

// Five blocks to a multiprocessor: what there is of latency is hidden by other blocks.
__global__ void __launch_bounds__(kSliceThreads, 5) slice_per_block(const Job job) {
    __shared__ uint32_t bits[kSliceWords], first[kSliceWords];
    __shared__ List list;
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

    float raw[kPerThread], x[kPerThread];
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; i += 4) {
        const float4 v = load4(logits, start + offset_of(i), a.n_vocab, job.aligned);
        raw[i] = v.x, raw[i + 1] = v.y, raw[i + 2] = v.z, raw[i + 3] = v.w;
    }
    // While they are on their way.
    Adjustment adjustment = adjustment_of(a, p, Marks{bits, first}, list);
    if (adjustment.mask) adjustment.mask += start / 32;
    if (adjustment.list)
        mark_listed(a.changed + p.changed_start, p.changed_len, start, Marks{bits, first}, job.scratch.marks_at(at));
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; i += 4) {
        const float4 v = make_float4(raw[i], raw[i + 1], raw[i + 2], raw[i + 3]);
        const float4 w = adjust4(adjustment, v, offset_of(i), a.n_vocab - start);
        x[i] = w.x, x[i + 1] = w.y, x[i + 2] = w.z, x[i + 3] = w.w;
    }
    Best best{-INFINITY, kNoId}, raw_best{-INFINITY, kNoId};
#pragma unroll
    for (uint32_t i = 0; i < kPerThread; i++) {
        const uint32_t id = start + offset_of(i);
        if (x[i] > best.value) best = Best{x[i], id};
        if (raw[i] > raw_best.value) raw_best = Best{raw[i], id};
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
        find_top(raw, start, min(p.n_logprobs, kTop), bests, job.scratch.tops + at * kTop);
    }
    if (tid == 0) job.scratch.slices[at] = result;
}

}  // namespace
}  // namespace orcd
