//! How much GPU memory an executor takes, before there is one.

use gguf_parser::Gguf;

use super::arena::Plan;
use super::buffers::{self, Sizes, Widths};
use super::step::Layout;
use super::{CudaError, bucket};
use crate::{BLOCK_TOKENS, ModelSpec};

/// Bytes of GPU memory that are left to the driver for graphs and kernels' code, and for rounding each allocation up, when the fit
/// is checked. The context has been made before free memory is looked at.
const RESERVED_BYTES: u64 = 256 << 20;

/// What a [`CudaExecutor`](super::CudaExecutor) takes of a GPU's memory beside its KV pool, to the byte but for an allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// Bytes of weights, with the padding that kernels read them by.
    pub weight_bytes: u64,
    /// Bytes that steps work in: activations, logits, tables, inputs.
    pub scratch_bytes: u64,
    /// The allowance: what the driver may take for graphs, for kernels' code and for rounding up.
    pub reserved_bytes: u64,
}

impl MemoryNeeds {
    /// Of an executor with room for `max_seqs` sequences of `n_ctx` tokens in steps of `max_batch_tokens` rows. Touches no GPU.
    ///
    /// # Errors
    /// [`CudaError`]: a tensor without kernels, heads that are too large.
    pub fn of(
        spec: &ModelSpec,
        gguf: &Gguf<'_>,
        n_ctx: usize,
        max_seqs: usize,
        max_batch_tokens: usize,
    ) -> Result<Self, CudaError> {
        let plan = Plan::new(spec, gguf)?;
        let widths = Widths::new(spec, buffers::dequantized_of(&plan, spec))?;
        let (sizes, layout) = sizes(spec, &widths, n_ctx, max_seqs, max_batch_tokens);
        Ok(Self::new(&plan, &widths, &sizes, &layout))
    }

    pub(super) fn new(plan: &Plan, widths: &Widths, sizes: &Sizes, layout: &Layout) -> Self {
        Self {
            weight_bytes: (plan.arena_bytes + plan.n_vector_values * 4) as u64,
            scratch_bytes: sizes.n_bytes(widths) + (layout.len() * 4) as u64,
            reserved_bytes: RESERVED_BYTES,
        }
    }

    /// All of them.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.scratch_bytes + self.reserved_bytes
    }
}

/// How much a step works in, and how it is laid out.
pub(super) fn sizes(
    spec: &ModelSpec,
    widths: &Widths,
    n_ctx: usize,
    max_seqs: usize,
    max_batch_tokens: usize,
) -> (Sizes, Layout) {
    let n_slots = bucket(max_seqs);
    let max_table = max_seqs * n_ctx.div_ceil(BLOCK_TOKENS);
    let sizes = Sizes::new(spec, widths, max_batch_tokens, n_slots, max_seqs, n_ctx);
    (sizes, Layout::new(max_batch_tokens, max_seqs, n_slots, max_table, spec.n_vocab))
}

#[cfg(test)]
mod tests {
    use gguf_parser::TensorType;
    use test_support::tiny_model::TinyModel;

    use super::*;

    #[test]
    fn needs_are_the_files_weights_and_little_more() {
        let file = TinyModel::default().build();
        let gguf = Gguf::parse(&file).unwrap();
        let spec = ModelSpec::from_gguf(&gguf).unwrap();
        let needs = |max_seqs, rows| MemoryNeeds::of(&spec, &gguf, 128, max_seqs, rows).unwrap();
        let in_file: u64 = gguf.tensors.iter().map(|tensor| tensor.n_bytes).sum();
        let padding = needs(1, 1).weight_bytes.checked_sub(in_file).unwrap();
        assert!(padding < 256 * gguf.tensors.len() as u64, "{padding}");
        // Every row has its activations, every sequence its logits, choices and history.
        let of_rows = needs(8, 2048).scratch_bytes - needs(8, 1024).scratch_bytes;
        assert_eq!(of_rows % 1024, 0);
        assert!(of_rows / 1024 > (spec.d_model * 4 + spec.d_ff * 2) as u64, "{of_rows}");
        let of_seqs = needs(16, 2048).scratch_bytes - needs(8, 2048).scratch_bytes;
        assert!(of_seqs / 8 > (2 * spec.n_vocab * 4 + 128 * 4) as u64, "{of_seqs}");
        assert_eq!(needs(8, 8).reserved_bytes, RESERVED_BYTES);
    }
    /// A model whose matrices are all of one type, of zeros.
    fn of_type(ty: TensorType) -> Vec<u8> {
        let change = |_: &str, shape: &[u64], _: &[u8]| {
            let n_values: u64 = shape.iter().product();
            (shape.len() == 2).then(|| (ty.id(), vec![0; (n_values / ty.block_len() * ty.block_bytes()) as usize]))
        };
        TinyModel { d_model: 256, d_ff: 512, ..TinyModel::default() }.builder().change_tensors(change).build()
    }

    #[test]
    fn quantised_matrices_need_what_their_planes_take_and_nothing_twice() {
        for &format in quant::Format::ALL {
            let Some(layout) = quant::planes::Layout::of(format) else { continue };
            let ty = *TensorType::ALL.iter().find(|ty| ty.name() == format.name()).unwrap();
            let file = of_type(ty);
            let gguf = Gguf::parse(&file).unwrap();
            let spec = ModelSpec::from_gguf(&gguf).unwrap();
            let of_matrices = gguf.tensors.iter().filter(|tensor| tensor.shape.len() == 2);
            let planes: usize = of_matrices
                .map(|tensor| layout.n_bytes(tensor.shape.n_elements() as usize).iter().sum::<usize>())
                .sum();
            let vectors = gguf.tensors.iter().filter(|tensor| tensor.shape.len() == 1);
            let vectors: u64 = vectors.map(|tensor| tensor.shape.n_elements() * 4).sum();
            let needs = MemoryNeeds::of(&spec, &gguf, 128, 1, 1).unwrap().weight_bytes;
            let padding = needs.checked_sub(planes as u64 + vectors).unwrap();
            assert!(padding < 4 * 256 * gguf.tensors.len() as u64, "{format:?}: {padding}");
        }
    }

    #[test]
    fn a_matrix_without_kernels_is_refused_by_name_and_type() {
        let in_tq1_0 = |name: &str, _: &[u64], data: &[u8]| {
            let n_values = data.len() / size_of::<half::f16>();
            let ty = TensorType::TQ1_0;
            let n_bytes = n_values as u64 / ty.block_len() * ty.block_bytes();
            (name == "blk.1.ffn_up.weight").then(|| (ty.id(), vec![0; n_bytes as usize]))
        };
        let model = TinyModel { d_model: 256, d_ff: 512, ..TinyModel::default() };
        let file = model.builder().change_tensors(in_tq1_0).build();
        let gguf = Gguf::parse(&file).unwrap();
        let spec = ModelSpec::from_gguf(&gguf).unwrap();
        let error = MemoryNeeds::of(&spec, &gguf, 128, 1, 1).unwrap_err().to_string();
        assert_eq!(error, r#"tensor "blk.1.ffn_up.weight": expected a type with kernels for the GPU, got TQ1_0"#);
    }
}
