// Descriptions of matrices for the copy engine of Hopper (hopper.cuh), made on the host.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace orcd {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, without linking the driver; null where it is too old to have it.
inline EncodeTiled tensor_map_encoder() {
    static const EncodeTiled function = [] {
        void *found = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        if (status != cudaSuccess) cudaGetLastError();
        return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(found) : nullptr;
    }();
    return function;
}

// Boxes of 64 halves (128 bytes, swizzled) of `box_rows` rows of halves [n_rows, n_cols], rows `row_bytes` apart. What lies outside
// arrives as zeros. False where the driver refuses; there has to be an encoder.
inline bool encode_halves(CUtensorMap &map, const void *values, uint64_t n_rows, uint64_t n_cols, uint64_t row_bytes, uint32_t box_rows) {
    const cuuint64_t size[2] = {n_cols, n_rows}, pitch[1] = {row_bytes};
    const cuuint32_t box[2] = {64, box_rows}, stride[2] = {1, 1};
    return tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void *>(values), size, pitch, box, stride,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace orcd
