//! The one trait of all stores, and what is said between them and their users.
//!
//! No clock is compared with another: what goes over this border are ages, never times. Each store
//! decides by its own clock.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::host::ProcessIdentity;
pub use super::key::{LeaseKey, WorkerKey};
use super::stored::StoredWorker;
use crate::error::Error;
use crate::health::{Ending, State, Summary, SweepReport, Thresholds};

/// Where heartbeats go beyond the process.
///
/// Blocking; every call has a time limit of its own. Object-safe, and shared between threads: the
/// uploader's, the sweeper's, and those of workers that claim runs.
///
/// What each call has to do is tested by [`conformance`](super::conformance) (feature `test-util`).
pub trait HeartbeatStore: Send + Sync + fmt::Debug {
    /// Begins a new incarnation for each of these workers, with a number that is higher than any
    /// that was given before. Answers in the same order.
    ///
    /// An [explicit](Registration::explicit) id is kept: whoever had it before is superseded.
    /// Another id is only a wish. Leases of the incarnation before are not renewed any more, and
    /// end when it can't believe in them any longer: see [`Lease`](super::Lease).
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails; [`Error::Invalid`] if it refuses.
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error>;

    /// Takes in heartbeats, each in full or not at all. Answers in the same order.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error>;

    /// Ends incarnations, and releases their leases. Answers in the same order; an incarnation that
    /// was ended before stays as it was.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error>;

    /// Workers in the order of their ids.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error>;

    /// All workers together.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn summary(&self) -> Result<Summary, Error> {
        let mut workers = Vec::new();
        let mut filter = WorkerFilter::default();
        loop {
            let page = self.list(&filter)?;
            let more = page.len() >= filter.limit;
            filter.after = page.last().map(|worker| worker.key.id.clone());
            workers.extend(page);
            if !more {
                return Ok(super::stored::summarize(&workers));
            }
        }
    }

    /// Marks stale workers offline and releases their leases. At most one sweep is at work at a
    /// time; another one that comes meanwhile does nothing, and says that it had no success.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error>;

    /// Forgets workers that ended at least `age` ago. Returns how many.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn purge(&self, age: Duration) -> Result<usize, Error>;

    /// Gives the right to work on a run to this worker for a while, if nobody else has it.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error>;

    /// Makes leases last for their `ttl` from now on. Tells for each, in the same order, whether it
    /// is still held; one that has expired is not, even if nobody else has claimed its run.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error>;

    /// Gives leases back. Tells for each, in the same order, whether it was held until now.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error>;

    /// How often [`keep_alive`](Self::keep_alive) is to be called between heartbeats; by default
    /// never.
    fn keep_alive_interval(&self) -> Option<Duration> {
        None
    }

    /// Keeps up what the store knows of this process beyond its heartbeats. Returns whether that
    /// had to be set up anew, so that heartbeats have to be sent again.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn keep_alive(&self) -> Result<bool, Error> {
        Ok(false)
    }
}

impl<S: HeartbeatStore + ?Sized> HeartbeatStore for Arc<S> {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        (**self).register(workers)
    }
    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        (**self).beat(beats)
    }
    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        (**self).stop(stops)
    }
    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        (**self).list(filter)
    }
    fn summary(&self) -> Result<Summary, Error> {
        (**self).summary()
    }
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        (**self).sweep(sweep)
    }
    fn purge(&self, age: Duration) -> Result<usize, Error> {
        (**self).purge(age)
    }
    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        (**self).claim(claim)
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        (**self).renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        (**self).release(leases)
    }
    fn keep_alive_interval(&self) -> Option<Duration> {
        (**self).keep_alive_interval()
    }
    fn keep_alive(&self) -> Result<bool, Error> {
        (**self).keep_alive()
    }
}

/// A worker that begins.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The id that it wishes to have.
    pub id: String,
    /// Somebody chose the id: it is to be kept. Otherwise, the store may assign another one, and
    /// does if a worker of another process has it.
    pub explicit: bool,
    /// Its type.
    pub worker_type: String,
    /// Its group.
    pub group: String,
    /// How often its heartbeats are to be expected.
    pub interval: Duration,
    /// The limits that it is judged by. `None`: those of whoever judges.
    pub thresholds: Option<Thresholds>,
    /// What else is known of it.
    pub metadata: Vec<(String, String)>,
    /// How often it was started again by its supervisor.
    pub restarts: u32,
    /// The process that it runs in, if that is known.
    pub process: Option<ProcessIdentity>,
}

impl Registration {
    /// A worker of this type that wishes to have this id; nothing else is known of it.
    #[must_use]
    pub fn new(worker_type: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            explicit: true,
            worker_type: worker_type.into(),
            group: crate::worker::DEFAULT_GROUP.to_owned(),
            interval: crate::worker::DEFAULT_INTERVAL,
            thresholds: None,
            metadata: Vec::new(),
            restarts: 0,
            process: None,
        }
    }
}

/// What a worker's process tells of it.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Whose it is.
    pub key: WorkerKey,
    /// The verdict in its own process.
    pub state: State,
    /// Why, if that needs a reason.
    pub reason: Option<String>,
    /// Age of its heartbeat; `None` if it never had one.
    pub heartbeat_age: Option<Duration>,
    /// Time since its last progress; `None` if it never made any.
    pub progress_age: Option<Duration>,
    /// The run that it is at.
    pub run_id: Option<String>,
    /// The task that it is at.
    pub task: Option<String>,
    /// Steps done and steps to do of its task.
    pub progress: Option<(u64, u64)>,
    /// Steps of progress of this incarnation.
    pub beats: u64,
    /// Metadata to be added, or to take the place of what has the same name.
    pub metadata: Vec<(String, String)>,
}

impl Beat {
    /// A worker in this state, well until now.
    #[must_use]
    pub const fn new(key: WorkerKey, state: State) -> Self {
        Self {
            key,
            state,
            reason: None,
            heartbeat_age: Some(Duration::ZERO),
            progress_age: Some(Duration::ZERO),
            run_id: None,
            task: None,
            progress: None,
            beats: 0,
            metadata: Vec::new(),
        }
    }
}

/// What a store says to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Taken in.
    Accepted,
    /// The store does not know this worker: it has to be registered again.
    Unknown,
    /// Refused: another incarnation has taken its place.
    Superseded,
    /// Refused: this incarnation was ended, or marked offline by a sweep.
    Ended,
}

/// The end of an incarnation.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Whose it is.
    pub key: WorkerKey,
    /// How it ended.
    pub ending: Ending,
    /// How long ago.
    pub ago: Duration,
}

/// Which workers to list.
#[derive(Clone, Debug)]
pub struct WorkerFilter {
    /// Only those of this type.
    pub worker_type: Option<String>,
    /// Only those of this group.
    pub group: Option<String>,
    /// Only those of processes on the host with this boot id and pid namespace, that have not ended.
    pub host: Option<ProcessIdentity>,
    /// Only those with an id that comes after this one.
    pub after: Option<String>,
    /// At most so many; 10,000 by default.
    pub limit: usize,
}

impl Default for WorkerFilter {
    fn default() -> Self {
        Self {
            worker_type: None,
            group: None,
            host: None,
            after: None,
            limit: 10_000,
        }
    }
}

/// One pass over a store.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Longest time without a heartbeat, for workers that have no limit of their own.
    pub threshold: Duration,
    /// How long somebody has been watching without a gap: silence before that is not charged to
    /// any worker.
    pub watched_for: Duration,
    /// Workers whose process was killed by a signal, as the kernel of their host says. They are
    /// dead at once.
    pub killed: Vec<WorkerKey>,
    /// Workers whose process is gone, as the kernel of their host says, and left no word. They are
    /// dead at once too.
    pub gone: Vec<WorkerKey>,
    /// Only tell what would be done.
    pub dry_run: bool,
}

impl Default for Sweep {
    /// 90 s, watched for ever.
    fn default() -> Self {
        Self {
            threshold: super::stored::DEFAULT_THRESHOLD,
            watched_for: Duration::MAX,
            killed: Vec::new(),
            gone: Vec::new(),
            dry_run: false,
        }
    }
}

/// A wish to work on a run.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Who wishes.
    pub worker: WorkerKey,
    /// The run.
    pub run_id: String,
    /// For how long, unless it is renewed.
    pub ttl: Duration,
}

/// What a store says to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimAnswer {
    /// The run is the worker's, with this fence: a number that is higher than that of every claim
    /// before.
    Granted(u64),
    /// Another worker has it.
    Taken,
    /// The worker itself is refused; never [`Answer::Accepted`].
    Refused(Answer),
}
