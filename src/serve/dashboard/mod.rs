//! The dashboard: one page that shows how the workers are, and why.
//!
//! A task on the runtime that serves looks at the workers about once a second and keeps the boards,
//! one for this process, one for a store: the rows, the states of the last ten minutes, the last
//! events. Who watches is told all of it once, and then what changes, over server-sent events.

mod board;
mod death;
mod history;
mod source;
mod stream;
mod watch;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::{Query, State as Shared};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch as signal};
use tokio::task::{JoinHandle, spawn_blocking};

use self::board::Board;
use self::death::Trouble;
use self::stream::Wish;
use self::watch::FleetState;
use super::health::{one, told, withhold};
use crate::fleet::HeartbeatStore;
use crate::health::{Death, Health};
use crate::registry::Registry;
use crate::roster::events::Subscription;
use crate::shutdown::Shutdown;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The most streams at a time.
const MOST_STREAMS: usize = 64;
/// When there are too many streams, or a call stack takes too long: when to come again, in seconds.
const COME_AGAIN: HeaderValue = HeaderValue::from_static("10");
/// Events that may wait for the next look, and the most that are told at once.
const MOST_EVENTS: usize = 4_096;

type Asked = Query<Vec<(String, String)>>;

/// What the dashboard is of, and to whom it is shown.
pub(super) struct Subject {
    pub registry: Registry,
    pub shutdown: Option<Shutdown>,
    pub fleet: Option<Arc<dyn HeartbeatStore>>,
    /// With reasons, tasks, runs and metadata.
    pub shown: bool,
    /// Only to who calls this host by a name that means itself. A web page that has its own name
    /// lead here, or a proxy that lets strangers in, does not.
    pub local_only: bool,
}

/// See the module.
pub(super) struct Dashboard {
    registry: Registry,
    shutdown: Option<Shutdown>,
    shown: bool,
    local_only: bool,
    began: Instant,
    events: Subscription,
    process: Arc<Board>,
    fleet: Option<Arc<Fleet>>,
    streams: Arc<Semaphore>,
    /// Call stacks are resolved one at a time.
    resolving: Arc<Semaphore>,
    /// Somebody came.
    joined: Arc<Notify>,
    closing: signal::Sender<bool>,
    watch: Mutex<Option<JoinHandle<()>>>,
}

/// The workers of a store.
struct Fleet {
    store: Arc<dyn HeartbeatStore>,
    board: Arc<Board>,
    state: Mutex<FleetState>,
    /// One reading at a time.
    reading: Arc<Semaphore>,
}

impl Dashboard {
    pub(super) fn new(subject: Subject) -> Arc<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let epoch = format!("{:x}", since.unwrap_or_default().as_micros());
        let fleet = subject.fleet.map(|store| {
            Arc::new(Fleet {
                store,
                board: Arc::new(Board::new(format!("f{epoch}"))),
                state: Mutex::new(FleetState::default()),
                reading: Arc::new(Semaphore::new(1)),
            })
        });
        Arc::new(Self {
            events: subject.registry.subscribe_with_capacity(MOST_EVENTS),
            registry: subject.registry,
            shutdown: subject.shutdown,
            shown: subject.shown,
            local_only: subject.local_only,
            began: Instant::now(),
            process: Arc::new(Board::new(format!("p{epoch}"))),
            fleet,
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            resolving: Arc::new(Semaphore::new(1)),
            joined: Arc::new(Notify::new()),
            closing: signal::Sender::new(false),
            watch: Mutex::new(None),
        })
    }

    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/v1/events", get(events))
            .route("/v1/worker/details", get(details))
            .route("/v1/worker/death", get(death_of))
            .with_state(Arc::clone(self))
    }

    /// Begins to look at the workers, on this runtime, unless that is being done.
    pub(super) fn start(self: &Arc<Self>, runtime: &Handle) {
        let mut watch = self.watch.lock();
        if watch.as_ref().is_none_or(JoinHandle::is_finished) && !*self.closing.borrow() {
            // It ends with the dashboard, which it does not keep.
            *watch = Some(runtime.spawn(watch::watch(Arc::downgrade(self))));
        }
    }

    /// Ends all streams: a server that ends waits for its answers.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Time since the dashboard began.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Turns away who calls this host by a strange name.
    fn admit(&self, headers: &HeaderMap) -> Result<(), Response> {
        if !self.local_only || is_local(headers) {
            return Ok(());
        }
        let error = "open it as http://127.0.0.1 or http://localhost, or decide with show_reasons() \
                     what others may see";
        Err(told(
            StatusCode::MISDIRECTED_REQUEST,
            &json!({ "error": error }),
        ))
    }

    fn fleet(&self, asked: &[(String, String)]) -> Result<Option<&Arc<Fleet>>, Response> {
        match (one(asked, "view"), &self.fleet) {
            (None | Some("process"), _) => Ok(None),
            (Some("fleet"), Some(fleet)) => Ok(Some(fleet)),
            (Some("fleet"), None) => Err(nothing("no store is attached")),
            (Some(_), _) => Err(told(
                StatusCode::BAD_REQUEST,
                &json!({"error": "invalid view; allowed: process, fleet"}),
            )),
        }
    }
}

async fn page(Shared(dashboard): Shared<Arc<Dashboard>>, headers: HeaderMap) -> Response {
    if let Err(refusal) = dashboard.admit(&headers) {
        return refusal;
    }
    dashboard.start(&Handle::current());
    let nonce = nonce();
    // Nothing that anybody reported is in the page itself: it comes over the stream, and is put in
    // as text.
    let page = PAGE
        .replace("{{nonce}}", &nonce)
        .replace("{{fleet}}", if dashboard.fleet.is_some() { "yes" } else { "no" })
        .replace("{{shown}}", if dashboard.shown { "yes" } else { "no" })
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, page).into_response()
}

/// What the page's own script and style are known by. The keys of the standard library's hasher are
/// random, and nobody can put anything into the page that would have to guess it.
fn nonce() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

async fn events(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    headers: HeaderMap,
    Query(asked): Asked,
) -> Response {
    if let Err(refusal) = dashboard.admit(&headers) {
        return refusal;
    }
    let board = match dashboard.fleet(&asked) {
        Ok(Some(fleet)) => &fleet.board,
        Ok(None) => &dashboard.process,
        Err(refusal) => return refusal,
    };
    let Ok(place) = Arc::clone(&dashboard.streams).try_acquire_owned() else {
        let error = format!("{MOST_STREAMS} streams are open; come again");
        return busy(&error);
    };
    dashboard.start(&Handle::current());
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let wish = Wish {
        board: Arc::clone(board),
        rows: one(&asked, "view").is_some(),
        after: last.or_else(|| one(&asked, "after")).map(str::to_owned),
    };
    let body = stream::body(wish, dashboard.closing.subscribe(), place);
    dashboard.joined.notify_one();
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        // A proxy is not to collect it first.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, body).into_response()
}

/// All that is known of one worker, as far as who asks may know it.
async fn details(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    headers: HeaderMap,
    Query(asked): Asked,
) -> Response {
    if let Err(refusal) = dashboard.admit(&headers) {
        return refusal;
    }
    let found = match (dashboard.fleet(&asked), one(&asked, "worker")) {
        (Err(refusal), _) => return refusal,
        (Ok(_), None) => return missing_worker(),
        (Ok(Some(fleet)), Some(id)) => {
            let workers = Arc::clone(&fleet.state.lock().workers);
            let worker = workers.iter().find(|worker| worker.key.id == id);
            worker.and_then(|worker| serde_json::to_value(worker).ok())
        }
        (Ok(None), Some(id)) => dashboard.snapshot(id).await,
    };
    let Some(mut value) = found else {
        return nothing("there is no worker with this id");
    };
    if !dashboard.shown {
        withhold(&mut value);
    }
    told(StatusCode::OK, &value)
}

/// How a worker died, with its call stack.
async fn death_of(
    Shared(dashboard): Shared<Arc<Dashboard>>,
    headers: HeaderMap,
    Query(asked): Asked,
) -> Response {
    if let Err(refusal) = dashboard.admit(&headers) {
        return refusal;
    }
    if !dashboard.shown {
        let error = json!({"error": "call stacks are withheld; see show_reasons()"});
        return told(StatusCode::FORBIDDEN, &error);
    }
    let Some(id) = one(&asked, "worker") else {
        return missing_worker();
    };
    let incarnation = match one(&asked, "incarnation").map(str::parse::<u32>) {
        None => None,
        Some(Ok(incarnation)) => Some(incarnation),
        Some(Err(_)) => {
            let error = json!({"error": "invalid incarnation; allowed: a number"});
            return told(StatusCode::BAD_REQUEST, &error);
        }
    };
    let Some(death) = dashboard.death(id, incarnation).await else {
        return nothing("no such death is remembered");
    };
    match death::tell(death, Arc::clone(&dashboard.resolving)).await {
        Ok(text) => {
            let headers = [
                (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
                (CACHE_CONTROL, HeaderValue::from_static("no-store")),
                (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            ];
            (headers, text).into_response()
        }
        Err(Trouble::None) => nothing("it did not panic, so there is no call stack"),
        Err(Trouble::Busy) => busy("call stacks are being resolved; come again"),
    }
}

impl Dashboard {
    async fn snapshot(&self, id: &str) -> Option<Value> {
        let (registry, id) = (self.registry.clone(), id.to_owned());
        // It may wait for the pacemaker.
        let read = spawn_blocking(move || {
            let snapshot = registry.get(&id)?.snapshot();
            serde_json::to_value(snapshot).ok()
        });
        read.await.ok()?
    }

    /// How this incarnation of the worker died; without one, how it died last.
    async fn death(&self, id: &str, incarnation: Option<u32>) -> Option<Arc<Death>> {
        let remembered = incarnation.and_then(|n| self.process.death(id, n));
        if remembered.is_some() {
            return remembered;
        }
        let (registry, id) = (self.registry.clone(), id.to_owned());
        let read = spawn_blocking(move || {
            let snapshot = registry.get(&id)?.snapshot();
            match snapshot.health {
                Health::Dead { death, .. }
                    if incarnation.is_none_or(|n| n == snapshot.incarnation) =>
                {
                    Some(death)
                }
                _ if incarnation.is_none() => snapshot.last_death,
                _ => None,
            }
        });
        read.await.ok()?
    }
}

fn missing_worker() -> Response {
    let error = json!({"error": "which worker? ?worker=ID"});
    told(StatusCode::BAD_REQUEST, &error)
}

fn nothing(error: &str) -> Response {
    told(StatusCode::NOT_FOUND, &json!({ "error": error }))
}

fn busy(error: &str) -> Response {
    let mut response = told(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }));
    response.headers_mut().insert(RETRY_AFTER, COME_AGAIN);
    response
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

    #[test]
    fn a_host_that_means_itself_is_told_from_a_strange_one() {
        let is = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).unwrap());
            is_local(&headers)
        };
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.9.9.9", "[::1]:80", "[::1]"] {
            assert!(is(host), "{host}");
        }
        for host in ["", ":", "evil.example", "localhost.evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", "[::2]:80", "]["] {
            assert!(!is(host), "{host}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    #[test]
    fn no_two_pages_have_the_same_nonce() {
        assert_ne!(nonce(), nonce());
    }
}
