//! `quantize`: what is written, what is refused, and what a run that fails leaves behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use gguf_parser::Gguf;
use gguf_parser::writer::OwnedValue;
use quant::Format;
use test_support::tiny_model::TinyModel;

use crate::harness::{Files, command, error_of, run, stdout_of};
use crate::models;

/// A tiny model whose matrices fit every format but those of super-blocks in some places.
fn tiny(f16: bool) -> Vec<u8> {
    TinyModel { d_model: 256, d_ff: 288, n_layers: 3, f16, ..TinyModel::default() }.build()
}

fn haiku() -> Vec<u8> {
    std::fs::read(test_support::checkout().join("models/haiku/haiku-qwen2-5.8m-f16.gguf")).unwrap()
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Quantizes `bytes`; the written file, and what was printed.
fn quantized(bytes: &[u8], args: &[&str]) -> (Vec<u8>, String) {
    let files = Files::new();
    let input = files.write("in.gguf", bytes);
    let output = files.path("out.gguf");
    let printed = stdout_of(&run(&[&["quantize", &input, output.to_str().unwrap()], args].concat()));
    assert_eq!(names(files.path("").as_path()), ["in.gguf", "out.gguf"]);
    (std::fs::read(output).unwrap(), files.unnamed(&printed))
}

fn values(format: Format, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / format.block_bytes() * format.block_len()];
    quant::dequantize(format, bytes, &mut values);
    values
}

/// Everything that must be true of `new`, made of `old`; tensors of each type.
fn check(old: &[u8], new: &[u8], file_type: u32) -> BTreeMap<&'static str, usize> {
    let (was, is) = (Gguf::parse(old).unwrap(), Gguf::parse(new).unwrap());
    assert_eq!((is.version, is.alignment), (3, was.alignment));
    let set = ["general.file_type", "general.quantization_version"];
    let rest = |gguf: &Gguf<'_>| -> Vec<(String, OwnedValue)> {
        let kept = gguf.metadata.iter().filter(|(key, _)| !set.contains(key));
        kept.map(|(key, value)| (key.to_owned(), value.into())).collect()
    };
    assert_eq!(rest(&was), rest(&is));
    assert_eq!(set.map(|key| is.metadata.require_u32(key).unwrap()), [file_type, 2]);

    assert_eq!(was.tensors.len(), is.tensors.len());
    let mut types = BTreeMap::new();
    for (was, is) in was.tensors.iter().zip(&is.tensors) {
        assert_eq!((was.name, &was.shape[..]), (is.name, &is.shape[..]));
        *types.entry(is.ty.name()).or_default() += 1;
        let [from, to] = [was.ty, is.ty].map(|ty| Format::from_tensor_type(ty).unwrap());
        let mut expected = vec![0; is.n_bytes as usize];
        if from == to {
            expected.copy_from_slice(was.bytes(old));
        } else {
            quant::quantize(to, &values(from, was.bytes(old)), &mut expected);
        }
        assert!(expected == is.bytes(new), "{}: {} to {}", is.name, was.ty, is.ty);
        if was.shape.len() == 1 {
            assert_eq!(was.ty, is.ty, "{}", was.name);
        }
    }
    types
}

/// Types that this build can write, with their numbers.
fn types() -> impl Iterator<Item = (&'static str, u32)> {
    const ALL: [(&str, u32); 13] = [
        ("F32", 0),
        ("F16", 1),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q8_0", 7),
        ("Q5_0", 8),
        ("Q5_1", 9),
        ("Q4_K_S", 14),
        ("Q4_K_M", 15),
        ("Q5_K_S", 16),
        ("Q5_K_M", 17),
        ("Q6_K", 18),
        ("BF16", 32),
    ];
    ALL.into_iter()
}

#[test]
fn every_tensor_is_what_quantizing_its_rows_gives() {
    for bytes in [tiny(true), tiny(false), haiku()] {
        for (ty, file_type) in types() {
            let (new, _) = quantized(&bytes, &[ty]);
            let n: usize = check(&bytes, &new, file_type).values().sum();
            assert_eq!(n, Gguf::parse(&bytes).unwrap().tensors.len(), "{ty}");
        }
    }
}

#[test]
fn mixtures_are_those_that_llama_cpp_makes() {
    // Of 6 layers of width 256 and feed-forward 768: more bits for the values and ffn_down of layers 2 and 5.
    let (new, _) = quantized(&haiku(), &["q4_k"]);
    let types = check(&haiku(), &new, 15);
    assert_eq!(types, BTreeMap::from([("F32", 31), ("Q4_K", 39), ("Q6_K", 5)]));
    // Rows of 288 hold no super-blocks: those of ffn_down.
    let (new, printed) = quantized(&tiny(true), &["Q5_K_S"]);
    let types = check(&tiny(true), &new, 16);
    assert_eq!(types, BTreeMap::from([("F32", 16), ("Q5_1", 3), ("Q5_K", 19), ("Q6_K", 1)]));
    assert!(printed.contains("3 matrices have rows that its blocks do not fit"), "{printed}");
}

#[test]
fn a_quantized_model_answers() {
    let files = Files::new();
    let output = files.path("small.gguf");
    let output = output.to_str().unwrap();
    let input = files.write("in.gguf", &haiku());
    stdout_of(&run(&["quantize", &input, output, "Q8_0", "--threads", "1"]));
    let haiku = stdout_of(&run(&[
        "generate",
        "--model",
        output,
        "--device",
        "cpu",
        "--temperature",
        "0",
        "Write a haiku about the ocean",
    ]));
    assert_eq!(haiku.lines().filter(|line| !line.is_empty()).count(), 3, "{haiku}");
}

#[test]
fn says_what_was_made() {
    let (_, printed) = quantized(&haiku(), &["Q8_0"]);
    let printed = without_seconds(&printed);
    insta::assert_snapshot!(printed);
}

#[test]
fn says_how_far_it_has_come() {
    let files = Files::new();
    let input = files.write("in.gguf", &haiku());
    let output = files.path("out.gguf");
    let stderr_of = |args: &[&str]| {
        let ended = run(&[&["quantize", &input, output.to_str().unwrap(), "Q8_0", "--force"], args].concat());
        assert!(ended.status.success());
        String::from_utf8(ended.stderr).unwrap()
    };
    // In between, lines come by the clock.
    let stderr = stderr_of(&[]);
    let shares: Vec<&str> =
        stderr.lines().map(|line| line.split_once("quantizing: ").expect("nothing else").1).collect();
    assert_eq!(shares.first(), Some(&"0 % of 11.6 MB"), "{stderr}");
    assert_eq!(shares.last(), Some(&"100 % of 11.6 MB"), "{stderr}");
    let percents: Vec<u64> = shares.iter().map(|share| share.split_once(" %").unwrap().0.parse().unwrap()).collect();
    assert!(percents.is_sorted_by(|a, b| a < b), "{stderr}");

    let json = stderr_of(&["--log-format", "json"]);
    let last: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!(last["message"], "quantizing: 100 % of 11.6 MB", "{json}");
    assert_eq!(stderr_of(&["--log-level", "warn"]), "");
}

/// The summary without its time.
fn without_seconds(text: &str) -> String {
    let (before, _) = text.rsplit_once(", in ").unwrap();
    format!("{before}, in [seconds]\n")
}

#[test]
fn threads_do_not_change_a_byte() {
    let of = |n: &str| quantized(&haiku(), &["Q8_0", "--threads", n]).0;
    assert!(of("1") == of("3"));
}

#[test]
fn alignment_is_kept_and_keys_are_added_where_there_are_none() {
    let bytes = models::with_metadata(&TinyModel::default(), &[("general.file_type", OwnedValue::Bool(true))]);
    let (new, _) = quantized(&bytes, &["Q8_0"]);
    check(&bytes, &new, 7);
    let bytes = TinyModel::default().builder().alignment(64).build();
    let (new, _) = quantized(&bytes, &["F32"]);
    assert_eq!(Gguf::parse(&new).unwrap().alignment, 64);
    check(&bytes, &new, 0);
}

#[test]
fn refuses_what_would_lose_something() {
    let files = Files::new();
    let input = files.write("in.gguf", &haiku());
    let path = |name: &str| files.path(name).to_str().unwrap().to_owned();
    let refused = |args: &[&str]| files.unnamed(&error_of(&run(&[&["quantize"], args].concat())));
    let (there, small) = (files.write("there.gguf", b"precious"), path("small.gguf"));
    std::fs::hard_link(&input, files.path("link.gguf")).unwrap();
    stdout_of(&run(&["quantize", &input, &small, "Q8_0"]));

    let mut all = String::new();
    let mut add = |error: String| all += &(error + "\n");
    add(refused(&[&input, &there, "Q8_0"]));
    add(refused(&[&input, &input, "Q8_0", "--force"]));
    add(refused(&[&input, &path("link.gguf"), "Q8_0", "--force"]));
    add(refused(&[&input, &path("no/such/folder.gguf"), "Q8_0"]));
    add(refused(&[&input, &path(""), "Q8_0", "--force"]));
    add(refused(&[&input, "/dev/full", "Q8_0", "--force"]));
    add(refused(&[&small, &path("again.gguf"), "F16"]));
    add(refused(&[&path("none.gguf"), &path("again.gguf"), "F16"]));
    add(refused(&[&there, &path("again.gguf"), "F16"]));
    let mamba = models::with_metadata(&TinyModel::default(), &[("general.architecture", "mamba".into())]);
    add(refused(&[&files.write("mamba.gguf", &mamba), &path("again.gguf"), "F16"]));
    let unread = models::with_a_matrix_in_tq1_0("blk.0.ffn_up.weight");
    add(refused(&[&files.write("unread.gguf", &unread), &path("again.gguf"), "F16"]));
    insta::assert_snapshot!(all);

    assert_eq!(std::fs::read(&there).unwrap(), b"precious");
    assert_eq!(
        names(&files.path("")),
        ["in.gguf", "link.gguf", "mamba.gguf", "small.gguf", "there.gguf", "unread.gguf"]
    );
    stdout_of(&run(&["quantize", &input, &there, "Q8_0", "--force"]));
    assert!(std::fs::read(&there).unwrap() == std::fs::read(&small).unwrap());
    stdout_of(&run(&["quantize", &small, &path("again.gguf"), "F16", "--allow-requantize"]));
    check(&std::fs::read(&small).unwrap(), &std::fs::read(path("again.gguf")).unwrap(), 1);
}

#[test]
fn names_the_value_that_does_not_fit() {
    let files = Files::new();
    let shape = [2, 64];
    let mut values = vec![0.5f32; 128];
    values[64 + 7] = 1e5;
    let large = |values: &[f32]| {
        let model = TinyModel::default();
        let bytes = model.build();
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut builder = model.builder();
        assert!(gguf.tensor("blk.0.extra.weight").is_none());
        builder = builder.tensor_f32("blk.0.extra.weight", &shape, values);
        builder.build()
    };
    let input = files.write("large.gguf", &large(&values));
    let output = files.path("out.gguf");
    let refused = |ty: &str| error_of(&run(&["quantize", &input, output.to_str().unwrap(), ty]));
    assert_eq!(
        refused("F16"),
        "error: tensor \"blk.0.extra.weight\": the value 1e5 in row 1, column 7 has no room in F16, BF16 and F32 have more"
    );
    values[3] = f32::NAN;
    std::fs::write(&input, large(&values)).unwrap();
    assert_eq!(
        refused("Q8_0"),
        "error: tensor \"blk.0.extra.weight\": the value NaN in row 0, column 3 is no number: the model is damaged"
    );
    assert_eq!(names(&files.path("")), ["large.gguf"]);
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_one_error_and_leaves_nothing() {
    let files = Files::new();
    let input = files.write("in.gguf", &haiku());
    let output = files.path("out.gguf");
    // A limit on the size of files stands in for the disk's: 512 blocks of at most a KiB, and no signal about it.
    let script = "trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\"";
    let worker = command(&[]);
    let result = std::process::Command::new("sh")
        .env_clear()
        .args(["-c", script])
        .arg(worker.get_program())
        .args(["quantize", &input, output.to_str().unwrap(), "Q8_0"])
        .output()
        .unwrap();
    let error = files.unnamed(&error_of(&result));
    assert!(error.starts_with("error: output \"[dir]/out.gguf\": cannot be written: "), "{error}");
    assert_eq!(names(&files.path("")), ["in.gguf"]);
}

#[test]
#[cfg(unix)]
fn an_interrupted_run_leaves_nothing() {
    let files = Files::new();
    let input = files.path("large.gguf");
    // 300 MB of zeros: enough work to be interrupted in.
    models::write_large(&input);
    let output = files.path("out.gguf");
    for (signal, times) in [("INT", 1), ("TERM", 1), ("INT", 2)] {
        let mut child = command(&["quantize", input.to_str().unwrap(), output.to_str().unwrap(), "Q8_0", "-t", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It has begun when the other file is there.
        while names(&files.path("")).len() < 2 {
            assert!(child.try_wait().unwrap().is_none(), "it has ended already");
            std::thread::yield_now();
        }
        for _ in 0..times {
            let sent =
                std::process::Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
            assert!(sent.unwrap().success());
        }
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(130), "{signal} {times}: {}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(names(&files.path("")), ["large.gguf"], "{signal} {times}");
    }
}
