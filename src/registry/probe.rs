//! Read-only access to one worker.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Registry;
#[cfg(feature = "stacks")]
use crate::Error;
use crate::cell::CellSnapshot;
use crate::health::{
    Activity, Death, Ending, FutureInfo, Health, Learned, Rate, SourceLocation, StackCapture,
    State, StoreStatus, Thresholds, racing_text,
};
use crate::registry::core::is_conviction;
use crate::registry::core::record::Detail;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{Facts, WorkerRef};
use crate::sync::printable::{Age, Printable};

/// How long a capture of a call stack waits for another one.
#[cfg(feature = "stacks")]
const STACK_PATIENCE: Duration = Duration::from_secs(1);

/// A cheap, read-only reference to one worker, for health handlers: it outlives the worker, and
/// follows it through restarts.
///
/// ```
/// use worker_heartbeat::{Probe, Registry, WorkerHeartbeat};
///
/// /// A health handler.
/// fn status(worker: &Probe) -> u16 {
///     if worker.is_recent() { 200 } else { 503 }
/// }
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
/// let probe = hb.probe();
/// hb.beat();
/// assert_eq!(status(&probe), 200);
/// drop(hb);
/// assert_eq!(status(&probe), 503);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
pub struct Probe {
    registry: Registry,
    worker: WorkerRef,
}

impl Probe {
    pub(crate) const fn new(registry: Registry, worker: WorkerRef) -> Self {
        Self { registry, worker }
    }

    /// The worker's id.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// assert_eq!(hb.probe().id(), "mailer-1");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        self.worker.record.id()
    }

    /// The worker's type.
    #[must_use]
    pub fn worker_type(&self) -> &str {
        &self.worker.record.profile.worker_type
    }

    /// Whether the worker is well: idle, active, processing or stopping, with a heartbeat younger
    /// than its `stale_after`.
    ///
    /// If the pacemaker is overdue, this wakes it and waits for it, for at most 100 ms.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer")
    ///     .stall_after(Duration::from_secs(5))
    ///     .registry(&registry)
    ///     .start()?;
    /// let probe = hb.probe();
    /// hb.beat();
    /// assert!(probe.is_recent());
    /// time.advance(Duration::from_secs(6));
    /// assert!(!probe.is_recent());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn is_recent(&self) -> bool {
        self.registry.is_recent(&self.worker.current())
    }

    /// The verdict on the worker, with its reason.
    ///
    /// If the pacemaker is overdue, this wakes it and waits for it, for at most 100 ms. If the
    /// worker has just stalled and its thread was sampled only once, this samples it again 10 ms
    /// later, to distinguish busy from blocked.
    ///
    /// ```
    /// use worker_heartbeat::{Health, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// let probe = hb.probe();
    /// hb.fail("disk full");
    /// match probe.health() {
    ///     Health::Dead { death, .. } => println!("{}", death.cause), // failed: disk full
    ///     health => unreachable!("{health}"),
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn health(&self) -> Health {
        self.registry.health(&self.worker.current())
    }

    /// Until when the worker was known to be well, by the wall clock: now minus the heartbeat's
    /// age. `None` if it never was.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// let probe = hb.probe();
    /// assert_eq!(probe.last_heartbeat(), None);
    /// hb.beat();
    /// assert!(probe.last_heartbeat().is_some());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn last_heartbeat(&self) -> Option<SystemTime> {
        self.registry.last_heartbeat(&self.worker.current())
    }

    /// All that is known of the worker at this moment.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// let task = hb.begin_task("run-123", "sending");
    /// task.progress(1, 3);
    /// let snapshot = hb.probe().snapshot();
    /// assert_eq!(snapshot.run_id.as_deref(), Some("run-123"));
    /// assert_eq!(snapshot.progress, Some((1, 3)));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.registry.snapshot(&self.worker.current())
    }
}

#[cfg(feature = "stacks")]
impl Probe {
    /// Reads the call stack of the thread that does the worker's work, while it is blocked: where it
    /// waits. The thread is neither stopped nor interrupted.
    ///
    /// It takes less than a millisecond, and longer the first time: names and lines are read from the
    /// program's file. A debug build may have hundreds of megabytes of debug information; up to 512 MiB
    /// are read. One stack is read at a time.
    ///
    /// Linux on x86-64. Names need a program that is not stripped, lines need debug information
    /// (`debug = "line-tables-only"` suffices). The frames of C libraries without call frame
    /// information end the stack.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let (release, wait) = std::sync::mpsc::channel::<()>();
    /// let worker = Supervisor::new(&registry).spawn(WorkerHeartbeat::builder("mailer"), move |hb| {
    ///     hb.beat();
    ///     // Somewhere below, it waits for ever.
    ///     wait.recv().ok();
    ///     Ok(())
    /// })?;
    /// match worker.probe().capture_stack() {
    ///     Ok(stack) => println!("waits at {stack}\n{stack:#}"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// drop(release);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::CallStack`](crate::Error::CallStack) if the thread is running, has ended, or cannot be
    /// looked at: other platforms, or a process that is not dumpable (prctl(2)).
    pub fn capture_stack(&self) -> Result<crate::health::CallStack, Error> {
        let stack = self.worker.current().capture_stack(STACK_PATIENCE);
        stack.map_err(|why| Error::CallStack {
            id: self.id().to_owned(),
            reason: why.to_string(),
        })
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// All that is known of a worker at one moment.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
///
/// let time = MockClock::new();
/// let registry = Registry::with_clock(time.clock());
/// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
/// let task = hb.begin_task("run-123", "sending");
/// task.progress(1, 3);
/// time.advance(Duration::from_secs(4));
/// let snapshot = hb.snapshot();
/// assert_eq!(snapshot.to_string(), "mailer-1: processing run-123 (sending), 1 of 3, for 4 s");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its type.
    pub worker_type: String,
    /// Its group.
    pub group: String,
    /// The number of this life of the id, counted from 1.
    pub incarnation: u32,
    /// The number of restarts.
    pub restarts: u32,
    /// Where it was started: the place of the call of [`Builder::start`](crate::Builder::start),
    /// [`Supervisor::spawn`](crate::Supervisor::spawn) or
    /// [`Supervisor::supervise`](crate::Supervisor::supervise).
    pub spawn_location: Option<SourceLocation>,
    /// The verdict.
    pub health: Health,
    /// What it reports that it is doing.
    pub activity: Activity,
    /// Its run; of a dead worker, the last one.
    pub run_id: Option<String>,
    /// Its task; of a dead worker, the last one.
    pub task: Option<String>,
    /// Steps done and total steps of its task.
    pub progress: Option<(u64, u64)>,
    /// The step of its task, if it has a name.
    pub step: Option<String>,
    /// Where it last reported, other than by a mere [`beat`](crate::WorkerHeartbeat::beat): by
    /// [`update_task`](crate::WorkerHeartbeat::update_task),
    /// [`begin_task`](crate::WorkerHeartbeat::begin_task),
    /// [`mark_idle`](crate::WorkerHeartbeat::mark_idle),
    /// [`expect_silence`](crate::WorkerHeartbeat::expect_silence),
    /// [`fail`](crate::WorkerHeartbeat::fail) or a [`TaskGuard`](crate::TaskGuard). `None` if it has not
    /// in this incarnation.
    pub last_location: Option<SourceLocation>,
    /// What is known of its future, if it is one: passed to
    /// [`supervise`](crate::WorkerHeartbeat::supervise).
    pub future: Option<FutureInfo>,
    /// Time since the beginning of its task, at most one resolution too short.
    pub task_age: Option<Duration>,
    /// Time since its last progress, at most one resolution too short. `None` if it never made any,
    /// or is over.
    pub progress_age: Option<Duration>,
    /// Age of its heartbeat. `None` if it never had one.
    pub heartbeat_age: Option<Duration>,
    /// Until when it was known to be well, by the wall clock.
    pub last_heartbeat: Option<SystemTime>,
    /// Steps of progress of this incarnation. Concurrent beats of several threads for one worker
    /// may count as one, or set the count back a little.
    pub beats: u64,
    /// Beats after its end, which had no effect.
    pub late_beats: u64,
    /// Other updates after its end, which had no effect.
    pub late_updates: u64,
    /// Tasks of this incarnation that [failed](crate::TaskGuard::fail).
    pub failed_tasks: u64,
    /// How its previous incarnation died.
    pub last_death: Option<Arc<Death>>,
    /// The call stack of its thread, as it was read when the worker stalled, went stale or never
    /// started, or why there is none. `None` for a worker that is well, and without the feature
    /// `stacks`.
    pub stack: Option<StackCapture>,
    /// Metadata that the application set.
    pub metadata: Vec<(String, String)>,
    /// The limits that it is judged by.
    pub thresholds: Thresholds,
    /// What was learned of its silences, if its limit is [learned](crate::Builder::learn_stall_after).
    /// Of an idle worker, what was learned of the work that was seen more often.
    pub learned: Option<Learned>,
    /// Its highest rate of progress, if it [has one](crate::Builder::at_most).
    pub at_most: Option<Rate>,
    /// How fast it makes progress, if it has been too fast for a while.
    pub racing: Option<Rate>,
    /// How often it is reported to a store.
    pub interval: Duration,
    /// The age of the pacemaker's last tick.
    pub tick_age: Duration,
    /// The state of the connection to the store that its registry is attached to, if it is.
    pub store: Option<StoreStatus>,
}

impl Snapshot {
    /// Unix time of the last heartbeat in seconds; 0.0 if there never was one.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// assert_eq!(hb.snapshot().last_heartbeat_unix(), 0.0);
    /// hb.beat();
    /// assert!(hb.snapshot().last_heartbeat_unix() > 1.7e9);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn last_heartbeat_unix(&self) -> f64 {
        self.last_heartbeat
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map_or(0.0, |since| since.as_secs_f64())
    }

    pub(super) fn take(worker: &WorkerRef, observed: &ObservedNow, wall: SystemTime) -> Self {
        worker.read_all(observed, |facts, snapshot, detail| {
            Self::of(worker, observed, wall, &facts, snapshot, detail)
        })
    }

    fn of(
        worker: &WorkerRef,
        observed: &ObservedNow,
        wall: SystemTime,
        facts: &Facts,
        snapshot: Option<&CellSnapshot>,
        detail: Option<&Detail>,
    ) -> Self {
        let profile = &worker.record.profile;
        let ended = detail.and_then(|detail| worker.ended(detail));
        let (activity, progress_at) = match facts {
            Facts::Living(signs) => (signs.activity, signs.progress_at),
            Facts::Over { .. } => (Activity::default(), None),
        };
        let (run_id, task_text) = match facts {
            Facts::Living(_) => detail.map_or((None, None), |detail| detail.tasks.names()),
            Facts::Over {
                ending: Ending::Dead(death),
                ..
            } => (death.run_id.clone(), death.task.clone()),
            Facts::Over { .. } => (None, None),
        };
        let task = detail.and_then(|detail| detail.tasks.current());
        let at_task = run_id.is_some() || task_text.is_some();
        let health = facts.judge(&profile.limits(), observed.now, detail);
        let heartbeat_age = facts.heartbeat_at().map(|at| observed.now.since(at));
        Self {
            id: worker.record.id().to_owned(),
            worker_type: profile.worker_type.to_string(),
            group: profile.group.to_string(),
            incarnation: worker.incarnation(detail),
            restarts: detail.map_or(0, |detail| detail.restarts),
            spawn_location: SourceLocation::of(profile.site),
            last_location: match facts {
                Facts::Over {
                    ending: Ending::Dead(death),
                    ..
                } => death.last_location.clone(),
                // Of a life that has another after it, no more is known.
                Facts::Over { .. } if !worker.is_current() => None,
                _ => worker.record.last_location(detail),
            },
            future: detail
                .filter(|_| worker.is_current())
                .and_then(|detail| facts.future(&profile.limits(), observed.now, detail)),
            activity,
            progress: task
                .map(|task| (task.done, task.total))
                .filter(|(_, total)| at_task && *total > 0),
            step: task
                .map(|task| task.step.clone())
                .filter(|step| at_task && !step.is_empty()),
            task_age: snapshot.filter(|_| at_task).map(|snapshot| {
                task.and_then(|task| task.seen_at)
                    .or(snapshot.task_at)
                    .map_or(Duration::ZERO, |at| observed.now.since(at))
            }),
            run_id,
            task: task_text,
            progress_age: progress_at.map(|at| observed.now.since(at)),
            heartbeat_age,
            last_heartbeat: heartbeat_age.and_then(|age| wall.checked_sub(age)),
            beats: snapshot.map_or_else(
                || ended.map_or(0, |ended| ended.beats),
                |snapshot| snapshot.beats,
            ),
            late_beats: detail.map_or(0, |detail| worker.late_beats(detail)),
            late_updates: detail.map_or(0, |detail| detail.late_updates),
            failed_tasks: detail.map_or(0, |detail| detail.failed_tasks),
            last_death: detail.and_then(|detail| detail.last_death.clone()),
            stack: detail
                .filter(|_| is_conviction(health.state()))
                .and_then(Detail::stack_capture),
            metadata: detail.map_or_else(Vec::new, |detail| detail.metadata.clone()),
            thresholds: profile.thresholds.clone(),
            learned: profile.learned.as_ref().map(|all| all.learned(activity)),
            at_most: profile.pace.at_most,
            racing: snapshot.and(detail).and_then(Detail::racing),
            interval: profile.interval,
            health,
            tick_age: observed.tick_age(),
            store: None,
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Printable(&self.id), self.health)?;
        if self.health.is_recent() {
            match (&self.run_id, &self.task) {
                (Some(run_id), Some(task)) => {
                    write!(f, " {} ({})", Printable(run_id), Printable(task))?
                }
                (Some(name), None) | (None, Some(name)) => write!(f, " {}", Printable(name))?,
                (None, None) => {}
            }
        }
        if self.health.is_recent() || self.health.state() == State::Overdue {
            if let Some(step) = &self.step {
                write!(f, ", {}", Printable(step))?;
            }
            if let Some((done, total)) = self.progress {
                write!(f, ", {done} of {total}")?;
            }
        }
        if let (true, Some(age)) = (self.health.is_recent(), self.task_age) {
            write!(f, ", for {}", Age(age))?;
        }
        if let (Some(rate), Some(at_most)) = (self.racing, self.at_most) {
            write!(f, "; {}", racing_text(rate, at_most))?;
        }
        Ok(())
    }
}
