//! The ragged batch: what the engine hands an executor each step.

use std::ops::Range;

use crate::{SampleRequest, SampleSpec, TokenCount};

/// A token's index in the model's vocabulary, as in `tokenizer.ggml.tokens`.
pub type TokenId = u32;

/// The index of a KV block in an executor's pool: `0..ExecutorInfo::n_blocks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Where the tokens of a segment came from.
///
/// An executor may choose its kernels by role and by nothing else, so that the number of rows in a step, which depends
/// on a request's neighbours, never changes a request's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Read in from the request: any number of rows a step.
    Prompt,
    /// Sampled in the step before: one row a step.
    Generated,
}

/// One sequence's rows in a [`Batch`]: contiguous positions, and the blocks that hold the sequence's keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the batch that belong to this sequence; never empty.
    pub rows: Range<usize>,
    /// Absolute position of the first row in the sequence.
    pub start_pos: u32,
    /// Where the tokens came from.
    pub role: Role,
    /// The sequence's blocks in [`Batch::block_table`], in position order. Position `p` lives in the block at index
    /// `p / block_tokens`, slot `p % block_tokens`; the table covers every position up to the last row's.
    pub blocks: Range<usize>,
}

/// A ragged batch: some sequences, each with one or more consecutive tokens.
///
/// Flat arrays, so that a device can copy them as they are. The engine reuses one `Batch` for all its steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[n_tokens]`
    pub tokens: Vec<TokenId>,
    /// Absolute position of each token in its sequence. `[n_tokens]`
    pub positions: Vec<u32>,
    /// `[n_seqs]`, in row order, without gaps.
    pub segments: Vec<Segment>,
    /// Block tables of all sequences, one behind the other; see [`Segment::blocks`].
    pub block_table: Vec<BlockId>,
    /// Rows whose logits are wanted, ascending. `[n_samples]`
    pub sample_rows: Vec<usize>,
    /// How to choose the token after each of `sample_rows`, for an executor that samples. Empty: the logits themselves are
    /// wanted. `[n_samples]` or `[0]`
    pub samples: Vec<SampleSpec>,
    /// Tokens to be penalized, of all samples, one behind the other; see [`SampleSpec::history`].
    pub history: Vec<TokenCount>,
    /// Biases of all samples, one behind the other; see [`SampleSpec::logit_bias`].
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Masks of the samples that have one, one behind the other; see [`SampleSpec::mask`].
    pub masks: Vec<u32>,
}

impl Batch {
    /// Rows in the batch.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.segments.clear();
        self.block_table.clear();
        self.sample_rows.clear();
        self.samples.clear();
        self.history.clear();
        self.logit_bias.clear();
        self.masks.clear();
    }

    /// Appends one sequence's next tokens, at positions `start_pos..`, with the blocks that hold its whole context.
    ///
    /// With `sample`, the logits of the last of these tokens are wanted, or what [`Batch::sample_with`] chooses from them.
    pub fn push(&mut self, role: Role, tokens: &[TokenId], start_pos: u32, blocks: &[BlockId], sample: bool) {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        let table = self.block_table.len()..self.block_table.len() + blocks.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((0..tokens.len() as u32).map(|i| start_pos + i));
        self.block_table.extend_from_slice(blocks);
        if sample && !tokens.is_empty() {
            self.sample_rows.push(rows.end - 1);
        }
        self.segments.push(Segment { rows, start_pos, role, blocks: table });
    }

    /// Says how to choose the token after the row that was pushed last, with `sample`. Said of one row, it is to be said
    /// of all.
    pub fn sample_with(&mut self, request: &SampleRequest<'_>) {
        debug_assert_eq!(self.sample_rows.last(), self.tokens.len().checked_sub(1).as_ref());
        let position = self.positions.last().map_or(0, |&last| u64::from(last) + 1);
        self.add_sample(position, request);
    }

    /// Wants what comes after `row` too, of the segment that was pushed last without `sample`, and says how to choose it. Rows
    /// ascend.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn sample_row(&mut self, row: usize, request: &SampleRequest<'_>) {
        debug_assert!(self.sample_rows.last().is_none_or(|&last| last < row));
        self.sample_rows.push(row);
        self.add_sample(u64::from(self.positions[row]) + 1, request);
    }

    fn add_sample(&mut self, position: u64, request: &SampleRequest<'_>) {
        self.samples.push(SampleSpec {
            sampling: request.sampling.clone(),
            seed: request.seed,
            position,
            history: append(&mut self.history, request.history),
            logit_bias: append(&mut self.logit_bias, request.logit_bias),
            mask: append(&mut self.masks, request.mask),
            n_logprobs: request.n_logprobs,
            given: request.given,
        });
    }

    /// What sample `i` was pushed with.
    ///
    /// # Panics
    /// If there is no such sample, or one of its ranges was set to what the batch does not hold.
    pub fn sample(&self, i: usize) -> SampleRequest<'_> {
        let spec = &self.samples[i];
        SampleRequest {
            sampling: &spec.sampling,
            seed: spec.seed,
            history: &self.history[spec.history.clone()],
            logit_bias: &self.logit_bias[spec.logit_bias.clone()],
            mask: &self.masks[spec.mask.clone()],
            n_logprobs: spec.n_logprobs,
            given: spec.given,
        }
    }
}

/// Appends `items` and says where.
fn append<T: Copy>(all: &mut Vec<T>, items: &[T]) -> Range<usize> {
    let start = all.len();
    all.extend_from_slice(items);
    start..all.len()
}
