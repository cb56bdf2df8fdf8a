//! How a shutdown went.

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use super::Signal;
use crate::supervisor::HungWorker;

/// What began a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShutdownCause {
    /// A signal to the process.
    Signal(Signal),
    /// [`Shutdown::trigger`](crate::Shutdown::trigger).
    Triggered,
}

impl fmt::Display for ShutdownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::Triggered => f.write_str("the application"),
        }
    }
}

/// How a shutdown went. Returned from `main`, it is the process's exit status: 0 if it was clean, 1
/// otherwise.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// What began it.
    pub cause: ShutdownCause,
    /// Workers that did not end in time. If there are any, no cleanup was run.
    pub hung: Vec<HungWorker>,
    /// The cleanups that were run, in that order.
    pub cleanups: Vec<CleanupReport>,
    /// How long it took.
    pub took: Duration,
}

/// How a cleanup went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CleanupReport {
    /// Its name.
    pub name: String,
    /// The message of its panic, if it panicked.
    pub panic: Option<String>,
}

impl ShutdownReport {
    /// Whether every worker ended in time and every cleanup ran to its end.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.hung.is_empty() && self.cleanups.iter().all(|cleanup| cleanup.panic.is_none())
    }

    /// The exit status: 0 if it was clean, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.is_clean() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl From<ShutdownReport> for ExitCode {
    fn from(report: ShutdownReport) -> Self {
        report.exit_code()
    }
}

impl Termination for ShutdownReport {
    fn report(self) -> ExitCode {
        self.exit_code()
    }
}
