/* The C interface of the kernels: everything that crosses between Rust and CUDA.
 *
 * Each operation is one call, `int32_t orcd_<op>(const orcd_<op>_args *args, cudaStream_t stream)`: it checks what the
 * kernel requires, enqueues it on the stream and returns a cudaError_t. Pointers are device pointers unless said
 * otherwise; shapes are row-major, slowest first. No call allocates, synchronises or reads device memory, so all of them
 * may be captured in a graph.
 */
#ifndef WORKER_CUDA_H
#define WORKER_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A half-precision number: the bits of an IEEE binary16. `half::f16` in Rust, `__half` in kernels. */
typedef struct orcd_f16 {
    uint16_t bits;
} orcd_f16;

/* As in cuda_runtime_api.h, so that this header needs no other. */
typedef struct CUstream_st *orcd_stream;

#ifdef __cplusplus
}
#endif

#include "orcd_matrix.h"
#include "../runtime/runtime.h"

/* One line for each operation. */
#include "../ops/embed/embed.h"
#include "../ops/rms_norm/rms_norm.h"
#include "../ops/decode_matmul/decode_matmul.h"
#include "../ops/prefill_matmul/prefill_matmul.h"
#include "../ops/weights/weights.h"
#include "../ops/rope_append/rope_append.h"
#include "../ops/attention_decode/attention_decode.h"
#include "../ops/attention_prefill/attention_prefill.h"
#include "../ops/sample/sample.h"

#endif
