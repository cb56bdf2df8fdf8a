//! Each type of the store's interface, as it is on the wire.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize as Read, Serialize as Write};

use super::wire::{Pairs, Seconds, StateName};
use crate::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, ProcessIdentity, Registration, Stop, StoredEnding,
    StoredWorker, Sweep, WorkerFilter, WorkerKey,
};
use crate::health::{SweepReport, Thresholds};

/// A worker that begins.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct RegistrationWire {
    pub id: String,
    pub explicit: bool,
    pub worker_type: String,
    pub group: String,
    pub interval_s: Seconds,
    pub thresholds: Option<ThresholdsWire>,
    #[serde(default)]
    pub metadata: Pairs,
    #[serde(default)]
    pub restarts: u32,
    pub process: Option<ProcessWire>,
}

impl From<&Registration> for RegistrationWire {
    fn from(registration: &Registration) -> Self {
        Self {
            id: registration.id.clone(),
            explicit: registration.explicit,
            worker_type: registration.worker_type.clone(),
            group: registration.group.clone(),
            interval_s: Seconds(registration.interval),
            thresholds: registration.thresholds.as_ref().map(ThresholdsWire::from),
            metadata: Pairs(registration.metadata.clone()),
            restarts: registration.restarts,
            process: registration.process.as_ref().map(ProcessWire::from),
        }
    }
}

impl From<RegistrationWire> for Registration {
    fn from(wire: RegistrationWire) -> Self {
        Self {
            id: wire.id,
            explicit: wire.explicit,
            worker_type: wire.worker_type,
            group: wire.group,
            interval: wire.interval_s.0,
            thresholds: wire.thresholds.map(Thresholds::from),
            metadata: wire.metadata.0,
            restarts: wire.restarts,
            process: wire.process.map(ProcessIdentity::from),
        }
    }
}

/// The limits that a worker is judged by.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct ThresholdsWire {
    pub stale_after_s: Seconds,
    pub stall_after_s: Option<Seconds>,
    pub startup_grace_s: Seconds,
    #[serde(default)]
    pub beats_only: bool,
}

impl From<&Thresholds> for ThresholdsWire {
    fn from(thresholds: &Thresholds) -> Self {
        Self {
            stale_after_s: Seconds(thresholds.stale_after),
            stall_after_s: thresholds.stall_after.map(Seconds),
            startup_grace_s: Seconds(thresholds.startup_grace),
            beats_only: thresholds.beats_only,
        }
    }
}

impl From<ThresholdsWire> for Thresholds {
    fn from(wire: ThresholdsWire) -> Self {
        Self {
            stale_after: wire.stale_after_s.0,
            stall_after: wire.stall_after_s.map(|seconds| seconds.0),
            startup_grace: wire.startup_grace_s.0,
            beats_only: wire.beats_only,
        }
    }
}

/// The process of a worker.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct ProcessWire {
    pub hostname: String,
    pub pid: u32,
    pub started: u64,
    pub boot_id: String,
    pub pid_namespace: u64,
}

impl From<&ProcessIdentity> for ProcessWire {
    fn from(process: &ProcessIdentity) -> Self {
        Self {
            hostname: process.hostname.clone(),
            pid: process.pid,
            started: process.started,
            boot_id: process.boot_id.clone(),
            pid_namespace: process.pid_namespace,
        }
    }
}

impl From<ProcessWire> for ProcessIdentity {
    fn from(wire: ProcessWire) -> Self {
        Self {
            hostname: wire.hostname,
            pid: wire.pid,
            started: wire.started,
            boot_id: wire.boot_id,
            pid_namespace: wire.pid_namespace,
        }
    }
}

/// One incarnation.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct KeyWire {
    pub id: String,
    pub incarnation: u64,
}

impl From<&WorkerKey> for KeyWire {
    fn from(key: &WorkerKey) -> Self {
        Self {
            id: key.id.clone(),
            incarnation: key.incarnation,
        }
    }
}

impl From<KeyWire> for WorkerKey {
    fn from(wire: KeyWire) -> Self {
        Self {
            id: wire.id,
            incarnation: wire.incarnation,
        }
    }
}

/// A heartbeat.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct BeatWire {
    #[serde(flatten)]
    pub key: KeyWire,
    pub state: StateName,
    pub reason: Option<String>,
    pub heartbeat_age_s: Option<Seconds>,
    pub progress_age_s: Option<Seconds>,
    pub run_id: Option<String>,
    pub task: Option<String>,
    pub progress: Option<(u64, u64)>,
    pub beats: u64,
    #[serde(default)]
    pub metadata: Pairs,
}

impl From<&Beat> for BeatWire {
    fn from(beat: &Beat) -> Self {
        Self {
            key: KeyWire::from(&beat.key),
            state: StateName(beat.state),
            reason: beat.reason.clone(),
            heartbeat_age_s: beat.heartbeat_age.map(Seconds),
            progress_age_s: beat.progress_age.map(Seconds),
            run_id: beat.run_id.clone(),
            task: beat.task.clone(),
            progress: beat.progress,
            beats: beat.beats,
            metadata: Pairs(beat.metadata.clone()),
        }
    }
}

impl From<BeatWire> for Beat {
    fn from(wire: BeatWire) -> Self {
        Self {
            key: wire.key.into(),
            state: wire.state.0,
            reason: wire.reason,
            heartbeat_age: wire.heartbeat_age_s.map(|seconds| seconds.0),
            progress_age: wire.progress_age_s.map(|seconds| seconds.0),
            run_id: wire.run_id,
            task: wire.task,
            progress: wire.progress,
            beats: wire.beats,
            metadata: wire.metadata.0,
        }
    }
}

/// The end of an incarnation.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct StopWire {
    #[serde(flatten)]
    pub key: KeyWire,
    pub ending: EndingWire,
    pub ago_s: Seconds,
}

/// How it ended.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct EndingWire {
    pub stopped: bool,
    pub cause: String,
    pub detail: Option<String>,
}

impl From<EndingWire> for StoredEnding {
    fn from(wire: EndingWire) -> Self {
        Self {
            stopped: wire.stopped,
            cause: wire.cause,
            detail: wire.detail,
        }
    }
}

impl From<&Stop> for StopWire {
    fn from(stop: &Stop) -> Self {
        let ending = StoredEnding::from(&stop.ending);
        Self {
            key: KeyWire::from(&stop.key),
            ending: EndingWire {
                stopped: ending.stopped,
                cause: ending.cause,
                detail: ending.detail,
            },
            ago_s: Seconds(stop.ago),
        }
    }
}

impl From<StopWire> for Stop {
    fn from(wire: StopWire) -> Self {
        Self {
            key: wire.key.into(),
            ending: StoredEnding::from(wire.ending).restored(None, None, wire.ago_s.0),
            ago: wire.ago_s.0,
        }
    }
}

/// What a store says to a write.
#[derive(Clone, Copy, Debug, Read, Write)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AnswerWire {
    Accepted,
    Unknown,
    Superseded,
    Ended,
}

impl From<Answer> for AnswerWire {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Accepted => Self::Accepted,
            Answer::Unknown => Self::Unknown,
            Answer::Superseded => Self::Superseded,
            Answer::Ended => Self::Ended,
        }
    }
}

impl From<AnswerWire> for Answer {
    fn from(wire: AnswerWire) -> Self {
        match wire {
            AnswerWire::Accepted => Self::Accepted,
            AnswerWire::Unknown => Self::Unknown,
            AnswerWire::Superseded => Self::Superseded,
            AnswerWire::Ended => Self::Ended,
        }
    }
}

/// Which workers to list.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct FilterWire {
    pub worker_type: Option<String>,
    pub group: Option<String>,
    pub host: Option<ProcessWire>,
    pub after: Option<String>,
    pub limit: usize,
}

impl From<&WorkerFilter> for FilterWire {
    fn from(filter: &WorkerFilter) -> Self {
        Self {
            worker_type: filter.worker_type.clone(),
            group: filter.group.clone(),
            host: filter.host.as_ref().map(ProcessWire::from),
            after: filter.after.clone(),
            limit: filter.limit,
        }
    }
}

impl From<FilterWire> for WorkerFilter {
    fn from(wire: FilterWire) -> Self {
        Self {
            worker_type: wire.worker_type,
            group: wire.group,
            host: wire.host.map(ProcessIdentity::from),
            after: wire.after,
            limit: wire.limit,
        }
    }
}

/// One pass.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct SweepWire {
    pub threshold_s: Seconds,
    pub watched_for_s: Seconds,
    /// All whose process is gone. A coordinator that does not know of [`gone`](Self::gone) takes
    /// them for killed, and releases their leases at once.
    pub killed: Vec<KeyWire>,
    /// Those of them that are not known to be killed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<KeyWire>,
    pub dry_run: bool,
}

impl From<SweepWire> for Sweep {
    fn from(wire: SweepWire) -> Self {
        let gone: HashSet<WorkerKey> = wire.gone.into_iter().map(WorkerKey::from).collect();
        let mut killed: Vec<WorkerKey> = wire.killed.into_iter().map(WorkerKey::from).collect();
        killed.retain(|key| !gone.contains(key));
        Self {
            threshold: wire.threshold_s.0,
            watched_for: wire.watched_for_s.0,
            killed,
            gone: gone.into_iter().collect(),
            dry_run: wire.dry_run,
        }
    }
}

/// What it found.
#[derive(Clone, Debug, Read)]
pub(crate) struct ReportWire {
    pub success: bool,
    pub marked_offline: Vec<String>,
    pub affected_groups: Vec<String>,
    pub released_leases: Vec<String>,
}

impl From<ReportWire> for SweepReport {
    fn from(wire: ReportWire) -> Self {
        Self {
            success: wire.success,
            marked_offline: wire.marked_offline,
            affected_groups: wire.affected_groups,
            released_leases: wire.released_leases,
        }
    }
}

/// A wish to work on a run.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct ClaimWire {
    pub worker: KeyWire,
    pub run_id: String,
    pub ttl_s: Seconds,
}

impl From<&Claim> for ClaimWire {
    fn from(claim: &Claim) -> Self {
        Self {
            worker: KeyWire::from(&claim.worker),
            run_id: claim.run_id.clone(),
            ttl_s: Seconds(claim.ttl),
        }
    }
}

impl From<ClaimWire> for Claim {
    fn from(wire: ClaimWire) -> Self {
        Self {
            worker: wire.worker.into(),
            run_id: wire.run_id,
            ttl: wire.ttl_s.0,
        }
    }
}

/// What a store says to it.
#[derive(Clone, Copy, Debug, Read, Write)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClaimAnswerWire {
    /// With its fence.
    Granted(u64),
    Taken,
    Refused(AnswerWire),
}

impl From<ClaimAnswer> for ClaimAnswerWire {
    fn from(answer: ClaimAnswer) -> Self {
        match answer {
            ClaimAnswer::Granted(fence) => Self::Granted(fence),
            ClaimAnswer::Taken => Self::Taken,
            ClaimAnswer::Refused(answer) => Self::Refused(answer.into()),
        }
    }
}

impl From<ClaimAnswerWire> for ClaimAnswer {
    fn from(wire: ClaimAnswerWire) -> Self {
        match wire {
            ClaimAnswerWire::Granted(fence) => Self::Granted(fence),
            ClaimAnswerWire::Taken => Self::Taken,
            ClaimAnswerWire::Refused(answer) => Self::Refused(answer.into()),
        }
    }
}

/// A lease.
#[derive(Clone, Debug, Read, Write)]
pub(crate) struct LeaseWire {
    pub worker: KeyWire,
    pub run_id: String,
    pub fence: u64,
}

impl From<&LeaseKey> for LeaseWire {
    fn from(lease: &LeaseKey) -> Self {
        Self {
            worker: KeyWire::from(&lease.worker),
            run_id: lease.run_id.clone(),
            fence: lease.fence,
        }
    }
}

impl From<LeaseWire> for LeaseKey {
    fn from(wire: LeaseWire) -> Self {
        Self {
            worker: wire.worker.into(),
            run_id: wire.run_id,
            fence: wire.fence,
        }
    }
}

/// A worker as the store knows it, read from what `serial.rs` writes.
#[derive(Clone, Debug, Read)]
pub(crate) struct StoredWire {
    #[serde(flatten)]
    key: KeyWire,
    worker_type: String,
    group: String,
    interval_s: Seconds,
    thresholds: Option<ThresholdsWire>,
    metadata: Pairs,
    restarts: u32,
    process: Option<ProcessWire>,
    reported: StateName,
    reason: Option<String>,
    registered_age_s: Seconds,
    heartbeat_age_s: Option<Seconds>,
    progress_age_s: Option<Seconds>,
    run_id: Option<String>,
    task: Option<String>,
    progress: Option<(u64, u64)>,
    beats: u64,
    lease_remaining_s: Option<Seconds>,
    ending: Option<EndingWire>,
    ended_age_s: Option<Seconds>,
}

impl From<StoredWire> for StoredWorker {
    fn from(wire: StoredWire) -> Self {
        let ended_age = wire.ended_age_s.map_or(Duration::ZERO, |age| age.0);
        Self {
            key: wire.key.into(),
            worker_type: wire.worker_type,
            group: wire.group,
            interval: wire.interval_s.0,
            thresholds: wire.thresholds.map(Thresholds::from),
            metadata: wire.metadata.0,
            restarts: wire.restarts,
            process: wire.process.map(ProcessIdentity::from),
            reported: wire.reported.0,
            reason: wire.reason,
            registered_age: wire.registered_age_s.0,
            heartbeat_age: wire.heartbeat_age_s.map(|seconds| seconds.0),
            progress_age: wire.progress_age_s.map(|seconds| seconds.0),
            run_id: wire.run_id,
            task: wire.task,
            progress: wire.progress,
            beats: wire.beats,
            lease_remaining: wire.lease_remaining_s.map(|seconds| seconds.0),
            ending: wire.ending.map(|ending| (ending.into(), ended_age)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> WorkerKey {
        WorkerKey {
            id: id.into(),
            incarnation: 1,
        }
    }

    #[test]
    fn a_sweep_is_read_with_and_without_those_that_are_gone() {
        let read = |text: &str| Sweep::from(serde_json::from_str::<SweepWire>(text).unwrap());
        let rest = r#""threshold_s":90.0,"watched_for_s":1.0,"dry_run":false"#;
        let (a, b) = (
            r#"{"id":"a","incarnation":1}"#,
            r#"{"id":"b","incarnation":1}"#,
        );
        let before = read(&format!(r#"{{"killed":[{a}],{rest}}}"#));
        assert_eq!((before.killed, before.gone), (vec![key("a")], vec![]));
        let now = read(&format!(r#"{{"killed":[{a},{b}],"gone":[{b}],{rest}}}"#));
        assert_eq!((now.killed, now.gone), (vec![key("a")], vec![key("b")]));
    }
}
