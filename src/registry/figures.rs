//! The figures that metrics export of a registry: by type, at one moment.
#![cfg_attr(
    not(feature = "prometheus"),
    expect(dead_code, reason = "only the metrics read the gauges")
)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::counters::{Counters, TypeCounters};
use super::scan::{ProfileTotals, Tally};
use super::{Registry, Snapshot};
use crate::clock::Moment;
use crate::health::{
    Activity, Health, MissingWorkers, Signs, State, StateCounts, StoreStatus, SweepTotals,
};
use crate::registry::core::Core;
use crate::registry::core::counts::{Count, TypeCounts};
use crate::registry::core::record::Record;
use crate::registry::core::worker_ref::Facts;

/// See the module.
pub(crate) struct Figures {
    pub counters: Counters,
    /// Every type that has ever had a worker.
    pub types: BTreeMap<Box<str>, TypeFigures>,
    /// Every type that is expected.
    pub expected: Vec<MissingWorkers>,
    /// The age of the pacemaker's last tick; `None` without workers, and so without a pacemaker.
    pub tick_age: Option<Duration>,
    /// The store that the registry is attached to, and the number of leases held.
    pub store: Option<(StoreStatus, usize)>,
}

/// The figures of the workers of one type.
pub(crate) struct TypeFigures {
    pub states: StateCounts,
    /// Dead workers that their supervisor is about to restart.
    pub restarting: u64,
    /// The longest time that a living worker has been without a heartbeat; since its registration, if
    /// it never had one.
    pub heartbeat_age: Option<Duration>,
    /// The longest time that a living worker has been at work without progress.
    pub progress_age: Option<Duration>,
}

impl Registry {
    /// One pass over all cells, with the bounds of [`summary`](Self::summary).
    pub(crate) fn figures(&self) -> Figures {
        let observed = self.observed_now();
        let (tally, profiles) = self.tally::<FigureTally>(&observed);
        let mut by_type = HashMap::<usize, Totals>::new();
        for ProfileTotals {
            profile, totals, ..
        } in profiles
        {
            let counts = Arc::as_ptr(&profile.counts).addr();
            by_type.entry(counts).or_default().add_all(&totals);
        }
        let types = tally.types.into_iter();
        let mut counters = self.totals();
        let types = types.map(|(name, counts, ended_beats)| {
            let totals = by_type.remove(&Arc::as_ptr(&counts).addr());
            let totals = totals.unwrap_or_default();
            let beats = ended_beats.saturating_add(totals.beats);
            let of_type = counts.read(counts.monotonic_beats(beats));
            counters.by_type.insert(name.to_string(), of_type);
            (name, TypeFigures::of(&totals))
        });
        let types = types.collect();
        let store_hook = self.inner.core.store_hook.get();
        Figures {
            counters,
            types,
            expected: self.expected(),
            tick_age: self.tick_age(&observed),
            store: store_hook.map(|store| (store.status(), store.leases_held())),
        }
    }

    /// The counters that are not of a type.
    fn totals(&self) -> Counters {
        let core = &self.inner.core;
        let counts = &core.counts;
        let time = |nanos: &Count| Duration::from_nanos(nanos.get());
        Counters {
            by_type: BTreeMap::new(),
            forgotten_workers: self.inner.tombstones.forgotten(),
            dropped_events: core.subscribers.dropped(),
            suppressed_log_lines: core.suppressed_log_lines(),
            pacemaker_ticks: counts.ticks.get(),
            pacemaker_late_ticks: counts.late_ticks.get(),
            pacemaker_lateness: time(&counts.lateness_nanos),
            pacemaker_unobserved: time(&counts.forgiven_nanos),
            store_failures: counts.store_failures.get(),
            leases_claimed: counts.leases_claimed.get(),
            leases_lost: counts.leases_lost.get(),
            sweeps: self.swept(),
        }
    }

    /// The totals of the sweeps of this registry.
    pub(crate) fn swept(&self) -> SweepTotals {
        self.counts().sweeps.totals(self.clock().now())
    }

    /// The first workers, and the number of the others.
    pub(crate) fn snapshots(&self, most: usize) -> (Vec<Snapshot>, usize) {
        let observed = self.observed_now();
        let workers = self.worker_refs();
        let shown = workers.iter().take(most);
        let shown = shown
            .map(|worker| self.snapshot_at(worker, &observed))
            .collect();
        (shown, workers.len().saturating_sub(most))
    }
}

/// What a pass finds of the workers with one profile.
#[derive(Default)]
struct Totals {
    states: StateCounts,
    restarting: u64,
    beats: u64,
    heartbeat_age: Option<Duration>,
    progress_age: Option<Duration>,
}

/// Sums up, and names no worker.
#[derive(Default)]
struct FigureTally {
    /// All types, also those without workers, with the beats of their ended workers. Beats move there
    /// from the cells, so they belong to the same pass.
    types: Vec<(Box<str>, Arc<TypeCounts>, u64)>,
}

impl Tally for FigureTally {
    type Totals = Totals;

    #[inline(always)]
    fn add_plain(totals: &mut Totals, signs: &Signs, state: State, now: Moment) -> bool {
        totals.states.add(state);
        totals.add_ages(signs, now);
        true
    }

    fn add(
        &mut self,
        totals: &mut Totals,
        record: &Record,
        facts: &Facts,
        health: Health,
        now: Moment,
    ) {
        totals.states.add(health.state());
        totals.restarting += u64::from(health.state() == State::Dead && record.is_restarting());
        if let Facts::Living(signs) = facts {
            totals.add_ages(signs, now);
        }
    }

    #[inline(always)]
    fn add_beats(totals: &mut Totals, beats: u64) {
        totals.beats = totals.beats.saturating_add(beats);
    }

    fn finish(&mut self, core: &Core) {
        let types = core.profiles.counts().into_iter();
        let with_beats = types.map(|(name, counts)| {
            let ended_beats = counts.beats.get();
            (name, counts, ended_beats)
        });
        self.types = with_beats.collect();
    }
}

impl Totals {
    fn add_ages(&mut self, signs: &Signs, now: Moment) {
        let heartbeat = now.since(signs.heartbeat_at.unwrap_or(signs.started_at));
        self.heartbeat_age = self.heartbeat_age.max(Some(heartbeat));
        if signs.activity != Activity::Idle {
            let progress = now.since(signs.silent_since());
            self.progress_age = self.progress_age.max(Some(progress));
        }
    }

    fn add_all(&mut self, other: &Self) {
        self.states.add_all(&other.states);
        self.restarting += other.restarting;
        self.beats = self.beats.saturating_add(other.beats);
        self.heartbeat_age = self.heartbeat_age.max(other.heartbeat_age);
        self.progress_age = self.progress_age.max(other.progress_age);
    }
}

impl TypeFigures {
    const fn of(totals: &Totals) -> Self {
        Self {
            states: totals.states,
            restarting: totals.restarting,
            heartbeat_age: totals.heartbeat_age,
            progress_age: totals.progress_age,
        }
    }
}

impl TypeCounts {
    /// With these beats, which are in the workers' cells.
    fn read(&self, beats: u64) -> TypeCounters {
        TypeCounters {
            beats,
            registrations: self.registrations.get(),
            restarts: self.restarts.get(),
            give_ups: self.given_up.get(),
            deaths: self.deaths().collect(),
            late_warnings: self.late_warnings.get(),
            racing_warnings: self.racing_warnings.get(),
            stalls: self.stalls.get(),
            overdue_tasks: self.overdue.get(),
            stale_episodes: self.stale.get(),
            never_started: self.never_started.get(),
            failed_tasks: self.failed_tasks.get(),
            drains: self.drains.read(),
        }
    }
}
