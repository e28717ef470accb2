/* What Rust asks of CUDA that is no operation: facts of a device, whether this build has code for it, and the layout of
 * structures as this side sees them.
 */
#ifndef WORKER_CUDA_RUNTIME_H
#define WORKER_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct orcd_device_facts {
    char name[256];
    int32_t compute_major;
    int32_t compute_minor;
    int32_t n_sms;
    int32_t l2_bytes;
    /* The most shared memory that a block can ask for. */
    int32_t max_shared_bytes;
    uint64_t total_bytes;
} orcd_device_facts;

/* Fills `facts` for a device. Does not make a context. Returns a cudaError_t. */
int32_t orcd_read_device_facts(int32_t ordinal, orcd_device_facts *facts);

/* Whether the kernels of this build have code that the current device runs: cudaSuccess, cudaErrorNoKernelImageForDevice or
 * another cudaError_t. Makes the context. */
int32_t orcd_has_code_for_current_device(void);

/* A structure's size (`field` is "") or a field's offset. */
typedef struct orcd_layout {
    const char *structure;
    const char *field;
    size_t bytes;
} orcd_layout;

/* All of them, `*n` in number, as the compiler of the kernels sees them. Made by the build of cuda-sys. */
const orcd_layout *orcd_layouts(size_t *n);

#ifdef __cplusplus
}
#endif

#endif
