//! The worker's side: the handle that it beats into.

mod builder;
mod env;
mod guards;
mod limits;
mod pace;
mod stop;
mod task_limits;
mod text;

use std::fmt;
use std::panic::Location;
use std::time::{Duration, SystemTime};

pub use builder::Builder;
pub use guards::{SilenceGuard, TaskGuard};
#[cfg(feature = "postgres")]
pub(crate) use limits::LONGEST_NAME;
pub(crate) use limits::{
    DEFAULT_GROUP, DEFAULT_INTERVAL, MOST_METADATA, check_duration, check_id, check_name,
};
#[cfg(feature = "http")]
pub(crate) use limits::{
    LONGEST_VALUE, SHORTEST_INTERVAL, check_limits, check_metadata, shortened,
};
pub use text::Text;

use crate::cell::Phase;
use crate::health::{Activity, CallSite, DeathCause, Health, StopCause};
use crate::registry::core::worker_ref::{Termination, Updated};
use crate::registry::{Membership, Probe, Registry, Snapshot};
use crate::sync::describe::{chain, describe_text};
use crate::sync::threads;

/// A worker's handle: made by its [`builder`](Self::builder), held by the worker, dropped with it.
///
/// It is not `Clone`: its life is the worker's life. Health handlers get a [`Probe`].
///
/// Dropped, it ends the worker: as [`Health::Stopped`], or as [`Health::Dead`] if its thread is
/// unwinding from a panic.
///
/// ```
/// use worker_heartbeat::{State, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("importer").id("importer-1").start()?;
/// let probe = hb.probe(); // for a health handler
/// for line in ["apples 3", "pears 5"] {
///     let _task = hb.begin_task(line, "reading a line");
///     // work
/// }
/// assert!(probe.is_recent());
///
/// drop(hb);
/// assert_eq!(probe.health().state(), State::Stopped);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
pub struct WorkerHeartbeat {
    membership: Membership,
}

impl WorkerHeartbeat {
    /// Begins a worker of this type. See [`Builder`].
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// assert_eq!((hb.worker_type(), hb.id()), ("mailer", "mailer-1"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn builder(worker_type: impl Into<String>) -> Builder {
        Builder::new(worker_type.into())
    }

    pub(crate) const fn new(membership: Membership) -> Self {
        Self { membership }
    }

    pub(crate) const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Reports progress.
    ///
    /// One relaxed load and store in the worker's own cache line: no clock, no lock, no allocation,
    /// no system call, wait-free. After the worker's end it changes nothing but
    /// [`Snapshot::late_beats`].
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("adder").start()?;
    /// let mut sum = 0;
    /// for number in 1..=10 {
    ///     sum += number;
    ///     hb.beat();
    /// }
    /// assert_eq!((sum, hb.snapshot().beats), (55, 10));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[inline]
    pub fn beat(&self) {
        self.membership.worker_ref().cell().beat();
    }

    /// Reports the current task. Counts as a beat, and binds the calling thread (see
    /// [`bind_thread`](Self::bind_thread)).
    ///
    /// The task's age counts from the first update with this `run_id`; with an empty `run_id`, each
    /// update begins a new task. The [texts](Text) are copied into buffers that are reused: once
    /// these are large enough, nothing is allocated. A `run_id` of more than 200 bytes or a `task` of
    /// more than 1024 is cut at a character boundary and ends in `…`.
    ///
    /// After the worker's end it changes nothing but [`Snapshot::late_updates`].
    ///
    /// ```
    /// use worker_heartbeat::{Activity, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("research").registry(&registry).start()?;
    /// for (n, company) in ["Example", "Example & Sons"].iter().enumerate() {
    ///     hb.update_task(n, format_args!("Researching {company}"), Activity::Processing);
    ///     // work
    /// }
    /// hb.mark_idle();
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[inline]
    #[track_caller]
    pub fn update_task(&self, run_id: impl Text, task: impl Text, activity: Activity) {
        let site = Location::caller();
        run_id.with_str(|run_id| task.with_str(|task| self.set_task(run_id, task, activity, site)));
    }

    fn set_task(&self, run_id: &str, task: &str, activity: Activity, site: CallSite) {
        let worker = self.membership.worker_ref();
        self.take(&worker.update_task(run_id, task, activity, site));
    }

    /// Delivers the effects of an update.
    #[inline]
    fn take(&self, updated: &Updated) {
        if updated.new_task {
            if let Some(store_hook) = self.registry().store_hook().get() {
                store_hook.task_changed();
            }
        }
        self.membership.end_if(updated.over);
    }

    /// Reports that the worker waits for work: no progress is expected. Ends its tasks, nested ones
    /// included. Counts as a beat, and binds the calling thread.
    ///
    /// If the worker was asked to stop, this stops it.
    ///
    /// ```
    /// use worker_heartbeat::{Activity, State, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// hb.update_task("run-123", "sending", Activity::Processing);
    /// assert_eq!(hb.health().state(), State::Processing);
    /// hb.mark_idle();
    /// assert_eq!(hb.health().state(), State::Idle);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn mark_idle(&self) {
        let over = self.membership.worker_ref().mark_idle(Location::caller());
        self.take(&Updated {
            new_task: true,
            over,
        });
    }

    /// Begins a task at [`Activity::Processing`], as [`update_task`](Self::update_task) does, until
    /// the guard is dropped.
    ///
    /// Tasks nest. When an inner task ends, the worker returns to the outer one, with its run, text,
    /// progress and age, and can stall there. When the outermost task ends, the worker is idle.
    /// `update_task` replaces the innermost task; [`mark_idle`](Self::mark_idle) ends all tasks. A
    /// task with a guard replaces a task without one for good. At most 256 open tasks are kept: the
    /// outermost ones are dropped first.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// let task = hb.begin_task("run-123", "sending");
    /// task.progress(1, 3);
    /// assert_eq!(hb.snapshot().progress, Some((1, 3)));
    /// drop(task);
    /// assert_eq!(hb.health().to_string(), "idle");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use = "the task ends when the guard is dropped"]
    #[inline]
    #[track_caller]
    pub fn begin_task(&self, run_id: impl Text, task: impl Text) -> TaskGuard<'_> {
        let site = Location::caller();
        run_id.with_str(|run_id| task.with_str(|task| self.open_task(run_id, task, site)))
    }

    fn open_task(&self, run_id: &str, task: &str, site: CallSite) -> TaskGuard<'_> {
        let worker = self.membership.worker_ref();
        let (number, updated) = worker.begin_task(run_id, task, site);
        self.take(&updated);
        TaskGuard::new(self, number)
    }

    fn end_task(&self, number: Option<u64>) {
        let now = self.registry().clock().now();
        self.take(&self.membership.worker_ref().end_task(number, now));
    }

    /// Announces that no progress is expected for at most `at_most`: for a call that blocks for long.
    /// Dropping the guard ends the announcement, and counts as a beat.
    ///
    /// Announcements nest; the longest one counts. A worker that is silent for longer than announced,
    /// and than its own allowance, is convicted as usual.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, State, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("importer")
    ///     .stall_after(Duration::from_secs(5))
    ///     .registry(&registry)
    ///     .start()?;
    /// {
    ///     let _quiet = hb.expect_silence(Duration::from_secs(600));
    ///     time.advance(Duration::from_secs(60)); // a call that blocks
    ///     assert_eq!(hb.health().state(), State::Active);
    /// }
    /// time.advance(Duration::from_secs(60));
    /// assert_eq!(hb.health().state(), State::Stalled);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use = "the silence ends when the guard is dropped"]
    #[track_caller]
    pub fn expect_silence(&self, at_most: Duration) -> SilenceGuard<'_> {
        // The time is read without waiting for an overdue pacemaker.
        let until = self.registry().peek_observed_now().now.after(at_most);
        let worker = self.membership.worker_ref();
        SilenceGuard::new(self, worker.begin_silence(until, Location::caller()))
    }

    /// Binds the worker to the calling thread. Not a beat.
    ///
    /// A stall of a bound worker has evidence: its thread is busy, blocked or starved. If the thread
    /// ends while the worker is at work and the handle still exists, for instance in an `Arc` or a
    /// static, the worker is stalled at the next tick of the pacemaker, whatever its limits:
    /// [`StallCause::ThreadEnded`](crate::StallCause::ThreadEnded). Its next report recovers it.
    ///
    /// Supervised work is bound already, and its supervisor detects its end.
    /// [`update_task`](Self::update_task), [`begin_task`](Self::begin_task),
    /// [`mark_idle`](Self::mark_idle) and [`expect_silence`](Self::expect_silence) bind too; a worker
    /// that only beats can call this once. While another thread that has reported for the worker
    /// lives, the end of one thread does not convict the worker, since it may continue there;
    /// `bind_thread` excludes that.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::thread;
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = Arc::new(WorkerHeartbeat::builder("poller").registry(&registry).start()?);
    /// let working = Arc::clone(&hb);
    /// let thread = thread::spawn(move || {
    ///     working.bind_thread();
    ///     working.beat();
    ///     // It returns, though there is more to do.
    /// });
    /// thread.join().expect("it does not panic");
    /// time.advance(Duration::from_secs(3));
    /// assert!(hb.health().to_string().ends_with("its thread has ended"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn bind_thread(&self) {
        self.membership.worker_ref().bind_thread(threads::current());
    }

    /// Stops the worker. Later calls and updates change nothing.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// hb.stop();
    /// hb.beat(); // too late
    /// assert!(hb.health().to_string().starts_with("stopped: by stop()"));
    /// assert_eq!(hb.snapshot().late_beats, 1);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn stop(&self) {
        self.membership.end(Termination::Stopped(StopCause::Stop));
    }

    /// Ends the worker as failed, with this reason. This also applies to a worker that has just
    /// stopped because it was asked to. The reason is the error's text in its alternate form
    /// (`{:#}`), which for `anyhow::Error` and `eyre::Report` includes the causes.
    ///
    /// [`Display`](fmt::Display) gives no access to the causes of an error: to include them, use
    /// [`fail_with`](Self::fail_with).
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// hb.fail("disk full");
    /// assert!(hb.health().to_string().starts_with("dead: failed: disk full"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn fail(&self, error: impl fmt::Display) {
        self.end_as_failed(describe_text(error), Location::caller());
    }

    /// As [`fail`](Self::fail), with the error and its causes.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// # #[derive(Debug)]
    /// # struct CannotRead(std::io::Error);
    /// # impl std::fmt::Display for CannotRead {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    /// #         f.write_str("cannot read the queue")
    /// #     }
    /// # }
    /// # impl std::error::Error for CannotRead {
    /// #     fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
    /// #         Some(&self.0)
    /// #     }
    /// # }
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// let error = CannotRead(std::io::Error::other("disk full"));
    /// hb.fail_with(&error);
    /// assert!(hb.health().to_string().contains("failed: cannot read the queue: disk full"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn fail_with(&self, error: &(dyn std::error::Error + 'static)) {
        self.end_as_failed(chain(error), Location::caller());
    }

    fn end_as_failed(&self, error: String, site: CallSite) {
        self.membership.worker_ref().note_site(site);
        let cause = DeathCause::Failed { error };
        self.membership.end(Termination::Failed(cause));
    }

    /// Whether the worker has ended: stopped or dead.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// assert!(!hb.is_over());
    /// hb.stop();
    /// assert!(hb.is_over());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.membership.worker_ref().cell().state().phase != Phase::Live
    }

    /// The worker's id.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// let process = std::process::id();
    /// assert!(hb.id().starts_with(&format!("mailer-{process}-")));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        self.membership.worker_ref().record.id()
    }

    /// The worker's type.
    #[must_use]
    pub fn worker_type(&self) -> &str {
        &self.membership.worker_ref().record.profile.worker_type
    }

    /// The registry that the worker belongs to.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        self.membership.registry()
    }

    /// See [`Probe::is_recent`].
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// assert!(!hb.is_recent(), "it is starting");
    /// hb.beat();
    /// assert!(hb.is_recent());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    #[inline]
    pub fn is_recent(&self) -> bool {
        self.registry().is_recent(self.membership.worker_ref())
    }

    /// See [`Probe::health`].
    ///
    /// ```
    /// use worker_heartbeat::{State, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// assert_eq!(hb.health().state(), State::Starting);
    /// hb.beat();
    /// assert_eq!(hb.health().state(), State::Active);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn health(&self) -> Health {
        self.registry().health(self.membership.worker_ref())
    }

    /// See [`Probe::last_heartbeat`].
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// assert_eq!(hb.last_heartbeat(), None);
    /// hb.beat();
    /// assert!(hb.last_heartbeat().is_some());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn last_heartbeat(&self) -> Option<SystemTime> {
        self.registry().last_heartbeat(self.membership.worker_ref())
    }

    /// See [`Probe::snapshot`].
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").group("machine-7").start()?;
    /// let _task = hb.begin_task("run-123", "sending");
    /// let snapshot = hb.snapshot();
    /// assert_eq!(snapshot.group, "machine-7");
    /// assert_eq!(snapshot.task.as_deref(), Some("sending"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.registry().snapshot(self.membership.worker_ref())
    }

    /// A read-only view that outlives the worker, for health handlers.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// let probe = hb.probe();
    /// std::thread::spawn(move || {
    ///     hb.beat();
    ///     hb.fail("disk full");
    /// })
    /// .join()
    /// .expect("it does not panic");
    /// assert!(probe.health().to_string().starts_with("dead: failed: disk full"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn probe(&self) -> Probe {
        self.membership.probe()
    }
}

impl fmt::Debug for WorkerHeartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHeartbeat")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
