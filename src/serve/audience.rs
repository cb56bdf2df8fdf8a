//! Who may know more than states and ids.

use std::net::IpAddr;

use axum::http::HeaderMap;
use axum::http::header::HOST;

/// Who is shown reasons, tasks, runs, metadata and call stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    Nobody,
    /// Who calls this host by a name that means itself. A web page that has its own name lead here,
    /// or a proxy that lets strangers in, does not.
    Locals,
    Everybody,
}

impl Audience {
    /// Whether who sends this is one of them.
    pub(super) fn includes(self, headers: &HeaderMap) -> bool {
        match self {
            Self::Nobody => false,
            Self::Locals => is_local(headers),
            Self::Everybody => true,
        }
    }
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
