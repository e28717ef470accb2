//! Scores of prompts against the reference in float64, for every golden model.

use std::path::Path;
use std::time::Instant;

use engine::{Engine, EngineConfig, Event, Request, Sampling, TokenLogprobs};
use serde::Deserialize;
use test_support::closeness::{Gates, log_softmax};
use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{KvType, ModelSpec, TokenId};
use weight_loader::ModelFile;

/// What is read of a file of `golden/data`.
#[derive(Deserialize)]
struct Golden {
    case: String,
    model: String,
    runs: Vec<Run>,
    values: Vec<Entry>,
}

#[derive(Deserialize)]
struct Run {
    tokens: Vec<TokenId>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    shape: Vec<usize>,
    offset: usize,
}

/// All tokens of a run as one prompt, in chunks of `max_chunk_tokens`.
fn scores(model: &Path, tokens: &[TokenId], max_chunk_tokens: usize) -> Vec<TokenLogprobs> {
    let file = ModelFile::open(model).unwrap();
    let gguf = file.gguf().unwrap();
    let spec = ModelSpec::from_gguf(&gguf).unwrap();
    let weights = weight_loader::load(&file, &gguf, &spec.tensors(), &mut |_| ()).unwrap();
    let options = CpuOptions { n_threads: 2, kv_type: KvType::F32, ..CpuOptions::default() };
    let executor = CpuExecutor::new(spec, weights, options).unwrap();
    let engine =
        Engine::start(Box::new(executor), EngineConfig { max_chunk_tokens, ..EngineConfig::default() }, Instant::now);
    let mut job = engine
        .submit(Request {
            prompt: tokens.into(),
            max_tokens: 0,
            end_tokens: [].into(),
            sampling: Sampling::default(),
            logit_bias: Vec::new(),
            constraint: None,
            seed: 1,
            n_logprobs: None,
            n_prompt_logprobs: Some(5),
        })
        .unwrap();
    let mut scores = Vec::new();
    loop {
        match job.blocking_recv() {
            Some(Event::Admitted { .. }) => {}
            Some(Event::PromptLogprobs(some)) => scores.extend(some),
            Some(Event::Finished(_)) => return scores,
            other => panic!("{other:?}"),
        }
    }
}

/// Where the scores are further from the reference's than its gates let logits be: with logits off by a share `e` of their
/// 2-norm, a logit is off by at most `e` times that, and the sum of the others' exponentials by no more.
fn faults(scores: &[TokenLogprobs], tokens: &[TokenId], logits: &[f32]) -> Vec<String> {
    let n_vocab = logits.len() / tokens.len();
    let rows = logits.chunks_exact(n_vocab).zip(&tokens[1..]).zip(scores).enumerate();
    let of_row = rows.flat_map(|(i, ((row, &next), score))| {
        let want = log_softmax(row);
        let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let all = score.top.iter().map(|top| (top.id, top.logprob)).chain([(next, score.logprob)]);
        let is_off = move |(id, got): (TokenId, f32)| {
            let error = (f64::from(got) - want[id as usize]).abs();
            let within = error <= 2.0 * Gates::CPU_F32.one * norm + 1e-6;
            (!within).then(|| format!("after position {i}: token {id} is off by {error:.1e}"))
        };
        all.filter_map(is_off).collect::<Vec<_>>()
    });
    of_row.collect()
}

#[test]
fn scores_are_close_to_the_reference_at_every_position() {
    let data = test_support::checkout().join("crates/transformer/golden/data");
    let mut n = 0;
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let golden: Golden = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let bytes = std::fs::read(path.with_extension("f32")).unwrap();
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        for (i, Run { tokens }) in golden.runs.iter().enumerate() {
            let entry = golden.values.iter().find(|entry| entry.name == format!("logits.{i}")).unwrap();
            let logits = &values[entry.offset..][..entry.shape.iter().product()];
            let scores = scores(&data.join(&golden.model), tokens, [usize::MAX, 3][i % 2]);
            assert_eq!(scores.len(), tokens.len() - 1, "{}", golden.case);
            assert!(scores.iter().all(|score| score.top.len() == 5 && score.logprob <= 0.0));
            let faults = faults(&scores, tokens, logits);
            assert!(faults.is_empty(), "{} run {i}:\n{}", golden.case, faults.join("\n"));
            // Of the next token, and not of one beside it.
            let shifted = [&tokens[1..], &tokens[..1]].concat();
            assert!(self::faults(&scores, &shifted, logits).len() > tokens.len() / 2, "{} run {i}", golden.case);
            n += scores.len();
        }
    }
    assert!(n > 500, "{n} tokens were scored");
}
