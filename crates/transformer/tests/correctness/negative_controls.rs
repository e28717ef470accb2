//! The gates bite: each fault that has made other workers write fluent nonsense fails them.
//!
//! A fault is made from outside, in the spec, the weights or the batch; the executor has no switch for it. Cache and
//! arithmetic are at their best (F32 on the CPU), and the looser gate (F16's) must still tell; a GPU has its own.

use gguf_parser::Gguf;
use test_support::closeness::{Closeness, Gates};
use transformer::{BLOCK_TOKENS, Batch, BlockId, ModelSpec, Role, RopePairs};
use weight_loader::ModelFile;

use crate::case::Case;
use crate::sequence::{Target, run};

/// Runs a case with a fault and says how far off it is.
fn with_fault(case: &Case, edit_file: impl Fn(&mut File), edit_spec: impl Fn(&mut ModelSpec)) -> Closeness {
    let mut file = File { bytes: case.bytes() };
    edit_file(&mut file);
    let file = ModelFile::from_static(file.bytes.leak(), "test");
    let mut spec = ModelSpec::from_gguf(&file.gguf().unwrap()).unwrap();
    edit_spec(&mut spec);
    let mut executor = Target::best().executor_for(&file, spec, 256, 128);
    let a_run = &case.runs[0];
    let logits = run(&mut *executor, &a_run.tokens, a_run.n_prompt, None);
    Closeness::of(&logits, case.logits(0), executor.info().n_vocab)
}

/// The gates that a fault has to fail.
fn gates() -> Gates {
    match Target::best() {
        Target::Cpu(..) => Gates::CPU_F16,
        #[cfg(feature = "cuda")]
        target => target.gates(),
    }
}

/// Asserts that the fault fails the gates of every one of these cases, and prints by how much.
fn fails(fault: &str, cases: &[&str], edit_file: impl Fn(&mut File), edit_spec: impl Fn(&mut ModelSpec)) {
    for name in cases {
        let case = Case::read(name);
        let sound = with_fault(&case, |_| (), |_| ());
        assert!(sound.check(gates()).is_ok(), "{name} fails without a fault: {sound:?}");
        assert_fails(fault, name, &with_fault(&case, &edit_file, &edit_spec));
    }
}

fn assert_fails(fault: &str, name: &str, c: &Closeness) {
    let times = c.error / gates().run;
    println!("{fault:32} {name:20} off by {:8.1e}, {times:6.0} times the gate", c.error);
    assert!(c.check(gates()).is_err(), "{fault} passes the gates of {name}: {c:?}");
    assert!(times > 2.0, "{fault} hardly fails the gate of {name}: {c:?}");
}

/// A model file to be damaged.
struct File {
    bytes: Vec<u8>,
}

impl File {
    /// A tensor's bytes, to be changed.
    fn tensor(&mut self, name: &str) -> &mut [u8] {
        let gguf = Gguf::parse(&self.bytes).unwrap();
        let tensor = gguf.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
        let range = tensor.offset as usize..(tensor.offset + tensor.n_bytes) as usize;
        &mut self.bytes[range]
    }

    /// Exchanges the first two of `n_heads` equal parts of a tensor.
    fn swap_heads(&mut self, name: &str, n_heads: usize) {
        let bytes = self.tensor(name);
        let head_bytes = bytes.len() / n_heads;
        let (first, second) = bytes[..2 * head_bytes].split_at_mut(head_bytes);
        first.swap_with_slice(second);
    }
}

const BIASED: [&str; 4] = ["haiku", "qwen2_group7", "qwen2_bias30", "llama_partial_rope"];

#[test]
fn dropping_the_biases_fails() {
    fails("biases dropped", &BIASED, |_| (), |spec| spec.qkv_bias = false);
}

#[test]
fn zeroing_one_bias_of_one_layer_fails() {
    let cases = ["haiku", "qwen2_group7", "llama_partial_rope"];
    fails("one q bias zeroed", &cases, |file| file.tensor("blk.1.attn_q.bias").fill(0), |_| ());
    fails("one v bias zeroed", &cases, |file| file.tensor("blk.1.attn_v.bias").fill(0), |_| ());
}

#[test]
fn pairing_rope_wrongly_fails() {
    let cases = ["haiku", "qwen2_group7", "qwen2_linear_rope", "llama_pairs", "llama_q8_0"];
    fails(
        "RoPE on the wrong pairs",
        &cases,
        |_| (),
        |spec| {
            spec.rope.pairs = match spec.rope.pairs {
                RopePairs::Halves => RopePairs::Adjacent,
                RopePairs::Adjacent => RopePairs::Halves,
            };
        },
    );
}

#[test]
fn positions_that_are_always_zero_fail() {
    let cases = ["haiku", "qwen2_group7", "llama_pairs", "llama_rope_freqs"];
    fails("RoPE position always 0", &cases, |_| (), |spec| spec.rope.scale = f32::MAX);
}

#[test]
fn restarting_positions_at_decode_fails() {
    for name in ["haiku", "qwen2_group7", "llama_pairs"] {
        let case = Case::read(name);
        let a_run = &case.runs[0];
        let mut executor = Target::best().executor(case.bytes());
        let n_vocab = executor.info().n_vocab;
        let blocks: Vec<BlockId> = (0..a_run.tokens.len().div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
        let mut batch = Batch::default();
        batch.push(Role::Prompt, &a_run.tokens[..a_run.n_prompt], 0, &blocks, true);
        executor.forward(&batch).unwrap();
        let mut logits = Vec::new();
        for (restarted, token) in a_run.tokens[a_run.n_prompt..].iter().enumerate() {
            batch.clear();
            batch.push(Role::Generated, &[*token], restarted as u32, &blocks, true);
            logits.extend_from_slice(executor.forward(&batch).unwrap().into_logits());
        }
        let want = &case.logits(0)[a_run.n_prompt * n_vocab..];
        assert_fails("positions restarted at decode", name, &Closeness::of(&logits, want, n_vocab));
    }
}

#[test]
fn swapping_kv_heads_fails() {
    let cases = ["haiku", "qwen2_group7", "llama_q8_0", "llama_rope_freqs"];
    let n_kv_heads = 2;
    fails("K heads of a layer swapped", &cases, |file| file.swap_heads("blk.1.attn_k.weight", n_kv_heads), |_| ());
    fails("V heads of a layer swapped", &cases, |file| file.swap_heads("blk.1.attn_v.weight", n_kv_heads), |_| ());
}

#[test]
fn ignoring_rope_freqs_fails() {
    fails("rope_freqs ignored", &["llama_rope_freqs"], |_| (), |spec| spec.rope.has_freqs = false);
}

#[test]
fn ignoring_linear_scaling_fails() {
    fails("linear scaling ignored", &["qwen2_linear_rope"], |_| (), |spec| spec.rope.scale = 1.0);
}

#[test]
fn another_rope_base_fails() {
    fails("RoPE base 10,000", &["haiku", "qwen2_group7", "llama_q8_0"], |_| (), |spec| spec.rope.base = 1e4);
}

#[test]
fn turning_dimensions_that_should_not_turn_fails() {
    fails("dimension_count ignored", &["llama_partial_rope"], |_| (), |spec| spec.rope.n_dims = spec.d_head);
}

#[test]
fn another_epsilon_fails() {
    // The model has 1e-6. Llama's 1e-5 is off by 4e-4, which F32's gate tells and F16's does not.
    fails("epsilon 1e-4", &["haiku"], |_| (), |spec| spec.rms_eps = 1e-4);
}
