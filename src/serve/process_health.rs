//! The health of all workers of this process together.

#[cfg(any(feature = "http", feature = "beacon"))]
use std::time::SystemTime;

#[cfg(any(feature = "http", feature = "beacon"))]
use serde_json::{Value, json};

use crate::error::Error;
#[cfg(feature = "http")]
use crate::health::UnwellWorker;
use crate::health::{Policy, Summary};
#[cfg(any(feature = "http", feature = "beacon"))]
use crate::health::{State, StateCounts};
use crate::registry::Registry;
use crate::sync::printable::Printable;
use crate::worker::check_name;

/// The most dead, and the most stalled workers in the totals; the pages list all.
#[cfg(feature = "http")]
const MAX_LISTED: usize = 100;

/// The worst state that occurs.
#[cfg(any(feature = "http", feature = "beacon"))]
pub(super) fn worst_state(counts: &StateCounts) -> Option<State> {
    let mut states = State::WORST_FIRST.into_iter();
    states.find(|state| counts.get(*state) > 0)
}

/// # Errors
/// [`Error::Invalid`] if the policy contradicts itself, or names a type that no worker can have.
pub(super) fn check_policy(policy: &Policy) -> Result<(), Error> {
    for (name, contradicts) in policy.types() {
        check_name("worker_type", name)?;
        if contradicts {
            return Err(Error::invalid(
                "policy",
                policy.to_string(),
                format!(
                    "type {} is either ignored or has exceptions",
                    Printable(name)
                ),
            ));
        }
    }
    Ok(())
}

/// One reading of a registry.
#[derive(Debug)]
pub(super) struct ProcessHealth {
    pub summary: Summary,
    /// Unix time until when a worker was known to be well; 0.0 if none ever was.
    #[cfg(any(feature = "http", feature = "beacon"))]
    last_heartbeat: f64,
}

impl ProcessHealth {
    /// Waits up to 100 ms for an overdue pacemaker.
    pub(super) fn read(registry: &Registry) -> Self {
        let summary = registry.summary();
        Self {
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
}

#[cfg(feature = "http")]
impl ProcessHealth {
    /// The workers could not be read.
    pub(super) fn unknown() -> Self {
        let mut summary = Summary::default();
        summary.states.add(State::Unobserved);
        Self {
            summary,
            last_heartbeat: 0.0,
        }
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
            "overdue_workers": first(&summary.overdue_workers),
            "stats_by_type": summary.stats_by_type,
            "groups": summary.groups,
            "missing": summary.missing,
            "tick_age_s": summary.tick_age.as_secs_f64(),
        })
    }
}

#[cfg(any(feature = "http", feature = "beacon"))]
impl ProcessHealth {
    /// The process as a whole, for the endpoint and the beacon. A process without a living worker is not
    /// alive.
    pub(super) fn to_json(&self, policy: &Policy) -> Value {
        let summary = &self.summary;
        let verdict = summary.verdict(&policy.clone().needs_workers());
        let rules = |found: &mut dyn Iterator<Item = (&'static str, &str)>| -> Vec<Value> {
            let found = found.map(|(rule, reason)| json!({"rule": rule, "reason": reason}));
            found.collect()
        };
        json!({
            "alive": verdict.is_well(),
            "last_heartbeat": self.last_heartbeat,
            "state": worst_state(&summary.states),
            "reason": self.reason(),
            "policy": policy.to_string(),
            "failures": rules(&mut verdict.failures()),
            "tolerated": rules(&mut verdict.tolerated()),
            "unknown_types": verdict.unknown_types,
            "draining": summary.stopping,
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
