//! The exponential function on vectors.

use quant::simd::Simd;

/// `exp(x)` in every lane, off by at most 3 units in the last place (a test asks every instruction set at 400,000 points).
///
/// Overflows to infinity above 88.72 and underflows through the subnormal numbers to 0 below -103.97; a NaN stays one.
/// With n the integer nearest to x / ln 2, exp(x) = 2^n exp(r), and exp(r) for |r| <= ln 2 / 2 is a polynomial.
///
/// Source: Cephes `expf` (Moshier 1989): the split of ln 2 and the coefficients.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, of which the first has so few bits that its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

    // Beyond these the result is infinity and 0 anyway. In this order, so that a NaN passes.
    let x = simd.max(simd.splat(-110.0), simd.min(simd.splat(89.0), x));
    let round = simd.splat(ROUND);
    let shifted = simd.mul_add(x, simd.splat(std::f32::consts::LOG2_E), round);
    let n = simd.sub(shifted, round);
    let r = simd.mul_add(n, simd.splat(-LN2_HIGH), x);
    let r = simd.mul_add(n, simd.splat(-LN2_LOW), r);
    let mut p = simd.splat(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        p = simd.mul_add(p, r, simd.splat(*coefficient));
    }
    let p = simd.mul_add(p, simd.mul(r, r), simd.add(r, simd.splat(1.0)));

    // 2^n in two factors: for n = 128, and below -126, the one factor is no finite normal number.
    let n = simd.sub_int(simd.bits(shifted), simd.splat_int(ROUND.to_bits() as i32));
    let half = simd.shr_int::<1>(n);
    let power = |simd: S, n: S::I| simd.with_bits(simd.shl_int::<23>(simd.add_int(n, simd.splat_int(127))));
    simd.mul(simd.mul(p, power(simd, half)), power(simd, simd.sub_int(n, half)))
}

/// `exp(x)` of one number, with the bits that a vector's lane would have.
#[inline(always)]
pub(crate) fn exp_one<S: Simd>(simd: S, x: f32) -> f32 {
    simd.max_lane(exp(simd, simd.splat(x)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant::{Isa, Kernel};

    struct Exp<'a>(&'a mut [f32]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for x in self.0.chunks_mut(S::LANES) {
                if x.len() == S::LANES {
                    let y = exp(simd, simd.load(x));
                    simd.store(y, x);
                } else {
                    let y = exp(simd, simd.load_part(x));
                    simd.store_part(y, x);
                }
            }
        }
    }

    #[test]
    fn is_within_three_units_of_the_exact_value() {
        for isa in Isa::available() {
            let xs: Vec<f32> = (-200_000..200_000).map(|i| i as f32 * 4.36e-4).collect();
            let mut ys = xs.clone();
            isa.run(Exp(&mut ys));
            for (x, y) in xs.iter().zip(&ys) {
                let exact = f64::from(*x).exp();
                let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1) - exact as f32);
                assert!((f64::from(*y) - exact).abs() <= 3.0 * unit, "{isa:?} exp({x}) = {y}, exactly {exact}");
            }
        }
    }

    #[test]
    fn keeps_the_special_values() {
        for isa in Isa::available() {
            let mut x = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 88.8, -104.5, f32::NAN];
            isa.run(Exp(&mut x));
            let inf = f32::INFINITY;
            assert_eq!(x[..8], [1.0, 1.0, inf, 0.0, inf, 0.0, inf, 0.0], "{isa:?}");
            assert!(x[8].is_nan(), "{isa:?}");
        }
    }

    #[test]
    fn a_lane_does_not_know_its_place() {
        for isa in Isa::available() {
            let xs: Vec<f32> = (0..77).map(|i| i as f32 * 0.731 - 40.0).collect();
            let mut whole = xs.clone();
            isa.run(Exp(&mut whole));
            for (x, y) in xs.iter().zip(&whole) {
                let mut one = [*x];
                isa.run(Exp(&mut one));
                assert_eq!(one[0].to_bits(), y.to_bits(), "{isa:?} exp({x})");
            }
        }
    }
}
