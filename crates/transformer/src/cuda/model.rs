//! The weights as the forward pass names them, and what is computed from them once.

use cuda_sys::{Device, DeviceBuffer, Stream, sys};
use gguf_parser::Gguf;
use quant::Format;
use weight_loader::ModelFile;

use super::CudaError;
use super::arena::{MatrixAt, Plan};
use super::load::{self, Weights};
use crate::ModelSpec;
use crate::spec::{USABLE_ROPE_FACTORS, rope_frequencies, unusable_rope_factor};

/// Kernels store activations as F16 times a power of two that keeps them below 2^15: a factor of two under F16's range, for
/// the rounding errors of the bounds.
const TARGET_EXPONENT: i32 = 14;
/// What a bound on the feed-forward's activations is raised by: it is computed in F32, from weights that kernels round.
const FFN_BOUND_MARGIN: f32 = 1.02;

/// A norm's weight, and the power of two that its output is stored times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    /// Where the weight begins among the vectors.
    pub(super) weight: usize,
    /// At most `2^14 / max |weight| sqrt(d_model)`, because a normalised vector's 2-norm is `sqrt(d_model)`.
    pub(super) scale: f32,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attn_norm: Norm,
    /// q, k and v. `[d_q, d_model]`, `[d_kv, d_model]` twice
    pub(super) qkv: [MatrixAt; 3],
    /// Where the biases of q, k and v begin among the vectors; they follow each other.
    pub(super) qkv_bias: Option<usize>,
    /// `[d_model, d_q]`
    pub(super) attn_output: MatrixAt,
    pub(super) ffn_norm: Norm,
    /// `[d_ff, d_model]`
    pub(super) gate: MatrixAt,
    /// `[d_ff, d_model]`
    pub(super) up: MatrixAt,
    /// `[d_model, d_ff]`
    pub(super) down: MatrixAt,
    /// `max over i of |gate row i| |up row i|`: times the square of its input's 2-norm it bounds `silu(gate) * up`.
    pub(super) ffn_bound: f32,
}

/// A model in device memory.
pub(super) struct Model {
    pub(super) arena: DeviceBuffer<u8>,
    pub(super) vectors: DeviceBuffer<f32>,
    pub(super) token_embd: MatrixAt,
    pub(super) layers: Vec<Layer>,
    pub(super) output_norm: Norm,
    /// `[n_vocab, d_model]`
    pub(super) output: MatrixAt,
    /// `[n_dims / 2]`: radians a position.
    pub(super) inv_freq: Vec<f64>,
}

impl Model {
    /// Loads a file that has been checked against `spec`.
    pub(super) fn load(
        spec: &ModelSpec,
        device: &Device,
        stream: &Stream,
        file: &ModelFile,
        gguf: &Gguf<'_>,
        plan: Plan,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<Self, CudaError> {
        let Weights { arena, vectors, host_vectors } = load::load(device, stream, file, gguf, &plan, progress)?;
        let finder = Finder { plan: &plan, host_vectors: &host_vectors, d_model: spec.d_model };
        let mut model = Self {
            token_embd: finder.matrix("token_embd.weight")?,
            layers: (0..spec.n_layers).map(|i| finder.layer(spec, i)).collect::<Result<_, _>>()?,
            output_norm: finder.norm("output_norm.weight")?,
            output: finder.matrix(if spec.tied_output { "token_embd.weight" } else { "output.weight" })?,
            inv_freq: finder.inv_freq(spec)?,
            arena,
            vectors,
        };
        model.measure(device, stream)?;
        model.check_sample(file, gguf, stream)?;
        Ok(model)
    }

    /// Fills in what depends on the matrices' values: their scales, and the bounds on the feed-forward.
    fn measure(&mut self, device: &Device, stream: &Stream) -> Result<(), CudaError> {
        let arena = &self.arena;
        let scale = |matrix: &mut MatrixAt| -> Result<(), CudaError> {
            if matrix.format != Format::F16 {
                let stats = RowStats::of(matrix, arena, device, stream)?;
                matrix.scale = scale_below(stats.largest.iter().fold(0.0, |a, &b| a.max(b)));
            }
            Ok(())
        };
        for matrix in self.layers.iter_mut().flat_map(Layer::matrices_mut).chain([&mut self.output]) {
            scale(matrix)?;
        }
        // One look at all gate and up rows: enqueued together, read back once.
        let d_ff = self.layers.first().map_or(0, |layer| layer.gate.n_rows);
        let mut norms = device.alloc_zeroed::<f32>(self.layers.len() * 2 * d_ff)?;
        let mut largest = device.alloc_zeroed::<f32>(d_ff)?;
        for (i, layer) in self.layers.iter().enumerate() {
            for (j, matrix) in [&layer.gate, &layer.up].into_iter().enumerate() {
                let norm = norms.slice_mut((2 * i + j) * d_ff..(2 * i + j + 1) * d_ff);
                row_stats(matrix, arena, largest.as_mut_slice(), norm, stream)?;
            }
        }
        let norms = norms.to_vec(stream)?;
        for (layer, norms) in self.layers.iter_mut().zip(norms.chunks_exact(2 * d_ff)) {
            let (gate, up) = norms.split_at(d_ff);
            let bound = gate.iter().zip(up).map(|(g, u)| g * u).fold(0.0, f32::max) * FFN_BOUND_MARGIN;
            // Weights that are all zero, or not finite, bound nothing; the smallest number keeps the kernel's arithmetic.
            layer.ffn_bound = if bound.is_finite() && bound > 0.0 { bound } else { f32::MIN_POSITIVE };
        }
        Ok(())
    }

    /// Reads some tensors back and compares them with the file.
    fn check_sample(&self, file: &ModelFile, gguf: &Gguf<'_>, stream: &Stream) -> Result<(), CudaError> {
        load::check_read_back(file, gguf, "token_embd.weight", &self.token_embd, &self.arena, stream)?;
        for i in [0, self.layers.len() - 1] {
            for (leaf, matrix) in self.layers[i].matrices() {
                load::check_read_back(file, gguf, &format!("blk.{i}.{leaf}.weight"), matrix, &self.arena, stream)?;
            }
        }
        Ok(())
    }

    /// Every matrix with its name in the file.
    pub(super) fn matrices(&self) -> impl Iterator<Item = (String, &MatrixAt)> {
        let layers = self.layers.iter().enumerate().flat_map(|(i, layer)| {
            layer.matrices().into_iter().map(move |(leaf, matrix)| (format!("blk.{i}.{leaf}.weight"), matrix))
        });
        let output = (self.output.values != self.token_embd.values).then(|| ("output.weight".to_owned(), &self.output));
        [("token_embd.weight".to_owned(), &self.token_embd)].into_iter().chain(output).chain(layers)
    }
}

impl Layer {
    fn matrices(&self) -> [(&'static str, &MatrixAt); 7] {
        let [q, k, v] = &self.qkv;
        [
            ("attn_q", q),
            ("attn_k", k),
            ("attn_v", v),
            ("attn_output", &self.attn_output),
            ("ffn_gate", &self.gate),
            ("ffn_up", &self.up),
            ("ffn_down", &self.down),
        ]
    }

    fn matrices_mut(&mut self) -> [&mut MatrixAt; 7] {
        let [q, k, v] = &mut self.qkv;
        [q, k, v, &mut self.attn_output, &mut self.gate, &mut self.up, &mut self.down]
    }
}

/// The largest power of two by which values up to `largest` stay below 2^15.
fn scale_below(largest: f32) -> f32 {
    if !largest.is_normal() {
        return 1.0;
    }
    // largest < 2^exponent
    let exponent = largest.log2().floor() as i32 + 1;
    2f32.powi((TARGET_EXPONENT - exponent).clamp(-120, 120))
}

struct RowStats {
    largest: Vec<f32>,
}

impl RowStats {
    fn of(matrix: &MatrixAt, arena: &DeviceBuffer<u8>, device: &Device, stream: &Stream) -> Result<Self, CudaError> {
        let mut largest = device.alloc_zeroed::<f32>(matrix.n_rows)?;
        let mut norm = device.alloc_zeroed::<f32>(matrix.n_rows)?;
        row_stats(matrix, arena, largest.as_mut_slice(), norm.as_mut_slice(), stream)?;
        Ok(Self { largest: largest.to_vec(stream)? })
    }
}

fn row_stats(
    matrix: &MatrixAt,
    arena: &DeviceBuffer<u8>,
    mut largest: cuda_sys::DeviceSliceMut<'_, f32>,
    mut norm: cuda_sys::DeviceSliceMut<'_, f32>,
    stream: &Stream,
) -> Result<(), CudaError> {
    assert!(largest.len() >= matrix.n_rows && norm.len() >= matrix.n_rows, "a figure for every row");
    let args =
        sys::orcd_row_stats_args { w: matrix.raw(arena), largest: largest.as_mut_ptr(), norm: norm.as_mut_ptr() };
    // SAFETY: the outputs hold a value for each row, as just checked; memory is freed only after the stream's work.
    let status = unsafe { sys::orcd_row_stats(&args, stream.raw()) };
    Ok(stream.launched("orcd_row_stats", status)?)
}

struct Finder<'a> {
    plan: &'a Plan,
    host_vectors: &'a [f32],
    d_model: usize,
}

impl Finder<'_> {
    fn missing(name: &str) -> CudaError {
        CudaError::Tensor { name: name.to_owned(), expected: "to be in the file".into(), got: "none".into() }
    }

    fn matrix(&self, name: &str) -> Result<MatrixAt, CudaError> {
        self.plan.matrices.get(name).cloned().ok_or_else(|| Self::missing(name))
    }

    fn vector(&self, name: &str) -> Result<(usize, &[f32]), CudaError> {
        let &(start, n) = self.plan.vectors.get(name).ok_or_else(|| Self::missing(name))?;
        Ok((start, &self.host_vectors[start..start + n]))
    }

    fn norm(&self, name: &str) -> Result<Norm, CudaError> {
        let (weight, values) = self.vector(name)?;
        let largest = values.iter().fold(0.0f32, |a, &b| a.max(b.abs()));
        Ok(Norm { weight, scale: scale_below(largest * (self.d_model as f32).sqrt()) })
    }

    fn layer(&self, spec: &ModelSpec, i: usize) -> Result<Layer, CudaError> {
        let name = |leaf: &str| format!("blk.{i}.{leaf}");
        let weight = |leaf: &str| self.matrix(&name(&format!("{leaf}.weight")));
        let bias = |leaf: &str| self.vector(&name(&format!("{leaf}.bias"))).map(|(start, _)| start);
        Ok(Layer {
            attn_norm: self.norm(&name("attn_norm.weight"))?,
            qkv: [weight("attn_q")?, weight("attn_k")?, weight("attn_v")?],
            qkv_bias: spec.qkv_bias.then(|| bias("attn_q")).transpose()?,
            attn_output: weight("attn_output")?,
            ffn_norm: self.norm(&name("ffn_norm.weight"))?,
            gate: weight("ffn_gate")?,
            up: weight("ffn_up")?,
            down: weight("ffn_down")?,
            ffn_bound: 0.0,
        })
    }

    /// Radians a position for each pair.
    fn inv_freq(&self, spec: &ModelSpec) -> Result<Vec<f64>, CudaError> {
        let rope = &spec.rope;
        let factors = if rope.has_freqs { Some(self.vector("rope_freqs.weight")?.1) } else { None };
        if let Some(f) = factors.and_then(unusable_rope_factor) {
            return Err(CudaError::Tensor {
                name: "rope_freqs.weight".into(),
                expected: USABLE_ROPE_FACTORS.into(),
                got: f.to_string(),
            });
        }
        Ok(rope_frequencies(f64::from(rope.base), rope.n_dims, 1.0 / f64::from(rope.scale), factors))
    }
}

#[cfg(test)]
mod tests {
    use super::scale_below;

    #[test]
    fn scaled_values_stay_below_two_to_the_fifteen_and_use_the_range() {
        for largest in [1e-30f32, 3e-5, 0.5, 0.99, 1.0, 1.01, 2.0, 30_000.0, 65_504.0, 1e30] {
            let scaled = largest * scale_below(largest);
            assert!((8191.0..=16384.0).contains(&scaled), "{largest}: {scaled}");
        }
        assert_eq!(scale_below(0.0), 1.0);
        assert_eq!(scale_below(f32::INFINITY), 1.0);
    }
}
