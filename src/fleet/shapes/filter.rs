//! Which workers of a store are asked for, and their order of severity.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{StoredWorker, WorkerInfo};
use crate::fleet::host::ProcessIdentity;
use crate::health::State;

/// Which workers to list.
///
/// ```
/// use worker_heartbeat::State;
/// use worker_heartbeat::fleet::WorkerFilter;
///
/// let filter = WorkerFilter::new().worker_type("indexer").state(State::Dead).limit(100);
/// assert!(filter.group.is_none());
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct WorkerFilter {
    /// Only workers of this type.
    pub worker_type: Option<String>,
    /// Only workers of this group.
    pub group: Option<String>,
    /// Only workers that have not ended, in processes on the host with this boot id and pid
    /// namespace.
    pub host: Option<ProcessIdentity>,
    /// Only workers of this process that have not ended.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub process: Option<ProcessIdentity>,
    /// Only workers in these states, as judged when they are listed; empty: in any state.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Vec::is_empty")
    )]
    pub states: Vec<State>,
    /// Only workers whose id, type or group contains this text. ASCII letters match in both cases.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub search: Option<String>,
    /// Only workers with a greater id, in the order of bytes.
    pub after: Option<String>,
    /// For [`worst_first`](super::super::HeartbeatStore::worst_first): only workers in a less severe
    /// state than this one, and those in this state with an id greater than `after`.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub after_state: Option<State>,
    /// The greatest number of workers; 10,000 by default.
    pub limit: usize,
}

impl WorkerFilter {
    /// All workers.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            worker_type: None,
            group: None,
            host: None,
            process: None,
            states: Vec::new(),
            search: None,
            after: None,
            after_state: None,
            limit: 10_000,
        }
    }

    /// Only workers of this type.
    #[must_use]
    pub fn worker_type(mut self, worker_type: impl Into<String>) -> Self {
        self.worker_type = Some(worker_type.into());
        self
    }

    /// Only workers of this group.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Only workers that have not ended, in processes on this host.
    #[must_use]
    pub fn host(mut self, host: ProcessIdentity) -> Self {
        self.host = Some(host);
        self
    }

    /// Only workers of this process that have not ended.
    #[must_use]
    pub fn process(mut self, process: ProcessIdentity) -> Self {
        self.process = Some(process);
        self
    }

    /// Also workers in this state; without any call, those in all states.
    #[must_use]
    pub fn state(mut self, state: State) -> Self {
        if !self.states.contains(&state) {
            self.states.push(state);
        }
        self
    }

    /// Only workers whose id, type or group contains this text.
    #[must_use]
    pub fn search(mut self, text: impl Into<String>) -> Self {
        self.search = Some(text.into());
        self
    }

    /// Only workers with a greater id.
    #[must_use]
    pub fn after(mut self, id: impl Into<String>) -> Self {
        self.after = Some(id.into());
        self
    }

    /// Only workers that [`worst_first`](super::super::HeartbeatStore::worst_first) lists after this
    /// one: the last worker of the page before.
    #[must_use]
    pub fn after_worker(mut self, worker: &StoredWorker) -> Self {
        self.after_state = Some(worker.health().state());
        self.after = Some(worker.key.id.clone());
        self
    }

    /// The greatest number of workers.
    #[must_use]
    pub const fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Whether this worker passes, apart from [`after`](Self::after) and [`limit`](Self::limit).
    ///
    /// ```
    /// use worker_heartbeat::State;
    /// use worker_heartbeat::fleet::{StoredWorker, WorkerFilter, WorkerInfo, WorkerKey};
    ///
    /// let worker = StoredWorker::new(WorkerKey::new("indexer-1", 7), WorkerInfo::new("indexer"));
    /// assert!(WorkerFilter::new().state(State::Starting).search("INDEX").admits(&worker));
    /// assert!(!WorkerFilter::new().state(State::Dead).admits(&worker));
    /// ```
    #[must_use]
    pub fn admits(&self, worker: &StoredWorker) -> bool {
        let state = || worker.health().state();
        self.admits_row(&worker.key.id, &worker.info, worker.ending.is_some(), state)
    }

    /// Whether it has fields that older coordinators ignore.
    #[cfg(feature = "http")]
    pub(crate) fn has_newer_fields(&self) -> bool {
        self.search.is_some() || !self.states.is_empty()
    }

    /// As [`admits`](Self::admits), for a row of a store.
    pub(crate) fn admits_row(
        &self,
        id: &str,
        info: &WorkerInfo,
        has_ended: bool,
        state: impl FnOnce() -> State,
    ) -> bool {
        self.admits_names(id, &info.worker_type, &info.group)
            && self.host.as_ref().is_none_or(|host| {
                let process = info.process.as_ref();
                !has_ended
                    && process.is_some_and(|process| {
                        process.boot_id == host.boot_id
                            && process.pid_namespace == host.pid_namespace
                    })
            })
            && self.process.as_ref().is_none_or(|wanted| {
                let process = info.process.as_ref();
                !has_ended && process.is_some_and(|process| process.is_same(wanted))
            })
            && (self.states.is_empty() || self.admits_state(state()))
    }

    /// Whether a worker with this id, type and group passes, apart from all else.
    pub(crate) fn admits_names(&self, id: &str, worker_type: &str, group: &str) -> bool {
        let same =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        same(&self.worker_type, worker_type)
            && same(&self.group, group)
            && self.search.as_deref().is_none_or(|text| {
                let texts = [id, worker_type, group];
                texts.into_iter().any(|within| contains(within, text))
            })
    }

    /// Whether a worker in this state passes, apart from all else.
    pub(crate) fn admits_state(&self, state: State) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }

    /// Whether a worker in this state and with this id comes after the page before, the worst first.
    pub(crate) fn is_after(&self, state: State, id: &str) -> bool {
        let Some(after_state) = self.after_state else {
            return true;
        };
        let after = (
            severity_rank(after_state),
            self.after.as_deref().unwrap_or_default(),
        );
        (severity_rank(state), id) > after
    }
}

impl Default for WorkerFilter {
    fn default() -> Self {
        Self::new()
    }
}

/// The position of a state in a list of the worst workers. Those that are processing, active or idle
/// share one: which of them comes first says nothing, and a database has them in the order of their
/// ids.
pub(crate) fn severity_rank(state: State) -> usize {
    match state {
        State::Active | State::Idle => State::Processing.severity_rank(),
        state => state.severity_rank(),
    }
}

/// Whether a text contains another one. ASCII letters match in both cases.
fn contains(within: &str, text: &str) -> bool {
    let (within, text) = (within.as_bytes(), text.as_bytes());
    text.is_empty()
        || within
            .windows(text.len())
            .any(|window| window.eq_ignore_ascii_case(text))
}

/// The worst of many, the worst first; of those in the same state, the ones with the smallest ids.
#[derive(Debug)]
pub(crate) struct Worst<T> {
    most: usize,
    /// The best of them is on top.
    kept: BinaryHeap<Ranked<T>>,
}

#[derive(Debug)]
struct Ranked<T> {
    rank: usize,
    id: String,
    what: T,
}

impl<T> Worst<T> {
    pub(crate) const fn new(most: usize) -> Self {
        Self {
            most,
            kept: BinaryHeap::new(),
        }
    }

    /// Adds one, unless enough are worse.
    pub(crate) fn add(&mut self, state: State, id: &str, what: impl FnOnce() -> T) {
        let rank = severity_rank(state);
        if self.kept.len() >= self.most {
            let Some(best) = self.kept.peek() else { return };
            if (best.rank, best.id.as_str()) <= (rank, id) {
                return;
            }
            self.kept.pop();
        }
        let (id, what) = (id.to_owned(), what());
        self.kept.push(Ranked { rank, id, what });
    }

    pub(crate) fn into_vec(self) -> Vec<T> {
        let sorted = self.kept.into_sorted_vec();
        sorted.into_iter().map(|ranked| ranked.what).collect()
    }
}

impl<T> Ranked<T> {
    fn key(&self) -> (usize, &str) {
        (self.rank, &self.id)
    }
}

impl<T> PartialEq for Ranked<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Ranked<T> {}

impl<T> PartialOrd for Ranked<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ranked<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_in_both_cases() {
        for (within, text, found) in [
            ("worker-1", "", true),
            ("", "", true),
            ("worker-1", "RKER", true),
            ("Wörker", "wÖ", false),
            ("Wörker", "wö", true),
            ("a", "ab", false),
        ] {
            assert_eq!(contains(within, text), found, "{text:?} in {within:?}");
        }
    }

    #[test]
    fn the_worst_are_kept_in_order() {
        let mut worst = Worst::new(3);
        for (state, id) in [
            (State::Idle, "a"),
            (State::Dead, "z"),
            (State::Stale, "b"),
            (State::Dead, "c"),
            (State::Stopped, "d"),
            (State::Stale, "a"),
        ] {
            worst.add(state, id, || id);
        }
        assert_eq!(worst.into_vec(), ["c", "z", "a"]);
        let mut none = Worst::new(0);
        none.add(State::Dead, "a", || ());
        assert!(none.into_vec().is_empty());
    }
}
