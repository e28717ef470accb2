/* What is done to weights once, when they are loaded, and on their way into matrix products of prompts. */
#ifndef ORCD_WEIGHTS_H
#define ORCD_WEIGHTS_H

#ifdef __cplusplus
extern "C" {
#endif

/* dequantize: out[i, :] = w[i, :] * w.scale, rounded to half. Of a quantised matrix, out is aligned to 8 bytes and out_pitch a
 * multiple of 4. */
typedef struct orcd_dequantize_args {
    orcd_matrix w;
    orcd_f16 *out;      /* [n_rows, out_pitch]; columns from n_cols to out_pitch become zero */
    uint32_t out_pitch; /* halves */
} orcd_dequantize_args;

int32_t orcd_dequantize(const orcd_dequantize_args *args, orcd_stream stream);

/* row_stats: of each row, the largest magnitude and the 2-norm. */
typedef struct orcd_row_stats_args {
    orcd_matrix w;
    float *largest; /* [n_rows] */
    float *norm;    /* [n_rows] */
} orcd_row_stats_args;

int32_t orcd_row_stats(const orcd_row_stats_args *args, orcd_stream stream);

/* Lets kernels start before their predecessor has finished (programmatic dependent launch), from the next launch on, if the
 * code that the current device runs knows how to wait: that for sm_90 and later does. Returns whether it is on now. */
int32_t orcd_set_dependent_launch(int32_t enabled);

#ifdef __cplusplus
}
#endif

#endif
