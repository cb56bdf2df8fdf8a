//! How long workers take to end once they were asked to stop, and which take longer than their budget.

use std::time::Duration;

use parking_lot::Mutex;

use super::counts::Count;
use super::worker_ref::WorkerRef;
use crate::cell::CellKey;
use crate::clock::{Moment, nanos};

/// The upper bounds of the buckets, in milliseconds.
const BOUNDS: [u64; 11] = [
    10, 50, 100, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000,
];

/// Counts drains by their length.
#[derive(Debug, Default)]
pub(crate) struct DrainCounts {
    /// The last one is beyond all bounds.
    buckets: [Count; BOUNDS.len() + 1],
    sum_nanos: Count,
    pub over_budget: Count,
}

/// How long the drains of a type's workers took.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let supervisor = Supervisor::new(&registry);
/// supervisor.spawn(WorkerHeartbeat::builder("listener"), |hb| Ok(hb.stop_receiver().recv()?))?;
/// supervisor.shutdown(Duration::from_secs(10));
/// let drains = &registry.counters().by_type["listener"].drains;
/// assert_eq!(drains.count, 1);
/// let (longest, count) = drains.buckets.last().expect("there are bounds");
/// assert_eq!((*longest, *count), (Duration::from_secs(300), 1));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drains {
    /// The number of drains: workers that were asked to stop, and ended.
    pub count: u64,
    /// How long they took in total.
    pub sum: Duration,
    /// How many took at most this long, for each bound. They are cumulative, as in Prometheus.
    pub buckets: Vec<(Duration, u64)>,
    /// How many took longer than their [budget](crate::Builder::drain_within), counted when it was
    /// over.
    pub over_budget: u64,
}

impl DrainCounts {
    pub(in crate::registry::core) fn note(&self, took: Duration) {
        let bound = |millis: &u64| took <= Duration::from_millis(*millis);
        let place = BOUNDS.iter().position(bound).unwrap_or(BOUNDS.len());
        self.buckets[place].add(1);
        self.sum_nanos.add(nanos(took));
    }

    pub(crate) fn read(&self) -> Drains {
        let mut count = 0;
        let mut up_to = |bucket: &Count| {
            count += bucket.get();
            count
        };
        let bounds = BOUNDS.iter().zip(&self.buckets);
        let buckets =
            bounds.map(|(millis, bucket)| (Duration::from_millis(*millis), up_to(bucket)));
        Drains {
            buckets: buckets.collect(),
            count: self.buckets.iter().map(Count::get).sum(),
            sum: Duration::from_nanos(self.sum_nanos.get()),
            over_budget: self.over_budget.get(),
        }
    }
}

/// Workers with a budget that were asked to stop, until they end or their budget is over.
#[derive(Debug, Default)]
pub(crate) struct Draining(Mutex<Vec<Drain>>);

#[derive(Debug)]
struct Drain {
    due: Moment,
    key: CellKey,
    worker: WorkerRef,
}

impl Draining {
    /// Adds a worker that was asked to stop now, if it has a budget and has not ended.
    pub(super) fn add(&self, worker: &WorkerRef, now: Moment) {
        if let Some(budget) = worker.record.profile.drain_within {
            if !worker.record.is_over() {
                self.0.lock().push(Drain {
                    due: now.after(budget),
                    key: worker.record.cell_key(),
                    worker: worker.clone(),
                });
            }
        }
    }

    /// The workers whose budget is over, each once, and when the next one will be.
    pub(crate) fn take_over_budget(&self, now: Moment) -> (Vec<(WorkerRef, CellKey)>, Moment) {
        let mut draining = self.0.lock();
        if draining.is_empty() {
            return (Vec::new(), Moment::NEVER);
        }
        let mut over = Vec::new();
        draining.retain(|drain| {
            if drain.worker.record.is_over() {
                return false;
            }
            let late = now > drain.due;
            if late {
                over.push((drain.worker.clone(), drain.key));
            }
            !late
        });
        let next = draining.iter().map(|drain| drain.due).min();
        (over, next.map_or(Moment::NEVER, |due| due.after_nanos(1)))
    }
}
