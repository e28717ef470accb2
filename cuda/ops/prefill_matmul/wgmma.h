// prefill_matmul's path for Hopper, for its launcher alone.
#pragma once

#include "worker_cuda.h"

namespace orcd {

// Whether the current device, the driver and the code that was compiled have it. Asked once a device, then remembered.
bool has_prefill_wgmma();

// `tile` is the index of one of its tiles, or kBestTile. Arguments have been checked. cudaErrorNotSupported where
// has_prefill_wgmma() is false; cudaErrorInvalidValue if there is no such tile for this output.
constexpr uint32_t kBestTile = UINT32_MAX;
int32_t prefill_wgmma(const orcd_prefill_matmul_args &args, uint32_t tile, orcd_stream stream);

}  // namespace orcd
