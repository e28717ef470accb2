//! What only a GPU has: graphs, weights in other memory, and many rows at once.
//!
//! With `WORKER_TEST_DEVICE=cuda` these and all other tests of this program run on the GPU; without, these say that they were
//! skipped, and fail when `WORKER_REQUIRE_GPU=1`.

use transformer::cuda::{CudaExecutor, CudaOptions};
use transformer::{
    BLOCK_TOKENS, Batch, BlockId, Executor, ModelSpec, Role, SampleRequest, Sampling, StepOutput, TokenCount, TokenId,
    mask_words,
};
use weight_loader::ModelFile;

use quant::Format;

use crate::case::Case;
use crate::formats::{in_formats, mixed};
use crate::sequence::on_cuda;

pub(crate) fn skipped(test: &str) -> bool {
    if on_cuda() {
        return false;
    }
    assert!(
        std::env::var("WORKER_REQUIRE_GPU").as_deref() != Ok("1"),
        "{test}: needs WORKER_TEST_DEVICE=cuda and a GPU"
    );
    println!("SKIPPED: {test} runs with WORKER_TEST_DEVICE=cuda");
    true
}

fn file(case: &Case) -> ModelFile {
    ModelFile::from_static(case.bytes().leak(), "test")
}

/// Models of every format, and one of all of them, by name.
fn quantised() -> Vec<(String, ModelFile)> {
    let of = |name: &str, format_of: &dyn Fn(usize) -> Format| {
        let [bytes, _] = in_formats(format_of);
        (name.to_owned(), ModelFile::from_static(bytes.leak(), "test"))
    };
    let alone = Format::ALL.iter().map(|&format| of(format.name(), &move |_| format));
    alone.chain([of("mixed", &mixed)]).collect()
}

fn executor(file: &ModelFile, options: CudaOptions) -> CudaExecutor {
    let gguf = file.gguf().unwrap();
    CudaExecutor::load(ModelSpec::from_gguf(&gguf).unwrap(), file, &gguf, options, &mut |_, _| ()).unwrap()
}

fn options() -> CudaOptions {
    CudaOptions { n_ctx: Some(128), max_seqs: 64, max_batch_tokens: 2048, ..CudaOptions::default() }
}

/// Logits' bits of `n_seqs` sequences, which read a prompt of 20 tokens and then are given 12 more, one a step; sequence `i` of
/// every call is the same.
fn bits(executor: &mut CudaExecutor, tokens: &[u32], sequences: &[usize]) -> Vec<Vec<u32>> {
    let n_vocab = executor.info().n_vocab;
    let token = |sequence: usize, i: usize| tokens[(sequence * 7 + i) % tokens.len()];
    let blocks = |sequence: usize| -> Vec<BlockId> { (0..2).map(|b| BlockId((b * 64 + sequence) as u32)).collect() };
    let mut out = vec![Vec::new(); sequences.len()];
    let mut batch = Batch::default();
    for step in 0..13 {
        batch.clear();
        for &sequence in sequences {
            let range = if step == 0 { 0..20 } else { 19 + step..20 + step };
            let role = if step == 0 { Role::Prompt } else { Role::Generated };
            let ids: Vec<u32> = range.clone().map(|i| token(sequence, i)).collect();
            batch.push(role, &ids, range.start as u32, &blocks(sequence)[..range.end.div_ceil(BLOCK_TOKENS)], true);
        }
        let logits = executor.forward(&batch).unwrap().into_logits();
        for (out, row) in out.iter_mut().zip(logits.chunks_exact(n_vocab)) {
            out.extend(row.iter().map(|x| x.to_bits()));
        }
    }
    out
}

#[test]
fn alone_and_among_64_with_and_without_graphs_give_the_same_bits() {
    if skipped("alone_and_among_64_with_and_without_graphs_give_the_same_bits") {
        return;
    }
    let golden = ["haiku", "qwen2_group7", "qwen2_q8_0", "llama_pairs", "qwen2_tied", "qwen2_bias30"].map(|name| {
        let case = Case::read(name);
        (name.to_owned(), file(&case), case.runs[0].tokens.clone())
    });
    let made_up: Vec<u32> = (0..60).map(|i| i * 37 % 256).collect();
    let quantised = quantised().into_iter().map(|(name, file)| (name, file, made_up.clone()));
    for (name, file, tokens) in golden.into_iter().chain(quantised) {
        let tokens = &tokens[..];
        let all: Vec<usize> = (0..64).collect();
        let want = bits(&mut executor(&file, options()), tokens, &all);
        for (graphs, dependent_launch) in [(true, false), (false, true), (false, false)] {
            let mut executor = executor(&file, CudaOptions { graphs, dependent_launch, ..options() });
            assert!(bits(&mut executor, tokens, &all) == want, "{name}: graphs {graphs}, dependent {dependent_launch}");
            for some in [&[5][..], &[63, 2], &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[40; 1]] {
                let got = bits(&mut executor, tokens, some);
                let same = got.iter().zip(some).all(|(got, &i)| *got == want[i]);
                assert!(same, "{name}: sequences {some:?} differ from themselves among 64");
            }
        }
    }
}

#[test]
fn every_tensor_in_gpu_memory_is_the_files() {
    if skipped("every_tensor_in_gpu_memory_is_the_files") {
        return;
    }
    let golden = Case::all().into_iter().map(|case| (case.name.clone(), file(&case)));
    for (name, file) in golden.chain(quantised()) {
        let gguf = file.gguf().unwrap();
        let n = executor(&file, options()).check_all_weights(&file, &gguf).unwrap();
        let n_matrices = gguf.tensors.iter().filter(|tensor| tensor.shape.len() == 2).count();
        assert_eq!(n, n_matrices, "{name}");
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_both_figures() {
    if skipped("a_model_that_does_not_fit_is_refused_with_both_figures") {
        return;
    }
    let case = Case::read("qwen2_tied");
    let file = file(&case);
    let gguf = file.gguf().unwrap();
    let spec = ModelSpec::from_gguf(&gguf).unwrap();
    let options = CudaOptions { kv_bytes: Some(1 << 44), ..options() };
    let error = CudaExecutor::load(spec, &file, &gguf, options, &mut |_, _| ()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("needs ") && error.contains(" are free"), "{error}");
}

#[test]
fn greedy_choices_and_log_probabilities_are_those_of_the_logits() {
    if skipped("greedy_choices_and_log_probabilities_are_those_of_the_logits") {
        return;
    }
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    for case in Case::all() {
        let file = file(&case);
        let mut executor = executor(&file, options());
        assert!(executor.info().samples);
        let n_vocab = executor.info().n_vocab;
        let tokens = &case.runs[0].tokens;
        let mut batch = Batch::default();
        // A prompt and three generated rows, of which one is penalized for its best token.
        let push = |batch: &mut Batch, chooses: bool, history: &[TokenCount]| {
            batch.clear();
            batch.push(Role::Prompt, &tokens[..17], 0, &[BlockId(0), BlockId(1)], true);
            if chooses {
                batch.sample_with(&SampleRequest { n_logprobs: Some(20), ..SampleRequest::new(&greedy, 1) });
            }
            for i in 2..5 {
                batch.push(Role::Generated, &tokens[i..=i], 0, &[BlockId(i as u32)], true);
                if chooses {
                    let penalty = Sampling { repetition_penalty: 2.0, ..greedy.clone() };
                    let sampling = if i == 3 { &penalty } else { &greedy };
                    let history = if i == 3 { history } else { &[] };
                    let n_logprobs = (i == 4).then_some(3);
                    batch.sample_with(&SampleRequest { history, n_logprobs, ..SampleRequest::new(sampling, 1) });
                }
            }
        };
        push(&mut batch, false, &[]);
        let logits = executor.forward(&batch).unwrap().into_logits().to_vec();
        let rows: Vec<&[f32]> = logits.chunks_exact(n_vocab).collect();
        let best = |row: &[f32]| (0..n_vocab).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        push(&mut batch, true, &[TokenCount { id: best(rows[2]), count: 1 }]);
        let StepOutput::Chosen(choices) = executor.forward(&batch).unwrap() else { panic!("logits") };
        let mut penalized = rows[2].to_vec();
        let logit = &mut penalized[best(rows[2]) as usize];
        *logit = if *logit > 0.0 { *logit / 2.0 } else { *logit * 2.0 };
        for (i, row) in [rows[0], rows[1], &penalized, rows[3]].into_iter().enumerate() {
            assert_eq!(choices[i].id, Ok(best(row)), "{} row {i}", case.name);
        }
        assert!(choices[1].logprobs.is_none() && choices[2].logprobs.is_none());
        for (i, n) in [(0, 20), (3, 3)] {
            let row = rows[i];
            let log_sum = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let logprobs = choices[i].logprobs.as_ref().unwrap();
            assert_eq!(logprobs.top.len(), n.min(n_vocab));
            assert_eq!(logprobs.top[0].id, best(row));
            for top in &logprobs.top {
                let want = f64::from(row[top.id as usize]) - log_sum;
                assert!((f64::from(top.logprob) - want).abs() < 1e-5, "{} row {i}: {top:?}, {want}", case.name);
            }
        }
    }
}

#[test]
fn given_tokens_are_scored_alike_however_the_prompt_is_cut_and_beside_others() {
    if skipped("given_tokens_are_scored_alike_however_the_prompt_is_cut_and_beside_others") {
        return;
    }
    for case in Case::all() {
        let file = file(&case);
        let mut executor = executor(&file, options());
        let n_vocab = executor.info().n_vocab;
        let tokens = &case.runs[0].tokens[..40.min(case.runs[0].tokens.len())];
        // Each piece's logits, and what is given beside them; a generated row of another sequence stands in front, with settings
        // that a given token does not heed.
        let mut score = |chunk: usize, beside: bool, chooses: bool| {
            let (mut logits, mut choices) = (Vec::new(), Vec::new());
            let odd = Sampling { temperature: 1.5, frequency_penalty: 2.0, ..Sampling::default() };
            let mut batch = Batch::default();
            for start in (0..tokens.len() - 1).step_by(chunk) {
                let end = (start + chunk).min(tokens.len() - 1);
                batch.clear();
                if beside {
                    batch.push(Role::Generated, &tokens[..1], 0, &[BlockId(9)], true);
                    if chooses {
                        batch.sample_with(&SampleRequest { n_logprobs: Some(1), ..SampleRequest::new(&odd, 3) });
                    }
                }
                let first = batch.n_tokens();
                let blocks: Vec<BlockId> = (0..end.div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
                batch.push(Role::Prompt, &tokens[start..end], start as u32, &blocks, false);
                for i in start..end {
                    let given = SampleRequest { given: Some(tokens[i + 1]), ..SampleRequest::new(&odd, 3) };
                    if chooses {
                        batch.sample_row(first + i - start, &SampleRequest { n_logprobs: Some(20), ..given });
                    } else {
                        batch.sample_rows.push(first + i - start);
                    }
                }
                match executor.forward(&batch).unwrap() {
                    StepOutput::Logits(all) => logits.extend_from_slice(&all[first * n_vocab..]),
                    StepOutput::Chosen(all) => choices.extend_from_slice(&all[first..]),
                }
            }
            (logits, choices)
        };
        let (logits, _) = score(tokens.len(), false, false);
        let (_, want) = score(tokens.len(), false, true);
        assert_eq!(want.len(), tokens.len() - 1);
        for (i, (row, choice)) in logits.chunks_exact(n_vocab).zip(&want).enumerate() {
            assert_eq!(choice.id, Ok(tokens[i + 1]), "{} row {i}", case.name);
            let log_sum = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let logprobs = choice.logprobs.as_ref().unwrap();
            let given = std::iter::once((tokens[i + 1], logprobs.logprob));
            for (id, got) in given.chain(logprobs.top.iter().map(|top| (top.id, top.logprob))) {
                let expected = f64::from(row[id as usize]) - log_sum;
                let within = 1e-5 * expected.abs().max(1.0);
                assert!((f64::from(got) - expected).abs() < within, "{} row {i}: {got}, not {expected}", case.name);
            }
            assert_eq!(logprobs.top.len(), 20.min(n_vocab));
        }
        for (chunk, beside) in [(tokens.len(), true), (1, false), (7, true), (16, false)] {
            let (_, got) = score(chunk, beside, true);
            assert!(got == want, "{}: in pieces of {chunk}, beside another: {beside}", case.name);
        }
    }
}

/// How the rows of the next test are to be chosen: by everything that changes logits.
struct Changes {
    sampling: Sampling,
    history: Vec<TokenCount>,
    logit_bias: Vec<(TokenId, f32)>,
    mask: Vec<u32>,
}

impl Changes {
    /// The `i`-th kind; each setting is there alone, and all are together.
    fn new(i: usize, n_vocab: usize) -> Self {
        let has = |kind: usize| i == kind || i == 4;
        let ids = |step: usize| (i..n_vocab).step_by(step).map(|id| id as TokenId);
        let history = ids(5).map(|id| TokenCount { id, count: id % 7 + 1 });
        let logit_bias = ids(11).map(|id| (id, (id % 9) as f32 - 4.0)).take(200);
        let mut mask = vec![0; mask_words(n_vocab)];
        ids(3).for_each(|id| mask[id as usize / 32] |= 1 << (id % 32));
        Self {
            sampling: Sampling {
                temperature: 0.0,
                repetition_penalty: if has(1) { 1.5 } else { 1.0 },
                presence_penalty: if has(2) { 0.75 } else { 0.0 },
                frequency_penalty: if has(2) { 0.25 } else { 0.0 },
                ..Sampling::default()
            },
            history: if has(1) || has(2) { history.collect() } else { Vec::new() },
            logit_bias: if has(3) { logit_bias.collect() } else { Vec::new() },
            mask: if has(0) { mask } else { Vec::new() },
        }
    }

    fn request(&self) -> SampleRequest<'_> {
        let Self { sampling, history, logit_bias, mask } = self;
        SampleRequest { history, logit_bias, mask, n_logprobs: Some(2), ..SampleRequest::new(sampling, 1) }
    }

    /// The most likely token by the definition in `engine::sampler`.
    fn best(&self, row: &[f32]) -> TokenId {
        let mut row = row.to_vec();
        for &(id, bias) in &self.logit_bias {
            row[id as usize] += bias;
        }
        for (id, logit) in row.iter_mut().enumerate().filter(|_| !self.mask.is_empty()) {
            if self.mask[id / 32] >> (id % 32) & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
        for counted in &self.history {
            let (logit, penalty) = (&mut row[counted.id as usize], self.sampling.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit -= self.sampling.presence_penalty + self.sampling.frequency_penalty * counted.count as f32;
        }
        (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as TokenId
    }
}

#[test]
fn biases_masks_and_penalties_choose_as_defined_with_and_without_graphs() {
    if skipped("biases_masks_and_penalties_choose_as_defined_with_and_without_graphs") {
        return;
    }
    for case in Case::all() {
        let file = file(&case);
        let tokens = &case.runs[0].tokens;
        for graphs in [true, false] {
            let mut executor = executor(&file, CudaOptions { graphs, ..options() });
            let n_vocab = executor.info().n_vocab;
            // Rows that are chosen for plainly stand between the others; the order turns from step to step, so that a recorded
            // graph meets every kind of row in every place.
            let kinds: Vec<Option<Changes>> = (0..8).map(|i| (i < 5).then(|| Changes::new(i, n_vocab))).collect();
            let plain = Sampling { temperature: 0.0, ..Sampling::default() };
            for turn in 0..kinds.len() {
                let kind = |row: usize| &kinds[(row + 3 * turn) % kinds.len()];
                let push = |batch: &mut Batch, chooses: bool| {
                    batch.clear();
                    for row in 0..kinds.len() {
                        let role = if row % 4 == 1 { Role::Prompt } else { Role::Generated };
                        batch.push(role, &tokens[row..=row], 0, &[BlockId(row as u32)], true);
                        if chooses {
                            batch.sample_with(
                                &kind(row).as_ref().map_or(SampleRequest::new(&plain, 1), Changes::request),
                            );
                        }
                    }
                };
                let mut batch = Batch::default();
                push(&mut batch, false);
                let logits = executor.forward(&batch).unwrap().into_logits().to_vec();
                push(&mut batch, true);
                let StepOutput::Chosen(choices) = executor.forward(&batch).unwrap() else { panic!("logits") };
                for (row, (logits, choice)) in logits.chunks_exact(n_vocab).zip(choices).enumerate() {
                    let plainly =
                        || Changes { sampling: plain.clone(), history: vec![], logit_bias: vec![], mask: vec![] };
                    let want =
                        kind(row).as_ref().map_or_else(|| plainly().best(logits), |changes| changes.best(logits));
                    assert_eq!(choice.id, Ok(want), "{}, graphs {graphs}, turn {turn}, row {row}", case.name);
                    let Some(logprobs) = &choice.logprobs else { continue };
                    // Of the model's own softmax, whatever was changed.
                    let log_sum = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                    let expected = f64::from(logits[want as usize]) - log_sum;
                    assert!((f64::from(logprobs.logprob) - expected).abs() < 1e-5 * expected.abs().max(1.0));
                }
            }
        }
    }
}
