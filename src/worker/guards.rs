//! Guards: a task and an announced silence, which end when their guard is dropped.

use std::fmt;
use std::panic::Location;

use super::{Text, WorkerHeartbeat};
#[cfg(doc)]
use crate::registry::Snapshot;
use crate::sync::describe::{chain, describe_text};

/// A task in progress; made by [`WorkerHeartbeat::begin_task`]. Dropped, it ends the task: the
/// worker is at the outer task again, as it was, or idle if there is none.
///
/// A guard that is dropped out of order, or after [`WorkerHeartbeat::mark_idle`], restores no task. A
/// panic that unwinds through the guard ends the task as well. If that panic, or the error that
/// dropped the guard, ends the worker, its death names the task.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
/// let batch = hb.begin_task("batch-7", "sending");
/// for (done, mail) in ["mail-1", "mail-2"].into_iter().enumerate() {
///     let _mail = hb.begin_task(mail, "rendering");
///     batch.progress(done, 2);
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
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("importer").start()?;
    /// let task = hb.begin_task("run-123", "importing");
    /// let lines = ["apples 3", "pears 5"];
    /// for (done, line) in lines.iter().enumerate() {
    ///     println!("{line}");
    ///     task.progress(done + 1, lines.len());
    /// }
    /// assert_eq!(hb.snapshot().progress, Some((2, 2)));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn progress(&self, done: usize, total: usize) {
        let worker = self.worker.membership().worker_ref();
        worker.set_progress(self.number, done as u64, total as u64, Location::caller());
    }

    /// Names the step that this task is at, such as `uploading`: [`Snapshot::step`]. Counts as a
    /// beat. A text of more than 200 bytes is cut at a character boundary and ends in `…`.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("backup").id("backup-1").registry(&registry).start()?;
    /// let task = hb.begin_task("run-7", "nightly");
    /// task.step("uploading");
    /// task.progress(3, 10);
    /// assert_eq!(
    ///     hb.snapshot().to_string(),
    ///     "backup-1: processing run-7 (nightly), uploading, 3 of 10, for 0 s"
    /// );
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn step(&self, step: impl Text) {
        let worker = self.worker.membership().worker_ref();
        let site = Location::caller();
        step.with_str(|step| worker.set_step(self.number, step, site));
    }

    /// Reports that this task failed. The worker goes on: to end it as failed, there is
    /// [`WorkerHeartbeat::fail`]. The failure is an [event](crate::EventKind::TaskFailed), with the
    /// error's text in its alternate form (`{:#}`), and counts in [`Snapshot::failed_tasks`],
    /// [`Summary::failed_tasks`](crate::Summary::failed_tasks) and the metrics.
    ///
    /// The task still ends when the guard is dropped. A second failure of a task, or one after its
    /// end, changes nothing. Counts as a beat.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// for address in ["a@example.com", "example"] {
    ///     let task = hb.begin_task(address, "sending");
    ///     if !address.contains('@') {
    ///         task.fail(format_args!("{address} is no address"));
    ///     }
    /// }
    /// assert_eq!(hb.snapshot().failed_tasks, 1);
    /// assert!(hb.is_recent());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn fail(&self, error: impl fmt::Display) {
        let membership = self.worker.membership();
        membership.fail_task(self.number, describe_text(error), Location::caller());
    }

    /// As [`fail`](Self::fail), with the error and its causes.
    #[track_caller]
    pub fn fail_with(&self, error: &(dyn std::error::Error + 'static)) {
        let membership = self.worker.membership();
        membership.fail_task(self.number, chain(error), Location::caller());
    }
}

impl Drop for TaskGuard<'_> {
    fn drop(&mut self) {
        self.worker.end_task(self.number);
    }
}

/// An announced silence; made by [`WorkerHeartbeat::expect_silence`]. Dropping it ends the
/// announcement, and counts as a beat.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::WorkerHeartbeat;
///
/// let hb = WorkerHeartbeat::builder("importer").stall_after(Duration::from_secs(5)).start()?;
/// let quiet = hb.expect_silence(Duration::from_secs(600));
/// // a call that blocks for minutes
/// drop(quiet);
/// assert!(hb.is_recent());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
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
