//! The dashboard: one page that shows the state of every worker, and the reasons.
//!
//! A task on the serving runtime reads the workers about once a second and keeps a live view of this
//! process, and one of a store: the rows, their states of the last ten minutes, and the latest
//! events. A page receives all of a view once, and then changes as server-sent events.

mod deaths;
mod events;
mod history;
mod live_view;
mod refresh;
mod routes;
mod rows;
mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use self::live_view::LiveView;
use self::refresh::FleetReadings;
use super::disclosure::{Audience, Disclosure};
use crate::fleet::HeartbeatStore;
use crate::health::Policy;
use crate::net::caller::Callers;
use crate::registry::Registry;
use crate::registry::core::subscribers::Subscription;
use crate::shutdown::Shutdown;

/// Concurrent streams of server-sent events.
const MAX_STREAMS: usize = 64;
/// Concurrent look-ups of single workers in a store.
const MAX_LOOKUPS: usize = 4;
/// Events of the registry that can wait for the next refresh; also the most that one refresh sends.
const MAX_QUEUED_EVENTS: usize = 4_096;

/// What the dashboard shows, and to which requests.
pub(super) struct Subject {
    pub registry: Registry,
    pub shutdown: Option<Shutdown>,
    pub fleet: Option<Arc<dyn HeartbeatStore>>,
    pub disclosure: Disclosure,
    /// By which the page says that all is well.
    pub policy: Policy,
    pub callers: Callers,
}

/// See the module.
pub(super) struct Dashboard {
    subject: Subject,
    started: Instant,
    events: Subscription,
    process: Arc<LiveView>,
    fleet: Option<Arc<FleetView>>,
    streams: Arc<Semaphore>,
    /// Limits the resolution of call stacks to one at a time: each may take seconds and much memory.
    resolving: Arc<Semaphore>,
    /// Wakes the refresh task when a page subscribes.
    subscribed: Arc<Notify>,
    closing: watch::Sender<bool>,
    refresh: Mutex<Option<JoinHandle<()>>>,
}

/// The live view of a store.
struct FleetView {
    store: Arc<dyn HeartbeatStore>,
    live: Arc<LiveView>,
    readings: Mutex<FleetReadings>,
    /// Limits the readings of the store to one at a time.
    reading: Arc<Semaphore>,
    /// Limits the look-ups of single workers.
    lookups: Arc<Semaphore>,
}

impl Dashboard {
    pub(super) fn new(subject: Subject) -> Arc<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let epoch = format!("{:x}", since.unwrap_or_default().as_micros());
        let fleet = subject.fleet.as_ref().map(|store| {
            Arc::new(FleetView {
                store: Arc::clone(store),
                live: Arc::new(LiveView::new(format!("f{epoch}"))),
                readings: Mutex::default(),
                reading: Arc::new(Semaphore::new(1)),
                lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            })
        });
        Arc::new(Self {
            events: subject.registry.subscribe_with_capacity(MAX_QUEUED_EVENTS),
            subject,
            started: Instant::now(),
            process: Arc::new(LiveView::new(format!("p{epoch}"))),
            fleet,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            resolving: Arc::new(Semaphore::new(1)),
            subscribed: Arc::new(Notify::new()),
            closing: watch::Sender::new(false),
            refresh: Mutex::new(None),
        })
    }

    pub(super) fn router(self: &Arc<Self>) -> Router {
        routes::router(self)
    }

    /// Starts the refresh task on this runtime, unless it is running.
    pub(super) fn start(self: &Arc<Self>, runtime: &Handle) {
        let mut refresh = self.refresh.lock();
        if refresh.as_ref().is_none_or(JoinHandle::is_finished) && !*self.closing.borrow() {
            // The weak reference ends the task with the dashboard.
            *refresh = Some(runtime.spawn(refresh::run(Arc::downgrade(self))));
        }
    }

    /// Ends all streams.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// What the page and the streams show, which all pages share. With [`Disclosure::Trusted`] the
    /// routes refuse all other callers.
    const fn audience(&self) -> Audience {
        match self.subject.disclosure {
            Disclosure::Never | Disclosure::Token => Audience::Public,
            Disclosure::Trusted | Disclosure::Always => Audience::Full,
        }
    }

    /// The dashboard's clock: time since it was created.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}
