//! The verdict, and the reason that it carries.

use std::backtrace::Backtrace;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::State;
use crate::sync::printable::{Age, Printable};

/// The verdict on a worker at one moment, with its reason.
///
/// `Display` is a sentence for an operator, `Debug` shows the names of the states and reasons.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Health {
    /// Registered, no progress yet, still within its `startup_grace`. Not recent.
    Starting {
        /// Time since it was registered.
        waited: Duration,
        /// What it is allowed.
        grace: Duration,
    },
    /// No progress within its `startup_grace`. A first beat still recovers it.
    NeverStarted {
        /// Time since it was registered.
        waited: Duration,
        /// What it was allowed.
        grace: Duration,
    },
    /// Well, waiting for work.
    Idle,
    /// Well, at work, with no task named.
    Active,
    /// Well, at a task.
    Processing,
    /// Alive, at work, and without progress for longer than its allowance.
    Stalled(Stalled),
    /// Without a heartbeat for longer than its `stale_after`.
    Stale {
        /// Age of the heartbeat.
        age: Duration,
        /// What is allowed.
        stale_after: Duration,
    },
    /// Nobody has been watching: the pacemaker itself got no time, even when it was woken.
    Unobserved {
        /// Time since the pacemaker's last tick.
        unwatched: Duration,
    },
    /// Asked to stop, finishing its task.
    Stopping,
    /// Ended in good order.
    Stopped {
        /// What ended it.
        by: StopCause,
        /// How long ago.
        ago: Duration,
    },
    /// Ended otherwise.
    Dead {
        /// What is known of its death.
        death: Arc<Death>,
        /// How long ago.
        ago: Duration,
    },
}

impl Health {
    /// The state without its reason.
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
            Self::Stale { .. } => State::Stale,
            Self::Unobserved { .. } => State::Unobserved,
            Self::Stopping => State::Stopping,
            Self::Stopped { .. } => State::Stopped,
            Self::Dead { .. } => State::Dead,
        }
    }

    /// Whether the worker is well: [`State::is_recent`].
    #[must_use]
    pub const fn is_recent(&self) -> bool {
        self.state().is_recent()
    }
}

impl Health {
    /// Why it is so, as a sentence without the state; `None` for the states that need no reason:
    /// idle, active and processing.
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
            Self::Stale { age, stale_after } => write!(
                f,
                "stale: no heartbeat for {}, {} allowed",
                Age(*age),
                Age(*stale_after)
            ),
            Self::Unobserved { unwatched } => write!(
                f,
                "unobserved: nobody has been watching for {}",
                Age(*unwatched)
            ),
            Self::Stopping => f.write_str("stopping: finishing its task"),
            Self::Stopped { by, ago } => {
                write!(f, "stopped: {by}")?;
                since(f, *ago)
            }
            Self::Dead { death, ago } => {
                write!(f, "dead: {}", death.cause)?;
                since(f, *ago)?;
                during(f, death.run_id.as_deref(), death.task.as_deref())?;
                if let Some(restarts) = death.gave_up_after {
                    write!(f, "; gave up after {restarts} restarts")?;
                }
                Ok(())
            }
        }
    }
}

/// How an incarnation ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Ending {
    /// In good order.
    Stopped(StopCause),
    /// Otherwise.
    Dead(Arc<Death>),
}

/// What ended a worker in good order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopCause {
    /// Its own `stop()`.
    Stop,
    /// Its handle was dropped.
    Drop,
    /// Its work came to its end.
    Completed,
    /// Its future was dropped before it was done.
    Cancelled,
    /// A signal to the process.
    Signal(&'static str),
    /// A shutdown that the application asked for.
    Shutdown,
    /// Its supervisor's `shutdown` or `stop`.
    Supervisor,
    /// A store refused it: another incarnation has taken its place.
    Fenced,
    /// Its process ended by itself: `main` returned, or something called
    /// [`std::process::exit`].
    ProcessExit {
        /// The exit status, where it was known beforehand.
        status: Option<i32>,
    },
}

impl StopCause {
    /// The name in snake case, as in stores and metrics; for a signal, its name: `SIGTERM`.
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

    /// What a store keeps beyond the name.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            Self::ProcessExit { status } => status.map(|status| status.to_string()),
            _ => None,
        }
    }

    /// As a store tells it, with what it knows beyond the name; what is not known is a plain stop.
    pub(crate) fn from_name(name: &str, detail: Option<&str>) -> Self {
        const SIGNALS: [&str; 6] = [
            "SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2",
        ];
        match name {
            "drop" => Self::Drop,
            "completed" => Self::Completed,
            "cancelled" => Self::Cancelled,
            "shutdown" => Self::Shutdown,
            "supervisor" => Self::Supervisor,
            "fenced" => Self::Fenced,
            "process_exit" => Self::ProcessExit {
                status: detail.and_then(|status| status.parse().ok()),
            },
            _ => SIGNALS
                .into_iter()
                .find(|signal| *signal == name)
                .map_or(Self::Stop, Self::Signal),
        }
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Death {
    /// Why it died.
    pub cause: DeathCause,
    /// The run that it was at.
    pub run_id: Option<String>,
    /// The task that it was at.
    pub task: Option<String>,
    /// When, by the wall clock.
    pub at: SystemTime,
    /// Set when its supervisor gave it up: after so many restarts.
    pub gave_up_after: Option<u32>,
}

/// Why a worker died.
#[derive(Clone)]
#[non_exhaustive]
pub enum DeathCause {
    /// It panicked; or `main` did, which ended its process.
    Panicked {
        /// The panic message.
        message: String,
        /// File, line and column; `None` if no supervisor's panic hook was there to see it.
        location: Option<String>,
        /// Name of the thread, or its id.
        thread: String,
        /// The call stack; resolved when it is printed, which takes a moment.
        backtrace: Option<Arc<Backtrace>>,
    },
    /// It returned an error, or said that it failed.
    Failed {
        /// The error, as text.
        error: String,
    },
    /// It returned while nobody had asked it to.
    Exited,
    /// Its process was killed by a signal, as the kernel says (told by a store).
    Killed,
    /// Its process is gone and left no word: it was killed, or ended in a way that nothing could
    /// report (told by a store).
    Gone,
    /// A newer incarnation took its place (told by a store).
    Fenced,
    /// It was not heard of any more (told by a store).
    Lost,
}

impl DeathCause {
    /// The name in snake case, as in stores and metrics: `panicked`.
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

    /// As a store tells it, with what it knows beyond the name.
    pub(crate) fn from_name(name: &str, detail: Option<&str>) -> Self {
        match name {
            "panicked" => Self::Panicked {
                message: detail.unwrap_or_default().to_owned(),
                location: None,
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
                // Resolving a call stack takes long, and pages: print the field itself for that.
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
                    // The column helps nobody who reads a log.
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

/// A worker that is alive and makes no progress.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stalled {
    /// What its thread was found doing.
    pub cause: StallCause,
    /// Time without progress.
    pub silent: Duration,
    /// What it is allowed; zero if its thread has ended.
    pub allowance: Duration,
    /// The run that it is at.
    pub run_id: Option<String>,
    /// The task that it is at.
    pub task: Option<String>,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no progress for {}", Age(self.silent))?;
        if self.cause != StallCause::ThreadEnded {
            write!(f, ", {} allowed", Age(self.allowance))?;
        }
        write!(f, "; {}", self.cause)?;
        during(f, self.run_id.as_deref(), self.task.as_deref())
    }
}

/// What the thread of a stalled worker was found doing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum StallCause {
    /// It uses the processor: it spins, or its work takes longer than allowed.
    Busy {
        /// Share of one processor that it used while it was watched, 0 to 100.
        percent: u8,
    },
    /// It waits for something.
    Blocked {
        /// Where in the kernel, such as `futex_wait_queue`, or for what.
        place: Option<String>,
    },
    /// It could run, but the host gives it no processor.
    Starved {
        /// Share of the time that it spent waiting for a processor, 0 to 100.
        percent: u8,
    },
    /// It has ended, and the worker's handle is still there: in an `Arc` or a static, or leaked.
    ThreadEnded,
    /// No evidence: the worker's thread is not known, or this system says nothing.
    Unknown,
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
            Self::Unknown => f.write_str("cause unknown"),
        }
    }
}

/// How long ago it ended, unless that is just now.
fn since(f: &mut fmt::Formatter<'_>, ago: Duration) -> fmt::Result {
    if ago.is_zero() {
        return Ok(());
    }
    write!(f, ", {} ago", Age(ago))
}

/// What it was at, if that has a name.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn death(cause: DeathCause) -> Health {
        Health::Dead {
            death: Arc::new(Death {
                cause,
                run_id: Some("run-123".into()),
                task: None,
                at: SystemTime::UNIX_EPOCH,
                gave_up_after: None,
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
