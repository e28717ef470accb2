/* sample: from rows of logits to tokens, by each row's own settings; `crates/engine/src/sampler.rs` says how. */
#ifndef ORCD_SAMPLE_H
#define ORCD_SAMPLE_H

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ORCD_SAMPLE_MAX_VOCAB = 1 << 20,
    ORCD_SAMPLE_MAX_LOGPROBS = 20,
};

/* n_logprobs of a row whose log-probabilities are not wanted. */
#define ORCD_SAMPLE_NO_LOGPROBS 0xFFFFFFFFu

typedef struct orcd_sample_params {
    float temperature; /* 0: greedy; below 0: a row that pads the batch, for which nothing is done */
    float repetition_penalty;
    uint32_t top_k;    /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    uint32_t n_logprobs;
    uint64_t seed;
    uint64_t position; /* absolute, of the token to be chosen */
    uint32_t history_start; /* in `history`: the tokens to be penalized */
    uint32_t history_len;
} orcd_sample_params;

typedef struct orcd_sample_choice {
    uint32_t id;     /* of the token; 0xFFFFFFFF if there is none */
    uint32_t status; /* 0: chosen; 1: the logits have no finite maximum */
    float maximum;   /* the greatest logit, after the penalty; of a row of status 1, what was found instead */
    float logprob;   /* of `id`, if asked for; else 0 */
    uint32_t n_top;  /* how many of the arrays below are filled */
    uint32_t top_ids[ORCD_SAMPLE_MAX_LOGPROBS]; /* most likely first, ties by id */
    float top_logprobs[ORCD_SAMPLE_MAX_LOGPROBS];
} orcd_sample_choice;

typedef struct orcd_sample_args {
    const float *logits;   /* [n_rows, row_pitch] */
    uint64_t row_pitch;    /* floats, at least n_vocab; a multiple of 4, with logits aligned to 16 bytes, is read faster */
    const orcd_sample_params *params; /* [n_rows] */
    const uint32_t *history;          /* tokens of all rows; null if every history_len is 0 */
    orcd_sample_choice *choices;      /* [n_rows] */
    void *scratch;         /* orcd_sample_scratch_bytes(n_rows, n_vocab), aligned to 16; needs no initialisation */
    uint32_t n_rows;
    uint32_t n_vocab;      /* at most ORCD_SAMPLE_MAX_VOCAB */
} orcd_sample_args;

int32_t orcd_sample(const orcd_sample_args *args, orcd_stream stream);

/* 0 if n_vocab is beyond the limit. */
size_t orcd_sample_scratch_bytes(uint32_t n_rows, uint32_t n_vocab);

#ifdef __cplusplus
}
#endif

#endif
