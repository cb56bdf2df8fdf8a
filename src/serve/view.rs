//! Readings of a registry for those who ask over HTTP: at most so old, and never more than one being
//! made at a time, however many ask.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::process::Process;
use crate::health::UnwellWorker;
use crate::net::single_flight::SingleFlight;
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::{Registry, Snapshot};
use crate::shutdown::Shutdown;
use crate::sync::catch::catch;

/// How long the checks of the application may take, all together.
const CHECKS_TIMEOUT: Duration = Duration::from_secs(5);
/// Lookups of workers at a time; others wait for their turn.
const LOOKUPS: usize = 4;
/// So many of the dead, and of the stalled, are told with the totals; all are on the pages.
const MOST_UNWELL: usize = 100;

/// Something that has to be well beside the workers.
pub(super) type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The outcome of one check: its name, and what is wrong.
pub(super) type Outcome = (String, Option<String>);

/// One reading of everything that is told of the process.
pub(super) struct View {
    pub process: Process,
    /// Unix time until when a worker was known to be well; 0.0 if none ever was.
    last_heartbeat: f64,
}

/// See the module.
pub(super) struct Views {
    source: Arc<Source>,
    view: SingleFlight<View>,
    /// In the order of their ids.
    workers: SingleFlight<Vec<WorkerRef>>,
    checks: SingleFlight<Vec<Outcome>>,
    /// Lookups that are being done.
    lookups: Arc<Semaphore>,
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
            view: SingleFlight::default(),
            workers: SingleFlight::default(),
            checks: SingleFlight::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }

    pub(super) async fn get(&self) -> Arc<View> {
        let source = Arc::clone(&self.source);
        let view = self.view.get(move || source.read()).await;
        view.unwrap_or_else(|| Arc::new(View::unknown()))
    }

    /// What else has to be well. It is the application that looks, and that may take long.
    pub(super) async fn checks(&self) -> Vec<Outcome> {
        let source = Arc::clone(&self.source);
        let checked = timeout(CHECKS_TIMEOUT, self.checks.get(move || source.check())).await;
        match checked {
            Ok(Some(outcomes)) => outcomes.to_vec(),
            Ok(None) => vec![("checks".to_owned(), Some("they panicked".to_owned()))],
            Err(_) => {
                let why = format!("no answer in {CHECKS_TIMEOUT:?}");
                vec![("checks".to_owned(), Some(why))]
            }
        }
    }

    /// All that is known of one worker.
    pub(super) async fn worker(&self, id: &str) -> Option<Value> {
        let id = id.to_owned();
        let find = move |source: &Source| {
            let found = source.registry.get(&id);
            found.map(|probe| worker(&probe.snapshot()))
        };
        self.look_up(find).await?
    }

    /// The workers whose ids come after this one, in order.
    pub(super) async fn page(&self, after: &str, limit: usize) -> Vec<Value> {
        let source = Arc::clone(&self.source);
        let sorted = move || {
            let mut workers = source.registry.worker_refs();
            workers.sort_by_cached_key(|worker| worker.record.id().to_owned());
            workers
        };
        let Some(workers) = self.workers.get(sorted).await else {
            return Vec::new();
        };
        let first = workers.partition_point(|worker| worker.record.id() <= after);
        let asked: Vec<WorkerRef> = workers.iter().skip(first).take(limit).cloned().collect();
        let read = move |source: &Source| {
            let view = source.registry.observed_now();
            let snapshots = asked
                .iter()
                .map(|worker| source.registry.snapshot_at(worker, &view));
            snapshots.map(|snapshot| worker(&snapshot)).collect()
        };
        self.look_up(read).await.unwrap_or_default()
    }

    /// A few at a time: each takes a thread, and some look at all workers.
    async fn look_up<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Source) -> T + Send + 'static,
    ) -> Option<T> {
        // It is never closed.
        let turn = Arc::clone(&self.lookups).acquire_owned().await.ok()?;
        let source = Arc::clone(&self.source);
        let looked = spawn_blocking(move || {
            let found = look(&source);
            drop(turn);
            found
        });
        looked.await.ok()
    }
}

impl Source {
    fn check(&self) -> Vec<Outcome> {
        let checked = self.checks.iter().map(|(name, check)| {
            let outcome = catch(|| check()).unwrap_or_else(|_| Err("it panicked".to_owned()));
            (name.clone(), outcome.err())
        });
        checked.collect()
    }

    fn read(&self) -> View {
        let mut process = Process::read(&self.registry);
        process.draining |= self.shutdown.as_ref().is_some_and(Shutdown::requested);
        View {
            last_heartbeat: process.last_heartbeat(&self.registry),
            process,
        }
    }
}

impl View {
    /// The reading itself failed.
    fn unknown() -> Self {
        Self {
            process: Process::unknown(),
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
            "dead_workers": first(&summary.dead_workers),
            "stalled_workers": first(&summary.stalled_workers),
            "stats_by_type": summary.stats_by_type,
            "groups": summary.groups,
            "missing": summary.missing,
            "tick_age_s": summary.tick_age.as_secs_f64(),
        })
    }
}

fn first(workers: &[UnwellWorker]) -> &[UnwellWorker] {
    workers.get(..MOST_UNWELL).unwrap_or(workers)
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
