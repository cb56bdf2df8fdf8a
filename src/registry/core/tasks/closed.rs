//! The last task that a guard closed: a worker that dies next may have died in it.

use std::time::Duration;

use super::task::Task;
use crate::clock::Moment;

/// An error reaches the supervisor within this time after the guards that it passes were dropped. After a
/// longer pause, the error does not belong to the task.
const ERROR_LATENCY: Duration = Duration::from_millis(10);
/// The same for a panic, which may pass slow destructors.
const PANIC_LATENCY: Duration = Duration::from_secs(1);

/// A task that its guard closed.
#[derive(Debug, Default)]
pub(super) struct Closed {
    pub(super) task: Task,
    /// `None`: the worker is done with it.
    pub(super) when: Option<Closing>,
}

/// How a guard closed a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closing {
    /// By the clock.
    pub at: Moment,
    /// The worker's beats, including that of the closing.
    pub beats: u64,
    /// The number of the closing thread.
    pub thread: u32,
    /// The thread was unwinding from a panic.
    pub unwinding: bool,
}

impl Closing {
    /// Whether an error or panic of this moment may have dropped the guard.
    pub(super) fn reaches(&self, now: Moment) -> bool {
        let latency = if self.unwinding {
            PANIC_LATENCY
        } else {
            ERROR_LATENCY
        };
        now.since(self.at) <= latency
    }
}

/// How a worker died, for the search of the task that it died in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It panicked, and its guards were dropped by the unwinding.
    Panic,
    /// It returned an error, which dropped its guards.
    Error,
    /// Otherwise: only an open task counts.
    Other,
}
