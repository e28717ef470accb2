//! One sequence driven through an executor, as an engine would.

use gguf_parser::Gguf;
use quant::Isa;
use transformer::cpu::{CpuExecutor, CpuOptions, Probe};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, KvType, ModelSpec, Role};
use weight_loader::{ModelFile, Weights};

/// Options for a test's executor: every row of a run can be sampled.
pub(crate) fn options(isa: Isa, kv_type: KvType) -> CpuOptions {
    CpuOptions { n_threads: 2, n_ctx: Some(256), max_seqs: 128, max_batch_tokens: 128, kv_bytes: None, kv_type, isa }
}

/// The spec and weights of a file's bytes.
pub(crate) fn load(bytes: &'static [u8]) -> (ModelSpec, Weights) {
    let file = ModelFile::from_static(bytes, "test");
    let gguf = Gguf::parse(bytes).unwrap();
    let spec = ModelSpec::from_gguf(&gguf).unwrap();
    let weights = weight_loader::load(&file, &gguf, &spec.tensors(), &mut |_| ()).unwrap();
    (spec, weights)
}

/// An executor for a file's bytes. They are leaked: a test process is short.
pub(crate) fn executor(bytes: Vec<u8>, options: CpuOptions) -> CpuExecutor {
    let (spec, weights) = load(bytes.leak());
    CpuExecutor::new(spec, weights, options).unwrap()
}

/// Logits of every position: the prompt in one piece, then one generated token a step.
///
/// Blocks are handed out backwards, so that a block's number is not its place in the sequence.
pub(crate) fn run(executor: &mut CpuExecutor, tokens: &[u32], n_prompt: usize, mut probe: impl ProbeAt) -> Vec<f32> {
    let blocks: Vec<BlockId> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().map(BlockId).collect();
    let mut logits = Vec::new();
    let mut batch = Batch::default();
    let pieces = std::iter::once(0..n_prompt).chain((n_prompt..tokens.len()).map(|i| i..i + 1));
    for piece in pieces {
        let role = if piece.start == 0 { Role::Prompt } else { Role::Generated };
        batch.clear();
        batch.push(role, &tokens[piece.clone()], piece.start as u32, &blocks, false);
        batch.sample_rows.extend(0..piece.len());
        probe.at(piece);
        logits.extend_from_slice(executor.forward_probed(&batch, &mut probe).unwrap());
    }
    assert_eq!(logits.len(), tokens.len() * executor.info().n_vocab);
    logits
}

/// A probe that is told which positions the next step's rows have.
pub(crate) trait ProbeAt: Probe {
    fn at(&mut self, positions: std::ops::Range<usize>);
}

impl ProbeAt for () {
    fn at(&mut self, _: std::ops::Range<usize>) {}
}

impl<P: ProbeAt> ProbeAt for &mut P {
    fn at(&mut self, positions: std::ops::Range<usize>) {
        (**self).at(positions);
    }
}
