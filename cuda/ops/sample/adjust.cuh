// What a row's settings make of its logits before anything is drawn: biases, mask, penalties, in sampler.rs' order.
//
// A changed logit is never stored: it is made anew wherever it is read, because log-probabilities are those of the model's
// own logits.
//
// Lists:    the tokens whose logits change by more than the mask are few. Their ids stand in args.changed, ascending; what
//           happens to the i-th, where it is more than the repetition penalty, in args.changes at the same i.
// Marks:    slice_per_block sets a bit for each listed token, and notes for each word of bits where its first token stands
//           in the list: the place of any other is that and the number of bits below its own. So a token that is not on the
//           list costs a bit, and one that is costs a few loads, however long the list.
// Mask:     a bit for each token, read as it was copied. A row without one, or without a list, has a null pointer there.
#pragma once

#include "row.cuh"

namespace orcd {
namespace {

// Of a row with a list. It lies in shared memory: registers are scarce, and few tokens need it.
struct List {
    const uint32_t *bits, *first;      // the marks
    const orcd_sample_change *changes; // null: the repetition penalty is all there is
    float repetition, presence, frequency;
};

struct Adjustment {
    const uint32_t *mask; // null: every token may be chosen
    const uint32_t *bits; // those of the list; null: there is none
    const List *list;
};

__device__ bool has_list(const orcd_sample_params &p) {
    return p.changed_len > 0 && (p.changes_start != ORCD_SAMPLE_NO_CHANGES || p.repetition_penalty != 1.0f);
}

// Marks the listed tokens of the slice from `start` on, in shared memory and for the second kernel in scratch.
__device__ void mark_listed(const uint32_t *ids, uint32_t n, uint32_t start, Marks shared, Marks scratch) {
    const uint32_t tid = threadIdx.x;
    if (tid < kSliceWords) shared.bits[tid] = shared.first[tid] = 0;
    __syncthreads();
    for (uint32_t i = tid; i < n; i += kSliceThreads) {
        const uint32_t id = ids[i], offset = id - start;
        if (offset >= kSlice) continue;
        atomicOr(&shared.bits[offset / 32], 1u << offset % 32);
        if (i == 0 || ids[i - 1] / 32 != id / 32) shared.first[offset / 32] = i;
    }
    __syncthreads();
    if (tid < kSliceWords) {
        scratch.bits[tid] = shared.bits[tid];
        scratch.first[tid] = shared.first[tid];
    }
}

// Of a whole row. The block has to synchronize before `list` is used.
__device__ Adjustment adjustment_of(const orcd_sample_args &a, const orcd_sample_params &p, Marks marks, List &list) {
    Adjustment of_row{};
    if (p.mask != ORCD_SAMPLE_NO_MASK) of_row.mask = a.masks + (uint64_t)p.mask * div_ceil(a.n_vocab, 32);
    if (!has_list(p)) return of_row;
    of_row.bits = marks.bits;
    of_row.list = &list;
    if (threadIdx.x == 0) {
        const bool more = p.changes_start != ORCD_SAMPLE_NO_CHANGES;
        list.bits = marks.bits;
        list.first = marks.first;
        list.changes = more ? a.changes + p.changes_start : nullptr;
        list.repetition = p.repetition_penalty;
        list.presence = p.presence_penalty;
        list.frequency = p.frequency_penalty;
    }
    return of_row;
}

// Against a penalty near 0, which is allowed, the quotient is beyond F32; it is then certain enough.
__device__ float penalize(float x, float penalty) {
    return x > 0.0f ? fminf(__fdiv_rn(x, penalty), FLT_MAX) : __fmul_rn(x, penalty) + 0.0f;
}

// What becomes of the logit of a listed token.
__device__ float change(const List &list, float x, uint32_t at) {
    if (!list.changes) return penalize(x, list.repetition);
    const uint32_t below = list.bits[at / 32] & ((1u << at % 32) - 1);
    const orcd_sample_change c = list.changes[list.first[at / 32] + __popc(below)];
    x = __fadd_rn(x, c.bias);
    if (c.count == 0) return x;
    if (list.repetition != 1.0f) x = penalize(x, list.repetition);
    return __fsub_rn(x, __fadd_rn(list.presence, __fmul_rn(list.frequency, (float)c.count)));
}

// Of the logits of four tokens from `at` on, those whose bit is set. A call, because it is rare and stands in many loops.
__device__ __noinline__ float4 change_some(const List &list, float4 x, uint32_t at, uint32_t listed) {
    if (listed & 1) x.x = change(list, x.x, at);
    if (listed & 2) x.y = change(list, x.y, at + 1);
    if (listed & 4) x.z = change(list, x.z, at + 2);
    if (listed & 8) x.w = change(list, x.w, at + 3);
    return x;
}

// The logits of four tokens from `at` on, a multiple of 4. `n`: tokens there are; beyond them nothing is read.
__device__ float4 adjust4(const Adjustment &a, float4 x, uint32_t at, uint32_t n) {
    if (a.bits && at < n) {
        const uint32_t listed = a.bits[at / 32] >> at % 32 & 0xF;
        if (listed != 0) x = change_some(*a.list, x, at, listed);
    }
    if (a.mask && at < n) {
        const uint32_t allowed = a.mask[at / 32] >> at % 32;
        if (!(allowed & 1)) x.x = -INFINITY;
        if (!(allowed & 2)) x.y = -INFINITY;
        if (!(allowed & 4)) x.z = -INFINITY;
        if (!(allowed & 8)) x.w = -INFINITY;
    }
    return x;
}

// One logit; `at` < n_vocab.
__device__ float adjust(const Adjustment &a, float x, uint32_t at) {
    if (a.mask && !(a.mask[at / 32] >> at % 32 & 1)) return -INFINITY;
    return a.bits && (a.bits[at / 32] >> at % 32 & 1) ? change(*a.list, x, at) : x;
}

}  // namespace
}  // namespace orcd
