//! What metrics tell of a registry: by type, at one moment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Registry, Snapshot};
use crate::cell::{CellSnapshot, Phase};
use crate::health::{
    Activity, Limits, MissingWorkers, StateCounts, StoreStatus, SweepTotals, verdict,
};
use crate::registry::core::counts::{Counts, TypeCounts};
use crate::registry::core::profile::Profile;
use crate::registry::core::record::Adjustments;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{WorkerRef, signs};

/// See the module.
pub(crate) struct Figures {
    /// Every type that there ever was.
    pub types: BTreeMap<Box<str>, TypeFigures>,
    /// Every type that is expected.
    pub expected: Vec<MissingWorkers>,
    /// How long ago the pacemaker looked; `None` if there is none, for want of workers.
    pub tick_age: Option<Duration>,
    /// Ended workers that had to be forgotten.
    pub forgotten: u64,
    /// The store that the registry is attached to, and how many leases are held.
    pub store: Option<(StoreStatus, usize)>,
}

/// What is told of the workers of one type.
pub(crate) struct TypeFigures {
    pub counts: Arc<TypeCounts>,
    pub states: StateCounts,
    /// Beats of all that there ever were.
    pub beats: u64,
    /// The longest time that a living one has been without a heartbeat; since its registration, if
    /// it never had one.
    pub heartbeat_age: Option<Duration>,
    /// The longest time that one of the living has been at work without progress.
    pub progress_age: Option<Duration>,
}

/// What one pass over the cells finds of the workers with one profile.
#[derive(Default)]
struct ProfileTotals {
    states: StateCounts,
    beats: u64,
    heartbeat_age: Option<Duration>,
    progress_age: Option<Duration>,
}

impl Registry {
    /// One pass over all cells, as for the [`summary`](Self::summary), and bounded in time as that.
    pub(crate) fn figures(&self) -> Figures {
        let observed = self.observed_now();
        let core = &self.inner.core;
        let types = self.inner.scan.count(|| {
            let mut pass = Pass::new(self, &observed);
            pass.over_cells();
            pass.over_graves();
            pass.finish()
        });
        let store_hook = core.store_hook();
        Figures {
            types,
            expected: self.expected(),
            tick_age: self.tick_age(&observed),
            forgotten: self.inner.tombstones.forgotten(),
            store: store_hook.map(|store| (store.status(), store.leases_held())),
        }
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.inner.core.counts
    }

    /// What came of the sweeps of this registry.
    pub(crate) fn swept(&self) -> SweepTotals {
        self.counts().sweeps.totals(self.clock().now())
    }

    /// The first workers, and how many there are beyond these.
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

/// One pass over all workers. Whoever counts is told by the scan if anybody moved meanwhile.
struct Pass<'a> {
    registry: &'a Registry,
    observed: &'a ObservedNow,
    rows: Vec<(Arc<Profile>, ProfileTotals)>,
    by_number: HashMap<u32, usize>,
    /// Rows at hand, by the last bits of their profiles' numbers.
    near: [usize; NEAR],
}

const NEAR: usize = 512;

impl<'a> Pass<'a> {
    fn new(registry: &'a Registry, observed: &'a ObservedNow) -> Self {
        Self {
            registry,
            observed,
            rows: Vec::new(),
            by_number: HashMap::new(),
            near: [0; NEAR],
        }
    }

    fn over_cells(&mut self) {
        let core = Arc::clone(self.registry.core());
        for chunk in &*core.slab.chunks() {
            for (offset, cell) in chunk.cells().iter().enumerate() {
                match cell.snapshot() {
                    Some(snapshot) if snapshot.state.phase == Phase::Empty => continue,
                    Some(snapshot) if snapshot.is_plain() => {
                        let number = snapshot.state.profile;
                        let observed = self.observed;
                        if let Some((limits, found)) =
                            self.row(number, || core.profiles.get(number))
                        {
                            found.add_living(&snapshot, limits, observed);
                            found.add_beats(cell.beats());
                        }
                        continue;
                    }
                    _ => {}
                }
                // It has ended, is silent as announced, or just changing.
                if let Some(record) = chunk.occupant(offset) {
                    self.look_closer(&WorkerRef {
                        chunk: Arc::clone(chunk),
                        offset,
                        record,
                    });
                }
            }
        }
    }

    fn look_closer(&mut self, worker: &WorkerRef) {
        let observed = self.observed;
        let profile = &worker.record.profile;
        let Some((_, found)) = self.row(profile.number, || Some(Arc::clone(profile))) else {
            return;
        };
        found.add_beats(worker.cell().beats());
        let mut reading = worker.reading(observed);
        let state = worker.judge(&mut reading, observed).state();
        if !state.is_terminal() {
            let since = |moment| observed.now.since(moment);
            let heartbeat_age = since(reading.heartbeat_at.unwrap_or(reading.started_at));
            let progress_age = since(reading.progress_at.unwrap_or(reading.started_at));
            let at_work = reading.activity != Activity::Idle;
            found.states.add(state);
            found.add_ages(heartbeat_age, at_work.then_some(progress_age));
        } else if !worker.record.is_superseded() {
            found.states.add(state);
        }
    }

    fn over_graves(&mut self) {
        for record in self.registry.inner.tombstones.all() {
            let state = self
                .registry
                .core()
                .worker_ref(Arc::clone(&record))
                .health(self.observed)
                .state();
            let profile = &record.profile;
            if let Some((_, found)) = self.row(profile.number, || Some(Arc::clone(profile))) {
                found.states.add(state);
            }
        }
    }

    /// `None` if the last worker with this profile has just gone.
    fn row(
        &mut self,
        number: u32,
        profile: impl FnOnce() -> Option<Arc<Profile>>,
    ) -> Option<(&Limits, &mut ProfileTotals)> {
        let place = number as usize % NEAR;
        let near = self.near[place];
        let row = match self.rows.get(near) {
            Some((profile, _)) if profile.number == number => near,
            _ => match self.by_number.get(&number) {
                Some(row) => *row,
                None => {
                    self.rows.push((profile()?, ProfileTotals::default()));
                    self.by_number.insert(number, self.rows.len() - 1);
                    self.rows.len() - 1
                }
            },
        };
        self.near[place] = row;
        let (profile, found) = self.rows.get_mut(row)?;
        Some((&profile.limits, found))
    }

    /// By type, those included that have no workers any more.
    fn finish(self) -> BTreeMap<Box<str>, TypeFigures> {
        let mut by_type = HashMap::<usize, ProfileTotals>::new();
        for (profile, found) in self.rows {
            let counts = Arc::as_ptr(&profile.counts).addr();
            by_type.entry(counts).or_default().add_all(&found);
        }
        let types = self.registry.core().profiles.counts().into_iter();
        types
            .map(|(name, counts)| {
                let found = by_type.remove(&Arc::as_ptr(&counts).addr());
                (name, TypeFigures::of(counts, &found.unwrap_or_default()))
            })
            .collect()
    }
}

impl ProfileTotals {
    fn add_living(&mut self, snapshot: &CellSnapshot, limits: &Limits, observed: &ObservedNow) {
        let signs = signs(snapshot, limits, observed, &Adjustments::default());
        self.states.add(verdict(&signs, limits, observed.now));
        let since = |moment| observed.now.since(moment);
        let at_work = signs.activity != Activity::Idle;
        self.add_ages(
            since(signs.heartbeat_at.unwrap_or(signs.started_at)),
            at_work.then(|| since(signs.progress_at.unwrap_or(signs.started_at))),
        );
    }

    fn add_beats(&mut self, beats: u64) {
        self.beats = self.beats.saturating_add(beats);
    }

    fn add_ages(&mut self, heartbeat: Duration, progress: Option<Duration>) {
        self.heartbeat_age = self.heartbeat_age.max(Some(heartbeat));
        self.progress_age = self.progress_age.max(progress);
    }

    fn add_all(&mut self, other: &Self) {
        self.states.add_all(&other.states);
        self.add_beats(other.beats);
        self.heartbeat_age = self.heartbeat_age.max(other.heartbeat_age);
        self.progress_age = self.progress_age.max(other.progress_age);
    }
}

impl TypeFigures {
    fn of(counts: Arc<TypeCounts>, found: &ProfileTotals) -> Self {
        Self {
            states: found.states,
            beats: counts.beats.get().saturating_add(found.beats),
            heartbeat_age: found.heartbeat_age,
            progress_age: found.progress_age,
            counts,
        }
    }

    /// The beats, never fewer than anybody was told before.
    pub(crate) fn monotonic_beats(&self) -> u64 {
        self.counts.monotonic_beats(self.beats)
    }
}
