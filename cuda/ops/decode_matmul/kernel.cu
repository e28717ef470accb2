// decode_matmul: out[token, row] = sum over k of w[row, k] * x[token, k], for 1 to 256 generated tokens.
//
// Shapes:   w [n_rows, n_cols] of one format, or of several (mixed); x [n_tokens, x_pitch] f16; outputs as in the header.
// Aliasing: none.
// Mapping:  weights on the wide side of the matrix instruction (16 rows), tokens on the narrow one (8). A block has 8 warps
//           and 16 or 32 rows; each warp takes every row's same eighth of the columns, so that a block reads whole rows
//           and a narrow matrix still keeps many loads in flight. Tokens beyond 32 are the grid's second dimension.
//           A lane loads 16 bytes of a row at a time, straight into the registers that the instruction wants; of a quantised
//           row, what the planes have of its eight columns. Of a quantised matrix with so many rows that every warp has a
//           tile to itself, each takes its tiles' slices one after the other (warp_per_tile).
// Requires: rows padded to 32 columns with zeros, 16-byte aligned; see the launcher.
// Cost:     the matrix once from memory for up to 32 tokens, and from L2 for each further 32; x from L1 and L2. For many tokens
//           kernel_tiles.cu has a path on Hopper, with the same bits.
// Numerics: F16 products, F32 sums. Quantised numbers are multiplied as they are, and their sums by the scales (quantised.cuh).
//           The order of a sum is given by the matrix's shape: n_splits times 8 slices of the
//           columns, each a chain of matrix instructions, added in order. It does not depend on the number of tokens, so
//           a token's bits do not either. Tolerance against the reference in test.cu.
// Source:   the layout of operands is that of PTX ISA, "Matrix fragments for mma.m16n8k16".
#include "common.cuh"
#include "dependency.cuh"
#include "norm.cuh"
#include "quantised.cuh"
#include "tiles.h"
#include "weights.cuh"

#include <algorithm>
#include <type_traits>

namespace orcd {
namespace {

constexpr int kThreads = kWarps * 32;
// A block that fills all 132 SMs of the largest device in use, twice over, is not made smaller.
constexpr uint32_t kEnoughBlocks = 128;
constexpr uint32_t kMaxSplits = 8;
// So many tiles of 16 rows that each of an SM's warps has one, on all of 132 SMs.
constexpr uint32_t kManyTiles = 132 * 3 * kWarps;
// A split narrower than this leaves warps without work, and one deeper than that needs more than one round of loads.
constexpr uint32_t kMinSplitChunks = 12, kMaxSplitChunks = 4 * kWarps;

// Chunks of each of M tiles that are loaded before the first is used. More take registers from a norm and from blocks beside this
// one: notes.md has what was measured.
template <int FORMAT, int M, bool NORM> __host__ __device__ constexpr int ahead() {
    if (NORM && M > 1) return FORMAT == ORCD_FORMAT_Q8_0 ? 2 : 1;
    if (FORMAT == kAny || FORMAT == ORCD_FORMAT_Q6_K && !NORM) return 2;
    return (FORMAT == ORCD_FORMAT_F32 ? 2 : 4) / M;
}

// A row of a format that is rounded to halves, at one lane: nothing that has to be kept.
template <int FORMAT> struct HalfRow {
    using Loaded = Piece<FORMAT>;
    __device__ __forceinline__ void find(const orcd_matrix &, uint32_t, int) {}
};

template <int FORMAT> using RowAt = std::conditional_t<has_scales_after(FORMAT), LaneRow<FORMAT>, HalfRow<FORMAT>>;

// A block's rows: M tiles of 16. Rows beyond the last are computed as copies of the last and not written.
template <int FORMAT, int OUTPUT, int M> struct Rows {
    RowRef of[M][2];
    RowAt<FORMAT> at[M][2];
    __device__ __forceinline__ void find(const orcd_decode_matmul_args &a, uint32_t first_pair, uint32_t last_pair, int g, int t) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int second = 0; second < 2; second++) {
                of[m][second] = row_of<OUTPUT>(a, min(first_pair + m * kPairs + g, last_pair), second);
                if (OUTPUT == ORCD_DECODE_STORE) of[m][second].row = min(of[m][second].row, a.w[0].n_rows - 1);
                at[m][second].find(a.w[of[m][second].matrix], of[m][second].row, t);
            }
        }
    }
};

// Where the activations come from: from memory, or from a norm that the block computes itself.
template <bool NORM> struct Normalised {
    __device__ __forceinline__ void prepare(const orcd_decode_matmul_args &) {}
    __device__ __forceinline__ void compute(const orcd_decode_matmul_args &) {}
    __device__ __forceinline__ const char *row(const orcd_decode_matmul_args &a, uint32_t token) const {
        return reinterpret_cast<const char *>(a.x) + (size_t)token * a.x_pitch * 2;
    }
    __device__ __forceinline__ float ffn_scale(const orcd_decode_matmul_args &a, uint32_t token) const {
        return a.ffn_scale ? a.ffn_scale[token] : 1.0f;
    }
};

__device__ __forceinline__ uint2 *normalised_rows() {
    __shared__ uint2 rows[ORCD_DECODE_NORM_MAX_TOKENS * ORCD_DECODE_NORM_MAX_COLS / 4];
    return rows;
}

// Vectors of 16 bytes that a thread has of a row: they take registers from the weights.
constexpr int kNormKept = ORCD_DECODE_NORM_MAX_COLS / 4 / norm::kThreads;

template <> struct Normalised<true> {
    norm::Weights<4, kNormKept> w;
    float scales[ORCD_DECODE_NORM_MAX_TOKENS];

    __device__ __forceinline__ void prepare(const orcd_decode_matmul_args &a) { w.load_from(a.norm.weight, a.w[0].n_cols); }

    __device__ __forceinline__ void compute(const orcd_decode_matmul_args &a) {
        const orcd_decode_norm &o = a.norm;
        const uint32_t d_model = a.w[0].n_cols, n_vectors = d_model / 4, n_padded = div_ceil(d_model, ORCD_CHUNK) * (ORCD_CHUNK / 4);
        const bool writes = blockIdx.x == 0;  // one block keeps what every block computes
        for (uint32_t token = 0; token < a.n_tokens; token++) {
            const size_t at = (size_t)token * d_model;
            norm::Vector<4> x[kNormKept];
            float2 sum = make_float2(0, 0);
#pragma unroll
            for (int k = 0; k < kNormKept; k++) {
                const uint32_t i = threadIdx.x + k * norm::kThreads;
                x[k] = norm::Vector<4>{};
                if (i < n_vectors)
                    x[k] = norm::updated<4>(o.residual + at, o.partials + at, o.n_partials, (size_t)a.n_tokens * d_model, i);
                norm::account(sum, x[k], w.of[k]);
            }
            sum = norm::block_sum(sum);
            const float inverse = norm::inverse_of(sum, d_model, o.eps);
#pragma unroll
            for (int k = 0; k < kNormKept; k++) {
                const uint32_t i = threadIdx.x + k * norm::kThreads;
                float y[4];
                for (int j = 0; j < 4; j++) y[j] = x[k].v[j] * inverse * w.of[k].v[j] * o.scale;
                if (i < n_padded)
                    normalised_rows()[token * (ORCD_DECODE_NORM_MAX_COLS / 4) + i] = make_uint2(pack_half2(y[0], y[1]), pack_half2(y[2], y[3]));
                if (writes && i < n_vectors) norm::store(o.residual_out + at + i * 4, x[k]);
            }
            scales[token] = 1.0f;
            if (o.ffn_bound > 0) {
                const int exponent = norm::ffn_exponent(o.ffn_bound, sum, inverse);
                scales[token] = ldexpf(1.0f, exponent);
                if (writes && threadIdx.x == 0) {
                    o.ffn_scale[token] = scales[token];
                    o.ffn_unscale[token] = ldexpf(1.0f, -exponent);
                }
            }
            __syncthreads();  // the rows are there, and the next token's sums may be
        }
    }

    __device__ __forceinline__ const char *row(const orcd_decode_matmul_args &, uint32_t token) const {
        return reinterpret_cast<const char *>(normalised_rows()) + token * (ORCD_DECODE_NORM_MAX_COLS * 2);
    }
    __device__ __forceinline__ float ffn_scale(const orcd_decode_matmul_args &, uint32_t token) const {
        return token == 0 ? scales[0] : scales[1];
    }
};

// Blocks that an SM is to hold at once: a third where registers suffice.
template <int FORMAT, int OUTPUT, int N, bool NORM> constexpr int min_blocks() {
    if (N > 1 || NORM || FORMAT == kAny) return 2;
    return has_scales_after(FORMAT) && OUTPUT == ORCD_DECODE_QKV ? 2 : 3;
}

// Read from one lane, so that the compiler sees that the whole warp goes the same way.
__device__ __forceinline__ int warp_of_block() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

// A token's sum without what its activations, and the weights, were multiplied by to be halves.
__device__ __forceinline__ float unscaled(const orcd_decode_matmul_args &a, uint32_t token, float sum, float weight_scale) {
    sum *= a.x_unscale / weight_scale;  // powers of two
    return a.row_unscale ? sum * a.row_unscale[token] : sum;
}

// Pieces `first_piece`, `first_piece + step` and so on, of M tiles of 16 rows and N tiles of 8 tokens. The next one's weights are
// loaded before the last one's sums are finished.
template <int FORMAT, int OUTPUT, int M, int N, bool NORM>
__device__ __forceinline__ void take_pieces(const orcd_decode_matmul_args &a, uint32_t first_piece, uint32_t step) {
    constexpr int kRows = M * 2 * kPairs;
    constexpr int kTokens = N * 8;
    constexpr int kPitch = kRows + 4;  // so that the 32 stores of a fragment go to 32 banks
    constexpr int kAhead = ahead<FORMAT, M, NORM>();
    constexpr int kOutputs = kTokens * kRows / 2;  // pairs
    constexpr int kFinishes = (kOutputs + kThreads - 1) / kThreads;
    __shared__ float sums[kWarps][kTokens][kPitch];

    const int warp = warp_of_block(), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t split = blockIdx.z, first_token = blockIdx.y * kTokens;
    const uint32_t n_here = min((uint32_t)kTokens, a.n_tokens - first_token);
    const uint32_t last_pair = n_pairs<OUTPUT>(a) - 1, n_pieces = div_ceil(last_pair + 1, M * kPairs);
    const Slice slice = slice_of(a.w[0].n_cols, a.n_splits, split, warp);

    let_successor_start();
    Normalised<NORM> normalised;
    normalised.prepare(a);
    Rows<FORMAT, OUTPUT, M> rows;
    typename RowAt<FORMAT>::Loaded pieces[kAhead][M][2];
    auto load = [&](int slot, uint32_t chunk) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int second = 0; second < 2; second++) {
                if constexpr (has_scales_after(FORMAT))
                    rows.at[m][second].load(pieces[slot][m][second], chunk);
                else
                    pieces[slot][m][second].load(a.w[rows.of[m][second].matrix], rows.of[m][second].row, chunk, t);
            }
        }
    };
    auto begin = [&](uint32_t piece) {
        rows.find(a, piece * (M * kPairs), last_pair, g, t);
#pragma unroll
        for (int i = 0; i < kAhead; i++)
            if (slice.begin + i < slice.end) load(i, slice.begin + i);
    };
    begin(first_piece);
    const char *x[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        const uint32_t token = min(first_token + n * 8 + g, a.n_tokens - 1);
        x[n] = normalised.row(a, token) + t * (has_scales_after(FORMAT) ? 8 : 16);
    }

    bool is_first = true;
    for (uint32_t piece = first_piece; piece < n_pieces; piece += step) {
        // Where the results go does not depend on the kernel before: positions and tables were there before the step.
        Finish<OUTPUT == ORCD_DECODE_STORE ? ORCD_DECODE_GATE_UP : OUTPUT> finish[kFinishes];
        const uint32_t first_pair = piece * (M * kPairs);
        if constexpr (OUTPUT != ORCD_DECODE_STORE) {
#pragma unroll
            for (int f = 0; f < kFinishes; f++) {
                const uint32_t i = threadIdx.x + f * kThreads, pair = first_pair + i % (kRows / 2);
                if (i / (kRows / 2) < n_here && pair <= last_pair) finish[f].prepare(a, pair, first_token + i / (kRows / 2));
            }
        }
        // The weights are on their way; the activations have to wait for the kernel that makes them.
        if (is_first) {
            wait_for_predecessor();
            normalised.compute(a);
        }

        float c[M][N][4] = {};
        for (uint32_t base = slice.begin; base < slice.end; base += kAhead) {
#pragma unroll
            for (int i = 0; i < kAhead; i++) {
                const uint32_t chunk = base + i;
                if (chunk >= slice.end) break;
                if constexpr (has_scales_after(FORMAT)) {
                    using Row = RowAt<FORMAT>;
                    uint4 numbers[M][2];
                    PlaneScale scales[M][2];
#pragma unroll
                    for (int m = 0; m < M; m++) {
#pragma unroll
                        for (int second = 0; second < 2; second++) {
                            numbers[m][second] = rows.at[m][second].numbers(pieces[i][m][second], t);
                            scales[m][second] = rows.at[m][second].scale(pieces[i][m][second]);
                        }
                    }
                    if (chunk + kAhead < slice.end) load(i, chunk + kAhead);
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        ChunkOfTokens<Row::kGroups, Row::kOffset> of_tokens;
                        of_tokens.load(x[n] + chunk * 64);
#pragma unroll
                        for (int m = 0; m < M; m++)
                            multiply_chunk(c[m][n], numbers[m][0], numbers[m][1], scales[m][0], scales[m][1], of_tokens);
                    }
                } else {
                    uint4 first[M], second[M];
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        first[m] = pieces[i][m][0].halves(a.w[rows.of[m][0].matrix].scale);
                        second[m] = pieces[i][m][1].halves(a.w[rows.of[m][1].matrix].scale);
                    }
                    if (chunk + kAhead < slice.end) load(i, chunk + kAhead);
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        const uint4 b = *reinterpret_cast<const uint4 *>(x[n] + chunk * 64);
#pragma unroll
                        for (int m = 0; m < M; m++) {
                            mma_16816(c[m][n], first[m].x, second[m].x, first[m].y, second[m].y, b.x, b.y);
                            mma_16816(c[m][n], first[m].z, second[m].z, first[m].w, second[m].w, b.z, b.w);
                        }
                    }
                }
            }
        }
        if (piece + step < n_pieces) begin(piece + step);

        if (!is_first) __syncthreads();  // nobody reads the piece before's sums any more
        is_first = false;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) sums[warp][n * 8 + 2 * t + i % 2][m * 16 + g + i / 2 * 8] = c[m][n][i];
            }
        }
        __syncthreads();

        // The 8 warps' sums are added in order.
        auto total = [&](uint32_t token, uint32_t row, float scale) {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < kWarps; w++) sum += sums[w][token][row];
            return unscaled(a, first_token + token, sum, scale);
        };
        if constexpr (OUTPUT == ORCD_DECODE_STORE) {
            for (uint32_t i = threadIdx.x; i < n_here * kRows; i += kThreads) {
                const uint32_t token = i / kRows, row = piece * kRows + i % kRows;
                if (row < a.w[0].n_rows) {
                    a.out[((size_t)split * a.n_tokens + first_token + token) * a.w[0].n_rows + row] =
                        total(token, i % kRows, scale_in_sums<FORMAT>(a.w[0]));
                }
            }
        } else {
#pragma unroll
            for (int f = 0; f < kFinishes; f++) {
                const uint32_t i = threadIdx.x + f * kThreads;
                const uint32_t token = i / (kRows / 2), pair_of_piece = i % (kRows / 2), pair = first_pair + pair_of_piece;
                if (token >= n_here || pair > last_pair) continue;
                const uint32_t row = pair_of_piece / kPairs * 2 * kPairs + pair_of_piece % kPairs;
                const uint32_t of[2] = {row_of<OUTPUT>(a, pair, false).matrix, row_of<OUTPUT>(a, pair, true).matrix};
                const float first = total(token, row, scale_in_sums<FORMAT>(a.w[of[0]]));
                const float second = total(token, row + kPairs, scale_in_sums<FORMAT>(a.w[of[1]]));
                finish[f].write(a, first_token + token, normalised.ffn_scale(a, first_token + token), first, second);
            }
        }
    }
}

// Blocks take pieces in turn.
template <int FORMAT, int OUTPUT, int M, int N, bool NORM>
__global__ void __launch_bounds__(kThreads, min_blocks<FORMAT, OUTPUT, N, NORM>()) warp_per_slice(orcd_decode_matmul_args a) {
    take_pieces<FORMAT, OUTPUT, M, N, NORM>(a, blockIdx.x, gridDim.x);
}

// Where v begins, in pairs of rows.
__host__ __device__ __forceinline__ uint32_t first_pair_of_v(const orcd_decode_matmul_args &a) {
    return (a.qkv.n_heads + a.qkv.n_kv_heads) * (a.qkv.d_head / 2);
}

// q and k in one format, v in another, and no piece of both: a block a piece.
template <int FORMAT, int FORMAT_OF_V, int N, bool NORM>
__global__ void __launch_bounds__(kThreads, 2) warp_per_slice_of_two_formats(orcd_decode_matmul_args a) {
    if (blockIdx.x < first_pair_of_v(a) / kPairs)
        take_pieces<FORMAT, ORCD_DECODE_QKV, 1, N, NORM>(a, blockIdx.x, gridDim.x);
    else
        take_pieces<FORMAT_OF_V, ORCD_DECODE_QKV, 1, N, NORM>(a, blockIdx.x, gridDim.x);
}

// Tiles of 16 rows by up to 8 tokens, each by one warp: for a matrix with so many rows that every warp has some. It goes through all
// slices of the columns itself and adds them up in the same order. So no warp waits for another, and loads go on from one tile to
// the next.
template <int FORMAT, bool NORM> __global__ void __launch_bounds__(kThreads, 3) warp_per_tile(orcd_decode_matmul_args a) {
    using Row = RowAt<FORMAT>;
    constexpr int kAhead = 3;
    const int warp = warp_of_block(), g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t n_rows = a.w[0].n_rows, n_tiles = div_ceil(n_rows, 2 * kPairs), n_chunks = div_ceil(a.w[0].n_cols, ORCD_CHUNK);
    const uint32_t first_tile = blockIdx.x * kWarps + warp, step = gridDim.x * kWarps;

    let_successor_start();
    Normalised<NORM> normalised;
    normalised.prepare(a);
    Row rows[2];
    typename Row::Loaded pieces[kAhead][2];
    uint32_t next_tile = first_tile, next_chunk = 0;  // to be loaded
    auto find = [&] {
        for (int second = 0; second < 2; second++)
            rows[second].find(a.w[0], min(next_tile * (2 * kPairs) + second * kPairs + g, n_rows - 1), t);
    };
    auto load = [&](int slot) {
        if (next_tile >= n_tiles) return;
        for (int second = 0; second < 2; second++) rows[second].load(pieces[slot][second], next_chunk);
        if (++next_chunk < n_chunks) return;
        next_chunk = 0;
        next_tile += step;
        find();
    };
    find();
#pragma unroll
    for (int i = 0; i < kAhead; i++) load(i);
    const char *x = normalised.row(a, min((uint32_t)g, a.n_tokens - 1)) + t * 8;
    wait_for_predecessor();
    normalised.compute(a);

    float total[4] = {}, c[4] = {};
    uint32_t tile = first_tile, chunk = 0, slice = 0;
    while (tile < n_tiles) {
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
            if (tile >= n_tiles) break;
            uint4 numbers[2];
            PlaneScale scales[2];
            for (int second = 0; second < 2; second++) {
                numbers[second] = rows[second].numbers(pieces[i][second], t);
                scales[second] = rows[second].scale(pieces[i][second]);
            }
            load(i);
            ChunkOfTokens<Row::kGroups, Row::kOffset> of_tokens;
            of_tokens.load(x + chunk * 64);
            multiply_chunk(c, numbers[0], numbers[1], scales[0], scales[1], of_tokens);
            chunk++;
            // Of few columns, some slices have none: they add nothing.
            for (; slice < kWarps && chunk >= slice_of(a.w[0].n_cols, 1, 0, slice).end; slice++) {
                for (int j = 0; j < 4; j++) {
                    total[j] += c[j];
                    c[j] = 0;
                }
            }
            if (chunk < n_chunks) continue;
            for (int j = 0; j < 4; j++) {
                const uint32_t token = 2 * t + j % 2, row = tile * (2 * kPairs) + j / 2 * kPairs + g;
                if (token < a.n_tokens && row < n_rows)
                    a.out[(size_t)token * n_rows + row] = unscaled(a, token, total[j], scale_in_sums<FORMAT>(a.w[0]));
                total[j] = 0;
            }
            tile += step;
            chunk = slice = 0;
        }
    }
}

// Blocks of a kernel that the current device holds at once.
template <class Kernel> uint32_t resident_blocks(Kernel kernel) {
    int device = 0, n_sms = 0, per_sm = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    if (cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 0;
    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, kThreads, 0) != cudaSuccess) return 0;
    return (uint32_t)(n_sms * per_sm);
}

// Whether there are as many blocks as the device holds, though some take a piece more than others; else so few that all take equally
// many, which leaves more of the device to the next kernel's loads. What is faster was measured.
template <int FORMAT, int M, bool NORM> constexpr bool takes_all_blocks() {
    return NORM && M > 1 && (FORMAT == ORCD_FORMAT_Q8_0 || FORMAT == ORCD_FORMAT_Q5_0 || FORMAT == ORCD_FORMAT_Q4_K);
}

template <int FORMAT, int OUTPUT, int M, int N, bool NORM = false>
int32_t launch_tile(const orcd_decode_matmul_args &a, orcd_stream stream) {
    const auto kernel = warp_per_slice<FORMAT, OUTPUT, M, N, NORM>;
    const uint32_t n_pieces = div_ceil(n_pairs<OUTPUT>(a), M * kPairs), n_columns = div_ceil(a.n_tokens, N * 8);
    // Any number of blocks gives the same sums; as many as the device holds keep it busy without a second wave. Asked once: the
    // devices of one process are assumed to be alike here.
    static const uint32_t n_resident = resident_blocks(kernel);
    const uint32_t n_at_once = std::max(1u, n_resident / (n_columns * a.n_splits));
    const uint32_t n_in_turn = div_ceil(n_pieces, n_at_once);
    const uint32_t n_blocks = takes_all_blocks<FORMAT, M, NORM>() ? std::min(n_pieces, n_at_once) : div_ceil(n_pieces, n_in_turn);
    const dim3 grid(n_blocks, n_columns, a.n_splits);
    return launch(kernel, grid, dim3(kThreads), 0, stream, a);
}

template <int FORMAT, bool NORM> int32_t launch_warp_per_tile(const orcd_decode_matmul_args &a, uint32_t n_tiles, orcd_stream stream) {
    static const uint32_t n_resident = resident_blocks(warp_per_tile<FORMAT, NORM>);
    // Every warp takes as many tiles as any other, or one fewer.
    const uint32_t n_blocks = div_ceil(div_ceil(n_tiles, div_ceil(n_tiles, std::max(1u, n_resident) * kWarps)), kWarps);
    return launch(warp_per_tile<FORMAT, NORM>, dim3(n_blocks), dim3(kThreads), 0, stream, a);
}

// The number of tokens chooses how many of them share a block, and how many rows: which changes no sum. Few rows at a time
// where more would leave SMs without work.
template <int FORMAT, int OUTPUT> int32_t launch_output(const orcd_decode_matmul_args &a, orcd_stream stream) {
    const uint64_t n_products = (uint64_t)2 * kPairs * div_ceil(n_pairs<OUTPUT>(a), kPairs) * a.w[0].n_cols * a.n_tokens;
    if (FORMAT == ORCD_FORMAT_F16 && a.n_tokens > kFewTokens && n_products >= kFewProducts && has_decode_tiles(a))
        return decode_tiles(a, kBestDecodeTile, stream);
    if constexpr (OUTPUT == ORCD_DECODE_STORE && has_scales_after(FORMAT) && FORMAT != kAny) {
        const uint32_t n_tiles = div_ceil(a.w[0].n_rows, 2 * kPairs);
        if (a.n_splits == 1 && a.n_tokens <= 8 && n_tiles >= kManyTiles)
            return a.norm.weight ? launch_warp_per_tile<FORMAT, true>(a, n_tiles, stream)
                                 : launch_warp_per_tile<FORMAT, false>(a, n_tiles, stream);
    }
    // Two tiles at a time where there are many, and registers for both: the second's loads do not wait for the first's sums.
    constexpr bool kHasMany = OUTPUT == ORCD_DECODE_GATE_UP && FORMAT != kAny;
    constexpr int kNormTiles = kHasMany ? 2 : 1;
    if (a.norm.weight) return launch_tile<FORMAT, OUTPUT, kNormTiles, 1, true>(a, stream);
    if (a.n_tokens <= 8) return launch_tile<FORMAT, OUTPUT, 1, 1>(a, stream);
    if constexpr (has_scales_after(FORMAT)) {
        return launch_tile<FORMAT, OUTPUT, 1, 4>(a, stream);  // one shape, so that all formats are compiled in a minute
    } else {
        if (a.n_tokens <= 16) return launch_tile<FORMAT, OUTPUT, 1, 2>(a, stream);
        const uint32_t n_wide = div_ceil(n_pairs<OUTPUT>(a), 2 * kPairs) * div_ceil(a.n_tokens, 32) * a.n_splits;
        return n_wide < kEnoughBlocks ? launch_tile<FORMAT, OUTPUT, 1, 4>(a, stream) : launch_tile<FORMAT, OUTPUT, 2, 4>(a, stream);
    }
}

template <int FORMAT, int FORMAT_OF_V, int N, bool NORM = false>
int32_t launch_two_formats_tile(const orcd_decode_matmul_args &a, orcd_stream stream) {
    const dim3 grid(div_ceil(n_pairs<ORCD_DECODE_QKV>(a), kPairs), div_ceil(a.n_tokens, N * 8));
    return launch(warp_per_slice_of_two_formats<FORMAT, FORMAT_OF_V, N, NORM>, grid, dim3(kThreads), 0, stream, a);
}

// As launch_output: which formats there are chooses the kernel, and with it the bits; the number of tokens does not.
template <int FORMAT, int FORMAT_OF_V> int32_t launch_two_formats(const orcd_decode_matmul_args &a, orcd_stream stream) {
    if (a.norm.weight) return launch_two_formats_tile<FORMAT, FORMAT_OF_V, 1, true>(a, stream);
    if (a.n_tokens <= 8) return launch_two_formats_tile<FORMAT, FORMAT_OF_V, 1>(a, stream);
    return launch_two_formats_tile<FORMAT, FORMAT_OF_V, 4>(a, stream);
}

// The two formats of q and k, and of v, if a kernel reads them side by side.
bool are_two_formats(const orcd_decode_matmul_args &a, uint32_t format, uint32_t format_of_v) {
    return a.w[0].format == format && a.w[1].format == format && a.w[2].format == format_of_v && first_pair_of_v(a) % kPairs == 0;
}

template <int OUTPUT> int32_t launch_format(const orcd_decode_matmul_args &a, uint32_t n_matrices, orcd_stream stream) {
    if constexpr (OUTPUT == ORCD_DECODE_QKV) {
        // What mixtures give v in every second layer, whether rows hold blocks of 256 or not.
        if (are_two_formats(a, ORCD_FORMAT_Q5_0, ORCD_FORMAT_Q8_0))
            return launch_two_formats<ORCD_FORMAT_Q5_0, ORCD_FORMAT_Q8_0>(a, stream);
        if (are_two_formats(a, ORCD_FORMAT_Q4_K, ORCD_FORMAT_Q6_K))
            return launch_two_formats<ORCD_FORMAT_Q4_K, ORCD_FORMAT_Q6_K>(a, stream);
    }
    uint32_t format = a.w[0].format;
    for (uint32_t i = 1; i < n_matrices; i++)
        if (a.w[i].format != format) format = kAny;
    switch (format) {
        case ORCD_FORMAT_F16: return launch_output<ORCD_FORMAT_F16, OUTPUT>(a, stream);
        case ORCD_FORMAT_BF16: return launch_output<ORCD_FORMAT_BF16, OUTPUT>(a, stream);
        case ORCD_FORMAT_F32: return launch_output<ORCD_FORMAT_F32, OUTPUT>(a, stream);
        // The formats that most files are made of.
        case ORCD_FORMAT_Q8_0: return launch_output<ORCD_FORMAT_Q8_0, OUTPUT>(a, stream);
        case ORCD_FORMAT_Q4_0: return launch_output<ORCD_FORMAT_Q4_0, OUTPUT>(a, stream);
        case ORCD_FORMAT_Q5_0: return launch_output<ORCD_FORMAT_Q5_0, OUTPUT>(a, stream);
        case ORCD_FORMAT_Q4_K: return launch_output<ORCD_FORMAT_Q4_K, OUTPUT>(a, stream);
        case ORCD_FORMAT_Q6_K: return launch_output<ORCD_FORMAT_Q6_K, OUTPUT>(a, stream);
        default: return launch_output<kAny, OUTPUT>(a, stream);
    }
}

bool is_qkv(const orcd_decode_matmul_args &a) {
    const orcd_decode_qkv &o = a.qkv;
    return o.cos_sin && o.q && o.k_pool && o.v_pool && o.block_table && o.table_start && o.positions && o.d_head % 2 == 0 &&
           o.n_rope % 2 == 0 && o.n_rope <= o.d_head && o.d_head <= o.d_head_pad && a.w[0].n_rows == o.n_heads * o.d_head &&
           a.w[1].n_rows == o.n_kv_heads * o.d_head && a.w[2].n_rows == o.n_kv_heads * o.d_head;
}

bool is_norm(const orcd_decode_matmul_args &a) {
    const orcd_decode_norm &o = a.norm;
    const bool is_wide = is_aligned(o.residual, 16) && is_aligned(o.partials, 16) && is_aligned(o.residual_out, 16) && is_aligned(o.weight, 16);
    return a.n_tokens <= ORCD_DECODE_NORM_MAX_TOKENS && a.w[0].n_cols <= ORCD_DECODE_NORM_MAX_COLS && a.w[0].n_cols % 4 == 0 &&
           o.residual && o.residual_out && o.residual_out != o.residual && (o.partials || o.n_partials == 0) && is_wide &&
           o.scale > 0 && (a.output != ORCD_DECODE_GATE_UP || (o.ffn_bound > 0 && o.ffn_scale && o.ffn_unscale));
}

}  // namespace
}  // namespace orcd

extern "C" uint32_t orcd_decode_matmul_splits(uint32_t n_rows, uint32_t n_cols) {
    const uint32_t n_tiles = orcd::div_ceil(n_rows, 2 * orcd::kPairs), n_chunks = orcd::div_ceil(n_cols, ORCD_CHUNK);
    // So many that a narrow matrix has blocks for every SM, unless warps were left without work;
    const uint32_t by_width = n_chunks / orcd::kMinSplitChunks;
    const uint32_t wanted = orcd::div_ceil(orcd::kEnoughBlocks, n_tiles);
    uint32_t n_splits = wanted < by_width ? wanted : by_width;
    // and where it is deep, so many that a warp has all its loads under way at once.
    const uint32_t by_depth = orcd::div_ceil(n_chunks, orcd::kMaxSplitChunks);
    if (n_tiles < orcd::kEnoughBlocks && n_splits < by_depth) n_splits = by_depth;
    if (n_splits > orcd::kMaxSplits) n_splits = orcd::kMaxSplits;
    return n_splits > 0 ? n_splits : 1;
}

extern "C" int32_t orcd_decode_matmul(const orcd_decode_matmul_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->output <= ORCD_DECODE_GATE_UP);
    const orcd_decode_matmul_args &a = *args;
    const uint32_t n_matrices = a.output == ORCD_DECODE_QKV ? 3 : a.output == ORCD_DECODE_GATE_UP ? 2 : 1;
    for (uint32_t i = 0; i < n_matrices; i++)
        ORCD_REQUIRE(orcd::is_matrix(a.w[i]) && a.w[i].n_cols == a.w[0].n_cols);
    if (a.norm.weight) {
        ORCD_REQUIRE(orcd::is_norm(a));
    } else {
        ORCD_REQUIRE(a.x && orcd::is_aligned(a.x, 16) && a.x_pitch % 8 == 0);
        ORCD_REQUIRE(a.x_pitch >= orcd::div_ceil(a.w[0].n_cols, ORCD_CHUNK) * ORCD_CHUNK);
    }
    ORCD_REQUIRE(a.x_unscale > 0);
    ORCD_REQUIRE(a.n_tokens > 0 && a.n_tokens <= 65535 * 32u && a.n_splits > 0 && a.n_splits <= 65535);
    switch (a.output) {
        case ORCD_DECODE_STORE:
            ORCD_REQUIRE(a.out);
            return orcd::launch_format<ORCD_DECODE_STORE>(a, n_matrices, stream);
        case ORCD_DECODE_QKV:
            ORCD_REQUIRE(a.n_splits == 1 && orcd::is_qkv(a));
            return orcd::launch_format<ORCD_DECODE_QKV>(a, n_matrices, stream);
        default:
            ORCD_REQUIRE(a.n_splits == 1 && a.act && (a.ffn_scale || a.norm.weight) && a.w[0].n_rows == a.w[1].n_rows);
            ORCD_REQUIRE(a.act_pitch >= a.w[0].n_rows);
            return orcd::launch_format<ORCD_DECODE_GATE_UP>(a, n_matrices, stream);
    }
}
