// Between the kernels of decode_matmul: the one for many tokens.
#pragma once

#include "launch.h"
#include "worker_cuda.h"

namespace orcd {

// With fewer tokens or fewer products the other kernel is as fast: its blocks are smaller, and begin sooner.
constexpr uint32_t kFewTokens = 32;
constexpr uint64_t kFewProducts = 1ull << 27;

// Whether this path can take the product: F16 matrices and normalised tokens, on Hopper, pairs of rows in runs of eight. Arguments
// have been checked.
bool has_decode_tiles(const orcd_decode_matmul_args &a);

// The product, where it can. `tile` is the index of one of its shapes of tiles (cudaErrorInvalidValue: there is none such), or
// kBestDecodeTile. The shape changes no bit.
constexpr uint32_t kBestDecodeTile = UINT32_MAX;
int32_t decode_tiles(const orcd_decode_matmul_args &a, uint32_t tile, orcd_stream stream);

}  // namespace orcd
