/* decode_matmul: a weight matrix times the activations of generated tokens, for 1 to 256 of them. */
#ifndef ORCD_DECODE_MATMUL_H
#define ORCD_DECODE_MATMUL_H

#ifdef __cplusplus
extern "C" {
#endif

/* Where the products go. */
typedef enum orcd_decode_output {
    /* out[split, token, row]: each split's sums, for the reader to add in order. */
    ORCD_DECODE_STORE = 0,
    /* Queries, keys and values: bias, RoPE, queries to q, keys and values to the KV pool. w[0..3] are q, k and v. */
    ORCD_DECODE_QKV = 1,
    /* silu(gate) * up, as halves times ffn_scale[token]. w[0] is gate, w[1] is up. */
    ORCD_DECODE_GATE_UP = 2,
} orcd_decode_output;

typedef struct orcd_decode_qkv {
    const float *bias[3];         /* of q, k and v; null: none */
    const float *cos_sin;         /* [n_ctx, n_rope / 2, 2] */
    float *q;                     /* [n_tokens, n_heads * d_head] */
    orcd_f16 *k_pool;             /* this layer's [n_blocks, n_kv_heads, 16, d_head_pad] */
    orcd_f16 *v_pool;             /* the same */
    const uint32_t *block_table;  /* blocks of all sequences */
    const uint32_t *table_start;  /* [n_tokens]: where in it the token's sequence begins */
    const uint32_t *positions;    /* [n_tokens]: absolute; 0xFFFFFFFF: a row that pads the batch and writes no keys */
    uint32_t n_heads, n_kv_heads, d_head, d_head_pad;
    uint32_t n_rope;              /* values of a head that turn; even */
    uint32_t rope_adjacent;       /* pairs are (2i, 2i+1), not (i, i + n_rope / 2) */
    float *probe;                 /* [n_tokens, n_heads + 2 n_kv_heads, d_head]: before RoPE, for those who compare; or null */
} orcd_decode_qkv;

/* rms_norm of the rows of x by the product itself, for one or two tokens: each block normalises them for itself, which saves a
 * launch. The same bits as orcd_rms_norm and then the product. */
typedef struct orcd_decode_norm {
    const float *residual; /* [n_tokens, n_cols] */
    const float *partials; /* [n_partials, n_tokens, n_cols]: added to it in this order */
    uint32_t n_partials;
    float *residual_out; /* [n_tokens, n_cols]: the sum; not the residual itself, which other blocks may still read */
    const float *weight; /* [n_cols]; null: x is read instead */
    float eps;
    float scale;          /* a power of two: rows are rounded to halves times this */
    float ffn_bound;      /* GATE_UP: as in orcd_rms_norm_args; ffn_scale and ffn_unscale are written */
    float *ffn_scale;     /* [n_tokens] */
    float *ffn_unscale;   /* [n_tokens] */
} orcd_decode_norm;

/* The most tokens and columns that a product normalises itself. */
#define ORCD_DECODE_NORM_MAX_TOKENS 2
#define ORCD_DECODE_NORM_MAX_COLS 1024

typedef struct orcd_decode_matmul_args {
    orcd_matrix w[3]; /* as many as the output wants; of one n_cols */
    /* [n_tokens, x_pitch]: times x_scale; columns from n_cols to the next multiple of 32 are zero. Not read with `norm`. */
    const orcd_f16 *x;
    uint32_t x_pitch;  /* halves; a multiple of 8, at least n_cols rounded up to 32 */
    float x_unscale;   /* products are multiplied by this: 1 / the power of two that x was stored times */
    const float *row_unscale; /* [n_tokens]: and by this; or null */
    uint32_t n_tokens;
    uint32_t n_splits; /* STORE: parts of n_cols, each in blocks of its own; 1 otherwise. From the shape alone. */
    uint32_t output;   /* orcd_decode_output */
    float *out;        /* STORE: [n_splits, n_tokens, n_rows] */
    orcd_decode_qkv qkv;
    orcd_f16 *act;     /* GATE_UP: [n_tokens, act_pitch] */
    uint32_t act_pitch;
    const float *ffn_scale; /* GATE_UP: [n_tokens] */
    float *act_f32;         /* GATE_UP: [n_tokens, d_ff], unscaled: for those who compare; or null */
    orcd_decode_norm norm;  /* zeros: x has been normalised */
} orcd_decode_matmul_args;

int32_t orcd_decode_matmul(const orcd_decode_matmul_args *args, orcd_stream stream);

/* The number of splits for a matrix of this shape, so that a narrow one fills the device: from the shape alone. */
uint32_t orcd_decode_matmul_splits(uint32_t n_rows, uint32_t n_cols);

#ifdef __cplusplus
}
#endif

#endif
