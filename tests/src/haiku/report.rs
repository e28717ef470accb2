//! `test_report.md`: the run for a reader.

use std::fmt::Write as _;

use super::record::{GoldenRecord, Record};

/// The whole report.
pub(super) fn markdown(record: &Record) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_report(&mut text, record);
    text
}

fn write_report(out: &mut String, record: &Record) -> std::fmt::Result {
    let verdict = if record.passed() { "passed" } else { "FAILED" };
    writeln!(out, "# Haiku run {}: {verdict}\n", record.run_id)?;
    writeln!(out, "| | |\n|---|---|")?;
    let ready = record.ready_ms.map_or_else(|| "never".to_owned(), |ms| format!("{:.2} s", ms / 1e3));
    let rows = [
        ("started", record.started_at.clone()),
        ("worker", format!("`{}`", record.worker)),
        ("model", record.model.clone()),
        ("device", record.health["device"].as_str().unwrap_or("unknown").to_owned()),
        ("ready after", ready),
        ("minute word", record.minute_word.clone()),
        ("prompt", format!("`{}`", record.prompt.replace('\n', "\\n"))),
        ("5-7-5", record.is_5_7_5.map_or_else(String::new, |yes| if yes { "yes" } else { "no" }.to_owned())),
    ];
    for (name, value) in rows {
        writeln!(out, "| {name} | {} |", value.replace('|', "\\|"))?;
    }
    if let Some(haiku) = &record.haiku {
        writeln!(out, "\n```text\n{}\n```", haiku.trim())?;
    }
    write_checks(out, record)?;
    for comparison in &record.comparisons {
        write_comparison(out, comparison)?;
    }
    if let Some(error) = &record.error {
        writeln!(out, "\n## The run was cut short\n\n```text\n{error}\n```")?;
    }
    Ok(())
}

fn write_checks(out: &mut String, record: &Record) -> std::fmt::Result {
    writeln!(out, "\n## Checks\n\n| | claim | found |\n|---|---|---|")?;
    for check in &record.checks {
        let mark = if check.passed { "ok" } else { "**FAILED**" };
        let found = check.found.replace('|', "\\|").replace('\n', "\\n");
        writeln!(out, "| {mark} | {} | {found} |", check.claim)?;
    }
    Ok(())
}

fn write_comparison(out: &mut String, golden: &GoldenRecord) -> std::fmt::Result {
    let rule = if golden.must_pass { "every gate must hold" } else { "a gate must fail" };
    writeln!(out, "\n## Against the golden file: {} ({rule})\n", golden.of)?;
    writeln!(out, "| gate | measured | limit | margin |\n|---|---|---|---|")?;
    for gate in &golden.gates {
        let (measured, limit) = (figure(gate.measured), figure(gate.limit));
        writeln!(out, "| {} | {measured} | {limit} | {} |", gate.what, margin(gate.measured, gate.limit))?;
    }
    let c = &golden.comparison;
    writeln!(
        out,
        "\n{} of {} greedy steps and {} log-probabilities compared; largest difference {}; near ties: {}.",
        c.n_compared,
        c.n_steps,
        c.n_logprobs,
        figure(c.max_abs),
        c.n_exempt
    )?;
    if let Some(difference) = &c.first_difference {
        writeln!(out, "First difference: {difference}.")?;
    }
    Ok(())
}

/// A measure against its limit, in words.
pub(super) fn margin(measured: f64, limit: f64) -> String {
    match measured / limit {
        _ if limit == 0.0 => if measured == 0.0 { "holds" } else { "above" }.to_owned(),
        0.0 => "nothing".to_owned(),
        share if share <= 1.0 => format!("1/{:.0} of the limit", (1.0 / share).floor()),
        share => format!("{share:.1} times the limit"),
    }
}

/// Two or three significant digits, whatever the size.
pub(super) fn figure(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v.abs() < 0.001 => format!("{v:.1e}"),
        v if v.abs() < 1.0 => format!("{v:.4}"),
        v if v.fract() == 0.0 => format!("{v}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_a_measure_against_its_limit() {
        assert_eq!(margin(0.001, 0.01), "1/10 of the limit");
        assert_eq!(margin(0.009, 0.01), "1/1 of the limit");
        assert_eq!(margin(0.3, 0.01), "30.0 times the limit");
        assert_eq!(margin(0.0, 0.01), "nothing");
        assert_eq!(margin(0.0, 0.0), "holds");
        assert_eq!(margin(1.0, 0.0), "above");
        assert_eq!(margin(f64::NAN, 0.01), "NaN times the limit");
    }

    #[test]
    fn writes_figures_of_every_size() {
        let all = [0.0, 0.00012345, 0.0123, 3.0, 12.345].map(figure);
        assert_eq!(all, ["0", "1.2e-4", "0.0123", "3", "12.35"]);
    }
}
