//! The views of workers: of a registry, and of a store.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::Withheld;
use crate::fleet::{StoredEnding, StoredWorker};
use crate::health::{
    Activity, GroupStats, Health, MissingWorkers, State, StoreStatus, Summary, Thresholds,
    TypeStats, UnwellWorker,
};
use crate::registry::Snapshot;
use crate::serial::Seconds;
use crate::serve::disclosure::Audience;

/// The most dead, the most stalled and the most overdue workers in a list; the pages list all.
const MAX_LISTED: usize = 100;

#[derive(Serialize)]
struct PublicHealth {
    state: State,
    reason: Withheld,
}

impl PublicHealth {
    const fn of(health: &Health) -> Self {
        Self {
            state: health.state(),
            reason: Withheld,
        }
    }
}

#[derive(Serialize)]
struct PublicStoreStatus {
    registered: usize,
    refused: usize,
    busy: usize,
    replaced_texts: u64,
    failures: u64,
    failures_in_a_row: u64,
    last_error: Withheld,
    last_success_age_s: Option<Seconds>,
}

impl PublicStoreStatus {
    fn of(status: &StoreStatus) -> Self {
        Self {
            registered: status.registered,
            refused: status.refused,
            busy: status.busy,
            replaced_texts: status.replaced_texts,
            failures: status.failures,
            failures_in_a_row: status.failures_in_a_row,
            last_error: Withheld,
            last_success_age_s: status.last_success_age.map(Seconds),
        }
    }
}

#[derive(Serialize)]
struct PublicThresholds {
    stale_after_s: Seconds,
    stall_after_s: Option<Seconds>,
    startup_grace_s: Seconds,
    beats_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_deadline_s: Option<Seconds>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_after_s: Option<Seconds>,
}

impl PublicThresholds {
    fn of(thresholds: &Thresholds) -> Self {
        Self {
            stale_after_s: Seconds(thresholds.stale_after),
            stall_after_s: thresholds.stall_after.map(Seconds),
            startup_grace_s: Seconds(thresholds.startup_grace),
            beats_only: thresholds.beats_only,
            task_deadline_s: thresholds.task_deadline.map(Seconds),
            progress_after_s: thresholds.progress_after.map(Seconds),
        }
    }
}

/// What everybody may see of a worker of a registry.
#[derive(Serialize)]
pub(in crate::serve) struct PublicWorker<'a> {
    id: &'a str,
    worker_type: &'a str,
    group: &'a str,
    incarnation: u32,
    restarts: u32,
    health: PublicHealth,
    activity: Activity,
    run_id: Withheld,
    task: Withheld,
    progress: Option<(u64, u64)>,
    step: Withheld,
    task_age_s: Option<Seconds>,
    progress_age_s: Option<Seconds>,
    heartbeat_age_s: Option<Seconds>,
    last_heartbeat: f64,
    beats: u64,
    late_beats: u64,
    late_updates: u64,
    failed_tasks: u64,
    last_death: Withheld,
    metadata: Withheld,
    thresholds: PublicThresholds,
    interval_s: Seconds,
    tick_age_s: Seconds,
    store: Option<PublicStoreStatus>,
}

impl<'a> PublicWorker<'a> {
    fn of(worker: &'a Snapshot) -> Self {
        Self {
            id: &worker.id,
            worker_type: &worker.worker_type,
            group: &worker.group,
            incarnation: worker.incarnation,
            restarts: worker.restarts,
            health: PublicHealth::of(&worker.health),
            activity: worker.activity,
            run_id: Withheld,
            task: Withheld,
            progress: worker.progress,
            step: Withheld,
            task_age_s: worker.task_age.map(Seconds),
            progress_age_s: worker.progress_age.map(Seconds),
            heartbeat_age_s: worker.heartbeat_age.map(Seconds),
            last_heartbeat: worker.last_heartbeat_unix(),
            beats: worker.beats,
            late_beats: worker.late_beats,
            late_updates: worker.late_updates,
            failed_tasks: worker.failed_tasks,
            last_death: Withheld,
            metadata: Withheld,
            thresholds: PublicThresholds::of(&worker.thresholds),
            interval_s: Seconds(worker.interval),
            tick_age_s: Seconds(worker.tick_age),
            store: worker.store.as_ref().map(PublicStoreStatus::of),
        }
    }
}

/// A worker of a registry.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::serve) enum WorkerView<'a> {
    // Boxed: it is much larger than the other.
    Public(Box<PublicWorker<'a>>),
    Full(&'a Snapshot),
}

impl<'a> WorkerView<'a> {
    pub(in crate::serve) fn new(worker: &'a Snapshot, audience: Audience) -> Self {
        match audience {
            Audience::Public => Self::Public(Box::new(PublicWorker::of(worker))),
            Audience::Full => Self::Full(worker),
        }
    }
}

/// A worker as the health routes show it: with the verdict beside the details.
#[derive(Serialize)]
pub(in crate::serve) struct WorkerHealthView<'a> {
    pub alive: bool,
    state: State,
    reason: Option<String>,
    #[serde(flatten)]
    worker: WorkerView<'a>,
}

impl<'a> WorkerHealthView<'a> {
    pub(in crate::serve) fn new(worker: &'a Snapshot, audience: Audience) -> Self {
        let health = &worker.health;
        Self {
            alive: health.is_recent(),
            state: health.state(),
            reason: match audience {
                Audience::Public => None,
                Audience::Full => health.reason(),
            },
            worker: WorkerView::new(worker, audience),
        }
    }
}

#[derive(Serialize)]
struct PublicUnwell<'a> {
    id: &'a str,
    worker_type: &'a str,
    group: &'a str,
    health: PublicHealth,
    restarting: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum UnwellView<'a> {
    Public(PublicUnwell<'a>),
    Full(&'a UnwellWorker),
}

fn first(workers: &[UnwellWorker], audience: Audience) -> Vec<UnwellView<'_>> {
    let view = |worker| match audience {
        Audience::Full => UnwellView::Full(worker),
        Audience::Public => UnwellView::Public(PublicUnwell {
            id: &worker.id,
            worker_type: &worker.worker_type,
            group: &worker.group,
            health: PublicHealth::of(&worker.health),
            restarting: worker.restarting,
        }),
    };
    workers.iter().take(MAX_LISTED).map(view).collect()
}

/// The counts of all workers, the first unwell ones, and a page of workers.
#[derive(Serialize)]
pub(in crate::serve) struct ListView<'a> {
    view: &'static str,
    total_workers: usize,
    total_active_workers: usize,
    total_dead_workers: usize,
    dead_workers: Vec<UnwellView<'a>>,
    stalled_workers: Vec<UnwellView<'a>>,
    overdue_workers: Vec<UnwellView<'a>>,
    stats_by_type: &'a BTreeMap<String, TypeStats>,
    groups: &'a BTreeMap<String, GroupStats>,
    missing: Option<&'a [MissingWorkers]>,
    /// Of the pacemaker of a process.
    #[serde(skip_serializing_if = "Option::is_none")]
    tick_age_s: Option<f64>,
    workers: Vec<Value>,
}

impl<'a> ListView<'a> {
    /// `workers`: views for the same audience.
    pub(in crate::serve) fn of_process(
        summary: &'a Summary,
        workers: Vec<Value>,
        audience: Audience,
    ) -> Self {
        Self {
            tick_age_s: Some(summary.tick_age.as_secs_f64()),
            ..Self::new("process", summary, workers, audience)
        }
    }

    pub(in crate::serve) fn of_fleet(
        summary: &'a Summary,
        workers: Vec<Value>,
        audience: Audience,
    ) -> Self {
        Self::new("fleet", summary, workers, audience)
    }

    fn new(
        view: &'static str,
        summary: &'a Summary,
        workers: Vec<Value>,
        audience: Audience,
    ) -> Self {
        Self {
            view,
            total_workers: summary.total,
            total_active_workers: summary.total_active,
            total_dead_workers: summary.total_dead,
            dead_workers: first(&summary.dead_workers, audience),
            stalled_workers: first(&summary.stalled_workers, audience),
            overdue_workers: first(&summary.overdue_workers, audience),
            stats_by_type: &summary.stats_by_type,
            groups: &summary.groups,
            missing: (audience == Audience::Full).then_some(&*summary.missing),
            tick_age_s: None,
            workers,
        }
    }
}

#[derive(Serialize)]
pub(super) struct PublicEnding<'a> {
    stopped: bool,
    cause: &'a str,
    detail: Withheld,
}

impl<'a> PublicEnding<'a> {
    pub(super) fn of(ending: &'a StoredEnding) -> Self {
        Self {
            stopped: ending.stopped,
            cause: &ending.cause,
            detail: Withheld,
        }
    }
}

/// What everybody may see of a worker of a store.
#[derive(Serialize)]
pub(in crate::serve) struct PublicStoredWorker<'a> {
    id: &'a str,
    incarnation: u64,
    worker_type: &'a str,
    group: &'a str,
    health: PublicHealth,
    reported: State,
    reason: Withheld,
    run_id: Withheld,
    task: Withheld,
    progress: Option<(u64, u64)>,
    registered_age_s: Seconds,
    heartbeat_age_s: Option<Seconds>,
    progress_age_s: Option<Seconds>,
    beats: u64,
    restarts: u32,
    lease_remaining_s: Option<Seconds>,
    ending: Option<PublicEnding<'a>>,
    ended_age_s: Option<Seconds>,
    interval_s: Seconds,
    thresholds: Option<PublicThresholds>,
    metadata: Withheld,
    process: Withheld,
    /// There if it died in an earlier life.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_death: Option<Withheld>,
}

impl<'a> PublicStoredWorker<'a> {
    fn of(worker: &'a StoredWorker) -> Self {
        let ending = worker.ending.as_ref();
        Self {
            id: &worker.key.id,
            incarnation: worker.key.incarnation,
            worker_type: &worker.info.worker_type,
            group: &worker.info.group,
            health: PublicHealth::of(&worker.health()),
            reported: worker.status.state,
            reason: Withheld,
            run_id: Withheld,
            task: Withheld,
            progress: worker.status.progress,
            registered_age_s: Seconds(worker.registered_age),
            heartbeat_age_s: worker.heartbeat_age.map(Seconds),
            progress_age_s: worker.progress_age.map(Seconds),
            beats: worker.status.beats,
            restarts: worker.info.restarts,
            lease_remaining_s: worker.lease_remaining.map(Seconds),
            ending: ending.map(|(ending, _)| PublicEnding::of(ending)),
            ended_age_s: ending.map(|(_, ago)| Seconds(*ago)),
            interval_s: Seconds(worker.info.interval),
            thresholds: worker.info.thresholds.as_ref().map(PublicThresholds::of),
            metadata: Withheld,
            process: Withheld,
            last_death: worker.last_death.as_ref().map(|_| Withheld),
        }
    }
}

/// A worker of a store.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::serve) enum StoredWorkerView<'a> {
    // Boxed: it is much larger than the other.
    Public(Box<PublicStoredWorker<'a>>),
    Full(&'a StoredWorker),
}

impl<'a> StoredWorkerView<'a> {
    pub(in crate::serve) fn new(worker: &'a StoredWorker, audience: Audience) -> Self {
        match audience {
            Audience::Public => Self::Public(Box::new(PublicStoredWorker::of(worker))),
            Audience::Full => Self::Full(worker),
        }
    }
}

/// A worker of a store in a list: with the verdict beside the details.
#[derive(Serialize)]
pub(in crate::serve) struct StoredWorkerHealthView<'a> {
    alive: bool,
    state: State,
    #[serde(flatten)]
    worker: StoredWorkerView<'a>,
}

impl<'a> StoredWorkerHealthView<'a> {
    pub(in crate::serve) fn new(worker: &'a StoredWorker, audience: Audience) -> Self {
        let health = worker.health();
        Self {
            alive: health.is_recent(),
            state: health.state(),
            worker: StoredWorkerView::new(worker, audience),
        }
    }
}
