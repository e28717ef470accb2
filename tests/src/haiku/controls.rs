//! Damaged copies of a model: the check against the golden file must refuse the worker that serves them.
//!
//! Without such controls a check that never fails looks like a worker that is always right. Both damages are ones that
//! other workers had as bugs, and both leave the built-in model writing right haiku.

use std::path::Path;

use anyhow::{Context, Result};
use gguf_parser::{Gguf, TensorInfo};

/// A damage to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    /// Every bias of q, k and v is zero.
    BiasesZeroed,
    /// The rows of the first two KV heads of one layer's `attn_k.weight` have changed places.
    KvHeadsSwapped,
}

impl Damage {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::BiasesZeroed, Self::KvHeadsSwapped];

    /// For people.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::BiasesZeroed => "all q/k/v biases zeroed",
            Self::KvHeadsSwapped => "two KV heads of one attn_k swapped",
        }
    }

    /// For file names.
    pub(super) fn slug(self) -> &'static str {
        match self {
            Self::BiasesZeroed => "biases-zeroed",
            Self::KvHeadsSwapped => "kv-heads-swapped",
        }
    }
}

/// Writes a copy of the model at `from`, damaged, to `to`. Gives `false`, and writes nothing, where the model has
/// nothing to damage in this way (no biases, or a single KV head).
///
/// # Errors
/// When a file cannot be read or written, or `from` is no GGUF file.
pub(super) fn write_damaged_copy(from: &Path, to: &Path, damage: Damage) -> Result<bool> {
    let mut bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let gguf = Gguf::parse(&bytes).with_context(|| format!("reading {}", from.display()))?;
    let edits = match damage {
        Damage::BiasesZeroed => zero_biases(&gguf),
        Damage::KvHeadsSwapped => swap_kv_heads(&gguf)?,
    };
    for edit in &edits {
        edit.apply(&mut bytes);
    }
    if !edits.is_empty() {
        std::fs::write(to, &bytes).with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(!edits.is_empty())
}

/// A change of a file's bytes.
#[derive(Debug, PartialEq, Eq)]
enum Edit {
    Zero { at: usize, len: usize },
    Swap { a: usize, b: usize, len: usize },
}

impl Edit {
    fn apply(&self, bytes: &mut [u8]) {
        match *self {
            Self::Zero { at, len } => bytes[at..at + len].fill(0),
            Self::Swap { a, b, len } => {
                let (head, tail) = bytes.split_at_mut(b);
                head[a..a + len].swap_with_slice(&mut tail[..len]);
            }
        }
    }
}

fn zero_biases(gguf: &Gguf<'_>) -> Vec<Edit> {
    let is_bias = |tensor: &&TensorInfo<'_>| {
        ["attn_q.bias", "attn_k.bias", "attn_v.bias"].iter().any(|name| tensor.name.ends_with(name))
    };
    // All bits zero is the number zero in every type a bias may have.
    let zero = |tensor: &TensorInfo<'_>| Edit::Zero { at: tensor.offset as usize, len: tensor.n_bytes as usize };
    gguf.tensors.iter().filter(is_bias).map(zero).collect()
}

fn swap_kv_heads(gguf: &Gguf<'_>) -> Result<Vec<Edit>> {
    let architecture = gguf.metadata.require_str("general.architecture")?;
    let n_heads = gguf.metadata.require_u32(&format!("{architecture}.attention.head_count"))?;
    let n_kv_heads = gguf.metadata.u32(&format!("{architecture}.attention.head_count_kv"))?.unwrap_or(n_heads);
    let Some(tensor) = gguf.tensor("blk.0.attn_k.weight").filter(|_| n_kv_heads >= 2) else { return Ok(Vec::new()) };
    // Rows of one head lie together, so a head is an equal share of the tensor's bytes.
    let head_bytes = tensor.n_bytes as usize / n_kv_heads as usize;
    let a = tensor.offset as usize;
    Ok(vec![Edit::Swap { a, b: a + head_bytes, len: head_bytes }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_exactly_the_bytes_that_they_name() {
        let mut bytes = [0, 1, 2, 3, 4, 5, 6, 7];
        Edit::Swap { a: 1, b: 4, len: 2 }.apply(&mut bytes);
        assert_eq!(bytes, [0, 4, 5, 3, 1, 2, 6, 7]);
        Edit::Zero { at: 5, len: 2 }.apply(&mut bytes);
        assert_eq!(bytes, [0, 4, 5, 3, 1, 0, 0, 7]);
    }
}
