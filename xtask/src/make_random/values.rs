//! Normally distributed values from a seed, a name and a place, in any order.

use super::model::{Bias, Kind};

/// How far the values of each kind of tensor spread.
#[derive(Debug, clap::Args)]
pub(super) struct Spread {
    /// Standard deviation of the matrices
    #[arg(long, value_name = "X", default_value_t = 0.02)]
    std: f32,
    /// Standard deviation of output.weight; larger makes sharper choices [default: as --std]
    #[arg(long, value_name = "X")]
    out_std: Option<f32>,
    /// Standard deviation of the q/k/v biases
    #[arg(long, value_name = "X", default_value_t = 0.2)]
    bias_std: f32,
    /// Standard deviation of the norms' weights around 1
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    norm_std: f32,
    /// Make arithmetic hard, as trained models do: some q/k/v biases are ±30, some silu(gate) * up exceed 65,504, where F16
    /// ends, attention is sharp and the residual stream is large
    #[arg(long)]
    hard: bool,
}

/// Size of the largest biases of a hard model.
const PEAK: f32 = 30.0;
/// Of a hard model's tokens every so many is likelier, by COMMON_GAIN in its row of the output matrix. Among 151,936 equal
/// tokens the best two are so close that rounding to 11 bits decides one choice in thirty.
const COMMON_EVERY: u64 = 1024;
const COMMON_GAIN: f32 = 4.0;

/// What a hard model's matrices are multiplied by.
///
/// At Qwen2.5-0.5B's size and the usual spread: gate and up have a standard deviation of 120, and their product exceeds F16's
/// range in one place of five hundred. Attention's scores have one of 3, so that a query reads about fifteen of a thousand
/// keys, and values one of 15, so that what is read shows beside biases of 30. Attention and the feed-forward layer add alike
/// amounts to the residual stream, and all of them together less than the token, so that every position has a choice of
/// its own.
fn hard_gain(kind: Kind) -> f32 {
    match kind {
        Kind::Norm | Kind::Bias(_) | Kind::Q | Kind::Output(_) => 1.0,
        Kind::Embedding => 80_000.0,
        Kind::K => 1.25,
        Kind::V => 25.0,
        Kind::AttnOutput => 30.0,
        Kind::GateUp => 200.0,
        Kind::Down => 1.0 / 80.0,
    }
}

impl Spread {
    /// Mean and standard deviation.
    pub(super) fn of(&self, kind: Kind) -> (f32, f32) {
        let (mean, std) = match kind {
            Kind::Norm => (1.0, self.norm_std),
            Kind::Bias(_) => (0.0, self.bias_std),
            Kind::Output(_) => (0.0, self.out_std.unwrap_or(self.std)),
            _ => (0.0, self.std),
        };
        (mean, if self.hard { std * hard_gain(kind) } else { std })
    }

    /// Raises the peaks of a hard model among `values`, which begin at element `start`: large biases, likely tokens.
    pub(super) fn raise_peaks(&self, kind: Kind, start: u64, values: &mut [f32]) {
        if !self.hard {
            return;
        }
        for (value, i) in values.iter_mut().zip(start..) {
            match kind {
                Kind::Bias(bias) if bias.has_peak(i) => *value = PEAK.copysign(*value),
                Kind::Output(width) if (i / width).is_multiple_of(COMMON_EVERY) => *value *= COMMON_GAIN,
                _ => {}
            }
        }
    }
}

impl Bias {
    /// Whether a hard model's bias is large at `i`: once in each query head, each on another pair; in k on the slowest pair
    /// of each head, where RoPE leaves it nearly equal for all keys (elsewhere scores of neighbouring keys would differ by
    /// hundreds, and the answer would hang on the last bit of anyone's arithmetic); in v once.
    fn has_peak(self, i: u64) -> bool {
        match self {
            Bias::Q(d_head) => i % d_head == i / d_head % (d_head / 2),
            Bias::K(d_head) => i % (d_head / 2) == d_head / 2 - 1,
            Bias::V => i == 0,
        }
    }
}

/// The random values of one tensor.
///
/// The generator is SplitMix64 (Steele, Lea, Flood 2014): its n-th output is a hash of seed and n, so that threads can
/// start anywhere. Each output makes two values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream(u64);

impl Stream {
    /// The stream of the tensor called `name`.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        // FNV-1a, 64 bits.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Self(mix(mix(seed) ^ hash))
    }

    /// Writes the values from place `start`, which is even, on.
    pub(super) fn fill(self, start: u64, (mean, std): (f32, f32), out: &mut [f32]) {
        debug_assert!(start.is_multiple_of(2));
        for (pair, n) in out.chunks_mut(2).zip(start / 2..) {
            let bits = mix(self.0.wrapping_add((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            for (value, bits) in pair.iter_mut().zip([bits as u32, (bits >> 32) as u32]) {
                *value = mean + std * normal(bits);
            }
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform bits to a normally distributed value, by the inverse of the distribution function.
///
/// Source: Wichura 1988, algorithm AS 241, PPND7: seven digits. Its third branch is for probabilities below 1.4e-11;
/// 32 bits give none below 1.2e-10.
fn normal(bits: u32) -> f32 {
    let p = (f64::from(bits) + 0.5) / 4_294_967_296.0;
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180_625 - q * q;
        let numerator = ((59.109_374_720 * r + 159.291_132_02) * r + 50.434_271_938) * r + 3.387_132_717_9;
        let denominator = ((67.187_563_600 * r + 78.757_757_664) * r + 17.895_169_469) * r + 1.0;
        return (q * numerator / denominator) as f32;
    }
    let r = (-p.min(1.0 - p).ln()).sqrt() - 1.6;
    let numerator = ((0.170_238_211_03 * r + 1.306_728_481_6) * r + 2.756_815_390_0) * r + 1.423_437_277_7;
    let denominator = (0.120_211_329_75 * r + 0.737_001_642_50) * r + 1.0;
    (numerator / denominator).copysign(q) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverts_the_normal_distribution() {
        for (p, expected) in
            [(0.5, 0.0), (0.841_344_746, 1.0), (0.975, 1.959_964), (0.000_5, -3.290_527), (1e-8, -5.612_001)]
        {
            let got = normal((p * 4_294_967_296.0) as u32);
            assert!((got - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{p}: {got}, expected {expected}");
        }
        assert!(normal(0) == -normal(u32::MAX) && normal(0) < -6.0 && normal(0).is_finite());
    }

    #[test]
    fn has_the_moments_of_a_normal_distribution() {
        let mut values = vec![0.0; 1 << 20];
        Stream::new(42, "a").fill(0, (0.0, 1.0), &mut values);
        let moment = |k| values.iter().map(|v| f64::from(*v).powi(k)).sum::<f64>() / values.len() as f64;
        // Five standard errors of each moment at this many values.
        for (k, expected, tolerance) in [(1, 0.0, 0.005), (2, 1.0, 0.007), (3, 0.0, 0.02), (4, 3.0, 0.05)] {
            assert!((moment(k) - expected).abs() < tolerance, "moment {k}: {}", moment(k));
        }
    }

    #[test]
    fn gives_the_same_values_whatever_the_pieces_and_others_for_another_name() {
        let whole = |name| {
            let mut values = vec![0.0; 1000];
            Stream::new(7, name).fill(0, (0.0, 1.0), &mut values);
            values
        };
        let mut pieces = vec![0.0; 1000];
        let (head, tail) = pieces.split_at_mut(338);
        Stream::new(7, "a").fill(338, (0.0, 1.0), tail);
        Stream::new(7, "a").fill(0, (0.0, 1.0), head);
        assert_eq!(pieces, whole("a"));
        assert!(whole("a").iter().zip(whole("b")).filter(|(a, b)| **a == *b).count() < 5);
    }
}
