//! The names by which the worker may be called.
//!
//! A web page can make its own name point to 127.0.0.1 once it is loaded (DNS rebinding). Its requests then reach a worker on
//! this machine, and to the browser they are of the page's own origin: only the name in `Host` gives them away. So a worker
//! that only this machine reaches answers to addresses and to `localhost`, which no page can take for itself, and to names
//! that were configured.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};

use crate::error::{ApiError, ErrorCode};

/// Which names in `Host` are answered to. The default: any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRule(Option<Arc<[String]>>);

impl HostRule {
    /// Answers to every name.
    pub fn any() -> Self {
        Self(None)
    }

    /// Answers to IP addresses, `localhost`, names below it, and `names`, whatever the port.
    pub fn only<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Self {
        Self(Some(names.into_iter().map(|name| name.as_ref().to_ascii_lowercase()).collect()))
    }

    /// # Errors
    /// The request is for another name. One that names none, as HTTP/1.0 allows, comes from no browser and passes.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(names) = &self.0 else { return Ok(()) };
        let mut hosts = headers.get_all(header::HOST).iter();
        if hosts.all(|host| host.to_str().is_ok_and(|host| is_answered(host, names))) {
            return Ok(());
        }
        let message = "this worker does not answer to the name in the Host header; --allowed-host allows one";
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }
}

fn is_answered(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host().to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || names.iter().any(|known| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: &HostRule, hosts: &[&str], passes: bool) {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        assert_eq!(rule.check(&headers).is_ok(), passes, "{hosts:?} by {rule:?}");
    }

    #[test]
    fn answers_to_addresses_localhost_and_configured_names() {
        let rule = HostRule::only(["Worker.lan"]);
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "10.1.2.3:80",
            "[::1]:8080",
            "[::1]",
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "a.localhost:1",
            "worker.lan:8080",
            "WORKER.LAN",
        ] {
            check(&rule, &[host], true);
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "worker.lan.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "",
            "a b",
        ] {
            check(&rule, &[host], false);
        }
        check(&rule, &[], true);
        check(&rule, &["localhost", "evil.example"], false);
        check(&HostRule::any(), &["evil.example"], true);
    }
}
