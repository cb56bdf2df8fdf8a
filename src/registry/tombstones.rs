//! Ended workers that hold no cell any more. They stay visible, and bounded in number.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;
use crate::health::Ending;
use crate::registry::core::record::Record;

/// How many dead workers are remembered.
const MOST_DEAD: usize = 1_024;
/// How many workers that ended in good order are remembered.
const MOST_STOPPED: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    graves: Mutex<Graves>,
}

/// Dead and stopped ones apart: however many end in good order, no death is forgotten for them.
#[derive(Debug, Default)]
struct Graves {
    dead: VecDeque<Arc<Record>>,
    stopped: VecDeque<Arc<Record>>,
    forgotten: u64,
}

impl Tombstones {
    /// Takes in an ended worker. Returns the one that has to be forgotten for it.
    pub(super) fn bury(&self, record: Arc<Record>) -> Option<Arc<Record>> {
        let dead = matches!(record.ended()?.ending, Ending::Dead(_));
        let mut graves = self.graves.lock();
        let (row, most) = if dead {
            (&mut graves.dead, MOST_DEAD)
        } else {
            (&mut graves.stopped, MOST_STOPPED)
        };
        row.push_back(record);
        if row.len() <= most {
            return None;
        }
        let oldest = row.pop_front();
        graves.forgotten += 1;
        oldest
    }

    /// Another worker has taken over its id.
    pub(super) fn exhume(&self, record: &Arc<Record>) {
        let mut graves = self.graves.lock();
        let graves = &mut *graves;
        for row in [&mut graves.dead, &mut graves.stopped] {
            row.retain(|other| !Arc::ptr_eq(other, record));
        }
    }

    /// Takes out all that ended at least `age` ago.
    pub(super) fn purge(&self, now: Moment, age: Duration) -> Vec<Arc<Record>> {
        let mut graves = self.graves.lock();
        let graves = &mut *graves;
        let mut gone = Vec::new();
        for row in [&mut graves.dead, &mut graves.stopped] {
            row.retain(|record| {
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
        let graves = self.graves.lock();
        graves.dead.iter().chain(&graves.stopped).cloned().collect()
    }

    pub(super) fn forgotten(&self) -> u64 {
        self.graves.lock().forgotten
    }
}
