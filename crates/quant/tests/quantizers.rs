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

/// Measured are 97 to 99 % of these. A sub-block's scale or minimum gone wrong, or numbers rounded down, cost far more.
const MOST_LOST: [(Format, f64); 11] = [
    (Format::F32, 0.0),
    (Format::F16, 0.000_215),
    (Format::BF16, 0.001_70),
    (Format::Q8_0, 0.005_40),
    (Format::Q4_0, 0.086_5),
    (Format::Q4_1, 0.079_0),
    (Format::Q5_0, 0.043_0),
    (Format::Q5_1, 0.038_3),
    (Format::Q4_K, 0.071_5),
    (Format::Q5_K, 0.035_3),
    (Format::Q6_K, 0.018_0),
];

#[test]
fn normal_values_lose_no_more_than_this() {
    assert!(made().eq(MOST_LOST.iter().map(|(format, _)| *format)));
    let mut random = Random::new(7);
    for size in [1.0, 0.02, 300.0] {
        let x: Vec<f32> = (0..256 * 256).map(|_| size * random.normal()).collect();
        for (format, most) in MOST_LOST {
            let error = rms_error(&x, &there_and_back(format, &x));
            println!("{:>5} of size {size}: {error:.5}", format.name());
            assert!(error <= most, "{format:?}: {error} of {size}");
        }
    }
}

/// Sub-blocks of very different sizes in one block: each keeps its own scale, of the six or eight bits that it is given.
#[test]
fn a_small_sub_block_beside_a_large_one_loses_little_of_the_block() {
    let mut random = Random::new(11);
    let x: Vec<f32> = (0..64 * 256).map(|i| random.normal() * if i / 32 % 8 == 3 { 30.0 } else { 1.0 }).collect();
    for (format, most) in [(Format::Q4_K, 0.073), (Format::Q5_K, 0.037), (Format::Q6_K, 0.019)] {
        let error = rms_error(&x, &there_and_back(format, &x));
        println!("{:>5}: {error:.5}", format.name());
        assert!(error <= most, "{format:?}: {error}");
    }
}

#[test]
fn zeros_stay_zeros() {
    for format in made() {
        assert_eq!(there_and_back(format, &[0.0; 512]), [0.0; 512], "{format:?}");
    }
}

/// A block of one value is within what rounding its scale, or its minimum, to half precision and six bits costs.
#[test]
fn a_constant_stays_nearly_that() {
    for format in made() {
        for value in [1.0, -1.0, 0.37, -250.0] {
            for back in there_and_back(format, &[value; 256]) {
                assert!((back / value - 1.0).abs() < 0.01, "{format:?}: {value} became {back}");
            }
        }
    }
}

#[test]
fn nothing_that_an_f32_can_hold_is_a_panic() {
    let extremes =
        [0.0, -0.0, 1e-45, 1e-38, -1e-38, 1.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for format in made() {
        for a in extremes {
            for b in extremes {
                let x: Vec<f32> = (0..256).map(|i| if i % 5 == 0 { a } else { b }).collect();
                assert_eq!(there_and_back(format, &x).len(), 256);
            }
        }
    }
}

/// FNV-1a of the bytes that given values become: the same on every processor, and in every version that does not mean to
/// quantize otherwise.
#[test]
fn the_same_values_become_the_same_bytes_everywhere() {
    let x = values(64 * 256, 5);
    let hashes: Vec<String> = made()
        .map(|format| {
            let mut bytes = vec![0; format.row_bytes(x.len())];
            quantize(format, &x, &mut bytes);
            let hash = bytes
                .iter()
                .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
            format!("{} {hash:016x}", format.name())
        })
        .collect();
    let expected = [
        "F32 207c78b30779e983",
        "F16 de2671f9be335304",
        "BF16 0850430d36f14d6e",
        "Q8_0 cdaceca9c1812c6e",
        "Q4_0 f39f0c02960f6834",
        "Q4_1 e8b25a3c027be122",
        "Q5_0 c51985085e3fb603",
        "Q5_1 3c355a17d0740fe1",
        "Q4_K b174482106229cff",
        "Q5_K c56f087443ebab5b",
        "Q6_K e297d317c178635f",
    ];
    assert_eq!(hashes, expected);
}
