//! Counts of what has happened, for as long as a registry lives. They only grow, whichever workers
//! are forgotten, and they count without a subscriber.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::draining::DrainCounts;
use super::events::EventKind;
use crate::clock::{Moment, nanos};
use crate::health::{Health, State, SweepReport, SweepTotals};

/// Types that are counted separately. All others are counted together, so that an application that
/// makes up types can't exhaust memory or flood its metrics.
pub(crate) const MOST_TYPES: usize = 1_000;
/// The name under which the others are counted.
pub(crate) const OTHERS: &str = "(other)";

/// A counter that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Raises it to at least this value. Returns the result.
    fn raise(&self, least: u64) -> u64 {
        self.0.fetch_max(least, Ordering::Relaxed).max(least)
    }
}

/// What has happened in a registry as a whole.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Ticks of the pacemaker.
    pub ticks: Count,
    /// Ticks that were more than a resolution late.
    pub late_ticks: Count,
    /// Total tick lateness.
    pub lateness_nanos: Count,
    /// Time that was not observed, and not charged to any worker.
    pub forgiven_nanos: Count,
    /// Failed calls to a store.
    pub store_failures: Count,
    pub leases_claimed: Count,
    pub leases_lost: Count,
    /// Sweeps of the registry itself, not of a store.
    pub sweeps: SweepCounts,
}

impl Counts {
    /// Counts an event of a worker of this type.
    pub(super) fn note(&self, worker: Option<&TypeCounts>, kind: &EventKind) {
        match (kind, worker) {
            (EventKind::LeaseLost { .. }, _) => self.leases_lost.add(1),
            (EventKind::Unobserved { forgiven }, _) => self.forgiven_nanos.add(nanos(*forgiven)),
            (_, Some(counts)) => counts.note(kind),
            _ => {}
        }
    }

    /// Counts a tick of the pacemaker.
    pub(crate) fn note_tick(&self, lateness: Duration, resolution: Duration) {
        self.ticks.add(1);
        self.lateness_nanos.add(nanos(lateness));
        self.late_ticks.add(u64::from(lateness > resolution));
    }
}

/// What has happened to the workers of one type.
#[derive(Debug, Default)]
pub(crate) struct TypeCounts {
    pub registrations: Count,
    /// Lives that began where another one with the same id had ended.
    pub restarts: Count,
    pub given_up: Count,
    pub stalls: Count,
    pub overdue: Count,
    pub stale: Count,
    pub never_started: Count,
    pub failed_tasks: Count,
    pub late_warnings: Count,
    pub drains: DrainCounts,
    pub racing_warnings: Count,
    deaths: [Count; CAUSES.len()],
    /// Beats of lives that are over; those of the present lives are in the cells.
    pub beats: Count,
    /// The highest number of beats that was exported.
    reported_beats: Count,
}

/// The names of the causes of death.
pub(crate) const CAUSES: [&str; 7] = [
    "panicked", "failed", "exited", "killed", "gone", "fenced", "lost",
];

impl TypeCounts {
    fn note(&self, kind: &EventKind) {
        match kind {
            EventKind::Registered => self.registrations.add(1),
            EventKind::GaveUp { .. } => self.given_up.add(1),
            EventKind::TaskFailed { .. } => self.failed_tasks.add(1),
            EventKind::Late { .. } => self.late_warnings.add(1),
            EventKind::OverBudget { .. } => self.drains.over_budget.add(1),
            EventKind::Racing { .. } => self.racing_warnings.add(1),
            EventKind::Became(Health::Dead { death, .. }) => {
                let name = death.cause.name();
                let causes = CAUSES.iter().zip(&self.deaths);
                causes
                    .filter(|(cause, _)| **cause == name)
                    .for_each(|(_, deaths)| deaths.add(1));
            }
            EventKind::Became(health) => match health.state() {
                State::Stalled => self.stalls.add(1),
                State::Overdue => self.overdue.add(1),
                State::Stale => self.stale.add(1),
                State::NeverStarted => self.never_started.add(1),
                _ => {}
            },
            _ => {}
        }
    }

    /// The number of deaths, by the names of the causes.
    pub(crate) fn deaths(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CAUSES.into_iter().zip(self.deaths.iter().map(Count::get))
    }

    /// The beats of all lives, never fewer than were exported before. Concurrent beats of several
    /// threads for one worker may set its counter back.
    pub(crate) fn monotonic_beats(&self, counted: u64) -> u64 {
        self.reported_beats.raise(counted)
    }
}

/// The counts of all types that have ever had a worker. Their number is bounded.
#[derive(Debug, Default)]
pub(super) struct CountsByType {
    by_name: HashMap<Box<str>, Arc<TypeCounts>>,
}

impl CountsByType {
    pub(super) fn of(&mut self, worker_type: &str) -> Arc<TypeCounts> {
        if let Some(known) = self.by_name.get(worker_type) {
            return Arc::clone(known);
        }
        let name = if self.by_name.len() < MOST_TYPES {
            worker_type
        } else {
            OTHERS
        };
        Arc::clone(self.by_name.entry(name.into()).or_default())
    }

    /// With the names of the types, or [`OTHERS`].
    pub(super) fn all(&self) -> Vec<(Box<str>, Arc<TypeCounts>)> {
        let all = self.by_name.iter();
        all.map(|(name, counts)| (name.clone(), Arc::clone(counts)))
            .collect()
    }
}

/// The totals of sweeps.
#[derive(Debug, Default)]
pub(crate) struct SweepCounts {
    successes: Count,
    skipped: Count,
    unneeded: Count,
    pub failures: Count,
    marked_offline: Count,
    released_leases: Count,
    forgotten: Count,
    slow: Count,
    latest: Mutex<LatestSweeps>,
}

#[derive(Clone, Copy, Debug, Default)]
struct LatestSweeps {
    success: Option<Moment>,
    duration: Option<Duration>,
}

impl SweepCounts {
    /// Counts a sweep. A dry run changed nothing.
    pub(crate) fn note(&self, report: &SweepReport, dry_run: bool, now: Moment) {
        if !dry_run {
            self.marked_offline.add(report.marked_offline.len() as u64);
            self.released_leases
                .add(report.released_leases.len() as u64);
            self.forgotten.add(report.forgotten as u64);
        }
        self.slow.add(u64::from(report.slow));
        let mut latest = self.latest.lock();
        match (report.success, report.recently_swept) {
            (true, _) => {
                self.successes.add(1);
                latest.success = Some(now);
                latest.duration = Some(report.duration);
            }
            (false, Some(ago)) => {
                self.unneeded.add(1);
                latest.success = latest.success.max(Some(now.before(ago)));
            }
            (false, None) => self.skipped.add(1),
        }
    }

    pub(crate) fn totals(&self, now: Moment) -> SweepTotals {
        let latest = *self.latest.lock();
        SweepTotals {
            successes: self.successes.get(),
            skipped: self.skipped.get(),
            unneeded: self.unneeded.get(),
            failures: self.failures.get(),
            marked_offline: self.marked_offline.get(),
            released_leases: self.released_leases.get(),
            forgotten: self.forgotten.get(),
            slow: self.slow.get(),
            last_duration: latest.duration,
            last_success_age: latest.success.map(|at| now.since(at)),
            overdue: false,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::health::DeathCause;

    #[test]
    fn every_cause_of_death_has_its_name() {
        for name in CAUSES {
            assert_eq!(DeathCause::from_name(name, None, None).name(), name);
        }
    }

    #[test]
    fn types_beyond_the_bound_are_counted_together() {
        let mut types = CountsByType::default();
        for n in 0..3 * MOST_TYPES {
            types.of(&n.to_string()).registrations.add(1);
        }
        assert_eq!(types.by_name.len(), MOST_TYPES + 1);
        let others = types.of(OTHERS).registrations.get();
        assert_eq!(others, 2 * MOST_TYPES as u64);
        types.of("3").registrations.add(1);
        assert_eq!(types.of("3").registrations.get(), 2, "it keeps its own");
    }
}
