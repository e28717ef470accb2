//! What the file holds: shapes, tensor names, metadata.

use anyhow::{Result, ensure};
use gguf_parser::TensorType;
use gguf_parser::writer::GgufWriter;
use quant::Format;

/// The model's dimensions; the defaults are Qwen2.5-0.5B's.
#[derive(Debug, clap::Args)]
pub(super) struct Shape {
    /// Blocks
    #[arg(long, value_name = "N", default_value_t = 24)]
    n_layers: u32,
    /// Width
    #[arg(long, value_name = "N", default_value_t = 896)]
    n_embd: u32,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 14)]
    n_head: u32,
    /// Heads of keys and values
    #[arg(long, value_name = "N", default_value_t = 2)]
    n_kv: u32,
    /// Width of the feed-forward layer
    #[arg(long, value_name = "N", default_value_t = 4864)]
    n_ff: u32,
    /// Context length
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    ctx: u32,
    /// RoPE base
    #[arg(long, value_name = "X", default_value_t = 1e6)]
    rope_base: f32,
    /// Epsilon of the norms
    #[arg(long, value_name = "X", default_value_t = 1e-6)]
    eps: f32,
    /// Leave output.weight out: token_embd.weight is the output matrix too
    #[arg(long)]
    tied: bool,
}

/// How a tensor's values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Norm,
    Bias(Bias),
    Embedding,
    Q,
    K,
    V,
    AttnOutput,
    GateUp,
    Down,
    /// With the width: the length of a token's row.
    Output(u64),
}

/// Whose bias; q's and k's know the head size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    Q(u64),
    K(u64),
    V,
}

/// One tensor to be made.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Slowest first: rows, then columns.
    pub(super) shape: Vec<u64>,
    pub(super) kind: Kind,
}

impl Tensor {
    /// How its elements are stored.
    pub(super) fn format(&self, matrices: Format) -> Format {
        if matches!(self.kind, Kind::Norm | Kind::Bias(_)) { Format::F32 } else { matrices }
    }

    pub(super) fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Reads the value of `--type`.
pub(super) fn parse_format(name: &str) -> Result<Format, String> {
    let made = || Format::ALL.iter().filter(|format| format.can_quantize());
    let known = || made().map(|format| format.name().to_lowercase()).collect::<Vec<_>>().join(", ");
    let found = made().copied().find(|format| format.name() == name.to_uppercase());
    found.ok_or_else(|| format!("no type that can be made; those are {}", known()))
}

/// The tensor type of a format: the two tables share their names.
pub(super) fn tensor_type(format: Format) -> Result<TensorType> {
    let found = TensorType::ALL.iter().copied().find(|ty| ty.name() == format.name());
    found.ok_or_else(|| anyhow::anyhow!("GGUF has no tensor type {}", format.name()))
}

impl Shape {
    /// Refuses dimensions that fit no model.
    pub(super) fn check(&self, matrices: Format) -> Result<()> {
        let Self { n_layers, n_embd, n_head, n_kv, n_ff, ctx, .. } = *self;
        let positive = [("--n-layers", n_layers), ("--n-embd", n_embd), ("--n-head", n_head), ("--n-kv", n_kv)];
        for (flag, value) in positive.into_iter().chain([("--n-ff", n_ff), ("--ctx", ctx)]) {
            ensure!(value > 0, "{flag} is 0");
        }
        ensure!(n_embd.is_multiple_of(n_head), "--n-embd {n_embd} is no multiple of --n-head {n_head}");
        ensure!(n_head.is_multiple_of(n_kv), "--n-head {n_head} is no multiple of --n-kv {n_kv}");
        let head = n_embd / n_head;
        ensure!(head.is_multiple_of(2), "the head size {head} is odd: RoPE turns pairs");
        let block = matrices.block_len() as u32;
        for (flag, value) in [("--n-embd", n_embd), ("--n-ff", n_ff)] {
            let name = matrices.name();
            ensure!(value.is_multiple_of(block), "{flag} {value} is no multiple of {block}, as {name} needs");
        }
        Ok(())
    }

    /// Every tensor, in the order of the converters.
    pub(super) fn tensors(&self, n_vocab: usize) -> Vec<Tensor> {
        let tensor = |name: String, shape: &[u64], kind| Tensor { name, shape: shape.to_vec(), kind };
        let (width, ff, vocab) = (u64::from(self.n_embd), u64::from(self.n_ff), n_vocab as u64);
        let head = width / u64::from(self.n_head);
        let kv = head * u64::from(self.n_kv);
        let mut tensors = vec![tensor("token_embd.weight".into(), &[vocab, width], Kind::Embedding)];
        for layer in 0..self.n_layers {
            let mut add =
                |name: &str, shape: &[u64], kind| tensors.push(tensor(format!("blk.{layer}.{name}"), shape, kind));
            add("attn_norm.weight", &[width], Kind::Norm);
            add("ffn_down.weight", &[width, ff], Kind::Down);
            add("ffn_gate.weight", &[ff, width], Kind::GateUp);
            add("ffn_up.weight", &[ff, width], Kind::GateUp);
            add("ffn_norm.weight", &[width], Kind::Norm);
            add("attn_k.bias", &[kv], Kind::Bias(Bias::K(head)));
            add("attn_k.weight", &[kv, width], Kind::K);
            add("attn_output.weight", &[width, width], Kind::AttnOutput);
            add("attn_q.bias", &[width], Kind::Bias(Bias::Q(head)));
            add("attn_q.weight", &[width, width], Kind::Q);
            add("attn_v.bias", &[kv], Kind::Bias(Bias::V));
            add("attn_v.weight", &[kv, width], Kind::V);
        }
        tensors.push(tensor("output_norm.weight".into(), &[width], Kind::Norm));
        if !self.tied {
            tensors.push(tensor("output.weight".into(), &[vocab, width], Kind::Output(width)));
        }
        tensors
    }

    /// Everything in the metadata but the tokenizer.
    pub(super) fn describe(&self, writer: &mut GgufWriter, name: Option<&str>, matrices: Format) {
        let made_up = format!("random-qwen2-{}L-{}", self.n_layers, self.n_embd);
        writer
            .kv("general.architecture", "qwen2")
            .kv("general.name", name.unwrap_or(&made_up))
            .kv("qwen2.block_count", self.n_layers)
            .kv("qwen2.context_length", self.ctx)
            .kv("qwen2.embedding_length", self.n_embd)
            .kv("qwen2.feed_forward_length", self.n_ff)
            .kv("qwen2.attention.head_count", self.n_head)
            .kv("qwen2.attention.head_count_kv", self.n_kv)
            .kv("qwen2.rope.freq_base", self.rope_base)
            .kv("qwen2.attention.layer_norm_rms_epsilon", self.eps)
            .kv("general.quantization_version", 2u32);
        if let Some(file_type) = file_type(matrices) {
            writer.kv("general.file_type", file_type);
        }
    }
}

/// llama.cpp's number for "mostly this type" (`enum llama_ftype`); the key is optional.
fn file_type(matrices: Format) -> Option<u32> {
    match matrices.name() {
        "F32" => Some(0),
        "F16" => Some(1),
        "Q4_0" => Some(2),
        "Q4_1" => Some(3),
        "Q8_0" => Some(7),
        "Q5_0" => Some(8),
        "Q5_1" => Some(9),
        "Q4_K" => Some(14), // the one of its two mixtures that has more of it
        "Q5_K" => Some(16),
        "Q6_K" => Some(18),
        "BF16" => Some(32),
        _ => None,
    }
}
