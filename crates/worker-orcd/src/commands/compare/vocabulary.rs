//! Whether two files have one vocabulary, so that a text has the same ids in both.

use gguf_parser::{Gguf, Value};

/// The metadata that a text's ids follow from.
const KEYS: &[&str] = &[
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.add_space_prefix",
];

/// The first thing in which they differ; `None` where they do not.
pub(crate) fn first_difference(a: &Gguf<'_>, b: &Gguf<'_>) -> Option<String> {
    KEYS.iter().find_map(|key| match (a.metadata.get(key), b.metadata.get(key)) {
        (None, None) => None,
        (Some(a), Some(b)) => difference(a, b).map(|what| format!("key {key:?}: {what}")),
        (Some(a), None) => Some(format!("key {key:?}: is {a} in the first, absent in the second")),
        (None, Some(b)) => Some(format!("key {key:?}: is absent in the first, {b} in the second")),
    })
}

fn difference(a: &Value<'_>, b: &Value<'_>) -> Option<String> {
    if a == b {
        return None;
    }
    let (Value::Array(all_a), Value::Array(all_b)) = (a, b) else {
        return Some(format!("is {a} in the first, {b} in the second"));
    };
    let pairs = all_a.values().zip(all_b.values()).enumerate();
    let differing = pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(i, (a, b))| format!("element {i} is {a} in the first, {b} in the second"));
    let (n_a, n_b) = (all_a.len(), all_b.len());
    let lengths = (n_a != n_b).then(|| format!("has {n_a} elements in the first, {n_b} in the second"));
    differing.chain(lengths).next()
}

#[cfg(test)]
mod tests {
    use gguf_parser::writer::GgufWriter;

    use super::*;

    fn file(tokens: &[&str], adds_bos: Option<bool>) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        writer.kv("tokenizer.ggml.model", "gpt2").kv("tokenizer.ggml.tokens", tokens.to_vec());
        writer.kv("general.name", format!("{tokens:?}"));
        if let Some(adds_bos) = adds_bos {
            writer.kv("tokenizer.ggml.add_bos_token", adds_bos);
        }
        writer.finish().unwrap().bytes
    }

    fn difference_of(tokens: &[&str], adds_bos: Option<bool>) -> Option<String> {
        let (a, b) = (file(&["a", "b", "c"], None), file(tokens, adds_bos));
        first_difference(&Gguf::parse(&a).unwrap(), &Gguf::parse(&b).unwrap())
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(difference_of(&["a", "b", "c"], None), None);
        assert_eq!(
            difference_of(&["a", "x", "y"], None).unwrap(),
            r#"key "tokenizer.ggml.tokens": element 1 is "b" in the first, "x" in the second"#
        );
        assert_eq!(
            difference_of(&["a", "b", "c", "d"], None).unwrap(),
            r#"key "tokenizer.ggml.tokens": has 3 elements in the first, 4 in the second"#
        );
        assert_eq!(
            difference_of(&["a", "b", "c"], Some(true)).unwrap(),
            r#"key "tokenizer.ggml.add_bos_token": is absent in the first, true in the second"#
        );
    }
}
