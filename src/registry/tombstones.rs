//! Ended workers that hold no cell any more. They stay visible; their number is bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;
use crate::health::Ending;
use crate::registry::core::record::Record;

/// Dead workers that are kept.
const MOST_DEAD: usize = 1_024;
/// Stopped workers that are kept.
const MOST_STOPPED: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    ended: Mutex<EndedWorkers>,
}

/// Dead and stopped ones apart, so that stopped ones can't displace the dead.
#[derive(Debug, Default)]
struct EndedWorkers {
    dead: VecDeque<Arc<Record>>,
    stopped: VecDeque<Arc<Record>>,
    forgotten: u64,
}

impl Tombstones {
    /// Adds an ended worker. Returns the one that is forgotten to make room.
    pub(super) fn insert(&self, record: Arc<Record>) -> Option<Arc<Record>> {
        let dead = matches!(record.ended()?.ending, Ending::Dead(_));
        let mut ended_workers = self.ended.lock();
        let (list, most) = if dead {
            (&mut ended_workers.dead, MOST_DEAD)
        } else {
            (&mut ended_workers.stopped, MOST_STOPPED)
        };
        list.push_back(record);
        if list.len() <= most {
            return None;
        }
        let oldest = list.pop_front();
        ended_workers.forgotten += 1;
        oldest
    }

    /// Removes a worker whose id another one takes over.
    pub(super) fn remove(&self, record: &Arc<Record>) {
        let mut ended_workers = self.ended.lock();
        let ended_workers = &mut *ended_workers;
        for list in [&mut ended_workers.dead, &mut ended_workers.stopped] {
            list.retain(|other| !Arc::ptr_eq(other, record));
        }
    }

    /// Removes all that ended at least `age` ago.
    pub(super) fn purge(&self, now: Moment, age: Duration) -> Vec<Arc<Record>> {
        let mut ended_workers = self.ended.lock();
        let ended_workers = &mut *ended_workers;
        let mut gone = Vec::new();
        for list in [&mut ended_workers.dead, &mut ended_workers.stopped] {
            list.retain(|record| {
                let ended = record.ended();
                let kept = ended.is_some_and(|ended| now.since(ended.at) < age);
                if !kept {
                    gone.push(Arc::clone(record));
                }
                kept
            });
        }
        gone
    }

    pub(super) fn all(&self) -> Vec<Arc<Record>> {
        let ended_workers = self.ended.lock();
        ended_workers
            .dead
            .iter()
            .chain(&ended_workers.stopped)
            .cloned()
            .collect()
    }

    pub(super) fn forgotten(&self) -> u64 {
        self.ended.lock().forgotten
    }
}
