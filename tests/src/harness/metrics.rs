//! `GET /metrics`: the Prometheus text format, read as far as a test needs it.

use std::collections::BTreeMap;

/// One reading: every series by its full name, labels included, in the order of names.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[serde(transparent)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the text of `GET /metrics`. Lines that are no samples are passed over.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            // A label's value may hold spaces, so the series ends after the closing brace.
            let end = line.rfind('}').map_or_else(|| line.find(' '), |at| Some(at + 1))?;
            let (series, rest) = line.split_at(end);
            let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
            Some((series.to_owned(), value))
        });
        Self(samples.collect())
    }

    /// The sum of all series of the metric `name`, or none when there is no such series.
    pub fn total(&self, name: &str) -> Option<f64> {
        let series = self.0.iter().filter(|(series, _)| series.split('{').next() == Some(name));
        series.map(|(_, value)| *value).reduce(|a, b| a + b)
    }

    /// The series of the metric `name` that are not 0, added up by the value of one of their labels.
    pub fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (series, value) in self.0.iter().filter(|(_, value)| **value != 0.0) {
            let Some(labels) = series.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')) else { continue };
            let Some((_, rest)) = labels.split_once(&format!("{label}=\"")) else { continue };
            *sums.entry(rest.split('"').next().unwrap_or_default().to_owned()).or_default() += value;
        }
        sums
    }

    /// What changed from `before` to `self`; a series that is new counts from zero.
    pub fn since(&self, before: &Self) -> Self {
        let moved = self.0.iter().map(|(series, value)| (series, value - before.0.get(series).unwrap_or(&0.0)));
        Self(moved.filter(|(_, delta)| *delta != 0.0).map(|(series, delta)| (series.clone(), delta)).collect())
    }

    /// How much the metric `name` moved from `before` to `self`.
    pub fn moved(&self, before: &Self, name: &str) -> Option<f64> {
        self.total(name).map(|after| after - before.total(name).unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP vllm:generation_tokens Tokens.\n# TYPE vllm:generation_tokens counter\n\
        vllm:generation_tokens_total{model_name=\"a model {x}\"} 17\nvllm:generation_tokens_total{model_name=\"b\"} 3\n\
        vllm:num_requests_running 2.5 1700000000\nprocess_nan NaN\n# EOF\n";

    #[test]
    fn sums_the_series_of_a_metric() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.total("vllm:generation_tokens_total"), Some(20.0));
        assert_eq!(metrics.total("vllm:num_requests_running"), Some(2.5));
        assert_eq!(metrics.total("vllm:generation_tokens"), None);
    }

    #[test]
    fn adds_up_by_a_label() {
        let text = "a_total{m=\"x\",outcome=\"stop\"} 2\na_total{m=\"y\",outcome=\"stop\"} 1\n\
            a_total{m=\"x\",outcome=\"abort\"} 0\nb_total{outcome=\"stop\"} 5\n";
        let sums = Metrics::parse(text).by_label("a_total", "outcome");
        assert_eq!(sums, BTreeMap::from([("stop".to_owned(), 3.0)]));
    }

    #[test]
    fn tells_what_moved() {
        let before = Metrics::parse(TEXT);
        let after = Metrics::parse(&TEXT.replace(" 17\n", " 34\n"));
        assert_eq!(after.moved(&before, "vllm:generation_tokens_total"), Some(17.0));
        assert_eq!(after.moved(&Metrics::default(), "vllm:num_requests_running"), Some(2.5));
        assert_eq!(after.moved(&before, "absent"), None);
        let delta = after.since(&before);
        assert_eq!(delta.total("vllm:generation_tokens_total"), Some(17.0));
        assert_eq!(delta.total("vllm:num_requests_running"), None);
    }
}
