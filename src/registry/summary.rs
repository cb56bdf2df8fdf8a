//! The summary of all workers, the sweep, and the state of a group.

use std::collections::BTreeMap;

use super::Registry;
use super::scan::{ProfileTotals, Tally};
use crate::clock::Moment;
use crate::health::{
    GroupState, GroupStats, Health, MissingWorkers, Signs, State, StateCounts, Summary,
    SweepReport, UnwellWorker,
};
use crate::registry::core::record::Record;
use crate::registry::core::worker_ref::Facts;

impl Registry {
    /// All workers at one moment: how many are in each state, by type and by group, which are dead,
    /// stale, never started, stalled or overdue and why, and which types have too few.
    ///
    /// One pass over all cells, repeated if workers came or went meanwhile. No worker waits for it,
    /// except one that comes or goes after that has happened three times in a row. It waits only for
    /// an overdue pacemaker, for at most 100 ms.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let mailer = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// let indexer = WorkerHeartbeat::builder("indexer").id("indexer-1").registry(&registry).start()?;
    /// mailer.mark_idle();
    /// indexer.fail("disk full");
    ///
    /// let summary = registry.summary();
    /// assert_eq!((summary.total_active, summary.total_dead), (1, 1));
    /// assert_eq!(summary.stats_by_type["mailer"].active, 1);
    /// assert_eq!(summary.dead_workers[0].id, "indexer-1");
    /// assert!(summary.to_string().starts_with("1 active, 1 dead; indexer-1: dead: failed: disk full"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn summary(&self) -> Summary {
        let observed = self.observed_now();
        let (unwell, profiles) = self.tally::<Unwell>(&observed);
        let mut summary = unwell.summary(profiles);
        summary.missing = self.missing();
        summary.tick_age = self.tick_age(&observed).unwrap_or_default();
        summary.resolution = self.resolution();
        summary.stopping = self.is_stopping();
        summary.forgotten = self.inner.tombstones.forgotten();
        let counts = self.inner.core.profiles.counts().into_iter();
        summary.failed_tasks = counts.map(|(_, counts)| counts.failed_tasks.get()).sum();
        summary
    }

    /// One pass over all workers that finds which are newly dead, stale or never started. Each is
    /// marked once an episode; a worker that recovers can be marked again.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
    /// hb.fail("disk full");
    /// assert_eq!(registry.sweep().marked_offline, ["mailer-1"]);
    /// assert!(registry.sweep().marked_offline.is_empty(), "once an episode");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use = "the report lists the workers that were marked offline"]
    pub fn sweep(&self) -> SweepReport {
        let observed = self.fresh_observed_now();
        let mut report = SweepReport {
            success: observed.unwatched.is_none(),
            ..SweepReport::default()
        };
        let mut groups = BTreeMap::<String, StateCounts>::new();
        let mut touched = Vec::new();
        for worker in self.worker_refs() {
            let state = worker.health(&observed).state();
            let record = &worker.record;
            let group = &*record.profile.group;
            match groups.get_mut(group) {
                Some(counts) => counts.add(state),
                None => groups.entry(group.to_owned()).or_default().add(state),
            }
            if state.is_offline() {
                let mut detail = record.detail();
                if !std::mem::replace(&mut detail.marked_offline, true) {
                    report.marked_offline.push(record.id().to_owned());
                    touched.push(group.to_owned());
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        touched.retain(|group| {
            groups
                .get(group)
                .is_some_and(|counts| GroupState::of(counts) == GroupState::Offline)
        });
        report.affected_groups = touched;
        let core = &self.inner.core;
        core.counts.sweeps.note(&report, false, core.clock.now());
        report
    }

    /// The state of a group; [`GroupState::Unknown`] if it has no workers.
    ///
    /// ```
    /// use worker_heartbeat::{GroupState, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// assert_eq!(registry.group("machine-7"), GroupState::Unknown);
    /// let hb = WorkerHeartbeat::builder("mailer").group("machine-7").registry(&registry).start()?;
    /// hb.beat();
    /// assert_eq!(registry.group("machine-7"), GroupState::Online);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn group(&self, group: &str) -> GroupState {
        let observed = self.observed_now();
        let mut counts = StateCounts::default();
        for worker in self.worker_refs() {
            if &*worker.record.profile.group == group {
                counts.add(worker.health(&observed).state());
            }
        }
        GroupState::of(&counts)
    }

    fn missing(&self) -> Vec<MissingWorkers> {
        let mut expected = self.expected();
        expected.retain(|missing| missing.living < missing.expected);
        expected
    }

    /// The expected and the living workers of each type that is expected.
    pub(super) fn expected(&self) -> Vec<MissingWorkers> {
        let core = &self.inner.core;
        let expected = core.expected.lock().clone();
        if expected.is_empty() {
            return Vec::new();
        }
        let living = core.living_by_type();
        expected
            .into_iter()
            .map(|(worker_type, expectation)| {
                let living = living.get(&worker_type).copied().unwrap_or(0);
                MissingWorkers::new(worker_type, expectation.count, living)
            })
            .collect()
    }
}

/// The workers that a summary names; the others are only counted.
#[derive(Default)]
struct Unwell {
    offline: Vec<UnwellWorker>,
    stalled: Vec<UnwellWorker>,
    overdue: Vec<UnwellWorker>,
}

impl Tally for Unwell {
    type Totals = StateCounts;

    #[inline(always)]
    fn add_plain(totals: &mut StateCounts, _: &Signs, state: State, _: Moment) -> bool {
        let named = state.is_unwell();
        if !named {
            totals.add(state);
        }
        !named
    }

    fn add(
        &mut self,
        totals: &mut StateCounts,
        record: &Record,
        _: &Facts,
        health: Health,
        _: Moment,
    ) {
        totals.add(health.state());
        let list = match health.state() {
            State::Stalled => &mut self.stalled,
            State::Overdue => &mut self.overdue,
            state if state.is_offline() => &mut self.offline,
            _ => return,
        };
        list.push(UnwellWorker {
            id: record.id().to_owned(),
            worker_type: record.profile.worker_type.to_string(),
            group: record.profile.group.to_string(),
            restarting: record.is_restarting(),
            health,
        });
    }
}

impl Unwell {
    fn summary(self, profiles: Vec<ProfileTotals<Self>>) -> Summary {
        let mut all = StateCounts::default();
        let mut types = BTreeMap::<String, StateCounts>::new();
        let mut groups = BTreeMap::<String, StateCounts>::new();
        for ProfileTotals {
            profile, totals, ..
        } in profiles
        {
            // A profile may have lost its workers while the pass ran.
            if totals.total() > 0 {
                all.add_all(&totals);
                let worker_type = types.entry(profile.worker_type.to_string());
                worker_type.or_default().add_all(&totals);
                let group = groups.entry(profile.group.to_string());
                group.or_default().add_all(&totals);
            }
        }
        Summary {
            total_active: all.active(),
            total_dead: all.dead(),
            total: all.total(),
            states: all,
            dead_workers: self.offline,
            stalled_workers: self.stalled,
            overdue_workers: self.overdue,
            stats_by_type: types
                .into_iter()
                .map(|(name, counts)| (name, counts.into()))
                .collect(),
            groups: groups
                .into_iter()
                .map(|(name, counts)| (name, GroupStats::from(counts)))
                .collect(),
            ..Summary::default()
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::registry::scan::CACHE;
    use crate::worker::WorkerHeartbeat;

    #[test]
    fn workers_of_more_types_than_the_cache_holds_are_all_counted() {
        let registry = Registry::new();
        let types = CACHE + 10;
        let workers: Vec<_> = (0..3 * types)
            .map(|n| WorkerHeartbeat::builder(format!("type-{}", n % types)).registry(&registry))
            .map(|builder| builder.start().unwrap())
            .collect();
        workers.iter().for_each(WorkerHeartbeat::beat);
        let summary = registry.summary();
        assert_eq!(summary.total_active, workers.len());
        assert_eq!(summary.stats_by_type.len(), types);
        let mut stats = summary.stats_by_type.values();
        assert!(stats.all(|stats| stats.active == 3));
    }
}
