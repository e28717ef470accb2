// sample: a token from each row of logits: bias, mask, penalties, temperature, top-k, top-p, min-p, draw; log-probabilities.
//
// Shapes:   logits [n_rows, row_pitch] f32; params, choices [n_rows]; masks [.., ceil(n_vocab / 32)].
// Aliasing: none. The logits are not changed; adjust.cuh says why.
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
#include "draw.cuh"
#include "logprobs.cuh"
#include "slice.cuh"

namespace orcd {
namespace {

// A row without a finite greatest logit has no token.
__device__ void refuse(orcd_sample_choice &choice, float maximum, float raw_maximum) {
    choice.id = kNoId;
    choice.status = 1;
    choice.maximum = is_finite(maximum) ? raw_maximum : maximum;
    choice.logprob = 0.0f;
    choice.n_top = 0;
}

// All tokens of a row, of which nothing is excluded yet. The block has to synchronize before it is read.
__device__ Source all_of(Shared &s, const Job &job, uint32_t row, const orcd_sample_params &p, float maximum) {
    Source from{};
    from.logits = job.a.logits + (uint64_t)row * job.a.row_pitch;
    from.adjustment = adjustment_of(job.a, p, job.scratch.marks_at((uint64_t)row * job.n_slices), s.list);
    from.n_vocab = job.a.n_vocab;
    from.aligned = job.aligned;
    from.maximum = maximum;
    from.temperature = p.temperature;
    from.min_bits = 1;
    return from;
}

// `mine`: this thread's slice.
__device__ uint32_t draw(Shared &s, Source &from, const orcd_sample_params &p, const Slice &mine, uint32_t n_slices) {
    const double u = uniform(p.seed, p.position);
    uint64_t share = 0, total;
    if (mine.sum > 0)
        share = __double2ull_rd((double)mine.sum * scale_to(mine.maximum, from.maximum, from.temperature));
    block_scan(share, s.sums, total);
    const bool filtered = (p.top_k > 0 && p.top_k < from.n_vocab) || p.top_p < 1.0f || p.min_p > 0.0f;
    if (!filtered) return draw_from_all(s, from, mine, share, total, u);
    const Cut cut = filter(s, from, p, total, mine.maximum, n_slices);
    return draw_from_kept(s, from, cut, u);
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
        if (tid == 0) refuse(choice, best.value, raw_maximum);
        return;
    }

    Source from = all_of(s, job, row, p, best.value);
    const uint32_t id = p.temperature > 0.0f ? draw(s, from, p, mine, job.n_slices) : best.id;
    double normalizer = 0.0;
    if (logprobs) {
        normalizer = normalizer_of(mine, raw_maximum, s.sums);
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
           (sizeof(Slice) + kTop * sizeof(Best) + 2 * kSliceWords * sizeof(uint32_t));
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
    job.scratch.marks.bits = reinterpret_cast<uint32_t *>(job.scratch.tops + n * kTop);
    job.scratch.marks.first = job.scratch.marks.bits + n * kSliceWords;
    const int32_t status = launch(slice_per_block, dim3(job.n_slices, a->n_rows), dim3(kSliceThreads), 0, stream, job);
    if (status != (int32_t)cudaSuccess) return status;
    return launch(row_per_block, dim3(a->n_rows), dim3(kRowThreads), 0, stream, job);
}
