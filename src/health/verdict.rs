//! The verdict on a worker, with its reason.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Death, Ending, FutureInfo, SourceLocation, StackCapture, State, StopCause};
use crate::sync::printable::{Age, Printable};

/// The verdict on a worker at one moment, with its reason.
///
/// `Display` is a sentence for an operator; `Debug` shows the names of the states and reasons.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Health, MockClock, Registry, WorkerHeartbeat};
///
/// let time = MockClock::new();
/// let registry = Registry::with_clock(time.clock());
/// let hb = WorkerHeartbeat::builder("mailer")
///     .stall_after(Duration::from_secs(5))
///     .registry(&registry)
///     .start()?;
/// hb.beat();
/// time.advance(Duration::from_secs(6));
/// match hb.health() {
///     Health::Stalled(stalled) => println!("{stalled}"), // no progress for 6 s, 5 s allowed; ...
///     health => unreachable!("{health}"),
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Health {
    /// Registered, no progress yet, still within its `startup_grace`. Not recent.
    Starting {
        /// Time since it was registered.
        waited: Duration,
        /// Its allowance.
        grace: Duration,
    },
    /// No progress within its `startup_grace`. A first beat still recovers it.
    NeverStarted {
        /// Time since it was registered.
        waited: Duration,
        /// Its allowance.
        grace: Duration,
    },
    /// Well, waiting for work.
    Idle,
    /// Well, at work, without a named task.
    Active,
    /// Well, at a task.
    Processing,
    /// Alive, at work, and without progress for longer than its allowance.
    Stalled(Stalled),
    /// It makes progress, and has been at one task for longer than its deadline. The pacemaker goes
    /// on vouching for it: it is not stale, and keeps its leases.
    #[non_exhaustive]
    Overdue {
        /// Time since the beginning of the task; zero if that is not known (from a store).
        task_age: Duration,
        /// The deadline of the task; zero if that is not known (from a store).
        allowance: Duration,
        /// Where it last reported, other than by a mere beat.
        last_location: Option<SourceLocation>,
        /// The run of the task that is overdue, which may be an outer one.
        run_id: Option<String>,
        /// The task that is overdue.
        task: Option<String>,
    },
    /// Without a heartbeat for longer than its `stale_after`.
    Stale {
        /// Age of the heartbeat.
        age: Duration,
        /// Its allowance.
        stale_after: Duration,
    },
    /// The pacemaker did not observe: it got no processor time, even when it was woken.
    Unobserved {
        /// Time since the pacemaker's last tick.
        unwatched: Duration,
    },
    /// Asked to stop, finishing its task.
    Stopping,
    /// Stopped as intended.
    Stopped {
        /// What stopped it.
        by: StopCause,
        /// How long ago.
        ago: Duration,
    },
    /// Ended in any other way.
    Dead {
        /// What is known of its death.
        death: Arc<Death>,
        /// How long ago.
        ago: Duration,
    },
}

impl Health {
    pub(crate) fn ended(ending: &Ending, ago: Duration) -> Self {
        match ending {
            Ending::Stopped(by) => Self::Stopped {
                by: by.clone(),
                ago,
            },
            Ending::Dead(death) => Self::Dead {
                death: Arc::clone(death),
                ago,
            },
        }
    }

    /// The state without its reason.
    ///
    /// ```
    /// use worker_heartbeat::{State, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// assert_eq!(hb.health().state(), State::Starting);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    #[inline]
    pub const fn state(&self) -> State {
        match self {
            Self::Starting { .. } => State::Starting,
            Self::NeverStarted { .. } => State::NeverStarted,
            Self::Idle => State::Idle,
            Self::Active => State::Active,
            Self::Processing => State::Processing,
            Self::Stalled(_) => State::Stalled,
            Self::Overdue { .. } => State::Overdue,
            Self::Stale { .. } => State::Stale,
            Self::Unobserved { .. } => State::Unobserved,
            Self::Stopping => State::Stopping,
            Self::Stopped { .. } => State::Stopped,
            Self::Dead { .. } => State::Dead,
        }
    }

    /// Whether the worker is well: [`State::is_recent`].
    ///
    /// ```
    /// use worker_heartbeat::Health;
    ///
    /// assert!(Health::Idle.is_recent());
    /// assert!(Health::Stopping.is_recent());
    /// ```
    #[must_use]
    pub const fn is_recent(&self) -> bool {
        self.state().is_recent()
    }

    /// The reason, without the state; `None` for the states that need none: idle, active and
    /// processing.
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// hb.beat();
    /// assert_eq!(hb.health().reason(), None);
    /// hb.fail("disk full");
    /// assert!(hb.health().reason().is_some_and(|reason| reason.starts_with("failed: disk full")));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let text = self.to_string();
        text.split_once(": ").map(|(_, reason)| reason.to_owned())
    }
}

impl fmt::Display for Health {
    /// The state, and after a colon its reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting { waited, grace } => write!(
                f,
                "starting: no progress yet, {} of {} allowed",
                Age(*waited),
                Age(*grace)
            ),
            Self::NeverStarted { waited, grace } => write!(
                f,
                "never started: no progress in {}, {} allowed",
                Age(*waited),
                Age(*grace)
            ),
            Self::Idle => f.write_str("idle"),
            Self::Active => f.write_str("active"),
            Self::Processing => f.write_str("processing"),
            Self::Stalled(stalled) => write!(f, "stalled: {stalled}"),
            Self::Overdue {
                task_age,
                allowance,
                last_location,
                run_id,
                task,
            } => {
                if task_age.is_zero() {
                    f.write_str("overdue: longer at its task than allowed")?;
                } else {
                    let (age, allowed) = (Age(*task_age), Age(*allowance));
                    write!(f, "overdue: at its task for {age}, {allowed} allowed")?;
                }
                last_seen(f, last_location.as_ref())?;
                during(f, run_id.as_deref(), task.as_deref())
            }
            Self::Stale { age, stale_after } => write!(
                f,
                "stale: no heartbeat for {}, {} allowed",
                Age(*age),
                Age(*stale_after)
            ),
            Self::Unobserved { unwatched } => write!(
                f,
                "unobserved: no tick of the pacemaker for {}",
                Age(*unwatched)
            ),
            Self::Stopping => f.write_str("stopping: finishing its task"),
            Self::Stopped { by, ago } => {
                write!(f, "stopped: {by}")?;
                since(f, *ago)
            }
            Self::Dead { death, ago } => {
                write!(f, "dead: {}", death.cause)?;
                match death.unheard_for.filter(|unheard| !unheard.is_zero()) {
                    Some(unheard) => write!(
                        f,
                        ", last heard of {} ago, found {} ago",
                        Age(ago.saturating_add(unheard)),
                        Age(*ago)
                    )?,
                    None => since(f, *ago)?,
                }
                if !death.cause.is_explained() {
                    last_seen(f, death.last_location.as_ref())?;
                }
                during(f, death.run_id.as_deref(), death.task.as_deref())?;
                if let Some(restarts) = death.gave_up_after {
                    write!(f, "; gave up after {restarts} restarts")?;
                }
                Ok(())
            }
        }
    }
}

/// A worker that is alive and makes no progress, or whose progress stands still.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Health, MockClock, Registry, WorkerHeartbeat};
///
/// let time = MockClock::new();
/// let registry = Registry::with_clock(time.clock());
/// let hb = WorkerHeartbeat::builder("mailer")
///     .stall_after(Duration::from_secs(5))
///     .registry(&registry)
///     .start()?;
/// let _task = hb.begin_task("run-123", "sending");
/// time.advance(Duration::from_secs(6));
/// let Health::Stalled(stalled) = hb.health() else {
///     unreachable!("it made no progress");
/// };
/// assert_eq!(stalled.silent, Duration::from_secs(6));
/// assert_eq!(stalled.task.as_deref(), Some("sending"));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stalled {
    /// What its thread was found doing.
    pub cause: StallCause,
    /// Time without progress. At a [standstill](StallCause::Standstill), the time since the progress of
    /// its task moved; zero if that is not known (from a store).
    pub silent: Duration,
    /// Its allowance; zero if its thread has ended.
    pub allowance: Duration,
    /// Where it last reported, other than by a mere beat.
    pub last_location: Option<SourceLocation>,
    /// What is known of its future, if it is one.
    pub future: Option<Box<FutureInfo>>,
    /// The call stack of its thread, as it was read when it stalled. `None` without the feature
    /// `stacks`, in the event of the stall itself, and for a worker in a store.
    pub stack: Option<StackCapture>,
    /// Its run.
    pub run_id: Option<String>,
    /// Its task.
    pub task: Option<String>,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_standstill = matches!(self.cause, StallCause::Standstill { .. });
        if is_standstill && self.silent.is_zero() {
            f.write_str("no progress for longer than allowed")?;
        } else {
            write!(f, "no progress for {}", Age(self.silent))?;
            if self.cause != StallCause::ThreadEnded {
                write!(f, ", {} allowed", Age(self.allowance))?;
            }
        }
        write!(f, "; {}", self.cause)?;
        if let Some(future) = &self.future {
            write!(f, ", {future}")?;
        }
        if let Some(StackCapture::Taken(stack)) = &self.stack {
            write!(f, ", at {stack}")?;
        }
        last_seen(f, self.last_location.as_ref())?;
        during(f, self.run_id.as_deref(), self.task.as_deref())
    }
}

/// What the thread of a stalled worker was found doing.
///
/// ```
/// use worker_heartbeat::StallCause;
///
/// let waiting = StallCause::Blocked { place: Some("futex_wait_queue".into()) };
/// assert_eq!(waiting.to_string(), "blocked in futex_wait_queue");
/// assert_eq!(StallCause::Starved { percent: 97 }.to_string(), "starved, 97 % of its time waiting for a processor");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum StallCause {
    /// It uses the processor: it spins, or its work takes longer than allowed.
    Busy {
        /// Share of one processor that it used while it was sampled, 0 to 100.
        percent: u8,
    },
    /// It waits.
    Blocked {
        /// Where in the kernel, such as `futex_wait_queue`, or for what.
        place: Option<String>,
    },
    /// It is runnable, but the host gives it no processor.
    Starved {
        /// Share of the time that it waited for a processor, 0 to 100.
        percent: u8,
    },
    /// It has ended, and the worker's handle still exists: in an `Arc` or a static, or leaked.
    ThreadEnded,
    /// It beats, and the [progress](crate::TaskGuard::progress) of its task stands still: see
    /// [`progress_after`](crate::Builder::progress_after).
    #[non_exhaustive]
    Standstill {
        /// Steps done.
        done: u64,
        /// Total steps.
        total: u64,
    },
    /// No evidence: the worker's thread is unknown, or the system does not report it.
    Unknown,
}

impl StallCause {
    /// The name in snake case, as in log records: `blocked`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Busy { .. } => "busy",
            Self::Blocked { .. } => "blocked",
            Self::Starved { .. } => "starved",
            Self::ThreadEnded => "thread_ended",
            Self::Standstill { .. } => "standstill",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for StallCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { percent } => write!(f, "busy, using {percent} % of a processor"),
            Self::Blocked { place: Some(place) } => write!(f, "blocked in {}", Printable(place)),
            Self::Blocked { place: None } => f.write_str("blocked"),
            Self::Starved { percent } => {
                write!(
                    f,
                    "starved, {percent} % of its time waiting for a processor"
                )
            }
            Self::ThreadEnded => f.write_str("its thread has ended"),
            Self::Standstill { done, total } => {
                write!(f, "it beats, and stays at {done} of {total}")
            }
            Self::Unknown => f.write_str("cause unknown"),
        }
    }
}

/// The age of an end, unless it is zero.
fn since(f: &mut fmt::Formatter<'_>, ago: Duration) -> fmt::Result {
    if ago.is_zero() {
        return Ok(());
    }
    write!(f, ", {} ago", Age(ago))
}

/// Where it last reported, if that is known.
pub(crate) fn last_seen(
    f: &mut fmt::Formatter<'_>,
    location: Option<&SourceLocation>,
) -> fmt::Result {
    location.map_or(Ok(()), |location| write!(f, ", last seen at {location}"))
}

/// The run and the task, as far as they have names.
pub(crate) fn during(
    f: &mut fmt::Formatter<'_>,
    run_id: Option<&str>,
    task: Option<&str>,
) -> fmt::Result {
    match (run_id, task) {
        (Some(run_id), Some(task)) => {
            write!(f, ", during {} ({})", Printable(run_id), Printable(task))
        }
        (Some(name), None) | (None, Some(name)) => write!(f, ", during {}", Printable(name)),
        (None, None) => Ok(()),
    }
}
