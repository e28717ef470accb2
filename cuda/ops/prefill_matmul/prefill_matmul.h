/* prefill_matmul: F16 weights times the activations of prompt tokens, any number of them. */
#ifndef ORCD_PREFILL_MATMUL_H
#define ORCD_PREFILL_MATMUL_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum orcd_prefill_output {
    /* out[token, row] = sum + bias[row] */
    ORCD_PREFILL_STORE = 0,
    /* out[token, row] += sum */
    ORCD_PREFILL_ADD = 1,
    /* act[token, i] = silu(gate row i) * up row i, as halves times ffn_scale[token]. w holds all gate rows, then all up
     * rows. */
    ORCD_PREFILL_GATE_UP = 2,
} orcd_prefill_output;

/* Which kernel. Bits differ between the two, not within either: all but tests say AUTO, one of them by the device. */
typedef enum orcd_prefill_path {
    ORCD_PREFILL_AUTO = 0,
    ORCD_PREFILL_MMA = 1,   /* sm_80 and later */
    ORCD_PREFILL_WGMMA = 2, /* Hopper; cudaErrorNotSupported elsewhere */
    /* WGMMA_TILE_0 + i: the same with its tile i; cudaErrorInvalidValue where an output has no such tile */
    ORCD_PREFILL_WGMMA_TILE_0 = 3,
} orcd_prefill_path;

typedef struct orcd_prefill_matmul_args {
    const orcd_f16 *w[2]; /* [n_rows, w_pitch]; GATE_UP: gate and up, of n_rows each */
    uint32_t w_pitch;     /* halves; a multiple of 8, at least n_cols rounded up to 32; the surplus is zero */
    const orcd_f16 *x;    /* [n_tokens, x_pitch]; the same */
    uint32_t x_pitch;
    uint32_t n_tokens;
    uint32_t n_rows;
    uint32_t n_cols;
    float unscale[2];         /* products are multiplied by this: 1 / (scale of w[i] times scale of x) */
    const float *row_unscale; /* [n_tokens]: and by this; or null */
    uint32_t output;          /* orcd_prefill_output */
    float *out;               /* STORE, ADD: [n_tokens, out_pitch] */
    uint32_t out_pitch;
    const float *bias;      /* STORE: [n_rows], or null */
    orcd_f16 *act;          /* GATE_UP: [n_tokens, act_pitch] */
    uint32_t act_pitch;
    const float *ffn_scale; /* GATE_UP: [n_tokens] */
    float *probe;           /* ADD: the sums, GATE_UP: act unscaled; [n_tokens, n_rows], for those who compare; or null */
    uint32_t path;          /* orcd_prefill_path, or a tile beyond it */
} orcd_prefill_matmul_args;

int32_t orcd_prefill_matmul(const orcd_prefill_matmul_args *args, orcd_stream stream);

#ifdef __cplusplus
}
#endif

#endif
