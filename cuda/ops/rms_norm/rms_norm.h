/* rms_norm: adds what a half of a layer contributed to the residual stream, and normalises it for the next half. */
#ifndef ORCD_RMS_NORM_H
#define ORCD_RMS_NORM_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct orcd_rms_norm_args {
    float *residual;       /* [.., d_model]; read, and written when n_partials > 0 */
    const float *partials; /* [n_partials, n_tokens, d_model]: added to the residual in this order */
    uint32_t n_partials;
    const uint32_t *rows; /* [n_tokens]: the residual's row of each token; null: its own. Not with partials. */
    const float *weight;  /* [d_model] */
    float eps;
    float out_scale;       /* a power of two: out is stored times this */
    orcd_f16 *out;         /* [n_tokens, out_pitch]; columns from d_model on are left alone */
    uint32_t out_pitch;    /* halves from one row of out to the next */
    float ffn_bound;       /* max over i of |gate row i| |up row i|; 0: no ffn_scale */
    float *ffn_scale;      /* [n_tokens]: a power of two that keeps |silu(gate) up| times it below 2^15 */
    float *ffn_unscale;    /* [n_tokens]: its inverse */
    float *out_f32;        /* [n_tokens, d_model], unscaled: for those who compare; or null */
    uint32_t n_tokens;
    uint32_t d_model;
} orcd_rms_norm_args;

int32_t orcd_rms_norm(const orcd_rms_norm_args *args, orcd_stream stream);

#ifdef __cplusplus
}
#endif

#endif
