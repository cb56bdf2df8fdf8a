//! What ends when it is dropped: a task, an announced silence.

use super::WorkerHeartbeat;

/// A task in progress; made by [`WorkerHeartbeat::begin_task`]. Dropped, it ends the task: the
/// worker is at the outer task again, as it was, or idle if there is none.
///
/// A guard that is dropped out of order, or after [`WorkerHeartbeat::mark_idle`], brings nothing
/// back. A panic that unwinds through the guard ends the task as well. If the worker dies of that
/// panic, or of the error that dropped the guard, its death names the task.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
/// let batch = hb.begin_task("batch-7", "sending");
/// for (done, mail) in ["mail-1", "mail-2"].into_iter().enumerate() {
///     let _mail = hb.begin_task(mail, "rendering");
///     batch.progress(done as u64, 2);
/// }
/// assert_eq!(hb.snapshot().run_id.as_deref(), Some("batch-7"));
/// drop(batch);
/// assert_eq!(hb.health().to_string(), "idle");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Debug)]
pub struct TaskGuard<'a> {
    worker: &'a WorkerHeartbeat,
    /// `None` if the worker had ended before.
    number: Option<u64>,
}

impl<'a> TaskGuard<'a> {
    pub(super) const fn new(worker: &'a WorkerHeartbeat, number: Option<u64>) -> Self {
        Self { worker, number }
    }

    /// Reports how far this task is: `done` steps of `total`. Counts as a beat.
    pub fn progress(&self, done: u64, total: u64) {
        let worker = self.worker.membership().worker_ref();
        worker.set_progress(self.number, done, total);
    }
}

impl Drop for TaskGuard<'_> {
    fn drop(&mut self) {
        self.worker.end_task(self.number);
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
        self.worker
            .membership()
            .worker_ref()
            .end_silence(self.number);
    }
}
