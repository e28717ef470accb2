// decode_matmul: out[token, row] = sum over k of w[row, k] * x[token, k], for 1 to 256 generated tokens.
//
// Shapes:   w [n_rows, n_cols] of one format, or of several (mixed); x [n_tokens, x_pitch] f16; outputs as in the header.
// Aliasing: none.
// Mapping:  weights on the wide side of the matrix instruction (16 rows), tokens on the narrow one (8). A block has 8 warps
//           and 16 or 32 rows; each warp takes every row's same eighth of the columns, so that a block reads whole rows
//           and a narrow matrix still keeps many loads in flight. Tokens beyond 32 are the grid's second dimension.
//           A lane loads 16 bytes of a row at a time, straight into the registers that the instruction wants.
// Requires: rows padded to 32 columns with zeros, 16-byte aligned; see the launcher.
// Cost:     the matrix once from memory for up to 32 tokens, and from L2 for each further 32; x from L1 and L2.
// Numerics: F16 products, F32 sums. The order of a sum is given by the matrix's shape: n_splits times 8 slices of the
//           columns, each a chain of matrix instructions, added in order. It does not depend on the number of tokens, so
//           a token's bits do not either. Tolerance against the reference in test.cu.
// Source:   the layout of operands is that of PTX ISA, "Matrix fragments for mma.m16n8k16".
#include "dependency.cuh"
#include "weights.cuh"

namespace orcd {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Rows in a block's tile of 16 are pairs: 8 first rows, then their 8 partners. What a pair is depends on the output.
constexpr int kPairs = 8;
constexpr uint32_t kPaddingRow = 0xFFFFFFFFu;
// A block that fills all 132 SMs of the largest device in use, twice over, is not made smaller.
constexpr uint32_t kEnoughBlocks = 128;
constexpr uint32_t kMaxSplits = 8;
// A split narrower than this leaves warps without work.
constexpr uint32_t kMinSplitChunks = 12;
// For a tile whose rows are of different formats: the format is looked up for every row.
constexpr int kMixed = 100;

// A row of the concatenated matrices.
struct RowRef {
    uint32_t matrix;
    uint32_t row;
};

// What a head's pair i is: two of the head's values.
__device__ __forceinline__ uint2 rope_pair(const orcd_decode_qkv &qkv, uint32_t i) {
    const uint32_t half = qkv.n_rope / 2;
    if (i < half) return qkv.rope_adjacent ? make_uint2(2 * i, 2 * i + 1) : make_uint2(i, i + half);
    const uint32_t first = qkv.n_rope + 2 * (i - half);
    return make_uint2(first, first + 1);
}

// Which rows a pair of the tile stands for. `second` asks for the partner.
template <int OUTPUT> __device__ __forceinline__ RowRef row_of(const orcd_decode_matmul_args &a, uint32_t pair, bool second) {
    if (OUTPUT == ORCD_DECODE_STORE) {
        return {0, pair / kPairs * 2 * kPairs + pair % kPairs + (second ? kPairs : 0)};
    }
    if (OUTPUT == ORCD_DECODE_GATE_UP) return {second ? 1u : 0u, pair};
    const uint32_t half = a.qkv.d_head / 2;
    const uint32_t head = pair / half;
    const uint2 values = rope_pair(a.qkv, pair % half);
    const uint32_t in_head = second ? values.y : values.x;
    if (head < a.qkv.n_heads) return {0, head * a.qkv.d_head + in_head};
    const uint32_t kv_head = head - a.qkv.n_heads;
    if (kv_head < a.qkv.n_kv_heads) return {1, kv_head * a.qkv.d_head + in_head};
    return {2, (kv_head - a.qkv.n_kv_heads) * a.qkv.d_head + in_head};
}

template <int OUTPUT> __host__ __device__ __forceinline__ uint32_t n_pairs(const orcd_decode_matmul_args &a) {
    if (OUTPUT == ORCD_DECODE_STORE) return div_ceil(a.w[0].n_rows, 2 * kPairs) * kPairs;
    if (OUTPUT == ORCD_DECODE_GATE_UP) return a.w[0].n_rows;
    return (a.qkv.n_heads + 2 * a.qkv.n_kv_heads) * (a.qkv.d_head / 2);
}

// The chunks of one warp's slice.
struct Slice {
    uint32_t begin, end;
};

__device__ __forceinline__ Slice slice_of(uint32_t n_cols, uint32_t n_splits, uint32_t split, uint32_t warp) {
    const uint32_t n_chunks = div_ceil(n_cols, ORCD_CHUNK), n_slices = n_splits * kWarps;
    const uint32_t slice = split * kWarps + warp;
    return {slice * n_chunks / n_slices, (slice + 1) * n_chunks / n_slices};
}

// Chunks of each of M tiles that are loaded before the first is used.
template <int FORMAT, int M> __host__ __device__ constexpr int ahead() {
    if (FORMAT == kMixed) return 1;
    return (FORMAT == ORCD_FORMAT_F32 ? 2 : 4) / M;
}

// A lane's part of a row's chunk, of a format known when compiling, or not.
template <int FORMAT> struct RowPiece {
    Piece<FORMAT> piece;
    __device__ __forceinline__ void load(const orcd_matrix &w, uint32_t row, uint32_t chunk, int t) {
        piece.load(w, row, chunk, t);
    }
    __device__ __forceinline__ uint4 halves(float scale) const { return piece.halves(scale); }
};

template <> struct RowPiece<kMixed> {
    uint4 as_halves;
    __device__ __forceinline__ void load(const orcd_matrix &w, uint32_t row, uint32_t chunk, int t) {
        switch (w.format) {
            case ORCD_FORMAT_F16: return convert<ORCD_FORMAT_F16>(w, row, chunk, t);
            case ORCD_FORMAT_BF16: return convert<ORCD_FORMAT_BF16>(w, row, chunk, t);
            case ORCD_FORMAT_Q8_0: return convert<ORCD_FORMAT_Q8_0>(w, row, chunk, t);
            default: return convert<ORCD_FORMAT_F32>(w, row, chunk, t);
        }
    }
    template <int FORMAT> __device__ __forceinline__ void convert(const orcd_matrix &w, uint32_t row, uint32_t chunk, int t) {
        Piece<FORMAT> piece;
        piece.load(w, row, chunk, t);
        as_halves = piece.halves(w.scale);
    }
    __device__ __forceinline__ uint4 halves(float) const { return as_halves; }
};

__device__ __forceinline__ uint16_t half_bits(float v) {
    return __half_as_ushort(__float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)));
}

// Bias, RoPE, and where a pair of one token goes.
__device__ void finish_qkv(const orcd_decode_matmul_args &a, uint32_t pair, uint32_t token, float first, float second) {
    const orcd_decode_qkv &o = a.qkv;
    const uint32_t half = o.d_head / 2, head = pair / half, i = pair % half;
    const uint2 at = rope_pair(o, i);
    const RowRef row = row_of<ORCD_DECODE_QKV>(a, pair, false);
    const uint32_t head_of_matrix = row.row / o.d_head;
    if (o.bias[row.matrix]) {
        first += o.bias[row.matrix][head_of_matrix * o.d_head + at.x];
        second += o.bias[row.matrix][head_of_matrix * o.d_head + at.y];
    }
    if (o.probe) {
        float *probe = o.probe + ((size_t)token * (o.n_heads + 2 * o.n_kv_heads) + head) * o.d_head;
        probe[at.x] = first;
        probe[at.y] = second;
    }
    const uint32_t position = o.positions[token];
    if (row.matrix < 2 && i < o.n_rope / 2 && position != kPaddingRow) {
        const float2 turn = reinterpret_cast<const float2 *>(o.cos_sin)[(size_t)position * (o.n_rope / 2) + i];
        const float x = first, y = second;
        first = x * turn.x - y * turn.y;
        second = x * turn.y + y * turn.x;
    }
    if (row.matrix == 0) {
        float *q = o.q + ((size_t)token * o.n_heads + head_of_matrix) * o.d_head;
        q[at.x] = first;
        q[at.y] = second;
        return;
    }
    if (position == kPaddingRow) return;
    const uint32_t block = o.block_table[o.table_start[token] + position / 16];
    uint16_t *pool = reinterpret_cast<uint16_t *>(row.matrix == 1 ? o.k_pool : o.v_pool) +
                     (((size_t)block * o.n_kv_heads + head_of_matrix) * 16 + position % 16) * o.d_head_pad;
    pool[at.x] = half_bits(first);
    pool[at.y] = half_bits(second);
    // The columns that pad a head stay zero: whoever writes the head's first pair sees to it.
    if (i == 0) {
        for (uint32_t c = o.d_head; c < o.d_head_pad; c++) pool[c] = 0;
    }
}

__device__ void finish_gate_up(const orcd_decode_matmul_args &a, uint32_t pair, uint32_t token, float gate, float up) {
    const float act = gate / (1.0f + expf(-gate)) * up;
    reinterpret_cast<__half *>(a.act)[(size_t)token * a.act_pitch + pair] = __float2half_rn(act * a.ffn_scale[token]);
    if (a.act_f32) a.act_f32[(size_t)token * a.w[0].n_rows + pair] = act;
}

// M tiles of 16 rows and N tiles of 8 tokens a block.
template <int FORMAT, int OUTPUT, int M, int N> __global__ void __launch_bounds__(kThreads) warp_per_slice(orcd_decode_matmul_args a) {
    constexpr int kRows = M * 2 * kPairs;
    constexpr int kTokens = N * 8;
    constexpr int kPitch = kRows + 4;  // so that the 32 stores of a fragment go to 32 banks
    constexpr int kAhead = ahead<FORMAT, M>();
    __shared__ float sums[kWarps][kTokens][kPitch];

    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t split = blockIdx.z, first_token = blockIdx.y * kTokens, first_pair = blockIdx.x * (M * kPairs);
    const uint32_t last_pair = n_pairs<OUTPUT>(a) - 1;
    const Slice slice = slice_of(a.w[0].n_cols, a.n_splits, split, warp);

    let_successor_start();
    // Rows beyond the last are computed as copies of the last and not written.
    RowRef rows[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int second = 0; second < 2; second++) {
            rows[m][second] = row_of<OUTPUT>(a, min(first_pair + m * kPairs + g, last_pair), second);
            if (OUTPUT == ORCD_DECODE_STORE) rows[m][second].row = min(rows[m][second].row, a.w[0].n_rows - 1);
        }
    }
    RowPiece<FORMAT> pieces[kAhead][M][2];
    auto load = [&](int slot, uint32_t chunk) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int second = 0; second < 2; second++)
                pieces[slot][m][second].load(a.w[rows[m][second].matrix], rows[m][second].row, chunk, t);
        }
    };
#pragma unroll
    for (int i = 0; i < kAhead; i++)
        if (slice.begin + i < slice.end) load(i, slice.begin + i);

    // The weights are on their way; the activations have to wait for the kernel that makes them.
    wait_for_predecessor();
    const char *x[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        const uint32_t token = min(first_token + n * 8 + g, a.n_tokens - 1);
        x[n] = reinterpret_cast<const char *>(a.x) + (size_t)token * a.x_pitch * 2 + t * 16;
    }
    float c[M][N][4] = {};
    for (uint32_t base = slice.begin; base < slice.end; base += kAhead) {
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
            const uint32_t chunk = base + i;
            if (chunk >= slice.end) break;
            uint4 first[M], second[M];
#pragma unroll
            for (int m = 0; m < M; m++) {
                first[m] = pieces[i][m][0].halves(a.w[rows[m][0].matrix].scale);
                second[m] = pieces[i][m][1].halves(a.w[rows[m][1].matrix].scale);
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
        sum *= a.x_unscale / scale;  // powers of two
        return a.row_unscale ? sum * a.row_unscale[first_token + token] : sum;
    };
    const uint32_t n_here = min((uint32_t)kTokens, a.n_tokens - first_token);
    if constexpr (OUTPUT == ORCD_DECODE_STORE) {
        for (uint32_t i = threadIdx.x; i < n_here * kRows; i += kThreads) {
            const uint32_t token = i / kRows, row = blockIdx.x * kRows + i % kRows;
            if (row < a.w[0].n_rows) {
                a.out[((size_t)split * a.n_tokens + first_token + token) * a.w[0].n_rows + row] =
                    total(token, i % kRows, a.w[0].scale);
            }
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n_here * (kRows / 2); i += kThreads) {
            const uint32_t token = i / (kRows / 2), pair_of_tile = i % (kRows / 2), pair = first_pair + pair_of_tile;
            if (pair > last_pair) continue;
            const uint32_t row = pair_of_tile / kPairs * 2 * kPairs + pair_of_tile % kPairs;
            const RowRef refs[2] = {row_of<OUTPUT>(a, pair, false), row_of<OUTPUT>(a, pair, true)};
            const float first = total(token, row, a.w[refs[0].matrix].scale);
            const float second = total(token, row + kPairs, a.w[refs[1].matrix].scale);
            if constexpr (OUTPUT == ORCD_DECODE_QKV) finish_qkv(a, pair, first_token + token, first, second);
            else finish_gate_up(a, pair, first_token + token, first, second);
        }
    }
}

template <int FORMAT, int OUTPUT, int M, int N> int32_t launch_tile(const orcd_decode_matmul_args &a, orcd_stream stream) {
    const dim3 grid(div_ceil(n_pairs<OUTPUT>(a), M * kPairs), div_ceil(a.n_tokens, N * 8), a.n_splits);
    return launch(warp_per_slice<FORMAT, OUTPUT, M, N>, grid, dim3(kThreads), 0, stream, a);
}

// The number of tokens chooses how many of them share a block, which changes no sum.
template <int FORMAT, int OUTPUT> int32_t launch_output(const orcd_decode_matmul_args &a, orcd_stream stream) {
    if (a.n_tokens <= 8) return launch_tile<FORMAT, OUTPUT, 1, 1>(a, stream);
    if (a.n_tokens <= 16) return launch_tile<FORMAT, OUTPUT, 1, 2>(a, stream);
    return launch_tile<FORMAT, OUTPUT, 2, 4>(a, stream);
}

template <int OUTPUT> int32_t launch_format(const orcd_decode_matmul_args &a, uint32_t n_matrices, orcd_stream stream) {
    uint32_t format = a.w[0].format;
    for (uint32_t i = 1; i < n_matrices; i++)
        if (a.w[i].format != format) format = kMixed;
    switch (format) {
        case ORCD_FORMAT_F16: return launch_output<ORCD_FORMAT_F16, OUTPUT>(a, stream);
        case ORCD_FORMAT_BF16: return launch_output<ORCD_FORMAT_BF16, OUTPUT>(a, stream);
        case ORCD_FORMAT_Q8_0: return launch_output<ORCD_FORMAT_Q8_0, OUTPUT>(a, stream);
        case ORCD_FORMAT_F32: return launch_output<ORCD_FORMAT_F32, OUTPUT>(a, stream);
        default: return launch_output<kMixed, OUTPUT>(a, stream);
    }
}

bool is_qkv(const orcd_decode_matmul_args &a) {
    const orcd_decode_qkv &o = a.qkv;
    return o.cos_sin && o.q && o.k_pool && o.v_pool && o.block_table && o.table_start && o.positions && o.d_head % 2 == 0 &&
           o.n_rope % 2 == 0 && o.n_rope <= o.d_head && o.d_head <= o.d_head_pad && a.w[0].n_rows == o.n_heads * o.d_head &&
           a.w[1].n_rows == o.n_kv_heads * o.d_head && a.w[2].n_rows == o.n_kv_heads * o.d_head;
}

}  // namespace
}  // namespace orcd

extern "C" uint32_t orcd_decode_matmul_splits(uint32_t n_rows, uint32_t n_cols) {
    const uint32_t n_tiles = orcd::div_ceil(n_rows, 2 * orcd::kPairs);
    const uint32_t by_width = orcd::div_ceil(n_cols, ORCD_CHUNK) / orcd::kMinSplitChunks;
    const uint32_t wanted = orcd::div_ceil(orcd::kEnoughBlocks, n_tiles);
    uint32_t n_splits = wanted < by_width ? wanted : by_width;
    if (n_splits > orcd::kMaxSplits) n_splits = orcd::kMaxSplits;
    return n_splits > 0 ? n_splits : 1;
}

extern "C" int32_t orcd_decode_matmul(const orcd_decode_matmul_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->output <= ORCD_DECODE_GATE_UP);
    const orcd_decode_matmul_args &a = *args;
    const uint32_t n_matrices = a.output == ORCD_DECODE_QKV ? 3 : a.output == ORCD_DECODE_GATE_UP ? 2 : 1;
    for (uint32_t i = 0; i < n_matrices; i++)
        ORCD_REQUIRE(orcd::is_matrix(a.w[i]) && a.w[i].n_cols == a.w[0].n_cols);
    ORCD_REQUIRE(a.x && orcd::is_aligned(a.x, 16) && a.x_pitch % 8 == 0);
    ORCD_REQUIRE(a.x_pitch >= orcd::div_ceil(a.w[0].n_cols, ORCD_CHUNK) * ORCD_CHUNK && a.x_unscale > 0);
    ORCD_REQUIRE(a.n_tokens > 0 && a.n_tokens <= 65535 * 32u && a.n_splits > 0 && a.n_splits <= 65535);
    switch (a.output) {
        case ORCD_DECODE_STORE:
            ORCD_REQUIRE(a.out);
            return orcd::launch_format<ORCD_DECODE_STORE>(a, n_matrices, stream);
        case ORCD_DECODE_QKV:
            ORCD_REQUIRE(a.n_splits == 1 && orcd::is_qkv(a));
            return orcd::launch_format<ORCD_DECODE_QKV>(a, n_matrices, stream);
        default:
            ORCD_REQUIRE(a.n_splits == 1 && a.act && a.ffn_scale && a.w[0].n_rows == a.w[1].n_rows);
            ORCD_REQUIRE(a.act_pitch >= a.w[0].n_rows);
            return orcd::launch_format<ORCD_DECODE_GATE_UP>(a, n_matrices, stream);
    }
}
