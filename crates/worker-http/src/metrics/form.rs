//! The two forms of the text: Prometheus' own, which every scraper reads, and OpenMetrics for those who ask for it.
//!
//! The registry's library writes OpenMetrics. As far as this worker's metrics go (counters, gauges, histograms) the two
//! differ in three places: a counter's `# HELP` and `# TYPE` name it without and with `_total`, there is an end mark, and
//! the content type.

use axum::http::{HeaderMap, header};

/// A way to write metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextForm {
    /// Prometheus text, version 0.0.4.
    Prometheus,
    /// OpenMetrics text, version 1.0.0.
    OpenMetrics,
}

impl TextForm {
    /// What a request accepts: OpenMetrics where it is named and not refused, as Prometheus' scrapers do.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let names_it = ranges.flat_map(|value| value.split(',')).any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            is_it && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        });
        if names_it { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// For the response's head.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// OpenMetrics text without its end mark, in Prometheus' form: a counter's description names its series.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len() + 1024);
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        // The type decides, and comes after the help.
        let typed = if line.starts_with("# HELP ") { lines.peek().copied().unwrap_or_default() } else { line };
        let counter = typed.strip_prefix("# TYPE ").and_then(|typed| typed.strip_suffix(" counter"));
        // Both kinds of lines begin with seven bytes and the name.
        match counter.and_then(|name| line.split_at_checked(7 + name.len())) {
            Some((named, rest)) => text.extend([named, "_total", rest]),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_series() {
        let openmetrics = "# HELP a:jobs Jobs done.\n# TYPE a:jobs counter\na:jobs_total{b=\" counter\"} 1\n\
            # HELP size A counter.\n# TYPE size gauge\nsize 1\n";
        let prometheus = "# HELP a:jobs_total Jobs done.\n# TYPE a:jobs_total counter\na:jobs_total{b=\" counter\"} 1\n\
            # HELP size A counter.\n# TYPE size gauge\nsize 1\n";
        assert_eq!(to_prometheus(openmetrics), prometheus);
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let form = |accept: &'static str| {
            TextForm::of(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert_eq!(TextForm::of(&HeaderMap::new()), TextForm::Prometheus);
        assert_eq!(form("*/*"), TextForm::Prometheus);
        assert_eq!(form("text/plain;version=0.0.4;q=0.5,*/*;q=0.1"), TextForm::Prometheus);
        assert_eq!(form("application/openmetrics-text;q=0, text/plain"), TextForm::Prometheus);
        let prometheus_2 = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(form(prometheus_2), TextForm::OpenMetrics);
    }
}
