//! Tasks that wait for something to happen. They work on any executor: all they leave is a waker.

use std::collections::BTreeMap;
use std::task::Waker;

use super::catch::catch;

/// Wakes an async task. A panic of its executor is contained.
pub(crate) fn wake(waker: Waker) {
    drop(catch(|| waker.wake()));
}

/// See the module. Wakers belong to executors: they are neither cloned, dropped nor woken under the
/// lock that guards this, so all that leaves it is returned.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    by_number: BTreeMap<u64, Waker>,
    next: u64,
}

impl Wakers {
    /// Keeps a task's waker, in place of the one that it left before. Returns the number by which
    /// the task is known, and the waker that was replaced.
    pub(crate) fn keep(&mut self, known: Option<u64>, waker: Waker) -> (u64, Option<Waker>) {
        let number = known.unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        (number, self.by_number.insert(number, waker))
    }

    pub(crate) fn forget(&mut self, number: u64) -> Option<Waker> {
        self.by_number.remove(&number)
    }

    /// Takes out all of them, in the order in which the tasks came.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        std::mem::take(&mut self.by_number).into_values()
    }
}
