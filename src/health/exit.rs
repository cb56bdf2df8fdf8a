//! How supervised work ended.

use std::fmt;
use std::sync::Arc;

use super::Death;
use crate::sync::printable::Printable;

/// How supervised work ended, after its last life.
///
/// ```
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let supervisor = Supervisor::new(&Registry::new());
/// let import = WorkerHeartbeat::builder("import").finite();
/// let import = supervisor.spawn(import, |_| Err("disk full".into()))?;
/// let exit = import.join();
/// assert_eq!(exit.to_string(), "failed: disk full");
/// let error = exit.into_result().unwrap_err();
/// assert_eq!(error.to_string(), "supervised work did not complete: failed: disk full");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// It returned without an error.
    Completed,
    /// It returned an error, and was not started again.
    #[non_exhaustive]
    Failed {
        /// The error, as text.
        error: String,
    },
    /// It panicked, and was not started again.
    #[non_exhaustive]
    Panicked {
        /// The panic message.
        message: String,
        /// File, line and column.
        location: Option<String>,
    },
    /// It ended too often, and was given up.
    #[non_exhaustive]
    GaveUp {
        /// The restarts that count for the policy; see [`Restart`](crate::Restart#what-counts).
        restarts: u32,
        /// Its last death.
        death: Option<Arc<Death>>,
    },
    /// Its future was dropped before it was done.
    Cancelled,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Failed { error } => write!(f, "failed: {}", Printable(error)),
            Self::Panicked { message, location } => {
                f.write_str("panicked")?;
                if let Some(location) = location {
                    write!(f, " at {}", Printable(location))?;
                }
                write!(f, ": {}", Printable(message))
            }
            Self::GaveUp { restarts, death } => {
                write!(f, "given up after {restarts} restarts")?;
                match death {
                    Some(death) => write!(f, ": {}", death.cause),
                    None => Ok(()),
                }
            }
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}
