/* attention_prefill: attention of prompt tokens over the paged KV cache, which holds theirs already. */
#ifndef ORCD_ATTENTION_PREFILL_H
#define ORCD_ATTENTION_PREFILL_H

#ifdef __cplusplus
extern "C" {
#endif

/* Neighbouring rows of one sequence, with consecutive positions, that share their reads of keys and values. */
typedef struct orcd_attention_tile {
    uint32_t first_row;
    uint32_t n_rows; /* 1..=orcd_attention_prefill_tile_rows() */
} orcd_attention_tile;

typedef struct orcd_attention_prefill_args {
    const float *q;              /* [n_tokens, n_heads, d_head], after RoPE */
    const orcd_f16 *k_pool;      /* this layer's [n_pool_blocks, n_kv_heads, 16, d_head_pad]; zero from d_head on */
    const orcd_f16 *v_pool;      /* the same */
    const uint32_t *block_table; /* pool blocks of all sequences */
    const uint32_t *table_start; /* [n_tokens]: where in it the row's sequence begins */
    const uint32_t *positions;   /* [n_tokens]: absolute; a row sees 0..=position. 0xFFFFFFFF: its tile is all zeros */
    const orcd_attention_tile *tiles; /* [n_tiles], on the device; long contexts first is fastest */
    orcd_f16 *out;               /* [n_tokens, out_pitch], zeros from n_heads * d_head on; rows of no tile stay */
    uint32_t out_pitch;          /* halves; even, at least n_heads * d_head */
    uint32_t n_tiles;            /* 1..=65535 */
    uint32_t n_tokens;
    uint32_t n_heads;
    uint32_t n_kv_heads;         /* query head h reads KV head h / (n_heads / n_kv_heads) */
    uint32_t d_head;             /* even */
    uint32_t d_head_pad;         /* 16, 32, 64, 128 or 256, at least d_head */
} orcd_attention_prefill_args;

int32_t orcd_attention_prefill(const orcd_attention_prefill_args *args, orcd_stream stream);

/* The most rows a tile can have: smaller tiles give the same bits, more slowly. */
uint32_t orcd_attention_prefill_tile_rows(uint32_t n_heads, uint32_t n_kv_heads);

#ifdef __cplusplus
}
#endif

#endif
