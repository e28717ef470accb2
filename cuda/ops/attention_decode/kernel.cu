// attention_decode: out[row, h] = sum_t softmax_t(q[row, h] . k[t, h / group] / sqrt(d_head)) v[t, h / group],
//     over t = 0..=position.
//
// Shapes:   q [n_tokens, n_heads, d_head] f32; keys and values [block, n_kv_heads, 16, d_head_pad] f16, by the block
//           table; out [n_tokens, out_pitch] f16.
// Aliasing: none.
// Mapping:  flash-decoding with GQA packing. A work item is (row, split of 256 positions, up to 16 query heads of a KV
//           head), which fill one m16n8k16 tile; blocks take items in turn, so a captured launch serves any context. A
//           warp takes every kWarps-th tile of 16 tokens, one block of the pool, with its own ring of asynchronous
//           copies; the warps' sums meet in shared memory. Where a row has several splits, each block leaves its
//           own in slots of scratch, then adds up its share of the columns, all splits of them, as they come.
// Requires: d_head even; d_head_pad 16, 32, 64, 128 or 256; at most 256 rows. Checked by the launcher.
// Cost:     each key and value once for up to 16 query heads: bandwidth bound; 64 KB in flight a block. Scratch is
//           6 d_head_pad bytes a head and split: 1/24 of the keys and values for 7 query heads of 64.
// Numerics: scores in F32 from queries of 22 bits and keys in F16; weights rounded to F16, the rounded ones
//           summed in F32. The order is given by the row's position and the model's shape: tiles of a warp
//           ascending, warps ascending, then splits: every 32nd ascending, and a fixed tree of those 32 sums.
// Source:   Dao et al. 2023, "Flash-Decoding"; Milakov & Gimelshein 2018 (online softmax).
#include "attention.cuh"
#include "dependency.cuh"
#include "launch.h"
#include "worker_cuda.h"

#include <algorithm>
#include <cfloat>

namespace orcd {
namespace {

using namespace attention;

constexpr uint32_t kSplitTokens = ORCD_ATTENTION_SPLIT_TOKENS;
constexpr uint32_t kMaxRows = ORCD_ATTENTION_DECODE_MAX_TOKENS;
constexpr uint32_t kHeadsAnItem = 16;

// What a block has for heads of D columns. Shared memory stays below the 99 KB of small GPUs, two blocks an SM on large
// ones.
template <int D> struct Shape {
    static constexpr uint32_t kColumns = D;
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
    uint32_t row, position, table_start;
    uint32_t head_tile, kv_head, first_head, n_heads;
    uint32_t split, n_splits;
    uint32_t n_items;     // of the whole batch
};

// Finds work item `item` of the batch, the same for all lanes; false beyond the last. The rows are shared out over a
// warp's lanes, so each warp finds its items without a barrier, and keeps no register for it in between.
__device__ __forceinline__ bool find_item(const orcd_attention_decode_args &a, uint32_t item, Item &found) {
    const uint32_t group = a.n_heads / a.n_kv_heads, tiles_a_group = div_ceil(group, kHeadsAnItem);
    const uint32_t n_head_tiles = a.n_kv_heads * tiles_a_group;
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
    found.n_items = __shfl_sync(~0u, end, 31);
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
    found.kv_head = found.head_tile / tiles_a_group;
    const uint32_t head_of_group = found.head_tile % tiles_a_group * kHeadsAnItem;
    found.first_head = found.kv_head * group + head_of_group;
    found.n_heads = min(group - head_of_group, kHeadsAnItem);
    return true;
}

// What a split leaves for whoever adds up 8 columns of one of its heads: a slot of scratch. A word that is +0 has not
// been written: so a word tells by itself that it is there, and needs neither flag nor fence. Its one reader leaves +0.
constexpr uint32_t kSlotColumns = 8;
constexpr uint32_t kSlotFloats = 12;  // the softmax's offset and sum, the weighted values, two that keep 16 bytes aligned
__host__ __device__ constexpr uint32_t slots_floats(uint32_t n_heads, uint32_t d) {
    return n_heads * (d / kSlotColumns) * kSlotFloats;
}

// A block's shared memory. First the warps' rings and the queries; when the rings are done, parts of the result, one
// for each warp or run of splits, lie where the rings were.
template <int D> struct Shared {
    using S = Shape<D>;
    unsigned char *base;

    // [in flight, keys and values, 16, D]
    __device__ __forceinline__ __half *ring(uint32_t warp) const {
        return reinterpret_cast<__half *>(base) + warp * S::kRingHalves;
    }
    // [16, D] each: what a half holds of the queries, and what it left over.
    __device__ __forceinline__ __half *q_high() const { return ring(S::kWarps); }
    __device__ __forceinline__ __half *q_low() const { return q_high() + S::kTileHalves; }
    // (offset, sum) of a part's head.
    __device__ __forceinline__ float2 &stat(uint32_t part, uint32_t h) const {
        return reinterpret_cast<float2 *>(q_low() + S::kTileHalves)[part * kHeadsAnItem + h];
    }
    // The weighted values of a part's head, from column `c` to the next multiple of 8: turned, so that the rows of a
    // fragment go to different banks.
    __device__ __forceinline__ float *values(uint32_t part, uint32_t h, uint32_t c) const {
        return reinterpret_cast<float *>(ring(part)) + h * D + (c ^ (D >= 32 ? h % 4 * 8 : h / 2 % 2 * 8));
    }
};

// Weighted values of which the weights are relative to 2^offset.
struct Weighted {
    float offset = -INFINITY, sum = 0;
    float4 values = make_float4(0, 0, 0, 0);

    // Adds a part whose offset is not above this one's.
    __device__ __forceinline__ void add(float2 stat, float4 part) {
        const float factor = exp2f(stat.x - offset);
        sum = fmaf(stat.y, factor, sum);
        values = make_float4(fmaf(part.x, factor, values.x), fmaf(part.y, factor, values.y),
                             fmaf(part.z, factor, values.z), fmaf(part.w, factor, values.w));
    }
};

// Adds up the first `n_parts` parts in order: write(head, column, four columns' result).
template <int D, class Write>
__device__ __forceinline__ void merge_parts(const Shared<D> &shared, uint32_t n_heads, uint32_t n_parts, Write write) {
    for (uint32_t i = threadIdx.x; i < n_heads * (D / 4); i += Shape<D>::kThreads) {
        const uint32_t h = i / (D / 4), c = i % (D / 4) * 4;
        Weighted result;
        for (uint32_t p = 0; p < n_parts; p++) result.offset = fmaxf(result.offset, shared.stat(p, h).x);
        for (uint32_t p = 0; p < n_parts; p++)
            result.add(shared.stat(p, h), *reinterpret_cast<const float4 *>(shared.values(p, h, c)));
        write(h, c, result);
    }
}

// A value that says that it is there.
__device__ __forceinline__ float written(float x) { return x == 0 ? -0.0f : x; }
__device__ __forceinline__ bool is_written(float x) { return __float_as_uint(x) != 0; }

// Leaves four columns of a split's head in their slot: `c` is the first, `slots` those of the split.
template <int D> __device__ __forceinline__ void post(float *slots, uint32_t h, uint32_t c, const Weighted &w) {
    float *slot = slots + (h * (D / kSlotColumns) + c / kSlotColumns) * kSlotFloats;
    const float4 v = make_float4(written(w.values.x), written(w.values.y), written(w.values.z), written(w.values.w));
    if (c % kSlotColumns == 0) {
        store_shown_16(slot, make_float4(written(w.offset), written(w.sum), v.x, v.y));
        store_shown_8(slot + 4, make_float2(v.z, v.w));
    } else {
        store_shown_8(slot + 6, make_float2(v.x, v.y));
        store_shown_8(slot + 8, make_float2(v.z, v.w));
    }
}

// A slot as it was found.
struct Found {
    float4 a, b;
    float2 c;
    __device__ __forceinline__ void load(const float *slot) {
        a = load_shown_16(slot);
        b = load_shown_16(slot + 4);
        c = load_shown_8(slot + 8);
    }
    __device__ __forceinline__ bool is_full() const {
        return is_written(a.x) && is_written(a.y) && is_written(a.z) && is_written(a.w) && is_written(b.x) &&
               is_written(b.y) && is_written(b.z) && is_written(b.w) && is_written(c.x) && is_written(c.y);
    }
};

__device__ __forceinline__ void empty(float *slot) {
    store_shown_16(slot, make_float4(0, 0, 0, 0));
    store_shown_16(slot + 4, make_float4(0, 0, 0, 0));
    store_shown_8(slot + 8, make_float2(0, 0));
}

// Weighted values of 8 columns, of splits whose weights are relative to offsets of their own.
struct Columns {
    float offset = -FLT_MAX, sum = 0, values[kSlotColumns] = {};  // that of no split: finite, so that two of them add up

    __device__ __forceinline__ void add(float its_offset, float its_sum, const float (&its_values)[kSlotColumns]) {
        const float raised = fmaxf(offset, its_offset);
        const float mine = exp2f(offset - raised), its = exp2f(its_offset - raised);
        offset = raised;
        sum = fmaf(sum, mine, its_sum * its);
#pragma unroll
        for (int i = 0; i < (int)kSlotColumns; i++) values[i] = fmaf(values[i], mine, its_values[i] * its);
    }
    __device__ __forceinline__ void add(const Found &f) {
        const float its_values[kSlotColumns] = {f.a.z, f.a.w, f.b.x, f.b.y, f.b.z, f.b.w, f.c.x, f.c.y};
        add(f.a.x, f.a.y, its_values);
    }
    // Adds what the lane whose number differs in `bit` has.
    __device__ __forceinline__ void add_lane(uint32_t bit) {
        float its_values[kSlotColumns];
#pragma unroll
        for (int i = 0; i < (int)kSlotColumns; i++) its_values[i] = __shfl_xor_sync(~0u, values[i], bit);
        const float its_offset = __shfl_xor_sync(~0u, offset, bit), its_sum = __shfl_xor_sync(~0u, sum, bit);
        add(its_offset, its_sum, its_values);
    }
};

// Adds up the splits of this item's share of its heads' columns, and writes them out: as many shares as splits. `first`
// points to the first split's slots. A group of lanes takes 8 columns, each lane every 32nd split, or one if there are
// fewer. Waits for other blocks: all must be resident.
template <int D, class Write>
__device__ __forceinline__ void add_up_share(const Item &at, float *first, uint32_t pitch, Write write) {
    constexpr int kAtOnce = 2;  // slots of which a lane has loads under way
    const uint32_t n_columns = at.n_heads * (D / kSlotColumns);  // groups of 8
    const uint32_t n_lanes = at.n_splits > 16 ? 32 : 1u << (32 - __clz(at.n_splits - 1));
    const uint32_t lane = threadIdx.x % n_lanes;
    // The same for all lanes of a warp: they add up together.
    for (uint32_t i = threadIdx.x / 32 * (32 / n_lanes); at.split + at.n_splits * i < n_columns;
         i += Shape<D>::kThreads / n_lanes) {
        const uint32_t column = at.split + at.n_splits * (i + threadIdx.x % 32 / n_lanes);
        Columns result;
        for (uint32_t split = lane; column < n_columns && split < at.n_splits; split += kAtOnce * n_lanes) {
            Found found[kAtOnce];
            float *slot[kAtOnce];
#pragma unroll
            for (int u = 0; u < kAtOnce; u++)
                slot[u] = first + (size_t)(split + u * n_lanes) * pitch + column * kSlotFloats;
            const bool has_second = split + n_lanes < at.n_splits;
            while (true) {
                found[0].load(slot[0]);
                if (has_second) found[1].load(slot[1]);
                if (found[0].is_full() && (!has_second || found[1].is_full())) break;
                // Others still read keys and values: looking all the time would be in their way.
                if (at.n_items > gridDim.x) __nanosleep(200);
            }
            result.add(found[0]);
            empty(slot[0]);
            if (has_second) {
                result.add(found[1]);
                empty(slot[1]);
            }
        }
        for (uint32_t bit = n_lanes / 2; bit > 0; bit /= 2) result.add_lane(bit);
        if (lane != 0 || column >= n_columns) continue;
        const uint32_t h = column / (D / kSlotColumns), c = column % (D / kSlotColumns) * kSlotColumns;
#pragma unroll
        for (uint32_t quad = 0; quad < kSlotColumns; quad += 4) {
            Weighted four;
            four.sum = result.sum;
            four.values = make_float4(result.values[quad], result.values[quad + 1], result.values[quad + 2],
                                      result.values[quad + 3]);
            write(h, c + quad, four);
        }
    }
}

// The attention of one item's heads over its split, as one part for each warp that has a tile; returns how many.
template <int D>
__device__ __forceinline__ uint32_t attend_split(const orcd_attention_decode_args &a, const Item &at,
                                                 const Shared<D> &shared) {
    using S = Shape<D>;
    constexpr int kSteps = D / 16;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t split_begin = at.split * kSplitTokens;
    const float scale = kLog2e / sqrtf((float)a.d_head);
    __half *ring = shared.ring(warp);
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
        if (i < S::kTiles && first <= at.position) {
            const orcd_f16 *from = pool + ((size_t)pool_block[i] * a.n_kv_heads + at.kv_head) * S::kTileHalves;
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
        if (h < at.n_heads && 2 * pair < a.d_head)
            q = load_written_8(a.q + ((size_t)at.row * a.n_heads + at.first_head + h) * a.d_head + 2 * pair);
        store_query<D>(shared.q_high(), shared.q_low(), h, pair, q);
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
        float s[2][4] = {}, of_rest[2][4] = {};
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
            uint32_t high[4], low[4], b[4];
            const uint32_t q_at = swizzled<D>(row_of_lane(lane), 2 * k + chunk_of_lane(lane));
            const uint32_t k_at = swizzled<D>(key_row_of_lane(lane), 2 * k + key_chunk_of_lane(lane));
            ldmatrix_x4(b, shared_address(keys + k_at));
            ldmatrix_x4(high, shared_address(shared.q_high() + q_at));
            ldmatrix_x4(low, shared_address(shared.q_low() + q_at));
#pragma unroll
            for (int n = 0; n < 2; n++) {
                mma_16816(s[n], high[0], high[1], high[2], high[3], b[2 * n], b[2 * n + 1]);
                mma_16816(of_rest[n], low[0], low[1], low[2], low[3], b[2 * n], b[2 * n + 1]);
            }
        }
        __syncwarp();
        load(i + S::kInFlight, a.k_pool, 0);

        float upper_largest = -INFINITY, lower_largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const bool is_seen = first + n * 8 + 2 * t + c % 2 <= at.position;
                s[n][c] = is_seen ? s[n][c] + of_rest[n][c] : -INFINITY;
            }
            upper_largest = fmaxf(upper_largest, fmaxf(s[n][0], s[n][1]));
            lower_largest = fmaxf(lower_largest, fmaxf(s[n][2], s[n][3]));
        }
        const float upper_factor = upper.raise(maximum_of_quad(upper_largest), scale);
        const float lower_factor = lower.raise(maximum_of_quad(lower_largest), scale);
        uint32_t p[4];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            p[2 * n] = upper.weights(s[n][0], s[n][1], scale);
            p[2 * n + 1] = lower.weights(s[n][2], s[n][3], scale);
        }
#pragma unroll
        for (int n = 0; i > 0 && n < D / 8; n++) {
            acc[n][0] *= upper_factor;
            acc[n][1] *= upper_factor;
            acc[n][2] *= lower_factor;
            acc[n][3] *= lower_factor;
        }

        copy_async_wait<2 * S::kInFlight - 1>();
        __syncwarp();
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
            uint32_t b[4];
            const uint32_t v_at = swizzled<D>(row_of_lane(lane), 2 * k + chunk_of_lane(lane));
            ldmatrix_x4_transposed(b, shared_address(values + v_at));
            mma_16816(acc[2 * k], p[0], p[1], p[2], p[3], b[0], b[1]);
            mma_16816(acc[2 * k + 1], p[0], p[1], p[2], p[3], b[2], b[3]);
        }
        __syncwarp();
        load(i + S::kInFlight, a.v_pool, 1);
    }
    copy_async_wait<0>();
    __syncwarp();

    if (first_token(0) <= at.position) {
        const float upper_sum = sum_of_quad(upper.sum), lower_sum = sum_of_quad(lower.sum);
        if (t == 0) {
            shared.stat(warp, g) = make_float2(upper.offset, upper_sum);
            shared.stat(warp, g + 8) = make_float2(lower.offset, lower_sum);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            float2 *to_upper = reinterpret_cast<float2 *>(shared.values(warp, g, n * 8) + 2 * t);
            float2 *to_lower = reinterpret_cast<float2 *>(shared.values(warp, g + 8, n * 8) + 2 * t);
            if (g < at.n_heads) *to_upper = make_float2(acc[n][0], acc[n][1]);
            if (g + 8 < at.n_heads) *to_lower = make_float2(acc[n][2], acc[n][3]);
        }
    }
    __syncthreads();
    return min((uint32_t)S::kWarps, div_ceil(min(kSplitTokens, at.position + 1 - split_begin), kBlockTokens));
}

template <int D> __global__ void __launch_bounds__(Shape<D>::kThreads, 2) attend(orcd_attention_decode_args a) {
    extern __shared__ __align__(128) unsigned char memory[];
    const Shared<D> shared{memory};
    const uint32_t pitch = slots_floats(min(a.n_heads / a.n_kv_heads, kHeadsAnItem), D);
    __half *out = reinterpret_cast<__half *>(a.out);
    Item at{};
    auto write_out = [&](uint32_t h, uint32_t c, const Weighted &result) {
        __half *to = out + (size_t)at.row * a.out_pitch + (at.first_head + h) * a.d_head + c;
        const float inverse = 1.0f / result.sum;
        const float4 v = result.values;
        if (c < a.d_head) *reinterpret_cast<__half2 *>(to) = to_halves(v.x * inverse, v.y * inverse);
        if (c + 2 < a.d_head) *reinterpret_cast<__half2 *>(to + 2) = to_halves(v.z * inverse, v.w * inverse);
    };

    let_successor_start();
    if (!a.reads_ahead) wait_for_predecessor();
    // Looking for an item that is not there would hold up the block's end: after the first, their number is known.
    for (uint32_t item = blockIdx.x; (item == blockIdx.x || item < at.n_items) && find_item(a, item, at);
         item += gridDim.x) {
        const uint32_t n_parts = attend_split<D>(a, at, shared);
        if (at.n_splits == 1) {
            merge_parts<D>(shared, at.n_heads, n_parts, write_out);
        } else {
            // The splits of a row's head tile are neighbours among the items, and so in scratch.
            if ((uint64_t)(item + 1) * pitch > a.n_partials) __trap();
            float *slots = a.partials + (size_t)item * pitch;
            merge_parts<D>(shared, at.n_heads, n_parts,
                           [&](uint32_t h, uint32_t c, const Weighted &result) { post<D>(slots, h, c, result); });
        }
        __syncthreads();  // the next item overwrites rings, queries and parts
    }
    // A block has left all its own before it waits for others'.
    for (uint32_t item = blockIdx.x; item < at.n_items; item += gridDim.x) {
        if (at.n_items > gridDim.x) find_item(a, item, at);
        if (at.n_splits > 1)
            add_up_share<D>(at, a.partials + (size_t)(item - at.split) * pitch, pitch, write_out);
    }

    wait_for_predecessor();
    // Blocks from the last on: the first ones have had items.
    for (uint32_t row = gridDim.x - 1 - blockIdx.x; row < a.n_tokens; row += gridDim.x) {
        const uint32_t from = a.positions[row] == kPaddingRow ? 0 : a.n_heads * a.d_head;
        for (uint32_t i = from + threadIdx.x; i < a.out_pitch; i += Shape<D>::kThreads)
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
    ORCD_REQUIRE(args && args->q && args->k_pool && args->v_pool && args->block_table && args->table_start &&
                 args->positions);
    ORCD_REQUIRE(args->out && args->partials && args->n_blocks > 0);
    ORCD_REQUIRE(args->n_tokens > 0 && args->n_tokens <= orcd::kMaxRows);
    ORCD_REQUIRE(args->n_kv_heads > 0 && args->n_heads > 0 && args->n_heads % args->n_kv_heads == 0);
    ORCD_REQUIRE(args->d_head > 0 && args->d_head % 2 == 0 && args->d_head <= args->d_head_pad);
    ORCD_REQUIRE(args->out_pitch % 8 == 0 && args->out_pitch >= (uint64_t)args->n_heads * args->d_head);
    ORCD_REQUIRE(orcd::is_aligned(args->k_pool, 16) && orcd::is_aligned(args->v_pool, 16) &&
                 orcd::is_aligned(args->partials, 16));
    ORCD_REQUIRE(orcd::is_aligned(args->q, 8) && orcd::is_aligned(args->out, 16));
    int32_t status = (int32_t)cudaErrorInvalidValue;
    orcd::with_shape(args->d_head_pad, [&](auto shape, auto kernel) {
        using S = decltype(shape);
        status = (int32_t)orcd::allow_shared(shape, kernel);
        if (status != (int32_t)cudaSuccess) return;
        // Blocks wait for each other. Asked once: the devices of one process are assumed to be alike here.
        static const uint32_t n_resident = orcd_attention_decode_blocks(S::kColumns);
        status = (int32_t)cudaErrorLaunchOutOfResources;
        if (n_resident == 0) return;
        const dim3 grid(std::min(args->n_blocks, n_resident));
        status = orcd::launch(kernel, grid, dim3(S::kThreads), S::kSharedBytes, stream, *args);
    });
    return status;
}

extern "C" uint64_t orcd_attention_decode_partials(uint32_t max_tokens, uint32_t n_ctx, uint32_t n_heads,
                                                   uint32_t n_kv_heads, uint32_t d_head_pad) {
    const uint32_t group = n_heads / n_kv_heads, heads = group < orcd::kHeadsAnItem ? group : orcd::kHeadsAnItem;
    const uint64_t n_items = (uint64_t)max_tokens * orcd::div_ceil(n_ctx, orcd::kSplitTokens) * n_kv_heads *
                             orcd::div_ceil(group, orcd::kHeadsAnItem);
    return n_items * orcd::slots_floats(heads, d_head_pad);
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
