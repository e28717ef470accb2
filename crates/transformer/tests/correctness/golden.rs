//! The gates: closeness to the reference in float64, for every golden model, on every target.

use std::collections::BTreeMap;
use std::ops::Range;

use quant::Isa;
use test_support::closeness::{Closeness, MAX_MEAN_LOGPROB_ERROR, argmax, check_exempt, log_softmax, relative_error};
use transformer::cpu::{Probe, Step};
use transformer::{BLOCK_TOKENS, Batch, BlockId, KvType, Role};

use crate::case::Case;
use crate::sequence::{ProbeAt, Target, Watched, run};

/// Collects every step's values at some positions, under the reference's names.
struct Recorder {
    wanted: Vec<usize>,
    positions: Range<usize>,
    seen: BTreeMap<(String, usize), Vec<f32>>,
}

impl ProbeAt for Recorder {
    fn at(&mut self, positions: Range<usize>) {
        self.positions = positions;
    }
}

impl Probe for Recorder {
    fn see(&mut self, step: Step, layer: usize, values: &[f32]) {
        let width = values.len() / self.positions.len();
        for &position in &self.wanted {
            if self.positions.contains(&position) {
                let row = position - self.positions.start;
                self.seen.insert((name(step, layer), position), values[row * width..][..width].to_vec());
            }
        }
    }
}

/// What `reference.py` calls a step.
fn name(step: Step, layer: usize) -> String {
    let leaf = match step {
        Step::Embeddings => return "embeddings".into(),
        Step::FinalNorm => return "final_norm".into(),
        Step::AttnNorm => "attn_norm",
        Step::Q => "q",
        Step::K => "k",
        Step::V => "v",
        Step::QRope => "q_rope",
        Step::KRope => "k_rope",
        Step::Attn => "attn",
        Step::AttnOut => "attn_out",
        Step::FfnNorm => "ffn_norm",
        Step::FfnAct => "ffn_act",
        Step::Ffn => "ffn",
        Step::Out => "out",
    };
    format!("blk.{layer}.{leaf}")
}

/// Every golden model, on every target.
fn for_each(mut check: impl FnMut(&Case, Target)) {
    for case in Case::all() {
        for target in Target::all() {
            check(&case, target);
        }
    }
}

#[test]
fn every_step_is_close_to_the_reference() {
    for_each(|case, target| {
        let mut executor = target.executor(case.bytes());
        let mut recorder = Recorder { wanted: case.probe_positions.clone(), positions: 0..0, seen: BTreeMap::new() };
        let first = &case.runs[0];
        run(&mut *executor, &first.tokens, first.n_prompt, Some(&mut recorder));
        assert_eq!(recorder.seen.len(), case.probe_positions.len() * (2 + 12 * case.n_layers), "{}", case.name);
        let mut faults = Vec::new();
        for ((name, position), got) in &recorder.seen {
            let (width, want) = case.values(name);
            let row = case.probe_positions.iter().position(|p| p == position).unwrap();
            let error = relative_error(got, &want[row * width..][..width]);
            if error.is_nan() || error > target.gates().one {
                faults.push(format!("{name} at position {position} is off by {error:.1e}"));
            }
        }
        assert!(faults.is_empty(), "{} {target}:\n  {}", case.name, faults.join("\n  "));
    });
}

#[test]
fn logits_and_greedy_choices_are_those_of_the_reference() {
    println!(
        "{:20} {:12} {:>9} {:>9} {:>9} {:>9} {:>6}",
        "model", "target", "error", "worst", "mean dlp", "positions", "exempt"
    );
    let mut faults = Vec::new();
    let (mut n_exempt, mut n_positions) = (0, 0);
    for_each(|case, target| {
        let mut executor = target.executor(case.bytes());
        for (i, a_run) in case.runs.iter().enumerate() {
            let logits = run(&mut *executor, &a_run.tokens, a_run.n_prompt, None);
            let again = run(&mut *executor, &a_run.tokens, a_run.n_prompt, None);
            assert!(logits.iter().map(|x| x.to_bits()).eq(again.iter().map(|x| x.to_bits())), "a second run differs");
            let n_vocab = logits.len() / a_run.tokens.len();
            let c = Closeness::of(&logits, case.logits(i), n_vocab);
            let name = &case.name;
            println!(
                "{name:20} {target:12} {:9.1e} {:9.1e} {:9.1e} {:9} {:6}",
                c.error, c.max_error, c.mean_logprob_error, c.n_positions, c.n_exempt
            );
            n_exempt += c.n_exempt;
            n_positions += c.n_positions;
            faults.extend(c.check(target.gates()).err().map(|why| format!("{name} run {i} {target}: {why}")));
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Of all runs together: a run of the haiku model has 18 positions, of which one would be too many.
    println!("{n_exempt} of {n_positions} greedy choices are exempt");
    check_exempt(n_exempt, n_positions).unwrap();
}

/// One prompt of `models/haiku/golden.json`.
#[derive(serde::Deserialize)]
struct HaikuGolden {
    ids: Vec<u32>,
    /// Of the prompt's last position, rounded to six digits.
    last_logits: Vec<f32>,
    greedy: Vec<u32>,
}

/// One prompt of `models/haiku/golden_logprobs.json`.
#[derive(serde::Deserialize)]
struct HaikuLogprobs {
    steps: Vec<HaikuStep>,
}

#[derive(serde::Deserialize)]
struct HaikuStep {
    id: u32,
    logprob: f64,
    top: Vec<(u32, f64)>,
}

/// The files that the end-to-end run compares over HTTP, here without the way through HTTP.
#[test]
fn the_haiku_models_own_golden_files_hold() {
    let haiku = Case::read("haiku");
    let folder = haiku.model.parent().unwrap();
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let goldens: Vec<HaikuGolden> = serde_json::from_slice(&read("golden.json")).unwrap();
    let logprobs: Vec<HaikuLogprobs> = serde_json::from_slice(&read("golden_logprobs.json")).unwrap();
    for target in Target::all() {
        let mut executor = target.executor(haiku.bytes());
        for (golden, logprobs) in goldens.iter().zip(&logprobs) {
            let n_prompt = golden.ids.len();
            let ids: Vec<u32> = golden.ids.iter().chain(&golden.greedy).copied().collect();
            let logits = run(&mut *executor, &ids, n_prompt, None);
            let n_vocab = golden.last_logits.len();
            let rows: Vec<&[f32]> = logits.chunks_exact(n_vocab).skip(n_prompt - 1).collect();
            let error = relative_error(rows[0], &golden.last_logits);
            assert!(error < target.gates().one, "{target}: off by {error:.1e}");
            for ((row, greedy), step) in rows.iter().zip(&golden.greedy).zip(&logprobs.steps) {
                assert_eq!((argmax(row) as u32, step.id), (*greedy, *greedy), "{target}");
                let got = log_softmax(row);
                let of = |id: u32| got[id as usize];
                let n = step.top.len() as f64;
                let mean = step.top.iter().map(|&(id, want)| (of(id) - want).abs()).sum::<f64>() / n;
                assert!(mean < MAX_MEAN_LOGPROB_ERROR && (of(step.id) - step.logprob).abs() < MAX_MEAN_LOGPROB_ERROR);
            }
        }
    }
}

/// One prompt of `models/haiku/golden_minutes.json`.
#[derive(serde::Deserialize)]
struct Minute {
    word: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    /// Before each greedy token: the best five with their log-probabilities, best first.
    top: Vec<[(u32, f64); 5]>,
}

fn minutes(haiku: &Case) -> Vec<Minute> {
    let path = haiku.model.parent().unwrap().join("golden_minutes.json");
    let minutes: Vec<Minute> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(minutes.len(), 60);
    minutes
}

/// Of the CPU's instruction sets only the best: sixty answers take a while.
fn minute_targets() -> Vec<Target> {
    let best = Isa::detect();
    // The haiku model's weights are F16, which is never interleaved.
    let is_other =
        |target: &Target| matches!(target, Target::Cpu(isa, _, integers) if *isa != best || integers.is_some());
    Target::all().into_iter().filter(|target| !is_other(target)).collect()
}

#[test]
fn greedy_choices_over_sixty_minute_words_are_those_of_the_reference() {
    let haiku = Case::read("haiku");
    let minutes = minutes(&haiku);
    for target in minute_targets() {
        let mut executor = target.executor(haiku.bytes());
        let (mut n_exempt, mut n_positions, mut largest) = (0, 0, 0.0f64);
        for minute in &minutes {
            // The reference's own answer, whatever this executor would have chosen.
            let ids: Vec<u32> = minute.ids.iter().chain(&minute.greedy).copied().collect();
            let logits = run(&mut *executor, &ids, minute.ids.len(), None);
            let rows = logits.chunks_exact(logits.len() / ids.len()).skip(minute.ids.len() - 1);
            for (i, (row, top)) in rows.zip(&minute.top).enumerate() {
                let got = log_softmax(row);
                let error = top.iter().map(|&(id, want)| (got[id as usize] - want).abs()).fold(0.0, f64::max);
                let (word, choice, lead) = (&minute.word, argmax(row), top[0].1 - top[1].1);
                assert!(got.iter().all(|x| x.is_finite()), "{target}: {word}, token {i}");
                n_positions += 1;
                largest = largest.max(error);
                if lead <= 2.0 * error {
                    n_exempt += 1;
                    println!("{target}: {word}, token {i} is exempt: a lead of {lead:.1e}, an error of {error:.1e}");
                } else {
                    assert_eq!(choice as u32, minute.greedy[i], "{target}: {word}, token {i}, a lead of {lead:.1e}");
                }
            }
        }
        println!(
            "{target}: {n_exempt} of {n_positions} choices exempt, log-probabilities off by {largest:.1e} at most"
        );
        check_exempt(n_exempt, n_positions).unwrap();
    }
}

/// What [`Target`]s are compared with that are less exact: the processor's instructions, with F32 keys and values.
fn exact_cpu() -> Target {
    Target::Cpu(Isa::detect(), KvType::F32, None)
}

/// A prompt and what follows it greedily, up to `end`.
fn greedy_answer(executor: &mut dyn Watched, prompt: &[u32], end: u32) -> Vec<u32> {
    const MOST: usize = 64;
    let mut ids = prompt.to_vec();
    let blocks: Vec<BlockId> = (0..(ids.len() + MOST).div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
    let mut batch = Batch::default();
    let mut n_done = 0;
    while n_done < prompt.len() + MOST {
        let role = if n_done == 0 { Role::Prompt } else { Role::Generated };
        batch.clear();
        batch.push(role, &ids[n_done..], n_done as u32, &blocks[..ids.len().div_ceil(BLOCK_TOKENS)], true);
        n_done = ids.len();
        let next = argmax(executor.forward(&batch).unwrap().into_logits()) as u32;
        if next == end {
            break;
        }
        ids.push(next);
    }
    ids
}

/// Both executors are given the CPU's own greedy answers; at each position the error is the largest difference between their
/// log-probabilities of the CPU's best five tokens.
#[test]
fn greedy_choices_over_sixty_minute_words_are_the_cpus_where_its_lead_is_clear() {
    const N_BEST: usize = 5;
    let haiku = Case::read("haiku");
    let minutes = minutes(&haiku);
    let mut cpu = exact_cpu().executor(haiku.bytes());
    let answers = minutes.iter().map(|minute| {
        let end = *minute.greedy.last().unwrap();
        let ids = greedy_answer(&mut *cpu, &minute.ids, end);
        let logits = run(&mut *cpu, &ids, minute.ids.len(), None);
        (minute, ids, logits)
    });
    let answers: Vec<_> = answers.collect();
    for target in minute_targets().into_iter().filter(|&target| target != exact_cpu()) {
        let mut executor = target.executor(haiku.bytes());
        let (mut n_exempt, mut n_positions, mut largest) = (0, 0, 0.0f64);
        for (minute, ids, cpu_logits) in &answers {
            let logits = run(&mut *executor, ids, minute.ids.len(), None);
            let n_vocab = logits.len() / ids.len();
            let rows = logits.chunks_exact(n_vocab).zip(cpu_logits.chunks_exact(n_vocab));
            for (i, (row, cpu_row)) in rows.skip(minute.ids.len() - 1).enumerate() {
                let (got, want) = (log_softmax(row), log_softmax(cpu_row));
                assert!(got.iter().all(|x| x.is_finite()), "{target}: {}, token {i}", minute.word);
                let mut best: Vec<usize> = (0..n_vocab).collect();
                best.sort_by(|&a, &b| want[b].total_cmp(&want[a]));
                let error = best[..N_BEST].iter().map(|&id| (got[id] - want[id]).abs()).fold(0.0, f64::max);
                let lead = want[best[0]] - want[best[1]];
                n_positions += 1;
                largest = largest.max(error);
                if lead <= 2.0 * error {
                    n_exempt += 1;
                    println!(
                        "{target}: {}, token {i} is exempt: a lead of {lead:.1e}, an error of {error:.1e}",
                        minute.word
                    );
                } else {
                    assert_eq!(argmax(row), best[0], "{target}: {}, token {i}, a lead of {lead:.1e}", minute.word);
                }
            }
        }
        println!(
            "{target} on the CPU's ids: {n_exempt} of {n_positions} choices exempt, an error of {largest:.1e} at most"
        );
        check_exempt(n_exempt, n_positions).unwrap();
    }
}

/// The shapes are awkward on purpose; this keeps them so.
#[test]
fn the_cases_are_as_awkward_as_they_claim() {
    let largest = |name: &str, key: &str| Case::read(name).largest[key];
    assert!(largest("qwen2_bias30", "q") > 25.0 && largest("qwen2_bias30", "k") > 25.0);
    assert!(largest("qwen2_bias30", "v") > 20.0);
    assert!(largest("qwen2_big_act", "ffn_act") > 65_504.0);
}
