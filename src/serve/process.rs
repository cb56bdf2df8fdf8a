//! The workers of this process together, and what is wrong with them: for every probe, whatever way
//! it asks.

use std::time::Duration;

use crate::health::{State, Summary};
use crate::registry::Registry;

/// A pacemaker that has not looked for longer than this, and than ten of its resolutions, is told
/// as failing.
const LONGEST_TICK_AGE: Duration = Duration::from_secs(5);

/// So many workers that are not well are named, however many there are.
const MOST_NAMED: usize = 5;

/// Every state, the worst first.
#[cfg(any(feature = "http", feature = "beacon"))]
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

/// One reading of a registry.
#[derive(Debug)]
pub(super) struct Process {
    pub summary: Summary,
    resolution: Duration,
    /// Everybody was asked to stop.
    pub draining: bool,
}

impl Process {
    /// Waits for an overdue pacemaker, for at most 100 ms.
    pub(super) fn read(registry: &Registry) -> Self {
        Self {
            summary: registry.summary(),
            resolution: registry.resolution(),
            draining: registry.is_stopping(),
        }
    }

    /// The reading itself failed: nothing is known, which is not well.
    #[cfg(feature = "http")]
    pub(super) fn unknown() -> Self {
        let mut summary = Summary::default();
        summary.states.add(State::Unobserved);
        Self {
            summary,
            resolution: Duration::from_secs(1),
            draining: false,
        }
    }

    /// How the workers are, in one line of bounded length.
    pub(super) fn reason(&self) -> String {
        let summary = &self.summary;
        if summary.total == 0 {
            return "there are no workers".to_owned();
        }
        summary.brief(MOST_NAMED).to_string()
    }

    pub(super) fn findings(&self) -> Findings {
        let summary = &self.summary;
        let count = |states: &[State]| {
            let said: Vec<String> = states
                .iter()
                .map(|state| (summary.states.get(*state), state.name()))
                .filter(|(count, _)| *count > 0)
                .map(|(count, name)| format!("{count} {name}"))
                .collect();
            (!said.is_empty()).then(|| said.join(", "))
        };
        let patience = LONGEST_TICK_AGE.max(self.resolution * 10);
        Findings {
            pacemaker: (summary.states.get(State::Unobserved) > 0 || summary.tick_age > patience)
                .then(|| {
                    format!(
                        "nobody has looked for {:.1} s",
                        summary.tick_age.as_secs_f64()
                    )
                }),
            workers: count(&[
                State::Dead,
                State::Stale,
                State::NeverStarted,
                State::Stalled,
            ])
            .map(|counts| counts + &summary.unwell(MOST_NAMED)),
            #[cfg(any(feature = "http", all(unix, feature = "systemd")))]
            started: count(&[State::Starting, State::NeverStarted]),
            expected: (!summary.missing.is_empty()).then(|| {
                let missing: Vec<_> = summary.missing.iter().map(ToString::to_string).collect();
                missing.join("; ")
            }),
        }
    }
}

/// What is wrong, for each thing that is checked; `None` where all is well.
pub(super) struct Findings {
    pub pacemaker: Option<String>,
    pub workers: Option<String>,
    #[cfg(any(feature = "http", all(unix, feature = "systemd")))]
    pub started: Option<String>,
    pub expected: Option<String>,
}

impl Findings {
    /// Nobody needs help, and nobody is missing. Workers that are starting do no harm.
    #[cfg(any(feature = "http", feature = "beacon"))]
    const fn is_well(&self) -> bool {
        self.pacemaker.is_none() && self.workers.is_none() && self.expected.is_none()
    }

    /// Neither the pacemaker nor a worker needs help: what a watchdog wants to know.
    #[cfg(all(unix, feature = "systemd"))]
    pub(super) const fn is_live(&self) -> bool {
        self.pacemaker.is_none() && self.workers.is_none()
    }

    /// Every worker has started, and those that are expected are there.
    #[cfg(all(unix, feature = "systemd"))]
    pub(super) const fn has_started(&self) -> bool {
        self.started.is_none() && self.expected.is_none()
    }
}

/// The process in JSON, as every probe tells it.
#[cfg(any(feature = "http", feature = "beacon"))]
impl Process {
    pub(super) fn to_json(&self, last_heartbeat: f64) -> serde_json::Value {
        let summary = &self.summary;
        // Where nobody is alive any more, or yet, nobody is well.
        let living = summary.total_active + summary.states.get(State::Starting);
        let alive = self.findings().is_well() && living > 0;
        let state = WORST_FIRST
            .into_iter()
            .find(|state| summary.states.get(*state) > 0);
        serde_json::json!({
            "alive": alive,
            "last_heartbeat": last_heartbeat,
            // The worst that a worker is in.
            "state": state,
            "reason": self.reason(),
            "draining": self.draining,
            "tick_age_s": summary.tick_age.as_secs_f64(),
            "total_active_workers": summary.total_active,
            "total_dead_workers": summary.total_dead,
        })
    }

    /// Unix time until when a worker was known to be well; 0.0 if none ever was.
    pub(super) fn last_heartbeat(&self, registry: &Registry) -> f64 {
        if self.summary.total_active > 0 {
            // The pacemaker vouched for it when it last looked.
            let now = registry.clock().wall();
            let looked = now.checked_sub(self.summary.tick_age).unwrap_or(now);
            let since = looked.duration_since(std::time::SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        } else {
            // Not one that waits for the pacemaker: that has been done.
            let view = registry.core().observed_now();
            let workers = registry.worker_refs().into_iter();
            workers
                .map(|worker| registry.snapshot_at(&worker, &view).last_heartbeat_unix())
                .fold(0.0, f64::max)
        }
    }
}
