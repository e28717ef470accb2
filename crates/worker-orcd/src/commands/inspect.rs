//! `inspect`: what is in a GGUF file, and whether this worker can serve it.

use std::collections::BTreeMap;

use gguf_parser::{Gguf, Value};
use serde_json::{Map, Number, json};
use weight_loader::ModelFile;

use crate::cli::InspectArgs;
use crate::verdict::Verdict;
use crate::{memory, output};

/// Longer arrays (vocabularies) appear in JSON by their length alone.
const MAX_JSON_ELEMENTS: usize = 64;

/// Runs the command. That a file cannot be served is an answer, not an error; that it is no GGUF file is one.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let file = ModelFile::open(&args.file)?;
    let gguf = file.gguf()?;
    let verdict = Verdict::of(&gguf);
    if args.json {
        return output::write(&(serde_json::to_string_pretty(&as_json(&file, &gguf, &verdict))? + "\n"));
    }
    output::write(&format!("{}\n{}\n{verdict}", gguf.listing(), weights_line(&gguf)))
}

/// `weights: 1.26 GB: 170 F16, 121 F32`.
fn weights_line(gguf: &Gguf<'_>) -> String {
    let kinds: Vec<String> = by_type(gguf).iter().map(|(name, (n, _))| format!("{n} {name}")).collect();
    let n_bytes = gguf.tensors.iter().fold(0u64, |sum, t| sum.saturating_add(t.n_bytes));
    match kinds.is_empty() {
        true => "weights: none".to_owned(),
        false => format!("weights: {}: {}", memory::shown(n_bytes), kinds.join(", ")),
    }
}

/// Tensors and bytes of each type.
fn by_type(gguf: &Gguf<'_>) -> BTreeMap<&'static str, (u64, u64)> {
    let mut kinds = BTreeMap::new();
    for tensor in &gguf.tensors {
        let (n, n_bytes) = kinds.entry(tensor.ty.name()).or_insert((0u64, 0u64));
        *n += 1;
        *n_bytes = n_bytes.saturating_add(tensor.n_bytes);
    }
    kinds
}

fn as_json(file: &ModelFile, gguf: &Gguf<'_>, verdict: &Verdict) -> serde_json::Value {
    let metadata: Map<_, _> = gguf.metadata.iter().map(|(key, value)| (key.to_owned(), typed(value))).collect();
    let tensors: Vec<_> = gguf
        .tensors
        .iter()
        .map(|t| json!({"name": t.name, "type": t.ty.name(), "shape": t.shape[..], "offset": t.offset, "bytes": t.n_bytes}))
        .collect();
    let types: Map<_, _> = by_type(gguf)
        .into_iter()
        .map(|(name, (n, n_bytes))| (name.to_owned(), json!({"tensors": n, "bytes": n_bytes})))
        .collect();
    json!({
        "file": file.name(),
        "file_bytes": file.bytes().len(),
        "version": gguf.version,
        "alignment": gguf.alignment,
        "data_offset": gguf.data_offset,
        "metadata": metadata,
        "tensor_types": types,
        "tensors": tensors,
        "verdict": verdict.as_json(),
    })
}

/// A metadata value with its type.
fn typed(value: &Value<'_>) -> serde_json::Value {
    match value {
        Value::Array(array) if array.len() > MAX_JSON_ELEMENTS => {
            json!({"type": "array", "element_type": array.elem_type().name(), "len": array.len()})
        }
        Value::Array(array) => {
            let values: Vec<_> = array.values().map(|v| plain(&v)).collect();
            json!({"type": "array", "element_type": array.elem_type().name(), "len": array.len(), "value": values})
        }
        _ => json!({"type": value.value_type().name(), "value": plain(value)}),
    }
}

/// A metadata value alone. JSON has no infinities and no NaN: they are `null`.
fn plain(value: &Value<'_>) -> serde_json::Value {
    match value {
        Value::String(text) => json!(text),
        Value::Bool(b) => json!(b),
        // Shortest digits that read back as the same f32, rather than those of its f64 neighbour.
        Value::F32(x) => x.to_string().parse().ok().and_then(Number::from_f64).map_or(json!(null), Into::into),
        Value::F64(x) => Number::from_f64(*x).map_or(json!(null), Into::into),
        Value::Array(array) if array.len() > MAX_JSON_ELEMENTS => json!({"len": array.len()}),
        Value::Array(array) => array.values().map(|v| plain(&v)).collect(),
        integer => match integer.as_integer().map(|n| (u64::try_from(n), i64::try_from(n))) {
            Some((Ok(n), _)) => json!(n),
            Some((_, Ok(n))) => json!(n),
            _ => json!(null),
        },
    }
}
