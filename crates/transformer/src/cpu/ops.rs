//! The operations between the matrix products: norms, activations, rotary positions, sums. All in `f32`.
//!
//! An element's bits depend on its own row, the instruction set and nothing else: not on the number of rows, of threads,
//! or its place in a vector.

use super::pool::Pool;
use quant::Isa;

/// `out[t, i] = weight[i] * x[t, i] / sqrt(mean_i(x[t, i]^2) + eps)`
///
/// x, out `[n_tokens, d]`; weight `[d]`. Source: Zhang & Sennrich 2019.
pub fn rms_norm(pool: &Pool, _isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "x and out have one shape");
    let d = weight.len();
    pool.run_rows(out, d, 1, |first, out| {
        for (out, x) in out.chunks_exact_mut(d).zip(x[first * d..].chunks_exact(d)) {
            let mean = x.iter().map(|x| x * x).sum::<f32>() / d as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = weight * (x * scale);
            }
        }
    });
}

/// `x[i] += y[i]`
pub fn add_assign(_pool: &Pool, _isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "x and y have one shape");
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `gate[i] = silu(gate[i]) * up[i]`, where `silu(x) = x / (1 + exp(-x))`
pub fn silu_mul(_pool: &Pool, _isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have one shape");
    gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = *gate / (1.0 + (-*gate).exp()) * up);
}

/// Which elements of a head a rotation takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `(i, i + n_dims / 2)`: "NEOX"; qwen2, qwen3, phi3, gemma.
    Halves,
    /// `(2i, 2i + 1)`: GGUF files of `llama`, whose rows are permuted for it.
    Adjacent,
}

/// Sine and cosine of every rotation of a batch: filled once a step, used by every layer.
///
/// Angles are computed in `f64`; in `f32` they would be off by a thousandth of a turn at position 16,000.
#[derive(Debug)]
pub struct RopeAngles {
    /// Radians per position of each pair. `[n_dims / 2]`
    frequencies: Vec<f64>,
    /// `[n_tokens, n_dims / 2]` of (cosine, sine)
    turns: Vec<[f32; 2]>,
}

impl RopeAngles {
    /// For rotations of the first `n_dims` elements of a head: pair `i` turns by
    /// `position * scale * base^(-2i / n_dims) / factors[i]` radians.
    ///
    /// `scale` is 1, or 1 / factor with linear scaling; `factors [n_dims / 2]` is `rope_freqs.weight`, where a file has it.
    /// Memory for `max_tokens` positions is taken now.
    ///
    /// # Panics
    /// When `n_dims` is odd or `factors` has another length.
    pub fn new(base: f64, n_dims: usize, scale: f64, factors: Option<&[f32]>, max_tokens: usize) -> RopeAngles {
        assert!(n_dims.is_multiple_of(2), "n_dims {n_dims} is odd");
        assert!(factors.is_none_or(|factors| factors.len() == n_dims / 2), "factors is [n_dims / 2]");
        let frequency = |i: usize| {
            let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
            base.powf(-2.0 * i as f64 / n_dims as f64) * scale / factor
        };
        let frequencies = (0..n_dims / 2).map(frequency).collect();
        RopeAngles { frequencies, turns: Vec::with_capacity(max_tokens * n_dims / 2) }
    }

    /// Fills in the angles of a batch's rows. `positions [n_tokens]`
    pub fn set_positions(&mut self, positions: &[u32]) {
        self.turns.clear();
        for position in positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                self.turns.push([cos as f32, sin as f32]);
            }
        }
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.frequencies.capacity() * size_of::<f64>() + self.turns.capacity() * size_of::<[f32; 2]>()
    }
}

/// Rotates the first `n_dims` elements of every head by its row's angles, in place. x `[n_tokens, n_heads, d_head]`
///
/// Source: Su et al. 2021.
///
/// # Panics
/// When `x` does not have the tokens that `angles` was filled with, or `n_dims > d_head`.
pub fn rope(
    pool: &Pool,
    _isa: Isa,
    pairs: RopePairs,
    angles: &RopeAngles,
    x: &mut [f32],
    n_heads: usize,
    d_head: usize,
) {
    let half = angles.frequencies.len();
    assert!(2 * half <= d_head, "n_dims {} exceeds d_head {d_head}", 2 * half);
    assert_eq!(x.len() * half, angles.turns.len() * n_heads * d_head, "x is [n_tokens, {n_heads}, {d_head}]");
    pool.run_rows(x, n_heads * d_head, 8, |first, x| {
        for (x, turns) in x.chunks_exact_mut(n_heads * d_head).zip(angles.turns[first * half..].chunks_exact(half)) {
            for head in x.chunks_exact_mut(d_head) {
                for (i, [cos, sin]) in turns.iter().enumerate() {
                    let (a, b) = match pairs {
                        RopePairs::Halves => (i, i + half),
                        RopePairs::Adjacent => (2 * i, 2 * i + 1),
                    };
                    (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
        }
    });
}
