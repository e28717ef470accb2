//! `perplexity` and `compare`: figures that an independent implementation has too, and refusals.

use serde_json::Value;
use test_support::tiny_model::{Architecture, TinyModel};

use crate::harness::{Files, device, error_of, run, stdout_of};
use crate::models;

/// Mean negative log-likelihoods may differ by this from those of the reference in float64: keys and values are in F16.
const TOLERANCE: f64 = 1e-3;
/// And by this where they are in F32 like everything else.
const TOLERANCE_F32: f64 = 1e-5;

fn golden() -> Value {
    let path = test_support::checkout().join("models/haiku/golden_perplexity.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn json(args: &[&str]) -> Value {
    let device = device();
    let output = run(&[args, &["--json", "--device", &device]].concat());
    serde_json::from_str(&stdout_of(&output)).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// A file with the golden text.
fn haiku_text(files: &Files) -> String {
    files.write("haiku.txt", golden()["text"].as_str().unwrap().as_bytes())
}

#[test]
fn perplexity_is_that_of_the_reference() {
    let (files, golden) = (Files::new(), golden());
    let text = haiku_text(&files);
    for expected in golden["windows"].as_array().unwrap() {
        let n_ctx = expected["n_ctx"].to_string();
        let got = json(&["perplexity", "--file", &text, "--ctx-size", &n_ctx]);
        assert_eq!((&got["n_tokens"], &got["n_scored"]), (&golden["n_tokens"], &expected["n_scored"]));
        let off = number(&got["perplexity"]["value"]).ln() - number(&expected["perplexity"]).ln();
        assert!(off.abs() < TOLERANCE, "windows of {n_ctx}: {off:e}");
        let errors = [number(&got["perplexity"]["error"]), number(&expected["error"])];
        assert!((errors[0] / errors[1] - 1.0).abs() < TOLERANCE, "{errors:?}");
        if device() == "cpu" {
            let got = json(&["perplexity", "--file", &text, "--ctx-size", &n_ctx, "--kv-type", "f32"]);
            let off = number(&got["perplexity"]["value"]).ln() - number(&expected["perplexity"]).ln();
            assert!(off.abs() < TOLERANCE_F32, "windows of {n_ctx}, keys and values in F32: {off:e}");
        }
    }
}

#[test]
fn the_table_has_a_line_for_each_window() {
    let files = Files::new();
    let table = stdout_of(&run(&["perplexity", "-f", &haiku_text(&files), "-c", "64"]));
    let lines = table.lines().filter(|line| line.contains("/6")).count();
    assert!(lines == 6 && table.lines().last().unwrap().starts_with("perplexity "), "{table}");
}

#[test]
fn the_newline_at_the_end_does_not_count_and_bos_takes_a_place() {
    let files = Files::new();
    let model = TinyModel { architecture: Architecture::Llama, ..TinyModel::default() };
    let model = files.write("llama.gguf", &model.build());
    let n_tokens = |text: &str| {
        let text = files.write("text", text.as_bytes());
        json(&["perplexity", "-m", &model, "-f", &text, "-c", "4"])["n_tokens"].as_u64().unwrap()
    };
    assert_eq!([n_tokens("0123456789"), n_tokens("0123456789\n"), n_tokens("0123456789\n\n")], [11, 11, 12]);
}

#[test]
fn a_model_is_equal_to_itself() {
    let files = Files::new();
    let model = test_support::checkout().join("models/haiku/haiku-qwen2-5.8m-f16.gguf");
    let model = model.to_str().unwrap();
    let got = json(&["compare", model, model, "-f", &haiku_text(&files), "-c", "64"]);
    let zero = serde_json::json!({"value": 0.0, "error": 0.0});
    assert_eq!(got["kl_divergence"]["mean"], zero);
    assert_eq!((&got["kl_divergence"]["max"], &got["kl_divergence"]["median"]), (&0.0.into(), &0.0.into()));
    assert_eq!(got["same_top"], serde_json::json!({"value": 1.0, "error": 0.0}));
    assert_eq!((&got["ln_perplexity_ratio"], &got["probability_difference"]["rms"]), (&zero, &zero));
    assert_eq!(got["a"]["perplexity"], got["b"]["perplexity"]);
    let alone = json(&["perplexity", "-f", &haiku_text(&files), "-c", "64"]);
    assert_eq!(got["a"]["perplexity"], alone["perplexity"]);
}

#[test]
fn a_comparison_has_the_figures_of_the_reference() {
    if device() != "cpu" {
        return println!("skipped: keys and values in F32, which the tolerance needs, are the CPU's");
    }
    let (files, golden) = (Files::new(), golden());
    let text = haiku_text(&files);
    let model = test_support::checkout().join("models/haiku/haiku-qwen2-5.8m-f16.gguf");
    let (model, made) = (model.to_str().unwrap(), files.path("q8_0.gguf"));
    let made = made.to_str().unwrap();
    stdout_of(&run(&["quantize", model, made, "Q8_0"]));
    for window in golden["windows"].as_array().unwrap() {
        let (n_ctx, expected) = (window["n_ctx"].to_string(), &window["q8_0"]);
        let got = json(&["compare", model, made, "-f", &text, "-c", &n_ctx, "--kv-type", "f32"]);
        let (divergence, difference) = (&got["kl_divergence"], &got["probability_difference"]);
        for (name, got) in [
            ("perplexity", &got["b"]["perplexity"]["value"]),
            ("mean", &divergence["mean"]["value"]),
            ("error", &divergence["mean"]["error"]),
            ("median", &divergence["median"]),
            ("99", &divergence["percentiles"]["99"]),
            ("max", &divergence["max"]),
            ("difference", &difference["mean"]["value"]),
            ("rms", &difference["rms"]["value"]),
            ("same_top", &got["same_top"]["value"]),
        ] {
            let (got, expected) = (number(got), number(&expected[name]));
            // Q8_0 moves logits by some 1e-2, and activations rounded to 16 bits, which its products take, by 1e-4.
            assert!((got / expected - 1.0).abs() < 4e-2, "windows of {n_ctx}, {name}: {got} {expected}");
        }
    }
}

#[test]
fn a_quantisation_costs_a_little_and_a_coarser_one_more() {
    let files = Files::new();
    let model = test_support::checkout().join("models/haiku/haiku-qwen2-5.8m-f16.gguf");
    let model = model.to_str().unwrap();
    let text = haiku_text(&files);
    let cost = |ty: &str| {
        let made = files.path(ty);
        let made = made.to_str().unwrap();
        stdout_of(&run(&["quantize", model, made, ty]));
        let got = json(&["compare", model, made, "-f", &text, "-c", "64"]);
        let of = |name: &str| number(&got["kl_divergence"][name]);
        let mean = number(&got["kl_divergence"]["mean"]["value"]);
        assert!(0.0 < of("median") && of("median") < mean && mean < of("max"), "{got}");
        let percentiles = got["kl_divergence"]["percentiles"].as_object().unwrap();
        assert!(percentiles.values().map(number).is_sorted(), "{got}");
        assert!(number(&got["probability_difference"]["rms"]["value"]) > 0.0);
        (mean, number(&got["same_top"]["value"]))
    };
    let (eight, top) = cost("Q8_0");
    assert!(eight < 0.01 && top > 0.95, "{eight} {top}");
    let (four, _) = cost("Q4_0");
    assert!(four > 10.0 * eight, "{four} {eight}");
}

/// How much further from F16 than llama.cpp's a file may be.
const MOST_DIVERGENCE: f64 = 1.05;

#[test]
fn a_quantised_file_is_as_close_as_that_of_llama_cpp() {
    if device() != "cpu" {
        return println!("skipped: the files are the same on every device");
    }
    let haiku = test_support::checkout().join("models/haiku");
    let golden: Value = serde_json::from_slice(&std::fs::read(haiku.join("golden_divergence.json")).unwrap()).unwrap();
    let files = Files::new();
    let text = files.write("text.txt", golden["text"].as_str().unwrap().as_bytes());
    let model = haiku.join("haiku-qwen2-5.8m-f16.gguf");
    let (model, made) = (model.to_str().unwrap(), files.path("made.gguf"));
    let made = made.to_str().unwrap();
    for (ty, theirs) in golden["llama.cpp"].as_object().unwrap() {
        stdout_of(&run(&["quantize", model, made, ty, "--force"]));
        let got = json(&["compare", model, made, "-f", &text]);
        let ratio = number(&got["kl_divergence"]["mean"]["value"]) / number(theirs);
        println!("{ty:8} {ratio:.4}");
        assert!(ratio <= MOST_DIVERGENCE, "{ty}: {ratio} times the KL divergence of llama.cpp's file");
    }
}

#[test]
fn the_comparison_has_a_line_for_each_window_and_figure() {
    let files = Files::new();
    let model = files.write("tiny.gguf", &TinyModel::default().build());
    let other = files.write("other.gguf", &TinyModel { seed: 2, ..TinyModel::default() }.build());
    let table =
        stdout_of(&run(&["compare", &model, &other, "-f", &haiku_text(&files), "-c", "256", "--device", "cpu"]));
    let (figures, took) = table.rsplit_once(", in ").unwrap();
    assert!(took.ends_with(" s\n"), "{table}");
    let names: Vec<&str> = figures.lines().map(|line| line.split("  ").next().unwrap()).collect();
    insta::assert_snapshot!(names.join("\n").replace(&model, "A.gguf").replace(&other, "B.gguf"));
}

#[test]
fn refuses_what_cannot_be_scored() {
    let files = Files::new();
    let mut all = String::new();
    let mut add = |args: &[&str]| all += &(files.unnamed(&error_of(&run(args))) + "\n");
    let short = files.write("short.txt", b"wild raindrops echo\n");
    add(&["perplexity", "--file", &short]);
    add(&["perplexity", "--file", files.path("none.txt").to_str().unwrap()]);
    add(&["perplexity", "--file", &files.write("binary.txt", b"abc\xff")]);
    add(&["perplexity", "--file", &haiku_text(&files), "--ctx-size", "1000"]);
    add(&["perplexity", "--file", &files.write("long.txt", &b"a b ".repeat(2000)), "--ctx-size", "1000"]);
    let model = files.write("tiny.gguf", &TinyModel::default().build());
    let other = files.write(
        "other.gguf",
        &models::with_metadata(&TinyModel::default(), &[("tokenizer.ggml.pre", "llama-bpe".into())]),
    );
    add(&["compare", &model, &other, "--file", &short]);
    add(&["compare", &model, &short, "--file", &short]);
    insta::assert_snapshot!(all);
}
