//! Guards: a task and an announced silence, which end when their guard is dropped.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

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

    /// The longest time from the beginning of this task to its end, instead of the one of
    /// [`task_deadline`](crate::Builder::task_deadline). A worker that is at the task for longer is
    /// [`Health::Overdue`](crate::Health::Overdue) until the task ends, whatever progress it makes.
    ///
    /// Each of several nested tasks has its own deadline, and those of the outer ones go on while an
    /// inner one runs. A later call replaces the deadline; `Duration::MAX` lifts it, and with zero the
    /// task is overdue at once. A run that [`update_task`](WorkerHeartbeat::update_task) puts into the
    /// place of this task does not change it. Time that was not observed, such as that of a suspended
    /// host, is not charged. Counts as a beat.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("importer").registry(&registry).start()?;
    /// let task = hb.begin_task("run-123", "importing");
    /// task.deadline(Duration::from_secs(3600));
    /// for line in 0..100 {
    ///     time.advance(Duration::from_secs(60)); // a line
    ///     task.progress(line, 10_000);
    /// }
    /// let health = hb.health().to_string();
    /// assert!(health.starts_with("overdue: at its task for 1 h 40 min, 1 h allowed"));
    /// assert!(health.ends_with("during run-123 (importing)"));
    /// drop(task);
    /// assert_eq!(hb.health().to_string(), "idle");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn deadline(&self, deadline: Duration) {
        // The time is read without waiting for an overdue pacemaker.
        let now = self.worker.registry().peek_observed_now().now;
        let worker = self.worker.membership().worker_ref();
        worker.set_deadline(self.number, deadline, now, Location::caller());
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
