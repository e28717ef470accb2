//! What was made: tensors and bytes of each type, and how much smaller the file is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::Job;
use crate::cli::QuantizeArgs;
use crate::memory;

/// Figures of a file that was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    /// Tensors and bytes of each type.
    types: BTreeMap<&'static str, (u64, u64)>,
    n_elements: u64,
    n_fallbacks: usize,
    before: Size,
    after: Size,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Size {
    file_bytes: u64,
    tensor_bytes: u64,
}

impl Summary {
    /// Of a file of `before` bytes and the one of `after` bytes that was made of it.
    pub(crate) fn of(jobs: &[Job<'_>], before: u64, after: u64) -> Self {
        let mut summary = Self {
            types: BTreeMap::new(),
            n_elements: 0,
            n_fallbacks: jobs.iter().filter(|job| job.chosen.is_fallback).count(),
            before: Size { file_bytes: before, tensor_bytes: 0 },
            after: Size { file_bytes: after, tensor_bytes: 0 },
        };
        for job in jobs {
            let (ty, n) = (job.chosen.ty, job.tensor.shape.n_elements());
            let n_bytes = n / ty.block_len() * ty.block_bytes();
            let (n_tensors, type_bytes) = summary.types.entry(ty.name()).or_default();
            *n_tensors += 1;
            *type_bytes += n_bytes;
            summary.n_elements += n;
            summary.before.tensor_bytes += job.tensor.n_bytes;
            summary.after.tensor_bytes += n_bytes;
        }
        summary
    }

    /// For people.
    pub(crate) fn shown(&self, args: &QuantizeArgs, took: Duration) -> String {
        let mut text = format!("{:<10}{:>8}{:>12}\n", "type", "tensors", "bytes");
        for (name, (n_tensors, n_bytes)) in &self.types {
            let _ = writeln!(text, "{name:<10}{n_tensors:>8}{:>12}", memory::shown(*n_bytes));
        }
        text.push('\n');
        for (what, path, size) in [("read", &args.input, self.before), ("wrote", &args.output, self.after)] {
            let bits = size.tensor_bytes as f64 * 8.0 / self.n_elements.max(1) as f64;
            let bytes = memory::shown(size.file_bytes);
            let _ = writeln!(text, "{what:<10}{bytes:>9}, {bits:.2} bits per weight: {}", path.display());
        }
        let share = self.after.file_bytes as f64 / self.before.file_bytes.max(1) as f64 * 100.0;
        let _ = writeln!(text, "          {share:.0} % of the size, in {:.2} s", took.as_secs_f64());
        if self.n_fallbacks > 0 {
            let n = self.n_fallbacks;
            let _ = writeln!(
                text,
                "          {n} matrices have rows that its blocks do not fit, and a type of smaller blocks"
            );
        }
        text
    }
}
