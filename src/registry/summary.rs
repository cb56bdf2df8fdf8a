//! All workers at once: the summary and the sweep.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Registry;
use crate::cell::{Cell, Phase};
use crate::health::{
    GroupState, GroupStats, Health, Limits, MissingWorkers, State, StateCounts, Summary,
    SweepReport, UnwellWorker, verdict,
};
use crate::registry::core::profile::{Profile, Profiles};
use crate::registry::core::record::{Adjustments, Record};
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{WorkerRef, signs};

impl Registry {
    /// All workers at one moment: how many are in each state, by type and by group, who is given up
    /// and why, and of which types some are missing.
    ///
    /// One pass over all cells, and another one if workers came or went meanwhile. No worker waits
    /// for it, but for one that comes or goes when that has happened three times in a row; and it
    /// waits for nobody but an overdue pacemaker, for at most 100 ms.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let observed = self.observed_now();
        let mut summary = self.inner.scan.count(|| self.tally(&observed)).finish();
        summary.missing = self.missing();
        summary.tick_age = self.tick_age(&observed).unwrap_or_default();
        summary.forgotten = self.inner.tombstones.forgotten();
        summary
    }

    /// Counts all workers, those with a cell and those in the tombstones.
    fn tally(&self, observed: &ObservedNow) -> Tally {
        let mut tally = Tally::new();
        let core = &self.inner.core;
        for chunk in &*core.slab.chunks() {
            for offset in tally.count(chunk.cells(), observed, &core.profiles) {
                let Some(record) = chunk.occupant(offset) else {
                    continue;
                };
                let worker = WorkerRef {
                    chunk: Arc::clone(chunk),
                    offset,
                    record,
                };
                let health = worker.health(observed);
                if !health.state().is_terminal() || !worker.record.is_superseded() {
                    tally.add(&worker.record, health);
                }
            }
        }
        for record in self.inner.tombstones.all() {
            let health = core.worker_ref(Arc::clone(&record)).health(observed);
            tally.add(&record, health);
        }
        tally
    }

    /// One pass over all workers that tells which are newly given up: dead, stale or never started.
    /// Each is told once an episode; one that recovers can be told again.
    #[must_use = "the report tells who was marked offline"]
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

    /// What is expected of each type, and what is there.
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

/// Counts by profile while the cells are scanned; names come last.
struct Tally {
    rows: Vec<Row>,
    by_number: HashMap<u32, usize>,
    /// Rows at hand, by the last bits of their profiles' numbers.
    near: [u32; NEAR],
    dead_workers: Vec<UnwellWorker>,
    stalled_workers: Vec<UnwellWorker>,
}

const NEAR: usize = 512;

struct Row {
    profile: Arc<Profile>,
    /// The profile's, at hand.
    number: u32,
    limits: Limits,
    states: StateCounts,
}

impl Tally {
    fn new() -> Self {
        Self {
            rows: Vec::new(),
            by_number: HashMap::new(),
            near: [0; NEAR],
            dead_workers: Vec::new(),
            stalled_workers: Vec::new(),
        }
    }

    /// Counts the workers in these cells. Returns the places of those to look at more closely: given
    /// up, stalled, ended, silent as announced, or just changing.
    fn count(&mut self, cells: &[Cell], observed: &ObservedNow, profiles: &Profiles) -> Vec<usize> {
        let mut closer = Vec::new();
        for (offset, cell) in cells.iter().enumerate() {
            match cell.snapshot() {
                Some(snapshot) if snapshot.state.phase == Phase::Empty => continue,
                Some(snapshot) if snapshot.is_plain() => {
                    let Some(row) = self.row(snapshot.state.profile, profiles) else {
                        continue;
                    };
                    let signs = signs(&snapshot, &row.limits, observed, &Adjustments::default());
                    let state = verdict(&signs, &row.limits, observed.now);
                    if !state.is_offline() && state != State::Stalled {
                        row.states.add(state);
                        continue;
                    }
                }
                _ => {}
            }
            closer.push(offset);
        }
        closer
    }

    /// `None` if the last worker with this profile has just gone.
    #[inline]
    fn row(&mut self, number: u32, profiles: &Profiles) -> Option<&mut Row> {
        let near = self.near[number as usize % NEAR] as usize;
        let row = match self.rows.get(near) {
            Some(row) if row.number == number => near,
            _ => self.find(number, || profiles.get(number))?,
        };
        self.rows.get_mut(row)
    }

    #[cold]
    fn find(
        &mut self,
        number: u32,
        profile: impl FnOnce() -> Option<Arc<Profile>>,
    ) -> Option<usize> {
        let row = match self.by_number.get(&number) {
            Some(row) => *row,
            None => {
                let profile = profile()?;
                self.rows.push(Row {
                    number,
                    limits: profile.limits,
                    profile,
                    states: StateCounts::default(),
                });
                self.by_number.insert(number, self.rows.len() - 1);
                self.rows.len() - 1
            }
        };
        self.near[number as usize % NEAR] = row as u32;
        Some(row)
    }

    fn add(&mut self, record: &Record, health: Health) {
        let profile = &record.profile;
        let row = self.find(profile.number, || Some(Arc::clone(profile)));
        if let Some(row) = row.and_then(|row| self.rows.get_mut(row)) {
            row.states.add(health.state());
        }
        let list = match health.state() {
            State::Stalled => &mut self.stalled_workers,
            state if state.is_offline() => &mut self.dead_workers,
            _ => return,
        };
        list.push(UnwellWorker {
            id: record.id().to_owned(),
            worker_type: profile.worker_type.to_string(),
            group: profile.group.to_string(),
            health,
        });
    }

    fn finish(self) -> Summary {
        let mut all = StateCounts::default();
        let mut types = BTreeMap::<String, StateCounts>::new();
        let mut groups = BTreeMap::<String, StateCounts>::new();
        for row in self.rows {
            all.add_all(&row.states);
            for (names, name) in [
                (&mut types, &row.profile.worker_type),
                (&mut groups, &row.profile.group),
            ] {
                names
                    .entry(name.to_string())
                    .or_default()
                    .add_all(&row.states);
            }
        }
        types.retain(|_, counts| counts.total() > 0);
        groups.retain(|_, counts| counts.total() > 0);
        Summary {
            total_active: all.active(),
            total_dead: all.dead(),
            total: all.total(),
            states: all,
            dead_workers: self.dead_workers,
            stalled_workers: self.stalled_workers,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::WorkerHeartbeat;

    #[test]
    fn workers_of_more_types_than_are_at_hand_are_all_counted() {
        let registry = Registry::new();
        let types = NEAR + 10;
        let workers: Vec<_> = (0..3 * types)
            .map(|n| WorkerHeartbeat::builder(format!("type-{}", n % types)).registry(&registry))
            .map(|builder| builder.start().unwrap())
            .collect();
        workers.iter().for_each(WorkerHeartbeat::beat);
        let summary = registry.summary();
        assert_eq!(summary.total_active, workers.len());
        assert_eq!(summary.stats_by_type.len(), types);
        assert!(
            summary
                .stats_by_type
                .values()
                .all(|stats| stats.active == 3)
        );
    }
}
