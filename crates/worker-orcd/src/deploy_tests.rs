//! The files in `deploy/` say nothing that this worker does not understand.

use std::collections::BTreeSet;

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::config;

const SERVICE: &str = include_str!("../../../deploy/worker-orcd.service");
const CONTAINER: &str = include_str!("../../../deploy/Containerfile");
const KUBERNETES: &str = include_str!("../../../deploy/kubernetes.yaml");
const CONFIG: &str = include_str!("../../../deploy/worker.toml");
const README: &str = include_str!("../../../deploy/README.md");

/// The words of `text` that begin with `start` and go on with what `is_part` accepts.
fn words<'t>(text: &'t str, start: &str, is_part: fn(char) -> bool) -> Vec<&'t str> {
    text.match_indices(start)
        .map(|(at, _)| {
            let rest = &text[at + start.len()..];
            &text[at..at + start.len() + rest.find(|c| !is_part(c)).unwrap_or(rest.len())]
        })
        .collect()
}

/// The number behind `key`.
fn seconds(text: &str, key: &str) -> u64 {
    let rest = text.split_once(key).unwrap_or_else(|| panic!("{key}")).1.trim_start_matches([' ', '=', ':']);
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().expect(key)
}

/// The file in the ConfigMap.
fn config_map() -> String {
    let block = KUBERNETES.split_once("worker.toml: |\n").expect("a file").1.split("---").next().expect("its end");
    block.lines().map(|line| line.trim_start().to_owned() + "\n").collect()
}

#[test]
fn every_flag_in_deploy_exists() {
    let whole = Cli::command();
    let known: BTreeSet<String> =
        whole.get_arguments().filter_map(|arg| arg.get_long()).map(|flag| format!("--{flag}")).collect();
    // Lines that start this worker; the others start other programs, with flags of their own.
    let starts = |line: &&str| line.starts_with("ExecStart=") || line.trim_start().starts_with("args:");
    let lines = SERVICE.lines().chain(KUBERNETES.lines()).filter(starts);
    let own_words = |text: &'static str| text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let texts = lines.chain(own_words(README).filter(|code| code.starts_with("--") && !code.contains("nvidia")));
    let flags: Vec<_> = texts.flat_map(|text| words(text, "--", |c| c.is_ascii_lowercase() || c == '-')).collect();
    assert!(flags.len() >= 5, "{flags:?}");
    for flag in flags {
        assert!(known.contains(flag), "{flag}");
    }
}

#[test]
fn every_variable_in_deploy_exists() {
    let whole = Cli::command();
    let known: BTreeSet<_> = whole.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    let texts = [SERVICE, CONTAINER, KUBERNETES, CONFIG, README].into_iter();
    // Three dots stand for any of them.
    let variables: Vec<_> =
        texts.flat_map(|text| words(text, "WORKER_ORCD_", is_part)).filter(|name| *name != "WORKER_ORCD_").collect();
    assert!(variables.len() >= 3, "{variables:?}");
    for variable in variables {
        assert!(known.contains(variable), "{variable}");
    }
}

#[test]
fn every_key_of_the_configurations_is_a_flag() {
    for text in [CONFIG.to_owned(), config_map()] {
        assert!(text.contains("drain-timeout-sec = "), "{text}");
        // What is commented out counts too.
        let with_examples: String = text
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(line).to_owned() + "\n")
            .collect();
        config::check_text(&with_examples).unwrap_or_else(|faults| panic!("{faults}"));
    }
}

#[test]
fn whoever_ends_the_worker_waits_longer_than_it_drains() {
    let grace = 3; // seconds for cutting off what is left
    let drain = seconds(CONFIG, "drain-timeout-sec");
    assert!(seconds(SERVICE, "TimeoutStopSec") > drain + grace);
    assert!(seconds(KUBERNETES, "terminationGracePeriodSeconds") > seconds(&config_map(), "drain-timeout-sec") + grace);
}

#[test]
fn probes_ask_routes_that_tell_loading_from_dead() {
    let path = |probe: &str| {
        let rest = KUBERNETES.split_once(&format!("{probe}:\n")).expect(probe).1;
        rest.split_once("path: ").expect("a path").1.split(',').next().expect("its end")
    };
    assert_eq!(["startupProbe", "livenessProbe", "readinessProbe"].map(path), ["/health", "/health", "/ready"]);
}
