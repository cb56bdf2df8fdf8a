//! What has changed between two readings: the events that `top` shows.

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use worker_heartbeat::State;
use worker_heartbeat::fleet::StoredWorker;

/// The most events that are kept.
const MOST_EVENTS: usize = 500;

/// A worker came to be unwell, or is so no longer, or began a new life.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub at: SystemTime,
    pub id: String,
    /// `None`: it was not among the workers that were read.
    pub from: Option<State>,
    /// `None`: it is no longer among them.
    pub to: Option<State>,
    pub reason: String,
}

/// The states of the last reading, and the changes since the start, the newest first.
#[derive(Default)]
pub struct Changes {
    states: HashMap<String, (u64, State)>,
    pub events: VecDeque<Change>,
    has_begun: bool,
}

impl Changes {
    /// Other workers are read from now on: what is read next is no change.
    pub fn restart(&mut self) {
        self.has_begun = false;
    }

    pub fn observe(&mut self, workers: &[StoredWorker], at: SystemTime) {
        let mut states = HashMap::with_capacity(workers.len());
        for worker in workers {
            let (id, state) = (&worker.key.id, worker.health().state());
            states.insert(id.clone(), (worker.key.incarnation, state));
            let before = self.states.remove(id);
            let is_change = match before {
                Some((incarnation, _)) if incarnation != worker.key.incarnation => true,
                Some((_, before)) => before != state && is_unwell(before) | is_unwell(state),
                None => is_unwell(state),
            };
            if is_change {
                let reason = worker.reason().unwrap_or_default();
                self.add(Change {
                    at,
                    id: id.clone(),
                    from: before.map(|(_, state)| state),
                    to: Some(state),
                    reason,
                });
            }
        }
        // They recovered and are not among the worst, or they were forgotten.
        let gone: Vec<_> = self.states.drain().collect();
        for (id, (_, state)) in gone.into_iter().filter(|(_, (_, state))| is_unwell(*state)) {
            let (from, to, reason) = (Some(state), None, String::new());
            self.add(Change {
                at,
                id,
                from,
                to,
                reason,
            });
        }
        self.states = states;
        self.has_begun = true;
    }

    fn add(&mut self, change: Change) {
        if self.has_begun {
            self.events.push_front(change);
            self.events.truncate(MOST_EVENTS);
        }
    }
}

pub fn is_unwell(state: State) -> bool {
    crate::scope::UNWELL.contains(&state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_heartbeat::fleet::{WorkerInfo, WorkerKey};

    fn worker(id: &str, incarnation: u64, state: State) -> StoredWorker {
        let key = WorkerKey::new(id, incarnation);
        let mut worker = StoredWorker::new(key, WorkerInfo::new("poller"));
        worker.heartbeat_age = Some(std::time::Duration::ZERO);
        worker.status.state = state;
        worker
    }

    #[test]
    fn only_what_changes_between_two_readings_is_an_event() {
        use State::{Idle, Overdue, Processing, Stalled};
        let mut changes = Changes::default();
        let mut observe = |workers: &[StoredWorker]| {
            changes.observe(workers, SystemTime::UNIX_EPOCH);
            let events = changes.events.drain(..);
            let mut told: Vec<_> = events
                .map(|event| (event.id, event.from, event.to))
                .collect();
            told.sort_by(|a, b| a.0.cmp(&b.0));
            told
        };
        let told = |id: &str, from, to| (id.to_owned(), from, to);
        assert!(observe(&[worker("a", 1, Stalled), worker("b", 2, Idle)]).is_empty());
        assert!(observe(&[worker("a", 1, Stalled), worker("b", 2, Processing)]).is_empty());
        let events = observe(&[worker("a", 1, Idle), worker("b", 2, Stalled)]);
        let expected = [
            told("a", Some(Stalled), Some(Idle)),
            told("b", Some(Processing), Some(Stalled)),
        ];
        assert_eq!(events, expected);
        let events = observe(&[worker("a", 7, Idle), worker("c", 9, Overdue)]);
        let expected = [
            told("a", Some(Idle), Some(Idle)),
            told("b", Some(Stalled), None),
            told("c", None, Some(Overdue)),
        ];
        assert_eq!(events, expected);
        changes.restart();
        changes.observe(&[worker("d", 3, Stalled)], SystemTime::UNIX_EPOCH);
        assert!(changes.events.is_empty(), "other workers are read now");
    }
}
