// Weights: dequantize, row_stats, split_q8_0.
//
// Mapping:  dequantize and row_stats: one warp per row, or one block's stride of rows; split_q8_0: one thread per byte
//           of a block, because blocks of 34 bytes are aligned to 2.
// Cost:     bandwidth; run once at load, except dequantize, which runs once a step for each quantised matrix of a prompt.
// Numerics: dequantize rounds once, to half. row_stats sums squares in F32, in an order given by n_cols.
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

__global__ void __launch_bounds__(kThreads) split_thread_per_value(orcd_split_q8_0_args a) {
    const uint64_t n_values = a.n_blocks * 32;
    for (uint64_t i = (uint64_t)blockIdx.x * kThreads + threadIdx.x; i < n_values; i += (uint64_t)gridDim.x * kThreads) {
        const uint64_t block = i / 32;
        const uint8_t *bytes = a.blocks + block * 34;
        a.values[i] = (int8_t)bytes[2 + i % 32];
        if (i % 32 == 0) a.scales[block].bits = (uint16_t)(bytes[0] | bytes[1] << 8);
    }
}

}  // namespace
}  // namespace orcd

extern "C" int32_t orcd_dequantize(const orcd_dequantize_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && orcd::is_matrix(args->w) && args->out && args->out_pitch >= args->w.n_cols);
    const dim3 grid(orcd::div_ceil(args->w.n_rows, orcd::kRowsPerBlock));
    return orcd::launch(orcd::dequantize_warp_per_row, grid, dim3(orcd::kThreads), 0, stream, *args);
}

extern "C" int32_t orcd_row_stats(const orcd_row_stats_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && orcd::is_matrix(args->w) && args->largest && args->norm);
    const dim3 grid(orcd::div_ceil(args->w.n_rows, orcd::kRowsPerBlock));
    return orcd::launch(orcd::stats_warp_per_row, grid, dim3(orcd::kThreads), 0, stream, *args);
}

extern "C" int32_t orcd_split_q8_0(const orcd_split_q8_0_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && args->blocks && args->values && args->scales && args->n_blocks > 0);
    const uint64_t wanted = (args->n_blocks * 32 + orcd::kThreads - 1) / orcd::kThreads;
    const dim3 grid((uint32_t)(wanted < 65536 ? wanted : 65536));
    return orcd::launch(orcd::split_thread_per_value, grid, dim3(orcd::kThreads), 0, stream, *args);
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
