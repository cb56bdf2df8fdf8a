//! The dashboard: one page that shows how the workers are, and why.
//!
//! A task on the runtime that serves looks at the workers about once a second and keeps the boards,
//! one for this process, one for a store: the rows, the states of the last ten minutes, the last
//! events. Who watches is told all of it once, and then what changes, over server-sent events.

mod board;
mod death;
mod history;
mod routes;
mod source;
mod stream;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch as signal};
use tokio::task::{JoinHandle, spawn_blocking};

use self::board::Board;
use self::watch::FleetState;
use super::disclosure::Disclosure;
use super::probes::one;
use crate::fleet::HeartbeatStore;
use crate::health::{Death, Health};
use crate::registry::Registry;
use crate::registry::core::events::Subscription;
use crate::shutdown::Shutdown;

/// The most streams at a time.
const MOST_STREAMS: usize = 64;
/// Events that may wait for the next look, and the most that are told at once.
const MOST_EVENTS: usize = 4_096;

/// What the dashboard is of, and to whom it is shown.
pub(super) struct Subject {
    pub registry: Registry,
    pub shutdown: Option<Shutdown>,
    pub fleet: Option<Arc<dyn HeartbeatStore>>,
    pub disclosure: Disclosure,
}

/// See the module.
pub(super) struct Dashboard {
    registry: Registry,
    shutdown: Option<Shutdown>,
    disclosure: Disclosure,
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
            disclosure: subject.disclosure,
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
        routes::router(self)
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

    /// Whether it shows reasons, tasks, runs and metadata: to strangers it shows nothing at all then.
    fn shown(&self) -> bool {
        self.disclosure != Disclosure::Nobody
    }

    /// Time since the dashboard began.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn fleet(&self, asked: &[(String, String)]) -> Result<Option<&Arc<Fleet>>, Refusal> {
        match (one(asked, "view"), &self.fleet) {
            (None | Some("process"), _) => Ok(None),
            (Some("fleet"), Some(fleet)) => Ok(Some(fleet)),
            (Some("fleet"), None) => Err(Refusal(StatusCode::NOT_FOUND, "no store is attached")),
            (Some(_), _) => Err(Refusal(
                StatusCode::BAD_REQUEST,
                "invalid view; allowed: process, fleet",
            )),
        }
    }

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

/// Why something is not answered.
struct Refusal(StatusCode, &'static str);
