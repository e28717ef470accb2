//! How likely a model holds each token of a text: what `perplexity` and `compare` measure.
//!
//! A text is cut into windows of `n_ctx` tokens that know nothing of each other. The first half of a window is context; each
//! token of the second but its first is scored by the logits of the position before it, as llama.cpp's perplexity tool has
//! it, so that figures can be compared. Where texts begin with BOS, it takes the place of a window's first token.

pub(crate) mod statistics;

use std::fs::File;
use std::io::Read as _;
use std::ops::Range;

use anyhow::Context as _;
use tokenizer::{EncodeOptions, TokenId, Tokenizer};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, Role};
use weight_loader::ModelFile;

use crate::cli::{DeviceArgs, LogArgs, TextArgs};
use crate::kv_plan::Pool;
use crate::progress::Loading;
use crate::start::{self, Loaded};

/// The most that is read of a text, in bytes: far more than anybody waits for.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Rows whose logits are wanted of a step, at most: with a vocabulary of 150,000 they are 40 MB.
const MAX_SCORED_ROWS: usize = 64;

/// A text in windows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Windows {
    tokens: Vec<TokenId>,
    n_ctx: usize,
    bos: Option<TokenId>,
}

impl Windows {
    /// Reads and tokenizes the text. What looks like a special token in it is plain text.
    ///
    /// # Errors
    /// A file that cannot be read, is no UTF-8, or has less than two windows of tokens.
    pub(crate) fn read(args: &TextArgs, tokenizer: &Tokenizer) -> anyhow::Result<Self> {
        let text = read_text(args)?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let bos = tokenizer.added_bos();
        let plain = EncodeOptions { parse_special: false, add_special: false };
        let tokens: Vec<TokenId> = bos.into_iter().chain(tokenizer.encode(text, plain)).collect();
        let n_ctx = args.ctx_size as usize;
        anyhow::ensure!(
            tokens.len() / 2 >= n_ctx,
            "--file {:?}: has {} tokens, two windows of {n_ctx} need {}; a smaller --ctx-size needs fewer",
            args.file,
            tokens.len(),
            n_ctx as u64 * 2,
        );
        Ok(Self { tokens, n_ctx, bos })
    }

    /// Tokens in the text, those behind the last whole window among them.
    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Whole windows; at least two.
    pub(crate) fn n_windows(&self) -> usize {
        self.tokens.len() / self.n_ctx
    }

    /// Positions of a window whose next token is scored.
    pub(crate) fn scored(&self) -> Range<usize> {
        self.n_ctx / 2..self.n_ctx - 1
    }

    /// The tokens of window `i` as the model reads them.
    fn input(&self, i: usize) -> Vec<TokenId> {
        let mut input = self.tokens[i * self.n_ctx..][..self.n_ctx].to_vec();
        if let Some(bos) = self.bos {
            input[0] = bos;
        }
        input
    }

    /// The tokens that follow the positions `scored` of window `i`.
    fn targets(&self, i: usize, scored: Range<usize>) -> &[TokenId] {
        &self.tokens[i * self.n_ctx..][scored.start + 1..scored.end + 1]
    }

    /// Asks all `models` about window `i`, step by step: `on_rows` gets the tokens to be predicted, and each model's logits,
    /// `[n_targets, n_vocab]`.
    ///
    /// # Errors
    /// A step that fails, logits that are no numbers, and what `on_rows` returns.
    pub(crate) fn score<const N: usize>(
        &self,
        i: usize,
        models: &mut [&mut Model; N],
        mut on_rows: impl FnMut(&[TokenId], [&[f32]; N]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let input = self.input(i);
        let max_rows = models.iter().map(|model| model.max_rows).min().unwrap_or(1);
        let max_scored = models.iter().map(|model| model.max_scored).min().unwrap_or(1);
        for step in steps(self.scored(), max_rows, max_scored) {
            let mut logits = [&[][..]; N];
            for (logits, model) in logits.iter_mut().zip(models.iter_mut()) {
                *logits = model.read(&input, &step).with_context(|| format!("window {}", i + 1))?;
            }
            if step.is_scored {
                on_rows(self.targets(i, step.positions), logits)?;
            }
        }
        Ok(())
    }
}

fn read_text(args: &TextArgs) -> anyhow::Result<String> {
    let named = || format!("--file {:?}", args.file);
    let file = File::open(&args.file).with_context(named)?;
    let mut bytes = Vec::new();
    file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).with_context(named)?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_TEXT_BYTES, "{}: more than {MAX_TEXT_BYTES} bytes, the limit", named());
    String::from_utf8(bytes)
        .map_err(|e| anyhow::anyhow!("{}: byte {} is no UTF-8", named(), e.utf8_error().valid_up_to()))
}

/// Some positions of a window that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    positions: Range<usize>,
    /// The logits of all of them are wanted; else of none.
    is_scored: bool,
}

/// The steps in which a window is read: first the context, then what is `scored`. Nobody asks about its last token.
fn steps(scored: Range<usize>, max_rows: usize, max_scored: usize) -> impl Iterator<Item = Step> {
    let cut = |all: Range<usize>, most: usize, is_scored| {
        all.clone().step_by(most).map(move |at| Step { positions: at..all.end.min(at + most), is_scored })
    };
    cut(0..scored.start, max_rows, false).chain(cut(scored, max_rows.min(max_scored), true))
}

/// A model that reads windows.
pub(crate) struct Model {
    executor: Box<dyn Executor>,
    /// Of one sequence, the only one.
    blocks: Vec<BlockId>,
    batch: Batch,
    max_rows: usize,
    max_scored: usize,
}

impl Model {
    /// Loads the model in `file` for windows of the text's length.
    ///
    /// # Errors
    /// As [`start::load`].
    pub(crate) fn load(
        file: &ModelFile,
        text: &TextArgs,
        device: &DeviceArgs,
        log: &LogArgs,
    ) -> anyhow::Result<(Self, LoadedFacts)> {
        let n_ctx = text.ctx_size as usize;
        let options = start::Options {
            device: device.clone(),
            max_seqs: Some(MAX_SCORED_ROWS),
            ctx_size: Some(n_ctx),
            pool: Pool::Tokens(n_ctx as u64),
            kv_type: text.kv_type.into(),
        };
        let loaded = {
            let mut loading = Loading::start(log.log_format);
            start::load(file, &options, &mut |done, total| loading.set(done, total))?
        };
        let facts = LoadedFacts::of(&loaded, file);
        Ok((Self::new(loaded.executor, n_ctx), facts))
    }

    fn new(executor: Box<dyn Executor>, n_ctx: usize) -> Self {
        let info = executor.info();
        let (max_rows, max_scored) = (info.max_batch_tokens, info.max_seqs);
        let blocks = (0..n_ctx.div_ceil(info.block_tokens)).map(|block| BlockId(block as u32)).collect();
        Self { executor, blocks, batch: Batch::default(), max_rows, max_scored }
    }

    /// Reads the positions of `step`; what comes before has been read. The logits, where they are wanted.
    fn read(&mut self, input: &[TokenId], step: &Step) -> anyhow::Result<&[f32]> {
        let Range { start, end } = step.positions;
        let n_blocks = end.div_ceil(self.executor.info().block_tokens);
        self.batch.clear();
        self.batch.push(Role::Prompt, &input[start..end], start as u32, &self.blocks[..n_blocks], false);
        if step.is_scored {
            self.batch.sample_rows.extend(0..end - start);
        }
        let logits = self.executor.forward(&self.batch)?.into_logits();
        anyhow::ensure!(logits.iter().all(|x| x.is_finite()), "the model's logits are no numbers: it is damaged");
        Ok(logits)
    }
}

/// What is told of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoadedFacts {
    pub(crate) name: String,
    pub(crate) architecture: &'static str,
    pub(crate) quant_kind: &'static str,
    pub(crate) device: String,
    pub(crate) n_vocab: usize,
    pub(crate) weight_bytes: u64,
}

impl LoadedFacts {
    fn of(loaded: &Loaded, file: &ModelFile) -> Self {
        let info = loaded.executor.info();
        Self {
            name: file.name().to_owned(),
            architecture: loaded.spec.architecture,
            quant_kind: loaded.quant_kind,
            device: info.device.clone(),
            n_vocab: info.n_vocab,
            weight_bytes: loaded.executor.memory().weight_bytes,
        }
    }
}

const _: () = assert!(MAX_SCORED_ROWS >= BLOCK_TOKENS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_is_scored_but_for_its_first_token() {
        let windows = Windows { tokens: (10..34).collect(), n_ctx: 8, bos: Some(2) };
        assert_eq!((windows.n_windows(), windows.scored()), (3, 4..7));
        assert_eq!(windows.input(1), [2, 19, 20, 21, 22, 23, 24, 25]);
        assert_eq!(windows.targets(1, windows.scored()), [23, 24, 25]);
        assert_eq!(windows.targets(2, 5..7), [32, 33]);
        let odd = Windows { n_ctx: 7, bos: None, ..windows };
        assert_eq!((odd.n_windows(), odd.scored()), (3, 3..6));
        assert_eq!(odd.input(0)[0], 10);
    }

    #[test]
    fn steps_cover_every_position_but_the_last_once() {
        for n_ctx in 4..40usize {
            for (max_rows, max_scored) in [(1, 1), (3, 2), (16, 5), (5, 16), (64, 64)] {
                let scored = n_ctx / 2..n_ctx - 1;
                let steps: Vec<Step> = steps(scored.clone(), max_rows, max_scored).collect();
                let positions: Vec<usize> = steps.iter().flat_map(|step| step.positions.clone()).collect();
                assert_eq!(positions, (0..n_ctx - 1).collect::<Vec<_>>());
                for step in steps {
                    let most = if step.is_scored { max_rows.min(max_scored) } else { max_rows };
                    assert!((1..=most).contains(&step.positions.len()));
                    assert_eq!(step.is_scored, step.positions.start >= scored.start);
                }
            }
        }
    }
}
