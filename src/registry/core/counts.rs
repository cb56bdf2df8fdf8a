//! What has happened, counted for as long as a registry lives. Whoever is forgotten meanwhile, these
//! only grow: where something is told it is counted, and nobody has to be listening.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::events::EventKind;
use crate::clock::{Moment, nanos};
use crate::health::{DeathCause, Health, State, SweepReport, SweepTotals};

/// So many types are counted apart. The others are counted together, so that an application that
/// makes up types neither grows for it, nor its metrics.
pub(crate) const MOST_TYPES: usize = 1_000;
/// What the others are called.
pub(crate) const OTHERS: &str = "(other)";

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes it at least so much. Returns what it is then.
    #[cfg(feature = "prometheus")]
    fn raise(&self, least: u64) -> u64 {
        self.0.fetch_max(least, Ordering::Relaxed).max(least)
    }
}

/// What has happened in a registry as a whole.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Looks of the pacemaker.
    pub ticks: Count,
    /// Those of them that came more than a resolution late.
    pub late_ticks: Count,
    /// How late they came, all together.
    pub lateness_nanos: Count,
    /// Time that nobody observed, and that no worker was charged for.
    pub forgiven_nanos: Count,
    /// Calls to a store that failed.
    pub store_failures: Count,
    pub leases_claimed: Count,
    pub leases_lost: Count,
    /// Of the registry itself, not of a store.
    pub sweeps: SweepCounts,
}

impl Counts {
    /// Counts what is being told, of a worker of this type.
    pub(super) fn note(&self, worker: Option<&TypeCounts>, kind: &EventKind) {
        match (kind, worker) {
            (EventKind::LeaseLost { .. }, _) => self.leases_lost.add(1),
            (EventKind::Unobserved { forgiven }, _) => self.forgiven_nanos.add(nanos(*forgiven)),
            (_, Some(counts)) => counts.note(kind),
            _ => {}
        }
    }

    /// The pacemaker looked so late.
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
    /// Lives that began where another one of the same id had ended.
    pub restarts: Count,
    pub given_up: Count,
    pub stalls: Count,
    pub stale: Count,
    pub never_started: Count,
    pub failed_tasks: Count,
    deaths: [Count; CAUSES.len()],
    /// Of lives that are over: those of the others are in their cells.
    pub beats: Count,
    /// The most beats that anybody was told of.
    #[cfg(feature = "prometheus")]
    reported_beats: Count,
}

/// The names of the causes of death, in the order of [`place`].
pub(crate) const CAUSES: [&str; 7] = [
    "panicked", "failed", "exited", "killed", "gone", "fenced", "lost",
];

const fn place(cause: &DeathCause) -> usize {
    match cause {
        DeathCause::Panicked { .. } => 0,
        DeathCause::Failed { .. } => 1,
        DeathCause::Exited => 2,
        DeathCause::Killed => 3,
        DeathCause::Gone => 4,
        DeathCause::Fenced => 5,
        DeathCause::Lost => 6,
    }
}

impl TypeCounts {
    fn note(&self, kind: &EventKind) {
        match kind {
            EventKind::Registered => self.registrations.add(1),
            EventKind::GaveUp { .. } => self.given_up.add(1),
            EventKind::TaskFailed { .. } => self.failed_tasks.add(1),
            EventKind::Became(Health::Dead { death, .. }) => {
                if let Some(deaths) = self.deaths.get(place(&death.cause)) {
                    deaths.add(1);
                }
            }
            EventKind::Became(health) => match health.state() {
                State::Stalled => self.stalls.add(1),
                State::Stale => self.stale.add(1),
                State::NeverStarted => self.never_started.add(1),
                _ => {}
            },
            _ => {}
        }
    }

    /// How many died, by the names of the causes.
    #[cfg(feature = "prometheus")]
    pub(crate) fn deaths(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CAUSES.into_iter().zip(self.deaths.iter().map(Count::get))
    }

    /// The beats of all lives as they are to be told: never fewer than before. Threads that beat at
    /// once on one worker's behalf may set its counter back.
    #[cfg(feature = "prometheus")]
    pub(crate) fn monotonic_beats(&self, counted: u64) -> u64 {
        self.reported_beats.raise(counted)
    }
}

/// The counts of all types that there ever were, bounded.
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

    /// With the types, or [`OTHERS`].
    pub(super) fn all(&self) -> Vec<(Box<str>, Arc<TypeCounts>)> {
        let all = self.by_name.iter();
        all.map(|(name, counts)| (name.clone(), Arc::clone(counts)))
            .collect()
    }
}

/// What came of sweeps.
#[derive(Debug, Default)]
pub(crate) struct SweepCounts {
    successes: Count,
    skipped: Count,
    pub failures: Count,
    marked_offline: Count,
    released_leases: Count,
    last_success: Mutex<Option<Moment>>,
}

impl SweepCounts {
    /// What a sweep reported. One that only told what it would do changed nothing.
    pub(crate) fn note(&self, report: &SweepReport, dry_run: bool, now: Moment) {
        if !dry_run {
            self.marked_offline.add(report.marked_offline.len() as u64);
            self.released_leases
                .add(report.released_leases.len() as u64);
        }
        if report.success {
            self.successes.add(1);
            *self.last_success.lock() = Some(now);
        } else {
            self.skipped.add(1);
        }
    }

    pub(crate) fn totals(&self, now: Moment) -> SweepTotals {
        SweepTotals {
            successes: self.successes.get(),
            skipped: self.skipped.get(),
            failures: self.failures.get(),
            marked_offline: self.marked_offline.get(),
            released_leases: self.released_leases.get(),
            last_success_age: self.last_success.lock().map(|at| now.since(at)),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_cause_of_death_has_its_place() {
        for (name, cause) in CAUSES
            .iter()
            .map(|name| (*name, DeathCause::from_name(name, None)))
        {
            assert_eq!(cause.name(), name);
            assert_eq!(CAUSES[place(&cause)], name);
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
