//! A failure to start is one plain error and exit status 1.

use std::net::TcpListener;

use test_support::tiny_model::TinyModel;

use crate::harness::{Files, error_of, run};
use crate::models;

#[test]
fn a_port_in_use() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    // The port is bound before the model is looked at.
    let error = error_of(&run(&["--port", &port, "--model", "/no/such/file.gguf"]));
    let expected = "error: cannot listen on 127.0.0.1:[port]: the port is in use; choose another with --port, or 0 for a \
                    free one";
    assert_eq!(error.replace(&port, "[port]"), expected);
}

#[test]
fn an_address_of_another_machine() {
    let error = error_of(&run(&["--port", "0", "--host", "192.0.2.1"]));
    assert!(error.starts_with("error: cannot listen on 192.0.2.1:0: "), "{error}");
}

#[test]
fn files_that_are_no_model() {
    let files = Files::new();
    let model = TinyModel::default().build();
    std::fs::create_dir(files.path("folder.gguf")).unwrap();
    files.write("foreign.gguf", b"PK\x03\x04 this is an archive");
    files.write("empty.gguf", b"");
    files.write("truncated.gguf", &model[..model.len() - 100]);
    files.write("half.gguf", &model[..model.len() / 2]);
    files.write("header.gguf", &model[..30]);
    let mut errors = String::new();
    for name in ["missing", "folder", "foreign", "empty", "truncated", "half", "header"] {
        let path = files.path(&format!("{name}.gguf"));
        let path = path.to_str().unwrap();
        let error = error_of(&run(&["--port", "0", "--model", path]));
        // Every command that opens a model says the same.
        assert_eq!(error_of(&run(&["generate", "x", "--model", path])), error);
        assert_eq!(error_of(&run(&["tokenize", "--model", path])), error);
        assert_eq!(error_of(&run(&["inspect", path])), error);
        errors += &format!("{}\n", files.unnamed(&error));
    }
    insta::assert_snapshot!("files_that_are_no_model", errors);
}

#[test]
fn models_that_cannot_be_served() {
    let files = Files::new();
    let tiny = TinyModel::default();
    let changed = |key, value| models::with_metadata(&tiny, &[(key, value)]);
    let errors: String = [
        files.write("architecture.gguf", &changed("general.architecture", "mamba".into())),
        files.write("heads.gguf", &changed("qwen2.attention.head_count", 5u32.into())),
        files.write("layers.gguf", &changed("qwen2.block_count", 1u32.into())),
        files.write("width.gguf", &changed("qwen2.feed_forward_length", 64u32.into())),
        files.write("tokenizer.gguf", &changed("tokenizer.ggml.pre", "poro".into())),
        files.write("vocabulary.gguf", &changed("tokenizer.ggml.tokens", vec!["a", "b"].into())),
        files.write("no-tensors.gguf", &models::vocabulary(&tiny, "qwen2")),
        files.write("type.gguf", &models::with_a_matrix_in_tq1_0("blk.0.ffn_up.weight")),
        files.write("nothing.gguf", &test_support::gguf::GgufBuilder::new().build()),
    ]
    .iter()
    .map(|path| files.unnamed(&error_of(&run(&["--port", "0", "--model", path]))) + "\n")
    .collect();
    insta::assert_snapshot!("models_that_cannot_be_served", errors);
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_that_this_machine_does_not_have() {
    // Whatever the machine has: no driver, no GPU, or fewer than a hundred.
    for args in [&["--port", "0"][..], &["generate", "x"], &["bench"]] {
        let error = error_of(&run(&[args, &["--gpu-device", "99"]].concat()));
        assert!(error.starts_with("error: --gpu-device 99: "), "{error}");
        assert!(error.contains("GPU") || error.contains("NVIDIA driver"), "{error}");
        assert!(error.ends_with("; leave it out to run on the CPU"), "{error}");
    }
    let error = error_of(&run(&["--port", "0", "--device", "cpu", "--gpu-device", "1"]));
    assert_eq!(error, "error: --device cpu and --gpu-device 1 contradict each other: leave one out");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_this_build_does_not_have() {
    for (args, expected) in [
        (
            &["--gpu-device", "0"][..],
            "error: --gpu-device 0: this build of worker-orcd has no CUDA; leave it out to run on the CPU",
        ),
        (
            &["--device", "cuda"],
            "error: --device cuda: this build of worker-orcd has no CUDA; use --device cpu or auto",
        ),
        (
            &["--device", "cpu", "--gpu-device", "1"],
            "error: --device cpu and --gpu-device 1 contradict each other: leave one out",
        ),
    ] {
        assert_eq!(error_of(&run(&[args, &["--port", "0"]].concat())), expected);
        assert_eq!(error_of(&run(&[&["generate", "x"], args].concat())), expected);
    }
}

#[test]
fn a_context_and_a_cache_that_do_not_go_together() {
    let error = error_of(&run(&["--port", "0", "--ctx-size", "513"]));
    assert_eq!(error, "error: a context of 513 tokens was asked for, the model was made for at most 512");
    let files = Files::new();
    let wide = TinyModel { n_ctx: 100_000, ..TinyModel::default() };
    let model = files.write("wide.gguf", &wide.build());
    let error = error_of(&run(&["--port", "0", "--model", &model, "--ctx-size", "100000", "--kv-cache-mb", "2"]));
    assert!(error.starts_with("error: --kv-cache-mb 2 holds 8192 tokens, a context of 100000 needs 25 MiB"), "{error}");
}

#[test]
fn more_memory_than_there_is() {
    let files = Files::new();
    let wide = TinyModel { n_ctx: 1 << 24, n_layers: 16, ..TinyModel::default() };
    let model = files.write("wide.gguf", &wide.build());
    // 16 million tokens of 2 KiB, for 256 sequences: 8 TB.
    let args = ["--port", "0", "--model", &model, "--max-seqs", "256", "--kv-cache-mb", "16777216"];
    let error = error_of(&run(&args));
    assert!(error.starts_with("error: ") && error.contains("not enough memory: 8.80 TB are needed"), "{error}");
    assert!(error.contains("of weights") && error.contains("of keys and values") && error.contains("are available"));
}
