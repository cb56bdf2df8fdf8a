//! Counts all workers at one moment, each once, while they come and go.
//!
//! A worker that ends moves from its cell to the tombstones; a worker that takes over an id removes its
//! predecessor from there. A pass that read one after the other could find a worker in both or in
//! neither, so a pass is repeated if a worker moved meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use parking_lot::RwLock;

use super::Registry;
use crate::cell::Phase;
use crate::clock::Moment;
use crate::health::{Health, Limits, Signs, State, verdict};
use crate::registry::core::Core;
use crate::registry::core::profile::Profile;
use crate::registry::core::record::{Adjustments, Record};
use crate::registry::core::slab::Chunk;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{Facts, WorkerRef, signs};

/// Passes that let workers move. The next one makes them wait.
const ATTEMPTS: u32 = 3;

/// A sequence lock over the places in which workers are: moves never wait for each other, nor for a
/// pass, unless one was disturbed [`ATTEMPTS`] times.
#[derive(Debug, Default)]
pub(super) struct ConsistentScan {
    begun: AtomicU64,
    done: AtomicU64,
    /// Shared by moves; exclusive for a pass that was disturbed too often.
    moving: RwLock<()>,
}

impl ConsistentScan {
    /// Moves a worker from one place to another.
    pub(super) fn move_with<T>(&self, change: impl FnOnce() -> T) -> T {
        let _moving = self.moving.read();
        self.begun.fetch_add(1, Ordering::Relaxed);
        // A pass that sees any part of the change sees that it has begun.
        fence(Ordering::Release);
        let changed = change();
        self.done.fetch_add(1, Ordering::Release);
        changed
    }

    /// Runs a pass in which no worker moved.
    pub(super) fn count<T>(&self, mut count: impl FnMut() -> T) -> T {
        for _ in 0..ATTEMPTS {
            let done = self.done.load(Ordering::Acquire);
            if self.begun.load(Ordering::Relaxed) != done {
                std::hint::spin_loop();
                continue;
            }
            let counted = count();
            fence(Ordering::Acquire);
            if self.begun.load(Ordering::Relaxed) == done {
                return counted;
            }
        }
        let _alone = self.moving.write();
        count()
    }
}

/// What a pass finds out.
pub(super) trait Tally: Default {
    /// The totals of the workers with one profile.
    type Totals: Default;

    /// Adds a living worker whose cell alone decides its state. `false`: [`add`](Self::add) is to be
    /// called instead.
    fn add_plain(totals: &mut Self::Totals, signs: &Signs, state: State, now: Moment) -> bool;

    /// Adds any other worker.
    fn add(
        &mut self,
        totals: &mut Self::Totals,
        record: &Record,
        facts: &Facts,
        health: Health,
        now: Moment,
    );

    /// Adds the beats in a worker's cell.
    #[inline(always)]
    fn add_beats(_: &mut Self::Totals, _: u64) {}

    /// Reads what else changes when a worker moves, at the end of the pass.
    fn finish(&mut self, _: &Core) {}
}

impl Registry {
    /// One pass over all workers. No worker waits for it, except one that comes or goes after the pass
    /// was disturbed three times.
    pub(super) fn tally<T: Tally>(&self, observed: &ObservedNow) -> (T, Vec<ProfileTotals<T>>) {
        let core = &self.inner.core;
        self.inner.scan.count(|| {
            let mut pass = Pass::<T>::new(core, observed);
            for chunk in &*core.slab.chunks() {
                for offset in pass.add_plain(chunk) {
                    if let Some(worker) = WorkerRef::at(chunk, offset) {
                        pass.add(&worker, worker.cell().beats());
                    }
                }
            }
            for record in self.inner.tombstones.all() {
                // The beats were counted when it left its cell.
                pass.add(&core.worker_ref(record), 0);
            }
            pass.tally.finish(core);
            (pass.tally, pass.profiles.totals)
        })
    }
}

struct Pass<'a, T: Tally> {
    core: &'a Core,
    observed: &'a ObservedNow,
    tally: T,
    profiles: ByProfile<T>,
}

impl<'a, T: Tally> Pass<'a, T> {
    fn new(core: &'a Core, observed: &'a ObservedNow) -> Self {
        Self {
            core,
            observed,
            tally: T::default(),
            profiles: ByProfile::new(),
        }
    }

    /// Adds the workers of a chunk that their cells alone decide. Returns the offsets of the others:
    /// ended, in an announced silence, changing right now, or in need of a reason.
    fn add_plain(&mut self, chunk: &Chunk<Record>) -> Vec<usize> {
        let mut others = Vec::new();
        for (offset, cell) in chunk.cells().iter().enumerate() {
            match cell.snapshot() {
                Some(snapshot) if snapshot.state.phase == Phase::Empty => continue,
                Some(snapshot) if snapshot.is_plain() => {
                    let Some(profile) = self.profiles.get(snapshot.state.profile, self.core) else {
                        continue;
                    };
                    let (limits, now) = (&profile.limits, self.observed.now);
                    let signs = signs(&snapshot, limits, self.observed, &Adjustments::default());
                    let state = verdict(&signs, limits, now);
                    if T::add_plain(&mut profile.totals, &signs, state, now) {
                        T::add_beats(&mut profile.totals, snapshot.beats);
                        continue;
                    }
                }
                _ => {}
            }
            others.push(offset);
        }
        others
    }

    /// Adds a worker by its record.
    fn add(&mut self, worker: &WorkerRef, beats: u64) {
        let (record, profile) = (&worker.record, &worker.record.profile);
        let (facts, health) = worker.judge(self.observed);
        let place = self
            .profiles
            .find(profile.number, || Some(Arc::clone(profile)));
        let Some(profile) = place.and_then(|place| self.profiles.totals.get_mut(place)) else {
            return;
        };
        T::add_beats(&mut profile.totals, beats);
        if !health.state().is_terminal() || !record.is_superseded() {
            let now = self.observed.now;
            self.tally
                .add(&mut profile.totals, record, &facts, health, now);
        }
    }
}

/// The size of the direct-mapped cache of profiles.
pub(super) const CACHE: usize = 512;

/// Totals by profile: names come after the pass.
struct ByProfile<T: Tally> {
    totals: Vec<ProfileTotals<T>>,
    by_number: HashMap<u32, usize>,
    /// Positions in `totals`, by the last bits of the profiles' numbers.
    cache: [u32; CACHE],
}

/// The totals of one profile, with a copy of what the pass needs of it for each worker.
pub(super) struct ProfileTotals<T: Tally> {
    pub(super) profile: Arc<Profile>,
    pub(super) totals: T::Totals,
    number: u32,
    limits: Limits,
}

impl<T: Tally> ByProfile<T> {
    fn new() -> Self {
        Self {
            totals: Vec::new(),
            by_number: HashMap::new(),
            cache: [0; CACHE],
        }
    }

    /// `None` if the last worker with this profile has just gone.
    #[inline]
    fn get(&mut self, number: u32, core: &Core) -> Option<&mut ProfileTotals<T>> {
        let cached = self.cache[number as usize % CACHE] as usize;
        let place = match self.totals.get(cached) {
            Some(profile) if profile.number == number => cached,
            _ => self.find(number, || core.profiles.get(number))?,
        };
        self.totals.get_mut(place)
    }

    #[cold]
    fn find(
        &mut self,
        number: u32,
        profile: impl FnOnce() -> Option<Arc<Profile>>,
    ) -> Option<usize> {
        let place = match self.by_number.get(&number) {
            Some(place) => *place,
            None => {
                let profile = profile()?;
                self.totals.push(ProfileTotals {
                    number,
                    limits: profile.limits(),
                    profile,
                    totals: T::Totals::default(),
                });
                self.by_number.insert(number, self.totals.len() - 1);
                self.totals.len() - 1
            }
        };
        self.cache[number as usize % CACHE] = place as u32;
        Some(place)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_pass_that_was_disturbed_is_repeated_and_then_runs_alone() {
        let scan = ConsistentScan::default();
        let mut counted = 0;
        let undisturbed = scan.count(|| {
            counted += 1;
            counted
        });
        assert_eq!(undisturbed, 1, "no worker moved");
        let mut counted = 0;
        let disturbed = scan.count(|| {
            counted += 1;
            if counted <= ATTEMPTS {
                scan.move_with(|| ());
            }
            assert_eq!(scan.moving.try_read().is_none(), counted > ATTEMPTS);
            counted
        });
        assert_eq!(disturbed, ATTEMPTS + 1);
    }
}
