// attention_decode: out[row, h] = sum_t softmax_t(q[row, h] . k[t, h / group] / sqrt(d_head)) v[t, h / group], t = 0..=position.
//
// Shapes:   q [n_tokens, n_heads, d_head] f32; keys and values [block, n_kv_heads, 16, d_head_pad] f16, by the block table;
//           out [n_tokens, out_pitch] f16.
// Aliasing: none.
// Mapping:  flash-decoding with GQA packing. A work item is (row, split of 256 positions, up to 16 query heads of a KV
//           head), which fill one m16n8k16 tile; blocks take items in turn, so a captured launch serves any context. A
//           warp takes every kWarps-th tile of 16 tokens, one block of the pool, with its own ring of asynchronous copies;
//           the warps' sums meet in shared memory. Where a row has several splits, the block that ends last adds them up.
// Requires: d_head even; d_head_pad 16, 32, 64, 128 or 256; at most 256 rows. Checked by the launcher.
// Cost:     each key and value once for up to 16 query heads: bandwidth bound; 64 KB in flight a block. Scratch is
//           4 (d_head_pad + 2) bytes a head and split: 1/35 of the keys and values for 7 query heads of 64.
// Numerics: scores in F32 from queries of 22 bits and keys in F16; weights rounded to F16 of which the rounded are summed;
//           F32 sums. The order is given by the row's position and the model's shape: tiles of a warp ascending, warps
//           ascending, splits in `parts` interleaved runs ascending, parts ascending.
// Source:   Dao et al. 2023, "Flash-Decoding"; Milakov & Gimelshein 2018 (online softmax).
#include "attention.cuh"
#include "dependency.cuh"
#include "launch.h"
#include "worker_cuda.h"

namespace orcd {
namespace {

using namespace attention;

constexpr uint32_t kSplitTokens = ORCD_ATTENTION_SPLIT_TOKENS;
constexpr uint32_t kMaxRows = ORCD_ATTENTION_DECODE_MAX_TOKENS;
constexpr uint32_t kHeadsAnItem = 16;

// What a block has for heads of D columns. Shared memory stays below the 99 KB of small GPUs, two blocks an SM on large ones.
template <int D> struct Shape {
    static constexpr int kWarps = D == 256 ? 4 : 8;
    static constexpr int kThreads = kWarps * 32;
    static constexpr int kTiles = kSplitTokens / kBlockTokens / kWarps;  // that a warp takes of a split
    static constexpr int kInFlight = D <= 64 ? 2 : 1;                    // tiles of a warp's ring
    static constexpr int kTileHalves = kBlockTokens * D;
    static constexpr int kRingHalves = kInFlight * 2 * kTileHalves;  // a warp's; later 16 x D floats of its sums
    static constexpr int kSharedBytes = (kWarps * kRingHalves + 2 * kTileHalves) * 2 + kWarps * (int)kHeadsAnItem * 8;
    static_assert(kTiles >= kInFlight && kRingHalves * 2 >= (int)kHeadsAnItem * D * 4, "the ring holds a warp's sums");
};

struct Item {
    uint32_t row, position, n_splits, split, head_tile, table_start;
};

// Finds work item `item` of the batch, the same for all lanes; false beyond the last. The rows are shared out over a warp's
// lanes, so each warp finds its items without a barrier, and keeps no register for it in between.
__device__ __forceinline__ bool find_item(const orcd_attention_decode_args &a, uint32_t n_head_tiles, uint32_t item, Item &found) {
    constexpr int kMost = kMaxRows / 32;
    const uint32_t lane = threadIdx.x % 32, n_a_lane = div_ceil(a.n_tokens, 32);
    auto splits = [](uint32_t position) { return position == kPaddingRow ? 0 : position / kSplitTokens + 1; };
    uint32_t position[kMost], table_start[kMost], n = 0;
#pragma unroll
    for (uint32_t i = 0; i < kMost; i++) {
        const uint32_t row = lane * n_a_lane + i;
        const bool is_mine = i < n_a_lane && row < a.n_tokens;
        position[i] = is_mine ? a.positions[row] : kPaddingRow;
        table_start[i] = is_mine ? a.table_start[row] : 0;
        n += splits(position[i]) * n_head_tiles;
    }
    uint32_t end = n;
#pragma unroll
    for (uint32_t offset = 1; offset < 32; offset *= 2) {
        const uint32_t before = __shfl_up_sync(~0u, end, offset);
        if (lane >= offset) end += before;
    }
    uint32_t first = end - n, local = 0;
    const uint32_t owners = __ballot_sync(~0u, first <= item && item < end);
    if (owners == 0) return false;
#pragma unroll
    for (uint32_t i = 0; i < kMost; i++) {
        n = splits(position[i]) * n_head_tiles;
        if (first <= item && item < first + n) {
            found.row = lane * n_a_lane + i;
            found.position = position[i];
            found.table_start = table_start[i];
            local = item - first;
        }
        first += n;
    }
    const uint32_t owner = __ffs(owners) - 1;
    found.row = __shfl_sync(~0u, found.row, owner);
    found.position = __shfl_sync(~0u, found.position, owner);
    found.table_start = __shfl_sync(~0u, found.table_start, owner);
    local = __shfl_sync(~0u, local, owner);
    found.n_splits = splits(found.position);
    found.head_tile = local / found.n_splits;
    found.split = local % found.n_splits;
    return true;
}

// A part of a row's attention: for each head the softmax offset and sum, and the weighted values, not yet divided.
// Splits lie in scratch as [heads] (offset, sum), then [heads, D].
__host__ __device__ constexpr uint32_t partial_floats(uint32_t n_heads, uint32_t d) { return (2 * n_heads + 3) / 4 * 4 + n_heads * d; }

// Where column `c` of head `h` lies among a warp's sums: turned, so that a fragment's rows go to different banks.
template <int D> __device__ __forceinline__ uint32_t sum_at(uint32_t h, uint32_t c) {
    return h * D + (c ^ (D >= 32 ? h % 4 * 8 : h / 2 % 2 * 8));
}

template <int D> __global__ void __launch_bounds__(Shape<D>::kThreads, 2) attend(orcd_attention_decode_args a) {
    using S = Shape<D>;
    constexpr int kSteps = D / 16;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ bool is_last;
    __half *rings = reinterpret_cast<__half *>(shared);                  // [warps, in flight, keys and values, 16, D]
    __half *q_high = rings + S::kWarps * S::kRingHalves;                 // [16, D]
    __half *q_low = q_high + S::kTileHalves;                             // [16, D]
    float2 *stats = reinterpret_cast<float2 *>(q_low + S::kTileHalves);  // [warps, 16] (offset, sum)
    auto sums = [&](uint32_t part) { return reinterpret_cast<float *>(rings + part * S::kRingHalves); };

    let_successor_start();
    if (!a.reads_ahead) wait_for_predecessor();
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t group = a.n_heads / a.n_kv_heads, tiles_a_group = div_ceil(group, kHeadsAnItem);
    const uint32_t partial_pitch = partial_floats(min(group, kHeadsAnItem), D);
    const float scale = kLog2e / sqrtf((float)a.d_head);
    __half *out = reinterpret_cast<__half *>(a.out);
    __half *ring = rings + warp * S::kRingHalves;
    const uint32_t n_head_tiles = a.n_kv_heads * tiles_a_group;

    Item at{};
    for (uint32_t item = blockIdx.x; find_item(a, n_head_tiles, item, at); item += gridDim.x) {
        const uint32_t kv_head = at.head_tile / tiles_a_group, head_of_group = at.head_tile % tiles_a_group * kHeadsAnItem;
        const uint32_t first_head = kv_head * group + head_of_group, n_heads = min(group - head_of_group, kHeadsAnItem);
        const uint32_t split_begin = at.split * kSplitTokens;
        auto first_token = [&](int i) { return split_begin + (warp + i * S::kWarps) * kBlockTokens; };

        uint32_t pool_block[S::kTiles];
#pragma unroll
        for (int i = 0; i < S::kTiles; i++) {
            const uint32_t first = first_token(i);
            pool_block[i] = first <= at.position ? a.block_table[at.table_start + first / kBlockTokens] : 0;
        }
        // A tile of keys or values, zeros beyond the row's own position.
        auto load = [&](int i, const orcd_f16 *pool, int is_value) {
            const uint32_t first = first_token(i);
            if (first <= at.position) {
                const orcd_f16 *from = pool + ((size_t)pool_block[i] * a.n_kv_heads + kv_head) * S::kTileHalves;
                const uint32_t to = shared_address(ring + (i % S::kInFlight * 2 + is_value) * S::kTileHalves);
#pragma unroll
                for (int j = 0; j < kSteps; j++) {
                    const uint32_t c = lane + j * 32, token = c / (D / 8);
                    copy_async_16(to + 2 * swizzled<D>(token, c % (D / 8)), from + c * 8, first + token <= at.position);
                }
            }
            copy_async_commit();
        };
#pragma unroll
        for (int i = 0; i < S::kInFlight; i++) {
            if (at.position - first_token(i) < kBlockTokens) wait_for_predecessor();  // the tile of the row's own token
            load(i, a.k_pool, 0);
            load(i, a.v_pool, 1);
        }

        wait_for_predecessor();
        for (uint32_t i = threadIdx.x; i < kHeadsAnItem * (D / 2); i += S::kThreads) {
            const uint32_t h = i / (D / 2), pair = i % (D / 2);
            float2 q = make_float2(0, 0);
            if (h < n_heads && 2 * pair < a.d_head)
                q = load_written_8(a.q + ((size_t)at.row * a.n_heads + first_head + h) * a.d_head + 2 * pair);
            store_query<D>(q_high, q_low, h, pair, q);
        }
        __syncthreads();

        Softmax upper, lower;  // of rows g and g + 8
        float acc[D / 8][4] = {};
#pragma unroll
        for (int i = 0; i < S::kTiles; i++) {
            const uint32_t first = first_token(i);
            if (first > at.position) break;
            const __half *keys = ring + i % S::kInFlight * 2 * S::kTileHalves, *values = keys + S::kTileHalves;

            copy_async_wait<2 * S::kInFlight - 1>();
            __syncwarp();
            float high[2][4] = {}, low[2][4] = {};
#pragma unroll
            for (int k = 0; k < kSteps; k++) {
                uint32_t qh[4], ql[4], b[4];
                const uint32_t q_at = swizzled<D>(row_of_lane(lane), 2 * k + chunk_of_lane(lane));
                ldmatrix_x4(b, shared_address(keys + swizzled<D>(key_row_of_lane(lane), 2 * k + key_chunk_of_lane(lane))));
                ldmatrix_x4(qh, shared_address(q_high + q_at));
                ldmatrix_x4(ql, shared_address(q_low + q_at));
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    mma_16816(high[n], qh[0], qh[1], qh[2], qh[3], b[2 * n], b[2 * n + 1]);
                    mma_16816(low[n], ql[0], ql[1], ql[2], ql[3], b[2 * n], b[2 * n + 1]);
                }
            }
            __syncwarp();
            if (i + S::kInFlight < S::kTiles) load(i + S::kInFlight, a.k_pool, 0);
            else copy_async_commit();

            float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const bool is_seen = first + n * 8 + 2 * t + c % 2 <= at.position;
                    high[n][c] = is_seen ? high[n][c] + low[n][c] : -INFINITY;
                    largest[c / 2] = fmaxf(largest[c / 2], high[n][c]);
                }
            const float upper_factor = upper.raise(maximum_of_quad(largest[0]), scale);
            const float lower_factor = lower.raise(maximum_of_quad(largest[1]), scale);
            const uint32_t p0 = upper.weights(high[0][0], high[0][1], scale), p1 = lower.weights(high[0][2], high[0][3], scale);
            const uint32_t p2 = upper.weights(high[1][0], high[1][1], scale), p3 = lower.weights(high[1][2], high[1][3], scale);
            if (i > 0) {
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    acc[n][0] *= upper_factor;
                    acc[n][1] *= upper_factor;
                    acc[n][2] *= lower_factor;
                    acc[n][3] *= lower_factor;
                }
            }

            copy_async_wait<2 * S::kInFlight - 1>();
            __syncwarp();
#pragma unroll
            for (int k = 0; k < kSteps; k++) {
                uint32_t b[4];
                ldmatrix_x4_transposed(b, shared_address(values + swizzled<D>(row_of_lane(lane), 2 * k + chunk_of_lane(lane))));
                mma_16816(acc[2 * k], p0, p1, p2, p3, b[0], b[1]);
                mma_16816(acc[2 * k + 1], p0, p1, p2, p3, b[2], b[3]);
            }
            __syncwarp();
            if (i + S::kInFlight < S::kTiles) load(i + S::kInFlight, a.v_pool, 1);
            else copy_async_commit();
        }
        copy_async_wait<0>();
        __syncwarp();

        if (first_token(0) <= at.position) {
            const float upper_sum = sum_of_quad(upper.sum), lower_sum = sum_of_quad(lower.sum);
            if (t == 0) {
                stats[warp * kHeadsAnItem + g] = make_float2(upper.offset, upper_sum);
                stats[warp * kHeadsAnItem + g + 8] = make_float2(lower.offset, lower_sum);
            }
            float *own = sums(warp);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const uint32_t c = n * 8 + 2 * t;
                if (g < n_heads) *reinterpret_cast<float2 *>(own + sum_at<D>(g, c)) = make_float2(acc[n][0], acc[n][1]);
                if (g + 8 < n_heads) *reinterpret_cast<float2 *>(own + sum_at<D>(g + 8, c)) = make_float2(acc[n][2], acc[n][3]);
            }
        }
        __syncthreads();

        // Adds up the first `n_parts` of `stats` and `sums`, in order: write(head, column, offset, sum, four columns).
        const uint32_t n_quads = n_heads * (D / 4);
        auto merge = [&](uint32_t n_parts, auto write) {
            for (uint32_t i = threadIdx.x; i < n_quads; i += S::kThreads) {
                const uint32_t h = i / (D / 4), c = i % (D / 4) * 4;
                float offset = -INFINITY, sum = 0;
                float4 v = make_float4(0, 0, 0, 0);
                for (uint32_t p = 0; p < n_parts; p++) offset = fmaxf(offset, stats[p * kHeadsAnItem + h].x);
                for (uint32_t p = 0; p < n_parts; p++) {
                    const float2 stat = stats[p * kHeadsAnItem + h];
                    const float4 part = *reinterpret_cast<const float4 *>(sums(p) + sum_at<D>(h, c));
                    const float factor = exp2f(stat.x - offset);
                    sum = fmaf(stat.y, factor, sum);
                    v = make_float4(fmaf(part.x, factor, v.x), fmaf(part.y, factor, v.y), fmaf(part.z, factor, v.z),
                                    fmaf(part.w, factor, v.w));
                }
                write(h, c, offset, sum, v);
            }
        };
        auto write_out = [&](uint32_t h, uint32_t c, float, float sum, float4 v) {
            __half *to = out + (size_t)at.row * a.out_pitch + (first_head + h) * a.d_head + c;
            const float inverse = 1.0f / sum;
            if (c < a.d_head) *reinterpret_cast<__half2 *>(to) = to_halves(v.x * inverse, v.y * inverse);
            if (c + 2 < a.d_head) *reinterpret_cast<__half2 *>(to + 2) = to_halves(v.z * inverse, v.w * inverse);
        };

        const uint32_t n_tiles = min(kSplitTokens, at.position + 1 - split_begin) + kBlockTokens - 1;
        const uint32_t n_warps = min((uint32_t)S::kWarps, n_tiles / kBlockTokens);
        if (at.n_splits == 1) {
            merge(n_warps, write_out);
        } else {
            // Items of a row's head tile are neighbours, and so are their partials.
            if ((uint64_t)(item + 1) * partial_pitch > a.n_partials) __trap();
            const uint32_t n_stats = partial_pitch - min(group, kHeadsAnItem) * D;
            float *own = a.partials + (size_t)item * partial_pitch;
            merge(n_warps, [&](uint32_t h, uint32_t c, float offset, float sum, float4 v) {
                if (c == 0) *reinterpret_cast<float2 *>(own + 2 * h) = make_float2(offset, sum);
                *reinterpret_cast<float4 *>(own + n_stats + h * D + c) = v;
            });
            __syncthreads();
            uint32_t *counter = a.counters + (size_t)at.row * n_head_tiles + at.head_tile;
            if (threadIdx.x == 0) {
                __threadfence();
                is_last = atomicAdd(counter, 1) == at.n_splits - 1;
                __threadfence();
            }
            __syncthreads();
            if (is_last) {
                constexpr int kUnrolled = 16;
                const float *first = own - (size_t)at.split * partial_pitch;
                const uint32_t n_parts = min(min((uint32_t)S::kWarps, max(1u, S::kThreads / n_quads)), at.n_splits);
                for (uint32_t i = threadIdx.x; i < n_quads * n_parts; i += S::kThreads) {
                    const uint32_t part = i / n_quads, h = i % n_quads / (D / 4), c = i % (D / 4) * 4;
                    float offset = -INFINITY, sum = 0;
                    float4 v = make_float4(0, 0, 0, 0);
                    for (uint32_t s0 = part; s0 < at.n_splits; s0 += n_parts * kUnrolled) {
                        float2 stat[kUnrolled];
                        float4 value[kUnrolled];
#pragma unroll
                        for (int u = 0; u < kUnrolled; u++) {
                            const uint32_t s = s0 + u * n_parts;
                            stat[u] = make_float2(-INFINITY, 0);
                            value[u] = make_float4(0, 0, 0, 0);
                            if (s < at.n_splits) {
                                const float *from = first + (size_t)s * partial_pitch;
                                stat[u] = load_written_8(from + 2 * h);
                                value[u] = load_written_16(from + n_stats + h * D + c);
                            }
                        }
                        float raised = offset;
#pragma unroll
                        for (int u = 0; u < kUnrolled; u++) raised = fmaxf(raised, stat[u].x);
                        float factor = exp2f(offset - raised);
                        sum *= factor;
                        v = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
                        offset = raised;
#pragma unroll
                        for (int u = 0; u < kUnrolled; u++) {
                            factor = exp2f(stat[u].x - offset);
                            sum = fmaf(stat[u].y, factor, sum);
                            v = make_float4(fmaf(value[u].x, factor, v.x), fmaf(value[u].y, factor, v.y),
                                            fmaf(value[u].z, factor, v.z), fmaf(value[u].w, factor, v.w));
                        }
                    }
                    if (c == 0) stats[part * kHeadsAnItem + h] = make_float2(offset, sum);
                    *reinterpret_cast<float4 *>(sums(part) + sum_at<D>(h, c)) = v;
                }
                if (threadIdx.x == 0) *counter = 0;
                __syncthreads();
                merge(n_parts, write_out);
            }
        }
        __syncthreads();  // the next item overwrites rings, queries and stats
    }

    wait_for_predecessor();
    for (uint32_t row = blockIdx.x; row < a.n_tokens; row += gridDim.x) {
        const uint32_t from = a.positions[row] == kPaddingRow ? 0 : a.n_heads * a.d_head;
        for (uint32_t i = from + threadIdx.x; i < a.out_pitch; i += S::kThreads)
            out[(size_t)row * a.out_pitch + i] = __ushort_as_half(0);
    }
}

// Calls f with Shape<d_head_pad>; false where there is none.
template <class F> bool with_shape(uint32_t d_head_pad, F f) {
    switch (d_head_pad) {
        case 16: f(Shape<16>{}, attend<16>); return true;
        case 32: f(Shape<32>{}, attend<32>); return true;
        case 64: f(Shape<64>{}, attend<64>); return true;
        case 128: f(Shape<128>{}, attend<128>); return true;
        case 256: f(Shape<256>{}, attend<256>); return true;
        default: return false;
    }
}

template <class S, class Kernel> cudaError_t allow_shared(S, Kernel kernel) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
}

}  // namespace
}  // namespace orcd

extern "C" int32_t orcd_attention_decode(const orcd_attention_decode_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->q && args->k_pool && args->v_pool && args->block_table && args->table_start && args->positions);
    ORCD_REQUIRE(args->out && args->partials && args->counters && args->n_blocks > 0);
    ORCD_REQUIRE(args->n_tokens > 0 && args->n_tokens <= orcd::kMaxRows);
    ORCD_REQUIRE(args->n_kv_heads > 0 && args->n_heads > 0 && args->n_heads % args->n_kv_heads == 0);
    ORCD_REQUIRE(args->d_head > 0 && args->d_head % 2 == 0 && args->d_head <= args->d_head_pad);
    ORCD_REQUIRE(args->out_pitch % 8 == 0 && args->out_pitch >= (uint64_t)args->n_heads * args->d_head);
    ORCD_REQUIRE(orcd::is_aligned(args->k_pool, 16) && orcd::is_aligned(args->v_pool, 16) && orcd::is_aligned(args->partials, 16));
    ORCD_REQUIRE(orcd::is_aligned(args->q, 8) && orcd::is_aligned(args->out, 16));
    int32_t status = (int32_t)cudaErrorInvalidValue;
    orcd::with_shape(args->d_head_pad, [&](auto shape, auto kernel) {
        using S = decltype(shape);
        status = (int32_t)orcd::allow_shared(shape, kernel);
        if (status == (int32_t)cudaSuccess)
            status = orcd::launch(kernel, dim3(args->n_blocks), dim3(S::kThreads), S::kSharedBytes, stream, *args);
    });
    return status;
}

extern "C" uint64_t orcd_attention_decode_partials(uint32_t max_tokens, uint32_t n_ctx, uint32_t n_heads, uint32_t n_kv_heads,
                                                   uint32_t d_head_pad) {
    const uint32_t group = n_heads / n_kv_heads, heads = group < orcd::kHeadsAnItem ? group : orcd::kHeadsAnItem;
    const uint64_t n_items = (uint64_t)max_tokens * orcd::div_ceil(n_ctx, orcd::kSplitTokens) * n_kv_heads * orcd::div_ceil(group, orcd::kHeadsAnItem);
    return n_items * orcd::partial_floats(heads, d_head_pad);
}

extern "C" uint32_t orcd_attention_decode_counters(uint32_t max_tokens, uint32_t n_heads, uint32_t n_kv_heads) {
    return max_tokens * n_kv_heads * orcd::div_ceil(n_heads / n_kv_heads, orcd::kHeadsAnItem);
}

extern "C" uint32_t orcd_attention_decode_blocks(uint32_t d_head_pad) {
    int device = 0, n_sms = 0, a_sm = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    if (cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 0;
    orcd::with_shape(d_head_pad, [&](auto shape, auto kernel) {
        using S = decltype(shape);
        if (orcd::allow_shared(shape, kernel) != cudaSuccess ||
            cudaOccupancyMaxActiveBlocksPerMultiprocessor(&a_sm, kernel, S::kThreads, S::kSharedBytes) != cudaSuccess)
            a_sm = 0;
    });
    return (uint32_t)(n_sms * a_sm);
}
