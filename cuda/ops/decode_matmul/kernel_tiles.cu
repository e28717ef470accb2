// decode_matmul on Hopper, for F16 weights and more than 32 tokens: the sums of kernel.cu, bit for bit, in tiles that reuse
// what they read.
//
// Shapes, aliasing: as in kernel.cu.
// Mapping:  a block takes tiles of rows times tokens, of one split, one after the other. A warp of its own (the producer) copies
//           64 columns of both operands at a time into a ring in shared memory; the eight others (the consumers) each multiply
//           their part of the tile, all its columns. A tile's rows are two halves: the first rows of its pairs, and the partners.
// Requires: rows and activations padded to 32 columns, 16-byte aligned; pairs of rows in runs of eight.
// Cost:     from L2, n_rows * n_tokens * n_cols * 2 bytes * (1 / rows of a tile + 1 / its tokens). See notes.md.
// Numerics: a warp goes through the slices of kernel.cu one after the other: a chain of matrix instructions from zero for each,
//           then added to what the slices before it gave. The same columns meet in the same places of the same instructions.
#include "common.cuh"
#include "dependency.cuh"
#include "hopper.cuh"
#include "tensor_map.h"
#include "tiles.h"

#include <algorithm>
#include <atomic>

namespace orcd {
namespace decode_tiles_kernel {  // with a name: where bodies are empty, nameless things would count as unused

constexpr uint32_t kMaxSplits = 8;        // beyond it, the other kernel is taken
constexpr uint32_t kLineBytes = 128;      // of a row or a token in a stage: two chunks
constexpr uint32_t kSwizzleBytes = 1024;  // eight lines, whose 16-byte pieces are swizzled together

// Consumers along the rows and each one's tiles of 16, consumers along the tokens and each one's tiles of 8.
template <int WARPS_M, int M, int WARPS_N, int N, int STAGES, int STAGE_COST = 0, int END_COST = 0> struct Tile {
    static constexpr uint64_t kStageCost = STAGE_COST, kEndCost = END_COST;  // see cost_of
    static constexpr int kM = M, kWarpsN = WARPS_N, kN = N, kStages = STAGES;
    static constexpr int kConsumers = WARPS_M * WARPS_N;
    // Nine warps leave a thread 168 registers, too few for the large tiles: then the producer is four warps (of which one works),
    // and gives most of its registers away.
    static constexpr bool kTrades = M * N >= 12;
    static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // 128 * 40 + 256 * 232 = 384 * 168
    static constexpr int kThreads = (kConsumers + (kTrades ? 4 : 1)) * 32;
    static constexpr int kTilePairs = WARPS_M * M * kPairs, kRows = 2 * kTilePairs, kTokens = WARPS_N * N * 8;
    static constexpr int kLines = kRows + kTokens;
    static constexpr uint32_t kStageBytes = kLines * kLineBytes;
    static constexpr uint32_t kSharedBytes = STAGES * kStageBytes + kSwizzleBytes;  // the start has yet to be aligned
    static_assert(kRows <= 256 && kTokens <= 256, "of one box");
    static_assert(kConsumers == 8, "two groups of four warps");
};

// Maps first: they want 64 bytes of alignment.
struct Params {
    CUtensorMap w[3], x;
    orcd_decode_matmul_args a;
    uint32_t n_row_tiles, n_token_tiles, n_tiles;
    float scales[3];                                // of each matrix's products
    uint16_t slices[kMaxSplits * kWarps + 1];       // where the slices of all splits begin, in chunks, and the last one ends
    uint32_t zero;                                  // 0, but the compiler does not know: see Sums::multiply
};

// Where a tile lies. Tokens vary fastest: blocks that run together read the same weights.
template <class T> struct TileAt {
    uint32_t first_pair, first_token, split, begin, end;  // the last two: chunks
    __device__ __forceinline__ TileAt(const Params &p, uint32_t tile) {
        const uint32_t rest = tile / p.n_token_tiles;
        split = rest / p.n_row_tiles;
        first_token = (tile - rest * p.n_token_tiles) * T::kTokens;
        first_pair = (rest - split * p.n_row_tiles) * T::kTilePairs;
        begin = p.slices[split * kWarps];
        end = p.slices[(split + 1) * kWarps];
    }
};

// Which row a pair of a tile begins with, or ends with. Where the product is stored, what a pair is does not matter.
template <int OUTPUT, class T> __device__ __forceinline__ RowRef row_in_tile(const orcd_decode_matmul_args &a, uint32_t pair, bool second) {
    if (OUTPUT != ORCD_DECODE_STORE) return row_of<OUTPUT>(a, pair, second);
    return {0, pair / T::kTilePairs * T::kRows + pair % T::kTilePairs + (second ? T::kTilePairs : 0)};
}

// Rows that are copied together.
template <int OUTPUT, class T> __host__ __device__ constexpr uint32_t box_rows() {
    return OUTPUT == ORCD_DECODE_STORE ? T::kRows : OUTPUT == ORCD_DECODE_GATE_UP ? T::kTilePairs : kPairs;
}

template <int OUTPUT> __host__ __device__ constexpr uint32_t n_matrices() {
    return OUTPUT == ORCD_DECODE_QKV ? 3 : OUTPUT == ORCD_DECODE_GATE_UP ? 2 : 1;
}

// Where a block's ring stands. The parity changes with every round.
template <int STAGES> struct Place {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

struct Ring {
    uint32_t stages, full, empty;  // addresses: of stages; of barriers, 8 bytes each
};

// The producer: one warp. A lane copies one box of a tile's rows, the last lane its tokens.
template <int OUTPUT, class T> __device__ __forceinline__ void copy_tiles(const Params &p, const Ring &ring) {
    constexpr uint32_t kBoxRows = box_rows<OUTPUT, T>(), kBoxes = T::kRows / kBoxRows, kTokensLane = 31;
    static_assert(kBoxes <= kTokensLane, "a box for a lane");
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t last_pair = n_pairs<OUTPUT>(p.a) - 1;
    Place<T::kStages> place;
    // A stage's rows, or its tokens.
    auto copy = [&](const RowRef &from, uint32_t first_token, bool tokens, uint32_t chunk) {
        const uint32_t full = ring.full + place.stage * 8, to = ring.stages + place.stage * T::kStageBytes;
        if (tokens) {
            if (lane == kTokensLane) tile_copy(to + T::kRows * kLineBytes, &p.x, chunk * ORCD_CHUNK, first_token, full);
        } else if (lane < kBoxes) {
            const CUtensorMap *map = from.matrix == 0 ? &p.w[0] : from.matrix == 1 ? &p.w[1] : &p.w[2];
            tile_copy(to + lane * kBoxRows * kLineBytes, map, chunk * ORCD_CHUNK, from.row, full);
        }
    };
    bool is_first = true;
    for (uint32_t tile = blockIdx.x; tile < p.n_tiles; tile += gridDim.x) {
        const TileAt<T> at(p, tile);
        // Pairs beyond the last are copies of the last eight, and not written.
        const uint32_t line = lane * kBoxRows, pair = at.first_pair + line % T::kTilePairs;
        RowRef from{0, 0};
        if (lane < kBoxes) from = row_in_tile<OUTPUT, T>(p.a, OUTPUT == ORCD_DECODE_QKV ? min(pair, last_pair) : pair, line >= T::kTilePairs);
        uint32_t chunk = at.begin;
        if (is_first) {
            // The weights can come at once; the activations have to wait for the kernel that makes them.
            for (uint32_t c = chunk; c < at.end && place.parity == 0; c += 2, place.next()) {
                if (lane == 0) barrier_expect(ring.full + place.stage * 8, T::kStageBytes);
                __syncwarp();
                copy(from, at.first_token, false, c);
            }
            wait_for_predecessor();
            place = {};
            for (; chunk < at.end && place.parity == 0; chunk += 2, place.next()) copy(from, at.first_token, true, chunk);
            is_first = false;
        }
        for (; chunk < at.end; chunk += 2, place.next()) {
            barrier_wait(ring.empty + place.stage * 8, place.parity ^ 1);  // in the first round at once
            if (lane == 0) barrier_expect(ring.full + place.stage * 8, T::kStageBytes);
            __syncwarp();
            copy(from, at.first_token, false, chunk);
            copy(from, at.first_token, true, chunk);
        }
    }
}

// The sums of a warp's part of the tile: [16-row tile][8-token tile][two tokens of a pair's first row, and of its partner].
template <class T> struct Sums {
    float of[T::kM][T::kN][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < T::kM * T::kN * 4; i++) (&of[0][0][0])[i] = 0;
    }
    __device__ __forceinline__ void add(const Sums &other) {
#pragma unroll
        for (int i = 0; i < T::kM * T::kN * 4; i++) (&of[0][0][0])[i] += (&other.of[0][0][0])[i];
    }
    // One chunk: `rows` and `tokens` point to this lane's 16 bytes of the warp's first pair and token. An instruction wants words of
    // two rows in neighbouring registers. `| zero` has them put there once: moves, the compiler repeats for every instruction.
    __device__ __forceinline__ void multiply(const unsigned char *rows, const unsigned char *tokens, uint32_t zero) {
        uint4 b[T::kN];
#pragma unroll
        for (int n = 0; n < T::kN; n++) b[n] = *reinterpret_cast<const uint4 *>(tokens + n * 8 * kLineBytes);
#pragma unroll
        for (int m = 0; m < T::kM; m++) {
            const uint4 first = *reinterpret_cast<const uint4 *>(rows + m * kPairs * kLineBytes);
            const uint4 second = *reinterpret_cast<const uint4 *>(rows + (T::kTilePairs + m * kPairs) * kLineBytes);
            const uint32_t low[4] = {first.x | zero, second.x | zero, first.y | zero, second.y | zero};
#pragma unroll
            for (int n = 0; n < T::kN; n++) mma_16816(of[m][n], low[0], low[1], low[2], low[3], b[n].x, b[n].y);
            const uint32_t high[4] = {first.z | zero, second.z | zero, first.w | zero, second.w | zero};
#pragma unroll
            for (int n = 0; n < T::kN; n++) mma_16816(of[m][n], high[0], high[1], high[2], high[3], b[n].z, b[n].w);
        }
    }
};

// Eight lines' place among the instruction's eight rows, or columns: bits 0 and 2 change places. Lanes that read shared memory
// together then have lines that the swizzle puts into different halves of the banks. Its own inverse.
__device__ __forceinline__ uint32_t placed(uint32_t i) { return (i & 1) << 2 | (i & 2) | i >> 2; }

// By powers of two, in the order of kernel.cu.
__device__ __forceinline__ float scaled(float sum, float scale, float row_unscale) {
    return __fmul_rn(__fmul_rn(sum, scale), row_unscale);
}

// What becomes of a warp's part of the tile.
template <int OUTPUT, class T> struct Ends {
    // Few results are prepared before the sums are there. For many, registers are missing.
    static constexpr bool kEarly = OUTPUT == ORCD_DECODE_QKV && T::kM * T::kN <= 4;
    Finish<OUTPUT == ORCD_DECODE_STORE ? ORCD_DECODE_GATE_UP : OUTPUT> finish[kEarly ? T::kN * 2 : 1][T::kM];
    uint32_t first_pair, first_token;
    float row_unscale, ffn_scale;  // of the warp's token with this lane's number
    static_assert(T::kN * 8 <= 32, "a lane for a token");

    __device__ __forceinline__ uint32_t token_of(int n, int i) const { return first_token + n * 8 + placed(threadIdx.x % 4 * 2 + i); }

    __device__ __forceinline__ void prepare_token(const orcd_decode_matmul_args &a, int at, uint32_t token) {
        const uint32_t last_pair = n_pairs<OUTPUT>(a) - 1;
#pragma unroll
        for (int m = 0; m < T::kM; m++)
            if (first_pair + m * kPairs <= last_pair && token < a.n_tokens) finish[at][m].prepare(a, first_pair + m * kPairs, token);
    }

    __device__ __forceinline__ void prepare(const orcd_decode_matmul_args &a, const TileAt<T> &at) {
        const uint32_t warp = threadIdx.x / 32;
        first_pair = at.first_pair + warp / T::kWarpsN * (T::kM * kPairs) + placed(threadIdx.x % 32 / 4);
        first_token = at.first_token + warp % T::kWarpsN * (T::kN * 8);
        const uint32_t token = min(first_token + threadIdx.x % 32, a.n_tokens - 1);
        row_unscale = a.row_unscale ? a.row_unscale[token] : 1.0f;
        ffn_scale = OUTPUT == ORCD_DECODE_GATE_UP ? a.ffn_scale[token] : 1.0f;
        if constexpr (kEarly) {
#pragma unroll
            for (int k = 0; k < T::kN * 2; k++) prepare_token(a, k, token_of(k / 2, k % 2));
        }
    }

    __device__ __forceinline__ void write(const Params &p, const TileAt<T> &at, const Sums<T> &sums) {
        const orcd_decode_matmul_args &a = p.a;
        __syncwarp();
        const uint32_t last_pair = n_pairs<OUTPUT>(a) - 1;
#pragma unroll
        for (int k = 0; k < T::kN * 2; k++) {
            const uint32_t token = token_of(k / 2, k % 2);
            const float row = __shfl_sync(0xFFFFFFFF, row_unscale, token - first_token);
            const float ffn = OUTPUT == ORCD_DECODE_GATE_UP ? __shfl_sync(0xFFFFFFFF, ffn_scale, token - first_token) : 1.0f;
            if (token >= a.n_tokens) continue;
            if constexpr (OUTPUT == ORCD_DECODE_QKV && !kEarly) prepare_token(a, 0, token);
            if constexpr (OUTPUT == ORCD_DECODE_STORE) {
                float *out = a.out + ((size_t)at.split * a.n_tokens + token) * a.w[0].n_rows;
#pragma unroll
                for (int m = 0; m < T::kM; m++) {
                    const float *of = sums.of[m][k / 2];
                    const uint32_t first = row_in_tile<OUTPUT, T>(a, first_pair + m * kPairs, false).row, second = first + T::kTilePairs;
                    if (first < a.w[0].n_rows) out[first] = scaled(of[k % 2], p.scales[0], row);
                    if (second < a.w[0].n_rows) out[second] = scaled(of[2 + k % 2], p.scales[0], row);
                }
            } else if constexpr (OUTPUT == ORCD_DECODE_GATE_UP) {
#pragma unroll
                for (int m = 0; m < T::kM; m++) {
                    const float *of = sums.of[m][k / 2];
                    const Finish<OUTPUT> result{first_pair + m * kPairs};
                    if (result.pair <= last_pair)
                        result.write(a, token, ffn, scaled(of[k % 2], p.scales[0], row), scaled(of[2 + k % 2], p.scales[1], row));
                }
            } else {
#pragma unroll
                for (int m = 0; m < T::kM; m++) {
                    if (first_pair + m * kPairs > last_pair) continue;
                    const float *of = sums.of[m][k / 2];
                    const auto &result = finish[kEarly ? k : 0][m];
                    const uint32_t matrix = result.matrix();
                    const float scale = matrix == 0 ? p.scales[0] : matrix == 1 ? p.scales[1] : p.scales[2];
                    result.write(a, token, ffn, scaled(of[k % 2], scale, row), scaled(of[2 + k % 2], scale, row));
                }
            }
        }
    }
};

// A consumer: one warp.
template <int OUTPUT, class T>
__device__ __forceinline__ void multiply_tiles(const Params &p, const Ring &ring, const unsigned char *stages, uint32_t warp) {
    const orcd_decode_matmul_args &a = p.a;
    const uint32_t lane = threadIdx.x % 32, line = placed(lane / 4), t = lane % 4;
    const unsigned char *rows = stages + (warp / T::kWarpsN * (T::kM * kPairs) + line) * kLineBytes;
    const unsigned char *tokens = stages + (T::kRows + warp % T::kWarpsN * (T::kN * 8) + line) * kLineBytes;
    const uint2 pieces = make_uint2((t ^ line) * 16, ((4 + t) ^ line) * 16);  // of a line's first and second chunk
    Place<T::kStages> place;
    for (uint32_t tile = blockIdx.x; tile < p.n_tiles; tile += gridDim.x) {
        const TileAt<T> at(p, tile);
        Ends<OUTPUT, T> ends;
        ends.prepare(a, at);
        Sums<T> total;
        total.clear();
        uint32_t chunk = at.begin;
        for (uint32_t slice = 0; slice < kWarps; slice++) {
            const uint32_t end = p.slices[at.split * kWarps + slice + 1];
            if (chunk == end) continue;  // a slice of nothing adds nothing
            Sums<T> chain;
            chain.clear();
#pragma unroll 1
            for (; chunk < end; chunk++) {
                const uint32_t second = (chunk - at.begin) % 2, stage = place.stage * T::kStageBytes + (second ? pieces.y : pieces.x);
                if (!second) barrier_wait(ring.full + place.stage * 8, place.parity);
                chain.multiply(rows + stage, tokens + stage, p.zero);
                if (second || chunk + 1 == at.end) {
                    __syncwarp();
                    if (lane == 0) barrier_arrive(ring.empty + place.stage * 8, 0);
                    place.next();
                }
            }
            total.add(chain);
        }
        ends.write(p, at, total);
    }
}

template <int OUTPUT, class T> __global__ void __launch_bounds__(T::kThreads, T::kTrades || OUTPUT == ORCD_DECODE_QKV ? 1 : 2) tiles(const __grid_constant__ Params p) {
#ifdef ORCD_HOPPER
    extern __shared__ __align__(16) unsigned char dynamic[];
    __shared__ __align__(8) uint64_t full[T::kStages], empty[T::kStages];
    const uint32_t unaligned = shared_address(dynamic), aligned = (unaligned + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes;
    const Ring ring{aligned, shared_address(full), shared_address(empty)};
    const uint32_t warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0);  // the compiler sees that all lanes have the same
    let_successor_start();
    if (threadIdx.x >= T::kConsumers * 32 && threadIdx.x < T::kConsumers * 32 + 4) {
        const uint32_t i = threadIdx.x - T::kConsumers * 32;
        if (i == 3) tile_prefetch_map(&p.x);
        else if (i < n_matrices<OUTPUT>()) tile_prefetch_map(&p.w[i]);
    }
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < T::kStages; stage++) {
            barrier_init(ring.full + stage * 8, 1);
            barrier_init(ring.empty + stage * 8, T::kConsumers);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (warp >= T::kConsumers) {
        if constexpr (T::kTrades) set_registers_down<T::kProducerRegisters>();
        if (warp == T::kConsumers) copy_tiles<OUTPUT, T>(p, ring);
    } else {
        if constexpr (T::kTrades) set_registers_up<T::kConsumerRegisters>();
        wait_for_predecessor();  // for what the results are scaled by
        multiply_tiles<OUTPUT, T>(p, ring, dynamic + (aligned - unaligned), warp);
    }
#endif
}

constexpr int kMaxDevices = 64;  // beyond it, the other kernel is taken

// How many blocks the current device holds at once; 0 where it cannot run this kernel. Prepares the kernel, once a device.
template <int OUTPUT, class T> uint32_t blocks_at_once() {
    constexpr uint32_t kUnknown = 0, kNone = 1, kSome = 2;  // kSome + n
    static std::atomic<uint32_t> known[kMaxDevices];
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return 0;
    uint32_t value = known[device].load(std::memory_order_relaxed);
    if (value == kUnknown) {
        const auto kernel = tiles<OUTPUT, T>;
        int per_sm = 0, n_sms = 0;
        cudaFuncAttributes facts{};
        // Compiled for anything but sm_90a the body is empty, and has no barriers.
        const bool runs = tensor_map_encoder() && cudaFuncGetAttributes(&facts, kernel) == cudaSuccess && facts.sharedSizeBytes > 0 &&
                          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes) == cudaSuccess &&
                          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, T::kThreads, T::kSharedBytes) == cudaSuccess &&
                          cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
        cudaGetLastError();  // no device of this kind is no error
        value = runs ? kSome + (uint32_t)(per_sm * n_sms) : kNone;
        known[device].store(value, std::memory_order_relaxed);  // others find the same
    }
    return value >= kSome ? value - kSome : 0;
}

template <int OUTPUT, class T> uint32_t n_tiles_of(const orcd_decode_matmul_args &a) {
    return div_ceil(n_pairs<OUTPUT>(a), T::kTilePairs) * div_ceil(a.n_tokens, T::kTokens) * a.n_splits;
}

template <int OUTPUT, class T> int32_t launch_tiles(const orcd_decode_matmul_args &a, orcd_stream stream) {
    const uint32_t at_once = blocks_at_once<OUTPUT, T>();
    if (at_once == 0) return (int32_t)cudaErrorNotSupported;
    Params p{};
    p.a = a;
    p.n_row_tiles = div_ceil(n_pairs<OUTPUT>(a), T::kTilePairs);
    p.n_token_tiles = div_ceil(a.n_tokens, T::kTokens);
    p.n_tiles = n_tiles_of<OUTPUT, T>(a);
    const uint32_t n_cols = div_ceil(a.w[0].n_cols, ORCD_CHUNK) * ORCD_CHUNK;
    bool encoded = encode_halves(p.x, a.x, a.n_tokens, n_cols, (uint64_t)a.x_pitch * 2, T::kTokens);
    for (uint32_t s = 0; s < a.n_splits * kWarps; s++) p.slices[s + 1] = (uint16_t)slice_of(a.w[0].n_cols, a.n_splits, s / kWarps, s % kWarps).end;
    for (uint32_t i = 0; i < n_matrices<OUTPUT>(); i++) p.scales[i] = a.x_unscale / a.w[i].scale;
    for (uint32_t i = 0; i < n_matrices<OUTPUT>(); i++)
        encoded &= encode_halves(p.w[i], a.w[i].values, a.w[i].n_rows, n_cols, a.w[i].row_bytes, box_rows<OUTPUT, T>());
    if (!encoded) return (int32_t)cudaErrorInvalidValue;
    // Every block takes as many tiles as any other, or one fewer.
    const uint32_t n_blocks = div_ceil(p.n_tiles, div_ceil(p.n_tiles, at_once));
    return launch(tiles<OUTPUT, T>, dim3(n_blocks), dim3(T::kThreads), T::kSharedBytes, stream, p);
}

// What a shape of tiles is estimated to cost, in units of 10 ns on an H200; only to compare shapes by. All ones where it does not run.
//
// A round of tiles, one on each multiprocessor, takes kStage for each stage, kEnd to begin and to be written, and what its results
// take besides. Where two blocks share a multiprocessor, rounds overlap.
template <int OUTPUT, class T> uint64_t cost_of(const orcd_decode_matmul_args &a) {
    constexpr uint32_t kPerSm = T::kTrades ? 1 : 2;
    const uint64_t n_sms = blocks_at_once<OUTPUT, T>() / kPerSm, n_tiles = n_tiles_of<OUTPUT, T>(a);
    if (n_sms == 0) return UINT64_MAX;
    constexpr uint64_t kEach = OUTPUT == ORCD_DECODE_GATE_UP ? 20 : OUTPUT == ORCD_DECODE_STORE ? 0 : T::kTrades ? 90 : 28;
    const uint64_t n_stages = div_ceil(div_ceil(a.w[0].n_cols, ORCD_CHUNK) / a.n_splits, 2);
    const uint64_t round = n_stages * T::kStageCost + kEach * T::kM * T::kN * 2;
    if (T::kTrades) return (n_tiles + n_sms - 1) / n_sms * (round + T::kEndCost);
    return std::max(n_tiles, n_sms) * round / n_sms + T::kEndCost;
}

struct Candidate {
    uint64_t (*cost)(const orcd_decode_matmul_args &);
    int32_t (*launch)(const orcd_decode_matmul_args &, orcd_stream);
};
template <int OUTPUT, class T> constexpr Candidate candidate() { return {cost_of<OUTPUT, T>, launch_tiles<OUTPUT, T>}; }

//                    warps and tiles, rows and tokens; stages; costs
using Tile160x128 = Tile<2, 5, 4, 4, 5, 79, 530>;
using Tile96x128 = Tile<2, 3, 4, 4, 6, 67, 350>;
using Tile64x64 = Tile<4, 1, 2, 4, 6, 40, 200>;

template <size_t N> int32_t launch_one(const Candidate (&all)[N], const orcd_decode_matmul_args &a, uint32_t tile, orcd_stream stream) {
    if (tile != kBestDecodeTile) return tile < N ? all[tile].launch(a, stream) : (int32_t)cudaErrorInvalidValue;
    const Candidate *best = nullptr;
    uint64_t least = UINT64_MAX;
    for (const Candidate &c : all) {
        const uint64_t cost = c.cost(a);
        if (cost < least) {
            least = cost;
            best = &c;
        }
    }
    return best ? best->launch(a, stream) : (int32_t)cudaErrorNotSupported;
}

}  // namespace decode_tiles_kernel

bool has_decode_tiles(const orcd_decode_matmul_args &a) {
    using namespace decode_tiles_kernel;
    const orcd_decode_qkv &o = a.qkv;
    const uint32_t n = a.output == ORCD_DECODE_QKV ? 3 : a.output == ORCD_DECODE_GATE_UP ? 2 : 1;
    for (uint32_t i = 0; i < n; i++)
        if (a.w[i].format != ORCD_FORMAT_F16) return false;
    if (a.norm.weight || a.n_splits > kMaxSplits || div_ceil(a.w[0].n_cols, ORCD_CHUNK) > UINT16_MAX) return false;
    if (a.output == ORCD_DECODE_QKV && (o.rope_adjacent || o.n_rope != o.d_head || o.d_head % (2 * kPairs) != 0)) return false;
    return blocks_at_once<ORCD_DECODE_STORE, Tile64x64>() > 0;
}

int32_t decode_tiles(const orcd_decode_matmul_args &a, uint32_t tile, orcd_stream stream) {
    using namespace decode_tiles_kernel;
    static constexpr Candidate kStore[] = {candidate<ORCD_DECODE_STORE, Tile160x128>(), candidate<ORCD_DECODE_STORE, Tile96x128>(),
                                           candidate<ORCD_DECODE_STORE, Tile64x64>()};
    static constexpr Candidate kGateUp[] = {candidate<ORCD_DECODE_GATE_UP, Tile160x128>(), candidate<ORCD_DECODE_GATE_UP, Tile96x128>(),
                                            candidate<ORCD_DECODE_GATE_UP, Tile64x64>()};
    // Its ends take the registers of the largest tile.
    static constexpr Candidate kQkv[] = {candidate<ORCD_DECODE_QKV, Tile96x128>(), candidate<ORCD_DECODE_QKV, Tile64x64>()};
    switch (a.output) {
        case ORCD_DECODE_STORE: return launch_one(kStore, a, tile, stream);
        case ORCD_DECODE_QKV: return launch_one(kQkv, a, tile, stream);
        default: return launch_one(kGateUp, a, tile, stream);
    }
}

}  // namespace orcd
