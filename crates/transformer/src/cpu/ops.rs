//! The operations between the matrix products: norms, activations, rotary positions, sums. All in `f32`.
//!
//! An element's bits depend on its own row, the instruction set and nothing else: not on the number of rows or threads,
//! nor on its place in a vector. NaN and infinities go where arithmetic takes them.

use super::exp::exp;
use super::pool::Pool;
use crate::RopePairs;
use crate::spec::rope_frequencies;
use quant::simd::Simd;
use quant::{Isa, Kernel};

/// The fewest elements worth a thread of their own: some two microseconds of work, twice the cost of waking it.
const MIN_ELEMENTS: usize = 8_192;

/// `out[t, i] = weight[i] * x[t, i] / sqrt(mean_i(x[t, i]^2) + eps)`
///
/// x, out `[n_tokens, d]`; weight `[d]`. Source: Zhang & Sennrich 2019.
///
/// # Panics
/// When `x` and `out` differ in length or are no whole rows, or the processor lacks `isa`.
pub fn rms_norm(pool: &Pool, isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "x and out have one shape");
    let d = weight.len();
    pool.run_rows(out, d, MIN_ELEMENTS.div_ceil(d), |first, out| {
        isa.run(RmsNorm { x: &x[first * d..][..out.len()], weight, eps, out });
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let d = self.weight.len();
        for (out, x) in self.out.chunks_exact_mut(d).zip(self.x.chunks_exact(d)) {
            let mean = sum_of_squares(simd, x) / d as f32;
            let scale = simd.splat(1.0 / (mean + self.eps).sqrt());
            map2(
                simd,
                out,
                x,
                self.weight,
                #[inline(always)]
                |_, x, weight| simd.mul(weight, simd.mul(x, scale)),
            );
        }
    }
}

/// Four sums side by side, so that one addition need not wait for the one before it.
#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = simd.load(&block[i * S::LANES..]);
            *sum = simd.mul_add(x, x, *sum);
        }
    }
    let mut vectors = blocks.remainder().chunks_exact(S::LANES);
    for (x, sum) in (&mut vectors).zip(&mut sums) {
        let x = simd.load(x);
        *sum = simd.mul_add(x, x, *sum);
    }
    let x = simd.load_part(vectors.remainder());
    sums[3] = simd.mul_add(x, x, sums[3]);
    simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

/// `out[i] = f(out[i], a[i], b[i])`, a vector at a time; the last, shorter one is computed like the others.
#[inline(always)]
fn map2<S: Simd>(simd: S, out: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(S::F, S::F, S::F) -> S::F) {
    let n_whole = out.len() / S::LANES * S::LANES;
    let (out, out_rest) = out.split_at_mut(n_whole);
    let ((a, a_rest), (b, b_rest)) = (a.split_at(n_whole), b.split_at(n_whole));
    for ((out, a), b) in out.chunks_exact_mut(S::LANES).zip(a.chunks_exact(S::LANES)).zip(b.chunks_exact(S::LANES)) {
        simd.store(f(simd.load(out), simd.load(a), simd.load(b)), out);
    }
    let rest = f(simd.load_part(out_rest), simd.load_part(a_rest), simd.load_part(b_rest));
    simd.store_part(rest, out_rest);
}

/// `x[i] += y[i]`
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(pool: &Pool, _isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "x and y have one shape");
    // Bound by memory: the baseline's vectors do.
    pool.run_rows(x, 1, 4 * MIN_ELEMENTS, |first, x| {
        x.iter_mut().zip(&y[first..]).for_each(|(x, y)| *x += y);
    });
}

/// `gate[i] = silu(gate[i]) * up[i]`, where `silu(x) = x / (1 + exp(-x))`. Source: Shazeer 2020.
///
/// # Panics
/// When the lengths differ, or the processor lacks `isa`.
pub fn silu_mul(pool: &Pool, isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have one shape");
    pool.run_rows(gate, 1, MIN_ELEMENTS, |first, gate| {
        isa.run(SiluMul { up: &up[first..][..gate.len()], gate });
    });
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (one, minus_one) = (simd.splat(1.0), simd.splat(-1.0));
        map2(
            simd,
            self.gate,
            self.up,
            self.up,
            #[inline(always)]
            |x, up, _| {
                let silu = simd.div(x, simd.add(one, exp(simd, simd.mul(x, minus_one))));
                simd.mul(silu, up)
            },
        );
    }
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
        let frequencies = rope_frequencies(base, n_dims, scale, factors);
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
    let width = n_heads * d_head;
    assert!(2 * half <= d_head, "n_dims {} exceeds d_head {d_head}", 2 * half);
    assert_eq!(x.len() * half, angles.turns.len() * width, "x is [n_tokens, {n_heads}, {d_head}]");
    pool.run_rows(x, width, MIN_ELEMENTS.div_ceil(width), |first, x| {
        for (x, turns) in x.chunks_exact_mut(width).zip(angles.turns[first * half..].chunks_exact(half)) {
            for head in x.chunks_exact_mut(d_head) {
                match pairs {
                    RopePairs::Halves => {
                        let (a, b) = head.split_at_mut(half);
                        a.iter_mut().zip(b).zip(turns).for_each(|((a, b), turn)| rotate(a, b, turn));
                    }
                    RopePairs::Adjacent => {
                        let (pairs, _) = head.as_chunks_mut::<2>();
                        pairs.iter_mut().zip(turns).for_each(|([a, b], turn)| rotate(a, b, turn));
                    }
                }
            }
        }
    });
}

#[inline(always)]
fn rotate(a: &mut f32, b: &mut f32, [cos, sin]: &[f32; 2]) {
    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
}

#[cfg(test)]
mod tests;
