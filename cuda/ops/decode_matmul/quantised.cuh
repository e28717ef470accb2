// decode_matmul of quantised matrices, and of several in different formats: numbers are multiplied as they are, scales come after.
//
// A number of up to eight bits is a half, and its product with a half is an F32. So a matrix instruction multiplies the numbers
// themselves, one chain from zero for each group of columns that shares a scale, and the group's sum is multiplied by the scale in
// F32: no weight is rounded to a half, and there is less to compute than with scales on the weights. What a format adds to
// each value of a group is multiplied by the sum of the group's activations, which is a product with ones.
//
// A lane has columns 4t to 4t+3 and 16+4t to 16+4t+3 of a chunk: the first instruction is the first 16 columns.
#pragma once

#include "common.cuh"
#include "planes.cuh"

namespace orcd {
namespace {

// Rows of different formats, or of one for which there is no kernel of its own: how to read is looked up while reading.
constexpr int kAny = 100;

// Whether a kernel for the format works as above.
__host__ __device__ constexpr bool has_scales_after(int format) { return format >= ORCD_FORMAT_Q8_0; }

// One row of a matrix at one lane.
template <int FORMAT> struct LaneRow {
    static constexpr int kGroups = planes_of(FORMAT).n_groups();
    static constexpr bool kOffset = planes_of(FORMAT).has_offset();
    using Loaded = PlanePiece;
    PlaneRow at;

    __device__ __forceinline__ void find(const orcd_matrix &w, uint32_t row, int t) {
        constexpr Planes k = planes_of(FORMAT);
        at.find(k, w, row, t);
    }
    __device__ __forceinline__ void load(Loaded &piece, uint32_t chunk) const {
        constexpr Planes k = planes_of(FORMAT);
        piece.load(k, at, chunk);
    }
    __device__ __forceinline__ uint4 numbers(const Loaded &piece, int t) const {
        constexpr Planes k = planes_of(FORMAT);
        return numbers_of(k, piece, t);
    }
    __device__ __forceinline__ PlaneScale scale(const Loaded &piece) const {
        constexpr Planes k = planes_of(FORMAT);
        return scale_of(k, piece);
    }
};

struct AnyPiece {
    PlanePiece plane;
    uint32_t upper[2]; // of eight halves, the last four
};

template <> struct LaneRow<kAny> {
    static constexpr int kGroups = 2;
    static constexpr bool kOffset = true;
    using Loaded = AnyPiece;
    PlaneRow at;
    uint32_t packed;  // the planes: in one register
    uint32_t format;
    float matrix_scale;

    __device__ __forceinline__ Planes planes() const {
        return {(int)(packed & 15),           (int)(packed >> 4 & 3), (int)(packed >> 6 & 255), (Scales)(packed >> 14 & 7),
                (int)(packed >> 17 & 255), (Table)(packed >> 25)};
    }

    __device__ __forceinline__ void find(const orcd_matrix &w, uint32_t row, int t) {
        format = w.format;
        matrix_scale = w.scale;
        const Planes k = planes_of(format);
        packed = (uint32_t)k.low_bits | (uint32_t)k.high_bits << 4 | (uint32_t)k.center << 6 | (uint32_t)k.scales << 14 |
                 (uint32_t)k.scale_center << 17 | (uint32_t)k.table << 25;
        if (is_quantised(format)) return at.find(k, w, row, t);
        at.low = static_cast<const char *>(w.values) + row * w.row_bytes + t * (format == ORCD_FORMAT_F32 ? 16 : 8);
    }

    __device__ __forceinline__ void load(Loaded &piece, uint32_t chunk) const {
        if (is_quantised(format)) return piece.plane.load(planes(), at, chunk);
        if (format == ORCD_FORMAT_F32) {
            const uint4 first = load_constant_16(at.low + chunk * 128), second = load_constant_16(at.low + chunk * 128 + 64);
            piece.plane.low[0] = pair(first.x, first.y);
            piece.plane.low[1] = pair(first.z, first.w);
            piece.upper[0] = pair(second.x, second.y);
            piece.upper[1] = pair(second.z, second.w);
            return;
        }
        const uint2 first = load_constant_8(at.low + chunk * 64), second = load_constant_8(at.low + chunk * 64 + 32);
        piece.plane.low[0] = first.x;
        piece.plane.low[1] = first.y;
        piece.upper[0] = second.x;
        piece.upper[1] = second.y;
    }

    __device__ __forceinline__ uint4 numbers(const Loaded &piece, int t) const {
        if (is_quantised(format)) return numbers_of(planes(), piece.plane, t);
        const uint4 halves = make_uint4(piece.plane.low[0], piece.plane.low[1], piece.upper[0], piece.upper[1]);
        if (format != ORCD_FORMAT_BF16) return halves;
        auto of = [this](uint32_t two) { return pair(two << 16, two & 0xFFFF0000u); };
        return make_uint4(of(halves.x), of(halves.y), of(halves.z), of(halves.w));
    }

    __device__ __forceinline__ PlaneScale scale(const Loaded &piece) const {
        PlaneScale s = {{1, 1}, {0, 0}};
        if (!is_quantised(format)) return s;
        const Planes k = planes();
        const PlaneScale of = scale_of(k, piece.plane);
        const bool two = k.n_groups() == 2;
        s.scale[0] = of.scale[0];
        s.scale[1] = two ? of.scale[1] : of.scale[0];
        if (k.has_offset()) {
            s.offset[0] = of.offset[0];
            s.offset[1] = two ? of.offset[1] : of.offset[0];
        }
        return s;
    }

  private:
    // Two floats' bits as halves, times the matrix's scale.
    __device__ __forceinline__ uint32_t pair(uint32_t a, uint32_t b) const {
        return pack_half2(__uint_as_float(a) * matrix_scale, __uint_as_float(b) * matrix_scale);
    }
};

// What a kernel's sums are still multiplied by: the matrix's scale, if weights were.
template <int FORMAT> __device__ __forceinline__ float scale_in_sums(const orcd_matrix &w) {
    if (has_scales_after(FORMAT) && FORMAT != kAny) return 1.0f;
    return FORMAT == kAny && is_quantised(w.format) ? 1.0f : w.scale;
}

// A token tile's activations of a chunk: four halves of the first 16 columns, four of the others, and the sums over columns of
// tokens 2t and 2t+1, of each group.
template <int GROUPS, bool OFFSET> struct ChunkOfTokens {
    uint2 first, second;
    float sums[GROUPS][2];

    __device__ __forceinline__ void load(const char *x) {
        first = *reinterpret_cast<const uint2 *>(x);
        second = *reinterpret_cast<const uint2 *>(x + 32);
        if constexpr (OFFSET) {
            constexpr uint32_t ones = 0x3C003C00u;
            float of[GROUPS][4] = {};
            mma_16816(of[0], ones, ones, ones, ones, first.x, first.y);
            mma_16816(of[GROUPS - 1], ones, ones, ones, ones, second.x, second.y);
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                sums[group][0] = of[group][0];
                sums[group][1] = of[group][1];
            }
        }
    }
};

// c += the chunk's products of a tile of 16 rows, of which a lane has one and its partner: `a` and `b` are their numbers.
template <int GROUPS, bool OFFSET>
__device__ __forceinline__ void multiply_chunk(float (&c)[4], const uint4 &a, const uint4 &b, const PlaneScale &scale_a,
                                               const PlaneScale &scale_b, const ChunkOfTokens<GROUPS, OFFSET> &x) {
    float of[GROUPS][4] = {};
    mma_16816(of[0], a.x, b.x, a.y, b.y, x.first.x, x.first.y);
    mma_16816(of[GROUPS - 1], a.z, b.z, a.w, b.w, x.second.x, x.second.y);
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
#pragma unroll
        for (int i = 0; i < 4; i++) c[i] = __fmaf_rn(of[group][i], i < 2 ? scale_a.scale[group] : scale_b.scale[group], c[i]);
        if constexpr (OFFSET) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                c[i] = __fmaf_rn(x.sums[group][i % 2], i < 2 ? scale_a.offset[group] : scale_b.offset[group], c[i]);
        }
    }
}

}  // namespace
}  // namespace orcd
