// prefill_matmul on Hopper: the same product as in kernel.cu, by wgmma instructions, with tiles copied by tensor maps.
//
// Shapes, aliasing, requires: as in kernel.cu.
// Mapping:  a block takes tiles of tokens times rows, one after the other. One thread beyond the consumers' (the
//           producer) copies 64 columns of both operands at a time into a ring in shared memory; every four of the
//           other warps (a consumer) multiply their 64 or 128 tokens of a tile by all of its rows, and write them.
//           Blocks of a cluster take tiles that lie side by side: each copies a part of what they share to all of
//           them, because reads from L2 are what limits. Tokens are the instruction's 64 rows, rows of w its columns.
// Cost:     see notes.md.
// Numerics: F16 products, F32 sums, each sum one chain of instructions of 16 columns in ascending order, whatever the
//           tile; so a token's bits depend neither on the number of tokens nor on the tile. They differ from those of
//           kernel.cu.
// Source:   hopper.cuh; the ring is that of CUTLASS's warp-specialised kernels.
#include "dependency.cuh"
#include "hopper.cuh"
#include "launch.h"
#include "mma.cuh"
#include "wgmma.h"

#include <algorithm>
#include <atomic>

namespace orcd {
namespace prefill {  // with a name: where bodies are empty, nameless things would count as unused

constexpr uint32_t kColumns = 64;  // of a step: the 128 bytes that the swizzle spans
constexpr uint32_t kRowBytes = kColumns * 2;
constexpr uint32_t kSwizzleBytes = 1024;  // what every operand is aligned to

// A tile of CONSUMERS * PARTS * 64 tokens times ROWS rows; clusters of TOKEN_BLOCKS x ROW_BLOCKS blocks.
template <uint32_t CONSUMERS, uint32_t PARTS, uint32_t ROWS, uint32_t STAGES, uint32_t TOKEN_BLOCKS,
          uint32_t ROW_BLOCKS, uint32_t BLOCKS_PER_SM>
struct Tile {
    static constexpr uint32_t kParts = PARTS, kRows = ROWS, kStages = STAGES, kBlocksPerSm = BLOCKS_PER_SM;
    static constexpr uint32_t kTokenBlocks = TOKEN_BLOCKS, kRowBlocks = ROW_BLOCKS,
                              kCluster = TOKEN_BLOCKS * ROW_BLOCKS;
    static constexpr uint32_t kTokens = CONSUMERS * PARTS * 64;
    // Two consumers leave a thread 168 registers, too few for the large tiles: then the producer is four warps as well,
    // and gives most of its registers away. (One warp would do, and take as many.)
    static constexpr bool kTrades = CONSUMERS > 1;
    static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // 128 * 40 + 256 * 232 = 384 * 168
    static constexpr uint32_t kConsumerWarps = CONSUMERS * 4, kThreads = kConsumerWarps * 32 + (kTrades ? 128 : 32);
    static constexpr uint32_t kXBytes = kTokens * kRowBytes, kStageBytes = kXBytes + kRows * kRowBytes;
    static constexpr uint32_t kSharedBytes = kStages * kStageBytes + kSwizzleBytes;  // the start has yet to be aligned
    static constexpr uint32_t kSums = ROWS / 2;                                      // of a thread, for each part
    // A block copies this many tokens of the tile, for all blocks with these tokens.
    static constexpr uint32_t kTokenSlice = kTokens / ROW_BLOCKS;

    static_assert(ROWS % 32 == 0, "gate and up, and then pairs of 8 rows");
    static_assert(kTokenSlice % 8 == 0 && kTokenSlice <= 256,
                  "eight rows are swizzled together; a box has 256 at most");
    static_assert((kSharedBytes + kSwizzleBytes) * kBlocksPerSm <= 226 * 1024,
                  "with the barriers, and what the driver keeps");
};

// How the rows of a tile are copied: in boxes, each of one matrix. The tile of GATE_UP is half gate and half up, so
// that a thread has both of what belongs together. Every block copies the boxes of its turn for all blocks with these
// rows.
template <class T, int OUTPUT> struct Rows {
    static constexpr uint32_t kMatrices = OUTPUT == ORCD_PREFILL_GATE_UP ? 2 : 1;
    static constexpr uint32_t kOfEach = T::kRows / kMatrices;  // rows of each matrix in a tile
    static constexpr uint32_t kBoxes = T::kTokenBlocks > kMatrices ? T::kTokenBlocks : kMatrices;
    static constexpr uint32_t kBoxRows = T::kRows / kBoxes, kBoxesPerBlock = kBoxes / T::kTokenBlocks;
    static_assert(kBoxes % kMatrices == 0 && kBoxes % T::kTokenBlocks == 0 && kBoxRows % 8 == 0 && kBoxRows <= 256, "");
};

// Maps first: they want 64 bytes of alignment.
struct Params {
    CUtensorMap x, w[2];
    orcd_prefill_matmul_args a;
    uint32_t n_token_clusters;  // clusters side by side over the tokens; they come first in the order of tiles
    uint32_t n_clusters;
};

// Where a block's ring stands. The parity changes with every round.
template <uint32_t STAGES> struct Place {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// A cluster's n-th tile, and this block's part of it.
template <class T> struct Position {
    uint32_t token_tile, row_tile;
    __device__ __forceinline__ Position(const Params &p, uint32_t cluster, uint32_t rank) {
        token_tile = cluster % p.n_token_clusters * T::kTokenBlocks + rank / T::kRowBlocks;
        row_tile = cluster / p.n_token_clusters * T::kRowBlocks + rank % T::kRowBlocks;
    }
};

template <class T> struct Shared {
    uint32_t ring, full, empty;  // addresses: of stages; of barriers, 8 bytes each
    __device__ __forceinline__ uint32_t x(uint32_t stage) const { return ring + stage * T::kStageBytes; }
    __device__ __forceinline__ uint32_t w(uint32_t stage) const { return x(stage) + T::kXBytes; }
};

// The producer: one thread.
template <class T, int OUTPUT>
__device__ __forceinline__ void copy_tiles(const Params &p, const Shared<T> &shared, uint32_t rank, uint32_t n_steps) {
    using R = Rows<T, OUTPUT>;
    const uint32_t token_block = rank / T::kRowBlocks, row_block = rank % T::kRowBlocks;
    // The blocks with the same tokens are neighbours by rank, those with the same rows kRowBlocks apart.
    uint16_t same_tokens = 0, same_rows = 0;
#pragma unroll
    for (uint32_t i = 0; i < T::kRowBlocks; i++) same_tokens |= 1 << (token_block * T::kRowBlocks + i);
#pragma unroll
    for (uint32_t i = 0; i < T::kTokenBlocks; i++) same_rows |= 1 << (i * T::kRowBlocks + row_block);

    Place<T::kStages> place;
    for (uint32_t cluster = blockIdx.x / T::kCluster; cluster < p.n_clusters; cluster += gridDim.x / T::kCluster) {
        const Position<T> at(p, cluster, rank);
        for (uint32_t step = 0; step < n_steps; step++, place.next()) {
            const uint32_t stage = place.stage, full = shared.full + stage * 8, column = step * kColumns;
            barrier_wait(shared.empty + stage * 8, place.parity ^ 1);  // in the first round at once
            barrier_expect(full, T::kStageBytes);
            const uint32_t slice = row_block * T::kTokenSlice;
            const uint32_t x = shared.x(stage) + slice * kRowBytes, token = at.token_tile * T::kTokens + slice;
            if constexpr (T::kRowBlocks > 1) {
                tile_copy_to(same_tokens, x, &p.x, column, token, full);
            } else {
                tile_copy(x, &p.x, column, token, full);
            }
#pragma unroll
            for (uint32_t i = 0; i < R::kBoxesPerBlock; i++) {
                const uint32_t box = token_block * R::kBoxesPerBlock + i, from = box * R::kBoxRows;  // row of the tile
                const uint32_t w = shared.w(stage) + from * kRowBytes;
                const uint32_t row = at.row_tile * R::kOfEach + from % R::kOfEach;
                const CUtensorMap *map = &p.w[from / R::kOfEach];
                if constexpr (T::kTokenBlocks > 1) {
                    tile_copy_to(same_rows, w, map, column, row, full);
                } else {
                    tile_copy(w, map, column, row, full);
                }
            }
        }
    }
    // The block stays until all that will arrive at its barriers has: others of the cluster do.
    for (uint32_t i = 0; i < T::kStages; i++, place.next())
        barrier_wait(shared.empty + place.stage * 8, place.parity ^ 1);
}

// Two neighbours of a row. In a tile that is whole both are there, and are read and written together.
__device__ __forceinline__ float2 load_two(const float *line, uint32_t row, uint32_t n_rows, bool whole) {
    if (whole) return *reinterpret_cast<const float2 *>(line + row);
    return make_float2(row < n_rows ? line[row] : 0.0f, row + 1 < n_rows ? line[row + 1] : 0.0f);
}
__device__ __forceinline__ void store_two(float *line, uint32_t row, uint32_t n_rows, bool whole, float2 v) {
    if (whole) {
        *reinterpret_cast<float2 *>(line + row) = v;
    } else {
        if (row < n_rows) line[row] = v.x;
        if (row + 1 < n_rows) line[row + 1] = v.y;
    }
}

// What is added to each sum of STORE and ADD: the bias, or what is there. Read before the sums are made, which hides
// the wait.
template <class T, int OUTPUT>
__device__ __forceinline__ void load_addends(const orcd_prefill_matmul_args &a, float (&addend)[T::kSums],
                                             uint32_t token, uint32_t row, bool whole) {
#pragma unroll
    for (uint32_t lower = 0; lower < 2; lower++) {
        const uint32_t t = token + lower * 8;
#pragma unroll
        for (uint32_t j = 0; j < T::kRows / 8; j++) {
            float2 v = make_float2(0.0f, 0.0f);
            if (OUTPUT == ORCD_PREFILL_STORE && a.bias) v = load_two(a.bias, row + j * 8, a.n_rows, false);
            if (OUTPUT == ORCD_PREFILL_ADD && t < a.n_tokens)
                v = load_two(a.out + (size_t)t * a.out_pitch, row + j * 8, a.n_rows, whole);
            addend[j * 4 + lower * 2] = v.x;
            addend[j * 4 + lower * 2 + 1] = v.y;
        }
    }
}

template <class T, int OUTPUT>
__device__ __forceinline__ void store_sums(const orcd_prefill_matmul_args &a, const float (&sum)[T::kSums],
                                           const float (&addend)[T::kSums], uint32_t token, uint32_t row,
                                           const float (&row_unscale)[2], bool whole) {
#pragma unroll
    for (uint32_t lower = 0; lower < 2; lower++) {
        const uint32_t t = token + lower * 8;
        if (t >= a.n_tokens) continue;
        const float factor = a.unscale[0] * row_unscale[lower];
        float *out = a.out + (size_t)t * a.out_pitch;
#pragma unroll
        for (uint32_t j = 0; j < T::kRows / 8; j++) {
            const uint32_t i = j * 4 + lower * 2;
            const float2 v = make_float2(addend[i] + sum[i] * factor, addend[i + 1] + sum[i + 1] * factor);
            store_two(out, row + j * 8, a.n_rows, whole, v);
        }
        if (OUTPUT == ORCD_PREFILL_ADD && a.probe) {
            float *probe = a.probe + (size_t)t * a.n_rows;
#pragma unroll
            for (uint32_t j = 0; j < T::kRows / 8; j++) {
                const uint32_t i = j * 4 + lower * 2;
                store_two(probe, row + j * 8, a.n_rows, false, make_float2(sum[i] * factor, sum[i + 1] * factor));
            }
        }
    }
}

// silu(gate) * up, right to 2^-17: 2^x is off by |x| 2^-24. Halves keep 11 bits.
__device__ __forceinline__ float activate(float gate, float up) {
    constexpr float kLog2E = 1.44269504f;
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(gate * -kLog2E));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return gate * inverse * up;
}

// Sums j < kRows / 16 are gates, the others the ups that belong to them. `first_row` is the tile's.
template <class T>
__device__ __forceinline__ void store_activations(const orcd_prefill_matmul_args &a, const float (&sum)[T::kSums],
                                                  uint32_t token, uint32_t first_row, const float (&row_unscale)[2],
                                                  const float (&ffn_scale)[2], bool whole) {
    constexpr uint32_t kUp = T::kSums / 2;
    const uint32_t t = threadIdx.x % 4, odd = t % 2;
#pragma unroll
    for (uint32_t lower = 0; lower < 2; lower++) {
        const bool is_token = token + lower * 8 < a.n_tokens;
        const float gate_factor = a.unscale[0] * row_unscale[lower], up_factor = a.unscale[1] * row_unscale[lower];
        uint16_t *act = reinterpret_cast<uint16_t *>(a.act) + (size_t)(token + lower * 8) * a.act_pitch;
#pragma unroll
        for (uint32_t j = 0; j < T::kRows / 16; j += 2) {
            uint32_t pair[2];  // of the blocks of 8 rows j and j + 1
#pragma unroll
            for (uint32_t k = 0; k < 2; k++) {
                const uint32_t i = (j + k) * 4 + lower * 2;
                pair[k] =
                    pack_half2(activate(sum[i] * gate_factor, sum[kUp + i] * up_factor) * ffn_scale[lower],
                               activate(sum[i + 1] * gate_factor, sum[kUp + i + 1] * up_factor) * ffn_scale[lower]);
            }
            // Neighbours swap a pair: even threads then have four rows of block j, odd ones of j + 1, and four threads'
            // writes fill 32 bytes.
            const uint32_t got = __shfl_xor_sync(0xFFFFFFFF, odd ? pair[0] : pair[1], 1);
            const uint2 four = odd ? make_uint2(got, pair[1]) : make_uint2(pair[0], got);
            const uint32_t row = first_row + (j + odd) * 8 + t / 2 * 4;
            if (!is_token) continue;
            if (whole) {
                *reinterpret_cast<uint2 *>(act + row) = four;
            } else {
                if (row < a.n_rows) act[row] = (uint16_t)four.x;
                if (row + 1 < a.n_rows) act[row + 1] = (uint16_t)(four.x >> 16);
                if (row + 2 < a.n_rows) act[row + 2] = (uint16_t)four.y;
                if (row + 3 < a.n_rows) act[row + 3] = (uint16_t)(four.y >> 16);
            }
        }
        if (!a.probe || !is_token) continue;
        float *probe = a.probe + (size_t)(token + lower * 8) * a.n_rows;
#pragma unroll
        for (uint32_t j = 0; j < T::kRows / 16; j++) {
            const uint32_t i = j * 4 + lower * 2;
            store_two(probe, first_row + j * 8 + t * 2, a.n_rows, false,
                      make_float2(activate(sum[i] * gate_factor, sum[kUp + i] * up_factor),
                                  activate(sum[i + 1] * gate_factor, sum[kUp + i + 1] * up_factor)));
        }
    }
}

// A consumer: four warps.
template <class T, int OUTPUT>
__device__ __forceinline__ void multiply_tiles(const Params &p, const Shared<T> &shared, uint32_t warp, uint32_t rank,
                                               uint32_t n_steps) {
    const orcd_prefill_matmul_args &a = p.a;
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t first_part = warp / 4 * T::kParts;
    // A stage has been read: the blocks that copy to this one, those with its tokens or its rows, may fill it again.
    const bool tells = lane < T::kCluster &&
                       (lane / T::kRowBlocks == rank / T::kRowBlocks || lane % T::kRowBlocks == rank % T::kRowBlocks);
    auto release = [&](uint32_t stage) {
        if (tells) barrier_arrive(shared.empty + stage * 8, lane);
    };
    // 8 bytes are written at a time, two floats or four halves.
    const bool aligned = OUTPUT == ORCD_PREFILL_GATE_UP ? a.act_pitch % 4 == 0 && (uintptr_t)a.act % 8 == 0
                                                        : a.out_pitch % 2 == 0 && (uintptr_t)a.out % 8 == 0;

    float sum[T::kParts][T::kSums];
    Place<T::kStages> place;
    for (uint32_t cluster = blockIdx.x / T::kCluster; cluster < p.n_clusters; cluster += gridDim.x / T::kCluster) {
        const Position<T> at(p, cluster, rank);
        // This thread's first token, of each part; its rows start at those of the tile (GATE_UP), or at its own two.
        const uint32_t token = at.token_tile * T::kTokens + first_part * 64 + warp % 4 * 16 + lane / 4;
        const uint32_t first_row = at.row_tile * Rows<T, OUTPUT>::kOfEach;
        const uint32_t row = first_row + (OUTPUT == ORCD_PREFILL_GATE_UP ? 0 : lane % 4 * 2);
        const bool whole = aligned && first_row + Rows<T, OUTPUT>::kOfEach <= a.n_rows;
        float row_unscale[T::kParts][2], ffn_scale[T::kParts][2], addend[T::kSums];
#pragma unroll
        for (uint32_t m = 0; m < T::kParts; m++) {
#pragma unroll
            for (uint32_t lower = 0; lower < 2; lower++) {
                const uint32_t t = min(token + m * 64 + lower * 8, a.n_tokens - 1);
                row_unscale[m][lower] = a.row_unscale ? a.row_unscale[t] : 1.0f;
                ffn_scale[m][lower] = OUTPUT == ORCD_PREFILL_GATE_UP ? a.ffn_scale[t] : 1.0f;
            }
        }
        if constexpr (OUTPUT != ORCD_PREFILL_GATE_UP) load_addends<T, OUTPUT>(a, addend, token, row, whole);

        __syncwarp();         // the instructions below are all lanes' together; tiles written at the edge may part them
        uint32_t before = 0;  // the stage of the step before
        for (uint32_t step = 0; step < n_steps; step++, place.next()) {
            barrier_wait(shared.full + place.stage * 8, place.parity);
            const uint64_t x = wgmma_operand(shared.x(place.stage) + first_part * 64 * kRowBytes);
            const uint64_t w = wgmma_operand(shared.w(place.stage));
            wgmma_fence();
#pragma unroll
            for (uint32_t k = 0; k < kColumns / 16; k++) {
#pragma unroll
                for (uint32_t m = 0; m < T::kParts; m++)
                    wgmma<T::kRows>(sum[m], x + m * (64 * kRowBytes >> 4) + k * kOperandStep, w + k * kOperandStep,
                                    step > 0 || k > 0);
            }
            wgmma_commit();
            wgmma_wait<1>();  // all but this step's
            if (step > 0) release(before);
            before = place.stage;
        }
        wgmma_wait<0>();
#pragma unroll
        for (uint32_t m = 0; m < T::kParts; m++) wgmma_landed(sum[m]);
        release(before);

#pragma unroll
        for (uint32_t m = 0; m < T::kParts; m++) {
            if constexpr (OUTPUT == ORCD_PREFILL_GATE_UP) {
                store_activations<T>(a, sum[m], token + m * 64, row, row_unscale[m], ffn_scale[m], whole);
            } else {
                static_assert(T::kParts == 1, "addends are one part's");
                store_sums<T, OUTPUT>(a, sum[m], addend, token, row, row_unscale[m], whole);
            }
        }
    }
}

template <class T, int OUTPUT>
__global__ void __launch_bounds__(T::kThreads, T::kBlocksPerSm)
    producer_and_consumers(const __grid_constant__ Params p) {
#ifdef ORCD_HOPPER
    extern __shared__ __align__(16) char dynamic[];
    __shared__ __align__(8) uint64_t full[T::kStages], empty[T::kStages];
    const Shared<T> shared{(shared_address(dynamic) + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes,
                           shared_address(full), shared_address(empty)};
    const uint32_t warp =
        __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0);  // the compiler sees that all lanes have the same
    const uint32_t rank = T::kCluster > 1 ? cluster_rank() : 0;
    const uint32_t n_steps = div_ceil(p.a.n_cols, kColumns);

    if (threadIdx.x == 0) {
        tile_prefetch_map(&p.x);
        tile_prefetch_map(&p.w[0]);
        if (OUTPUT == ORCD_PREFILL_GATE_UP) tile_prefetch_map(&p.w[1]);
        for (uint32_t stage = 0; stage < T::kStages; stage++) {
            barrier_init(shared.full + stage * 8, 1);
            barrier_init(shared.empty + stage * 8, T::kConsumerWarps * (T::kTokenBlocks + T::kRowBlocks - 1));
        }
        barrier_init_fence();
    }
    __syncwarp();
    // Nobody copies to a block, or arrives there, before its barriers are.
    if constexpr (T::kCluster > 1) {
        cluster_sync_barriers();
    } else {
        __syncthreads();
    }
    let_successor_start();
    wait_for_predecessor();  // weights too may have been written by it: those that had to be dequantized

    if (warp >= T::kConsumerWarps) {
        if constexpr (T::kTrades) set_registers_down<T::kProducerRegisters>();
        if (threadIdx.x == T::kConsumerWarps * 32) copy_tiles<T, OUTPUT>(p, shared, rank, n_steps);
    } else {
        if constexpr (T::kTrades) set_registers_up<T::kConsumerRegisters>();
        multiply_tiles<T, OUTPUT>(p, shared, warp, rank, n_steps);
    }
#endif
}

// ---- The host's side.

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without linking the driver; null where it is too old to have it.
EncodeTiled encode_tiled() {
    static const EncodeTiled function = [] {
        void *found = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        cudaError_t status =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        if (status != cudaSuccess) cudaGetLastError();
        return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(found)
                                                                              : nullptr;
    }();
    return function;
}

// Boxes of `box_rows` rows and 64 columns of [n_rows, n_cols], n_cols padded to 32. What is outside counts as zeros:
// rows beyond the last, and the second half of the last step.
bool encode(CUtensorMap &map, const orcd_f16 *values, uint32_t n_rows, uint32_t n_cols, uint32_t pitch,
            uint32_t box_rows) {
    const cuuint64_t size[2] = {div_ceil(n_cols, ORCD_CHUNK) * (cuuint64_t)ORCD_CHUNK, n_rows};
    const cuuint64_t row_bytes[1] = {(cuuint64_t)pitch * 2};
    const cuuint32_t box[2] = {kColumns, box_rows}, stride[2] = {1, 1};
    return encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<orcd_f16 *>(values), size, row_bytes,
                          box, stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// A launch of `n_clusters` clusters.
template <class T> struct Config {
    cudaLaunchAttribute attributes[2]{};
    cudaLaunchConfig_t config{};

    Config(uint32_t n_clusters, cudaStream_t stream) {
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim.x = T::kCluster;
        attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
        attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[1].val.programmaticStreamSerializationAllowed = 1;
        config.gridDim = dim3(n_clusters * T::kCluster);
        config.blockDim = dim3(T::kThreads);
        config.dynamicSmemBytes = T::kSharedBytes;
        config.stream = stream;
        config.attrs = attributes;
        config.numAttrs = dependent_launch() ? 2 : 1;
    }
    Config(const Config &) = delete;
    Config &operator=(const Config &) = delete;
};

constexpr int kMaxDevices = 64;  // beyond it, the launcher takes the other path

// How many clusters the current device holds at once; 0 where it cannot run this kernel. Prepares the kernel, once a
// device.
template <class T, int OUTPUT> uint32_t clusters_at_once() {
    constexpr uint32_t kUnknown = 0, kNone = 1, kSome = 2;  // kSome + n
    static std::atomic<uint32_t> known[kMaxDevices];
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return 0;
    uint32_t value = known[device].load(std::memory_order_relaxed);
    if (value == kUnknown) {
        const auto kernel = producer_and_consumers<T, OUTPUT>;
        int n = 0;
        cudaFuncAttributes facts{};
        const Config<T> one(1, nullptr);
        // Compiled for anything but sm_90a the body is empty, and has no barriers.
        const bool runs =
            encode_tiled() && cudaFuncGetAttributes(&facts, kernel) == cudaSuccess && facts.sharedSizeBytes > 0 &&
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes) == cudaSuccess &&
            cudaOccupancyMaxActiveClusters(&n, kernel, &one.config) == cudaSuccess;
        cudaGetLastError();  // no device of this kind is no error
        value = runs && n > 0 ? kSome + (uint32_t)n : kNone;
        known[device].store(value, std::memory_order_relaxed);  // others find the same
    }
    return value >= kSome ? value - kSome : 0;
}

template <class T, int OUTPUT> uint32_t clusters_needed(const orcd_prefill_matmul_args &a) {
    return div_ceil(a.n_tokens, T::kTokens * T::kTokenBlocks) *
           div_ceil(a.n_rows, Rows<T, OUTPUT>::kOfEach * T::kRowBlocks);
}

// What a tile is estimated to cost, in cycles of a multiprocessor; only to compare tiles by. All ones where it does not
// run.
//
// A step of 64 columns takes as long as the slowest of: 2,048 products a cycle; 64 bytes a cycle into shared memory; 32
// bytes a cycle out of L2, of which a cluster reads together, if all multiprocessors read. Then come what a tile takes
// to begin and to be written.
template <class T, int OUTPUT> uint64_t cycles(const orcd_prefill_matmul_args &a) {
    const uint32_t active = clusters_at_once<T, OUTPUT>();
    if (active == 0) return UINT64_MAX;
    const uint64_t at_once = std::max(active / T::kBlocksPerSm, 1u);
    const uint64_t n = clusters_needed<T, OUTPUT>(a), n_steps = div_ceil(a.n_cols, kColumns);
    const uint64_t multiply = T::kTokens * T::kRows * kColumns / 2048;
    const uint64_t arrive = (T::kTokens + T::kRows) * kRowBytes / 64;
    const uint64_t read =
        (T::kTokens / T::kRowBlocks + T::kRows / T::kTokenBlocks) * kRowBytes / 32 * std::min(n, at_once) / at_once;
    return div_ceil((uint32_t)n, (uint32_t)at_once) *
           (n_steps * std::max({multiply, arrive, read}) + 1000 + T::kTokens * T::kRows / 16);
}

template <class T, int OUTPUT> int32_t launch_tile(const orcd_prefill_matmul_args &a, orcd_stream stream) {
    using R = Rows<T, OUTPUT>;
    const uint32_t at_once = clusters_at_once<T, OUTPUT>();
    if (at_once == 0) return (int32_t)cudaErrorNotSupported;
    Params p{};
    p.a = a;
    p.n_token_clusters = div_ceil(a.n_tokens, T::kTokens * T::kTokenBlocks);
    p.n_clusters = clusters_needed<T, OUTPUT>(a);
    bool encoded = encode(p.x, a.x, a.n_tokens, a.n_cols, a.x_pitch, T::kTokenSlice);
    for (uint32_t i = 0; i < R::kMatrices; i++)
        encoded &= encode(p.w[i], a.w[i], a.n_rows, a.n_cols, a.w_pitch, R::kBoxRows);
    if (!encoded) return (int32_t)cudaErrorInvalidValue;
    const Config<T> all(std::min(p.n_clusters, at_once), stream);
    return (int32_t)cudaLaunchKernelEx(&all.config, producer_and_consumers<T, OUTPUT>, p);
}

struct Candidate {
    uint64_t (*cycles)(const orcd_prefill_matmul_args &);
    int32_t (*launch)(const orcd_prefill_matmul_args &, orcd_stream);
};
template <class T, int OUTPUT> constexpr Candidate candidate() { return {cycles<T, OUTPUT>, launch_tile<T, OUTPUT>}; }

//                consumers, parts, rows, stages, cluster, blocks an SM
using Narrow = Tile<1, 1, 64, 6, 2, 2, 2>;   // for 896 rows and 512 tokens
using Middle = Tile<1, 1, 96, 5, 2, 2, 2>;   // for 1,152 rows and 512 tokens
using Square = Tile<2, 1, 128, 6, 2, 1, 1>;  // for 2,048 tokens
using Broad = Tile<2, 1, 160, 5, 2, 1, 1>;   // for 1,152 rows and 2,048 tokens
using Huge = Tile<2, 2, 160, 4, 1, 2, 1>;    // for gate and up

template <size_t N>
int32_t launch_one(const Candidate (&all)[N], const orcd_prefill_matmul_args &a, uint32_t tile, orcd_stream stream) {
    if (tile != kBestTile) return tile < N ? all[tile].launch(a, stream) : (int32_t)cudaErrorInvalidValue;
    const Candidate *best = nullptr;
    uint64_t least = UINT64_MAX;
    for (const Candidate &c : all) {
        const uint64_t cost = c.cycles(a);
        if (cost < least) {
            least = cost;
            best = &c;
        }
    }
    return best ? best->launch(a, stream) : (int32_t)cudaErrorNotSupported;
}

template <int OUTPUT> int32_t launch_output(const orcd_prefill_matmul_args &a, uint32_t tile, orcd_stream stream) {
    static constexpr Candidate kAll[] = {candidate<Narrow, OUTPUT>(), candidate<Middle, OUTPUT>(),
                                         candidate<Square, OUTPUT>(), candidate<Broad, OUTPUT>()};
    return launch_one(kAll, a, tile, stream);
}

template <>
int32_t launch_output<ORCD_PREFILL_GATE_UP>(const orcd_prefill_matmul_args &a, uint32_t tile, orcd_stream stream) {
    constexpr int kOutput = ORCD_PREFILL_GATE_UP;
    static constexpr Candidate kAll[] = {candidate<Narrow, kOutput>(), candidate<Middle, kOutput>(),
                                         candidate<Square, kOutput>(), candidate<Broad, kOutput>(),
                                         candidate<Huge, kOutput>()};
    return launch_one(kAll, a, tile, stream);
}

}  // namespace prefill

bool has_prefill_wgmma() { return prefill::clusters_at_once<prefill::Narrow, ORCD_PREFILL_STORE>() > 0; }

int32_t prefill_wgmma(const orcd_prefill_matmul_args &args, uint32_t tile, orcd_stream stream) {
    switch (args.output) {
        case ORCD_PREFILL_STORE: return prefill::launch_output<ORCD_PREFILL_STORE>(args, tile, stream);
        case ORCD_PREFILL_ADD: return prefill::launch_output<ORCD_PREFILL_ADD>(args, tile, stream);
        default: return prefill::launch_output<ORCD_PREFILL_GATE_UP>(args, tile, stream);
    }
}

}  // namespace orcd
