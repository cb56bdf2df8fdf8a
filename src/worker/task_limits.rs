//! The limits of a worker's tasks and of its drain, apart from those of its silence.

use std::time::Duration;

use super::Builder;

impl Builder {
    /// Its budget in a drain: the time from the request to stop to its end. 1 ms to 365 days; none by
    /// default.
    ///
    /// A worker that takes longer is told of, once, by [`EventKind::OverBudget`](crate::EventKind) and
    /// in the log, while there is time to look at it. It is not cut off: the timeout of the
    /// [`Shutdown`](crate::Shutdown), or of the [supervisor](crate::Supervisor::shutdown), decides how
    /// long it is waited for. The report names it with the time that it took.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, Shutdown, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let shutdown = Shutdown::builder().signals([]).registry(&registry).install()?;
    /// let mailer = WorkerHeartbeat::builder("mailer").drain_within(Duration::from_secs(5));
    /// let hb = mailer.id("mailer-1").registry(&registry).start()?;
    /// shutdown.trigger();
    /// time.advance(Duration::from_secs(6));
    /// drop(hb);
    /// assert_eq!(shutdown.wait().drained[0].to_string(), "mailer-1 (6 s, 5 s allowed)");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn drain_within(mut self, budget: Duration) -> Self {
        self.drain_within = Some(budget);
        self
    }

    /// The longest time at one task; unlimited by default. 10 ms to 365 days. A worker that is at a
    /// task for longer is [`Health::Overdue`](crate::Health::Overdue), whatever progress it makes,
    /// until the task ends.
    ///
    /// The time counts from the beginning of the task: from `begin_task`, or from the first
    /// `update_task` with its run id. A task without a run id is a new one with each update, and an
    /// update without any name is no task. Each of several nested tasks has this limit, and
    /// [`TaskGuard::deadline`](crate::TaskGuard::deadline) gives one of them its own. An announced
    /// silence does not extend it; an idle worker is not overdue.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Activity, MockClock, Registry, State, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer")
    ///     .task_deadline(Duration::from_secs(3600))
    ///     .registry(&registry)
    ///     .start()?;
    /// for mail in 0..61 {
    ///     hb.update_task("run-123", format_args!("mail {mail}"), Activity::Processing);
    ///     time.advance(Duration::from_secs(60));
    /// }
    /// assert_eq!(hb.health().state(), State::Overdue);
    /// hb.update_task("run-124", "mail 0", Activity::Processing);
    /// assert_eq!(hb.health().state(), State::Processing);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn task_deadline(mut self, task_deadline: Duration) -> Self {
        self.task_deadline = Some(task_deadline);
        self
    }

    /// The longest time in which the progress of a task stands still; unlimited by default. 10 ms to
    /// 365 days. A worker that has reported [`progress`](crate::TaskGuard::progress) and goes on beating
    /// without moving it is stalled: [`StallCause::Standstill`](crate::StallCause::Standstill).
    ///
    /// It moves when one of the open tasks reports other numbers than before, and when a task begins or
    /// ends. Steps, texts and beats do not move it. A task that reports no progress has no such limit.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("importer")
    ///     .progress_after(Duration::from_secs(300))
    ///     .registry(&registry)
    ///     .start()?;
    /// let task = hb.begin_task("run-123", "importing");
    /// task.progress(3, 10);
    /// for _ in 0..6 {
    ///     time.advance(Duration::from_secs(60));
    ///     hb.beat(); // it tries the fourth again
    /// }
    /// let health = hb.health().to_string();
    /// assert!(health.starts_with("stalled: no progress for 6 min, 5 min allowed"));
    /// assert!(health.contains("it beats, and stays at 3 of 10"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn progress_after(mut self, progress_after: Duration) -> Self {
        self.progress_after = Some(progress_after);
        self
    }
}
