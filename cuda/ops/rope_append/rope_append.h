/* rope_append: turns queries and keys of prompt tokens by their position, and appends keys and values to the KV cache.
 * rope_table: the cosines and sines for all positions. */
#ifndef ORCD_ROPE_APPEND_H
#define ORCD_ROPE_APPEND_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct orcd_rope_append_args {
    const float *qkv;            /* [n_tokens, (n_heads + 2 n_kv_heads) * d_head]: queries, keys, values, with bias */
    const float *cos_sin;        /* [n_ctx, n_rope / 2, 2], of orcd_rope_table */
    float *q;                    /* [n_tokens, n_heads * d_head] */
    orcd_f16 *k_pool;            /* this layer's [n_pool_blocks, n_kv_heads, 16, d_head_pad]; zeros go from d_head on */
    orcd_f16 *v_pool;            /* the same */
    const uint32_t *block_table; /* pool blocks of all sequences */
    const uint32_t *table_start; /* [n_tokens]: where in it the row's sequence begins */
    const uint32_t *positions;   /* [n_tokens]: absolute; 0xFFFFFFFF: no keys are written, and q is zero */
    uint32_t n_tokens;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t d_head;             /* even */
    uint32_t d_head_pad;         /* even, at least d_head */
    uint32_t n_rope;             /* values of a head that turn, from the first; even, at most d_head */
    uint32_t rope_adjacent;      /* pairs are (2i, 2i+1), not (i, i + n_rope / 2) */
} orcd_rope_append_args;

int32_t orcd_rope_append(const orcd_rope_append_args *args, orcd_stream stream);

typedef struct orcd_rope_table_args {
    const double *inv_freq; /* [n_rope / 2], on the device: radians a position */
    float *cos_sin;         /* [n_ctx, n_rope / 2, 2] */
    uint32_t n_ctx;
    uint32_t n_rope;        /* even; 0: nothing to do */
} orcd_rope_table_args;

int32_t orcd_rope_table(const orcd_rope_table_args *args, orcd_stream stream);

#ifdef __cplusplus
}
#endif

#endif
