/* A weight matrix in device memory. */
#ifndef ORCD_MATRIX_H
#define ORCD_MATRIX_H

#include <stdint.h>

/* The columns that kernels read together: rows are padded to a multiple of it, with zeros. */
#define ORCD_CHUNK 32

/* How a matrix's values are stored. From Q8_0 on they are quantised: the file's blocks, taken apart into planes, which
 * formats/planes.cuh reads and `quant::planes` makes and describes. */
typedef enum orcd_format {
    ORCD_FORMAT_F32 = 0,
    ORCD_FORMAT_F16 = 1,
    ORCD_FORMAT_BF16 = 2,
    ORCD_FORMAT_Q8_0 = 3,
    ORCD_FORMAT_Q4_0 = 4,
    ORCD_FORMAT_Q4_1 = 5,
    ORCD_FORMAT_Q5_0 = 6,
    ORCD_FORMAT_Q5_1 = 7,
    ORCD_FORMAT_Q2_K = 8,
    ORCD_FORMAT_Q3_K = 9,
    ORCD_FORMAT_Q4_K = 10,
    ORCD_FORMAT_Q5_K = 11,
    ORCD_FORMAT_Q6_K = 12,
    ORCD_FORMAT_IQ4_NL = 13,
    ORCD_FORMAT_IQ4_XS = 14,
    ORCD_FORMAT_MXFP4 = 15,
    ORCD_N_FORMATS = 16, /* how many there are */
} orcd_format;

/* [n_rows, n_cols]: rows of a multiple of ORCD_CHUNK columns, the surplus zero, each starting on 16 bytes. Rows of a quantised
 * matrix are whole blocks, and lie in each plane one behind the other. */
typedef struct orcd_matrix {
    const void *values; /* quantised: the plane of low bits */
    /* Quantised: high bits of the numbers, scales, and what those are units of. Null where the format has none. */
    const void *high;
    const void *scales;
    const void *supers;
    /* Bytes from one row's values to the next. */
    uint64_t row_bytes;
    uint32_t n_rows;
    uint32_t n_cols;
    uint32_t format; /* orcd_format */
    /* A power of two: kernels that round values to F16 multiply them by it first, so that none overflows or becomes subnormal,
     * and divide the results by it. 1 for F16. */
    float scale;
} orcd_matrix;

#endif
