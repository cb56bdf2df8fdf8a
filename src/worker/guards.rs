//! What ends when it is dropped: a task, an announced silence.

use std::thread;

use super::WorkerHeartbeat;

/// A task in progress; made by [`WorkerHeartbeat::begin_task`]. Dropped, it marks the worker idle.
///
/// While its thread unwinds from a panic it does nothing, so that the death can be told with the
/// task that it happened in.
#[derive(Debug)]
pub struct TaskGuard<'a> {
    worker: &'a WorkerHeartbeat,
}

impl<'a> TaskGuard<'a> {
    pub(super) const fn new(worker: &'a WorkerHeartbeat) -> Self {
        Self { worker }
    }

    /// Says how far the task is: `done` steps of `total`. Counts as a beat.
    pub fn progress(&self, done: u64, total: u64) {
        self.worker.membership().post().set_progress(done, total);
    }
}

impl Drop for TaskGuard<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.worker.mark_idle();
        }
    }
}

/// An announced silence; made by [`WorkerHeartbeat::expect_silence`]. Dropped, it takes the
/// announcement back and counts as a beat.
#[derive(Debug)]
pub struct SilenceGuard<'a> {
    worker: &'a WorkerHeartbeat,
    number: u64,
}

impl<'a> SilenceGuard<'a> {
    pub(super) const fn new(worker: &'a WorkerHeartbeat, number: u64) -> Self {
        Self { worker, number }
    }
}

impl Drop for SilenceGuard<'_> {
    fn drop(&mut self) {
        self.worker.membership().post().end_silence(self.number);
    }
}
