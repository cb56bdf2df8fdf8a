//! Serves a store over HTTP: limits and time limits around [`Service`].

mod incarnation_cache;
mod service;
mod store_api;
mod validation;
mod worker_api;

use std::fmt;
use std::future::poll_fn;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::any;
use hyper::body::Body as _;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::Error;
use crate::fleet::HeartbeatStore;
use crate::fleet::http::wire::LARGEST_REQUEST;
use crate::net::caller::{Caller, Callers, WrongToken, peer};
use crate::net::refusals::Refused;
use crate::net::server::{self, Server};
use crate::sync::catch::catch;
use service::{ReceivedBody, Refusal, Reply, Service};

/// The largest body of a request of a worker.
const LARGEST_BODY: usize = 64 * 1024;
/// The most requests that are read or wait at a time; further ones get 503.
const MOST_REQUESTS: usize = 512;
/// The most large requests among them.
const MOST_BATCHES: usize = 32;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const STORE_TIMEOUT: Duration = Duration::from_secs(8);
const STORE_CALLS: usize = 8;
const MOST_WORKERS: usize = 100_000;

/// Serves a [`HeartbeatStore`] over HTTP: to workers in any language, and to an
/// [`HttpStore`](crate::HttpStore) in other processes.
///
/// | `POST` | body (JSON) | answer |
/// | --- | --- | --- |
/// | `/api/worker/register` | any object; known fields are `worker_id`, `worker_type`, `group`, `interval`, `stale_after`, `stall_after`, `startup_grace` (seconds), `refuse_duplicate` (`true`: not while another worker of this id is alive), `metadata` | `worker_id`, `incarnation`, `heartbeat_interval_s`, `stale_after_s` |
/// | `/api/worker/heartbeat` | `worker_id`; further known fields are `incarnation`, `status`, `reason`, `run_id`, `task`, `progress` | `accepted` |
/// | `/api/worker/stop` | `worker_id`; `error`, if it failed | `stopped` |
/// | `/api/worker/claim` | `worker_id`, `run_id`, `ttl_s`; optional: `attempt` | `granted`, and its `fence` |
/// | `/api/worker/renew` | `worker_id`, `run_id`, `fence`, `ttl_s` | `held` |
/// | `/api/worker/release` | `worker_id`, `run_id`, `fence` or `attempt` | `released` |
/// | `/api/store/…` | the protocol of `HttpStore` | |
///
/// Unknown fields are kept as metadata of the worker. A worker that names its `incarnation` is refused
/// once another incarnation has taken its place; without one, a request is for the current
/// incarnation of the id. Every error is `{"error": "…"}`, with a `code` of `unknown` (404: register),
/// `superseded` or `ended` (409), `busy` (503: retry) or `invalid` (400) where a worker is refused. `400` and `413`: the request is invalid or
/// too large. `401`: the token is missing or wrong. `403`: without a token, only
/// programs on this host may write. `429`: too many workers. `503`: too many
/// requests at once, or the store fails or is too slow; retry.
///
/// ```
/// use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore};
///
/// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret").serve("127.0.0.1:0")?;
///
/// let url = format!("http://{}", coordinator.local_addr());
/// let store = HttpStore::builder(url).token("s3cret").build()?;
/// assert_eq!(store.summary()?.total, 0);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
///
/// It does not sweep; run a [`Sweeper`](crate::Sweeper) on the same store.
#[derive(Clone, Debug)]
#[must_use = "nothing is served before serve(), or before router() is mounted"]
pub struct Coordinator {
    store: Arc<dyn HeartbeatStore>,
    callers: Callers,
    max_workers: usize,
    store_calls: usize,
    store_timeout: Duration,
    body_timeout: Duration,
}

impl Coordinator {
    /// A coordinator of this store.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, MemoryStore};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).serve("127.0.0.1:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn new(store: impl HeartbeatStore + 'static) -> Self {
        Self {
            store: Arc::new(store),
            callers: Callers::default(),
            max_workers: MOST_WORKERS,
            store_calls: STORE_CALLS,
            store_timeout: STORE_TIMEOUT,
            body_timeout: BODY_TIMEOUT,
        }
    }

    /// The bearer token that every request must carry. A wrong one is answered with 401 after a second.
    ///
    /// Without a token, only programs on this host may write. A request is refused with 403 if it
    /// comes from another host, through a proxy that declares itself (`X-Forwarded-For`, `Forwarded`,
    /// `Via`, …), by another `Host` name than `localhost` or its address, or from a web page of another
    /// origin. A proxy that adds no headers makes other hosts look like this one: behind it, use a
    /// token.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret").serve("127.0.0.1:0")?;
    /// let url = format!("http://{}", coordinator.local_addr());
    /// assert!(HttpStore::new(&url)?.summary().is_err());
    /// assert!(HttpStore::builder(&url).token("s3cret").build()?.summary().is_ok());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.callers.set_token(token.into());
        self
    }

    /// The most workers that the store may hold, ended ones included; 100,000 by default. When it is
    /// full, workers that ended an hour ago or earlier are purged; if that makes no room, further
    /// workers are refused with 429.
    ///
    /// ```
    /// use worker_heartbeat::fleet::Registration;
    /// use worker_heartbeat::{Coordinator, HeartbeatStore, HttpStore, MemoryStore};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).max_workers(1).serve("127.0.0.1:0")?;
    /// let store = HttpStore::new(format!("http://{}", coordinator.local_addr()))?;
    /// store.register(&[Registration::new("mailer", "mailer-1")])?;
    /// assert!(store.register(&[Registration::new("mailer", "mailer-2")]).is_err());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn max_workers(mut self, max_workers: usize) -> Self {
        self.max_workers = max_workers;
        self
    }

    /// The most calls to the store at a time, each on a thread of the runtime; 8 by default, at
    /// least 1.
    pub const fn store_calls(mut self, store_calls: usize) -> Self {
        self.store_calls = store_calls;
        self
    }

    /// The time limit of a call to the store, and that of its wait for a free slot; 8 s by default.
    /// After it, the answer is 503. The call itself can't be cancelled: it occupies its slot until the
    /// store answers.
    pub const fn store_timeout(mut self, store_timeout: Duration) -> Self {
        self.store_timeout = store_timeout;
        self
    }

    /// The time limit for receiving the body of a request; 10 s by default.
    pub const fn body_timeout(mut self, body_timeout: Duration) -> Self {
        self.body_timeout = body_timeout;
        self
    }

    /// The routes, for an existing axum application. Its tokio runtime needs time enabled.
    ///
    /// The application decides where it listens. Without a [`token`](Self::token), a client's address
    /// is checked only if the application passes it on (`into_make_service_with_connect_info`);
    /// otherwise, any client that claims a local `Host` name can register, stop and sweep workers. The
    /// application also limits the number of connections, and the time to receive the head of a
    /// request.
    ///
    /// ```
    /// use axum::Router;
    /// use axum::routing::get;
    /// use worker_heartbeat::{Coordinator, MemoryStore};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret");
    /// let application: Router = Router::new()
    ///     .route("/orders", get(|| async { "no orders" }))
    ///     .merge(coordinator.router());
    /// ```
    pub fn router(&self) -> Router {
        let shared = Arc::new(Shared {
            service: Service::new(Arc::clone(&self.store), self.max_workers),
            callers: self.callers.clone(),
            requests: Semaphore::new(MOST_REQUESTS),
            batches: Semaphore::new(MOST_BATCHES),
            calls: Arc::new(Semaphore::new(
                self.store_calls.clamp(1, Semaphore::MAX_PERMITS),
            )),
            store_timeout: self.store_timeout,
            body_timeout: self.body_timeout,
        });
        let mut router = Router::new();
        for (path, handler) in ROUTES {
            let answer = move |State(shared): State<Arc<Shared>>, request: Request| async move {
                respond(shared.answer(*handler, request).await)
            };
            router = router.route(path, any(answer));
        }
        router.with_state(shared)
    }

    /// Serves at this address on a background thread, until the returned value is dropped.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, Error, MemoryStore};
    ///
    /// let open_to_all = Coordinator::new(MemoryStore::new()).serve("0.0.0.0:0");
    /// assert!(matches!(open_to_all, Err(Error::Invalid { field: "address", .. })));
    /// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret").serve("0.0.0.0:0")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not a loopback address and there is no token, or if the token is
    /// empty; [`Error::Listen`] if the address cannot be bound; [`Error::Thread`] if the thread cannot
    /// be started.
    pub fn serve(
        self,
        address: impl ToSocketAddrs + fmt::Debug,
    ) -> Result<RunningCoordinator, Error> {
        let shown = format!("{address:?}");
        let addresses = server::resolve(&address, &shown)?;
        self.check_addresses(&addresses, &shown)?;
        let router = self
            .router()
            .fallback(|| async { respond(Err(Refusal::new(404, "not found"))) });
        let server = Server::start(&addresses, &shown, router, Arc::default())?;
        Ok(RunningCoordinator {
            callers: self.callers,
            server,
        })
    }

    pub(crate) const fn callers(&self) -> &Callers {
        &self.callers
    }

    /// Refuses an address that other hosts reach without a token.
    pub(crate) fn check_addresses(
        &self,
        addresses: &[SocketAddr],
        shown: &str,
    ) -> Result<(), Error> {
        self.callers.check_token()?;
        let is_private = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
        if !self.callers.has_token() && !addresses.iter().all(is_private) {
            return Err(Error::invalid(
                "address",
                shown,
                "without a token, only a loopback address such as 127.0.0.1:7717",
            ));
        }
        Ok(())
    }
}

/// A coordinator on a background thread; made by [`Coordinator::serve`]. Dropping it ends its thread
/// and frees its port; requests in progress have one second to end.
///
/// ```
/// use worker_heartbeat::{Coordinator, MemoryStore};
///
/// let coordinator = Coordinator::new(MemoryStore::new()).serve("127.0.0.1:0")?;
/// println!("http://{}", coordinator.local_addr());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "serving ends when this is dropped"]
pub struct RunningCoordinator {
    callers: Callers,
    server: Server,
}

impl RunningCoordinator {
    /// The address that it is bound to, with the port that the system chose for port 0.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Replaces the token, from the next request on: the old one is wrong then. Event streams that are
    /// open go on.
    ///
    /// ```
    /// use worker_heartbeat::{Coordinator, MemoryStore};
    ///
    /// let coordinator = Coordinator::new(MemoryStore::new()).token("s3cret");
    /// let server = coordinator.serve("127.0.0.1:0")?;
    /// server.replace_token("n3w s3cret")?;
    /// assert!(server.replace_token("").is_err());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is empty, or if there was no token before.
    pub fn replace_token(&self, token: impl Into<String>) -> Result<(), Error> {
        self.callers.replace_token(token.into())
    }
}

/// The handler of a route.
#[derive(Clone, Copy)]
enum Handler {
    Worker(fn(&Service, &ReceivedBody) -> Reply<Value>),
    Batch(fn(&Service, &ReceivedBody) -> Reply<Vec<u8>>),
}

const ROUTES: &[(&str, Handler)] = &[
    (
        "/api/worker/register",
        Handler::Worker(worker_api::register),
    ),
    (
        "/api/worker/heartbeat",
        Handler::Worker(worker_api::heartbeat),
    ),
    ("/api/worker/stop", Handler::Worker(worker_api::stop)),
    ("/api/worker/claim", Handler::Worker(worker_api::claim)),
    ("/api/worker/renew", Handler::Worker(worker_api::renew)),
    ("/api/worker/release", Handler::Worker(worker_api::release)),
    ("/api/store/register", Handler::Batch(store_api::register)),
    ("/api/store/beat", Handler::Batch(store_api::beat)),
    ("/api/store/stop", Handler::Batch(store_api::stop)),
    ("/api/store/list", Handler::Batch(store_api::list)),
    ("/api/store/find", Handler::Batch(store_api::find)),
    ("/api/store/processes", Handler::Batch(store_api::processes)),
    (
        "/api/store/worst_first",
        Handler::Batch(store_api::worst_first),
    ),
    ("/api/store/counts", Handler::Batch(store_api::counts)),
    ("/api/store/events", Handler::Batch(store_api::events)),
    ("/api/store/sweep", Handler::Batch(store_api::sweep)),
    ("/api/store/purge", Handler::Batch(store_api::purge)),
    ("/api/store/claim", Handler::Batch(store_api::claim)),
    ("/api/store/withdraw", Handler::Batch(store_api::withdraw)),
    ("/api/store/renew", Handler::Batch(store_api::renew)),
    ("/api/store/release", Handler::Batch(store_api::release)),
];

/// State that all requests share.
struct Shared {
    service: Service,
    callers: Callers,
    requests: Semaphore,
    batches: Semaphore,
    calls: Arc<Semaphore>,
    store_timeout: Duration,
    body_timeout: Duration,
}

impl Shared {
    async fn answer(self: &Arc<Self>, handler: Handler, request: Request) -> Reply<Vec<u8>> {
        let (head, body) = request.into_parts();
        self.check_caller(&head).await?;
        if head.method != Method::POST {
            return Err(Refusal::new(405, "only POST is allowed"));
        }
        let busy = || Refusal::new(503, "too many requests at once; retry later");
        let _request = self.requests.try_acquire().map_err(|_| busy())?;
        let (largest, _batch) = match handler {
            Handler::Worker(_) => (LARGEST_BODY, None),
            Handler::Batch(_) => {
                let place = timeout(self.store_timeout, self.batches.acquire()).await;
                let place = place.ok().and_then(Result::ok).ok_or_else(busy)?;
                (LARGEST_REQUEST, Some(place))
            }
        };
        let body = timeout(self.body_timeout, read(&head.headers, body, largest)).await;
        let body = body.map_err(|_| Refusal::new(408, "the body was not received in time"))??;
        self.act(handler, body).await
    }

    /// Refuses a caller that may not write.
    async fn check_caller(&self, head: &Parts) -> Reply<()> {
        let (refused, refusal) = match self.callers.identify(head).await {
            Ok(Caller::Token) => return Ok(()),
            Ok(Caller::Local) if !self.callers.has_token() => return Ok(()),
            // Counted already.
            Err(WrongToken) => {
                return Err(Refusal::new(
                    401,
                    "the token is wrong: Authorization: Bearer …",
                ));
            }
            Ok(Caller::Stranger(stranger)) if !self.callers.has_token() => {
                let reason = format!(
                    "without a token, only programs on this host may write, by the name localhost \
                     or its address: {stranger}; start the coordinator with a token"
                );
                (Refused::Stranger, Refusal::new(403, reason))
            }
            Ok(_) => {
                let reason = "the token is missing: Authorization: Bearer …";
                (Refused::NoToken, Refusal::new(401, reason))
            }
        };
        self.callers.refusals.count(refused, peer(head));
        Err(refusal)
    }

    /// Runs the handler on a thread that may block.
    async fn act(self: &Arc<Self>, handler: Handler, body: Bytes) -> Reply<Vec<u8>> {
        let busy = || Refusal::new(503, "too many calls to the store at once; retry later");
        let came = Instant::now();
        let turn = timeout(self.store_timeout, Arc::clone(&self.calls).acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).ok_or_else(busy)?;
        let shared = Arc::clone(self);
        let received = ReceivedBody { body, came };
        let call = tokio::task::spawn_blocking(move || {
            // Held until the store answers, even after the time limit.
            let _turn = turn;
            let acted = catch(|| match handler {
                Handler::Worker(act) => {
                    act(&shared.service, &received).map(|value| value.to_string().into())
                }
                Handler::Batch(act) => act(&shared.service, &received),
            });
            acted.unwrap_or_else(|_| Err(Refusal::new(500, "the store panicked")))
        });
        match timeout(self.store_timeout, call).await {
            Ok(Ok(answer)) => answer,
            // The runtime is shutting down.
            Ok(Err(_)) => Err(Refusal::new(503, "the coordinator is shutting down")),
            Err(_) => Err(Refusal::new(
                503,
                "the store did not answer in time; retry later",
            )),
        }
    }
}

/// Reads the body, if it is not too large. A body that is a little too large is read to its end,
/// because a client that is still sending would not see the refusal.
async fn read(headers: &HeaderMap, mut body: Body, largest: usize) -> Reply<Bytes> {
    let too_large = || {
        let reason = format!("the body is too large; allowed: {largest} bytes");
        Refusal::new(413, reason)
    };
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let patience = largest * 4;
    if announced.is_some_and(|length| length > patience as u64) {
        return Err(too_large());
    }
    let mut read = Vec::new();
    let mut length = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|_| Refusal::bad("the body is incomplete"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length > patience {
            break;
        }
        if length <= largest {
            read.extend_from_slice(&data);
        }
    }
    if length > largest {
        return Err(too_large());
    }
    Ok(read.into())
}

fn respond(answer: Reply<Vec<u8>>) -> Response {
    let (status, body) = match answer {
        Ok(body) => (200, body),
        Err(refusal) => {
            let mut body = json!({"error": refusal.reason});
            if let Some(code) = refusal.code {
                body["code"] = code.into();
            }
            (refusal.status, body.to_string().into())
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    match status {
        401 => headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        405 => headers.insert(ALLOW, HeaderValue::from_static("POST")),
        429 | 503 => headers.insert(RETRY_AFTER, HeaderValue::from_static("1")),
        _ => None,
    };
    response
}
