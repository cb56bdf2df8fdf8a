//! What identifies an incarnation and a lease.

use std::fmt;

/// One incarnation of a worker in a store. Every write names it, so that a store can refuse writes
/// of an older incarnation.
///
/// ```
/// use worker_heartbeat::fleet::WorkerKey;
///
/// let key = WorkerKey::new("indexer-1", 7);
/// assert!(key < WorkerKey::new("indexer-1", 8));
/// assert_eq!(key.to_string(), "indexer-1#7");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct WorkerKey {
    /// The id that the store assigned.
    pub id: String,
    /// Higher with every registration.
    pub incarnation: u64,
}

impl WorkerKey {
    /// This incarnation of this id.
    #[must_use]
    pub fn new(id: impl Into<String>, incarnation: u64) -> Self {
        let id = id.into();
        Self { id, incarnation }
    }
}

impl fmt::Display for WorkerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}#{}",
            crate::sync::printable::Printable(&self.id),
            self.incarnation
        )
    }
}

/// One lease in a store: one claim of a run.
///
/// ```
/// use worker_heartbeat::fleet::{LeaseKey, WorkerKey};
///
/// let lease = LeaseKey::new(WorkerKey::new("indexer-1", 7), "run-123", 8);
/// assert_eq!(lease.worker.id, "indexer-1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LeaseKey {
    /// The worker that claimed the run.
    pub worker: WorkerKey,
    /// The run.
    pub run_id: String,
    /// The number of the claim, higher than that of every earlier claim.
    pub fence: u64,
}

impl LeaseKey {
    /// The lease that this claim was granted.
    #[must_use]
    pub fn new(worker: WorkerKey, run_id: impl Into<String>, fence: u64) -> Self {
        let run_id = run_id.into();
        Self {
            worker,
            run_id,
            fence,
        }
    }
}
