//! What the clients saw against what the worker says it did.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::ledger::{Ledger, Seen};
use super::report::Check;
use crate::harness::Metrics;

/// Differences that a check quotes.
const MAX_QUOTED: usize = 5;

/// A job that the worker says has ended.
#[derive(Debug, Clone, PartialEq)]
struct LoggedJob {
    outcome: String,
    n_tokens: u64,
}

/// The worker's log, by the label of the request that a line belongs to.
#[derive(Debug, Default)]
struct Log {
    jobs: HashMap<String, Vec<LoggedJob>>,
    refusals: HashMap<String, Vec<String>>,
    /// How the requests for answers ended, as `worker_requests_total` divides them.
    outcomes: BTreeMap<String, u64>,
}

/// The routes that answer with tokens, whose requests `worker_requests_total` counts.
const ANSWERING: [&str; 3] = ["/execute", "/v1/chat/completions", "/v1/completions"];

impl Log {
    fn read(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let Some(label) = line["span"]["correlation_id"].as_str() else { continue };
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            let mut count = |outcome: String| *log.outcomes.entry(outcome).or_default() += 1;
            match line["message"].as_str() {
                Some("client left before its job began") => count(text("outcome")),
                Some("job done") => {
                    count(text("outcome"));
                    let n_tokens = line["tokens_out"].as_u64().unwrap_or_default();
                    log.jobs.entry(label.into()).or_default().push(LoggedJob { outcome: text("outcome"), n_tokens });
                }
                Some("refused") => {
                    let code = text("code");
                    // By another method it was no request for an answer.
                    if line["method"] == "POST" && ANSWERING.contains(&text("path").as_str()) {
                        count(code.clone());
                    }
                    log.refusals.entry(label.into()).or_default().push(code);
                }
                _ => {}
            }
        }
        log
    }
}

/// Whether every request was answered as it should be.
pub(super) fn of_answers(ledger: &Ledger) -> Vec<Check> {
    let mut wrong = Vec::new();
    let mut other = Vec::new();
    let mut n_whole = 0;
    for entry in &ledger.entries {
        match &entry.seen {
            Seen::Wrong(what) => wrong.push(format!("{}: {what}", entry.label)),
            Seen::Whole { as_alone, .. } => {
                n_whole += 1;
                if !as_alone {
                    other.push(entry.label.clone());
                }
            }
            _ => {}
        }
    }
    let n = ledger.entries.len();
    vec![
        Check::of_faults(
            "every request is answered, refused or let go as it should be",
            &format!("{n} requests"),
            &wrong,
        ),
        Check::of_faults("every whole answer is the one given alone", &format!("{n_whole} answers"), &other),
    ]
}

/// Whether the worker's log and counters tell of the same jobs as the clients.
pub(super) fn against_the_log(ledger: &Ledger, log: &str, metrics: &Metrics) -> Vec<Check> {
    let mut log = Log::read(log);
    let n_jobs: usize = log.jobs.values().map(Vec::len).sum();
    let n_refusals: usize = log.refusals.values().map(Vec::len).sum();
    let logged_tokens: u64 = log.jobs.values().flatten().map(|job| job.n_tokens).sum();
    let outcomes = tally(log.jobs.values().flatten().map(|job| job.outcome.as_str()));
    let requests: BTreeMap<String, u64> =
        metrics.by_label("worker_requests_total", "outcome").into_iter().map(|(name, n)| (name, n as u64)).collect();
    let are_counted = requests == log.outcomes && !requests.is_empty();
    let told = format!("counted {requests:?}, logged {:?}", log.outcomes);
    let mut faults = Vec::new();
    for entry in &ledger.entries {
        let jobs = log.jobs.remove(&entry.label).unwrap_or_default();
        let refusals = log.refusals.remove(&entry.label).unwrap_or_default();
        if !agree(&entry.seen, &jobs, &refusals) {
            faults.push(format!("{}: {:?}, logged: {jobs:?} {refusals:?}", entry.label, entry.seen));
        }
    }
    let strangers: Vec<String> = log.jobs.into_keys().chain(log.refusals.into_keys()).collect();
    let counted = metrics.total("vllm:generation_tokens_total");
    let logged = format!("{n_jobs} jobs ({outcomes}), {n_refusals} refusals");
    vec![
        Check::of_faults("each job and each refusal is logged once, as its client saw it", &logged, &faults),
        Check::of_faults("nothing is logged that no client asked for", &logged, &strangers),
        Check::new("worker_requests_total counts each request for an answer once", are_counted, told),
        Check::new(
            "the token counter moved by the tokens of all jobs",
            counted == Some(logged_tokens as f64) && logged_tokens > 0,
            format!("{counted:?}, logged {logged_tokens}"),
        ),
    ]
}

/// Whether the log has what must come of such a request, and nothing else.
fn agree(seen: &Seen, jobs: &[LoggedJob], refusals: &[String]) -> bool {
    let has_ended = |job: &LoggedJob| ["stop", "length"].contains(&job.outcome.as_str());
    let is_left = |job: &LoggedJob| job.outcome == "abort" || has_ended(job);
    match (seen, jobs, refusals) {
        (Seen::Whole { n_tokens, .. } | Seen::Slow { n_tokens } | Seen::TooLate { n_tokens }, [job], []) => {
            has_ended(job) && job.n_tokens == *n_tokens
        }
        (Seen::Cancelled, [job], []) => job.outcome == "CANCELLED",
        (Seen::Left { .. }, [job], []) => is_left(job),
        // Its client cannot know whether it was accepted, refused, or never read.
        (Seen::Left { accepted: false }, [], [] | [_]) => true,
        (Seen::Refused(code), [], [logged]) => code == logged,
        // A body that breaks off is refused, though nobody is left to be told.
        (Seen::Garbage(_), [], [] | [_]) => true,
        // Its own check has failed already.
        (Seen::Wrong(_), ..) => true,
        _ => false,
    }
}

fn tally<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    counts.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

impl Check {
    /// Holds if there are no faults; quotes the first few.
    fn of_faults(claim: &'static str, what: &str, faults: &[String]) -> Self {
        let quoted = faults.iter().take(MAX_QUOTED).cloned().collect::<Vec<_>>().join("; ");
        let found = if faults.is_empty() { what.to_owned() } else { format!("{} of {what}: {quoted}", faults.len()) };
        Self::new(claim, faults.is_empty(), found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(label: &str, outcome: &str, n: u64) -> String {
        format!(
            "{{\"message\":\"job done\",\"outcome\":\"{outcome}\",\"tokens_out\":{n},\
             \"span\":{{\"correlation_id\":\"{label}\"}}}}\n"
        )
    }

    fn verdicts(entries: &[(&str, Seen)], log: &str, n_tokens: u32) -> Vec<bool> {
        let mut ledger = Ledger::default();
        entries.iter().for_each(|(label, seen)| ledger.add((*label).into(), seen.clone()));
        let metrics = Metrics::parse(&format!("vllm:generation_tokens_total {n_tokens}\n"));
        let checks = against_the_log(&ledger, log, &metrics);
        checks
            .iter()
            .filter(|check| !check.claim.starts_with("worker_requests_total"))
            .map(|check| check.passed)
            .collect()
    }

    #[test]
    fn jobs_lost_doubled_and_mistaken_are_found() {
        let whole = ("a", Seen::Whole { n_tokens: 3, as_alone: true });
        let log = job("a", "stop", 3);
        assert_eq!(verdicts(std::slice::from_ref(&whole), &log, 3), [true, true, true]);
        assert_eq!(verdicts(std::slice::from_ref(&whole), &log, 4), [true, true, false]);
        assert_eq!(verdicts(std::slice::from_ref(&whole), &job("b", "stop", 3), 3), [false, false, true]);
        assert_eq!(verdicts(std::slice::from_ref(&whole), &(log.clone() + &log), 6), [false, true, true]);
        assert_eq!(verdicts(std::slice::from_ref(&whole), &job("a", "abort", 3), 3), [false, true, true]);
        assert_eq!(verdicts(&[whole], &job("a", "stop", 2), 2), [false, true, true]);
    }

    #[test]
    fn those_who_left_may_have_been_answered() {
        for (accepted, logged, agrees) in [(true, "stop", true), (true, "abort", true), (true, "CANCELLED", false)] {
            let log = job("a", logged, 1);
            assert_eq!(verdicts(&[("a", Seen::Left { accepted })], &log, 1)[0], agrees, "{logged}");
        }
        let other = job("b", "stop", 1);
        let b = ("b", Seen::Slow { n_tokens: 1 });
        assert!(verdicts(&[b.clone(), ("a", Seen::Left { accepted: false })], &other, 1)[0]);
        assert!(!verdicts(&[b, ("a", Seen::Left { accepted: true })], &other, 1)[0]);
    }

    #[test]
    fn the_counter_is_held_against_jobs_refusals_and_those_who_left_early() {
        let line = |message: &str, rest: &str| {
            format!("{{\"message\":\"{message}\",{rest},\"span\":{{\"correlation_id\":\"x\"}}}}\n")
        };
        let refused = |method: &str, path: &str, code: &str| {
            line("refused", &format!("\"method\":\"{method}\",\"path\":\"{path}\",\"code\":\"{code}\""))
        };
        let log = job("a", "stop", 1)
            + &line("client left before its job began", "\"outcome\":\"abort\"")
            + &refused("POST", "/execute", "QUEUE_FULL")
            + &refused("POST", "/cancel", "INVALID_REQUEST")
            + &refused("DELETE", "/execute", "METHOD_NOT_ALLOWED");
        let holds = |counted: &str| {
            let text: String = counted
                .split(' ')
                .map(|outcome| format!("worker_requests_total{{model_name=\"m\",outcome=\"{outcome}\"}} 1\n"))
                .collect();
            let checks = against_the_log(&Ledger::default(), &log, &Metrics::parse(&text));
            checks
                .iter()
                .find(|check| check.claim.starts_with("worker_requests_total"))
                .is_some_and(|check| check.passed)
        };
        assert!(holds("stop abort QUEUE_FULL"));
        assert!(!holds("stop abort"));
        assert!(!holds("stop abort QUEUE_FULL INVALID_REQUEST"));
    }

    #[test]
    fn faults_are_quoted_up_to_a_limit() {
        let faults: Vec<String> = (0..9).map(|i| i.to_string()).collect();
        assert_eq!(Check::of_faults("c", "20 jobs", &faults).found, "9 of 20 jobs: 0; 1; 2; 3; 4");
    }
}
