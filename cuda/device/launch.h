// Host side of every launcher: checking what a kernel requires, and reporting how the launch went.
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

constexpr uint32_t div_ceil(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

}  // namespace orcd
