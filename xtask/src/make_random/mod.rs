//! `cargo xtask make-random`: a GGUF file with random weights, for loading and speed at a size that is not shipped.
//!
//! The file is a Qwen2 model in every respect but sense: shapes, metadata, tokenizer. The same options write the same
//! bytes: each tensor has a random stream of its own, made from the seed and the tensor's name, so that a tensor's
//! values depend on no other option, and on no number of threads.

mod model;
mod values;
mod vocabulary;
mod write;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use model::Shape;
use values::Spread;

/// Write a GGUF file with random weights in the shape of Qwen2.5-0.5B, or smaller
///
/// The defaults make 291 tensors and 1.26 GB. A tiny model: --n-layers 2 --n-embd 64 --n-head 4 --n-kv 2 --n-ff 128
/// --vocab synthetic:1024 --n-vocab 1536.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to write; replaced only once it is complete
    out: PathBuf,
    /// Type of the matrices: f16, f32, bf16, q8_0; norms and biases are always F32
    #[arg(long = "type", value_name = "TYPE", default_value = "f16", value_parser = model::parse_format)]
    format: quant::Format,
    /// A GGUF file whose tokenizer is copied, or synthetic:N for one of N ordinary tokens made up on the spot
    #[arg(long, value_name = "FILE|synthetic:N", default_value = "synthetic:151643")]
    vocab: vocabulary::Source,
    /// Rows of the embedding and the output matrix, for a synthetic vocabulary: padded with unused tokens to this
    #[arg(long, value_name = "N", default_value_t = 151_936)]
    n_vocab: usize,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    spread: Spread,
    /// Every weight follows from it
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The model's name; made from its shape when left out
    #[arg(long)]
    name: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let written = write::write(args)?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{}: {} tensors, {} parameters, vocabulary of {}, {:.2} GB in {seconds:.1} s",
        args.out.display(),
        written.n_tensors,
        written.n_parameters,
        written.n_vocab,
        written.n_bytes as f64 / 1e9,
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use gguf_parser::{Gguf, TensorType};
    use transformer::ModelSpec;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(args_override_self = true)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    const TINY: &str = "--n-layers 2 --n-embd 64 --n-head 4 --n-kv 2 --n-ff 96 --vocab synthetic:400 --n-vocab 448";

    fn make(options: &str) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir()?;
        let out = folder.path().join("model.gguf");
        let words = format!("make-random {} {TINY} {options}", out.display());
        run(&Cli::try_parse_from(words.split_whitespace())?.args)?;
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 1, "a temporary file is left");
        Ok(std::fs::read(out)?)
    }

    fn tensor_bytes(file: &[u8], name: &str) -> Vec<u8> {
        let gguf = Gguf::parse(file).expect("parses");
        gguf.tensor(name).unwrap_or_else(|| panic!("no {name}")).bytes(file).to_vec()
    }

    #[test]
    fn every_type_makes_a_model_that_the_worker_knows() -> Result<()> {
        for (name, ty) in
            [("f32", TensorType::F32), ("f16", TensorType::F16), ("bf16", TensorType::BF16), ("q8_0", TensorType::Q8_0)]
        {
            let file = make(&format!("--type {name}"))?;
            let gguf = Gguf::parse(&file)?;
            assert_eq!(gguf.tensors.len(), 2 * 12 + 3);
            assert_eq!(
                gguf.tensor("blk.1.ffn_down.weight").map(|t| (t.ty, t.shape.to_vec())),
                Some((ty, vec![64, 96]))
            );
            assert_eq!(gguf.tensor("output_norm.weight").map(|t| t.ty), Some(TensorType::F32));
            let spec = ModelSpec::from_gguf(&gguf)?;
            assert_eq!((spec.n_layers, spec.n_kv_heads, spec.n_vocab), (2, 2, 448));
            let expected = spec.tensors();
            assert!(
                expected
                    .iter()
                    .all(|t| t.optional || gguf.tensor(&t.name).is_some_and(|got| got.shape[..] == t.shape[..]))
            );
        }
        Ok(())
    }

    #[test]
    fn the_same_options_make_the_same_bytes_and_another_seed_others() -> Result<()> {
        assert!(make("")? == make("")?);
        assert!(make("")? != make("--seed 43")?);
        Ok(())
    }

    #[test]
    fn a_tensor_s_values_do_not_depend_on_the_other_options() -> Result<()> {
        let (full, tied) = (make("")?, make("--tied --n-layers 1 --seed 42")?);
        for name in ["blk.0.attn_q.weight", "blk.0.attn_k.bias", "token_embd.weight"] {
            assert!(tensor_bytes(&full, name) == tensor_bytes(&tied, name), "{name}");
        }
        assert!(Gguf::parse(&tied)?.tensor("output.weight").is_none());
        assert!(tensor_bytes(&full, "blk.0.attn_q.weight") != tensor_bytes(&full, "blk.1.attn_q.weight"));
        Ok(())
    }

    #[test]
    fn the_spread_of_the_values_is_what_was_asked_for() -> Result<()> {
        let file = make("--type f32 --std 0.5 --bias-std 3 --norm-std 0.25")?;
        let spread = |name: &str| {
            let bytes = tensor_bytes(&file, name);
            let values: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, var.sqrt())
        };
        for (name, mean, std) in
            [("blk.0.ffn_up.weight", 0.0, 0.5), ("blk.0.attn_q.bias", 0.0, 3.0), ("output_norm.weight", 1.0, 0.25)]
        {
            let (got_mean, got_std) = spread(name);
            assert!(
                (got_mean - mean).abs() < 0.5 * std && (got_std / std - 1.0).abs() < 0.3,
                "{name}: {got_mean} {got_std}"
            );
        }
        Ok(())
    }

    #[test]
    fn a_hard_model_has_large_biases_and_a_feed_forward_layer_beyond_f16() -> Result<()> {
        let file = make("--type f32 --hard")?;
        let values = |name: &str| -> Vec<f32> {
            tensor_bytes(&file, name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let n_peaks = |name: &str| values(name).iter().filter(|v| v.abs() == 30.0).count();
        // Four query heads of 16, two of keys: one peak a head, two a head, one.
        for (name, n) in [("blk.0.attn_q.bias", 4), ("blk.0.attn_k.bias", 4), ("blk.1.attn_v.bias", 1)] {
            assert_eq!(n_peaks(name), n, "{name}");
        }
        assert_eq!(values("blk.0.attn_k.bias").iter().position(|v| v.abs() == 30.0), Some(7), "the slowest pair");
        let rms = |values: &[f32]| (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        for (name, std) in
            [("blk.0.ffn_gate.weight", 4.0), ("blk.0.ffn_down.weight", 2.5e-4), ("token_embd.weight", 1600.0)]
        {
            assert!((rms(&values(name)) / std - 1.0).abs() < 0.1, "{name}: {}", rms(&values(name)));
        }
        let output = values("output.weight");
        assert!((rms(&output[..64]) / rms(&output[64..]) - 4.0).abs() < 1.0, "the first token is a likely one");
        assert!(make("--hard")? != make("")? && make("--hard")? == make("--hard")?);
        Ok(())
    }

    #[test]
    fn copies_the_tokenizer_of_another_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let vocab = folder.path().join("vocab.gguf");
        std::fs::write(&vocab, make("--vocab synthetic:300 --n-vocab 330")?)?;
        let copy = make(&format!("--vocab {}", vocab.display()))?;
        let copy = Gguf::parse(&copy)?;
        assert_eq!(copy.metadata.array("tokenizer.ggml.tokens")?.map(|tokens| tokens.len()), Some(330));
        assert_eq!(ModelSpec::from_gguf(&copy)?.n_vocab, 330);
        assert!(copy.metadata.str("tokenizer.chat_template")?.is_some());
        Ok(())
    }

    #[test]
    fn refuses_shapes_that_make_no_model() {
        for (options, complaint) in [
            ("--n-head 3", "--n-embd 64 is no multiple of --n-head 3"),
            ("--n-kv 3", "--n-head 4 is no multiple of --n-kv 3"),
            ("--n-head 64 --n-kv 64", "the head size 1 is odd"),
            ("--n-ff 100 --type q8_0", "--n-ff 100 is no multiple of 32"),
            ("--n-layers 0", "--n-layers is 0"),
            ("--n-vocab 100", "--n-vocab 100"),
            ("--vocab synthetic:200", "synthetic:256"),
        ] {
            let error = make(options).map(|_| ()).expect_err(options);
            assert!(format!("{error:#}").contains(complaint), "{options}: {error:#}");
        }
    }

    #[test]
    fn leaves_the_old_file_where_it_cannot_write_a_new_one() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let out = folder.path().join("model.gguf");
        std::fs::write(&out, "old")?;
        let words = format!("make-random {} {TINY} --vocab {}/none.gguf", out.display(), folder.path().display());
        assert!(run(&Cli::try_parse_from(words.split_whitespace())?.args).is_err());
        assert_eq!(std::fs::read(&out)?, b"old");
        Ok(())
    }
}
