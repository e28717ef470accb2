// Host side of every launcher: checking what a kernel requires, launching it, and reporting how the launch went.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define ORCD_REQUIRE(condition) \
    do {                        \
        if (!(condition)) return (int32_t)cudaErrorInvalidValue; \
    } while (0)

namespace orcd {

inline int32_t launched() { return (int32_t)cudaGetLastError(); }

inline bool is_aligned(const void *p, uintptr_t bytes) { return ((uintptr_t)p & (bytes - 1)) == 0; }

__host__ __device__ constexpr uint32_t div_ceil(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// Whether kernels may start before their predecessor has finished (see dependency.cuh). A switch, because a missing wait is a
// race that no test is certain to see. Turned on only for code that waits (orcd_set_dependent_launch).
inline bool &dependent_launch() {
    static bool enabled = false;
    return enabled;
}

// Launches `kernel`, which calls wait_for_predecessor() before it reads what its predecessor wrote.
template <class Args>
int32_t launch(void (*kernel)(Args), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, const Args &args) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = dependent_launch() ? 1 : 0;
    return (int32_t)cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace orcd
