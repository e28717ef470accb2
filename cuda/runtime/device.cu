// Facts of a device. In C++ because the structure and the name of cudaGetDeviceProperties differ between toolkits.
#include <cuda_runtime.h>

#include <cstring>

#include "device/launch.h"
#include "runtime/runtime.h"

// Compiled for the same architectures as every kernel, so what holds for it holds for them.
__global__ static void probe() {}

extern "C" int32_t orcd_read_device_facts(int32_t ordinal, orcd_device_facts *facts) {
    ORCD_REQUIRE(facts != nullptr);
    cudaDeviceProp properties;
    cudaError_t status = cudaGetDeviceProperties(&properties, ordinal);
    if (status != cudaSuccess) return (int32_t)status;
    std::memset(facts, 0, sizeof *facts);
    static_assert(sizeof facts->name == sizeof properties.name, "names are as long");
    std::memcpy(facts->name, properties.name, sizeof facts->name);
    facts->name[sizeof facts->name - 1] = 0;
    facts->compute_major = properties.major;
    facts->compute_minor = properties.minor;
    facts->n_sms = properties.multiProcessorCount;
    facts->l2_bytes = properties.l2CacheSize;
    facts->max_shared_bytes = (int32_t)properties.sharedMemPerBlockOptin;
    facts->total_bytes = properties.totalGlobalMem;
    return (int32_t)cudaSuccess;
}

extern "C" int32_t orcd_has_code_for_current_device(void) {
    cudaFuncAttributes attributes;
    return (int32_t)cudaFuncGetAttributes(&attributes, probe);
}
