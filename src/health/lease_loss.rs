//! Why a lease is not held any more.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Ending;
use crate::sync::printable::{Age, Printable};

/// Why a [lease](crate::Lease) is not held any more. Final: a lease that was lost does not come back.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{FleetConfig, LeaseLoss, MemoryStore, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// registry.attach(MemoryStore::new(), FleetConfig::new())?;
/// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
/// let lease = hb.claim("run-123", Duration::from_secs(60))?.expect("the run is free");
/// assert!(lease.loss().is_none());
/// hb.fail("disk full");
/// let loss = lease.loss().expect("it ends with its worker");
/// assert!(matches!(loss, LeaseLoss::WorkerEnded { .. }));
/// assert_eq!(loss.to_string(), "its worker has ended: failed: disk full");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LeaseLoss {
    /// It was not renewed in time: the store did not answer, or the process did not run.
    #[non_exhaustive]
    Expired {
        /// Time since the last renewal was sent.
        unrenewed: Duration,
        /// The latest error, if the store fails.
        error: Option<Arc<str>>,
    },
    /// The store has not accepted a heartbeat of the worker for about `stale_after`, so that a sweep may
    /// have released the run.
    #[non_exhaustive]
    Unheard {
        /// Age of the last heartbeat that the store has accepted.
        unheard: Duration,
        /// The latest error, if the store fails.
        error: Option<Arc<str>>,
    },
    /// The store says that the worker does not hold the run: it expired there, another worker has it, or
    /// its record was deleted.
    Revoked,
    /// Another process has registered the worker's id.
    Superseded,
    /// A sweep marked the worker offline, and released its runs.
    MarkedOffline,
    /// The store does not know the worker: its record was deleted.
    Forgotten,
    /// The numbers of the store went back, as after a failover to a copy that lags: it may have given the
    /// run to another worker.
    NumbersWentBack,
    /// The worker stopped or died.
    #[non_exhaustive]
    WorkerEnded {
        /// How, unless its next incarnation has begun.
        ending: Option<Ending>,
    },
    /// The [attachment](crate::Attachment) has ended.
    Detached,
    /// It was released, or dropped.
    Released,
}

impl LeaseLoss {
    /// The name in snake case, as in log records: `marked_offline`.
    ///
    /// ```
    /// use worker_heartbeat::LeaseLoss;
    ///
    /// assert_eq!(LeaseLoss::Revoked.name(), "revoked");
    /// ```
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired",
            Self::Unheard { .. } => "unheard",
            Self::Revoked => "revoked",
            Self::Superseded => "superseded",
            Self::MarkedOffline => "marked_offline",
            Self::Forgotten => "forgotten",
            Self::NumbersWentBack => "numbers_went_back",
            Self::WorkerEnded { .. } => "worker_ended",
            Self::Detached => "detached",
            Self::Released => "released",
        }
    }

    /// Whether the application did not ask for it, and no other event reports it.
    pub(crate) const fn is_unasked(&self) -> bool {
        !matches!(
            self,
            Self::WorkerEnded { .. } | Self::Detached | Self::Released
        )
    }

    /// Whether the store may still have the run down as this lease's.
    pub(crate) const fn may_be_stored(&self) -> bool {
        matches!(
            self,
            Self::Expired { .. }
                | Self::Unheard { .. }
                | Self::WorkerEnded { .. }
                | Self::Detached
                | Self::Released
        )
    }

    /// Adds the error of a store that fails, where it explains the loss.
    pub(crate) fn set_error(&mut self, latest: impl FnOnce() -> Option<String>) {
        if let Self::Expired { error, .. } | Self::Unheard { error, .. } = self {
            *error = latest().map(Into::into);
        }
    }
}

impl fmt::Display for LeaseLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { unrenewed, error } => {
                write!(f, "not renewed for {}", Age(*unrenewed))?;
                store_fails(f, error.as_deref())
            }
            Self::Unheard { unheard, error } => {
                write!(
                    f,
                    "the store has accepted no heartbeat of its worker for {}",
                    Age(*unheard)
                )?;
                store_fails(f, error.as_deref())
            }
            Self::Revoked => f.write_str("the store says that its worker does not hold it"),
            Self::Superseded => f.write_str("another process has registered the id of its worker"),
            Self::MarkedOffline => f.write_str("a sweep marked its worker offline"),
            Self::Forgotten => f.write_str("the store does not know its worker"),
            Self::NumbersWentBack => f.write_str("the numbers of the store went back"),
            Self::WorkerEnded { ending } => {
                f.write_str("its worker has ended")?;
                match ending {
                    Some(Ending::Stopped(cause)) => write!(f, ": stopped: {cause}"),
                    Some(Ending::Dead(death)) => write!(f, ": {}", death.cause),
                    None => Ok(()),
                }
            }
            Self::Detached => f.write_str("the attachment to the store has ended"),
            Self::Released => f.write_str("released"),
        }
    }
}

/// So that `?` can pass it on.
impl Error for LeaseLoss {}

fn store_fails(f: &mut fmt::Formatter<'_>, error: Option<&str>) -> fmt::Result {
    match error {
        Some(error) => write!(f, "; the store fails: {}", Printable(error)),
        None => Ok(()),
    }
}
