//! The health of all workers of this process together, and the checks that every probe makes.

use std::time::Duration;
#[cfg(any(feature = "http", feature = "beacon"))]
use std::time::SystemTime;

#[cfg(any(feature = "http", feature = "beacon"))]
use serde_json::{Value, json};

#[cfg(any(feature = "http", feature = "beacon"))]
use crate::health::StateCounts;
#[cfg(feature = "http")]
use crate::health::UnwellWorker;
use crate::health::{MOST_NAMED, State, Summary};
use crate::registry::Registry;

/// The pacemaker's check fails if its last tick is older than this and than ten resolutions.
const MAX_TICK_AGE: Duration = Duration::from_secs(5);
/// The most dead, and the most stalled workers in the totals; the pages list all.
#[cfg(feature = "http")]
const MAX_LISTED: usize = 100;

/// The worst state that occurs.
#[cfg(any(feature = "http", feature = "beacon"))]
pub(super) fn worst_state(counts: &StateCounts) -> Option<State> {
    let mut states = State::WORST_FIRST.into_iter();
    states.find(|state| counts.get(*state) > 0)
}

/// One reading of a registry.
#[derive(Debug)]
pub(super) struct ProcessHealth {
    pub summary: Summary,
    resolution: Duration,
    /// The workers were asked to stop, or the process shuts down.
    pub draining: bool,
    /// Unix time until when a worker was known to be well; 0.0 if none ever was.
    #[cfg(any(feature = "http", feature = "beacon"))]
    last_heartbeat: f64,
}

/// The outcome of one named check; `None` if it passed.
#[cfg(feature = "http")]
#[derive(Clone, Debug)]
pub(super) struct CheckResult {
    pub name: String,
    pub failure: Option<String>,
}

#[cfg(feature = "http")]
impl CheckResult {
    pub(super) fn new(name: impl Into<String>, failure: Option<String>) -> Self {
        let name = name.into();
        Self { name, failure }
    }
}

impl ProcessHealth {
    /// Waits up to 100 ms for an overdue pacemaker.
    pub(super) fn read(registry: &Registry) -> Self {
        let summary = registry.summary();
        Self {
            resolution: registry.resolution(),
            draining: registry.is_stopping(),
            #[cfg(any(feature = "http", feature = "beacon"))]
            last_heartbeat: last_heartbeat(registry, &summary),
            summary,
        }
    }

    /// The health in one line of bounded length.
    pub(super) fn reason(&self) -> String {
        if self.summary.total == 0 {
            return "there are no workers".to_owned();
        }
        self.summary.to_string()
    }

    fn pacemaker_failure(&self) -> Option<String> {
        let age = self.summary.tick_age;
        let is_late = age > MAX_TICK_AGE.max(self.resolution * 10);
        (is_late || self.summary.states.get(State::Unobserved) > 0).then(|| {
            let seconds = age.as_secs_f64();
            format!("no tick of the pacemaker for {seconds:.1} s")
        })
    }

    fn workers_failure(&self) -> Option<String> {
        let states = [
            State::Dead,
            State::Stale,
            State::NeverStarted,
            State::Stalled,
        ];
        let counts = self.counts(&states)?;
        Some(counts + &self.summary.unwell(MOST_NAMED))
    }

    #[cfg(any(feature = "http", all(unix, feature = "systemd")))]
    fn started_failure(&self) -> Option<String> {
        self.counts(&[State::Starting, State::NeverStarted])
    }

    fn expected_failure(&self) -> Option<String> {
        let missing = self.summary.missing.iter().map(ToString::to_string);
        let missing = missing.collect::<Vec<_>>();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// How many workers are in these states; `None` if there are none.
    fn counts(&self, states: &[State]) -> Option<String> {
        let counts = states
            .iter()
            .map(|state| (self.summary.states.get(*state), state.name()))
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}"));
        let counts = counts.collect::<Vec<_>>();
        (!counts.is_empty()).then(|| counts.join(", "))
    }

    /// The pacemaker ticks, and no worker is unhealthy.
    pub(super) fn is_live(&self) -> bool {
        self.pacemaker_failure().is_none() && self.workers_failure().is_none()
    }

    /// Every worker has started, and all expected workers exist.
    #[cfg(all(unix, feature = "systemd"))]
    pub(super) fn has_started(&self) -> bool {
        self.started_failure().is_none() && self.expected_failure().is_none()
    }
}

#[cfg(feature = "http")]
impl ProcessHealth {
    /// The workers could not be read.
    pub(super) fn unknown() -> Self {
        let mut summary = Summary::default();
        summary.states.add(State::Unobserved);
        Self {
            summary,
            resolution: Duration::from_secs(1),
            draining: false,
            last_heartbeat: 0.0,
        }
    }

    pub(super) fn liveness_checks(&self) -> Vec<CheckResult> {
        vec![
            CheckResult::new("pacemaker", self.pacemaker_failure()),
            CheckResult::new("workers", self.workers_failure()),
        ]
    }

    /// A worker that died during its set-up has not started: the liveness checks are included.
    pub(super) fn startup_checks(&self) -> Vec<CheckResult> {
        let mut checks = self.liveness_checks();
        checks.push(CheckResult::new("started", self.started_failure()));
        checks.push(CheckResult::new("expected", self.expected_failure()));
        checks
    }

    pub(super) fn readiness_checks(&self) -> Vec<CheckResult> {
        let shutdown = self.draining.then(|| "it is shutting down".to_owned());
        let mut checks = self.startup_checks();
        checks.push(CheckResult::new("shutdown", shutdown));
        checks
    }

    /// The counts of all workers, and the first unhealthy ones.
    pub(super) fn totals(&self) -> Value {
        let summary = &self.summary;
        let first = |workers: &[UnwellWorker]| json!(&workers[..workers.len().min(MAX_LISTED)]);
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

#[cfg(any(feature = "http", feature = "beacon"))]
impl ProcessHealth {
    /// The process as a whole, for the endpoint and the beacon.
    pub(super) fn to_json(&self) -> Value {
        let summary = &self.summary;
        // A process without a living worker is not alive.
        let living = summary.total_active + summary.states.get(State::Starting);
        let alive = living > 0 && self.is_live() && self.expected_failure().is_none();
        json!({
            "alive": alive,
            "last_heartbeat": self.last_heartbeat,
            "state": worst_state(&summary.states),
            "reason": self.reason(),
            "draining": self.draining,
            "tick_age_s": summary.tick_age.as_secs_f64(),
            "total_active_workers": summary.total_active,
            "total_dead_workers": summary.total_dead,
        })
    }
}

#[cfg(any(feature = "http", feature = "beacon"))]
fn last_heartbeat(registry: &Registry, summary: &Summary) -> f64 {
    if summary.total_active > 0 {
        // The pacemaker vouched for an active worker at its last tick.
        let now = registry.clock().wall();
        let tick = now.checked_sub(summary.tick_age).unwrap_or(now);
        let since = tick.duration_since(SystemTime::UNIX_EPOCH);
        return since.unwrap_or_default().as_secs_f64();
    }
    // summary() has already waited for the pacemaker, so this must not wait again.
    let now = registry.peek_observed_now();
    let workers = registry.worker_refs().into_iter();
    workers
        .map(|worker| registry.snapshot_at(&worker, &now).last_heartbeat_unix())
        .fold(0.0, f64::max)
}
