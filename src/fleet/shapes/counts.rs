//! The counts of all workers of a store.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use super::StoredWorker;
use crate::health::{DeathCause, State, StateCounts, Summary, UnwellWorker};

/// The most types, and the most groups, with counts of their own.
pub(crate) const MOST_NAMES: usize = 10_000;
/// The most of them that are counted before the worst are chosen.
const MOST_COUNTED: usize = 50_000;
/// The most workers that a summary names.
pub(crate) const MOST_UNWELL: usize = 1_000;

/// How many workers of a store are in each state, in total, by type and by group. Its size is bounded,
/// however many workers there are.
///
/// ```
/// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
/// use worker_heartbeat::{MemoryStore, State};
///
/// let store = MemoryStore::new();
/// store.register(&[Registration::new("indexer", "a"), Registration::new("mailer", "b")])?;
/// let counts = store.counts()?;
/// assert_eq!(counts.states.total(), 2);
/// assert_eq!(counts.types["indexer"].get(State::Starting), 1);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct FleetCounts {
    /// All workers.
    pub states: StateCounts,
    /// By type. Of more than 10,000 types, those with the most unwell workers.
    pub types: BTreeMap<String, StateCounts>,
    /// By group. Of more than 10,000 groups, those with the most unwell workers.
    pub groups: BTreeMap<String, StateCounts>,
    /// The dead workers of each type, by the [name](DeathCause::name) of the cause.
    pub deaths: BTreeMap<String, BTreeMap<String, usize>>,
    /// How workers of each type ended since the store was set up: `graceful` (stopped in good order),
    /// `failed` (panicked, failed, returned early or fenced), `gone` (their process was killed, is gone,
    /// or fell silent), `timed_out` (they were asked to stop, and had not ended when their process did).
    /// Empty if the store does not count them.
    #[cfg_attr(feature = "serde", serde(default))]
    pub endings: BTreeMap<String, BTreeMap<String, u64>>,
    /// Workers that hold a lease.
    pub leased_workers: usize,
    /// Types that are not in `types`.
    pub unlisted_types: usize,
    /// Groups that are not in `groups`.
    pub unlisted_groups: usize,
    #[cfg_attr(feature = "serde", serde(skip))]
    unlisted: Unlisted,
}

/// Hashes of the names that are not listed, so that each counts once.
#[derive(Clone, Debug, Default)]
struct Unlisted {
    hasher: RandomState,
    types: HashSet<u64>,
    groups: HashSet<u64>,
}

impl FleetCounts {
    /// Counts nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts this worker.
    pub fn add(&mut self, worker: &StoredWorker) {
        let ending = worker.ending.as_ref();
        self.add_many(
            &worker.info.worker_type,
            &worker.info.group,
            worker.health().state(),
            ending.map_or("", |(ending, _)| &ending.cause),
            1,
        );
        let holds = worker.lease_remaining.is_some_and(|left| !left.is_zero());
        self.leased_workers += usize::from(holds);
    }

    /// Counts as many workers of this type and group that are in this state, as a database has counted
    /// them. `cause`: of dead workers, the [name](DeathCause::name) of the cause.
    ///
    /// ```
    /// use worker_heartbeat::State;
    /// use worker_heartbeat::fleet::FleetCounts;
    ///
    /// let mut counts = FleetCounts::new();
    /// counts.add_many("indexer", "machine-7", State::Dead, "killed", 3);
    /// assert_eq!(counts.groups["machine-7"].dead(), 3);
    /// assert_eq!(counts.deaths["indexer"]["killed"], 3);
    /// ```
    pub fn add_many(
        &mut self,
        worker_type: &str,
        group: &str,
        state: State,
        cause: &str,
        workers: usize,
    ) {
        self.states.add_many(state, workers);
        let unlisted = &mut self.unlisted;
        match entry(&mut self.types, worker_type) {
            Some(counts) => {
                counts.add_many(state, workers);
                if state == State::Dead {
                    self.add_deaths(worker_type, cause, workers);
                }
            }
            None => {
                let hash = unlisted.hasher.hash_one(worker_type);
                self.unlisted_types += usize::from(unlisted.types.insert(hash));
            }
        }
        let unlisted = &mut self.unlisted;
        match entry(&mut self.groups, group) {
            Some(counts) => counts.add_many(state, workers),
            None => {
                let hash = unlisted.hasher.hash_one(group);
                self.unlisted_groups += usize::from(unlisted.groups.insert(hash));
            }
        }
    }

    /// Takes back what [`add_many`](Self::add_many) has added, as far as it was.
    ///
    /// ```
    /// use worker_heartbeat::State;
    /// use worker_heartbeat::fleet::FleetCounts;
    ///
    /// let mut counts = FleetCounts::new();
    /// counts.add_many("indexer", "machine-7", State::Dead, "killed", 3);
    /// counts.remove_many("indexer", "machine-7", State::Dead, "killed", 2);
    /// assert_eq!(counts.states.dead(), 1);
    /// assert_eq!(counts.deaths["indexer"]["killed"], 1);
    /// ```
    pub fn remove_many(
        &mut self,
        worker_type: &str,
        group: &str,
        state: State,
        cause: &str,
        workers: usize,
    ) {
        self.states.remove_many(state, workers);
        if let Some(counts) = self.types.get_mut(worker_type) {
            counts.remove_many(state, workers);
        }
        if let Some(counts) = self.groups.get_mut(group) {
            counts.remove_many(state, workers);
        }
        let deaths = self.deaths.get_mut(worker_type);
        let cause = DeathCause::from_name(cause, None, None).name();
        if let Some(count) = deaths.and_then(|deaths| deaths.get_mut(cause)) {
            if state == State::Dead {
                *count = count.saturating_sub(workers);
            }
        }
    }

    /// Adds to the deaths alone.
    pub(crate) fn add_deaths(&mut self, worker_type: &str, cause: &str, workers: usize) {
        // Names that are not known become that of a known cause.
        let cause = DeathCause::from_name(cause, None, None).name();
        let deaths = self.deaths.entry(worker_type.to_owned()).or_default();
        *deaths.entry(cause.to_owned()).or_default() += workers;
    }

    /// Adds to the endings.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn add_endings(&mut self, worker_type: &str, how: &str, total: u64) {
        let endings = self.endings.entry(worker_type.to_owned()).or_default();
        *endings.entry(how.to_owned()).or_default() += total;
    }

    /// With at most [`MOST_NAMES`] types and groups.
    #[must_use]
    pub(crate) fn bounded(mut self) -> Self {
        self.unlisted_types += keep_worst(&mut self.types);
        self.unlisted_groups += keep_worst(&mut self.groups);
        if self.deaths.len() > self.types.len() {
            let types = &self.types;
            self.deaths.retain(|name, _| types.contains_key(name));
        }
        self
    }

    /// The summary, with these as the workers that are not well: all of them, or the worst.
    ///
    /// ```
    /// use worker_heartbeat::State;
    /// use worker_heartbeat::fleet::FleetCounts;
    ///
    /// let mut counts = FleetCounts::new();
    /// counts.add_many("indexer", "machine-7", State::Dead, "killed", 3);
    /// let summary = counts.summary(Vec::new());
    /// assert_eq!((summary.total_dead, summary.unlisted_workers), (3, 3));
    /// ```
    #[must_use]
    pub fn summary(self, mut unwell: Vec<StoredWorker>) -> Summary {
        let states = self.states;
        let all: usize = states
            .iter()
            .filter(|(state, _)| state.is_unwell())
            .map(|(_, count)| count)
            .sum();
        let mut summary = Summary {
            total: states.total(),
            total_active: states.active(),
            total_dead: states.dead(),
            states,
            stats_by_type: converted(self.types),
            groups: converted(self.groups),
            unlisted_workers: all.saturating_sub(unwell.len()),
            unlisted_types: self.unlisted_types,
            unlisted_groups: self.unlisted_groups,
            ..Summary::default()
        };
        unwell.sort_by(|a, b| a.key.cmp(&b.key));
        for worker in unwell {
            let health = worker.health();
            let list = match health.state() {
                State::Stalled => &mut summary.stalled_workers,
                State::Overdue => &mut summary.overdue_workers,
                _ => &mut summary.dead_workers,
            };
            list.push(UnwellWorker {
                id: worker.key.id,
                worker_type: worker.info.worker_type,
                group: worker.info.group,
                health,
                restarting: false,
            });
        }
        summary
    }
}

/// The counts under this name; `None` if there are too many names.
fn entry<'m>(
    names: &'m mut BTreeMap<String, StateCounts>,
    name: &str,
) -> Option<&'m mut StateCounts> {
    if !names.contains_key(name) {
        if names.len() >= MOST_COUNTED {
            return None;
        }
        names.insert(name.to_owned(), StateCounts::default());
    }
    names.get_mut(name)
}

/// Removes the names with the fewest unwell workers, and returns how many.
fn keep_worst(names: &mut BTreeMap<String, StateCounts>) -> usize {
    let Some(more @ 1..) = names.len().checked_sub(MOST_NAMES) else {
        return 0;
    };
    let mut ranked: Vec<_> = std::mem::take(names).into_iter().collect();
    ranked.sort_by_key(|(_, counts)| {
        let unwell = counts.iter().filter(|(state, _)| state.is_unwell());
        let unwell: usize = unwell.map(|(_, count)| count).sum();
        std::cmp::Reverse((unwell, counts.total()))
    });
    ranked.truncate(MOST_NAMES);
    names.extend(ranked);
    more
}

fn converted<T: From<StateCounts>>(counts: BTreeMap<String, StateCounts>) -> BTreeMap<String, T> {
    let converted = |(name, counts): (String, StateCounts)| (name, counts.into());
    counts.into_iter().map(converted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_names_the_worst_are_listed_and_the_others_counted() {
        let mut counts = FleetCounts::new();
        for n in 0..2 * MOST_NAMES {
            counts.add_many("poller", &format!("group-{n}"), State::Idle, "", 1);
        }
        let worst = format!("group-{}", MOST_NAMES + 7);
        counts.add_many("poller", &worst, State::Dead, "killed", 1);
        for n in 0..MOST_COUNTED + 10 {
            // Each of the last ones twice.
            counts.add_many(
                &format!("type-{}", n.min(MOST_COUNTED + 5)),
                "group-0",
                State::Idle,
                "",
                1,
            );
        }
        let counts = counts.bounded();
        assert_eq!(
            (counts.groups.len(), counts.unlisted_groups),
            (MOST_NAMES, MOST_NAMES)
        );
        assert_eq!(counts.groups[&worst].dead(), 1);
        assert_eq!(counts.types.len(), MOST_NAMES);
        assert_eq!(counts.unlisted_types, MOST_COUNTED + 7 - MOST_NAMES);
        assert_eq!(
            counts.states.total(),
            2 * MOST_NAMES + 1 + MOST_COUNTED + 10
        );
        assert_eq!(counts.deaths["poller"]["killed"], 1);
    }
}
