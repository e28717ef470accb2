//! What quantizing loses.

mod blocks;

use blocks::{Random, values};
use quant::{Format, dequantize, quantize};

fn made() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|format| format.can_quantize())
}

fn there_and_back(format: Format, x: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; format.row_bytes(x.len())];
    quantize(format, x, &mut bytes);
    let mut back = vec![f32::NAN; x.len()];
    dequantize(format, &bytes, &mut back);
    back
}

/// The root mean square of the errors, in units of the values'.
fn rms_error(x: &[f32], back: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let lost: f64 = x.iter().zip(back).map(|(x, back)| square(f64::from(*x) - f64::from(*back))).sum();
    (lost / x.iter().map(|x| square(f64::from(*x))).sum::<f64>()).sqrt()
}

#[test]
fn normal_values_lose_no_more_than_this() {
    let mut random = Random::new(7);
    for size in [1.0, 0.02, 300.0] {
        let x: Vec<f32> = (0..256 * 256).map(|_| size * random.normal()).collect();
        for format in made() {
            let error = rms_error(&x, &there_and_back(format, &x));
            println!("{} {size} {error:.5}", format.name());
        }
    }
}
