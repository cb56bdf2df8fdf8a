//! Figures of all workers together.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::{Health, Policy, State, StateCounts};
use crate::sync::printable::{Age, Printable};

/// The most workers that a text about all workers names.
pub(crate) const MOST_NAMED: usize = 5;

/// All workers of a registry at one moment.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
/// hb.fail("disk full");
/// let summary = registry.summary();
/// if !summary.is_healthy() {
///     println!("{summary}"); // 0 active, 1 dead; mailer-1: dead: failed: disk full, ...
/// }
/// for dead in &summary.dead_workers {
///     assert_eq!((dead.id.as_str(), dead.worker_type.as_str()), ("mailer-1", "mailer"));
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Workers that are well: idle, active, processing, or stopping.
    pub total_active: usize,
    /// Workers that are dead, stale or never started.
    pub total_dead: usize,
    /// All workers, including the ended ones that are kept.
    pub total: usize,
    /// How many are in each state.
    pub states: StateCounts,
    /// The workers that are dead, stale or never started, and why. In the summary of a store, at most
    /// 1,000 workers are named, here and in the next two lists: the worst.
    pub dead_workers: Vec<UnwellWorker>,
    /// The workers that are stalled, with the evidence.
    pub stalled_workers: Vec<UnwellWorker>,
    /// The workers that are overdue, with the task.
    pub overdue_workers: Vec<UnwellWorker>,
    /// The same figures by type.
    pub stats_by_type: BTreeMap<String, TypeStats>,
    /// The same figures by group.
    pub groups: BTreeMap<String, GroupStats>,
    /// Workers that are dead, stale, never started, stalled or overdue, and not named.
    pub unlisted_workers: usize,
    /// Types that are not in `stats_by_type`: a store lists at most 10,000, those with the most
    /// unwell workers.
    pub unlisted_types: usize,
    /// Groups that are not in `groups`: as for types.
    pub unlisted_groups: usize,
    /// Types of which fewer workers live than are expected.
    pub missing: Vec<MissingWorkers>,
    /// The age of the pacemaker's last tick; zero without workers, and so without a pacemaker.
    pub tick_age: Duration,
    /// The time between two ticks; zero in the summary of a store.
    pub resolution: Duration,
    /// The workers were asked to stop, or the process shuts down.
    pub stopping: bool,
    /// Ended workers that were forgotten, so that their number stays bounded.
    pub forgotten: u64,
    /// Tasks that [failed](crate::TaskGuard::fail), of all workers that there ever were in the
    /// registry; 0 in the summary of a store.
    pub failed_tasks: u64,
}

impl Summary {
    /// Whether all is well by [`Policy::health`]: no worker is dead, stale, never started, stalled, overdue
    /// or unobserved, and none is missing. Starting and stopped workers are no problem.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// assert!(registry.summary().is_healthy(), "starting does no harm");
    /// hb.fail("disk full");
    /// assert!(!registry.summary().is_healthy());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.verdict(&Policy::health()).is_well()
    }

    /// Expects that many workers of a type: if fewer are well, they are among the
    /// [`missing`](Self::missing). An empty store is not well then. For a registry, call
    /// [`Registry::expect_workers`](crate::Registry::expect_workers) instead.
    ///
    /// ```
    /// use worker_heartbeat::{HeartbeatStore, MemoryStore};
    ///
    /// let mut summary = MemoryStore::new().summary()?;
    /// assert!(summary.is_healthy());
    /// summary.expect_workers("indexer", 3);
    /// assert!(!summary.is_healthy());
    /// assert_eq!(summary.to_string(), "0 active, 0 dead; 0 of 3 expected workers of type indexer live");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn expect_workers(&mut self, worker_type: impl Into<String>, count: usize) {
        let worker_type = worker_type.into();
        self.missing
            .retain(|missing| missing.worker_type != worker_type);
        let well = self.stats_by_type.get(&worker_type);
        let well = well.map_or(0, |stats| stats.active);
        if well < count {
            self.missing
                .push(MissingWorkers::new(worker_type, count, well));
        }
    }
}

/// The counts, the five worst workers and why, and how many more are not well.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.brief(MOST_NAMED).fmt(f)
    }
}

impl Summary {
    /// As its `Display`, but names at most so many of the workers that are not well, the worst.
    pub(crate) const fn brief(&self, most: usize) -> Brief<'_> {
        Brief {
            summary: self,
            most,
        }
    }

    /// The workers that are named, the dead ones first.
    pub(super) fn named(&self) -> impl Iterator<Item = &UnwellWorker> {
        let stalled = self.stalled_workers.iter();
        self.dead_workers
            .iter()
            .chain(stalled)
            .chain(&self.overdue_workers)
    }
}

/// At most so many of these workers, the worst, and why, as a part of a sentence. `total`: how many there
/// are, with those without a rule.
pub(super) fn name_workers(
    f: &mut impl fmt::Write,
    mut workers: Vec<&UnwellWorker>,
    total: usize,
    most: usize,
) -> fmt::Result {
    if workers.len() > most {
        workers.sort_by_key(|worker| worker.health.state().severity_rank());
        workers.truncate(most);
    }
    for worker in &workers {
        write!(f, "; {}: {}", Printable(&worker.id), worker.health)?;
    }
    match total.saturating_sub(workers.len()) {
        0 => Ok(()),
        more => write!(f, "; and {more} more"),
    }
}

/// A summary in one line of bounded length.
pub(crate) struct Brief<'a> {
    summary: &'a Summary,
    most: usize,
}

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = self.summary;
        let (active, dead) = (summary.total_active, summary.total_dead);
        write!(f, "{active} active, {dead} dead")?;
        for (state, count) in summary.states.iter() {
            if count > 0 && !state.is_recent() && !state.is_offline() {
                write!(f, ", {count} {state}")?;
            }
        }
        let named: Vec<_> = summary.named().collect();
        let total = named.len() + summary.unlisted_workers;
        name_workers(f, named, total, self.most)?;
        for missing in &summary.missing {
            write!(f, "; {missing}")?;
        }
        if summary.states.get(State::Unobserved) > 0 {
            write!(
                f,
                "; no tick of the pacemaker for {}",
                Age(summary.tick_age)
            )?;
        }
        Ok(())
    }
}

/// A worker that is dead, stale, never started, stalled or overdue.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
/// hb.fail("disk full");
/// for worker in Registry::global().summary().dead_workers {
///     println!("{} of {}: {}", worker.id, worker.group, worker.health); // mailer-1 of local: dead: ...
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnwellWorker {
    /// Its id.
    pub id: String,
    /// Its type.
    pub worker_type: String,
    /// Its group.
    pub group: String,
    /// Its state and the reason.
    pub health: Health,
    /// It is dead, and its supervisor is about to restart it; `false` in the summary of a store.
    pub restarting: bool,
}

/// The workers of one type.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
/// hb.beat();
/// for (worker_type, stats) in &registry.summary().stats_by_type {
///     println!("{worker_type}: {} of {} active", stats.active, stats.total); // mailer: 1 of 1 active
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeStats {
    /// All of them.
    pub total: usize,
    /// Those that are well.
    pub active: usize,
    /// Those that are dead, stale or never started.
    pub dead: usize,
    /// How many are in each state.
    pub states: StateCounts,
}

impl From<StateCounts> for TypeStats {
    fn from(states: StateCounts) -> Self {
        Self {
            total: states.total(),
            active: states.active(),
            dead: states.dead(),
            states,
        }
    }
}

/// The workers of one group.
///
/// ```
/// use worker_heartbeat::{GroupState, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").group("machine-7").registry(&registry).start()?;
/// hb.fail("disk full");
/// let summary = registry.summary();
/// assert_eq!(summary.groups["machine-7"].state, GroupState::Offline);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStats {
    /// The group as a whole.
    pub state: GroupState,
    /// How many of its workers are in each state.
    pub states: StateCounts,
}

impl From<StateCounts> for GroupStats {
    fn from(states: StateCounts) -> Self {
        Self {
            state: GroupState::of(&states),
            states,
        }
    }
}

/// A group as a whole.
///
/// ```
/// use worker_heartbeat::{GroupState, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let first = WorkerHeartbeat::builder("mailer").group("machine-7").registry(&registry).start()?;
/// let second = WorkerHeartbeat::builder("mailer").group("machine-7").registry(&registry).start()?;
/// first.fail("disk full");
/// second.beat();
/// assert_eq!(registry.group("machine-7"), GroupState::Online);
/// second.fail("disk full");
/// assert_eq!(registry.group("machine-7"), GroupState::Offline);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupState {
    /// It has no workers.
    Unknown,
    /// At least one of its workers is not dead, stale or never started.
    Online,
    /// All of its workers that were not stopped are dead, stale or never started.
    Offline,
    /// All of its workers were stopped.
    Stopped,
}

impl GroupState {
    /// The state of a group whose workers are in these states.
    #[must_use]
    pub fn of(states: &StateCounts) -> Self {
        let total = states.total();
        let stopped = states.get(State::Stopped);
        if total == 0 {
            Self::Unknown
        } else if stopped == total {
            Self::Stopped
        } else if states.dead() == total - stopped {
            Self::Offline
        } else {
            Self::Online
        }
    }
}

/// A type of which fewer workers live than are expected.
///
/// ```
/// use worker_heartbeat::Registry;
///
/// let registry = Registry::new();
/// registry.expect_workers("mailer", 3);
/// let missing = &registry.summary().missing[0];
/// assert_eq!((missing.expected, missing.living), (3, 0));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingWorkers {
    /// The type.
    pub worker_type: String,
    /// How many are expected.
    pub expected: usize,
    /// How many live.
    pub living: usize,
}

impl MissingWorkers {
    pub(crate) const fn new(worker_type: String, expected: usize, living: usize) -> Self {
        Self {
            worker_type,
            expected,
            living,
        }
    }
}

impl fmt::Display for MissingWorkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} expected workers of type {} live",
            self.living,
            self.expected,
            Printable(&self.worker_type)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(states: &[State]) -> StateCounts {
        let mut counts = StateCounts::default();
        for state in states {
            counts.add(*state);
        }
        counts
    }

    #[test]
    fn a_group_is_offline_only_when_all_its_workers_that_were_not_stopped_are() {
        use State::{Dead, Idle, NeverStarted, Stale, Stalled, Stopped};
        for (states, expected) in [
            (&[][..], GroupState::Unknown),
            (&[Dead, Stale, NeverStarted], GroupState::Offline),
            (&[Dead, Stopped], GroupState::Offline),
            (&[Dead, Idle], GroupState::Online),
            (&[Dead, Stalled], GroupState::Online),
            (&[Stopped, Stopped], GroupState::Stopped),
        ] {
            assert_eq!(GroupState::of(&counts(states)), expected, "{states:?}");
        }
    }

    #[test]
    fn every_state_has_its_count() {
        let all = counts(&State::ALL);
        assert_eq!(all.total(), State::ALL.len());
        assert!(all.iter().all(|(_, count)| count == 1));
        assert_eq!((all.active(), all.dead()), (4, 3));
    }

    #[test]
    fn a_summary_is_healthy_while_nothing_is_wrong() {
        let with = |states: &[State]| {
            let states = counts(states);
            Summary {
                total_active: states.active(),
                total_dead: states.dead(),
                states,
                ..Summary::default()
            }
        };
        assert!(with(&[]).is_healthy());
        assert!(with(&[State::Idle, State::Starting, State::Stopped]).is_healthy());
        for bad in [
            State::Dead,
            State::Stale,
            State::NeverStarted,
            State::Stalled,
            State::Overdue,
            State::Unobserved,
        ] {
            assert!(!with(&[State::Idle, bad]).is_healthy(), "{bad}");
        }
        let mut missing = with(&[State::Idle]);
        missing.missing.push(MissingWorkers::new("x".into(), 3, 1));
        assert!(!missing.is_healthy());
        assert_eq!(
            missing.to_string(),
            "1 active, 0 dead; 1 of 3 expected workers of type x live"
        );
    }
}
