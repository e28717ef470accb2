//! Each operation against its formula in `f64`, and its bits against themselves.

use super::*;
use proptest::prelude::*;

fn values() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(-30f32..30.0, 1..120)
}

fn isas() -> impl Strategy<Value = Isa> {
    proptest::sample::select(Isa::available())
}

fn close(got: f32, exact: f64, relative: f64) -> bool {
    (f64::from(got) - exact).abs() <= relative * exact.abs() + 1e-30
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    // A mean of up to 120 squares in f32, a root, a division and two products: each rounds by 2^-24.
    #[test]
    fn rms_norm_is_close_and_a_row_does_not_see_the_others(x in values(), isa in isas(), n_threads in 1usize..3) {
        let pool = Pool::new(n_threads).expect("threads");
        let d = x.len();
        let weight: Vec<f32> = (0..d).map(|i| 7.0 - i as f32 / 9.0).collect();
        let mut out = vec![0.0; d];
        rms_norm(&pool, isa, &x, &weight, 1e-6, &mut out);
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / d as f64;
        for i in 0..d {
            prop_assert!(close(out[i], f64::from(weight[i]) * f64::from(x[i]) / (mean + 1e-6).sqrt(), 1e-6));
        }
        let mut many: Vec<f32> = (0..200).map(|i| i as f32).flat_map(|i| x.iter().map(move |x| x + i)).collect();
        let last = many.len() - d;
        many[last..].copy_from_slice(&x);
        let mut outs = vec![0.0; many.len()];
        rms_norm(&pool, isa, &many, &weight, 1e-6, &mut outs);
        prop_assert_eq!(bits(&outs[last..]), bits(&out));
    }

    #[test]
    fn silu_mul_is_close_and_an_element_does_not_know_its_place(x in values(), isa in isas(), shift in 0usize..20) {
        let pool = Pool::new(2).expect("threads");
        let up: Vec<f32> = x.iter().map(|x| 3.0 - x).collect();
        let mut out = x.clone();
        silu_mul(&pool, isa, &mut out, &up);
        for i in 0..x.len() {
            let x = f64::from(x[i]);
            prop_assert!(close(out[i], x / (1.0 + (-x).exp()) * f64::from(up[i]), 1e-6), "silu({}) = {}", x, out[i]);
        }
        let shift = shift.min(x.len());
        let mut tail = x[shift..].to_vec();
        silu_mul(&pool, isa, &mut tail, &up[shift..]);
        prop_assert_eq!(bits(&tail), bits(&out[shift..]));
    }

    #[test]
    fn rope_turns_each_pair_by_its_angle_and_leaves_the_rest(
        isa in isas(), half in 1usize..20, rest in 0usize..9, n_heads in 1usize..4, position in 0u32..40_000,
        adjacent: bool, base in proptest::sample::select(vec![1e4, 1e6]), scaled: bool, factored: bool,
    ) {
        let (n_dims, d_head) = (2 * half, 2 * half + rest);
        let scale = if scaled { 0.25 } else { 1.0 };
        let factors: Vec<f32> = (0..half).map(|i| if factored { 1.0 + i as f32 } else { 1.0 }).collect();
        let mut angles = RopeAngles::new(base, n_dims, scale, factored.then_some(&factors), 2);
        angles.set_positions(&[3, position]);
        let x: Vec<f32> = (0..2 * n_heads * d_head).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut out = x.clone();
        let pairs = if adjacent { RopePairs::Adjacent } else { RopePairs::Halves };
        rope(&Pool::new(1).expect("threads"), isa, pairs, &angles, &mut out, n_heads, d_head);
        for head in n_heads..2 * n_heads {
            let (x, out) = (&x[head * d_head..][..d_head], &out[head * d_head..][..d_head]);
            for (i, factor) in factors.iter().enumerate() {
                let (a, b) = if adjacent { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let angle = f64::from(position) * scale * base.powf(-(2.0 * i as f64) / n_dims as f64) / f64::from(*factor);
                let (sin, cos) = angle.sin_cos();
                let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                prop_assert!((f64::from(out[a]) - (xa * cos - xb * sin)).abs() < 3e-7);
                prop_assert!((f64::from(out[b]) - (xa * sin + xb * cos)).abs() < 3e-7);
            }
            prop_assert_eq!(&x[n_dims..], &out[n_dims..]);
        }
    }
}

#[test]
fn what_is_not_finite_stays_visible() {
    let pool = Pool::new(1).expect("threads");
    for isa in Isa::available() {
        let mut gate = vec![f32::NAN, f32::INFINITY, 1.0, -200.0];
        silu_mul(&pool, isa, &mut gate, &[1.0, 1.0, f32::NAN, 1.0]);
        assert!(gate[0].is_nan() && gate[1] == f32::INFINITY && gate[2].is_nan() && gate[3] == 0.0, "{isa:?} {gate:?}");
        let mut out = vec![0.0; 40];
        let mut x = vec![1.0; 40];
        x[39] = f32::NAN;
        rms_norm(&pool, isa, &x, &[1.0; 20], 1e-6, &mut out);
        assert!(out[..20].iter().all(|x| x.is_finite()) && out[20..].iter().all(|x| x.is_nan()), "{isa:?}");
    }
}

#[test]
fn activations_beyond_the_range_of_half_precision_are_exact_enough() {
    let pool = Pool::new(1).expect("threads");
    for isa in Isa::available() {
        let mut gate = vec![70_000.0; 20];
        silu_mul(&pool, isa, &mut gate, &[1e5; 20]);
        assert!(gate.iter().all(|x| (x / 7e9 - 1.0).abs() < 1e-6), "{isa:?} {gate:?}");
    }
}

#[test]
fn long_vectors_are_added_by_all_threads() {
    let pool = Pool::new(3).expect("threads");
    let mut x: Vec<f32> = (0..200_001).map(|i| i as f32).collect();
    add_assign(&pool, Isa::detect(), &mut x, &vec![1.0; 200_001]);
    assert!(x.iter().enumerate().all(|(i, x)| *x == i as f32 + 1.0));
}
