//! Which requests may see more than states and ids.

use std::net::IpAddr;

use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderName};
use serde_json::Value;

const PROXY_HEADERS: [&str; 4] = ["forwarded", "via", "x-real-ip", "cf-connecting-ip"];

/// When reasons, tasks, runs, metadata and call stacks are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disclosure {
    Never,
    /// If the request names this host in its Host header, which blocks DNS rebinding, and comes
    /// through no declared proxy, which might forward requests from other hosts.
    LocalHost,
    Always,
}

impl Disclosure {
    /// Whether the response to a request with these headers may show them.
    pub(super) fn permits(self, headers: &HeaderMap) -> bool {
        match self {
            Self::Never => false,
            Self::LocalHost => names_local_host(headers) && !is_proxied(headers),
            Self::Always => true,
        }
    }
}

fn is_proxied(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(HeaderName::as_str);
    names.any(|name| name.starts_with("x-forwarded-") || PROXY_HEADERS.contains(&name))
}

fn names_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<IpAddr>();
    address.map_or(bare.eq_ignore_ascii_case("localhost"), |address| {
        address.to_canonical().is_loopback()
    })
}

/// Replaces the private fields of a process, a worker or a list of workers by null.
pub(super) fn redact(value: &mut Value) {
    const PRIVATE: [&str; 9] = [
        "reason",
        "task",
        "run_id",
        "metadata",
        "last_death",
        "last_error",
        "missing",
        // Of workers in a store.
        "detail",
        "process",
    ];
    // Counts, by names that the application chose and that may equal a private name.
    const COUNTS: [&str; 2] = ["stats_by_type", "groups"];
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                if PRIVATE.contains(&name.as_str()) {
                    *inner = Value::Null;
                } else if !COUNTS.contains(&name.as_str()) {
                    redact(inner);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers_with_host(host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(host).unwrap());
        headers
    }

    #[test]
    fn a_request_through_a_declared_proxy_is_not_local() {
        let headers = headers_with_host("127.0.0.1:8080");
        assert!(Disclosure::LocalHost.permits(&headers));
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "via"] {
            let mut proxied = headers.clone();
            proxied.insert(name, HeaderValue::from_static("203.0.113.7"));
            assert!(!Disclosure::LocalHost.permits(&proxied), "{name}");
        }
    }

    #[test]
    fn only_names_of_this_host_are_local() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(names_local_host(&headers_with_host(host)), "{host}");
        }
        for host in [
            "",
            ":",
            "evil.example",
            "localhost.evil.example:80",
            "10.0.0.1",
            "127.0.0.1.evil.example",
            "[::2]:80",
            "][",
        ] {
            assert!(!names_local_host(&headers_with_host(host)), "{host}");
        }
        assert!(!names_local_host(&HeaderMap::new()));
    }
}
