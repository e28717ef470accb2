//! A row's bits depend on its sequence's tokens and on nothing else.

use std::ops::Range;
use std::sync::LazyLock;

use proptest::prelude::*;
use quant::{Format, IntegerIsa, Isa};
use transformer::cpu::CpuOptions;
use transformer::{BLOCK_TOKENS, Batch, BlockId, Executor, KvType, ModelSpec, Role};

use weight_loader::ModelFile;

use crate::case::Case;
use crate::formats::{in_formats, mixed};
use crate::sequence::{Target, Watched, executor, options};

/// A sequence to be driven: its tokens are given, so that every way of driving it asks the same of the executor.
#[derive(Debug, Clone)]
struct Sequence {
    tokens: Vec<u32>,
    n_prompt: usize,
    /// The most prompt tokens in a step.
    chunk: usize,
    /// The role that prompt tokens are given.
    role: Role,
    /// The step in which it joins the batch.
    joins: usize,
}

impl Sequence {
    fn new(tokens: &[u32], n_prompt: usize) -> Self {
        Self { tokens: tokens.to_vec(), n_prompt, chunk: usize::MAX, role: Role::Prompt, joins: 0 }
    }

    /// The next tokens from `pos` on.
    fn next(&self, pos: usize, room: usize) -> (Role, Range<usize>) {
        if pos < self.n_prompt {
            (self.role, pos..(pos + self.chunk.min(room)).min(self.n_prompt))
        } else {
            (Role::Generated, pos..pos + 1)
        }
    }
}

/// Bits of the logits at the prompt's last position and every later one, for each sequence, when all are driven at once.
///
/// Each sequence's blocks lie scattered over the pool, between those of the others.
fn drive(executor: &mut dyn Executor, sequences: &[Sequence]) -> Vec<Vec<u32>> {
    let info = executor.info().clone();
    let n_seqs = sequences.len() as u32;
    let blocks_of =
        |i: u32| -> Vec<BlockId> { (0..).map(|b| BlockId(b * n_seqs + i)).take(info.n_ctx / BLOCK_TOKENS).collect() };
    let mut positions = vec![0; sequences.len()];
    let mut bits: Vec<Vec<u32>> = vec![Vec::new(); sequences.len()];
    let mut batch = Batch::default();
    for step in 0.. {
        batch.clear();
        let mut sampled = Vec::new();
        for (i, sequence) in sequences.iter().enumerate() {
            let room = info.max_batch_tokens - batch.n_tokens();
            if sequence.joins > step || positions[i] == sequence.tokens.len() || room == 0 {
                continue;
            }
            let (role, piece) = sequence.next(positions[i], room);
            let sample = piece.end >= sequence.n_prompt;
            let n_blocks = piece.end.div_ceil(BLOCK_TOKENS);
            let blocks = &blocks_of(i as u32)[..n_blocks];
            batch.push(role, &sequence.tokens[piece.clone()], piece.start as u32, blocks, sample);
            positions[i] = piece.end;
            sampled.extend(sample.then_some(i));
        }
        if batch.is_empty() && sequences.iter().all(|s| s.joins <= step) {
            return bits;
        }
        let logits = executor.forward(&batch).unwrap().into_logits();
        for (i, logits) in sampled.into_iter().zip(logits.chunks_exact(info.n_vocab)) {
            bits[i].extend(logits.iter().map(|x| x.to_bits()));
        }
    }
    unreachable!()
}

/// A model's file, and what is said to it.
struct Model {
    name: String,
    bytes: &'static [u8],
    text: Vec<u32>,
}

impl Model {
    /// A golden case's model, and its first run's tokens.
    fn golden(name: &str) -> Self {
        let case = Case::read(name);
        Self { name: case.name.clone(), bytes: case.bytes().leak(), text: case.runs[0].tokens.clone() }
    }

    /// The tiny model with matrix `i` in `format_of(i)`.
    fn in_formats(name: &str, format_of: impl Fn(usize) -> Format) -> Self {
        let [bytes, _] = in_formats(format_of);
        Self { name: name.to_owned(), bytes: bytes.leak(), text: (0..40).map(|i| i * 37 % 256).collect() }
    }

    /// A sequence's tokens: the text again and again, for each `i` from another place.
    fn tokens(&self, i: usize, n: usize) -> Vec<u32> {
        self.text.iter().cycle().skip(i * 5).take(n).copied().collect()
    }
}

/// With room for eight sequences of 112 tokens in scattered blocks.
fn ample(model: &Model, target: Target) -> Box<dyn Watched> {
    let file = ModelFile::from_static(model.bytes, "test");
    let spec = ModelSpec::from_gguf(&file.gguf().unwrap()).unwrap();
    target.executor_for(&file, spec, 112, 8)
}

/// The same on the CPU, with so many threads.
fn threads(isa: Isa, integers: Option<IntegerIsa>, n_threads: usize) -> CpuOptions {
    let options = options(isa, KvType::F16);
    CpuOptions { n_threads, n_ctx: Some(112), max_seqs: 8, max_batch_tokens: 128, integers, ..options }
}

/// Targets that differ in their bits or in how they come to them; the kind of KV cache does not matter here.
fn targets() -> Vec<Target> {
    Target::all().into_iter().filter(|target| !matches!(target, Target::Cpu(_, KvType::F32, _))).collect()
}

/// Models whose shapes reach every kind of kernel: F16 and Q8_0 weights, whole and ragged vectors, both pairings.
const MODELS: [&str; 4] = ["haiku", "qwen2_group7", "qwen2_q8_0", "llama_pairs"];

/// A model whose matrices are each of another format.
static MIXED: LazyLock<Model> = LazyLock::new(|| Model::in_formats("mixed", mixed));

/// All of these.
fn for_each(mut check: impl FnMut(&Model, Target)) {
    for model in MODELS.map(Model::golden).iter().chain([&*MIXED]) {
        for target in targets() {
            check(model, target);
        }
    }
}

/// Drives the sequences at once, then each alone with its prompt in one piece; `Err` says whose bits differ.
fn check_company(executor: &mut dyn Executor, sequences: &[Sequence], what: &str) -> Result<(), String> {
    let together = drive(executor, sequences);
    for (i, (sequence, together)) in sequences.iter().zip(together).enumerate() {
        let whole = Sequence::new(&sequence.tokens, sequence.n_prompt);
        let alone = match sequence.role {
            Role::Generated if !executor.info().roles_bit_equal => Sequence { joins: 0, ..sequence.clone() },
            _ => whole,
        };
        if drive(executor, &[alone])[0] != together {
            return Err(format!("{what}: sequence {i} differs: {sequence:?}"));
        }
    }
    Ok(())
}

#[test]
fn chunks_of_1_7_64_and_whole_give_the_same_bits() {
    for_each(|model, target| {
        let mut executor = ample(model, target);
        let whole = Sequence::new(&model.tokens(0, 100), 90);
        let want = drive(&mut *executor, std::slice::from_ref(&whole));
        for chunk in [1, 7, 64] {
            let got = drive(&mut *executor, &[Sequence { chunk, ..whole.clone() }]);
            assert!(got == want, "{} {}: chunks of {chunk} differ", model.name, target);
        }
    });
}

#[test]
fn prompt_and_generated_rows_give_the_same_bits() {
    for_each(|model, target| {
        let mut executor = ample(model, target);
        if !executor.info().roles_bit_equal {
            assert!(!matches!(target, Target::Cpu(..)), "on the CPU roles are equal");
            return; // and the engine shares no block among roles
        }
        let prompt = Sequence::new(&model.tokens(0, 80), 70);
        let want = drive(&mut *executor, std::slice::from_ref(&prompt));
        // The whole context one token a step in the role of generated tokens, as if a chat's earlier answer.
        let generated = Sequence { chunk: 1, role: Role::Generated, ..prompt.clone() };
        assert!(drive(&mut *executor, &[generated]) == want, "{} {}: roles differ", model.name, target);
        // And what was generated read in as a prompt.
        let all_prompt = Sequence { n_prompt: 80, ..prompt };
        let last = want[0].len() / 11 * 10;
        assert!(drive(&mut *executor, &[all_prompt])[0] == want[0][last..], "{} {}", model.name, target);
    });
}

#[test]
fn alone_and_in_a_ragged_batch_of_8_give_the_same_bits() {
    for_each(|model, target| {
        let mut executor = ample(model, target);
        let sequences: Vec<Sequence> = (0..8)
            .map(|i| {
                let n_prompt = [1, 2, 3, 15, 16, 17, 40, 90][i];
                let all = Sequence::new(&model.tokens(i, n_prompt + 20), n_prompt);
                Sequence { chunk: [64, 1, 7, 7, 64, 5, 7, 64][i], joins: [0, 0, 3, 5, 0, 2, 1, 9][i], ..all }
            })
            .collect();
        check_company(&mut *executor, &sequences, &format!("{} {target}", model.name)).unwrap();
    });
}

/// Prompts of 40 tokens, so that pieces of 17 and of 40 have tiles of sixteen tokens with some left over, and those of 1 and 7
/// have none; then the steps of all together, whatever the sum.
#[test]
fn every_format_gives_the_same_bits_however_its_tokens_come() {
    for &format in Format::ALL {
        let model = Model::in_formats(format.name(), |_| format);
        for target in targets() {
            let mut executor = ample(&model, target);
            let sequences: Vec<Sequence> = [(1, 0), (7, 2), (17, 1), (usize::MAX, 3)]
                .into_iter()
                .enumerate()
                .map(|(i, (chunk, joins))| Sequence { chunk, joins, ..Sequence::new(&model.tokens(i, 42), 40) })
                .chain([Sequence { chunk: 1, role: Role::Generated, ..Sequence::new(&model.tokens(4, 36), 34) }])
                .collect();
            check_company(&mut *executor, &sequences, &format!("{} {target}", model.name)).unwrap();
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for_each(|model, target| {
        #[allow(irrefutable_let_patterns, reason = "without the feature `cuda` there is no other target")]
        let Target::Cpu(isa, _, integers) = target else { return };
        let sequences: Vec<Sequence> = (0..3).map(|i| Sequence::new(&model.tokens(i, 40 + i), 33)).collect();
        let want = drive(&mut executor(model.bytes.to_vec(), threads(isa, integers, 1)), &sequences);
        for n_threads in [2, 3, 8] {
            let got = drive(&mut executor(model.bytes.to_vec(), threads(isa, integers, n_threads)), &sequences);
            assert!(got == want, "{} {target}: {n_threads} threads differ", model.name);
        }
    });
}

fn any_sequence() -> impl Strategy<Value = (usize, usize, usize, usize, bool)> {
    (1..60usize, 1..12usize, 1..70usize, 0..6usize, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_gives_the_same_bits(mix in proptest::collection::vec(any_sequence(), 1..8)) {
        for target in targets() {
            let sequences: Vec<Sequence> = mix
                .iter()
                .enumerate()
                .map(|(i, &(n_prompt, n_generated, chunk, joins, as_generated))| Sequence {
                    tokens: MIXED.tokens(i, n_prompt + n_generated),
                    n_prompt,
                    chunk: if as_generated { 1 } else { chunk },
                    role: if as_generated { Role::Generated } else { Role::Prompt },
                    joins,
                })
                .collect();
            check_company(&mut *ample(&MIXED, target), &sequences, &target.to_string()).map_err(TestCaseError::fail)?;
        }
    }
}
