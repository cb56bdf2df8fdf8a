//! Readings of a registry for those who ask over HTTP: at most so old, and never more than one being
//! made at a time, however many ask.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use crate::health::{State, Summary};
use crate::panics;
use crate::registry::{Registry, Snapshot};
use crate::shutdown::Shutdown;

/// For so long, a reading is good for everybody.
const FRESH: Duration = Duration::from_millis(50);

/// Every state, the worst first.
pub(super) const WORST_FIRST: [State; State::ALL.len()] = [
    State::Dead,
    State::NeverStarted,
    State::Stalled,
    State::Stale,
    State::Unobserved,
    State::Starting,
    State::Stopping,
    State::Processing,
    State::Active,
    State::Idle,
    State::Stopped,
];

/// Something that has to be well beside the workers.
pub(super) type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The outcome of one check: its name, and what is wrong.
pub(super) type Outcome = (String, Option<String>);

/// One reading of everything that is told of the process.
pub(super) struct View {
    pub summary: Summary,
    pub resolution: Duration,
    pub draining: bool,
    pub checks: Vec<Outcome>,
    /// Unix time until when a worker was known to be well; 0.0 if none ever was.
    last_heartbeat: f64,
}

/// See the module.
pub(super) struct Views {
    source: Arc<Source>,
    latest: Mutex<Option<(Instant, Arc<View>)>>,
}

struct Source {
    registry: Registry,
    shutdown: Option<Shutdown>,
    checks: Vec<(String, Check)>,
}

impl Views {
    pub(super) fn new(
        registry: Registry,
        shutdown: Option<Shutdown>,
        checks: Vec<(String, Check)>,
    ) -> Self {
        Self {
            source: Arc::new(Source {
                registry,
                shutdown,
                checks,
            }),
            latest: Mutex::new(None),
        }
    }

    pub(super) async fn get(&self) -> Arc<View> {
        let mut latest = self.latest.lock().await;
        if let Some((at, view)) = &*latest
            && at.elapsed() < FRESH
        {
            return Arc::clone(view);
        }
        let source = Arc::clone(&self.source);
        // It waits for an overdue pacemaker, and checks may block: not on the runtime's own thread.
        let read = spawn_blocking(move || Arc::new(source.read())).await;
        let view = read.unwrap_or_else(|_| Arc::new(View::unknown()));
        *latest = Some((Instant::now(), Arc::clone(&view)));
        view
    }

    /// All that is known of one worker.
    pub(super) async fn worker(&self, id: &str) -> Option<Value> {
        let (source, id) = (Arc::clone(&self.source), id.to_owned());
        let read = spawn_blocking(move || source.registry.get(&id).map(|probe| probe.snapshot()));
        read.await.ok()?.map(|snapshot| worker(&snapshot))
    }

    /// The workers whose ids come after this one, in order.
    pub(super) async fn page(&self, after: &str, limit: usize) -> Vec<Value> {
        let (source, after) = (Arc::clone(&self.source), after.to_owned());
        let read = spawn_blocking(move || {
            let mut probes = source.registry.workers();
            probes.retain(|probe| probe.id() > after.as_str());
            probes.sort_unstable_by(|a, b| a.id().cmp(b.id()));
            probes.truncate(limit);
            let snapshots = probes.iter().map(|probe| worker(&probe.snapshot()));
            snapshots.collect()
        });
        read.await.unwrap_or_default()
    }
}

impl Source {
    fn read(&self) -> View {
        let checks = self.checks.iter().map(|(name, check)| {
            let checked = catch_unwind(AssertUnwindSafe(|| check()));
            let outcome = checked.unwrap_or_else(|payload| {
                panics::dispose(payload);
                Err("it panicked".to_owned())
            });
            (name.clone(), outcome.err())
        });
        let summary = self.registry.summary();
        let last_heartbeat = if summary.total_active > 0 {
            // The pacemaker vouched for it when it last looked.
            let now = self.registry.clock().wall();
            let looked = now.checked_sub(summary.tick_age).unwrap_or(now);
            let since = looked.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        } else {
            let workers = self.registry.workers().into_iter();
            workers
                .map(|probe| probe.snapshot().last_heartbeat_unix())
                .fold(0.0, f64::max)
        };
        View {
            summary,
            resolution: self.registry.resolution(),
            draining: self.shutdown.as_ref().is_some_and(Shutdown::requested),
            checks: checks.collect(),
            last_heartbeat,
        }
    }
}

impl View {
    /// The reading itself failed: nothing is known, which is not well.
    fn unknown() -> Self {
        let mut summary = Summary::default();
        summary.states.add(State::Unobserved);
        Self {
            summary,
            resolution: Duration::from_secs(1),
            draining: false,
            checks: Vec::new(),
            last_heartbeat: 0.0,
        }
    }

    /// The process as a whole.
    pub(super) fn process(&self) -> Value {
        let summary = &self.summary;
        let alive = summary.is_healthy() && summary.total > 0;
        let state = WORST_FIRST
            .into_iter()
            .find(|state| summary.states.get(*state) > 0);
        let reason = if summary.total == 0 {
            "there are no workers".to_owned()
        } else {
            summary.to_string()
        };
        json!({
            "alive": alive,
            "last_heartbeat": self.last_heartbeat,
            // The worst that a worker is in.
            "state": state,
            "reason": reason,
            "draining": self.draining,
            "tick_age_s": summary.tick_age.as_secs_f64(),
            "total_active_workers": summary.total_active,
            "total_dead_workers": summary.total_dead,
        })
    }

    pub(super) fn totals(&self) -> Value {
        let summary = &self.summary;
        json!({
            "total_workers": summary.total,
            "total_active_workers": summary.total_active,
            "total_dead_workers": summary.total_dead,
            "dead_workers": summary.dead_workers,
            "stats_by_type": summary.stats_by_type,
            "groups": summary.groups,
            "missing": summary.missing,
            "tick_age_s": summary.tick_age.as_secs_f64(),
        })
    }
}

/// One worker: what everybody asks for first, then all that is known.
fn worker(snapshot: &Snapshot) -> Value {
    let mut value = serde_json::to_value(snapshot).unwrap_or_else(|_| json!({}));
    let health = &snapshot.health;
    value["alive"] = health.is_recent().into();
    value["last_heartbeat"] = snapshot.last_heartbeat_unix().into();
    value["state"] = health.state().name().into();
    value["reason"] = health.reason().into();
    value
}
