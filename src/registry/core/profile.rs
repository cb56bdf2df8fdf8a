//! Type, group, limits and the place of their start, which many workers share.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::counts::{CountsByType, TypeCounts};
use super::pace::{LearnedByType, LearnedLimits, PaceSpec};
use crate::health::{CallSite, Limits, Thresholds};

/// See the module.
#[derive(Debug)]
pub(crate) struct Profile {
    pub worker_type: Box<str>,
    pub group: Box<str>,
    pub thresholds: Thresholds,
    /// The same limits, as workers are judged by them, without what was learned.
    static_limits: Limits,
    pub pace: PaceSpec,
    /// What was learned of the workers of its type.
    pub learned: Option<Arc<LearnedLimits>>,
    pub interval: Duration,
    /// Where its workers are started.
    pub site: CallSite,
    /// How long a worker may take to end once it is asked to stop.
    pub drain_within: Option<Duration>,
    /// Unique in this registry.
    pub number: u32,
    /// Counts of the workers of its type.
    pub counts: Arc<TypeCounts>,
    /// Workers with this profile that hold a cell.
    occupants: AtomicUsize,
}

/// What distinguishes one profile from another.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProfileKey {
    pub worker_type: String,
    pub group: String,
    pub thresholds: Thresholds,
    pub pace: PaceSpec,
    pub interval: Duration,
    pub site: CallSite,
    pub drain_within: Option<Duration>,
}

impl Profile {
    /// The limits that its workers are judged by now.
    #[inline]
    pub(crate) fn limits(&self) -> Limits {
        match &self.learned {
            None => self.static_limits,
            Some(learned) => learned.apply(self.static_limits),
        }
    }

    /// The shortest limit that its workers may be judged by.
    pub(crate) fn shortest(&self) -> Duration {
        let learned = self.pace.learn.map(|learn| learn.floor);
        self.thresholds
            .shortest()
            .min(learned.unwrap_or(Duration::MAX))
    }

    pub(crate) fn enter(&self) {
        self.occupants.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.occupants.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All profiles of a registry.
#[derive(Debug, Default)]
pub(crate) struct Profiles {
    table: Mutex<ProfileTable>,
}

#[derive(Debug, Default)]
struct ProfileTable {
    by_key: HashMap<ProfileKey, Arc<Profile>>,
    by_number: HashMap<u32, Arc<Profile>>,
    next_number: u32,
    counts: CountsByType,
    learned: LearnedByType,
    /// The number of profiles at which unused ones are removed.
    clean_at: usize,
}

impl Profiles {
    pub(crate) fn intern(&self, key: ProfileKey) -> Arc<Profile> {
        let mut table = self.table.lock();
        if let Some(known) = table.by_key.get(&key) {
            return Arc::clone(known);
        }
        if table.by_key.len() >= table.clean_at {
            // Two references belong to the tables.
            table
                .by_key
                .retain(|_, profile| Arc::strong_count(profile) > 2);
            let kept = table.by_key.values();
            let numbers: HashSet<u32> = kept.map(|profile| profile.number).collect();
            table.by_number.retain(|number, _| numbers.contains(number));
            table.clean_at = (numbers.len() * 2).max(64);
        }
        let learn = key.pace.learn;
        let learned = learn.map(|learn| table.learned.of(&key.worker_type, learn));
        let profile = Arc::new(Profile {
            counts: table.counts.of(&key.worker_type),
            worker_type: key.worker_type.as_str().into(),
            group: key.group.as_str().into(),
            static_limits: Limits::from(&key.thresholds),
            pace: key.pace,
            learned,
            thresholds: key.thresholds.clone(),
            interval: key.interval,
            site: key.site,
            drain_within: key.drain_within,
            number: table.next_number,
            occupants: AtomicUsize::new(0),
        });
        table.next_number = table.next_number.wrapping_add(1);
        table.by_number.insert(profile.number, Arc::clone(&profile));
        table.by_key.insert(key, Arc::clone(&profile));
        profile
    }

    pub(crate) fn get(&self, number: u32) -> Option<Arc<Profile>> {
        self.table.lock().by_number.get(&number).cloned()
    }

    /// The counts of all types that have ever had a worker, with their names.
    pub(crate) fn counts(&self) -> Vec<(Box<str>, Arc<TypeCounts>)> {
        self.table.lock().counts.all()
    }

    /// Forgets what was learned of a type. Returns whether it learns.
    pub(crate) fn forget_learned(&self, worker_type: &str) -> bool {
        self.table.lock().learned.forget(worker_type)
    }

    /// The shortest limit of any worker that holds a cell.
    pub(crate) fn shortest_threshold(&self) -> Option<Duration> {
        self.table
            .lock()
            .by_key
            .values()
            .filter(|profile| profile.occupants.load(Ordering::Relaxed) > 0)
            .map(|profile| profile.shortest())
            .min()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;

    const LINE: &Location = Location::caller();

    fn key(worker_type: &str, stale_after: u64) -> ProfileKey {
        ProfileKey {
            worker_type: worker_type.into(),
            group: "local".into(),
            thresholds: Thresholds::new(Duration::from_secs(stale_after)),
            pace: PaceSpec::default(),
            interval: Duration::from_secs(30),
            site: LINE,
            drain_within: None,
        }
    }

    #[test]
    fn equal_profiles_are_kept_once() {
        let profiles = Profiles::default();
        let one = profiles.intern(key("a", 90));
        assert!(Arc::ptr_eq(&one, &profiles.intern(key("a", 90))));
        let other = profiles.intern(key("a", 91));
        assert_ne!(one.number, other.number);
        assert!(Arc::ptr_eq(&profiles.get(other.number).unwrap(), &other));
    }

    #[test]
    fn profiles_without_workers_are_forgotten() {
        let profiles = Profiles::default();
        let kept = profiles.intern(key("kept", 90));
        for n in 0..10_000 {
            profiles.intern(key(&n.to_string(), 90));
        }
        let table = profiles.table.lock();
        assert!(table.by_key.len() <= 128);
        assert_eq!(table.by_key.len(), table.by_number.len());
        assert!(table.by_number.contains_key(&kept.number));
    }

    #[test]
    fn only_workers_that_are_there_count_for_the_resolution() {
        let profiles = Profiles::default();
        let short = profiles.intern(key("a", 1));
        let long = profiles.intern(key("a", 90));
        assert_eq!(profiles.shortest_threshold(), None);
        short.enter();
        long.enter();
        assert_eq!(profiles.shortest_threshold(), Some(Duration::from_secs(1)));
        short.leave();
        assert_eq!(profiles.shortest_threshold(), Some(Duration::from_secs(90)));
    }
}
