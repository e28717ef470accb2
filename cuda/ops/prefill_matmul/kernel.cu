// prefill_matmul: out[token, row] = sum over k of w[row, k] * x[token, k], for the tokens of prompts.
//
// Shapes:   w [n_rows, w_pitch] f16; x [n_tokens, x_pitch] f16; outputs as in the header.
// Aliasing: none; ADD updates out in place.
// Where:    every device from sm_80 on; kernel_wgmma.cu has a path for Hopper.
// Mapping:  a block computes a tile of tokens times rows; tiles of 32 columns of both operands come through a ring of
//           shared memory, kStages deep, by asynchronous copies. Tokens are the matrix instruction's rows.
// Requires: both operands padded to 32 columns with zeros, rows on 16 bytes.
// Cost:     2 n_tokens n_rows n_cols operations; see notes.md for what it reaches.
// Numerics: F16 products, F32 sums. Every sum is one chain of matrix instructions in ascending k, whatever the tile, so a
//           token's bits depend neither on the number of tokens nor on the tile that was chosen.
// Source:   the layout of operands is that of PTX ISA, "Matrix fragments for mma.m16n8k16".
#include "dependency.cuh"
#include "launch.h"
#include "mma.cuh"
#include "wgmma.h"

#include <atomic>

namespace orcd {
namespace {

// Whether prompts take the path for Hopper where there is one. Chosen by the device alone: never by the number of tokens, on
// which a token's bits must not depend.
constexpr bool kWgmmaIsDefault = true;

constexpr int kColumns = ORCD_CHUNK;     // of a tile
constexpr int kRowBytes = kColumns * 2;  // four pieces of 16 bytes
constexpr int kStages = 4;

// Where a 16-byte piece of a tile's row lies: four rows' eight lanes of ldmatrix meet all banks once.
__device__ __forceinline__ uint32_t offset_of(uint32_t row, uint32_t piece) {
    return row * kRowBytes + ((piece ^ (row >> 1 & 3)) << 4);
}

// A tile of kTokens x kRows by kTokenWarps x kRowWarps warps.
template <int TOKENS, int ROWS, int TOKEN_WARPS, int ROW_WARPS> struct Tile {
    static constexpr int kTokens = TOKENS, kRows = ROWS, kTokenWarps = TOKEN_WARPS;
    static constexpr int kThreads = TOKEN_WARPS * ROW_WARPS * 32;
    static constexpr int kM = TOKENS / TOKEN_WARPS / 16, kN = ROWS / ROW_WARPS / 8;
    static constexpr int kStageBytes = (TOKENS + ROWS) * kRowBytes;
    static constexpr int kSharedBytes = kStages * kStageBytes;
};
using Wide = Tile<128, 128, 2, 4>;
using Narrow = Tile<64, 64, 2, 2>;

// The row of w that row r of the tile is. For GATE_UP, 8 gate rows and the 8 up rows that belong to them take turns, so that
// one thread has both.
template <class T, int OUTPUT>
__device__ __forceinline__ const __half *weight_row(const orcd_prefill_matmul_args &a, uint32_t tile, uint32_t r, bool &valid) {
    uint32_t row = tile * T::kRows + r, matrix = 0;
    if (OUTPUT == ORCD_PREFILL_GATE_UP) {
        row = tile * (T::kRows / 2) + r / 16 * 8 + r % 8;
        matrix = r / 8 % 2;
    }
    valid = row < a.n_rows;
    return reinterpret_cast<const __half *>(matrix ? a.w[1] : a.w[0]) + (size_t)(valid ? row : 0) * a.w_pitch;
}

template <class T, int OUTPUT> __global__ void __launch_bounds__(T::kThreads) block_per_tile(orcd_prefill_matmul_args a) {
    extern __shared__ __align__(128) char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int token_warp = warp % T::kTokenWarps, row_warp = warp / T::kTokenWarps;
    const uint32_t first_token = blockIdx.y * T::kTokens;
    const uint32_t n_steps = div_ceil(a.n_cols, kColumns);
    const uint32_t ring = shared_address(shared);

    let_successor_start();
    wait_for_predecessor();

    // Each thread copies the same pieces of every step.
    constexpr int kPieces = (T::kTokens + T::kRows) * 4 / T::kThreads;
    const __half *from[kPieces];
    uint32_t to[kPieces];
    bool valid[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; i++) {
        const uint32_t index = threadIdx.x + i * T::kThreads, row = index / 4, piece = index % 4;
        to[i] = ring + offset_of(row, piece);
        if (row < T::kTokens) {
            valid[i] = first_token + row < a.n_tokens;
            from[i] = reinterpret_cast<const __half *>(a.x) + (size_t)(valid[i] ? first_token + row : 0) * a.x_pitch;
        } else {
            from[i] = weight_row<T, OUTPUT>(a, blockIdx.x, row - T::kTokens, valid[i]);
        }
        from[i] += piece * 8;
    }
    auto copy = [&](uint32_t step) {
        if (step < n_steps) {
#pragma unroll
            for (int i = 0; i < kPieces; i++)
                copy_async_16(to[i] + step % kStages * T::kStageBytes, from[i] + step * kColumns, valid[i]);
        }
        copy_async_commit();  // an empty group keeps the count
    };
#pragma unroll
    for (int i = 0; i < kStages - 1; i++) copy(i);

    float c[T::kM][T::kN][4] = {};
    for (uint32_t step = 0; step < n_steps; step++) {
        copy_async_wait<kStages - 2>();
        __syncthreads();  // this step's tiles are there, and nobody reads the step before any more
        copy(step + kStages - 1);
        const uint32_t x_tile = ring + step % kStages * T::kStageBytes, w_tile = x_tile + T::kTokens * kRowBytes;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint32_t x[T::kM][4], w[T::kN / 2][4];
#pragma unroll
            for (int m = 0; m < T::kM; m++) {
                // Matrices: rows 0-7 and 8-15 of the first 8 columns, then of the second 8.
                const uint32_t row = token_warp * T::kM * 16 + m * 16 + lane % 16;
                ldmatrix_x4(x[m], x_tile + offset_of(row, k * 2 + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < T::kN / 2; n++) {
                // Matrices: 8 rows' first and second 8 columns, then the next 8 rows'.
                const uint32_t row = row_warp * T::kN * 8 + n * 16 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(w[n], w_tile + offset_of(row, k * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int m = 0; m < T::kM; m++) {
#pragma unroll
                for (int n = 0; n < T::kN; n++)
                    mma_16816(c[m][n], x[m][0], x[m][1], x[m][2], x[m][3], w[n / 2][n % 2 * 2], w[n / 2][n % 2 * 2 + 1]);
            }
        }
    }

#pragma unroll
    for (int m = 0; m < T::kM; m++) {
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            const uint32_t token = first_token + token_warp * T::kM * 16 + m * 16 + lane / 4 + lower * 8;
            if (token >= a.n_tokens) continue;
            const float row_unscale = a.row_unscale ? a.row_unscale[token] : 1.0f;
            if constexpr (OUTPUT == ORCD_PREFILL_GATE_UP) {
#pragma unroll
                for (int n = 0; n < T::kN; n += 2) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const uint32_t row = blockIdx.x * (T::kRows / 2) + row_warp * T::kN * 4 + n * 4 + lane % 4 * 2 + i;
                        if (row >= a.n_rows) continue;
                        const float gate = c[m][n][lower * 2 + i] * a.unscale[0] * row_unscale;
                        const float up = c[m][n + 1][lower * 2 + i] * a.unscale[1] * row_unscale;
                        const float act = gate / (1.0f + expf(-gate)) * up;
                        reinterpret_cast<__half *>(a.act)[(size_t)token * a.act_pitch + row] =
                            __float2half_rn(act * a.ffn_scale[token]);
                        if (a.probe) a.probe[(size_t)token * a.n_rows + row] = act;
                    }
                }
            } else {
#pragma unroll
                for (int n = 0; n < T::kN; n++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const uint32_t row = blockIdx.x * T::kRows + row_warp * T::kN * 8 + n * 8 + lane % 4 * 2 + i;
                        if (row >= a.n_rows) continue;
                        const float sum = c[m][n][lower * 2 + i] * a.unscale[0] * row_unscale;
                        float &out = a.out[(size_t)token * a.out_pitch + row];
                        if (OUTPUT == ORCD_PREFILL_STORE) out = a.bias ? sum + a.bias[row] : sum;
                        if (OUTPUT == ORCD_PREFILL_ADD) {
                            out += sum;
                            if (a.probe) a.probe[(size_t)token * a.n_rows + row] = sum;
                        }
                    }
                }
            }
        }
    }
}

// More than 48 KB of shared memory has to be asked for, once a device.
template <class T, int OUTPUT> cudaError_t prepare() {
    constexpr int kMaxDevices = 64;  // beyond it, every time
    static std::atomic<bool> done[kMaxDevices];
    int device = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status != cudaSuccess || (device < kMaxDevices && done[device].load(std::memory_order_relaxed))) return status;
    status = cudaFuncSetAttribute(block_per_tile<T, OUTPUT>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
    if (status == cudaSuccess && device < kMaxDevices) done[device].store(true, std::memory_order_relaxed);
    return status;
}

template <class T, int OUTPUT> int32_t launch_tile(const orcd_prefill_matmul_args &a, orcd_stream stream) {
    const cudaError_t status = prepare<T, OUTPUT>();
    if (status != cudaSuccess) return (int32_t)status;
    const uint32_t n_rows = a.n_rows * (OUTPUT == ORCD_PREFILL_GATE_UP ? 2 : 1);
    const dim3 grid(div_ceil(n_rows, T::kRows), div_ceil(a.n_tokens, T::kTokens));
    return launch(block_per_tile<T, OUTPUT>, grid, dim3(T::kThreads), T::kSharedBytes, stream, a);
}

// Small products take the small tile, so that more of the device has work.
template <int OUTPUT> int32_t launch_output(const orcd_prefill_matmul_args &a, orcd_stream stream) {
    constexpr uint32_t kEnoughBlocks = 256;
    const uint32_t n_rows = a.n_rows * (OUTPUT == ORCD_PREFILL_GATE_UP ? 2 : 1);
    const uint32_t n_wide = div_ceil(n_rows, Wide::kRows) * div_ceil(a.n_tokens, Wide::kTokens);
    return n_wide >= kEnoughBlocks ? launch_tile<Wide, OUTPUT>(a, stream) : launch_tile<Narrow, OUTPUT>(a, stream);
}

int32_t launch_path(const orcd_prefill_matmul_args &a, orcd_stream stream) {
    if (a.path >= ORCD_PREFILL_WGMMA_TILE_0) return prefill_wgmma(a, a.path - ORCD_PREFILL_WGMMA_TILE_0, stream);
    if (a.path == ORCD_PREFILL_WGMMA || (a.path == ORCD_PREFILL_AUTO && kWgmmaIsDefault && has_prefill_wgmma()))
        return prefill_wgmma(a, kBestTile, stream);
    switch (a.output) {
        case ORCD_PREFILL_STORE: return launch_output<ORCD_PREFILL_STORE>(a, stream);
        case ORCD_PREFILL_ADD: return launch_output<ORCD_PREFILL_ADD>(a, stream);
        default: return launch_output<ORCD_PREFILL_GATE_UP>(a, stream);
    }
}

}  // namespace
}  // namespace orcd

extern "C" int32_t orcd_prefill_matmul(const orcd_prefill_matmul_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->w[0] && args->x && args->n_tokens > 0 && args->n_rows > 0 && args->n_cols > 0);
    const orcd_prefill_matmul_args &a = *args;
    const uint32_t padded = orcd::div_ceil(a.n_cols, ORCD_CHUNK) * ORCD_CHUNK;
    ORCD_REQUIRE(a.w_pitch >= padded && a.x_pitch >= padded && a.w_pitch % 8 == 0 && a.x_pitch % 8 == 0);
    ORCD_REQUIRE(orcd::is_aligned(a.w[0], 16) && orcd::is_aligned(a.x, 16));
    switch (a.output) {
        case ORCD_PREFILL_STORE:
        case ORCD_PREFILL_ADD: ORCD_REQUIRE(a.out && a.out_pitch >= a.n_rows); break;
        case ORCD_PREFILL_GATE_UP:
            ORCD_REQUIRE(a.w[1] && orcd::is_aligned(a.w[1], 16) && a.act && a.ffn_scale && a.act_pitch >= a.n_rows);
            break;
        default: return (int32_t)cudaErrorInvalidValue;
    }
    return orcd::launch_path(a, stream);
}
