// Weights: dequantize, row_stats.
//
// Mapping:  one warp per row. Of a quantised one, a lane makes eight values of a chunk at a time; of others, one value.
// Cost:     bandwidth; run once at load, except dequantize, which runs once a step for each quantised matrix of a prompt.
// Numerics: dequantize rounds the value that the CPU has once, to half. row_stats sums squares in F32, in an order given by n_cols.
#include "dependency.cuh"
#include "weights.cuh"

namespace orcd {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / 32;

__global__ void __launch_bounds__(kThreads) dequantize_warp_per_row(orcd_dequantize_args a) {
    let_successor_start();
    wait_for_predecessor();
    const uint32_t row = blockIdx.x * kRowsPerBlock + threadIdx.x / 32;
    if (row >= a.w.n_rows) return;
    __half *out = reinterpret_cast<__half *>(a.out) + (size_t)row * a.out_pitch;
    for (uint32_t i = threadIdx.x % 32; i < a.out_pitch; i += 32)
        out[i] = i < a.w.n_cols ? __float2half_rn(weight_value(a.w, row, i) * a.w.scale) : __half(0.0f);
}

__global__ void __launch_bounds__(kThreads) dequantize_planes(orcd_dequantize_args a) {
    let_successor_start();
    wait_for_predecessor();
    const uint32_t row = blockIdx.x * kRowsPerBlock + threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
    if (row >= a.w.n_rows) return;
    const Planes k = planes_of(a.w.format);
    PlaneRow at;
    at.find(k, a.w, row, t);
    __half *out = reinterpret_cast<__half *>(a.out) + (size_t)row * a.out_pitch;
    for (uint32_t chunk = lane / 4; chunk < a.w.n_cols / ORCD_CHUNK; chunk += 8) {
        PlanePiece piece;
        piece.load(k, at, chunk);
        float v[8];
        values_of(k, piece, t, v);
        const float s = a.w.scale;
        __half *to = out + chunk * ORCD_CHUNK + 4 * t;
        *reinterpret_cast<uint2 *>(to) = make_uint2(pack_half2(v[0] * s, v[1] * s), pack_half2(v[2] * s, v[3] * s));
        *reinterpret_cast<uint2 *>(to + 16) = make_uint2(pack_half2(v[4] * s, v[5] * s), pack_half2(v[6] * s, v[7] * s));
    }
    for (uint32_t i = a.w.n_cols + lane; i < a.out_pitch; i += 32) out[i] = __half(0.0f);
}

__global__ void __launch_bounds__(kThreads) stats_warp_per_row(orcd_row_stats_args a) {
    wait_for_predecessor();
    const uint32_t row = blockIdx.x * kRowsPerBlock + threadIdx.x / 32;
    if (row >= a.w.n_rows) return;
    float largest = 0, sum = 0;
    for (uint32_t i = threadIdx.x % 32; i < a.w.n_cols; i += 32) {
        const float v = weight_value(a.w, row, i);
        largest = fmaxf(largest, fabsf(v));
        sum += v * v;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
        sum += __shfl_xor_sync(~0u, sum, offset);
    }
    if (threadIdx.x % 32 == 0) {
        a.largest[row] = largest;
        a.norm[row] = sqrtf(sum);
    }
}

}  // namespace
}  // namespace orcd

extern "C" int32_t orcd_dequantize(const orcd_dequantize_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && orcd::is_matrix(args->w) && args->out && args->out_pitch >= args->w.n_cols);
    const dim3 grid(orcd::div_ceil(args->w.n_rows, orcd::kRowsPerBlock));
    if (orcd::is_quantised(args->w.format)) {
        ORCD_REQUIRE(orcd::is_aligned(args->out, 8) && args->out_pitch % 4 == 0);
        return orcd::launch(orcd::dequantize_planes, grid, dim3(orcd::kThreads), 0, stream, *args);
    }
    return orcd::launch(orcd::dequantize_warp_per_row, grid, dim3(orcd::kThreads), 0, stream, *args);
}

extern "C" int32_t orcd_row_stats(const orcd_row_stats_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && orcd::is_matrix(args->w) && args->largest && args->norm);
    const dim3 grid(orcd::div_ceil(args->w.n_rows, orcd::kRowsPerBlock));
    return orcd::launch(orcd::stats_warp_per_row, grid, dim3(orcd::kThreads), 0, stream, *args);
}

extern "C" int32_t orcd_set_dependent_launch(int32_t enabled) {
    // Code made from PTX for something older than Hopper waits for nobody (dependency.cuh), on whatever device it runs. One
    // kernel answers for all: they are compiled for the same architectures.
    cudaFuncAttributes attributes{};
    const bool waits = cudaFuncGetAttributes(&attributes, orcd::dequantize_warp_per_row) == cudaSuccess &&
                       attributes.ptxVersion >= 90;
    cudaGetLastError();  // a kernel that cannot be asked cannot be launched either, which says why
    orcd::dependent_launch() = enabled != 0 && waits;
    return orcd::dependent_launch();
}
