//! Who may ask, as the command line says: keys, origins of web pages, names of the worker.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use worker_http::{Access, ApiKeys, CorsOrigins, HostRule, MAX_KEY_BYTES};

use crate::cli::AccessArgs;

/// The longest file of keys that is read: the most keys, each of the longest, and room for comments.
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;

/// The name, or origin, that stands for all.
const ALL: &str = "*";

/// Brings the flags together, for a worker that listens on `host`.
///
/// # Errors
/// A key that is none, a file of keys that cannot be read or has none, an origin that is none. No message has a key in it.
pub(crate) fn from_args(args: &AccessArgs, host: IpAddr) -> anyhow::Result<Access> {
    let mut keys: Vec<String> = args.api_key.iter().map(|key| key.0.clone()).collect();
    // Faults of either are told under the name of the flag they come from.
    ApiKeys::new(&keys).context("--api-key")?;
    if let Some(path) = &args.api_key_file {
        let of_file = read_keys(path).with_context(|| format!("--api-key-file {}", path.display()))?;
        keys.extend(of_file);
    }
    let api_keys = ApiKeys::new(&keys).context("--api-key and --api-key-file together")?;
    let cors_origins = CorsOrigins::new(&args.cors_origin).context("--cors-origin")?;
    let hosts = host_rule(&args.allowed_host, &cors_origins, host);
    Ok(Access { api_keys, cors_origins, hosts })
}

/// A worker that only this machine reaches answers to addresses, `localhost` and the names it was given, so that no web page
/// can make its own name point to it. By which names one is called that others reach is not known: it answers to all, unless
/// it was given some.
fn host_rule(names: &[String], cors_origins: &CorsOrigins, host: IpAddr) -> HostRule {
    let is_open = names.is_empty() && !is_loopback(host);
    if is_open || names.iter().any(|name| name == ALL) {
        return HostRule::any();
    }
    HostRule::only(names.iter().map(String::as_str).chain(cors_origins.hosts()))
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Warns of what lets in more than its user may have thought of.
pub(crate) fn warn_of_open_doors(access: &Access, bound: SocketAddr) {
    if access.api_keys.is_empty() && !is_loopback(bound.ip()) {
        tracing::warn!(
            "{bound} is no loopback address and there is no --api-key: whoever reaches it may use this worker, cancel its \
             jobs and shut it down"
        );
    }
    if access.cors_origins.allows_any() {
        tracing::warn!("--cors-origin {ALL}: every web page that is open in a browser here may use this worker");
    }
}

/// The keys of a file, one a line.
fn read_keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_KEY_FILE_BYTES + 1).read_to_string(&mut text));
    read.context("cannot be read")?;
    anyhow::ensure!(text.len() as u64 <= MAX_KEY_FILE_BYTES, "expected at most {MAX_KEY_FILE_BYTES} bytes, got more");
    let lines = text.lines().map(str::trim).enumerate();
    let mut keys = Vec::new();
    for (i, key) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let is_sound = ApiKeys::new([key]).is_ok();
        anyhow::ensure!(
            is_sound,
            "line {}: expected a key of 1 to {MAX_KEY_BYTES} visible ASCII characters without spaces",
            i + 1
        );
        keys.push(key.to_owned());
    }
    anyhow::ensure!(!keys.is_empty(), "expected at least one key, got none");
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], origins: &[&str], host: &str, expected: &HostRule) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let rule = host_rule(&names, &CorsOrigins::new(origins).unwrap(), host.parse().unwrap());
        assert_eq!(rule, *expected, "{names:?} {origins:?} {host}");
    }

    #[test]
    fn only_a_worker_that_others_reach_answers_to_every_name() {
        let none: [&str; 0] = [];
        for host in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            check(&[], &[], host, &HostRule::only(none));
            check(&["worker.lan"], &["https://app.example:8443"], host, &HostRule::only(["worker.lan", "app.example"]));
            check(&["*"], &[], host, &HostRule::any());
        }
        for host in ["0.0.0.0", "::", "10.0.0.1"] {
            check(&[], &["https://app.example"], host, &HostRule::any());
            check(&["worker.lan"], &[], host, &HostRule::only(["worker.lan"]));
        }
    }
}
