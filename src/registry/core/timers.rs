//! Timers of futures: the pacemaker wakes their tasks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

use super::Core;
use crate::clock::Moment;

/// Tasks that the pacemaker wakes, by number.
#[derive(Debug, Default)]
pub(super) struct WakerTimers {
    by_number: Mutex<BTreeMap<u64, (Moment, Waker)>>,
    /// The last number that was given out.
    last: AtomicU64,
}

impl Core {
    /// Wakes a future's task once the clock shows `at`. Returns the number by which the timer is
    /// replaced or forgotten. The caller rings the pacemaker.
    pub(crate) fn set_timer(&self, known: Option<u64>, at: Moment, waker: &Waker) -> u64 {
        let number = known.unwrap_or_else(|| self.timers.last.fetch_add(1, Ordering::Relaxed) + 1);
        // Neither cloned nor dropped under the lock: wakers belong to executors.
        let timer = (at, waker.clone());
        let replaced = self.timers.by_number.lock().insert(number, timer);
        drop(replaced);
        number
    }

    pub(crate) fn forget_timer(&self, number: u64) {
        let forgotten = self.timers.by_number.lock().remove(&number);
        drop(forgotten);
    }

    /// Takes out the timers that are due. Returns their wakers, and when the next timer is due.
    pub(crate) fn due_timers(&self, now: Moment) -> (Vec<Waker>, Moment) {
        let mut timers = self.timers.by_number.lock();
        let due = timers.iter().filter(|(_, (at, _))| *at <= now);
        let due: Vec<u64> = due.map(|(number, _)| *number).collect();
        let due = due.iter().filter_map(|number| timers.remove(number));
        let due = due.map(|(_, waker)| waker).collect();
        let next = timers.values().map(|(at, _)| *at).min();
        (due, next.unwrap_or(Moment::NEVER))
    }
}
