//! Softmax over a vocabulary: the passes over a whole row of logits that sampling needs.
//!
//! Written so that the compiler vectorizes them for the baseline of any target, with an exponential of our own: the same
//! bits on every machine of one kind, and no call to the C library for each of 151,936 elements.

/// Elements summed in F32 before the sum goes to F64: 64 in each of 16 lanes, so that the rounding error of a sum over a
/// large vocabulary stays near that of a single addition.
pub(crate) const SUM_BLOCK: usize = 1024;

const LANES: usize = 16;

/// Below this, `exp(x)` in F32 is not a normal number; it counts as 0.
const SMALLEST_EXPONENT: f32 = -87.0;

/// The greatest element, NaN aside. `Err` with what was found if that is not finite.
pub(crate) fn finite_maximum(row: &[f32]) -> Result<f32, f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let maximum = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    if maximum.is_finite() { Ok(maximum) } else { Err(maximum) }
}

/// `out[i] = exp((row[i] - maximum) / temperature)`, and the sums of `out` over each [`SUM_BLOCK`].
///
/// The greatest element gives exactly 1. The maximum is subtracted first, so that no temperature overflows.
pub(crate) fn probabilities(row: &[f32], maximum: f32, temperature: f32, out: &mut [f32], block_sums: &mut [f64]) {
    let blocks = row.chunks(SUM_BLOCK).zip(out.chunks_mut(SUM_BLOCK));
    for ((row, out), sum) in blocks.zip(block_sums) {
        let mut lanes = [0.0f32; LANES];
        let (row_chunks, row_rest) = row.as_chunks::<LANES>();
        let (out_chunks, out_rest) = out.as_chunks_mut::<LANES>();
        for (x, y) in row_chunks.iter().zip(out_chunks) {
            for i in 0..LANES {
                y[i] = exp_of_negative((x[i] - maximum) / temperature);
                lanes[i] += y[i];
            }
        }
        for ((x, y), lane) in row_rest.iter().zip(out_rest).zip(&mut lanes) {
            *y = exp_of_negative((x - maximum) / temperature);
            *lane += *y;
        }
        *sum = lanes.iter().map(|&x| f64::from(x)).sum();
    }
}

/// `ln(sum(exp(row)))`, the normalizer of log-probabilities.
pub(crate) fn log_sum_exp(row: &[f32], maximum: f32) -> f64 {
    let mut sum = 0.0f64;
    for block in row.chunks(SUM_BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = block.as_chunks::<LANES>();
        for x in chunks {
            for i in 0..LANES {
                lanes[i] += exp_of_negative(x[i] - maximum);
            }
        }
        for (x, lane) in rest.iter().zip(&mut lanes) {
            *lane += exp_of_negative(x - maximum);
        }
        sum += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    f64::from(maximum) + sum.ln()
}

/// `exp(x)` for `x <= 0`, to 2 units in the last place; 0 below [`SMALLEST_EXPONENT`] and for NaN.
///
/// Cody and Waite's reduction to `|r| <= ln(2) / 2` and the polynomial of Cephes' `expf`. Branch-free.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    /// `1.5 * 2^23`: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // NaN fails the comparison too.
    let clamped = if x > SMALLEST_EXPONENT { x } else { SMALLEST_EXPONENT };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let two_to_n = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    let y = mantissa * two_to_n;
    if x > SMALLEST_EXPONENT { y } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_exact_at_0_and_within_two_units_elsewhere() {
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(-0.0), 1.0);
        let mut x = 0.0f32;
        while x > -86.9 {
            let (got, expected) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            assert!((got / expected - 1.0).abs() < 2.5e-7, "exp({x}) = {expected:e}, got {got:e}");
            x -= 0.000_917;
        }
    }

    #[test]
    fn what_cannot_be_weighs_nothing() {
        for x in [-88.0, -1e30, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp_of_negative(x), 0.0);
        }
    }

    #[test]
    fn maximum_ignores_nan_and_refuses_rows_without_a_finite_one() {
        let mut row = vec![f32::NAN; 40];
        assert!(finite_maximum(&row).is_err());
        row[37] = -3.0;
        assert_eq!(finite_maximum(&row), Ok(-3.0));
        row[2] = f32::INFINITY;
        assert_eq!(finite_maximum(&row), Err(f32::INFINITY));
        assert!(finite_maximum(&[f32::NEG_INFINITY; 3]).is_err());
    }

    #[test]
    fn sums_of_a_flat_row_of_151936_are_right_to_seven_digits() {
        let row = vec![1.5f32; 151_936];
        assert!((log_sum_exp(&row, 1.5) - (1.5 + 151_936f64.ln())).abs() < 1e-12);
        let row: Vec<f32> = (0..151_936).map(|i| -((i % 977) as f32) * 0.01).collect();
        let exact: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        assert!((log_sum_exp(&row, 0.0) - exact.ln()).abs() < 1e-7);
    }
}
