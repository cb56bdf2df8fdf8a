//! How long workers took to end once they were asked to stop.

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use crate::clock::Moment;
use crate::registry::core::worker_ref::WorkerRef;
use crate::sync::printable::{Age, Printable};

/// The most that a report names.
const MOST: usize = 1_000;

/// A worker that ended after it was asked to stop, and how long it took.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let supervisor = Supervisor::new(Registry::global());
/// let indexer = WorkerHeartbeat::builder("indexer").drain_within(Duration::from_secs(5));
/// supervisor.spawn(indexer.id("indexer-1"), |hb| Ok(hb.stop_receiver().recv()?))?;
/// let report = supervisor.shutdown(Duration::from_secs(10));
/// let indexer = &report.drained[0];
/// println!("{indexer}"); // indexer-1 (1 ms, 5 s allowed)
/// assert!(!indexer.is_over_budget());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainedWorker {
    /// Its id.
    pub id: String,
    /// The time from the request to its end, without time that was not observed.
    pub took: Duration,
    /// Its [budget](crate::Builder::drain_within), if it has one.
    pub budget: Option<Duration>,
}

impl DrainedWorker {
    /// `None` if it was not asked to stop, or ended before this moment.
    fn of(worker: &WorkerRef, since: Moment) -> Option<Self> {
        let record = &worker.record;
        let ended = record.ended().filter(|ended| ended.at >= since)?;
        Some(Self {
            took: ended.drained?,
            id: record.id().to_owned(),
            budget: record.profile.drain_within,
        })
    }

    /// Those of these workers, the longest first; those that took longer than their budget before the
    /// others. At most 1000.
    pub(crate) fn among<'a>(
        workers: impl IntoIterator<Item = (&'a WorkerRef, Moment)>,
    ) -> Vec<Self> {
        let workers = workers.into_iter();
        let mut drained: Vec<_> = workers
            .filter_map(|(worker, since)| Self::of(worker, since))
            .collect();
        drained.sort_by_key(|worker| Reverse((worker.is_over_budget(), worker.took)));
        drained.truncate(MOST);
        drained
    }

    /// Whether it took longer than its budget.
    #[must_use]
    pub fn is_over_budget(&self) -> bool {
        self.budget.is_some_and(|budget| self.took > budget)
    }
}

impl fmt::Display for DrainedWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", Printable(&self.id), Age(self.took))?;
        if let Some(budget) = self.budget {
            write!(f, ", {} allowed", Age(budget))?;
        }
        f.write_str(")")
    }
}
