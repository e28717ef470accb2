//! The reading that dense decoders share: their keys have the same names and the same rules.

use std::fmt::Display;
use std::ops::RangeInclusive;

use gguf_parser::{Gguf, ValueError};

use crate::spec::{
    MAX_CTX, MAX_D_FF, MAX_D_HEAD, MAX_D_MODEL, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, ModelSpec, Rope, RopePairs, SpecError,
};

/// What distinguishes one dense decoder's files from another's.
pub(super) struct Traits {
    /// Prefix of the keys.
    pub(super) architecture: &'static str,
    pub(super) pairs: RopePairs,
    pub(super) qkv_bias: Biases,
    /// `None`: the file must say.
    pub(super) default_rope_base: Option<f32>,
    /// Whether `rope_freqs.weight` means something.
    pub(super) rope_freqs: bool,
}

/// Whether q, k and v have biases.
pub(super) enum Biases {
    /// A file without them is broken.
    Always,
    /// As the file says: all of them, or none.
    WherePresent,
}

/// Reads and checks the hyper-parameters of a dense decoder.
pub(super) fn read(gguf: &Gguf<'_>, traits: Traits) -> Result<ModelSpec, SpecError> {
    let keys = Keys { gguf, prefix: traits.architecture };
    refuse_what_would_go_wrong(&keys)?;

    let n_layers = keys.count("block_count", 1..=MAX_LAYERS)?;
    let d_model = keys.count("embedding_length", 1..=MAX_D_MODEL)?;
    let d_ff = keys.count("feed_forward_length", 1..=MAX_D_FF)?;
    let n_ctx = keys.count("context_length", 1..=MAX_CTX)?;
    let n_heads = keys.count("attention.head_count", 1..=MAX_HEADS)?;
    let n_kv_heads = keys.optional_count("attention.head_count_kv", 1..=MAX_HEADS)?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        let expected = format!("a divisor of attention.head_count ({n_heads})");
        return Err(keys.invalid("attention.head_count_kv", expected, n_kv_heads));
    }
    let d_head = read_d_head(&keys, d_model, n_heads)?;
    let rms_eps = keys.number("attention.layer_norm_rms_epsilon", None, "a number above 0 and below 1", |x| x < 1.0)?;
    let n_vocab = read_n_vocab(&keys, d_model)?;
    let has = |name: &str| gguf.tensor(name).is_some();

    Ok(ModelSpec {
        architecture: traits.architecture,
        name: gguf.metadata.str("general.name")?.map(str::to_owned),
        n_layers,
        d_model,
        n_heads,
        n_kv_heads,
        d_head,
        d_ff,
        n_vocab,
        n_ctx,
        rms_eps,
        rope: read_rope(&keys, &traits, d_head)?,
        qkv_bias: match traits.qkv_bias {
            Biases::Always => true,
            Biases::WherePresent => {
                ["blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"].into_iter().any(has)
            }
        },
        tied_output: !has("output.weight"),
    })
}

/// Refuses by name what a decoder without the feature would answer wrongly, and fluently.
fn refuse_what_would_go_wrong(keys: &Keys<'_, '_>) -> Result<(), SpecError> {
    let n_files = keys.gguf.metadata.u32("split.count")?.unwrap_or(1);
    if n_files > 1 {
        return Err(SpecError::Unsupported {
            key: "split.count".into(),
            expected: "a model in one file (merge the parts, e.g. with llama-gguf-split --merge)".into(),
            got: format!("{n_files} files"),
        });
    }
    let n_experts = keys.gguf.metadata.u32(&keys.name("expert_count"))?.unwrap_or(0);
    if n_experts > 0 {
        return Err(keys.unsupported("expert_count", "0, a dense model", n_experts));
    }
    if keys.gguf.metadata.bool(&keys.name("attention.causal"))? == Some(false) {
        return Err(keys.unsupported("attention.causal", "true, a decoder", false));
    }
    // A window as long as the context never closes.
    let window = keys.gguf.metadata.u64(&keys.name("attention.sliding_window"))?.unwrap_or(0);
    let n_ctx = keys.gguf.metadata.u64(&keys.name("context_length"))?.unwrap_or(u64::MAX);
    if window > 0 && window < n_ctx {
        return Err(keys.unsupported("attention.sliding_window", "none, or one as long as the context", window));
    }
    Ok(())
}

/// `attention.key_length` overrides `embedding_length / attention.head_count`.
fn read_d_head(keys: &Keys<'_, '_>, d_model: usize, n_heads: usize) -> Result<usize, SpecError> {
    let d_value = keys.optional_count("attention.value_length", 1..=MAX_D_HEAD)?;
    let d_head = match keys.optional_count("attention.key_length", 1..=MAX_D_HEAD)? {
        Some(d_head) => d_head,
        None if !d_model.is_multiple_of(n_heads) => {
            let expected = format!("a divisor of embedding_length ({d_model}), or attention.key_length beside it");
            return Err(keys.invalid("attention.head_count", expected, n_heads));
        }
        None if d_model / n_heads > MAX_D_HEAD => {
            let expected = format!("heads of at most {MAX_D_HEAD} in an embedding_length of {d_model}");
            return Err(keys.invalid("attention.head_count", expected, n_heads));
        }
        None => d_model / n_heads,
    };
    match d_value {
        Some(d_value) if d_value != d_head => {
            Err(keys.unsupported("attention.value_length", format!("{d_head}, the length of a key"), d_value))
        }
        _ => Ok(d_head),
    }
}

fn read_rope(keys: &Keys<'_, '_>, traits: &Traits, d_head: usize) -> Result<Rope, SpecError> {
    let positive = "a finite number above 0";
    let n_dims = match keys.optional_count("rope.dimension_count", 1..=MAX_D_HEAD)? {
        Some(n) if n > d_head || !n.is_multiple_of(2) => {
            let expected = format!("an even number of at most {d_head}, the length of a head");
            return Err(keys.invalid("rope.dimension_count", expected, n));
        }
        Some(n) => n,
        None if !d_head.is_multiple_of(2) => {
            return Err(keys.invalid("attention.key_length", "an even head length, or rope.dimension_count", d_head));
        }
        None => d_head,
    };
    // As llama.cpp reads it: linear unless the file says otherwise; `rope.scale_linear` is the key's first name.
    let scale = match keys.gguf.metadata.str(&keys.name("rope.scaling.type"))? {
        Some("none") => 1.0,
        None | Some("linear") => {
            let first_name = keys.number("rope.scale_linear", Some(1.0), positive, |_| true)?;
            keys.number("rope.scaling.factor", Some(first_name), positive, |_| true)?
        }
        Some(other) => return Err(keys.unsupported("rope.scaling.type", "none or linear", format!("\"{other}\""))),
    };
    Ok(Rope {
        pairs: traits.pairs,
        base: keys.number("rope.freq_base", traits.default_rope_base, positive, |_| true)?,
        n_dims,
        scale,
        has_freqs: traits.rope_freqs && keys.gguf.tensor("rope_freqs.weight").is_some(),
    })
}

/// The rows of the token embedding, which every other statement about the vocabulary must agree with: an id beyond them
/// would have no embedding, and a row without a token could be sampled and not be spoken.
fn read_n_vocab(keys: &Keys<'_, '_>, d_model: usize) -> Result<usize, SpecError> {
    const NAME: &str = "token_embd.weight";
    let wrong = |got: String| SpecError::Tensor { name: NAME, expected: format!("shape [n_vocab, {d_model}]"), got };
    let tensor = keys.gguf.tensor(NAME).ok_or_else(|| wrong("none".into()))?;
    let n_vocab = match tensor.shape[..] {
        [rows, columns] if columns == d_model as u64 && (1..=MAX_VOCAB as u64).contains(&rows) => rows as usize,
        _ => return Err(wrong(format!("{:?}", &tensor.shape[..]))),
    };
    let rows = format!("{n_vocab}, the rows of {NAME}");
    match keys.gguf.metadata.array("tokenizer.ggml.tokens")? {
        Some(tokens) if tokens.len() as u64 != n_vocab as u64 => {
            let got = format!("{} tokens", tokens.len());
            Err(SpecError::Invalid { key: "tokenizer.ggml.tokens".into(), expected: rows, got })
        }
        Some(_) => Ok(n_vocab),
        // Only a file without a vocabulary of its own needs the number; in others it is sometimes out of date.
        None => match keys.gguf.metadata.u64(&keys.name("vocab_size"))? {
            Some(n) if n != n_vocab as u64 => Err(keys.invalid("vocab_size", rows, n)),
            _ => Ok(n_vocab),
        },
    }
}

/// Metadata keys that begin with the architecture's name.
struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    prefix: &'static str,
}

impl Keys<'_, '_> {
    fn name(&self, leaf: &str) -> String {
        format!("{}.{leaf}", self.prefix)
    }

    fn invalid(&self, leaf: &str, expected: impl Display, got: impl Display) -> SpecError {
        SpecError::Invalid { key: self.name(leaf), expected: expected.to_string(), got: got.to_string() }
    }

    fn unsupported(&self, leaf: &str, expected: impl Display, got: impl Display) -> SpecError {
        SpecError::Unsupported { key: self.name(leaf), expected: expected.to_string(), got: got.to_string() }
    }

    fn missing(&self, leaf: &str, expected: &'static str) -> SpecError {
        SpecError::Value(ValueError::Missing { key: self.name(leaf), expected })
    }

    fn optional_count(&self, leaf: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, SpecError> {
        match self.gguf.metadata.u64(&self.name(leaf))? {
            None => Ok(None),
            Some(n) => match usize::try_from(n) {
                Ok(n) if range.contains(&n) => Ok(Some(n)),
                _ => Err(self.invalid(leaf, format_args!("{} to {}", range.start(), range.end()), n)),
            },
        }
    }

    fn count(&self, leaf: &str, range: RangeInclusive<usize>) -> Result<usize, SpecError> {
        self.optional_count(leaf, range)?.ok_or_else(|| self.missing(leaf, "an integer"))
    }

    /// A finite number above 0 for which `rule` holds.
    fn number(
        &self,
        leaf: &str,
        default: Option<f32>,
        expected: &str,
        rule: impl Fn(f32) -> bool,
    ) -> Result<f32, SpecError> {
        match self.gguf.metadata.f32(&self.name(leaf))?.or(default) {
            None => Err(self.missing(leaf, "a number")),
            Some(x) if x.is_finite() && x > 0.0 && rule(x) => Ok(x),
            Some(x) => Err(self.invalid(leaf, expected, x)),
        }
    }
}
