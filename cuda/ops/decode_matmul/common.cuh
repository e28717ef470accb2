// What both kernels of decode_matmul have in common: which rows a tile has, in which order a sum is made, and what is done with it.
#pragma once

#include "launch.h"
#include "mma.cuh"
#include "worker_cuda.h"

namespace orcd {
namespace {

// Slices of the columns that each split has: a sum is theirs, added in order.
constexpr int kWarps = 8;
// Rows in a tile of 16 are pairs: 8 first rows, then their 8 partners. What a pair is depends on the output.
constexpr int kPairs = 8;
constexpr uint32_t kPaddingRow = 0xFFFFFFFFu;

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

__host__ __device__ __forceinline__ Slice slice_of(uint32_t n_cols, uint32_t n_splits, uint32_t split, uint32_t warp) {
    const uint32_t n_chunks = div_ceil(n_cols, ORCD_CHUNK), n_slices = n_splits * kWarps;
    const uint32_t slice = split * kWarps + warp;
    return {slice * n_chunks / n_slices, (slice + 1) * n_chunks / n_slices};
}

__device__ __forceinline__ uint16_t half_bits(float v) {
    return __half_as_ushort(__float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)));
}

// What is done with a pair of sums, once they are there. What it needs of memory is fetched by `prepare`, before the sums are:
// one load that depends on another costs as much as the product.
template <int OUTPUT> struct Finish;

// Bias, RoPE, and where a pair of one token goes.
template <> struct Finish<ORCD_DECODE_QKV> {
    uint32_t head, which, head_of_matrix, position, block;  // `which` of the matrices
    uint2 at;
    float2 bias, turn;

    __device__ __forceinline__ uint32_t matrix() const { return which; }

    __device__ __forceinline__ void prepare(const orcd_decode_matmul_args &a, uint32_t pair, uint32_t token) {
        const orcd_decode_qkv &o = a.qkv;
        const uint32_t half = o.d_head / 2, i = pair % half;
        head = pair / half;
        at = rope_pair(o, i);
        const uint32_t kv_head = head - o.n_heads;
        which = head < o.n_heads ? 0 : kv_head < o.n_kv_heads ? 1 : 2;
        head_of_matrix = which == 0 ? head : which == 1 ? kv_head : kv_head - o.n_kv_heads;
        const uint32_t first_of_head = head_of_matrix * o.d_head;
        const float *biases = which == 0 ? o.bias[0] : which == 1 ? o.bias[1] : o.bias[2];
        bias = biases ? make_float2(biases[first_of_head + at.x], biases[first_of_head + at.y]) : make_float2(0, 0);
        position = o.positions[token];
        const bool is_real = position != kPaddingRow;
        block = is_real && which > 0 ? o.block_table[o.table_start[token] + position / 16] : 0;
        turn = make_float2(1, 0);
        if (is_real && which < 2 && i < o.n_rope / 2)
            turn = reinterpret_cast<const float2 *>(o.cos_sin)[(size_t)position * (o.n_rope / 2) + i];
    }

    __device__ __forceinline__ void write(const orcd_decode_matmul_args &a, uint32_t token, float, float first, float second) const {
        const orcd_decode_qkv &o = a.qkv;
        const float x = first + bias.x, y = second + bias.y;
        if (o.probe) {
            float *probe = o.probe + ((size_t)token * (o.n_heads + 2 * o.n_kv_heads) + head) * o.d_head;
            probe[at.x] = x;
            probe[at.y] = y;
        }
        // Said in full: two kernels compile this, and a compiler may round one product or the other.
        const float turned_x = __fmaf_rn(x, turn.x, -__fmul_rn(y, turn.y)), turned_y = __fmaf_rn(x, turn.y, __fmul_rn(y, turn.x));
        if (which == 0) {
            float *q = o.q + ((size_t)token * o.n_heads + head_of_matrix) * o.d_head;
            q[at.x] = turned_x;
            q[at.y] = turned_y;
            return;
        }
        if (position == kPaddingRow) return;
        uint16_t *pool = reinterpret_cast<uint16_t *>(which == 1 ? o.k_pool : o.v_pool) +
                         (((size_t)block * o.n_kv_heads + head_of_matrix) * 16 + position % 16) * o.d_head_pad;
        pool[at.x] = half_bits(turned_x);
        pool[at.y] = half_bits(turned_y);
        // The columns that pad a head stay zero: whoever writes the head's first value sees to it.
        if (at.x == 0)
            for (uint32_t c = o.d_head; c < o.d_head_pad; c++) pool[c] = 0;
    }
};

template <> struct Finish<ORCD_DECODE_GATE_UP> {
    uint32_t pair;
    __device__ __forceinline__ uint32_t matrix() const { return 0; }  // the first's
    __device__ __forceinline__ void prepare(const orcd_decode_matmul_args &, uint32_t of, uint32_t) { pair = of; }

    __device__ __forceinline__ void write(const orcd_decode_matmul_args &a, uint32_t token, float ffn_scale, float gate, float up) const {
        const float act = gate / (1.0f + expf(-gate)) * up;
        reinterpret_cast<__half *>(a.act)[(size_t)token * a.act_pitch + pair] = __float2half_rn(act * ffn_scale);
        if (a.act_f32) a.act_f32[(size_t)token * a.w[0].n_rows + pair] = act;
    }
};

}  // namespace
}  // namespace orcd
