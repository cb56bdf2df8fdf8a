//! Options of a store behind a coordinator.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::Uri;

use super::batch::Batches;
use super::client::HttpStore;
use super::wire;
use crate::error::Error;

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter than the coordinator keeps an idle connection, so that no closing connection is reused.
const LONGEST_IDLE: Duration = Duration::from_secs(8);
/// Well below the limits of common proxies, of which the smallest is 1 MiB.
const DEFAULT_REQUEST_BYTES: usize = 256 * 1024;
/// Fits a heartbeat.
const LEAST_REQUEST_BYTES: usize = 1024;

/// Builds an [`HttpStore`]; made by [`HttpStore::builder`].
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::HttpStore;
///
/// let store = HttpStore::builder("https://coordinator.example:8443")
///     .token("s3cret")
///     .timeout(Duration::from_secs(5))
///     .build()?;
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "nothing happens before build()"]
pub struct HttpStoreBuilder {
    url: String,
    token: Option<String>,
    connect_timeout: Duration,
    timeout: Duration,
    max_request_bytes: usize,
}

impl HttpStoreBuilder {
    pub(super) const fn new(url: String) -> Self {
        Self {
            url,
            token: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            timeout: DEFAULT_TIMEOUT,
            max_request_bytes: DEFAULT_REQUEST_BYTES,
        }
    }

    /// The coordinator's token, sent as `Authorization: Bearer`. Over `http://`, it is readable on
    /// the network.
    ///
    /// ```
    /// use worker_heartbeat::HttpStore;
    ///
    /// let store = HttpStore::builder("https://coordinator.example:8443").token("s3cret").build()?;
    /// assert!(!format!("{store:?}").contains("s3cret"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The time limit to resolve and connect to the coordinator; 3 s by default.
    pub const fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// The total time limit of a request; 10 s by default. (A large batch takes several requests.)
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The most bytes of a request's body; 256 KiB by default, 1 KiB to 4 MiB. More workers than fit
    /// take several requests. A worker that is larger by itself is sent by itself.
    ///
    /// If a proxy allows less (`413`), requests are halved until it accepts them. The size that it
    /// accepted is kept for ten minutes; then a larger one is tried.
    ///
    /// ```
    /// use worker_heartbeat::HttpStore;
    ///
    /// let store = HttpStore::builder("https://coordinator.example:8443")
    ///     .max_request_bytes(64 * 1024)
    ///     .build()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn max_request_bytes(mut self, max_request_bytes: usize) -> Self {
        self.max_request_bytes = max_request_bytes;
        self
    }

    /// Checks the options. Nothing is sent yet: the coordinator may start later.
    ///
    /// ```
    /// use worker_heartbeat::{Error, HttpStore};
    ///
    /// let refused = HttpStore::builder("coordinator.example").build();
    /// assert!(matches!(refused, Err(Error::Invalid { field: "url", .. })));
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] names an invalid option.
    pub fn build(self) -> Result<HttpStore, Error> {
        let base = base(&self.url)?;
        let authorization = self.token.map(|token| check_token(&token)).transpose()?;
        for (name, limit) in [
            ("connect_timeout", self.connect_timeout),
            ("timeout", self.timeout),
        ] {
            if limit < Duration::from_millis(1) || limit > Duration::from_secs(3_600) {
                return Err(Error::invalid(name, format!("{limit:?}"), "1 ms to 1 h"));
            }
        }
        let bytes = self.max_request_bytes;
        if !(LEAST_REQUEST_BYTES..=wire::LARGEST_REQUEST).contains(&bytes) {
            let allowed = format!("{LEAST_REQUEST_BYTES} to {} bytes", wire::LARGEST_REQUEST);
            return Err(Error::invalid(
                "max_request_bytes",
                bytes.to_string(),
                allowed,
            ));
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(self.timeout))
            .timeout_resolve(Some(self.connect_timeout))
            .timeout_connect(Some(self.connect_timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("worker-heartbeat/", env!("CARGO_PKG_VERSION")))
            .max_idle_age(LONGEST_IDLE)
            .max_idle_connections_per_host(4)
            .build();
        Ok(HttpStore {
            base,
            authorization,
            agent: ureq::Agent::new_with_config(config),
            batches: Arc::new(Batches::new(bytes)),
        })
    }
}

impl fmt::Debug for HttpStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An invalid URL may contain a password.
        f.debug_struct("HttpStoreBuilder")
            .field("url", &base(&self.url).ok())
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("connect_timeout", &self.connect_timeout)
            .field("timeout", &self.timeout)
            .field("max_request_bytes", &self.max_request_bytes)
            .finish()
    }
}

/// The URL without a slash at its end. An error shows a refused URL only if it contains no password.
fn base(url: &str) -> Result<String, Error> {
    const ALLOWED: &str =
        "http://HOST[:PORT][/PATH] or https://…, without user, password, query and fragment";
    let refused = |shown: &str| Error::invalid("url", shown, ALLOWED);
    if url.contains('@') {
        return Err(refused("(one with a user or password; use token())"));
    }
    if url.contains(['?', '#']) {
        return Err(refused("(one with a query or fragment)"));
    }
    let shown = || format!("{:?}", crate::worker::shortened(url));
    let parsed: Uri = url.parse().map_err(|_| refused(&shown()))?;
    let is_web = matches!(parsed.scheme_str(), Some("http" | "https"));
    let authority = parsed
        .authority()
        .map_or("", |authority| authority.as_str());
    let host = parsed.host().unwrap_or_default();
    let odd_port = authority.len() > host.len() && parsed.port_u16().is_none();
    if !is_web || host.is_empty() || odd_port {
        return Err(refused(&shown()));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn check_token(token: &str) -> Result<String, Error> {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(
            "token",
            "(not shown)",
            "one or more visible ASCII characters, no spaces",
        ));
    }
    Ok(format!("Bearer {token}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_never_shows_a_password() {
        for url in [
            "http://127.0.0.1:7717",
            "https://coordinator.example/fleet/",
            "http://[::1]:80",
        ] {
            assert!(HttpStore::new(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "coordinator:7717",
            "/api",
            "ftp://host",
            "http://",
            "http://user:hunter2@host",
            "hunter2@host",
            "http://host/?key=hunter2",
            "http://host/#hunter2",
            "http://host:99999999/",
            "http://a b/",
        ] {
            let builder = HttpStore::builder(url).token("hunter2");
            assert!(!format!("{builder:?}").contains("hunter2"), "{builder:?}");
            let error = builder.build().expect_err(url).to_string();
            assert!(error.starts_with("invalid url: "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        for token in ["", "two words", "line\nbreak", "ä"] {
            let error = HttpStore::builder("http://host").token(token).build();
            let error = error.expect_err(token).to_string();
            assert!(error.starts_with("invalid token: (not shown)"), "{error}");
        }
        let store = HttpStore::builder("http://host").token("hunter2").build();
        let debug = format!("{:?}", store.unwrap());
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}
