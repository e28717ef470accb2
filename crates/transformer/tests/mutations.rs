//! A damaged file is refused or runs; nothing panics on the way from bytes to logits.

use gguf_parser::Gguf;
use proptest::prelude::*;
use quant::{IntegerIsa, Isa};
use transformer::cpu::{CpuExecutor, CpuOptions};
use transformer::{Batch, BlockId, Executor, KvType, ModelSpec, Role};
use weight_loader::ModelFile;

/// How far bytes get.
#[derive(Debug, PartialEq)]
enum Outcome {
    NotGguf,
    NoSpec,
    NoWeights,
    NoExecutor,
    Ran,
}

fn run(bytes: Vec<u8>) -> Outcome {
    let bytes: &'static [u8] = bytes.leak();
    let file = ModelFile::from_static(bytes, "damaged");
    let Ok(gguf) = Gguf::parse(bytes) else { return Outcome::NotGguf };
    let Ok(spec) = ModelSpec::from_gguf(&gguf) else { return Outcome::NoSpec };
    let Ok(weights) = weight_loader::load(&file, &gguf, &spec.tensors(), &mut |_| ()) else {
        return Outcome::NoWeights;
    };
    let options = CpuOptions {
        n_threads: 1,
        max_batch_tokens: 8,
        max_seqs: 1,
        kv_bytes: Some(1 << 20),
        kv_type: KvType::F16,
        isa: Isa::detect(),
        integers: IntegerIsa::detect(),
        n_ctx: None,
    };
    let Ok(mut executor) = CpuExecutor::new(spec, weights, options) else { return Outcome::NoExecutor };
    let mut batch = Batch::default();
    batch.push(Role::Prompt, &[0, 1, 2, 3], 0, &[BlockId(0)], true);
    // A mutated context may be shorter than four tokens: that is an error of the batch's.
    let _ = executor.forward(&batch);
    Outcome::Ran
}

fn model(name: &str) -> Vec<u8> {
    std::fs::read(test_support::checkout().join(format!("crates/transformer/golden/data/{name}.gguf"))).unwrap()
}

#[test]
fn sound_files_run() {
    assert_eq!(run(model("qwen2_tied")), Outcome::Ran);
    assert_eq!(run(model("llama_rope_freqs")), Outcome::Ran);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_directories_are_refused_or_run(
        llama in any::<bool>(),
        // The first bytes are the directory; the rest is weights, of which any bits are some number.
        edits in proptest::collection::vec((0..2600usize, any::<u8>()), 1..4),
    ) {
        let mut bytes = model(if llama { "llama_pairs" } else { "qwen2_tied" });
        for (at, value) in edits {
            bytes[at] = value;
        }
        run(bytes);
    }

    #[test]
    fn damaged_weights_run(edits in proptest::collection::vec((3000..40_000usize, any::<u8>()), 1..50)) {
        let mut bytes = model("qwen2_tied");
        for (at, value) in edits {
            bytes[at] = value;
        }
        prop_assert_eq!(run(bytes), Outcome::Ran);
    }
}
