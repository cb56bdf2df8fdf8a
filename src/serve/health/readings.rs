//! Readings of a registry that concurrent requests share.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::HealthEndpoint;
use crate::fleet::{HeartbeatStore, Pages, WorkerFilter};
use crate::health::{Policy, RuleResult, Summary};
use crate::net::response::RequestError;
use crate::net::single_flight::SingleFlight;
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::{Registry, Snapshot};
use crate::serve::disclosure::Audience;
use crate::serve::policies::Policies;
use crate::serve::process_health::ProcessHealth;
use crate::serve::store_reader::StoreReader;
use crate::serve::views::{StoredWorkerHealthView, WorkerHealthView};
use crate::shutdown::Shutdown;
use crate::sync::catch::catch;

/// The time limit of all of the application's checks together.
const CHECKS_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent lookups of workers: each occupies a thread.
const MAX_LOOKUPS: usize = 4;
/// How old the counts of a store may be: counting a large store takes a while.
const SUMMARY_AGE: Duration = Duration::from_secs(2);
/// The time limit of the counts of a store.
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(5);

/// A check of the application.
pub(super) type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The outcome of one named check.
#[derive(Clone, Debug)]
pub(super) struct CheckResult {
    pub name: String,
    /// `None` if it passed.
    pub failure: Option<String>,
    /// What would have failed it, but for the policy.
    pub tolerated: Option<String>,
}

impl CheckResult {
    fn new(name: impl Into<String>, failure: Option<String>) -> Self {
        Self {
            name: name.into(),
            failure,
            tolerated: None,
        }
    }
}

impl From<RuleResult> for CheckResult {
    fn from(result: RuleResult) -> Self {
        Self {
            name: result.rule.to_owned(),
            failure: result.failure,
            tolerated: result.tolerated,
        }
    }
}

/// See the module.
pub(super) struct Readings {
    pub policies: Policies,
    registry: Registry,
    shutdown: Option<Shutdown>,
    checks: Arc<[(String, Check)]>,
    process: SingleFlight<ProcessHealth>,
    application: SingleFlight<Vec<CheckResult>>,
    /// Sorted by id.
    workers: SingleFlight<Vec<WorkerRef>>,
    lookups: Arc<Semaphore>,
    pub fleet: Option<FleetReadings>,
}

/// Readings of a store.
pub(super) struct FleetReadings {
    reader: StoreReader,
    /// `None` if the store failed.
    summary: SingleFlight<Option<Arc<Summary>>>,
}

impl Readings {
    pub(super) fn new(endpoint: &HealthEndpoint) -> Self {
        Self {
            policies: endpoint.policies.clone(),
            registry: endpoint.registry.clone(),
            shutdown: endpoint.shutdown.clone(),
            checks: endpoint.checks.clone().into(),
            process: SingleFlight::default(),
            application: SingleFlight::default(),
            workers: SingleFlight::default(),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            fleet: endpoint.fleet.as_ref().map(|store| FleetReadings {
                reader: StoreReader::new(store),
                summary: SingleFlight::with_max_age(SUMMARY_AGE),
            }),
        }
    }

    pub(super) async fn process(&self) -> Arc<ProcessHealth> {
        let (registry, shutdown) = (self.registry.clone(), self.shutdown.clone());
        let read = move || {
            let mut process = ProcessHealth::read(&registry);
            process.summary.stopping |= shutdown.is_some_and(|shutdown| shutdown.requested());
            process
        };
        let process = self.process.get(read).await;
        process.unwrap_or_else(|| Arc::new(ProcessHealth::unknown()))
    }

    /// The checks of a probe.
    pub(super) async fn checks(&self, policy: &Policy) -> Vec<CheckResult> {
        let verdict = self.process().await.summary.verdict(policy);
        let mut checks: Vec<CheckResult> = verdict.rules.into_iter().map(Into::into).collect();
        if !verdict.unknown_types.is_empty() {
            let types = verdict.unknown_types.join(", ");
            checks.push(CheckResult {
                tolerated: Some(format!("no worker has the type {types}")),
                ..CheckResult::new("policy", None)
            });
        }
        checks
    }

    pub(super) async fn application_checks(&self) -> Vec<CheckResult> {
        let checks = Arc::clone(&self.checks);
        let run = move || checks.iter().map(run_check).collect();
        let failure = match timeout(CHECKS_TIMEOUT, self.application.get(run)).await {
            Ok(Some(results)) => return results.to_vec(),
            Ok(None) => "they panicked".to_owned(),
            Err(_) => format!("no answer in {CHECKS_TIMEOUT:?}"),
        };
        vec![CheckResult::new("checks", Some(failure))]
    }

    pub(super) async fn worker(&self, id: &str) -> Option<Snapshot> {
        let (registry, id) = (self.registry.clone(), id.to_owned());
        let find = move || Some(registry.get(&id)?.snapshot());
        self.look_up(find).await?
    }

    /// At most `limit` workers whose ids sort after this one, sorted by id, as this audience may see
    /// them.
    pub(super) async fn page(&self, after: &str, limit: usize, audience: Audience) -> Vec<Value> {
        let registry = self.registry.clone();
        let sorted = move || {
            let mut workers = registry.worker_refs();
            workers.sort_by_cached_key(|worker| worker.record.id().to_owned());
            workers
        };
        let Some(workers) = self.workers.get(sorted).await else {
            return Vec::new();
        };
        let first = workers.partition_point(|worker| worker.record.id() <= after);
        let page: Vec<WorkerRef> = workers.iter().skip(first).take(limit).cloned().collect();
        let registry = self.registry.clone();
        let read = move || {
            let now = registry.observed_now();
            let snapshots = page.iter().map(|worker| registry.snapshot_at(worker, &now));
            let view = |snapshot: Snapshot| {
                serde_json::to_value(WorkerHealthView::new(&snapshot, audience)).ok()
            };
            snapshots.filter_map(view).collect()
        };
        self.look_up(read).await.unwrap_or_default()
    }

    async fn look_up<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.lookups).acquire_owned().await.ok()?;
        let lookup = spawn_blocking(move || {
            let found = read();
            drop(permit);
            found
        });
        lookup.await.ok()
    }
}

impl FleetReadings {
    pub(super) async fn summary(&self) -> Result<Arc<Summary>, RequestError> {
        let store = Arc::clone(&self.reader.store);
        let read = self.summary.get(move || store.summary().ok().map(Arc::new));
        let summary = timeout(SUMMARY_TIMEOUT, read).await;
        let summary =
            summary.map_err(|_| RequestError::busy("the store does not answer; retry later"))?;
        let summary = summary.and_then(|summary| Option::clone(&summary));
        summary.ok_or_else(|| RequestError::busy("the store fails; retry later"))
    }

    /// A page of workers, sorted by id, as this audience may see them.
    pub(super) async fn page(
        &self,
        filter: WorkerFilter,
        audience: Audience,
    ) -> Result<Vec<Value>, RequestError> {
        let read = move |store: &dyn HeartbeatStore| {
            let page = Pages::new(store, filter).next().transpose()?;
            let views = page.unwrap_or_default();
            let view = |worker| serde_json::to_value(StoredWorkerHealthView::new(worker, audience));
            Ok(views
                .iter()
                .filter_map(|worker| view(worker).ok())
                .collect())
        };
        self.reader.read(read).await
    }
}

fn run_check((name, check): &(String, Check)) -> CheckResult {
    let result = catch(|| check()).unwrap_or_else(|_| Err("it panicked".to_owned()));
    CheckResult::new(name.as_str(), result.err())
}
