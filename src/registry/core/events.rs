//! What happens to workers: the events that subscribers receive and the log shows.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::health::{
    CallStack, Health, LeaseLoss, MissingWorkers, Rate, State, during, racing_text,
};
use crate::sync::printable::{Age, Printable};

/// Something that happened to a worker, or to the registry as a whole.
///
/// States are episodes: one event for the beginning, one for the end.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let events = registry.subscribe();
/// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
/// let event = events.recv()?;
/// assert_eq!(event.to_string(), "worker mailer-1: registered");
/// assert_eq!(event.worker.unwrap().worker_type, "mailer");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// When, by the wall clock.
    pub at: SystemTime,
    /// The worker; `None` for the registry as a whole.
    pub worker: Option<EventWorker>,
    /// What happened.
    pub kind: EventKind,
}

/// The worker that an [`Event`] is about.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let events = registry.subscribe();
/// let hb = WorkerHeartbeat::builder("mailer").group("machine-7").registry(&registry).start()?;
/// let worker = events.recv()?.worker.expect("it is about a worker");
/// assert_eq!((worker.worker_type.as_str(), worker.group.as_str()), ("mailer", "machine-7"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventWorker {
    /// Its id.
    pub id: String,
    /// Its type.
    pub worker_type: String,
    /// Its group.
    pub group: String,
    /// The number of its life, counted from 1.
    pub incarnation: u32,
}

/// What happened.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{EventKind, MockClock, Registry, WorkerHeartbeat};
///
/// let time = MockClock::new();
/// let registry = Registry::with_clock(time.clock());
/// let events = registry.subscribe();
/// let hb = WorkerHeartbeat::builder("mailer")
///     .stall_after(Duration::from_secs(5))
///     .registry(&registry)
///     .start()?;
/// hb.beat();
/// time.advance(Duration::from_secs(6));
/// let stalls = events.try_iter().filter(|event| match &event.kind {
///     EventKind::Became(health) => health.to_string().starts_with("stalled"),
///     _ => false,
/// });
/// assert_eq!(stalls.count(), 1);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// A worker was registered, or a new incarnation of it began.
    Registered,
    /// It made its first progress.
    Started,
    /// It used three quarters of its allowance: a warning, not a verdict.
    #[non_exhaustive]
    Late {
        /// Time without progress.
        silent: Duration,
        /// Its allowance.
        allowance: Duration,
    },
    /// It makes progress more often than [allowed](crate::Builder::at_most): a warning, not a verdict.
    #[non_exhaustive]
    Racing {
        /// How fast it is.
        rate: Rate,
        /// Its limit.
        at_most: Rate,
    },
    /// It makes progress no more often than allowed again.
    #[non_exhaustive]
    Slowed {
        /// How long it was racing.
        after: Duration,
    },
    /// Its state changed to never started, stalled, overdue, stale, stopping, stopped or dead.
    Became(Health),
    /// The call stack of its thread was read, after it stalled, went stale or never started. The event
    /// of the verdict does not wait for it, and there is none if the stack cannot be read: the
    /// worker's [`Snapshot`](crate::Snapshot) says why.
    #[non_exhaustive]
    StackCaptured {
        /// The stack.
        stack: Arc<CallStack>,
    },
    /// It is well again.
    #[non_exhaustive]
    Recovered {
        /// The state that ended.
        from: State,
        /// How long it was silent; how long its progress stood still, or how long it was at the
        /// task, if it was for that.
        after: Duration,
    },
    /// Its supervisor will restart it.
    #[non_exhaustive]
    Restarting {
        /// The number of this restart, of those that count for the policy.
        attempt: u32,
        /// The wait before it.
        delay: Duration,
    },
    /// Its supervisor has given it up.
    #[non_exhaustive]
    GaveUp {
        /// The number of restarts that count for the policy.
        restarts: u32,
    },
    /// Its life has ended, and one of the workers that are
    /// [linked](crate::Supervisor::linked_to) to it did not end in time. It is left running.
    #[non_exhaustive]
    ChildHung {
        /// The id of the child.
        id: String,
        /// What the child was doing.
        health: Health,
        /// The time that the children had.
        waited: Duration,
    },
    /// It was asked to stop, and has used up its [budget](crate::Builder::drain_within) for that. It
    /// is waited for nevertheless.
    #[non_exhaustive]
    OverBudget {
        /// Time since the request.
        draining: Duration,
        /// Its budget.
        budget: Duration,
    },
    /// The workers were not observed for a while; that time is not charged to them.
    #[non_exhaustive]
    Unobserved {
        /// The time that is not charged.
        forgiven: Duration,
    },
    /// Fewer workers of a type live than are expected.
    Missing(MissingWorkers),
    /// The store can't be reached, or fails. Work continues, and the store is tried again.
    #[non_exhaustive]
    StoreFailing {
        /// The first error.
        error: String,
    },
    /// The store answers again.
    #[non_exhaustive]
    StoreRestored {
        /// The number of failures in between.
        failures: u64,
    },
    /// The store refuses the worker. It is tried again every 10 s.
    #[non_exhaustive]
    Refused {
        /// The reason.
        error: String,
    },
    /// The worker's lease of a run was lost. Not for one that was released, or that ended with its worker
    /// or its attachment.
    #[non_exhaustive]
    LeaseLost {
        /// The run.
        run_id: String,
        /// The number of the claim.
        fence: u64,
        /// Why.
        loss: LeaseLoss,
    },
    /// A task of the worker [failed](crate::TaskGuard::fail). The worker continues.
    #[non_exhaustive]
    TaskFailed {
        /// The run, if it has a name.
        run_id: Option<String>,
        /// The task, if it has a name.
        task: Option<String>,
        /// What went wrong.
        error: String,
    },
    /// All expected workers of a type live again.
    #[non_exhaustive]
    Complete {
        /// The type.
        worker_type: String,
    },
}

impl Event {
    /// The worker's id; empty for the registry as a whole.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe();
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
    /// assert_eq!(events.recv()?.id(), "mailer-1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        self.worker.as_ref().map_or("", |worker| &worker.id)
    }

    /// What a log record has as key-values, with their names.
    pub(crate) fn fields(&self) -> [(&'static str, Option<&str>); 5] {
        let worker = self.worker.as_ref();
        let (state, cause, run) = self.kind.fields();
        [
            ("id", worker.map(|worker| &*worker.id)),
            ("type", worker.map(|worker| &*worker.worker_type)),
            ("state", state),
            ("cause", cause),
            ("run", run),
        ]
    }

    pub(crate) fn level(&self) -> log::Level {
        match &self.kind {
            EventKind::Registered | EventKind::Started => log::Level::Debug,
            EventKind::Became(health) => match health.state() {
                State::Stopping | State::Stopped => log::Level::Info,
                _ => log::Level::Error,
            },
            EventKind::Recovered { .. }
            | EventKind::Slowed { .. }
            | EventKind::Complete { .. }
            | EventKind::StoreRestored { .. } => log::Level::Info,
            EventKind::Late { .. }
            | EventKind::OverBudget { .. }
            | EventKind::Racing { .. }
            | EventKind::StackCaptured { .. }
            | EventKind::Restarting { .. }
            | EventKind::Unobserved { .. }
            | EventKind::Missing(_)
            | EventKind::StoreFailing { .. }
            | EventKind::Refused { .. }
            | EventKind::LeaseLost { .. }
            | EventKind::TaskFailed { .. } => log::Level::Warn,
            EventKind::GaveUp { .. } | EventKind::ChildHung { .. } => log::Level::Error,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(worker) = &self.worker {
            write!(f, "worker {}: ", Printable(&worker.id))?;
        }
        self.kind.fmt(f)
    }
}

impl EventKind {
    /// The state that the worker has got into, the cause, and the run.
    fn fields(&self) -> (Option<&'static str>, Option<&str>, Option<&str>) {
        match self {
            Self::Became(health) => {
                let (cause, run) = match health {
                    Health::Dead { death, .. } => {
                        (Some(death.cause.name()), death.run_id.as_deref())
                    }
                    Health::Stopped { by, .. } => (Some(by.name()), None),
                    Health::Stalled(stalled) => {
                        (Some(stalled.cause.name()), stalled.run_id.as_deref())
                    }
                    Health::Overdue { run_id, .. } => (None, run_id.as_deref()),
                    _ => (None, None),
                };
                (Some(health.state().name()), cause, run)
            }
            Self::TaskFailed { run_id, .. } => (None, None, run_id.as_deref()),
            Self::LeaseLost { run_id, loss, .. } => (None, Some(loss.name()), Some(run_id)),
            _ => (None, None, None),
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered => f.write_str("registered"),
            Self::Started => f.write_str("started"),
            Self::Late { silent, allowance } => write!(
                f,
                "late: no progress for {}, {} allowed",
                Age(*silent),
                Age(*allowance)
            ),
            Self::OverBudget { draining, budget } => write!(
                f,
                "over its budget: draining for {}, {} allowed",
                Age(*draining),
                Age(*budget)
            ),
            Self::Racing { rate, at_most } => f.write_str(&racing_text(*rate, *at_most)),
            Self::Slowed { after } => write!(f, "no longer racing after {}", Age(*after)),
            Self::Became(health) => health.fmt(f),
            Self::StackCaptured { stack } => write!(f, "its thread hangs at {stack}"),
            Self::Recovered { from, after } => {
                write!(f, "recovered from {from} after {}", Age(*after))
            }
            Self::Restarting { attempt, delay } => {
                write!(f, "restart {attempt} in {}", Age(*delay))
            }
            Self::GaveUp { restarts } => write!(f, "given up after {restarts} restarts"),
            Self::ChildHung { id, health, waited } => write!(
                f,
                "its child {} did not end within {} and is left running: {health}",
                Printable(id),
                Age(*waited)
            ),
            Self::Unobserved { forgiven } => write!(
                f,
                "not observed for {}; the time is not charged to any worker",
                Age(*forgiven)
            ),
            Self::Missing(missing) => missing.fmt(f),
            Self::StoreFailing { error } => write!(f, "store failing: {}", Printable(error)),
            Self::Refused { error } => {
                write!(f, "refused by the store: {}", Printable(error))
            }
            Self::StoreRestored { failures: 1 } => f.write_str("store restored after 1 failure"),
            Self::StoreRestored { failures } => {
                write!(f, "store restored after {failures} failures")
            }
            Self::LeaseLost {
                run_id,
                fence,
                loss,
            } => write!(
                f,
                "lease of {} lost (fence {fence}): {loss}",
                Printable(run_id)
            ),
            Self::TaskFailed {
                run_id,
                task,
                error,
            } => {
                write!(f, "task failed: {}", Printable(error))?;
                during(f, run_id.as_deref(), task.as_deref())
            }
            Self::Complete { worker_type } => {
                write!(
                    f,
                    "all expected workers of type {} live",
                    Printable(worker_type)
                )
            }
        }
    }
}
