//! Who may know more than states and ids.

use std::net::IpAddr;

use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderName};

const PROXY_HEADERS: [&str; 4] = ["forwarded", "via", "x-real-ip", "cf-connecting-ip"];

/// Who is shown reasons, tasks, runs, metadata and call stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disclosure {
    Nobody,
    /// Who calls this host by a name that means itself. A web page that has its own name lead here,
    /// or a proxy that lets strangers in, does not.
    Locals,
    Everybody,
}

impl Disclosure {
    /// Whether who sends this is one of them.
    pub(super) fn includes(self, headers: &HeaderMap) -> bool {
        match self {
            Self::Nobody => false,
            Self::Locals => is_local(headers) && !came_by_proxy(headers),
            Self::Everybody => true,
        }
    }
}

/// Whether a proxy passed it on for somebody else, and says so.
fn came_by_proxy(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(HeaderName::as_str);
    names.any(|name| name.starts_with("x-forwarded-") || PROXY_HEADERS.contains(&name))
}

/// Whether it was called by a name that means this host itself.
fn is_local(headers: &HeaderMap) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn who_comes_by_a_proxy_is_no_local() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("127.0.0.1:8080"));
        assert!(Disclosure::Locals.includes(&headers));
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "via"] {
            let mut passed_on = headers.clone();
            passed_on.insert(name, HeaderValue::from_static("203.0.113.7"));
            assert!(!Disclosure::Locals.includes(&passed_on), "{name}");
        }
    }

    #[test]
    fn a_host_that_means_itself_is_told_from_a_strange_one() {
        let is = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
            is_local(&headers)
        };
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(is(host), "{host}");
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
            assert!(!is(host), "{host}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }
}
