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

/* changes_start of a row of whose listed tokens the repetition penalty is all that changes. */
#define ORCD_SAMPLE_NO_CHANGES 0xFFFFFFFFu

/* mask of a row whose every token may be chosen. */
#define ORCD_SAMPLE_NO_MASK 0xFFFFFFFFu

/* What happens to the logit of a listed token, beside the row's penalties. */
typedef struct orcd_sample_change {
    uint32_t count; /* how often it was generated; 0: it is not penalized */
    float bias;     /* 0: none */
} orcd_sample_change;

typedef struct orcd_sample_params {
    float temperature; /* 0: greedy; below 0: a row that pads the batch, for which nothing is done */
    float repetition_penalty;
    uint32_t top_k;    /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    uint32_t n_logprobs;
    uint64_t seed;
    uint64_t position; /* absolute, of the token to be chosen */
    uint32_t changed_start; /* in `changed`: the row's list */
    uint32_t changed_len;
    uint32_t changes_start; /* in `changes`: of the same tokens, in the same order; or ORCD_SAMPLE_NO_CHANGES */
    float presence_penalty; /* 0: off, as is the next; both are read only of rows with `changes` */
    float frequency_penalty;
    uint32_t mask;          /* which of `masks`; or ORCD_SAMPLE_NO_MASK */
} orcd_sample_params;

typedef struct orcd_sample_choice {
    uint32_t id;     /* of the token; 0xFFFFFFFF if there is none */
    uint32_t status; /* 0: chosen; 1: the logits have no finite maximum */
    float maximum;   /* the greatest logit, after bias, mask and penalties; of a row of status 1, what was found instead */
    float logprob;   /* of `id`, if asked for; else 0 */
    uint32_t n_top;  /* how many of the arrays below are filled */
    uint32_t top_ids[ORCD_SAMPLE_MAX_LOGPROBS]; /* most likely first, ties by id */
    float top_logprobs[ORCD_SAMPLE_MAX_LOGPROBS];
} orcd_sample_choice;

typedef struct orcd_sample_args {
    const float *logits;   /* [n_rows, row_pitch] */
    uint64_t row_pitch;    /* floats, at least n_vocab; a multiple of 4, with logits aligned to 16 bytes, is read faster */
    const orcd_sample_params *params; /* [n_rows] */
    const uint32_t *changed; /* lists of all rows: tokens whose logits change, those of a row ascending; null if all are empty */
    const orcd_sample_change *changes; /* null if no row has any */
    const uint32_t *masks;   /* [.., ceil(n_vocab / 32)]: a bit for each token, the first lowest; null if no row has one */
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
