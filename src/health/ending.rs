//! How an incarnation ended, and why.

use std::backtrace::Backtrace;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::SourceLocation;
use crate::sync::printable::Printable;

/// How an incarnation ended.
///
/// ```
/// use worker_heartbeat::{Ending, StopCause};
///
/// let ending = Ending::Stopped(StopCause::Completed);
/// match &ending {
///     Ending::Stopped(cause) => println!("stopped: {cause}"), // stopped: completed
///     Ending::Dead(death) => println!("dead: {}", death.cause),
///     other => println!("{other:?}"),
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Ending {
    /// As intended.
    Stopped(StopCause),
    /// Otherwise.
    Dead(Arc<Death>),
}

/// What stopped a worker.
///
/// ```
/// use worker_heartbeat::{Health, StopCause, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer").start()?;
/// let probe = hb.probe();
/// drop(hb);
/// assert!(matches!(probe.health(), Health::Stopped { by: StopCause::Drop, .. }));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopCause {
    /// Its own `stop()`.
    Stop,
    /// Its handle was dropped.
    Drop,
    /// Its work completed.
    Completed,
    /// Its future was dropped before it was done.
    Cancelled,
    /// The process received a signal.
    Signal(&'static str),
    /// The application requested a shutdown.
    Shutdown,
    /// Its supervisor's `shutdown` or `stop`.
    Supervisor,
    /// A store refused it: a newer incarnation has taken its place.
    Fenced,
    /// Its process ended by itself: `main` returned, or something called
    /// [`std::process::exit`].
    ProcessExit {
        /// The exit status, where it was known in advance.
        status: Option<i32>,
    },
}

impl StopCause {
    /// The name in snake case, as in stores and metrics; for a signal, its name: `SIGTERM`.
    ///
    /// ```
    /// use worker_heartbeat::StopCause;
    ///
    /// assert_eq!(StopCause::Completed.name(), "completed");
    /// assert_eq!(StopCause::Signal("SIGTERM").name(), "SIGTERM");
    /// ```
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Drop => "drop",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Signal(name) => name,
            Self::Shutdown => "shutdown",
            Self::Supervisor => "supervisor",
            Self::Fenced => "fenced",
            Self::ProcessExit { .. } => "process_exit",
        }
    }

    /// What a store keeps besides the name.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            Self::ProcessExit { status } => status.map(|status| status.to_string()),
            _ => None,
        }
    }

    /// As stored. An unknown name is a plain stop.
    pub(crate) fn from_name(name: &str, detail: Option<&str>) -> Self {
        const SIGNALS: [&str; 6] = [
            "SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2",
        ];
        let status = detail.and_then(|status| status.parse().ok());
        let causes = [
            Self::Drop,
            Self::Completed,
            Self::Cancelled,
            Self::Shutdown,
            Self::Supervisor,
            Self::Fenced,
            Self::ProcessExit { status },
        ];
        let mut causes = causes.into_iter().chain(SIGNALS.map(Self::Signal));
        causes
            .find(|cause| cause.name() == name)
            .unwrap_or(Self::Stop)
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "by stop()",
            Self::Drop => "its handle was dropped",
            Self::Completed => "completed",
            Self::Cancelled => "its future was cancelled",
            Self::Signal(name) => return write!(f, "by {name}"),
            Self::Shutdown => "by shutdown",
            Self::Supervisor => "by its supervisor",
            Self::Fenced => "another incarnation has taken its place",
            Self::ProcessExit { status: None } => "its process ended",
            Self::ProcessExit {
                status: Some(status),
            } => return write!(f, "its process ended with status {status}"),
        })
    }
}

/// What is known of a worker's death.
///
/// ```
/// use worker_heartbeat::{Health, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer").start()?;
/// let _task = hb.begin_task("run-123", "sending");
/// hb.fail("disk full");
/// let Health::Dead { death, .. } = hb.health() else {
///     unreachable!("it failed");
/// };
/// assert_eq!(death.cause.to_string(), "failed: disk full");
/// assert_eq!(death.run_id.as_deref(), Some("run-123"));
/// assert_eq!(death.task.as_deref(), Some("sending"));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Death {
    /// Why it died.
    pub cause: DeathCause,
    /// The run that it was working on.
    pub run_id: Option<String>,
    /// The task that it was working on.
    pub task: Option<String>,
    /// Where it last reported, other than by a mere beat; for a worker that was ended by its
    /// [`fail`](crate::WorkerHeartbeat::fail), the place of that call.
    pub last_location: Option<SourceLocation>,
    /// When, by the wall clock.
    pub at: SystemTime,
    /// The number of restarts after which its supervisor gave it up; `None` if it did not.
    pub gave_up_after: Option<u32>,
    /// For a death that was found from outside (killed, gone, fenced, lost): how long the worker had
    /// not been heard of when it was found. [`at`](Self::at) is when it was found. `None` if its
    /// process reported the death.
    pub unheard_for: Option<Duration>,
}

/// Why a worker died.
///
/// ```
/// use worker_heartbeat::{DeathCause, Health, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("importer").start()?;
/// let result = hb.run(|| {
///     let lines: [&str; 0] = [];
///     lines.len() - 1
/// });
/// assert!(result.is_err());
/// let Health::Dead { death, .. } = hb.health() else {
///     unreachable!("it panicked");
/// };
/// if let DeathCause::Panicked { message, location: Some(location), .. } = &death.cause {
///     println!("{message}, at {location}"); // attempt to subtract with overflow, at src/main.rs:6:5
/// }
/// # assert!(matches!(death.cause, DeathCause::Panicked { .. }));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum DeathCause {
    /// It panicked; or `main` did, which ended its process.
    Panicked {
        /// The panic message.
        message: String,
        /// File, line and column; `None` if no panic hook of a supervisor was installed.
        location: Option<String>,
        /// Name of the thread, or its id.
        thread: String,
        /// The call stack; resolved when it is printed, which takes time.
        backtrace: Option<Arc<Backtrace>>,
    },
    /// It returned an error, or reported a failure.
    Failed {
        /// The error, as text.
        error: String,
    },
    /// It returned without being asked to.
    Exited,
    /// Its process was killed by a signal, according to the kernel (from a store).
    Killed,
    /// Its process is gone without a report: it was killed, or ended in a way that leaves no time for
    /// one (from a store).
    Gone,
    /// A newer incarnation took its place (from a store).
    Fenced,
    /// Its heartbeat stopped (from a store).
    Lost,
}

impl DeathCause {
    /// The name in snake case, as in stores and metrics: `panicked`.
    ///
    /// ```
    /// use worker_heartbeat::DeathCause;
    ///
    /// assert_eq!(DeathCause::Exited.name(), "exited");
    /// assert_eq!(DeathCause::Failed { error: "disk full".into() }.name(), "failed");
    /// ```
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Panicked { .. } => "panicked",
            Self::Failed { .. } => "failed",
            Self::Exited => "exited",
            Self::Killed => "killed",
            Self::Gone => "gone",
            Self::Fenced => "fenced",
            Self::Lost => "lost",
        }
    }

    /// Whether it has a text of its own, so that a sentence need not say where it happened.
    pub(super) const fn is_explained(&self) -> bool {
        matches!(self, Self::Panicked { .. } | Self::Failed { .. })
    }

    /// What a store keeps besides the name: the message, and the location of a panic.
    pub(crate) fn detail(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Self::Panicked {
                message, location, ..
            } => (Some(message), location.as_deref()),
            Self::Failed { error } => (Some(error), None),
            _ => (None, None),
        }
    }

    /// As stored. An unknown name is a failure.
    pub(crate) fn from_name(name: &str, detail: Option<&str>, location: Option<&str>) -> Self {
        match name {
            "panicked" => Self::Panicked {
                message: detail.unwrap_or_default().to_owned(),
                location: location.map(str::to_owned),
                thread: String::new(),
                backtrace: None,
            },
            "exited" => Self::Exited,
            "killed" => Self::Killed,
            "gone" => Self::Gone,
            "fenced" => Self::Fenced,
            "lost" => Self::Lost,
            _ => Self::Failed {
                error: detail.unwrap_or(name).to_owned(),
            },
        }
    }
}

impl fmt::Debug for DeathCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked {
                message,
                location,
                thread,
                backtrace,
            } => f
                .debug_struct("Panicked")
                .field("message", message)
                .field("location", location)
                .field("thread", thread)
                // A resolved call stack is slow, and pages long: print the field itself for it.
                .field("backtrace", &backtrace.as_ref().map(|b| b.status()))
                .finish(),
            Self::Failed { error } => f.debug_struct("Failed").field("error", error).finish(),
            Self::Exited => f.write_str("Exited"),
            Self::Killed => f.write_str("Killed"),
            Self::Gone => f.write_str("Gone"),
            Self::Fenced => f.write_str("Fenced"),
            Self::Lost => f.write_str("Lost"),
        }
    }
}

impl fmt::Display for DeathCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked {
                message, location, ..
            } => {
                f.write_str("panicked")?;
                if let Some(location) = location {
                    // Without the column, which adds nothing in a log.
                    let place = match location.rsplit_once(':') {
                        Some((place, _)) if place.contains(':') => place,
                        _ => location,
                    };
                    write!(f, " at {}", Printable(place))?;
                }
                write!(f, ": {}", Printable(message))
            }
            Self::Failed { error } => write!(f, "failed: {}", Printable(error)),
            Self::Exited => f.write_str("returned while not asked to"),
            Self::Killed => f.write_str("its process was killed"),
            Self::Gone => f.write_str("its process is gone"),
            Self::Fenced => f.write_str("fenced: a newer incarnation took its place"),
            Self::Lost => f.write_str("lost: not heard of any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;

    fn death(cause: DeathCause) -> Health {
        Health::Dead {
            death: Arc::new(Death {
                cause,
                run_id: Some("run-123".into()),
                task: None,
                last_location: None,
                at: SystemTime::UNIX_EPOCH,
                gave_up_after: None,
                unheard_for: None,
            }),
            ago: Duration::from_secs(3),
        }
    }

    #[test]
    fn a_death_reads_as_a_sentence() {
        let health = death(DeathCause::Panicked {
            message: "no module named server".into(),
            location: Some("src/jobs.rs:19:5".into()),
            thread: "jobs".into(),
            backtrace: None,
        });
        assert_eq!(
            health.to_string(),
            "dead: panicked at src/jobs.rs:19: no module named server, 3 s ago, during run-123"
        );
        let debug = format!("{health:?}");
        for name in [
            "Dead",
            "Panicked",
            "message",
            "location",
            "thread",
            "backtrace",
        ] {
            assert!(debug.contains(name), "{name} in {debug}");
        }
    }

    #[test]
    fn texts_from_outside_stay_on_one_line() {
        let health = death(DeathCause::Failed {
            error: "first\nsecond\u{1b}[2J".into(),
        });
        assert_eq!(
            health.to_string(),
            "dead: failed: first\\nsecond\\u{1b}[2J, 3 s ago, during run-123"
        );
    }
}
