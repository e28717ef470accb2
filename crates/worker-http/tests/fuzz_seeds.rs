//! The seed corpora of the fuzz targets for request bodies: made here, committed under `fuzz/seeds/`. `UPDATE_SEEDS=1`
//! writes them anew.

use std::fs;
use std::path::PathBuf;

use worker_http::RequestBody;

/// Tokens that the seeds' model has.
const N_VOCAB: usize = 512;

/// Name and text of every seed. `ok_` bodies are taken, `bad_` bodies are refused.
fn seeds(body: RequestBody) -> Vec<(&'static str, &'static str)> {
    let mut seeds = vec![
        ("bad_empty", ""),
        ("bad_json", "{\"prompt\": \"a\" \"b\"}"),
        ("bad_list", "[1, [2, {\"a\": null}]]"),
        ("bad_escape", "{\"prompt\": \"\\ud800\", \"job_id\": \"\\ud800\", \"messages\": \"\\ud800\"}"),
    ];
    seeds.extend_from_slice(match body {
        RequestBody::Execute => &[
            ("ok_least", r#"{"job_id": "a", "prompt": "b"}"#),
            (
                "ok_most",
                r#"{"job_id": "a", "prompt": "\u96ea\n", "max_tokens": 9, "temperature": 0.5, "top_p": 1, "min_p": 0,
                "top_k": 4, "repetition_penalty": 1.1, "stop": ["x", "\n\n"], "seed": 18446744073709551615,
                "logprobs": 20, "unknown": {"a": [1e400, {}]}}"#,
            ),
            (
                "bad_values",
                r#"{"job_id": "", "prompt": 1, "max_tokens": -1, "temperature": 1e999, "stop": [1, ""], "seed": 1.5}"#,
            ),
        ],
        RequestBody::Cancel => &[
            ("ok_least", r#"{"job_id": "a"}"#),
            ("ok_twice", r#"{"job_id": "a", "job_id": "b", "x": [[[]]]}"#),
            ("bad_values", r#"{"job_id": {"a": 1}}"#),
        ],
        RequestBody::Chat => &[
            ("ok_least", r#"{"messages": [{"role": "user", "content": "a"}]}"#),
            (
                "ok_most",
                r#"{"model": "m", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content":
                [{"type": "text", "text": "b"}], "name": "c"}], "n": 2, "stream": true, "stream_options":
                {"include_usage": true}, "max_tokens": 5, "max_completion_tokens": 5, "temperature": 1, "top_p": 0.9,
                "top_k": -1, "presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {"5": -100, "7": 1.5},
                "stop": "x", "seed": -1, "logprobs": true, "top_logprobs": 3, "chat_template_kwargs": {"a": 1}}"#,
            ),
            (
                "bad_values",
                r#"{"messages": [{"role": "x"}, {"content": [{"type": "image_url"}]}, 7], "n": 0, "logit_bias":
                {"-1": 1, "5": 1e9}, "stream_options": {}, "tools": [1], "response_format": {"type": "x"}}"#,
            ),
        ],
        RequestBody::Completions => &[
            ("ok_text", r#"{"prompt": "a", "echo": true}"#),
            ("ok_texts", r#"{"prompt": ["a", "b"], "n": 2, "max_tokens": 3}"#),
            ("ok_ids", r#"{"prompt": [1, 2, 511], "logprobs": 0}"#),
            ("ok_lists_of_ids", r#"{"prompt": [[1], [2, 3]], "ignore_eos": true, "add_special_tokens": false}"#),
            ("bad_ids", r#"{"prompt": [1, 512, -1, 1e3]}"#),
            ("bad_mixed", r#"{"prompt": [[1], "a"], "top_logprobs": 1}"#),
        ],
        RequestBody::Tokenize => &[
            ("ok_least", r#"{"content": ""}"#),
            (
                "ok_most",
                r#"{"content": "\u96ea<s>", "add_special": true, "parse_special": false, "with_pieces": true}"#,
            ),
            ("bad_values", r#"{"content": 1, "add_special": "yes", "with_pieces": []}"#),
        ],
        RequestBody::Detokenize => &[
            ("ok_none", r#"{"tokens": []}"#),
            ("ok_ids", r#"{"tokens": [0, 1, 511, 511]}"#),
            ("bad_ids", r#"{"tokens": [1, 512, -1, 1e3, 4294967296]}"#),
            ("bad_missing", r#"{"ids": [1]}"#),
        ],
        RequestBody::ApplyTemplate => &[
            ("ok_least", r#"{"messages": [{"role": "user", "content": "a"}]}"#),
            (
                "ok_most",
                r#"{"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false, "tools":
                [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice":
                "auto", "chat_template_kwargs": {"enable_thinking": false}}"#,
            ),
            (
                "bad_values",
                r#"{"messages": [], "add_generation_prompt": 1, "tools": [{}], "chat_template_kwargs": [1]}"#,
            ),
        ],
    });
    seeds
}

#[test]
fn seeds_are_as_committed_and_as_named() {
    for body in RequestBody::ALL {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(body.name());
        for (name, text) in seeds(body) {
            let outcome = body.check(text.as_bytes(), N_VOCAB);
            assert_eq!(outcome.is_ok(), name.starts_with("ok_"), "{}/{name}: {outcome:?}", body.name());
            let path = dir.join(name);
            if std::env::var_os("UPDATE_SEEDS").is_some() {
                fs::create_dir_all(&dir).unwrap();
                fs::write(&path, text).unwrap();
            }
            let committed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                committed == text.as_bytes(),
                "{name} differs from what is committed; UPDATE_SEEDS=1 writes it anew"
            );
        }
        let n_committed = fs::read_dir(&dir).unwrap().count();
        assert_eq!(n_committed, seeds(body).len(), "{} holds a file that is no seed", dir.display());
    }
}

#[test]
fn every_body_has_a_target() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let (manifest, readme) =
        (fs::read_to_string(fuzz.join("Cargo.toml")).unwrap(), fs::read_to_string(fuzz.join("README.md")).unwrap());
    for name in RequestBody::ALL.map(RequestBody::name) {
        assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is missing in fuzz/Cargo.toml");
        assert!(readme.contains(&format!("`{name}`")), "{name} is missing in fuzz/README.md");
    }
}
