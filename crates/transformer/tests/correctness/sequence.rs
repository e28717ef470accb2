//! One sequence driven through an executor, as an engine would.

use gguf_parser::Gguf;
use quant::{IntegerIsa, Isa};
use test_support::closeness::Gates;
use transformer::cpu::{CpuExecutor, CpuOptions, Probe};
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, ExecutorError, KvType, ModelSpec, Role};
use weight_loader::{ModelFile, Weights};

/// An executor that shows its steps.
pub(crate) trait Watched: Executor {
    fn forward_watched(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<&[f32], ExecutorError>;
}

impl Watched for CpuExecutor {
    fn forward_watched(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<&[f32], ExecutorError> {
        self.forward_probed(batch, probe)
    }
}

#[cfg(feature = "cuda")]
impl Watched for transformer::cuda::CudaExecutor {
    fn forward_watched(&mut self, batch: &Batch, probe: &mut dyn Probe) -> Result<&[f32], ExecutorError> {
        self.forward_probed(batch, probe)
    }
}

/// What runs a model, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// The last: what interleaved weights are multiplied with, and that there are any.
    Cpu(Isa, KvType, Option<IntegerIsa>),
    #[cfg(feature = "cuda")]
    Cuda { graphs: bool, dependent_launch: bool },
}

/// What an executor has room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) n_ctx: usize,
    pub(crate) max_seqs: usize,
    pub(crate) max_batch_tokens: usize,
}

impl Target {
    /// Everything that this run of the tests is about: the CPU, or with `WORKER_TEST_DEVICE=cuda` the GPU.
    pub(crate) fn all() -> Vec<Target> {
        #[cfg(feature = "cuda")]
        if on_cuda() {
            return [false, true].map(|graphs| Target::Cuda { graphs, dependent_launch: true }).to_vec();
        }
        let cpu = |(isa, integers)| [KvType::F32, KvType::F16].map(|kv_type| Target::Cpu(isa, kv_type, integers));
        kernels().into_iter().flat_map(cpu).collect()
    }

    /// The most exact of them.
    pub(crate) fn best() -> Target {
        #[cfg(feature = "cuda")]
        if on_cuda() {
            return Target::Cuda { graphs: true, dependent_launch: true };
        }
        Target::Cpu(Isa::detect(), KvType::F32, None)
    }

    /// With room for `max_seqs` sequences of `n_ctx` tokens, in steps of 128 rows.
    pub(crate) fn executor_for(
        self,
        file: &ModelFile,
        spec: ModelSpec,
        n_ctx: usize,
        max_seqs: usize,
    ) -> Box<dyn Watched> {
        self.executor_with(file, spec, Setup { n_ctx, max_seqs, max_batch_tokens: 128 })
    }

    pub(crate) fn executor_with(self, file: &ModelFile, spec: ModelSpec, setup: Setup) -> Box<dyn Watched> {
        let Setup { n_ctx, max_seqs, max_batch_tokens } = setup;
        let gguf = file.gguf().unwrap();
        match self {
            Target::Cpu(isa, kv_type, integers) => {
                let weights =
                    weight_loader::load(file, &gguf, &ModelSpec::from_gguf(&gguf).unwrap().tensors(), &mut |_| ());
                let own = CpuOptions { integers, ..options(isa, kv_type) };
                let options = CpuOptions { n_ctx: Some(n_ctx), max_seqs, max_batch_tokens, ..own };
                Box::new(CpuExecutor::new(spec, weights.unwrap(), options).unwrap())
            }
            #[cfg(feature = "cuda")]
            Target::Cuda { graphs, dependent_launch } => {
                use transformer::cuda::{CudaExecutor, CudaOptions};
                let options = CudaOptions {
                    n_ctx: Some(n_ctx),
                    max_seqs,
                    max_batch_tokens,
                    graphs,
                    dependent_launch,
                    ..CudaOptions::default()
                };
                Box::new(CudaExecutor::load(spec, file, &gguf, options, &mut |_, _| ()).unwrap())
            }
        }
    }

    /// For a file's bytes; every row of a run can be sampled. The bytes are leaked: a test process is short.
    pub(crate) fn executor(self, bytes: Vec<u8>) -> Box<dyn Watched> {
        let file = ModelFile::from_static(bytes.leak(), "test");
        let spec = ModelSpec::from_gguf(&file.gguf().unwrap()).unwrap();
        self.executor_for(&file, spec, 256, 128)
    }

    /// The gates that its results have to pass.
    pub(crate) fn gates(self) -> Gates {
        match self {
            Target::Cpu(_, KvType::F32, _) => Gates::CPU_F32,
            Target::Cpu(_, KvType::F16, _) => Gates::CPU_F16,
            #[cfg(feature = "cuda")]
            Target::Cuda { .. } => Gates::CUDA,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Cpu(isa, kv_type, integers) => {
                write!(f, "{} {kv_type:?}", integers.map_or(isa.name(), IntegerIsa::name))
            }
            #[cfg(feature = "cuda")]
            Target::Cuda { graphs, dependent_launch } => {
                let graphs = if *graphs { " graphs" } else { "" };
                write!(f, "cuda{graphs}{}", if *dependent_launch { "" } else { " serial" })
            }
        }
    }
}

/// Whether this run is about the GPU. One that is, on a machine without, fails: it was asked for by name.
#[cfg(feature = "cuda")]
pub(crate) fn on_cuda() -> bool {
    std::env::var("WORKER_TEST_DEVICE").is_ok_and(|device| device == "cuda")
}

/// The ways of computing that this machine has: every instruction set, and the best one with interleaved weights.
pub(crate) fn kernels() -> Vec<(Isa, Option<IntegerIsa>)> {
    let interleaved = IntegerIsa::available().into_iter().map(|integers| (Isa::detect(), Some(integers)));
    Isa::available().into_iter().map(|isa| (isa, None)).chain(interleaved).collect()
}

/// Options for a test's executor: every row of a run can be sampled.
pub(crate) fn options(isa: Isa, kv_type: KvType) -> CpuOptions {
    CpuOptions {
        n_threads: 2,
        n_ctx: Some(256),
        max_seqs: 128,
        max_batch_tokens: 128,
        kv_bytes: None,
        kv_type,
        isa,
        integers: None,
    }
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

/// Logits of every position: the prompt in one piece, then one generated token a step. With a probe, every step is watched.
///
/// Blocks are handed out backwards, so that a block's number is not its place in the sequence.
pub(crate) fn run(
    executor: &mut dyn Watched,
    tokens: &[u32],
    n_prompt: usize,
    mut probe: Option<&mut dyn ProbeAt>,
) -> Vec<f32> {
    let blocks: Vec<BlockId> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().map(BlockId).collect();
    let mut logits = Vec::new();
    let mut batch = Batch::default();
    let pieces = std::iter::once(0..n_prompt).chain((n_prompt..tokens.len()).map(|i| i..i + 1));
    for piece in pieces {
        let role = if piece.start == 0 { Role::Prompt } else { Role::Generated };
        batch.clear();
        batch.push(role, &tokens[piece.clone()], piece.start as u32, &blocks, false);
        batch.sample_rows.extend(0..piece.len());
        logits.extend_from_slice(match &mut probe {
            Some(probe) => {
                probe.at(piece);
                executor.forward_watched(&batch, probe).unwrap()
            }
            None => executor.forward(&batch).unwrap().into_logits(),
        });
    }
    assert_eq!(logits.len(), tokens.len() * executor.info().n_vocab);
    logits
}

/// A probe that is told which positions the next step's rows have.
pub(crate) trait ProbeAt: Probe {
    fn at(&mut self, positions: std::ops::Range<usize>);
}
