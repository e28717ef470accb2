//! When a job's milestones were seen, and the figures that follow.

use std::time::{Duration, Instant};

use engine::Timings;

/// Time between two `metrics` events of a job. An answer that takes less has none.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// Tokens a second after the first, rounded to a tenth; 0 when there is no second one.
pub(super) fn tokens_per_sec(n_tokens: usize, decode: Duration) -> f64 {
    if n_tokens < 2 || decode.is_zero() {
        return 0.0;
    }
    ((n_tokens - 1) as f64 / decode.as_secs_f64() * 10.0).round() / 10.0
}

/// The time before a token.
pub(super) enum Gap {
    /// From the request to the first one.
    BeforeFirst(Duration),
    /// From the one before.
    BetweenTokens(Duration),
}

/// When an answer's milestones were seen from here. The engine's own figures come only with an answer that ends by itself, and
/// all answers are to be timed alike.
pub(super) struct Clock {
    pub(super) received: Instant,
    /// When the engine had it.
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    last_metrics: Option<Instant>,
}

impl Clock {
    pub(super) fn new(received: Instant, submitted: Instant) -> Self {
        Self { received, submitted, admitted: None, first_token: None, last_token: None, last_metrics: None }
    }

    pub(super) fn admitted(&mut self) {
        self.admitted = Some(Instant::now());
    }

    /// A token was seen.
    pub(super) fn token(&mut self) -> Gap {
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(last) => Gap::BetweenTokens(now - last),
            None => {
                self.first_token = Some(now);
                Gap::BeforeFirst(now - self.received)
            }
        }
    }

    /// From the request to the first token.
    pub(super) fn before_first_token(&self) -> Option<Duration> {
        self.first_token.map(|first| first - self.received)
    }

    /// Whether [`METRICS_INTERVAL`] has passed since the last time this was so, or since the first token.
    pub(super) fn metrics_due(&mut self) -> bool {
        let now = Instant::now();
        let since = self.last_metrics.or(self.first_token).unwrap_or(now);
        let due = now.duration_since(since) >= METRICS_INTERVAL;
        if due {
            self.last_metrics = Some(now);
        }
        due
    }

    /// What has passed so far; a stage that is not over ends now.
    pub(super) fn timings(&self) -> Timings {
        let now = Instant::now();
        let queued = self.admitted.unwrap_or(now) - self.submitted;
        let prefill = self.admitted.map_or(Duration::ZERO, |admitted| self.first_token.unwrap_or(now) - admitted);
        let decode = match (self.first_token, self.last_token) {
            (Some(first), Some(last)) => last - first,
            _ => Duration::ZERO,
        };
        Timings { queued, prefill, decode }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_queue_is_part_of_the_first_tokens_time_and_not_of_the_queues() {
        let (now, before) = (Instant::now(), Duration::from_secs(3600));
        let mut clock = Clock::new(now.checked_sub(before).unwrap_or(now), now);
        clock.admitted();
        let Gap::BeforeFirst(time) = clock.token() else { panic!("it is the first") };
        assert_eq!(clock.before_first_token(), Some(time));
        let Timings { queued, prefill, decode } = clock.timings();
        assert!(time >= before && queued + prefill < before && decode == Duration::ZERO);
    }
}
