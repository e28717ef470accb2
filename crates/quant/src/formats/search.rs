//! What quantizers search with: bounds, scales and minima of some values.
//!
//! Sums are kept in eight lanes and added in a fixed order, and nothing here depends on the instruction set: the same values
//! become the same bytes everywhere.

/// A sub-block's scale, and what is subtracted: an element is about `scale * number - min`. Neither is negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ScaleAndMin {
    pub(super) scale: f32,
    pub(super) min: f32,
}

/// How many scales are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    /// The greatest number.
    pub(super) max: f32,
    /// The first trial spreads the values over `max + first` numbers, the next over a tenth more, and so on.
    pub(super) first: f32,
    pub(super) n_steps: usize,
}

/// Least and greatest.
pub(super) fn bounds(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (min.min(*x), max.max(*x)))
}

/// The value of the greatest magnitude, the first of several; 0 where there is none.
pub(super) fn greatest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max: f32, x| if x.abs() > max.abs() { *x } else { max })
}

/// `1 / x`; 0 where that is no number to multiply with.
pub(super) fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The nearest whole number, ties to even, of a magnitude below 2^22; others come out near enough to be clamped.
///
/// An addition rounds to it: `f32` holds no fractions from 2^23 on. (`f32::round` is a call of a library where the compiler
/// may not assume SSE4.1.)
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + MAGIC) - MAGIC
}

/// The sum of `f` over all indices below `N`, a multiple of eight, in eight lanes.
#[inline(always)]
fn sum<const N: usize>(f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; 8];
    for first in (0..N).step_by(8) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(first + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

impl Search {
    /// The scale and minimum with the least weighted squared error.
    ///
    /// For each of several spreads, values are rounded to numbers, and the scale and minimum that fit those numbers best
    /// follow by linear least squares.
    pub(super) fn scale_and_min(self, x: &[f32; 32], weight: &[f32; 32]) -> ScaleAndMin {
        let (min, max) = bounds(x);
        let min = min.min(0.0);
        if max.partial_cmp(&min) != Some(std::cmp::Ordering::Greater) {
            return ScaleAndMin { scale: 0.0, min: -min };
        }
        let simple = ScaleAndMin { scale: (max - min) / self.max, min: -min };
        let numbers = self.numbers(x, -min, self.max / (max - min));
        let mut best = (error(x, weight, &numbers, simple), simple);
        for step in 0..self.n_steps {
            let spread = self.max + self.first + 0.1 * step as f32;
            let numbers = self.numbers(x, -min, spread / (max - min));
            let Some(fit) = least_squares(x, weight, &numbers) else { continue };
            let error = error(x, weight, &numbers, fit);
            if error < best.0 {
                best = (error, fit);
            }
        }
        best.1
    }

    /// The nearest numbers, given the scale's inverse.
    pub(super) fn numbers(self, x: &[f32; 32], min: f32, inverse: f32) -> [f32; 32] {
        std::array::from_fn(|i| nearest((x[i] + min) * inverse).clamp(0.0, self.max))
    }
}

/// How much each error counts. Large values weigh more, as they do in a product: a value's weight is its magnitude plus the
/// root mean square of all.
pub(super) fn weights(x: &[f32; 32]) -> [f32; 32] {
    let rms = (sum::<32>(|i| x[i] * x[i]) / 32.0).sqrt();
    x.map(|x| rms + x.abs())
}

/// The weighted squared error.
pub(super) fn error(x: &[f32; 32], weight: &[f32; 32], numbers: &[f32; 32], fit: ScaleAndMin) -> f32 {
    sum::<32>(|i| {
        let off = fit.scale * numbers[i] - fit.min - x[i];
        weight[i] * off * off
    })
}

/// The scale and minimum that fit given numbers best; `None` where all numbers are one.
fn least_squares(x: &[f32; 32], weight: &[f32; 32], numbers: &[f32; 32]) -> Option<ScaleAndMin> {
    let w = f64::from(sum::<32>(|i| weight[i]));
    let wx = f64::from(sum::<32>(|i| weight[i] * x[i]));
    let wn = f64::from(sum::<32>(|i| weight[i] * numbers[i]));
    let wnn = f64::from(sum::<32>(|i| weight[i] * numbers[i] * numbers[i]));
    let wnx = f64::from(sum::<32>(|i| weight[i] * numbers[i] * x[i]));
    let determinant = w * wnn - wn * wn;
    let (scale, min) = ((w * wnx - wx * wn) / determinant, (wn * wnx - wnn * wx) / determinant);
    // A minimum above zero cannot be said: then the best scale without one.
    let (scale, min) = if min < 0.0 { (wnx / wnn, 0.0) } else { (scale, min) };
    let fit = ScaleAndMin { scale: scale as f32, min: min as f32 };
    (determinant > 0.0 && fit.scale > 0.0 && fit.scale.is_finite() && fit.min.is_finite()).then_some(fit)
}

/// The scale with the least squared error for numbers from -32 to 31, where a value weighs its own square.
///
/// For numbers `n` the best scale is `sum(w x n) / sum(w n n)`, and the error is then less by `sum(w x n)^2 / sum(w n n)`: the
/// greatest of those wins. It may be negative: -32 has no opposite.
pub(super) fn symmetric_scale(x: &[f32; 16]) -> f32 {
    let greatest = greatest(x);
    let mut best = (0.0, 0.0);
    for step in -9..=9 {
        let inverse = inverse(greatest / -(32.0 + 0.1 * step as f32));
        let numbers: [f32; 16] = std::array::from_fn(|i| nearest(x[i] * inverse).clamp(-32.0, 31.0));
        // Relative to the greatest, so that fourth powers of small values are numbers still.
        let to_one = 1.0 / greatest;
        let wnx = sum::<16>(|i| (x[i] * to_one) * (x[i] * to_one) * (x[i] * to_one) * numbers[i]);
        let wnn = sum::<16>(|i| (x[i] * to_one) * (x[i] * to_one) * numbers[i] * numbers[i]);
        let gain = wnx * wnx / wnn;
        if gain > best.0 {
            best = (gain, greatest * (wnx / wnn));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_whole_number() {
        for (x, expected) in [(0.4, 0.0), (0.6, 1.0), (-3.7, -4.0), (2.5, 2.0), (3.5, 4.0), (4_194_303.0, 4_194_303.0)]
        {
            assert_eq!(nearest(x), expected);
        }
    }

    #[test]
    fn values_on_a_grid_are_found_exactly_enough() {
        let grid: [f32; 32] = std::array::from_fn(|i| 0.25 * (i * 7 % 16) as f32 - 1.5);
        let fit = Search { max: 15.0, first: -1.0, n_steps: 21 }.scale_and_min(&grid, &weights(&grid));
        assert!((fit.scale - 0.25).abs() < 1e-6 && (fit.min - 1.5).abs() < 1e-5, "{fit:?}");
        let grid: [f32; 16] = std::array::from_fn(|i| 0.5 * (4 * i) as f32 - 16.0);
        assert!((symmetric_scale(&grid).abs() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn nothing_and_no_numbers_have_a_scale_too() {
        let search = Search { max: 15.0, first: -1.0, n_steps: 21 };
        assert_eq!(search.scale_and_min(&[0.0; 32], &[0.0; 32]), ScaleAndMin { scale: 0.0, min: 0.0 });
        assert_eq!(symmetric_scale(&[0.0; 16]), 0.0);
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45] {
            search.scale_and_min(&[x; 32], &weights(&[x; 32])); // whatever it is
            symmetric_scale(&[x; 16]);
        }
    }
}
