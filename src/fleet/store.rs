//! The trait of all stores, and a check of their answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::defaults::{find_in_list, processes_by_list, register_in_parts};
use super::host::ProcessIdentity;
use super::pages::{counts_of_pages, summary_of_pages, worst_of_pages};
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, EventFilter, EventPage, FleetCounts, LeaseKey, Registration,
    Renewal, Stop, StoredWorker, Sweep, WorkerFilter, WorkerKey,
};
use crate::error::Error;
use crate::health::{Summary, SweepReport};

/// Where heartbeats go beyond the process.
///
/// Every call blocks, and must have a time limit of its own. The trait is object-safe; a store is
/// shared between threads: the uploader's, the sweeper's, and those of workers that claim runs.
///
/// The suite [`conformance`] (feature `test-util`) tests what each call must do.
/// A store of another kind is built from these types and their constructors:
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::fleet::*;
/// use worker_heartbeat::{Error, SweepReport};
///
/// /// Counts heartbeats on their way to another store.
/// #[derive(Debug)]
/// struct Counted<S> {
///     store: S,
///     beats: std::sync::atomic::AtomicUsize,
/// }
///
/// impl<S: HeartbeatStore> HeartbeatStore for Counted<S> {
///     fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
///         self.beats.fetch_add(beats.len(), std::sync::atomic::Ordering::Relaxed);
///         self.store.beat(beats)
///     }
///     fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
///         self.store.register(workers)
///     }
///     fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
///         self.store.stop(stops)
///     }
///     fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
///         self.store.list(filter)
///     }
///     fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
///         self.store.sweep(sweep)
///     }
///     fn purge(&self, age: Duration) -> Result<usize, Error> {
///         self.store.purge(age)
///     }
///     fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
///         self.store.claim(claim)
///     }
///     fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
///         self.store.renew(leases, ttl)
///     }
///     fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
///         self.store.release(leases)
///     }
/// }
/// ```
///
#[cfg_attr(feature = "test-util", doc = include_str!("../guide/links/test_util.md"))]
#[doc = include_str!("../guide/links/elsewhere.md")]
pub trait HeartbeatStore: Send + Sync + fmt::Debug {
    /// Begins a new incarnation for each of these workers, with a number higher than any before.
    /// Answers in the same order. A store that lost its data must continue with higher numbers, too:
    /// a process refuses a number that is not higher than those that it was given.
    ///
    /// An [explicit](Registration::explicit) id is kept: its earlier incarnation is superseded. In
    /// place of another id, the store may assign one. Leases of the earlier incarnation can't be
    /// renewed, and end once it can't believe in them any longer: see [`Lease`](super::Lease).
    ///
    /// ```
    /// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
    /// use worker_heartbeat::MemoryStore;
    ///
    /// let store = MemoryStore::new();
    /// let first = store.register(&[Registration::new("indexer", "indexer-1")])?;
    /// let second = store.register(&[Registration::new("indexer", "indexer-2")])?;
    /// assert!(second[0].incarnation > first[0].incarnation);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails; [`Error::Invalid`] if it refuses.
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error>;

    /// As [`register`](Self::register), with an answer for each worker: a worker that is refused
    /// ([`Error::Invalid`]), or whose record another client locks
    /// ([`StoreErrorKind::Busy`](crate::StoreErrorKind::Busy)), does not keep the others from being
    /// registered. By default, it calls `register`, with fewer and fewer workers as long as it refuses.
    ///
    /// ```
    /// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
    /// use worker_heartbeat::MemoryStore;
    ///
    /// let workers = ["a", "b"].map(|id| Registration::new("indexer", id));
    /// for (worker, answer) in workers.iter().zip(MemoryStore::new().register_each(&workers)?) {
    ///     match answer {
    ///         Ok(key) => println!("{key}"),
    ///         Err(refusal) => eprintln!("{}: {refusal}", worker.id),
    ///     }
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn register_each(
        &self,
        workers: &[Registration],
    ) -> Result<Vec<Result<WorkerKey, Error>>, Error> {
        register_in_parts(self, workers)
    }

    /// Stores heartbeats, each in full or not at all. Answers in the same order. The trouble of one
    /// heartbeat is its own: see [`Answer::Busy`] and [`Answer::Invalid`].
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error>;

    /// Ends incarnations, and releases their leases. Answers in the same order. An incarnation that
    /// has ended already is not changed. [`Answer::Busy`]: it may have ended, but a lease of it is not
    /// released.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error>;

    /// Workers in the order of their ids.
    ///
    /// A store may ignore [`states`](WorkerFilter::states) and [`search`](WorkerFilter::search):
    /// [`Pages`](super::Pages) leaves out what does not pass.
    ///
    /// ```
    /// use worker_heartbeat::fleet::{HeartbeatStore, Registration, WorkerFilter};
    /// use worker_heartbeat::MemoryStore;
    ///
    /// let store = MemoryStore::new();
    /// store.register(&[Registration::new("indexer", "b"), Registration::new("mailer", "a")])?;
    /// let ids: Vec<_> = store.list(&WorkerFilter::new())?.into_iter().map(|worker| worker.key.id).collect();
    /// assert_eq!(ids, ["a", "b"]);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error>;

    /// The worker with this id; `None` if there is none. By default, it is read by
    /// [`list`](Self::list).
    ///
    /// ```
    /// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
    /// use worker_heartbeat::MemoryStore;
    ///
    /// let store = MemoryStore::new();
    /// store.register(&[Registration::new("indexer", "indexer-1")])?;
    /// assert!(store.find("indexer-1")?.is_some());
    /// assert!(store.find("indexer-2")?.is_none());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        find_in_list(self, id)
    }

    /// Workers in the order of [`State::WORST_FIRST`](crate::State::WORST_FIRST), and of their ids
    /// within a state; those that are processing, active or idle are one group. The next page comes
    /// [after](WorkerFilter::after_worker) the last worker of this one.
    ///
    /// By default, it reads the whole list and keeps no more than the limit; a store that can sort by
    /// itself does so.
    ///
    /// ```
    /// use worker_heartbeat::fleet::{Beat, HeartbeatStore, Registration, WorkerFilter};
    /// use worker_heartbeat::{MemoryStore, State};
    ///
    /// let store = MemoryStore::new();
    /// let keys = store.register(&["a", "b"].map(|id| Registration::new("indexer", id)))?;
    /// store.beat(&[Beat::new(keys[0].clone(), State::Idle), Beat::new(keys[1].clone(), State::Stalled)])?;
    /// let worst = store.worst_first(&WorkerFilter::new().limit(1))?;
    /// assert_eq!(worst[0].key.id, "b");
    /// let next = store.worst_first(&WorkerFilter::new().after_worker(&worst[0]))?;
    /// assert_eq!(next[0].key.id, "a");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        worst_of_pages(self, filter)
    }

    /// How many workers are in each state, by type and by group.
    ///
    /// By default, it reads the whole list, page by page; a store that can count by itself does so.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn counts(&self) -> Result<FleetCounts, Error> {
        counts_of_pages(self)
    }

    /// The summary of all workers: the [counts](Self::counts), and the
    /// [worst](Self::worst_first) of those that are not well, at most 1,000.
    ///
    /// ```
    /// use worker_heartbeat::{HeartbeatStore, MemoryStore};
    ///
    /// println!("{}", MemoryStore::new().summary()?); // 0 active, 0 dead
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn summary(&self) -> Result<Summary, Error> {
        summary_of_pages(self)
    }

    /// What happened to the workers: deaths, recoveries, sweeps, and the other
    /// [kinds](super::FleetEventKind). Each is recorded with the change that it records, by the code that finds
    /// it, so that it is neither lost nor doubled, and a process that starts later reads it too. They
    /// are kept for as long as the [retention](super::Retention) of the sweeps says.
    ///
    /// `None`: the store keeps no events. So it is by default.
    ///
    /// ```
    /// use worker_heartbeat::fleet::{EventFilter, HeartbeatStore};
    /// use worker_heartbeat::MemoryStore;
    ///
    /// let store = MemoryStore::new();
    /// match store.events(&EventFilter::new())? {
    ///     Some(page) => page.events.iter().for_each(|event| println!("{event}")),
    ///     None => println!("this store keeps no events"),
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn events(&self, filter: &EventFilter) -> Result<Option<EventPage>, Error> {
        let _ = filter;
        Ok(None)
    }

    /// The processes on this host that have workers which have not ended, each once. By default, it
    /// [lists](Self::list) the workers of the host.
    ///
    /// ```
    /// use worker_heartbeat::MemoryStore;
    /// use worker_heartbeat::fleet::{HeartbeatStore, ProcessIdentity, Registration};
    ///
    /// let here = ProcessIdentity::current();
    /// let store = MemoryStore::new();
    /// let mut workers = ["a", "b"].map(|id| Registration::new("indexer", id));
    /// for worker in &mut workers {
    ///     worker.info.process = Some(here.clone());
    /// }
    /// store.register(&workers)?;
    /// assert_eq!(store.processes(&here)?, [here]);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        processes_by_list(self, host)
    }

    /// Marks stale workers offline and releases their leases. Of several sweeps at the same time, one
    /// marks each worker. A store may let one sweep run at a time; another one that begins meanwhile
    /// then does nothing, and reports no `success`.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error>;

    /// Forgets workers that ended at least `age` ago. Returns how many.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{HeartbeatStore, MemoryStore};
    ///
    /// let forgotten = MemoryStore::new().purge(Duration::from_secs(7 * 24 * 3600))?;
    /// assert_eq!(forgotten, 0);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn purge(&self, age: Duration) -> Result<usize, Error>;

    /// Grants this worker the right to work on a run for a while, if no other worker has it.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error>;

    /// Gives up claims whose outcome the caller does not know: releases what they were granted, and
    /// refuses them if they arrive later. Answers in the same order whether a lease was released.
    ///
    /// A store recognizes a claim by its worker, its run and its [attempt](Claim::attempt). By default,
    /// each run is claimed again with the same attempt, and released: right for every store, but a claim
    /// that arrives later still takes the run for its `ttl`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::MemoryStore;
    /// use worker_heartbeat::fleet::{Claim, ClaimAnswer, HeartbeatStore, Registration};
    ///
    /// let store = MemoryStore::new();
    /// let worker = store.register(&[Registration::new("indexer", "indexer-1")])?.remove(0);
    /// let claim = Claim::new(worker, "run-123", Duration::from_secs(60)).attempt(7);
    /// store.claim(&claim)?; // the answer is lost
    /// assert_eq!(store.withdraw(&[claim.clone()])?, [true]);
    /// // The request arrives once more.
    /// assert_eq!(store.claim(&claim)?, ClaimAnswer::Taken);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        claim_and_release(self, claims)
    }

    /// Extends leases to their `ttl` from now on. Answers in the same order whether each is still
    /// held; an expired one is not, even if no other worker has claimed its run.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails; of the kind
    /// [`Busy`](crate::StoreErrorKind::Busy), if another client locks the record of one: the others
    /// are extended.
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error>;

    /// As [`renew`](Self::renew), and distinguishes a lease that is lost from one whose record is locked at
    /// present. By default, it calls `renew`.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    fn try_renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<Renewal>, Error> {
        let held = self.renew(leases, ttl)?;
        Ok(held.into_iter().map(Renewal::from).collect())
    }

    /// Releases leases. Answers in the same order whether each was held until now.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails; of the kind
    /// [`Busy`](crate::StoreErrorKind::Busy), if another client locks the record of one: the others
    /// are released.
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error>;

    /// How many texts the store has changed so far, because it cannot keep all of their characters; by
    /// default 0.
    fn replaced_texts(&self) -> u64 {
        0
    }

    /// The interval between calls of [`keep_alive`](Self::keep_alive), apart from heartbeats; by
    /// default it is never called.
    fn keep_alive_interval(&self) -> Option<Duration> {
        None
    }

    /// Maintains what the store knows about this process beyond its heartbeats, such as a session.
    /// Returns whether that was set up again, so that heartbeats must be sent again.
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
    fn register_each(
        &self,
        workers: &[Registration],
    ) -> Result<Vec<Result<WorkerKey, Error>>, Error> {
        (**self).register_each(workers)
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
    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        (**self).find(id)
    }
    fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        (**self).worst_first(filter)
    }
    fn counts(&self) -> Result<FleetCounts, Error> {
        (**self).counts()
    }
    fn summary(&self) -> Result<Summary, Error> {
        (**self).summary()
    }
    fn events(&self, filter: &EventFilter) -> Result<Option<EventPage>, Error> {
        (**self).events(filter)
    }
    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        (**self).processes(host)
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
    fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        (**self).withdraw(claims)
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        (**self).renew(leases, ttl)
    }
    fn try_renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<Renewal>, Error> {
        (**self).try_renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        (**self).release(leases)
    }
    fn replaced_texts(&self) -> u64 {
        (**self).replaced_texts()
    }
    fn keep_alive_interval(&self) -> Option<Duration> {
        (**self).keep_alive_interval()
    }
    fn keep_alive(&self) -> Result<bool, Error> {
        (**self).keep_alive()
    }
}

/// Withdraws claims from a store that has no call for it.
pub(crate) fn claim_and_release<S: HeartbeatStore + ?Sized>(
    store: &S,
    claims: &[Claim],
) -> Result<Vec<bool>, Error> {
    let withdraw = |claim: &Claim| match store.claim(claim)? {
        ClaimAnswer::Granted(fence) => {
            let lease = LeaseKey::new(claim.worker.clone(), &claim.run_id, fence);
            let released = store.release(&[lease])?;
            Ok(released.first().copied().unwrap_or(false))
        }
        ClaimAnswer::Taken | ClaimAnswer::Refused(_) => Ok(false),
    };
    claims.iter().map(withdraw).collect()
}

/// The answers of a store, if there are as many as questions. Otherwise none of them can be trusted.
pub(crate) fn check_count<T>(
    operation: &'static str,
    asked: usize,
    answers: Result<Vec<T>, Error>,
) -> Result<Vec<T>, Error> {
    let answers = answers?;
    if answers.len() == asked {
        return Ok(answers);
    }
    Err(Error::store(
        operation,
        format_args!("{} answers to {asked} questions", answers.len()),
    ))
}
