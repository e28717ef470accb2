/* embed: residual[i, :] = table[tokens[i], :]. */
#ifndef ORCD_EMBED_H
#define ORCD_EMBED_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct orcd_embed_args {
    orcd_matrix table;      /* [n_vocab, d_model] */
    const uint32_t *tokens; /* [n_tokens], each below n_vocab */
    float *residual;        /* [n_tokens, d_model] */
    uint32_t n_tokens;
} orcd_embed_args;

int32_t orcd_embed(const orcd_embed_args *args, orcd_stream stream);

#ifdef __cplusplus
}
#endif

#endif
