//! The health of all workers of this process together.

#[cfg(any(feature = "http", feature = "beacon"))]
use std::time::SystemTime;

use crate::error::Error;
use crate::health::{Policy, Summary};
#[cfg(any(feature = "http", feature = "beacon"))]
use crate::health::{State, StateCounts};
use crate::registry::Registry;
use crate::registry::core::escalation::Escalation;
use crate::sync::printable::Printable;
use crate::worker::check_name;

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
    /// What began the shutdown, if a trigger did.
    pub escalation: Option<Escalation>,
    /// Unix time until when a worker was known to be well; 0.0 if none ever was.
    #[cfg(any(feature = "http", feature = "beacon"))]
    pub last_heartbeat: f64,
}

impl ProcessHealth {
    /// Waits up to 100 ms for an overdue pacemaker.
    pub(super) fn read(registry: &Registry) -> Self {
        let summary = registry.summary();
        Self {
            escalation: registry.escalation(),
            #[cfg(any(feature = "http", feature = "beacon"))]
            last_heartbeat: last_heartbeat(registry, &summary),
            summary,
        }
    }

    /// The health in one line of bounded length.
    pub(super) fn reason(&self) -> String {
        let workers = if self.summary.total == 0 {
            "there are no workers".to_owned()
        } else {
            self.summary.to_string()
        };
        match &self.escalation {
            Some(escalation) => format!("shut down by a trigger ({escalation}); {workers}"),
            None => workers,
        }
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
            escalation: None,
            last_heartbeat: 0.0,
        }
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
