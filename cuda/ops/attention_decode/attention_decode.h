/* attention_decode: attention of generated tokens, one a sequence, over the paged KV cache. */
#ifndef ORCD_ATTENTION_DECODE_H
#define ORCD_ATTENTION_DECODE_H

#ifdef __cplusplus
extern "C" {
#endif

/* Tokens of a context that one block takes in: a long context is spread over as many blocks. Fixed, since results are
 * added up split by split. */
#define ORCD_ATTENTION_SPLIT_TOKENS 256
/* Rows a call can have. */
#define ORCD_ATTENTION_DECODE_MAX_TOKENS 256

typedef struct orcd_attention_decode_args {
    const float *q;              /* [n_tokens, n_heads, d_head], after RoPE */
    const orcd_f16 *k_pool;      /* this layer's [n_pool_blocks, n_kv_heads, 16, d_head_pad]; zero from d_head on */
    const orcd_f16 *v_pool;      /* the same */
    const uint32_t *block_table; /* pool blocks of all sequences */
    const uint32_t *table_start; /* [n_tokens]: where in it the row's sequence begins */
    const uint32_t *positions;   /* [n_tokens]: absolute; a row sees 0..=position. 0xFFFFFFFF: it fills up the batch */
    orcd_f16 *out;               /* [n_tokens, out_pitch]; zeros from n_heads * d_head on, and in rows that fill up */
    float *partials;             /* scratch, orcd_attention_decode_partials() floats: +0 before the first call; left so */
    uint64_t n_partials;         /* floats there; a kernel that needs more traps */
    uint32_t out_pitch;          /* halves; a multiple of 8, at least n_heads * d_head */
    uint32_t n_tokens;           /* 1..=256 */
    uint32_t n_heads;
    uint32_t n_kv_heads;         /* query head h reads KV head h / (n_heads / n_kv_heads) */
    uint32_t d_head;             /* even */
    uint32_t d_head_pad;         /* 16, 32, 64, 128 or 256, at least d_head */
    uint32_t n_blocks;           /* of the launch, at most: any number gives the same bits. No more are launched than the
                                  * device holds at once, orcd_attention_decode_blocks(), since they wait for each other. */
    uint32_t reads_ahead;        /* 1: cached keys are fetched before the predecessor ends (dependent launch). The
                                  * caller vouches that no kernel that may still run writes positions, tables, or keys and
                                  * values other than those of each row's own position. 0: everything waits. */
} orcd_attention_decode_args;

int32_t orcd_attention_decode(const orcd_attention_decode_args *args, orcd_stream stream);

/* Floats of scratch that hold any batch of `max_tokens` rows with contexts of up to `n_ctx` tokens. */
uint64_t orcd_attention_decode_partials(uint32_t max_tokens, uint32_t n_ctx, uint32_t n_heads, uint32_t n_kv_heads,
                                        uint32_t d_head_pad);

/* The number of blocks that the current device holds at once, which fills it; 0 where it cannot be asked. */
uint32_t orcd_attention_decode_blocks(uint32_t d_head_pad);

#ifdef __cplusplus
}
#endif

#endif
