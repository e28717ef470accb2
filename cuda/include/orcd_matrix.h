/* A weight matrix in device memory. */
#ifndef ORCD_MATRIX_H
#define ORCD_MATRIX_H

#include <stdint.h>

/* The columns that kernels read together: rows are padded to a multiple of it, with zeros. */
#define ORCD_CHUNK 32

/* How a matrix's values are stored. */
typedef enum orcd_format {
    ORCD_FORMAT_F32 = 0,
    ORCD_FORMAT_F16 = 1,
    ORCD_FORMAT_BF16 = 2,
    /* 8-bit integers in `values`, one F16 scale for each 32 of them in `scales`: the blocks of the file, taken apart so that
     * both can be read in 16-byte pieces. */
    ORCD_FORMAT_Q8_0 = 3,
} orcd_format;

/* [n_rows, n_cols]: rows of a multiple of ORCD_CHUNK columns, the surplus zero, each starting on 16 bytes. */
typedef struct orcd_matrix {
    const void *values;
    /* Q8_0: [n_rows, n_cols / 32]; otherwise null. */
    const orcd_f16 *scales;
    /* Bytes from one row's values to the next. */
    uint64_t row_bytes;
    uint32_t n_rows;
    uint32_t n_cols;
    uint32_t format; /* orcd_format */
    /* A power of two: kernels multiply values by it before they round them to F16, so that none overflows or becomes
     * subnormal, and divide the results by it. 1 for F16. */
    float scale;
} orcd_matrix;

#endif
