//! RoPE at far positions: right at 100 and wrong at 16,000 is what single-precision angles give.

use quant::Isa;
use transformer::RopePairs;
use transformer::cpu::ops::{RopeAngles, rope};
use transformer::cpu::pool::Pool;

const BASE: f64 = 1e6;
const D_HEAD: usize = 64;
/// The sines and cosines are rounded to F32 once, and the turn adds two products.
const TOLERANCE: f64 = 3e-7;

fn value(i: usize) -> f32 {
    (i as f32 * 0.7).sin() + 1.5
}

/// The largest error of a turned head, when angles are what `angle` says.
fn error_against(angle: impl Fn(u32, usize) -> f64, isa: Isa, pairs: RopePairs, position: u32) -> f64 {
    let mut angles = RopeAngles::new(BASE, D_HEAD, 1.0, None, 1);
    angles.set_positions(&[position]);
    let mut x: Vec<f32> = (0..D_HEAD).map(value).collect();
    rope(&Pool::new(1).unwrap(), isa, pairs, &angles, &mut x, 1, D_HEAD);
    (0..D_HEAD / 2)
        .map(|i| {
            let (a, b) = match pairs {
                RopePairs::Halves => (i, i + D_HEAD / 2),
                RopePairs::Adjacent => (2 * i, 2 * i + 1),
            };
            let (sin, cos) = angle(position, i).sin_cos();
            let (from_a, from_b) = (f64::from(value(a)), f64::from(value(b)));
            let error_a = f64::from(x[a]) - (from_a * cos - from_b * sin);
            let error_b = f64::from(x[b]) - (from_a * sin + from_b * cos);
            error_a.abs().max(error_b.abs())
        })
        .fold(0.0, f64::max)
}

fn exact(position: u32, i: usize) -> f64 {
    f64::from(position) * BASE.powf(-2.0 * i as f64 / D_HEAD as f64)
}

/// What a worker with single-precision angles computes.
fn single(position: u32, i: usize) -> f64 {
    f64::from(position as f32 * (BASE as f32).powf(-2.0 * i as f32 / D_HEAD as f32))
}

#[test]
fn turns_by_the_exact_angle_at_any_position() {
    for isa in Isa::available() {
        for pairs in [RopePairs::Halves, RopePairs::Adjacent] {
            for position in [0, 1, 100, 511, 4_095, 16_000, 32_767, 131_071, 1_048_575, 10_000_000] {
                let error = error_against(exact, isa, pairs, position);
                assert!(error < TOLERANCE, "{} {pairs:?}: off by {error:.1e} at {position}", isa.name());
            }
        }
    }
}

#[test]
fn single_precision_angles_would_be_told_apart() {
    let error = |position| error_against(single, Isa::detect(), RopePairs::Halves, position);
    assert!(error(16_000) > 100.0 * TOLERANCE, "{:.1e}", error(16_000));
}
