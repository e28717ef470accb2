//! `bench`: figures for every length, depth and batch size that was asked for.

use serde_json::Value;
use test_support::tiny_model::TinyModel;

use crate::harness::{Files, error_of, run, stdout_of};

const QUICK: &[&str] = &["bench", "-p", "16,0", "-n", "4", "-d", "0,32", "-b", "1,3", "-r", "2"];

#[test]
fn json_has_a_result_for_each_combination() {
    let report: Value = serde_json::from_str(&stdout_of(&run(&[QUICK, &["--json"]].concat()))).unwrap();
    let cases: Vec<String> = report["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| format!("{} {} depth {} batch {}", r["test"], r["n_tokens"], r["depth"], r["batch"]))
        .collect();
    let expected = [(0, 1), (0, 3), (32, 1), (32, 3)].map(|(depth, batch)| {
        ["\"prompt\" 16", "\"decode\" 4"].map(|test| format!("{test} depth {depth} batch {batch}"))
    });
    assert_eq!(cases, expected.concat());
    for result in report["results"].as_array().unwrap() {
        let [least, median, most] = ["min", "median", "max"].map(|f| result["tokens_per_sec"][f].as_f64().unwrap());
        assert!(0.0 < least && least <= median && median <= most, "{result}");
        assert_eq!(result["share_of_ceiling"].is_number(), result["test"] == "decode");
    }
    assert!(report["seconds_for_weights"].as_f64() <= report["seconds_to_ready"].as_f64());
    // All of the haiku model but the token embedding, which is not its output matrix.
    assert_eq!(report["ceiling"]["bytes"], 11_559_936 - 2048 * 256 * 2);
    assert!(report["memory"]["resident_bytes"].as_u64() > report["memory"]["weight_bytes"].as_u64());
}

#[test]
fn the_suite_measures_what_the_context_has_room_for() {
    let files = Files::new();
    let model = files.write("short.gguf", &TinyModel { n_ctx: 200, ..TinyModel::default() }.build());
    let table = stdout_of(&run(&["bench", "--suite", "-r", "1", "--model", &model]));
    let lines: Vec<&str> =
        table.lines().filter(|line| line.starts_with("prompt") || line.starts_with("decode")).collect();
    // A prompt of 128 tokens, and 128 tokens decoded by 1, 8, 32, 128 and 256 sequences.
    assert_eq!(lines.len(), 6, "{table}");
    assert!(lines[0].starts_with("prompt 128") && lines[5].starts_with("decode 128          0    256"), "{table}");
}

#[test]
fn the_table_has_a_line_for_each() {
    let table = stdout_of(&run(QUICK));
    assert_eq!(table.lines().filter(|line| line.starts_with("prompt 16") || line.starts_with("decode 4")).count(), 8);
    assert!(table.starts_with("model    haiku-qwen2-5.8m-f16: qwen2 F16, 5.8 million parameters"), "{table}");
}

#[test]
fn refuses_what_cannot_be_measured() {
    assert_eq!(error_of(&run(&["bench", "-p", "0", "-n", "0"])), "error: -p 0 -n 0: nothing to measure");
    let error = error_of(&run(&["bench", "-d", "500"]));
    assert_eq!(error, "error: a context of 1012 tokens was asked for, the model was made for at most 512");
}
