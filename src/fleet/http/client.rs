//! A store behind a coordinator, over HTTP.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Uri;

use super::wire::{self, Answers, One, Page, SweepRequest};
use crate::error::{Error, StoreErrorKind};
use crate::fleet::store::{advance, check_count};
use crate::fleet::{
    Answer, Beat, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Registration, Stop, StoredWorker,
    Sweep, WorkerFilter, WorkerKey,
};
use crate::health::SweepReport;
use crate::serial::Seconds;
use crate::sync::printable::Printable;

const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter than the coordinator keeps an idle connection, so that no closing connection is reused.
const LONGEST_IDLE: Duration = Duration::from_secs(8);
/// Fits a page with the worker that ended it, and the report of a sweep of very many workers.
const LARGEST_ANSWER: u64 = 64 * 1024 * 1024;
/// Requests stay well below the coordinator's limits.
const LARGEST_BATCH: usize = wire::LARGEST_REQUEST / 4;
const MOST_IN_BATCH: usize = wire::MOST_ITEMS / 5;
/// The most characters of a coordinator's message in an error.
const LONGEST_MESSAGE: usize = 300;

/// A [`HeartbeatStore`] behind a [`Coordinator`](crate::Coordinator): for workers without access to a
/// database.
///
/// Each call has a limit for the connection and one for its total time; each answer has a size limit.
/// Redirections are not followed, and no proxy is used, so the token reaches only the coordinator. A
/// clone shares its connections.
///
/// ```no_run
/// use worker_heartbeat::{FleetConfig, HttpStore, Registry};
///
/// let store = HttpStore::builder("https://coordinator.example:8443").token("s3cret").build()?;
/// Registry::global().attach(store, FleetConfig::new())?;
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
pub struct HttpStore {
    base: String,
    authorization: Option<String>,
    agent: ureq::Agent,
}

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
}

impl HttpStoreBuilder {
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
            .finish()
    }
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore")
            .field("url", &self.base)
            .finish_non_exhaustive()
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

impl HttpStore {
    /// A store behind the coordinator at this URL, such as `http://10.0.0.5:7717`, with a path if the
    /// coordinator is mounted below one.
    ///
    /// ```
    /// use worker_heartbeat::HttpStore;
    ///
    /// let store = HttpStore::builder("http://10.0.0.5:7717").token("s3cret").build()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn builder(url: impl Into<String>) -> HttpStoreBuilder {
        HttpStoreBuilder {
            url: url.into(),
            token: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// As [`builder`](Self::builder), without a token and with the default time limits.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).serve("127.0.0.1:0")?;
    /// let store = HttpStore::new(format!("http://{}", coordinator.local_addr()))?;
    /// assert_eq!(store.summary()?.total, 0);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL is not allowed.
    pub fn new(url: impl Into<String>) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    fn call<T: DeserializeOwned>(&self, operation: &'static str, body: &[u8]) -> Result<T, Error> {
        let fail = |error| failed(operation, error);
        let mut request = self
            .agent
            .post(format!("{}/api/store/{operation}", self.base))
            .header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request.send(body).map_err(fail)?;
        let status = response.status();
        let answer = response
            .body_mut()
            .with_config()
            .limit(LARGEST_ANSWER)
            .read_to_vec()
            .map_err(fail)?;
        if !status.is_success() {
            let text = message(&answer);
            // A fault of this registration: the coordinator may accept others.
            if operation == "register" && matches!(status.as_u16(), 400 | 413 | 429) {
                return Err(Error::invalid(
                    "registration",
                    format!("refused by the coordinator, {}", status.as_u16()),
                    text.trim_start_matches(": "),
                ));
            }
            let kind = match status.as_u16() {
                401 | 403 => StoreErrorKind::Denied,
                429 => StoreErrorKind::Busy,
                _ => StoreErrorKind::Other,
            };
            let message = format!("the coordinator answers {}{text}", status.as_u16());
            return Err(Error::store_kind(operation, kind, message));
        }
        serde_json::from_slice(&answer).map_err(|error| {
            let message = "this is not a coordinator's answer";
            Error::store_failed(operation, StoreErrorKind::Incompatible, message, error)
        })
    }

    fn one<Q: Serialize, A: DeserializeOwned>(
        &self,
        operation: &'static str,
        what: Q,
    ) -> Result<A, Error> {
        let version = wire::VERSION;
        self.call(operation, &json(operation, &One { version, what })?)
    }

    /// Sends all items, in as many requests as necessary.
    fn each<T: Serialize, A: DeserializeOwned>(
        &self,
        operation: &'static str,
        items: &[T],
        ttl: Option<Duration>,
    ) -> Result<Vec<A>, Error> {
        let mut answers = Vec::with_capacity(items.len());
        let mut items = items.iter().peekable();
        while items.peek().is_some() {
            let mut body = format!("{{\"version\":{}", wire::VERSION).into_bytes();
            if let Some(ttl) = ttl {
                body.extend_from_slice(b",\"ttl_s\":");
                body.extend(json(operation, &Seconds(ttl))?);
            }
            body.extend_from_slice(b",\"items\":[");
            let mut count = 0;
            while count < MOST_IN_BATCH && body.len() < LARGEST_BATCH {
                let Some(item) = items.next() else { break };
                if count > 0 {
                    body.push(b',');
                }
                body.extend(json(operation, item)?);
                count += 1;
            }
            body.extend_from_slice(b"]}");
            let reply = self.call(operation, &body);
            let reply = reply.map(|Answers { answers }| answers);
            answers.extend(check_count(operation, count, reply)?);
        }
        Ok(answers)
    }
}

/// There is no answer.
fn failed(operation: &'static str, error: ureq::Error) -> Error {
    let (kind, message) = match &error {
        ureq::Error::Timeout(_) => (StoreErrorKind::Timeout, "no answer in time"),
        _ => (
            StoreErrorKind::Unreachable,
            "the coordinator cannot be reached",
        ),
    };
    Error::store_failed(operation, kind, message, error)
}

fn json(operation: &'static str, what: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(what).map_err(|error| Error::store(operation, error))
}

/// The message of a refusal, on one line and shortened: `: the token is missing or wrong`.
fn message(answer: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct ErrorBody {
        error: String,
    }
    match serde_json::from_slice::<ErrorBody>(answer) {
        Ok(body) => {
            let words: String = body.error.chars().take(LONGEST_MESSAGE).collect();
            format!(": {}", Printable(&words))
        }
        Err(_) => String::new(),
    }
}

impl HeartbeatStore for HttpStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.each("register", workers, None)
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.each("beat", beats, None)
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.each("stop", stops, None)
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let mut filter = filter.clone();
        let mut workers = Vec::new();
        loop {
            let mut page: Page = self.one("list", &filter)?;
            let advanced = advance(&mut filter, &mut page.workers);
            filter.limit = filter.limit.saturating_sub(page.workers.len());
            workers.extend(page.workers);
            if !page.more || !advanced || filter.limit == 0 {
                return Ok(workers);
            }
        }
    }

    /// Of very many [killed](Sweep::killed) and [gone](Sweep::gone) workers, it sends as many as fit
    /// into one request; the next sweep finds the others.
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        self.one("sweep", SweepRequest::new(sweep, LARGEST_BATCH))
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.one("purge", Seconds(age))
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.one("claim", claim)
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.each("renew", leases, Some(ttl))
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.each("release", leases, None)
    }
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

    #[test]
    fn a_coordinators_message_stays_on_one_line_and_short() {
        assert_eq!(message(b"{\"error\":\"a\\nb\"}"), ": a\\nb");
        assert_eq!(message(b"<html>"), "");
        let long = format!("{{\"error\":\"{}\"}}", "x".repeat(10_000));
        assert!(message(long.as_bytes()).len() < 400);
    }
}
