//! The rules of a [`Batch`], checked before an executor touches anything.

use crate::sampling::mask_words;
use crate::{
    Batch, ExecutorError, ExecutorInfo, MAX_LOGIT_BIAS, MAX_LOGPROBS, Role, SampleSpec, Segment, TokenCount, TokenId,
};

/// Checks every rule of [`Batch`] and every limit of `info`, so that an executor may index by what the batch says.
///
/// # Errors
/// [`ExecutorError::InvalidBatch`], which names the rule.
pub(crate) fn validate(batch: &Batch, info: &ExecutorInfo) -> Result<(), ExecutorError> {
    let n_tokens = batch.n_tokens();
    if batch.positions.len() != n_tokens {
        return invalid(format!("{n_tokens} tokens but {} positions", batch.positions.len()));
    }
    if n_tokens > info.max_batch_tokens {
        return invalid(format!("{n_tokens} tokens, the most is {}", info.max_batch_tokens));
    }
    if batch.segments.len() > info.max_seqs {
        return invalid(format!("{} sequences, the most is {}", batch.segments.len(), info.max_seqs));
    }
    if let Some(row) = batch.tokens.iter().position(|&token| token as usize >= info.n_vocab) {
        return invalid(format!("row {row}: token {}, the vocabulary has {}", batch.tokens[row], info.n_vocab));
    }
    let mut next_row = 0;
    for (i, segment) in batch.segments.iter().enumerate() {
        if segment.rows.start != next_row || segment.rows.end > n_tokens || segment.rows.is_empty() {
            return invalid(format!("segment {i}: rows {:?} after row {next_row} of {n_tokens}", segment.rows));
        }
        next_row = segment.rows.end;
        validate_segment(batch, i, segment, info)?;
    }
    if next_row != n_tokens {
        return invalid(format!("segments cover {next_row} of {n_tokens} rows"));
    }
    if !batch.sample_rows.is_sorted_by(|a, b| a < b) || batch.sample_rows.last().is_some_and(|&row| row >= n_tokens) {
        return invalid(format!("sample rows {:?} are not ascending rows below {n_tokens}", batch.sample_rows));
    }
    if batch.sample_rows.len() > info.max_seqs {
        return invalid(format!("{} rows to sample, the most is {}", batch.sample_rows.len(), info.max_seqs));
    }
    validate_samples(batch, info)
}

fn validate_samples(batch: &Batch, info: &ExecutorInfo) -> Result<(), ExecutorError> {
    let (n_rows, n_samples) = (batch.sample_rows.len(), batch.samples.len());
    if n_samples != n_rows && n_samples != 0 {
        return invalid(format!("{n_rows} rows to sample, but {n_samples} ways to"));
    }
    let out_of_vocabulary = |id: TokenId| id as usize >= info.n_vocab;
    if let Some(TokenCount { id, .. }) = batch.history.iter().find(|counted| out_of_vocabulary(counted.id)) {
        return invalid(format!("the history holds token {id}, the vocabulary has {}", info.n_vocab));
    }
    if let Some((id, _)) = batch.logit_bias.iter().find(|(id, _)| out_of_vocabulary(*id)) {
        return invalid(format!("token {id} has a bias, the vocabulary has {}", info.n_vocab));
    }
    batch.samples.iter().enumerate().try_for_each(|(i, sample)| validate_sample(batch, i, sample, info))
}

fn validate_sample(batch: &Batch, i: usize, sample: &SampleSpec, info: &ExecutorInfo) -> Result<(), ExecutorError> {
    let Some(history) = batch.history.get(sample.history.clone()) else {
        return invalid(format!("sample {i}: history {:?} of {}", sample.history, batch.history.len()));
    };
    if !history.is_sorted_by(|a, b| a.id < b.id) {
        return invalid(format!("sample {i}: the tokens of its history do not ascend"));
    }
    let Some(logit_bias) = batch.logit_bias.get(sample.logit_bias.clone()) else {
        return invalid(format!("sample {i}: biases {:?} of {}", sample.logit_bias, batch.logit_bias.len()));
    };
    if logit_bias.len() > MAX_LOGIT_BIAS {
        return invalid(format!("sample {i}: {} biases, the most is {MAX_LOGIT_BIAS}", logit_bias.len()));
    }
    if !logit_bias.is_sorted_by(|a, b| a.0 < b.0) {
        return invalid(format!("sample {i}: the tokens with a bias do not ascend"));
    }
    let Some(mask) = batch.masks.get(sample.mask.clone()) else {
        return invalid(format!("sample {i}: mask {:?} of {} words", sample.mask, batch.masks.len()));
    };
    let n_words = mask_words(info.n_vocab);
    if !mask.is_empty() && mask.len() != n_words {
        return invalid(format!("sample {i}: a mask of {} words, the vocabulary needs {n_words}", mask.len()));
    }
    if let Some(n) = sample.n_logprobs.filter(|&n| n > MAX_LOGPROBS) {
        return invalid(format!("sample {i}: {n} log-probabilities, the most is {MAX_LOGPROBS}"));
    }
    match sample.given {
        Some(id) if id as usize >= info.n_vocab => {
            invalid(format!("sample {i}: token {id} is given, the vocabulary has {}", info.n_vocab))
        }
        Some(id) if !mask.is_empty() => invalid(format!("sample {i}: token {id} is given, and there is a mask")),
        _ => Ok(()),
    }
}

fn validate_segment(batch: &Batch, i: usize, segment: &Segment, info: &ExecutorInfo) -> Result<(), ExecutorError> {
    let n_rows = segment.rows.len();
    if segment.role == Role::Generated && n_rows != 1 {
        return invalid(format!("segment {i}: {n_rows} generated rows, a step has one"));
    }
    let end_pos = segment.start_pos as usize + n_rows;
    if end_pos > info.n_ctx {
        return invalid(format!("segment {i}: ends at position {end_pos}, the context has {}", info.n_ctx));
    }
    let positions = &batch.positions[segment.rows.clone()];
    if positions.iter().zip(segment.start_pos..).any(|(&got, expected)| got != expected) {
        return invalid(format!("segment {i}: positions {positions:?} do not follow from {}", segment.start_pos));
    }
    let Some(blocks) = batch.block_table.get(segment.blocks.clone()) else {
        return invalid(format!("segment {i}: blocks {:?} of a table of {}", segment.blocks, batch.block_table.len()));
    };
    if blocks.len() * info.block_tokens < end_pos {
        return invalid(format!("segment {i}: {} blocks do not hold {end_pos} positions", blocks.len()));
    }
    match blocks.iter().find(|block| block.0 as usize >= info.n_blocks) {
        Some(block) => invalid(format!("segment {i}: block {}, the pool has {}", block.0, info.n_blocks)),
        None => Ok(()),
    }
}

fn invalid(what: String) -> Result<(), ExecutorError> {
    Err(ExecutorError::InvalidBatch(what))
}
