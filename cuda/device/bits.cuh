// Words, the bytes in them, and pairs of halves.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace orcd {

// Memory that no kernel writes while this one runs.
__device__ __forceinline__ uint32_t load_constant_4(const void *p) { return __ldg(static_cast<const unsigned int *>(p)); }
__device__ __forceinline__ uint32_t load_constant_2(const void *p) { return __ldg(static_cast<const unsigned short *>(p)); }
__device__ __forceinline__ uint32_t load_constant_1(const void *p) { return __ldg(static_cast<const unsigned char *>(p)); }
__device__ __forceinline__ uint2 load_constant_8(const void *p) { return __ldg(static_cast<const uint2 *>(p)); }
__device__ __forceinline__ uint4 load_constant_16(const void *p) { return __ldg(static_cast<const uint4 *>(p)); }

// Four bytes of low (0 to 3) and high (4 to 7): byte i of the result is the one that hexadecimal digit i of `which` names.
__device__ __forceinline__ uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t which) { return __byte_perm(low, high, which); }

__device__ __forceinline__ __half2 as_half2(uint32_t bits) { return *reinterpret_cast<__half2 *>(&bits); }
__device__ __forceinline__ uint32_t bits_of(__half2 h) { return *reinterpret_cast<uint32_t *>(&h); }

// Of both halves.
__device__ __forceinline__ uint32_t subtract_halves(uint32_t a, uint32_t b) { return bits_of(__hsub2(as_half2(a), as_half2(b))); }
__device__ __forceinline__ uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
    return bits_of(__hfma2(as_half2(a), as_half2(b), as_half2(c)));
}

__device__ __forceinline__ float low_half(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)bits)); }
__device__ __forceinline__ float high_half(uint32_t bits) { return __half2float(__ushort_as_half((unsigned short)(bits >> 16))); }

}  // namespace orcd
