//! `generate`: text on standard output, and nothing else there.

use std::io::Read;
#[cfg(target_os = "linux")]
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;
use test_support::tiny_model::TinyModel;

use crate::harness::{Files, command, error_of, run, run_with, stdout_of};

const PROMPT: &str = "Write a haiku about GPU computing that includes the word \"seven\" (nonce: aB3dE5gH)";

fn json(args: &[&str]) -> Value {
    let output = run(&[&["generate", PROMPT, "--json"], args].concat());
    serde_json::from_str(&stdout_of(&output)).unwrap()
}

#[test]
fn writes_a_haiku_and_its_figures_apart() {
    let output = run(&["generate", PROMPT, "--temperature", "0"]);
    let haiku = stdout_of(&output);
    assert_eq!(haiku.trim().lines().count(), 3, "{haiku}");
    assert!(haiku.contains("seven"), "{haiku}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("loading weights: 100 % of 11.6 MB"), "{stderr}");
    assert!(stderr.lines().last().unwrap().starts_with("prompt ") && stderr.contains("EOS, seed "), "{stderr}");
    assert_eq!(stdout_of(&run_with(&["generate", "-", "--temperature", "0"], PROMPT)), haiku);
    assert_eq!(stdout_of(&run_with(&["generate", "--prompt", "-", "--temperature", "0"], PROMPT)), haiku);
    assert_eq!(stdout_of(&run(&["generate", "--prompt", PROMPT, "--temperature", "0"])), haiku);
}

#[test]
fn json_holds_what_was_generated() {
    let report = json(&["--seed", "7"]);
    assert_eq!((report["stop_reason"].as_str(), report["seed"].as_u64()), (Some("EOS"), Some(7)));
    let ids = report["ids"].to_string();
    assert_eq!(report["tokens_out"].as_u64(), Some(report["ids"].as_array().unwrap().len() as u64));
    assert_eq!(stdout_of(&run_with(&["detokenize"], &ids)), report["text"].as_str().unwrap());
}

#[test]
fn the_seed_decides() {
    let [first, again, other] = ["1", "1", "2"].map(|seed| json(&["--seed", seed])["ids"].clone());
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn threads_do_not_change_the_answer() {
    assert_eq!(json(&["--seed", "1", "--threads", "1"])["ids"], json(&["--seed", "1", "--threads", "2"])["ids"]);
}

#[test]
fn ends_before_a_stop_text_and_at_the_limit() {
    let whole = json(&["--temperature", "0"])["text"].as_str().unwrap().to_owned();
    let report = json(&["--temperature", "0", "--stop", "seven", "--stop", "not in it"]);
    assert_eq!(report["stop_reason"], "STOP_SEQUENCE");
    assert_eq!(report["stop_sequence_matched"], "seven");
    assert_eq!(report["text"], whole[..whole.find("seven").unwrap()]);
    let report = json(&["--temperature", "0", "--max-tokens", "3"]);
    assert_eq!((report["stop_reason"].as_str(), report["tokens_out"].as_u64()), (Some("MAX_TOKENS"), Some(3)));
    assert!(whole.starts_with(report["text"].as_str().unwrap()));
}

#[test]
fn refuses_prompts_that_leave_nothing_to_do() {
    assert_eq!(error_of(&run(&["generate", ""])), "error: the prompt is empty: needs at least one token");
    let error = error_of(&run(&["generate"]));
    assert_eq!(error, "error: no prompt: give it as --prompt TEXT, or - to read it from standard input");
    let error = error_of(&run_with(&["generate", "-"], &"word ".repeat(1000)));
    assert!(error.starts_with("error: prompt has ") && error.contains("the context of 512"), "{error}");
    let stops = ["--stop", "a", "--stop", "b", "--stop", "c", "--stop", "d", "--stop", "e"];
    let error = error_of(&run(&[&["generate", "x"], &stops[..]].concat()));
    assert_eq!(error, "error: --stop: given 5 times, at most 4 work");
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let files = Files::new();
    let endless = TinyModel { n_ctx: 1 << 20, ..TinyModel::default() };
    let model = files.write("endless.gguf", &endless.build());
    let mut child = command(&["generate", "a", "--model", &model, "--max-tokens", "1000000", "--temperature", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Text arrives long before the answer is over: the pipe is closed on it.
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 8]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !stderr.contains("error") && !stderr.contains("panicked"), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn figures_that_cannot_be_written_are_no_fault() {
    let program = env!("CARGO_BIN_EXE_worker-orcd");
    let output = Command::new("/bin/sh").args(["-c", "exec \"$0\" generate a -n 3 2>/dev/full", program]).output();
    assert!(!stdout_of(&output.unwrap()).is_empty());
}

#[test]
fn chat_puts_the_prompt_through_the_models_template() {
    let chat = json(&["--chat", "--temperature", "0"]);
    let turn = format!("<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n");
    let raw: Value =
        serde_json::from_str(&stdout_of(&run(&["generate", &turn, "--json", "--temperature", "0"]))).unwrap();
    assert_eq!((&chat["ids"], &chat["prompt_tokens"]), (&raw["ids"], &raw["prompt_tokens"]));
    assert_ne!(chat["prompt_tokens"], json(&["--temperature", "0"])["prompt_tokens"]);
}
