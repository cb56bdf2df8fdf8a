//! Who sent a request: one decision, which every route uses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::RwLock;
use subtle::ConstantTimeEq;
use tokio::time::sleep;

use super::connections::ConnectionState;
use super::refusals::{Refusals, Refused};
use crate::error::Error;

/// The time after which a wrong token is answered.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_secs(1);

/// Headers that proxies add to what they pass on, beside those that begin with `x-forwarded`.
const PROXY_HEADERS: [&str; 15] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-envoy-external-address",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "cdn-loop",
];

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Sent the token.
    Token,
    /// A program on this host, by a name of this host, and through no declared proxy.
    Local,
    /// Anybody else.
    Stranger(Stranger),
}

/// Why a caller is a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// It is connected from another host.
    OtherHost,
    /// It comes through a proxy, which may pass on requests of other hosts.
    Proxy,
    /// It uses another name for this host, as a web page does that rebinds its own name (DNS
    /// rebinding).
    OtherName,
    /// A browser sent it for a web page of another origin.
    WebPage,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherHost => "it comes from another host",
            Self::Proxy => "it comes through a proxy",
            Self::OtherName => "its Host header does not name this host",
            Self::WebPage => "it comes from a web page",
        })
    }
}

/// A request that carries a token which is not the right one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrongToken;

/// Tells callers apart, and counts those that are refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Callers {
    token: Option<Token>,
    pub(crate) refusals: Arc<Refusals>,
}

impl Callers {
    pub(crate) fn set_token(&mut self, token: String) {
        self.token = Some(Token::new(token));
    }

    /// Replaces the token, for all clones, from the next request on.
    pub(crate) fn replace_token(&self, token: String) -> Result<(), Error> {
        check_token(&token)?;
        let Some(current) = &self.token else {
            return Err(Error::invalid(
                "token",
                "one for a server without a token",
                "only the replacement of another one",
            ));
        };
        *current.0.write() = token;
        Ok(())
    }

    pub(crate) const fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Refuses a token that would match nothing.
    pub(crate) fn check_token(&self) -> Result<(), Error> {
        self.token
            .as_ref()
            .map_or(Ok(()), |token| check_token(&token.0.read()))
    }

    /// Who sent this request. A wrong token is an error, after a pause: guessing is slow.
    pub(crate) async fn identify(&self, head: &Parts) -> Result<Caller, WrongToken> {
        let Some(token) = &self.token else {
            return Ok(Caller::without_token(head));
        };
        match token.is_in(&head.headers) {
            None => Ok(Caller::without_token(head)),
            Some(true) => Ok(Caller::Token),
            Some(false) => {
                self.refusals.count(Refused::WrongToken, peer(head));
                // The connection may be closed meanwhile if its place is needed.
                if let Some(state) = head.extensions.get::<ConnectionState>() {
                    state.waits_for_client();
                }
                sleep(WRONG_TOKEN_PAUSE).await;
                Err(WrongToken)
            }
        }
    }
}

impl Caller {
    /// Who sent this request, whatever token it carries.
    pub(crate) fn without_token(head: &Parts) -> Self {
        let headers = &head.headers;
        let is_elsewhere = |peer: SocketAddr| !peer.ip().to_canonical().is_loopback();
        // A router that is mounted in an application knows the peer only if that passes it on.
        if peer(head).is_some_and(is_elsewhere) {
            Self::Stranger(Stranger::OtherHost)
        } else if is_proxied(headers) {
            Self::Stranger(Stranger::Proxy)
        } else if !names_local_host(headers) {
            Self::Stranger(Stranger::OtherName)
        } else if is_of_web_page(headers) {
            Self::Stranger(Stranger::WebPage)
        } else {
            Self::Local
        }
    }
}

/// The other end of the connection.
pub(crate) fn peer(head: &Parts) -> Option<SocketAddr> {
    let info = head.extensions.get::<ConnectInfo<SocketAddr>>();
    info.map(|ConnectInfo(peer)| *peer)
}

fn is_proxied(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(HeaderName::as_str);
    names.any(|name| name.starts_with("x-forwarded") || PROXY_HEADERS.contains(&name))
}

/// Whether the request has one Host header, and that names this host.
fn names_local_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(is_local_name),
        _ => false,
    }
}

fn is_local_name(host: &str) -> bool {
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

/// Whether a browser sent the request for a page of another origin. Following a link is no such
/// request.
fn is_of_web_page(headers: &HeaderMap) -> bool {
    let is = |name: &str, wanted: &[&str]| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| wanted.contains(&value))
    };
    let is_of_other_site = is("sec-fetch-site", &["cross-site", "same-site"]);
    let is_link = is("sec-fetch-mode", &["navigate"]);
    let own = headers.get(HOST).map(HeaderValue::as_bytes);
    let origins = headers.get_all(ORIGIN).iter();
    let is_other = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| {
            let authority = origin.strip_prefix("http://")?;
            authority.parse::<Authority>().ok()
        });
        origin.is_none_or(|origin| Some(origin.as_str().as_bytes()) != own)
    };
    is_of_other_site && !is_link || origins.into_iter().any(is_other)
}

fn check_token(token: &str) -> Result<(), Error> {
    if token.is_empty() {
        return Err(Error::invalid(
            "token",
            "an empty one",
            "one or more characters",
        ));
    }
    Ok(())
}

/// A secret, shared by all that check it. It is never shown.
#[derive(Clone)]
struct Token(Arc<RwLock<String>>);

impl Token {
    fn new(token: String) -> Self {
        Self(Arc::new(RwLock::new(token)))
    }

    /// Whether the headers carry this token; `None` if they carry none. Two are not the right one.
    fn is_in(&self, headers: &HeaderMap) -> Option<bool> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        match (given.next(), given.next()) {
            (None, _) => None,
            (Some(given), None) => Some(self.is(bearer(given.as_bytes())?)),
            _ => Some(false),
        }
    }

    /// Compares in a time that does not depend on the content. (The length is no secret.)
    fn is(&self, given: &[u8]) -> bool {
        // An empty token would match every request without one.
        let token = self.0.read();
        !token.is_empty() && bool::from(token.as_bytes().ct_eq(given))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The token of a bearer scheme, whose name is case-insensitive. Other schemes concern proxies.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, given) = value.split_at_checked(b"bearer".len())?;
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    Some(given.strip_prefix(b" ").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::Request;

    fn head(headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn is_right(token: &str, given: &[&str]) -> Option<bool> {
        let headers: Vec<_> = given
            .iter()
            .map(|given| ("authorization", *given))
            .collect();
        Token::new(token.into()).is_in(&head(&headers).headers)
    }

    #[test]
    fn only_the_whole_token_matches() {
        assert_eq!(is_right("s3cret", &["Bearer s3cret"]), Some(true));
        assert_eq!(is_right("s3cret", &["bearer s3cret"]), Some(true));
        for wrong in [
            &["Bearer s3cre"][..],
            &["Bearer s3cret "],
            &["Bearer s3crex"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer s3cret", "Bearer s3cret"],
            &["Bearer s3cret", "Basic s3cret"],
        ] {
            assert_eq!(is_right("s3cret", wrong), Some(false), "{wrong:?}");
        }
        for none in [&[][..], &["s3cret"], &["Basic s3cret"]] {
            assert_eq!(is_right("s3cret", none), None, "{none:?}");
        }
        assert_eq!(
            is_right("", &["Bearer "]),
            Some(false),
            "it matches nothing"
        );
        assert!(!format!("{:?}", Token::new("s3cret".into())).contains("s3cret"));
    }

    #[test]
    fn a_request_through_a_declared_proxy_is_not_local() {
        let local = ("host", "127.0.0.1:8080");
        assert_eq!(Caller::without_token(&head(&[local])), Caller::Local);
        for name in [
            "x-forwarded-for",
            "x-forwarded",
            "forwarded",
            "x-real-ip",
            "via",
        ] {
            let proxied = head(&[local, (name, "127.0.0.1")]);
            let caller = Caller::without_token(&proxied);
            assert_eq!(caller, Caller::Stranger(Stranger::Proxy), "{name}");
        }
    }

    #[test]
    fn a_request_from_another_host_is_not_local() {
        for (peer, caller) in [
            ("127.0.0.1:80", Caller::Local),
            ("[::1]:80", Caller::Local),
            ("[::ffff:127.0.0.1]:80", Caller::Local),
            ("192.0.2.1:80", Caller::Stranger(Stranger::OtherHost)),
            ("[2001:db8::1]:80", Caller::Stranger(Stranger::OtherHost)),
        ] {
            let mut head = head(&[("host", "localhost")]);
            let peer: SocketAddr = peer.parse().unwrap();
            head.extensions.insert(ConnectInfo(peer));
            assert_eq!(Caller::without_token(&head), caller, "{peer}");
        }
    }

    #[test]
    fn a_request_of_a_web_page_of_another_origin_is_not_local() {
        let local = ("host", "localhost:7717");
        for headers in [
            &[("origin", "http://evil.example")][..],
            &[("origin", "null")],
            &[("origin", "http://localhost:3000")],
            &[("origin", "https://localhost:7717")],
            &[
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "no-cors"),
            ],
            &[("sec-fetch-site", "same-site")],
        ] {
            let caller = Caller::without_token(&head(&[&[local], headers].concat()));
            assert_eq!(caller, Caller::Stranger(Stranger::WebPage), "{headers:?}");
        }
        for headers in [
            &[("origin", "http://localhost:7717")][..],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")],
            &[
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-mode", "navigate"),
            ],
        ] {
            let caller = Caller::without_token(&head(&[&[local], headers].concat()));
            assert_eq!(caller, Caller::Local, "{headers:?}");
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
            assert!(names_local_host(&head(&[("host", host)]).headers), "{host}");
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
            assert!(
                !names_local_host(&head(&[("host", host)]).headers),
                "{host}"
            );
        }
        assert!(!names_local_host(&HeaderMap::new()));
        let two = head(&[("host", "localhost"), ("host", "evil.example")]);
        assert!(!names_local_host(&two.headers), "two names");
    }
}
