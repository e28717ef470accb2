//! `bench`: figures for every length, depth and batch size that was asked for.

use serde_json::Value;
use test_support::tiny_model::TinyModel;

use crate::harness::{Files, Worker, error_of, run, stdout_of};

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

fn load(worker: &Worker, args: &[&str]) -> Value {
    let url = format!("http://{}", worker.address);
    let args = [&["bench", "--url", &url, "-p", "40", "--requests", "20", "--json"], args].concat();
    serde_json::from_str(&stdout_of(&run(&args))).unwrap()
}

#[test]
fn a_running_server_is_measured_in_both_loops() {
    let worker = Worker::ready(&[]);
    for args in [&["-n", "8", "--concurrency", "4"][..], &["-n", "8", "--request-rate", "200"]] {
        let report = load(&worker, args);
        assert_eq!((report["answered"].as_u64(), report["failed"].as_u64()), (Some(20), Some(0)), "{report}");
        let n_tokens = report["tokens_out"].as_u64().unwrap();
        assert!((20..=20 * 8).contains(&n_tokens), "{report}");
        let counts = ["ttft_ms", "inter_token_ms", "end_to_end_ms"].map(|name| report[name]["count"].as_u64().unwrap());
        assert_eq!(counts, [20, n_tokens - 20, 20]);
        for name in ["ttft_ms", "end_to_end_ms"] {
            let [min, p50, p90, p99, max] =
                ["min", "p50", "p90", "p99", "max"].map(|field| report[name][field].as_f64().unwrap());
            assert!(0.0 < min && min <= p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{report}");
        }
        let mean_prompt = report["prompt_tokens"].as_f64().unwrap() / 20.0;
        assert!((30.0..50.0).contains(&mean_prompt), "asked for about 40: {mean_prompt}");
        assert!(report["tokens_per_sec"].as_f64().unwrap() > report["requests_per_sec"].as_f64().unwrap());
    }
}

#[test]
fn a_load_is_shown_as_a_table_with_bars() {
    let worker = Worker::ready(&[]);
    let url = format!("http://{}/", worker.address);
    let table = stdout_of(&run(&["bench", "--url", &url, "-p", "20", "-n", "4", "--requests", "5"]));
    assert!(table.contains("5 requests, 1 at a time; prompts of 20 tokens, answers of at most 4"), "{table}");
    assert!(table.contains("errors   none") && table.contains('\u{2588}'), "{table}");
}

#[test]
fn errors_of_a_server_are_counted_by_code() {
    let files = Files::new();
    let endless = files.write("endless.gguf", &TinyModel { n_ctx: 1 << 20, ..TinyModel::default() }.build());
    let worker = Worker::ready(&["--model", &endless, "--max-seqs", "1", "--queue-limit", "1"]);
    let report = load(&worker, &["-n", "2000", "--concurrency", "20"]);
    let n_full = report["errors"]["QUEUE_FULL"].as_u64().unwrap();
    assert!(n_full > 0, "{report}");
    assert_eq!((report["failed"].as_u64(), report["answered"].as_u64()), (Some(n_full), Some(20 - n_full)));

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = error_of(&run(&["bench", "--url", &format!("http://{nobody}")]));
    assert_eq!(error, "error: a first request was not answered: CONNECTION");
    let error = error_of(&run(&["bench", "--url", "http://127.0.0.1:1", "-p", "1,2"]));
    assert_eq!(error, "error: -p: with --url needs one number above 0");
}
