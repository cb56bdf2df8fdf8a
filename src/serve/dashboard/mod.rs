//! The dashboard: one page that shows the state of every worker, and the reasons.
//!
//! A task on the serving runtime reads the workers about once a second and keeps lists of this
//! process, and of a store: the worst of all workers, and the worst of each selection that a page
//! shows. A list has the rows, and their states of the last ten minutes. A page receives all of a list
//! once, and then changes and events as server-sent events.

mod deaths;
mod events;
mod feed;
mod history;
mod lists;
mod live_view;
mod refresh;
mod routes;
mod rows;
mod server_info;
mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use self::lists::Lists;
use self::server_info::ServerInfo;
use super::disclosure::{Audience, Disclosure};
use super::store_reader::StoreReader;
use crate::fleet::{FleetCounts, HeartbeatStore};
use crate::health::Policy;
use crate::net::caller::Callers;
use crate::registry::Registry;
use crate::registry::core::subscribers::Subscription;
use crate::shutdown::Shutdown;

/// Concurrent streams of server-sent events.
const MAX_STREAMS: usize = 64;
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
    process: Arc<Lists>,
    fleet: Option<Arc<FleetView>>,
    streams: Arc<Semaphore>,
    /// Limits the resolution of call stacks to one at a time: each may take seconds and much memory.
    resolving: Arc<Semaphore>,
    /// Wakes the refresh task when a page subscribes.
    subscribed: Arc<Notify>,
    closing: watch::Sender<bool>,
    refresh: Mutex<Option<JoinHandle<()>>>,
}

/// The lists of a store.
struct FleetView {
    store: Arc<dyn HeartbeatStore>,
    lists: Arc<Lists>,
    /// Looks up single workers.
    reader: StoreReader,
    /// The latest counts, and when they were read: all lists share them. Locked while they are read.
    counts: Mutex<Option<(Instant, FleetCounts)>>,
}

impl Dashboard {
    pub(super) fn new(subject: Subject) -> Arc<Self> {
        let since = SystemTime::now();
        let server = ServerInfo::new(since, subject.shared_audience()).into_json();
        let epoch = since.duration_since(SystemTime::UNIX_EPOCH);
        let epoch = format!("{:x}", epoch.unwrap_or_default().as_micros());
        let fleet = subject.fleet.as_ref().map(|store| {
            Arc::new(FleetView {
                store: Arc::clone(store),
                lists: Arc::new(Lists::new(format!("f{epoch}"), server.clone())),
                reader: StoreReader::new(store),
                counts: Mutex::default(),
            })
        });
        Arc::new(Self {
            events: subject.registry.subscribe_with_capacity(MAX_QUEUED_EVENTS),
            subject,
            started: Instant::now(),
            process: Arc::new(Lists::new(format!("p{epoch}"), server)),
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

    const fn audience(&self) -> Audience {
        self.subject.shared_audience()
    }

    /// The dashboard's clock: time since it was created.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Subject {
    /// What the page and the streams show, which all pages share. With [`Disclosure::Trusted`] the
    /// routes refuse all other callers.
    const fn shared_audience(&self) -> Audience {
        match self.disclosure {
            Disclosure::Never | Disclosure::Token => Audience::Public,
            Disclosure::Trusted | Disclosure::Always => Audience::Full,
        }
    }
}
