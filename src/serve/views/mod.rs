//! What is shown of a process and of its workers: one type for each audience, chosen before anything
//! is serialized. A public type lists what everybody may see; a field that is new is not in it.

#[cfg(feature = "http")]
mod events;
#[cfg(feature = "http")]
mod workers;

use serde::{Serialize, Serializer};

#[cfg(feature = "http")]
pub(super) use self::events::EventPageView;
#[cfg(feature = "http")]
pub(super) use self::workers::{
    ListView, StoredWorkerHealthView, StoredWorkerView, WorkerHealthView, WorkerView,
};
use super::process_health::{ProcessHealth, worst_state};
use crate::health::{Policy, State};

/// Stands for a value that this audience may not see: `null`.
pub(super) struct Withheld;

impl Serialize for Withheld {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

/// The process as a whole. `R` is a reason: a text, or [`Withheld`].
#[derive(Serialize)]
pub(super) struct ProcessView<R> {
    pub alive: bool,
    last_heartbeat: f64,
    state: Option<State>,
    pub reason: R,
    policy: String,
    failures: Vec<RuleView<R>>,
    tolerated: Vec<RuleView<R>>,
    unknown_types: Vec<String>,
    draining: bool,
    tick_age_s: f64,
    total_active_workers: usize,
    total_dead_workers: usize,
}

/// A rule of a policy, and what it found.
#[derive(Serialize)]
struct RuleView<R> {
    rule: &'static str,
    reason: R,
}

impl<R> ProcessView<R> {
    /// `reason` is called for each reason. A process without a living worker is not alive.
    fn of(process: &ProcessHealth, policy: &Policy, reason: impl Fn(&str) -> R) -> Self {
        let summary = &process.summary;
        let verdict = summary.verdict(&policy.clone().needs_workers());
        let view = |(rule, found): (&'static str, &str)| RuleView {
            rule,
            reason: reason(found),
        };
        Self {
            alive: verdict.is_well(),
            last_heartbeat: process.last_heartbeat,
            state: worst_state(&summary.states),
            reason: reason(&process.reason()),
            policy: policy.to_string(),
            failures: verdict.failures().map(view).collect(),
            tolerated: verdict.tolerated().map(view).collect(),
            unknown_types: verdict.unknown_types.clone(),
            draining: summary.stopping,
            tick_age_s: summary.tick_age.as_secs_f64(),
            total_active_workers: summary.total_active,
            total_dead_workers: summary.total_dead,
        }
    }
}

impl ProcessView<String> {
    pub(super) fn full(process: &ProcessHealth, policy: &Policy) -> Self {
        Self::of(process, policy, str::to_owned)
    }
}

#[cfg(feature = "http")]
impl ProcessView<Withheld> {
    pub(super) fn public(process: &ProcessHealth, policy: &Policy) -> Self {
        Self::of(process, policy, |_| Withheld)
    }
}
