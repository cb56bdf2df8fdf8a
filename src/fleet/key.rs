//! What every write carries.

use std::fmt;

/// One incarnation of a worker, as a store knows it: every write carries it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerKey {
    /// The id that the store assigned.
    pub id: String,
    /// Higher with every registration.
    pub incarnation: u64,
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

/// One lease, as a store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseKey {
    /// Whose it is.
    pub worker: WorkerKey,
    /// The run.
    pub run_id: String,
    /// The number of the claim.
    pub fence: u64,
}
