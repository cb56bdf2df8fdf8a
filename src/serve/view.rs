//! Readings of a registry for those who ask over HTTP: at most so old, and never more than one being
//! made at a time, however many ask.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::fresh::Fresh;
use super::process::Process;
use crate::panics;
use crate::registry::{Probe, Registry, Snapshot};
use crate::shutdown::Shutdown;

/// Something that has to be well beside the workers.
pub(super) type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The outcome of one check: its name, and what is wrong.
pub(super) type Outcome = (String, Option<String>);

/// One reading of everything that is told of the process.
pub(super) struct View {
    pub process: Process,
    pub checks: Vec<Outcome>,
    /// Unix time until when a worker was known to be well; 0.0 if none ever was.
    last_heartbeat: f64,
}

/// See the module.
pub(super) struct Views {
    source: Arc<Source>,
    view: Fresh<View>,
    /// In the order of their ids.
    workers: Fresh<Vec<Probe>>,
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
            view: Fresh::default(),
            workers: Fresh::default(),
        }
    }

    pub(super) async fn get(&self) -> Arc<View> {
        let source = Arc::clone(&self.source);
        let view = self.view.get(move || source.read()).await;
        view.unwrap_or_else(|| Arc::new(View::unknown()))
    }

    /// All that is known of one worker.
    pub(super) async fn worker(&self, id: &str) -> Option<Value> {
        let (source, id) = (Arc::clone(&self.source), id.to_owned());
        let read = spawn_blocking(move || source.registry.get(&id).map(|probe| probe.snapshot()));
        read.await.ok()?.map(|snapshot| worker(&snapshot))
    }

    /// The workers whose ids come after this one, in order.
    pub(super) async fn page(&self, after: &str, limit: usize) -> Vec<Value> {
        let source = Arc::clone(&self.source);
        let sorted = move || {
            let mut probes = source.registry.workers();
            probes.sort_unstable_by(|a, b| a.id().cmp(b.id()));
            probes
        };
        let Some(probes) = self.workers.get(sorted).await else {
            return Vec::new();
        };
        let first = probes.partition_point(|probe| probe.id() <= after);
        let asked = probes.iter().skip(first).take(limit).cloned();
        let asked: Vec<Probe> = asked.collect();
        let read = spawn_blocking(move || {
            let snapshots = asked.iter().map(|probe| worker(&probe.snapshot()));
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
        let mut process = Process::read(&self.registry);
        process.draining |= self.shutdown.as_ref().is_some_and(Shutdown::requested);
        View {
            last_heartbeat: process.last_heartbeat(&self.registry),
            process,
            checks: checks.collect(),
        }
    }
}

impl View {
    /// The reading itself failed.
    fn unknown() -> Self {
        Self {
            process: Process::unknown(),
            checks: Vec::new(),
            last_heartbeat: 0.0,
        }
    }

    /// The process as a whole.
    pub(super) fn to_json(&self) -> Value {
        self.process.to_json(self.last_heartbeat)
    }

    pub(super) fn totals(&self) -> Value {
        let summary = &self.process.summary;
        json!({
            "total_workers": summary.total,
            "total_active_workers": summary.total_active,
            "total_dead_workers": summary.total_dead,
            "dead_workers": summary.dead_workers,
            "stalled_workers": summary.stalled_workers,
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
