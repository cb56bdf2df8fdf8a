//! The report of a shutdown.

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use super::Signal;
use crate::registry::at_exit;
use crate::registry::core::escalation::Escalation;
use crate::supervisor::{DeadWorker, DrainedWorker, HungWorker};
use crate::sync::printable::Printable;

/// What began a shutdown.
///
/// ```
/// use worker_heartbeat::{ShutdownCause, Signal};
///
/// assert_eq!(ShutdownCause::Signal(Signal::Terminate).to_string(), "SIGTERM");
/// assert_eq!(ShutdownCause::Triggered.to_string(), "the application");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShutdownCause {
    /// A signal to the process.
    Signal(Signal),
    /// [`Shutdown::trigger`](crate::Shutdown::trigger).
    Triggered,
    /// A [`Trigger`](crate::Trigger): the exit status is 1.
    Escalated(Escalation),
    /// This [file](crate::ShutdownBuilder::on_file) appeared, or was touched.
    File(&'static str),
}

impl ShutdownCause {
    /// Whether it is a fault by itself, however clean the shutdown is.
    pub(super) const fn is_fault(&self) -> bool {
        matches!(self, Self::Escalated(_))
    }
}

impl fmt::Display for ShutdownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::Triggered => f.write_str("the application"),
            Self::Escalated(escalation) => write!(f, "a trigger ({escalation})"),
            Self::File(path) => write!(f, "file {}", Printable(path)),
        }
    }
}

/// The result of a shutdown. Returned from `main`, it is the exit status: 0 if it was clean, no
/// worker had been given up, and no [`Trigger`](crate::Trigger) began it; 1 otherwise.
///
/// [`Display`](fmt::Display) gives one sentence with everything that was not clean and with the workers
/// that died.
///
/// ```no_run
/// use worker_heartbeat::{Shutdown, ShutdownReport};
///
/// fn main() -> Result<ShutdownReport, worker_heartbeat::Error> {
///     let shutdown = Shutdown::builder().install()?;
///     // work, on other threads
///     Ok(shutdown.wait())
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// What began it.
    pub cause: ShutdownCause,
    /// Workers that did not end in time. If there are any, no cleanup was run.
    pub hung: Vec<HungWorker>,
    /// Ids of workers that ended while idle and whose supervised work had not returned at the time of
    /// the report. It may still use what the cleanups closed. The report can be clean nevertheless.
    pub unreturned: Vec<String>,
    /// Workers that died in time: they panicked or failed after they were asked to stop. The report can
    /// be clean nevertheless.
    pub died: Vec<DeadWorker>,
    /// Workers that their supervisor had given up, and that were not started again by the time of the
    /// report. The report can be clean nevertheless, but the exit status is 1.
    pub gave_up: Vec<DeadWorker>,
    /// How long the workers that ended took, the longest first, and before them those that took longer
    /// than their [budget](crate::Builder::drain_within). At most 1000. The report can be clean
    /// nevertheless.
    pub drained: Vec<DrainedWorker>,
    /// All cleanups, in the order in which they ran or would have run.
    pub cleanups: Vec<CleanupReport>,
    /// How long it took.
    pub took: Duration,
}

/// The result of a cleanup.
///
/// ```
/// use worker_heartbeat::{CleanupState, Shutdown};
///
/// let shutdown = Shutdown::builder()
///     .cleanup("close the database", || panic!("no connection"))
///     .install()?;
/// shutdown.trigger();
/// let report = shutdown.wait();
/// let cleanup = &report.cleanups[0];
/// assert_eq!(cleanup.state, CleanupState::Panicked);
/// assert_eq!(cleanup.panic.as_deref(), Some("no connection"));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CleanupReport {
    /// Its name.
    pub name: String,
    /// Its state at the time of the report.
    pub state: CleanupState,
    /// The message of its panic, if it panicked.
    pub panic: Option<String>,
}

/// The state of a cleanup at the time of the report.
///
/// ```
/// use worker_heartbeat::{CleanupState, Shutdown};
///
/// let shutdown = Shutdown::builder().cleanup("close the database", || ()).install()?;
/// shutdown.trigger();
/// assert_eq!(shutdown.wait().cleanups[0].state, CleanupState::Completed);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CleanupState {
    /// It ran to its end.
    Completed,
    /// It panicked.
    Panicked,
    /// It had not ended. It is left running: a thread can't be killed.
    Running,
    /// It did not run: the timeout passed before, or workers hung.
    NotRun,
}

impl fmt::Display for CleanupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "completed",
            Self::Panicked => "panicked",
            Self::Running => "running",
            Self::NotRun => "not run",
        })
    }
}

impl CleanupReport {
    pub(super) const fn new(name: String, state: CleanupState) -> Self {
        Self {
            name,
            state,
            panic: None,
        }
    }

    /// Whether it ran to its end.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.state == CleanupState::Completed
    }
}

impl fmt::Display for CleanupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cleanup {:?} ", self.name)?;
        match (self.state, &self.panic) {
            (CleanupState::Running, _) => f.write_str("is still running"),
            (CleanupState::NotRun, _) => f.write_str("was not run"),
            (state, Some(message)) => write!(f, "{state}: {}", Printable(message)),
            (state, None) => state.fmt(f),
        }
    }
}

impl ShutdownReport {
    /// Whether every worker ended in time and every cleanup ran to its end.
    ///
    /// ```
    /// use worker_heartbeat::Shutdown;
    ///
    /// let shutdown = Shutdown::builder().cleanup("close the database", || ()).install()?;
    /// shutdown.trigger();
    /// let report = shutdown.wait();
    /// assert!(report.is_clean(), "{report}");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.hung.is_empty() && self.cleanups.iter().all(CleanupReport::is_clean)
    }

    /// The exit status: 0 if it was clean, no worker had been given up, and no
    /// [`Trigger`](crate::Trigger) began it; 1 otherwise.
    ///
    /// ```no_run
    /// use std::process::ExitCode;
    /// use worker_heartbeat::Shutdown;
    ///
    /// fn main() -> Result<ExitCode, worker_heartbeat::Error> {
    ///     let shutdown = Shutdown::builder().install()?;
    ///     // work, on other threads
    ///     Ok(shutdown.wait().exit_code())
    /// }
    /// ```
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.is_success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    pub(super) fn is_success(&self) -> bool {
        self.is_clean() && self.gave_up.is_empty() && !self.cause.is_fault()
    }

    /// Whether something had not ended at the time of the report.
    pub(super) fn is_late(&self) -> bool {
        let late = |cleanup: &CleanupReport| {
            matches!(cleanup.state, CleanupState::Running | CleanupState::NotRun)
        };
        !self.hung.is_empty() || self.cleanups.iter().any(late)
    }

    /// Everything that was not clean; empty if it is clean.
    pub(super) fn faults(&self) -> String {
        let mut faults = Vec::new();
        if !self.hung.is_empty() {
            let hung = self.hung.iter().map(ToString::to_string);
            let hung = hung.collect::<Vec<_>>().join(", ");
            faults.push(format!("still at work: {hung}"));
        }
        let unclean = self.cleanups.iter().filter(|cleanup| !cleanup.is_clean());
        faults.extend(unclean.map(ToString::to_string));
        faults.join("; ")
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clean = if self.is_clean() {
            "clean"
        } else {
            "not clean"
        };
        write!(
            f,
            "shutdown by {}, {clean}, took {:.1?}",
            self.cause, self.took
        )?;
        let named = |what: &str, workers: Vec<String>| {
            (!workers.is_empty()).then(|| format!("{what}: {}", workers.join(", ")))
        };
        let dead = |workers: &[DeadWorker]| workers.iter().map(ToString::to_string).collect();
        let over = self.drained.iter().filter(|one| one.is_over_budget());
        let left = &self.unreturned;
        let left =
            (!left.is_empty()).then(|| format!("not returned: {}", Printable(&left.join(", "))));
        let faults = Some(self.faults()).filter(|faults| !faults.is_empty());
        let parts: Vec<_> = [
            faults,
            left,
            named("over budget", over.map(ToString::to_string).collect()),
            named("died", dead(&self.died)),
            named("given up before", dead(&self.gave_up)),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", parts.join("; "))
    }
}

impl From<ShutdownReport> for ExitCode {
    fn from(report: ShutdownReport) -> Self {
        report.exit_code()
    }
}

impl Termination for ShutdownReport {
    fn report(self) -> ExitCode {
        at_exit::main_returns(i32::from(!self.is_success()));
        self.exit_code()
    }
}
