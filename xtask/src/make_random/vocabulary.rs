//! The tokenizer's metadata: another file's, or one made up.
//!
//! The made-up one is a consistent byte-level BPE: 256 byte tokens, then one token for each merge, in the order of
//! merges; then special tokens named as Qwen2.5 names them, then unused ones up to the size asked for. It splits text
//! into pieces of one to five letters, which is enough to drive a model and to measure it.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use gguf_parser::writer::{GgufWriter, OwnedArray, OwnedValue};
use gguf_parser::{Gguf, Value, ValueType};

/// The byte tokens, of which every text can be made.
const N_BYTE_TOKENS: usize = 256;

/// Token types of the metadata (`enum llama_token_type`).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

const CONTROL_TOKENS: [&str; 14] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];
const USER_TOKENS: [&str; 8] = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// ChatML with a default system turn.
const CHAT_TEMPLATE: &str = "{%- if messages[0]['role'] != 'system' -%}\
    {{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif -%}\
    {%- for message in messages -%}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor -%}\
    {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}";

/// Where the vocabulary comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A GGUF file; a vocabulary-only one will do.
    File(PathBuf),
    /// Made up, with so many ordinary tokens.
    Synthetic(usize),
}

impl FromStr for Source {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(count) = text.strip_prefix("synthetic") else { return Ok(Self::File(text.into())) };
        let count = count.strip_prefix(':').with_context(|| format!("{text:?}: expected synthetic:N"))?;
        let n: usize = count.parse().with_context(|| format!("{text:?}: {count:?} is no number"))?;
        let (least, most) = (N_BYTE_TOKENS, N_BYTE_TOKENS + merges().count());
        ensure!((least..=most).contains(&n), "{text:?}: expected synthetic:{least} to synthetic:{most}");
        Ok(Self::Synthetic(n))
    }
}

impl Source {
    /// Adds the tokenizer to the metadata; returns its number of tokens.
    pub(super) fn write(&self, n_vocab: usize, writer: &mut GgufWriter) -> Result<usize> {
        match self {
            Self::File(path) => {
                let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
                copy(&bytes, writer).with_context(|| format!("taking the tokenizer of {}", path.display()))
            }
            Self::Synthetic(n) => synthetic(*n, n_vocab, writer),
        }
    }
}

fn copy(file: &[u8], writer: &mut GgufWriter) -> Result<usize> {
    let gguf = Gguf::parse(file)?;
    let n_vocab = gguf.metadata.require_array("tokenizer.ggml.tokens")?.len();
    for (key, value) in gguf.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        writer.kv(key, owned(key, value)?);
    }
    Ok(n_vocab)
}

/// The types that tokenizers' metadata have.
fn owned(key: &str, value: &Value<'_>) -> Result<OwnedValue> {
    Ok(match value {
        Value::U32(n) => (*n).into(),
        Value::I32(n) => (*n).into(),
        Value::U64(n) => (*n).into(),
        Value::F32(x) => (*x).into(),
        Value::Bool(yes) => (*yes).into(),
        Value::String(text) => (*text).into(),
        Value::Array(array) => OwnedValue::Array(match array.elem_type() {
            ValueType::String => OwnedArray::String(array.strings()?.map(str::to_owned).collect()),
            ValueType::I32 => OwnedArray::I32(array.i32s()?.collect()),
            ValueType::U32 => OwnedArray::U32(array.u32s()?.collect()),
            ValueType::F32 => OwnedArray::F32(array.f32s()?.collect()),
            ValueType::U8 => OwnedArray::U8(array.values().filter_map(|v| v.as_integer()?.try_into().ok()).collect()),
            other => bail!("{key}: an array of {other} is not expected in a tokenizer"),
        }),
        other => bail!("{key}: a value of type {} is not expected in a tokenizer", other.value_type()),
    })
}

fn synthetic(n: usize, n_vocab: usize, writer: &mut GgufWriter) -> Result<usize> {
    let n_used = n + CONTROL_TOKENS.len() + USER_TOKENS.len();
    ensure!(n_vocab >= n_used, "--n-vocab {n_vocab} is less than {n} ordinary and {} special tokens", n_used - n);
    let merges: Vec<_> = merges().take(n - N_BYTE_TOKENS).collect();
    let mut tokens = byte_tokens();
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let mut types = vec![NORMAL; n];
    for (names, ty) in [(&CONTROL_TOKENS[..], CONTROL), (&USER_TOKENS[..], USER_DEFINED)] {
        tokens.extend(names.iter().map(|name| (*name).to_owned()));
        types.resize(tokens.len(), ty);
    }
    tokens.extend((n_used..n_vocab).map(|id| format!("[PAD{id}]")));
    types.resize(n_vocab, UNUSED);
    let merges: Vec<_> = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    let end_of_text = n as u32;
    writer
        .kv("tokenizer.ggml.model", "gpt2")
        .kv("tokenizer.ggml.pre", "qwen2")
        .kv("tokenizer.ggml.tokens", tokens)
        .kv("tokenizer.ggml.token_type", types)
        .kv("tokenizer.ggml.merges", merges)
        .kv("tokenizer.ggml.eos_token_id", end_of_text + 2)
        .kv("tokenizer.ggml.padding_token_id", end_of_text)
        .kv("tokenizer.ggml.bos_token_id", end_of_text)
        .kv("tokenizer.ggml.add_bos_token", false)
        .kv("tokenizer.chat_template", CHAT_TEMPLATE);
    Ok(n_vocab)
}

/// The printable stand-ins of the 256 bytes, printable ones first, as GPT-2 ordered them.
fn byte_tokens() -> Vec<String> {
    let printable = || (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable().any(|p| p == *byte));
    let stand_ins = others.zip('\u{100}'..).map(|(_, stand_in)| stand_in);
    printable().map(char::from).chain(stand_ins).map(String::from).collect()
}

/// What may be merged, most useful first: a space and a letter, pairs of letters, a space and a pair, two pairs. Each
/// part is a byte token or the outcome of an earlier merge, and no two merges have the same outcome.
fn merges() -> impl Iterator<Item = (String, String)> {
    // English letters by frequency, so that an early pair is a likely one; U+0120 stands for the space.
    let letters: Vec<String> = "etaoinshrdlcumwfgypbvkjxqz".chars().map(String::from).collect();
    let space = vec!["\u{120}".to_owned()];
    let pairs: Vec<String> = diagonal(&letters, &letters).map(|(a, b)| a + &b).collect();
    let spaced: Vec<_> = diagonal(&space, &letters).collect();
    let spaced_letters: Vec<String> = spaced.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let two = diagonal(&letters, &letters).collect::<Vec<_>>();
    let three = diagonal(&spaced_letters, &pairs).collect::<Vec<_>>();
    spaced.into_iter().chain(two).chain(three).chain(diagonal(&pairs, &pairs).collect::<Vec<_>>())
}

/// Every pair of the two lists, in the order of the sum of places.
fn diagonal<'a>(left: &'a [String], right: &'a [String]) -> impl Iterator<Item = (String, String)> + 'a {
    let sums = 0..(left.len() + right.len()).saturating_sub(1);
    sums.flat_map(move |sum| {
        let first = sum.saturating_sub(right.len() - 1);
        (first..=sum.min(left.len() - 1)).map(move |i| (left[i].clone(), right[sum - i].clone()))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_merge_joins_tokens_that_are_there_and_makes_a_new_one() {
        let mut known: HashSet<String> = byte_tokens().into_iter().collect();
        assert_eq!(known.len(), N_BYTE_TOKENS);
        for (left, right) in merges() {
            assert!(known.contains(&left) && known.contains(&right), "{left} {right}");
            assert!(known.insert(format!("{left}{right}")), "{left} {right} makes nothing new");
        }
        assert!(known.len() > 151_643);
    }

    #[test]
    fn reads_where_the_vocabulary_comes_from() {
        assert_eq!("synthetic:1000".parse::<Source>().unwrap(), Source::Synthetic(1000));
        assert_eq!("v.gguf".parse::<Source>().unwrap(), Source::File("v.gguf".into()));
        for bad in ["synthetic", "synthetic:", "synthetic:x", "synthetic:255", "synthetic:999999999"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }
}
