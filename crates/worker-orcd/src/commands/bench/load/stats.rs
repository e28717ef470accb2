//! What the answers add up to: histograms of latencies, counts, rates. No sockets, no clocks.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The longest latency that is told apart, in microseconds: one hour.
const MAX_MICROS: u64 = 3_600_000_000;
/// Digits that a latency keeps.
const DIGITS: u8 = 3;
/// The longest bar, in characters.
const BAR_WIDTH: u64 = 50;

/// What became of one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sample {
    /// When each token came, counted from when the request was to be sent.
    pub(crate) tokens: Vec<Duration>,
    /// When the terminal event came, or the fault.
    pub(crate) total: Duration,
    /// Tokens of the prompt, as the server counts them.
    pub(crate) n_prompt: u64,
    /// Why there is no whole answer: an error code.
    pub(crate) error: Option<String>,
}

/// Everything that was seen. Latencies and tokens are those of answered requests alone.
#[derive(Debug)]
pub(crate) struct Stats {
    /// From when a request was to be sent to its first token.
    pub(crate) first: Latency,
    /// Between one token and the next.
    pub(crate) between: Latency,
    /// From when a request was to be sent to the end of its answer.
    pub(crate) total: Latency,
    /// Each answer's tokens a second, from its first token to its last.
    pub(crate) speed: Speed,
    pub(crate) n_answered: u64,
    pub(crate) n_prompt_tokens: u64,
    pub(crate) n_tokens: u64,
    /// How often each code came.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            first: Latency::new(),
            between: Latency::new(),
            total: Latency::new(),
            speed: Speed::new(),
            n_answered: 0,
            n_prompt_tokens: 0,
            n_tokens: 0,
            errors: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, sample: &Sample) {
        if let Some(code) = &sample.error {
            *self.errors.entry(code.clone()).or_default() += 1;
            return;
        }
        self.n_answered += 1;
        self.n_prompt_tokens += sample.n_prompt;
        self.n_tokens += sample.tokens.len() as u64;
        self.total.record(sample.total);
        if let Some(first) = sample.tokens.first() {
            self.first.record(*first);
        }
        if let [first, .., last] = sample.tokens[..] {
            self.speed.record((sample.tokens.len() - 1) as f64 / (last.saturating_sub(first)).as_secs_f64());
        }
        for pair in sample.tokens.windows(2) {
            self.between.record(pair[1].saturating_sub(pair[0]));
        }
    }

    pub(crate) fn n_failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Tokens of the prompts, on average.
    pub(crate) fn mean_prompt(&self) -> f64 {
        self.n_prompt_tokens as f64 / self.n_answered.max(1) as f64
    }

    /// As JSON, `wall` being the time from the first request to the last answer.
    pub(crate) fn as_json(&self, wall: Duration) -> Value {
        let per_second = |n: u64| n as f64 / wall.as_secs_f64().max(f64::MIN_POSITIVE);
        json!({
            "seconds": wall.as_secs_f64(),
            "answered": self.n_answered,
            "failed": self.n_failed(),
            "errors": self.errors,
            "requests_per_sec": per_second(self.n_answered),
            "tokens_out": self.n_tokens,
            "tokens_per_sec": per_second(self.n_tokens),
            "prompt_tokens": self.n_prompt_tokens,
            "prompt_tokens_per_sec": per_second(self.n_prompt_tokens),
            "ttft_ms": self.first.as_json(),
            "inter_token_ms": self.between.as_json(),
            "end_to_end_ms": self.total.as_json(),
            "answer_tokens_per_sec": self.speed.as_json(),
        })
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_MICROS, DIGITS).expect("the bounds are constants that fit")
}

/// A histogram of speeds, to three digits.
#[derive(Debug)]
pub(crate) struct Speed(Histogram<u64>);

/// Parts of a token a second that are told apart.
const SPEED_STEPS: f64 = 1e3;

impl Speed {
    fn new() -> Self {
        Self(histogram())
    }

    /// Tokens a second; of tokens that came all at once nothing can be said.
    fn record(&mut self, speed: f64) {
        if speed.is_finite() {
            self.0.saturating_record((speed * SPEED_STEPS) as u64);
        }
    }

    /// Tokens a second: mean, then what half, nine tenths and 99 of 100 answers reach, and the least.
    pub(crate) fn row(&self) -> [f64; 5] {
        let quantile = |q: f64| self.0.value_at_quantile(q) as f64 / SPEED_STEPS;
        [self.0.mean() / SPEED_STEPS, quantile(0.5), quantile(0.1), quantile(0.01), self.0.min() as f64 / SPEED_STEPS]
    }

    fn as_json(&self) -> Value {
        let [mean, p50, p10, p1, min] = self.row();
        json!({"count": self.0.len(), "mean": mean, "p50": p50, "p10": p10, "p1": p1, "min": min})
    }
}

/// A histogram of times, to three digits.
#[derive(Debug)]
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    fn new() -> Self {
        Self(histogram())
    }

    fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(MAX_MICROS));
    }

    /// In milliseconds: mean, p50, p90, p99 and the longest.
    pub(crate) fn row(&self) -> [f64; 5] {
        let quantile = |q: f64| self.0.value_at_quantile(q) as f64 / 1e3;
        [self.0.mean() / 1e3, quantile(0.5), quantile(0.9), quantile(0.99), self.0.max() as f64 / 1e3]
    }

    fn as_json(&self) -> Value {
        let [mean, p50, p90, p99, max] = self.row();
        let min = self.0.min() as f64 / 1e3;
        json!({"count": self.0.len(), "mean": mean, "min": min, "p50": p50, "p90": p90, "p99": p99, "max": max})
    }

    /// A bar for each range of times that has any, ranges growing as 1, 2, 5, 10, 20, 50, …; empty where nothing was
    /// recorded.
    pub(crate) fn bars(&self) -> String {
        let (mut rows, mut low) = (Vec::new(), 0);
        for high in one_two_five() {
            let (least, most) = (self.0.min(), self.0.max());
            // The upper end belongs to the next range.
            if !self.0.is_empty() && high > least && low <= most {
                // Each kept value stands for a few neighbours, and counts where it lies itself: in one range.
                let within = self.0.iter_recorded().filter(|kept| (low..high).contains(&kept.value_iterated_to()));
                rows.push((low, high, within.map(|kept| kept.count_at_value()).sum::<u64>()));
            }
            low = high;
        }
        let most = rows.iter().map(|row| row.2).max().unwrap_or(0).max(1);
        let line = |(low, high, n): (u64, u64, u64)| {
            let n_eighths = (n * BAR_WIDTH * 8).div_ceil(most);
            format!("{:>10} to {:<10}{} {n}\n", shown(low), shown(high), bar(n_eighths))
        };
        rows.into_iter().map(line).collect()
    }
}

/// 1, 2, 5, 10, 20, 50, … microseconds, up to what is told apart.
fn one_two_five() -> impl Iterator<Item = u64> {
    let decades = std::iter::successors(Some(1u64), |n| n.checked_mul(10)).take_while(|n| *n <= MAX_MICROS);
    decades.flat_map(|n| [n, 2 * n, 5 * n])
}

/// A bar of so many eighths of a character.
fn bar(n_eighths: u64) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    "█".repeat((n_eighths / 8) as usize) + PARTS[(n_eighths % 8) as usize]
}

/// Microseconds as people write them.
fn shown(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{} s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn answered(tokens: &[u64], total: u64) -> Sample {
        Sample { tokens: tokens.iter().copied().map(ms).collect(), total: ms(total), n_prompt: 10, error: None }
    }

    fn near(got: f64, expected: f64) {
        // Three digits are kept.
        assert!((got - expected).abs() <= expected * 2e-3, "{got}, not {expected}");
    }

    #[test]
    fn adds_up_answers_and_faults() {
        let mut stats = Stats::new();
        stats.add(&answered(&[20, 30, 50], 60));
        stats.add(&answered(&[40], 41));
        let failed = |code: &str| Sample { error: Some(code.into()), ..answered(&[1], 1) };
        ["QUEUE_FULL", "INTERNAL", "QUEUE_FULL"].iter().for_each(|code| stats.add(&failed(code)));
        assert_eq!((stats.n_answered, stats.n_tokens, stats.n_failed()), (2, 4, 3));
        assert_eq!(stats.errors, BTreeMap::from([("INTERNAL".into(), 1), ("QUEUE_FULL".into(), 2)]));
        let json = stats.as_json(ms(500));
        assert_eq!((json["ttft_ms"]["count"].as_u64(), json["inter_token_ms"]["count"].as_u64()), (Some(2), Some(2)));
        near(json["ttft_ms"]["mean"].as_f64().unwrap(), 30.0);
        near(json["inter_token_ms"]["max"].as_f64().unwrap(), 20.0);
        near(json["end_to_end_ms"]["min"].as_f64().unwrap(), 41.0);
        near(json["tokens_per_sec"].as_f64().unwrap(), 8.0);
        // Two tokens in 30 ms behind the first; the other answer has but one.
        assert_eq!(json["answer_tokens_per_sec"]["count"], 1);
        near(json["answer_tokens_per_sec"]["p50"].as_f64().unwrap(), 66.67);
        near(json["requests_per_sec"].as_f64().unwrap(), 4.0);
        near(json["prompt_tokens_per_sec"].as_f64().unwrap(), 40.0);
        assert_eq!(stats.mean_prompt(), 10.0);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let mut stats = Stats::new();
        for n in (1..=1000).rev() {
            stats.add(&answered(&[n], 2 * n));
        }
        let expected = [500.5, 500.0, 900.0, 990.0, 1000.0];
        stats.first.row().into_iter().zip(expected).for_each(|(got, expected)| near(got, expected));
    }

    #[test]
    fn slow_answers_are_the_low_percentiles_of_speed() {
        let mut stats = Stats::new();
        // 1 to 1000 tokens a second.
        for n in 1..=1000u64 {
            let last = Duration::from_secs_f64(1.0 / n as f64);
            stats.add(&Sample { tokens: vec![Duration::ZERO, last], ..answered(&[], 1) });
        }
        let expected = [500.5, 500.0, 100.0, 10.0, 1.0];
        stats.speed.row().into_iter().zip(expected).for_each(|(got, expected)| near(got, expected));
    }

    #[test]
    fn nothing_seen_gives_zeros_and_no_bars() {
        let stats = Stats::new();
        assert_eq!(stats.total.row(), [0.0; 5]);
        assert_eq!(stats.total.bars(), "");
        assert_eq!(stats.as_json(Duration::ZERO)["tokens_per_sec"], 0.0);
        assert_eq!(stats.mean_prompt(), 0.0);
    }

    #[test]
    fn a_time_beyond_the_histogram_counts_as_its_longest() {
        let mut stats = Stats::new();
        stats.add(&answered(&[u64::MAX / 1000], 1));
        near(stats.first.row()[4], 3_600_000.0);
        assert!(stats.first.bars().contains("2000 s to 5000 s"), "{}", stats.first.bars());
    }

    #[test]
    fn bars_count_every_time_once() {
        let mut stats = Stats::new();
        // 2 ms is the beginning of a range, not the end of one.
        [1, 1, 2, 2, 2, 2, 9, 60].iter().for_each(|n| stats.add(&answered(&[*n], *n)));
        insta::assert_snapshot!(stats.first.bars());
    }

    #[test]
    fn a_time_next_to_the_end_of_a_range_is_in_one_of_them() {
        let mut latency = Latency::new();
        [40_000, 49_990, 50_000, 50_010, 100_020]
            .map(Duration::from_micros)
            .into_iter()
            .for_each(|time| latency.record(time));
        let counts =
            latency.bars().lines().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>();
        assert_eq!(counts, 5, "{}", latency.bars());
    }
}
