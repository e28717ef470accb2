// attention_prefill: out[row, h] = sum_t softmax_t(q[row, h] . k[t, h / group] / sqrt(d_head)) v[t, h / group],
//     over t = 0..=position.
//
// Shapes:   q [n_tokens, n_heads, d_head] f32; keys and values [block, n_kv_heads, 16, d_head_pad] f16, by the block
//           table; out [n_tokens, out_pitch] f16.
// Aliasing: none.
// Mapping:  FlashAttention-2 with GQA packing. A block has 64 (row, query head) pairs of one KV head, 16 a warp, and
//           goes through the context in tiles of 64 tokens, the next one copied while this one is computed on.
// Requires: d_head even; d_head_pad 16, 32, 64, 128 or 256; tiles as documented. The launcher checks all
//           but the tiles.
// Cost:     6 n_heads d_head operations a (row, visible token): queries count twice. Keys and values are read from L2
//           once for 64 (row, query head) pairs. Bound by matrix instructions, and by ldmatrix, which feeds only 16
//           rows a warp.
// Numerics: scores in F32 from queries of 22 bits and keys in F16; weights rounded to F16, the rounded ones
//           summed in F32. Every row goes through the same tiles, aligned to position 0, in ascending order; those
//           beyond its position change nothing (factor 1, weights 0). So a row's bits depend on its position and the
//           model's shape alone.
// Source:   Dao 2023, "FlashAttention-2"; Milakov & Gimelshein 2018 (online softmax).
#include "attention.cuh"
#include "dependency.cuh"
#include "launch.h"
#include "worker_cuda.h"

namespace orcd {
namespace {

using namespace attention;

constexpr uint32_t kWarps = 4;
constexpr uint32_t kThreads = kWarps * 32;
// Pairs of a row and a query head that a block has.
constexpr uint32_t kPairs = kWarps * 16;

// What a block has for heads of D columns: shared memory stays below the 99 KB of small GPUs.
template <int D> struct Shape {
    static constexpr uint32_t kTokens = D == 256 ? 32 : 64;  // of a tile
    static constexpr uint32_t kStages = D == 256 ? 1 : 2;    // tiles in shared memory
    static constexpr bool kKeepsQuery = D <= 128;            // in registers
    static constexpr int kBlocksAnSm = D <= 64 ? 3 : D == 128 ? 2 : 1;
    static constexpr uint32_t kTileHalves = kTokens * D;
    static constexpr uint32_t kSharedBytes = (2 * kPairs * D + kStages * 2 * kTileHalves) * 2;
};

// What a block works on: pairs of a row and a query head of one KV head; pair p is row p / group, head p % group.
struct Work {
    orcd_attention_tile tile;
    uint32_t group, kv_head, first_pair, n_pairs;
    uint32_t position, last_position;  // of the tile's rows
};

// Zeros for the columns that pad the tile's rows; for all of them where the rows pad the batch.
__device__ __forceinline__ void clear_padding(const orcd_attention_prefill_args &a, const Work &work, __half *out) {
    const uint32_t from = work.position == kPaddingRow ? 0 : a.n_heads * a.d_head;
    for (uint32_t row = 0; row < work.tile.n_rows; row++)
        for (uint32_t i = from + threadIdx.x; i < a.out_pitch; i += kThreads)
            out[(size_t)row * a.out_pitch + i] = __ushort_as_half(0);
}

// Starts to copy the keys and values of tile `j` of the context; zeros beyond the last position.
template <int D>
__device__ __forceinline__ void load_tile(const orcd_attention_prefill_args &a, const Work &work,
                                          const uint32_t *blocks, uint32_t j, __half *keys, __half *values) {
    using S = Shape<D>;
    static_assert(S::kTileHalves / 8 % kThreads == 0, "all threads copy the same number of chunks");
#pragma unroll
    for (uint32_t i = 0; i < S::kTileHalves / 8 / kThreads; i++) {
        const uint32_t c = threadIdx.x + i * kThreads, row = c / (D / 8), chunk = c % (D / 8);
        const uint32_t token = j * S::kTokens + row, slot = token % kBlockTokens;
        const uint32_t block = blocks[min(token, work.last_position) / kBlockTokens];
        const size_t from = (((size_t)block * a.n_kv_heads + work.kv_head) * kBlockTokens + slot) * D + chunk * 8;
        const uint32_t at = swizzled<D>(row, chunk);
        copy_async_16(shared_address(keys + at), a.k_pool + from, token <= work.last_position);
        copy_async_16(shared_address(values + at), a.v_pool + from, token <= work.last_position);
    }
}

// The block's queries, zeros beyond the last pair.
template <int D>
__device__ __forceinline__ void load_queries(const orcd_attention_prefill_args &a, const Work &work, __half *q_high,
                                             __half *q_low) {
    for (uint32_t i = threadIdx.x; i < kPairs * (D / 2); i += kThreads) {
        const uint32_t local = i / (D / 2), columns = i % (D / 2), pair = work.first_pair + local;
        float2 q = make_float2(0, 0);
        if (pair < work.n_pairs && 2 * columns < a.d_head) {
            const size_t row = work.tile.first_row + pair / work.group;
            const size_t head = row * a.n_heads + work.kv_head * work.group + pair % work.group;
            q = load_written_8(a.q + head * a.d_head + 2 * columns);
        }
        store_query<D>(q_high, q_low, local, columns, q);
    }
}

template <int D>
__global__ void __launch_bounds__(kThreads, Shape<D>::kBlocksAnSm) attend(orcd_attention_prefill_args a) {
    using S = Shape<D>;
    constexpr int kSteps = D / 16, kStepsOfTokens = S::kTokens / 16;
    extern __shared__ __align__(128) unsigned char memory[];
    __half *q_high = reinterpret_cast<__half *>(memory);  // [pairs, D]
    __half *q_low = q_high + kPairs * D;                  // [pairs, D]
    __half *ring = q_low + kPairs * D;                    // [stages, keys and values, tokens, D]
    auto keys_of = [&](uint32_t j) { return ring + j % S::kStages * 2 * S::kTileHalves; };

    let_successor_start();
    wait_for_predecessor();
    const uint32_t blocks_a_kv_head = gridDim.x / a.n_kv_heads;
    Work work;
    work.tile = a.tiles[blockIdx.y];
    work.group = a.n_heads / a.n_kv_heads;
    work.kv_head = blockIdx.x / blocks_a_kv_head;
    work.first_pair = blockIdx.x % blocks_a_kv_head * kPairs;
    work.n_pairs = work.tile.n_rows * work.group;
    work.position = a.positions[work.tile.first_row];
    work.last_position = work.position + work.tile.n_rows - 1;
    if (work.n_pairs > blocks_a_kv_head * kPairs) __trap();
    __half *out = reinterpret_cast<__half *>(a.out) + (size_t)work.tile.first_row * a.out_pitch;
    if (blockIdx.x == 0) clear_padding(a, work, out);
    if (work.position == kPaddingRow || work.first_pair >= work.n_pairs) return;

    const uint32_t n_tiles = work.last_position / S::kTokens + 1;
    const uint32_t *blocks = a.block_table + a.table_start[work.tile.first_row];
    auto load = [&](uint32_t j) {
        load_tile<D>(a, work, blocks, j, keys_of(j), keys_of(j) + S::kTileHalves);
        copy_async_commit();
    };
    if (S::kStages > 1) load(0);
    load_queries<D>(a, work, q_high, q_low);
    __syncthreads();

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float scale = kLog2e / sqrtf((float)a.d_head);
    const uint32_t upper_pair = work.first_pair + warp * 16 + g, lower_pair = upper_pair + 8;
    // Pairs beyond the last compute the last row's mask with queries of zero, so that no row is without a token.
    const uint32_t upper_position = min(work.position + upper_pair / work.group, work.last_position);
    const uint32_t lower_position = min(work.position + lower_pair / work.group, work.last_position);
    auto load_query = [&](uint32_t (&high)[4], uint32_t (&low)[4], int k) {
        const uint32_t at = swizzled<D>(warp * 16 + row_of_lane(lane), 2 * k + chunk_of_lane(lane));
        ldmatrix_x4(high, shared_address(q_high + at));
        ldmatrix_x4(low, shared_address(q_low + at));
    };
    uint32_t kept_high[S::kKeepsQuery ? kSteps : 1][4], kept_low[S::kKeepsQuery ? kSteps : 1][4];
    if constexpr (S::kKeepsQuery) {
#pragma unroll
        for (int k = 0; k < kSteps; k++) load_query(kept_high[k], kept_low[k], k);
    }

    Softmax upper, lower;
    float acc[D / 8][4] = {};
    for (uint32_t j = 0; j < n_tiles; j++) {
        const uint32_t ahead = j + S::kStages - 1;
        if (ahead < n_tiles) load(ahead);
        else copy_async_commit();
        copy_async_wait<S::kStages - 1>();
        __syncthreads();
        const __half *keys = keys_of(j), *values = keys + S::kTileHalves;

        float s[2 * kStepsOfTokens][4] = {};
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
            uint32_t (&qh)[4] = kept_high[S::kKeepsQuery ? k : 0], (&ql)[4] = kept_low[S::kKeepsQuery ? k : 0];
            if constexpr (!S::kKeepsQuery) load_query(qh, ql, k);
#pragma unroll
            for (int n = 0; n < kStepsOfTokens; n++) {
                uint32_t b[4];
                const uint32_t row = n * 16 + key_row_of_lane(lane), chunk = 2 * k + key_chunk_of_lane(lane);
                ldmatrix_x4(b, shared_address(keys + swizzled<D>(row, chunk)));
                mma_16816(s[2 * n], qh[0], qh[1], qh[2], qh[3], b[0], b[1]);
                mma_16816(s[2 * n + 1], qh[0], qh[1], qh[2], qh[3], b[2], b[3]);
                mma_16816(s[2 * n], ql[0], ql[1], ql[2], ql[3], b[0], b[1]);
                mma_16816(s[2 * n + 1], ql[0], ql[1], ql[2], ql[3], b[2], b[3]);
            }
        }

        if ((j + 1) * S::kTokens - 1 > work.position) {  // some row does not see all of the tile
#pragma unroll
            for (int n = 0; n < 2 * kStepsOfTokens; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const uint32_t token = j * S::kTokens + n * 8 + 2 * t + c % 2;
                    if (token > (c < 2 ? upper_position : lower_position)) s[n][c] = -INFINITY;
                }
        }
        float upper_largest = -INFINITY, lower_largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < 2 * kStepsOfTokens; n++) {
            upper_largest = fmaxf(upper_largest, fmaxf(s[n][0], s[n][1]));
            lower_largest = fmaxf(lower_largest, fmaxf(s[n][2], s[n][3]));
        }
        const float upper_factor = upper.raise(maximum_of_quad(upper_largest), scale);
        const float lower_factor = lower.raise(maximum_of_quad(lower_largest), scale);
        if (__any_sync(~0u, upper_factor != 1.0f || lower_factor != 1.0f)) {
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                acc[n][0] *= upper_factor;
                acc[n][1] *= upper_factor;
                acc[n][2] *= lower_factor;
                acc[n][3] *= lower_factor;
            }
        }
#pragma unroll
        for (int n = 0; n < kStepsOfTokens; n++) {
            const uint32_t p0 = upper.weights(s[2 * n][0], s[2 * n][1], scale);
            const uint32_t p1 = lower.weights(s[2 * n][2], s[2 * n][3], scale);
            const uint32_t p2 = upper.weights(s[2 * n + 1][0], s[2 * n + 1][1], scale);
            const uint32_t p3 = lower.weights(s[2 * n + 1][2], s[2 * n + 1][3], scale);
#pragma unroll
            for (int k = 0; k < kSteps; k++) {
                uint32_t b[4];
                const uint32_t row = n * 16 + row_of_lane(lane), chunk = 2 * k + chunk_of_lane(lane);
                ldmatrix_x4_transposed(b, shared_address(values + swizzled<D>(row, chunk)));
                mma_16816(acc[2 * k], p0, p1, p2, p3, b[0], b[1]);
                mma_16816(acc[2 * k + 1], p0, p1, p2, p3, b[2], b[3]);
            }
        }
        __syncthreads();  // the next turn overwrites this stage
    }

    const float upper_inverse = 1.0f / sum_of_quad(upper.sum), lower_inverse = 1.0f / sum_of_quad(lower.sum);
    auto write = [&](uint32_t pair, uint32_t c, float x, float y) {
        if (pair >= work.n_pairs || c >= a.d_head) return;
        __half *to = out + (size_t)(pair / work.group) * a.out_pitch +
                     (work.kv_head * work.group + pair % work.group) * a.d_head + c;
        *reinterpret_cast<__half2 *>(to) = to_halves(x, y);
    };
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        write(upper_pair, n * 8 + 2 * t, acc[n][0] * upper_inverse, acc[n][1] * upper_inverse);
        write(lower_pair, n * 8 + 2 * t, acc[n][2] * lower_inverse, acc[n][3] * lower_inverse);
    }
}

template <int D> int32_t launch_for(const orcd_attention_prefill_args &args, orcd_stream stream) {
    const uint32_t group = args.n_heads / args.n_kv_heads;
    const uint32_t blocks_a_kv_head =
        div_ceil(orcd_attention_prefill_tile_rows(args.n_heads, args.n_kv_heads) * group, kPairs);
    const cudaError_t status =
        cudaFuncSetAttribute(attend<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape<D>::kSharedBytes);
    if (status != cudaSuccess) return (int32_t)status;
    return launch(attend<D>, dim3(args.n_kv_heads * blocks_a_kv_head, args.n_tiles), dim3(kThreads),
                  Shape<D>::kSharedBytes, stream, args);
}

}  // namespace
}  // namespace orcd

extern "C" uint32_t orcd_attention_prefill_tile_rows(uint32_t n_heads, uint32_t n_kv_heads) {
    const uint32_t group = n_heads / n_kv_heads;
    return group < orcd::kPairs ? orcd::kPairs / group : 1;
}

extern "C" int32_t orcd_attention_prefill(const orcd_attention_prefill_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->q && args->k_pool && args->v_pool && args->block_table && args->table_start &&
                 args->positions);
    ORCD_REQUIRE(args->tiles && args->out && args->n_tiles > 0 && args->n_tiles <= 65535);
    ORCD_REQUIRE(args->n_kv_heads > 0 && args->n_heads > 0 && args->n_heads % args->n_kv_heads == 0);
    ORCD_REQUIRE(args->d_head > 0 && args->d_head % 2 == 0 && args->d_head <= args->d_head_pad);
    ORCD_REQUIRE(args->out_pitch % 2 == 0 && args->out_pitch >= (uint64_t)args->n_heads * args->d_head);
    ORCD_REQUIRE(orcd::is_aligned(args->k_pool, 16) && orcd::is_aligned(args->v_pool, 16));
    ORCD_REQUIRE(orcd::is_aligned(args->q, 8) && orcd::is_aligned(args->out, 4));
    switch (args->d_head_pad) {
        case 16: return orcd::launch_for<16>(*args, stream);
        case 32: return orcd::launch_for<32>(*args, stream);
        case 64: return orcd::launch_for<64>(*args, stream);
        case 128: return orcd::launch_for<128>(*args, stream);
        case 256: return orcd::launch_for<256>(*args, stream);
        default: return (int32_t)cudaErrorInvalidValue;
    }
}
