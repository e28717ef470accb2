// Programmatic dependent launch: a kernel may start while its predecessor finishes, and waits where it first needs it.
//
// Both calls do nothing below sm_90, and nothing in a kernel that was launched the plain way.
#pragma once

namespace orcd {

// Everything the kernels before this one have written is visible after it.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start now. It must not read what this one has yet to write before it has waited itself.
__device__ __forceinline__ void let_successor_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace orcd
