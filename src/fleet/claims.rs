//! Claims of runs, blocking and asynchronous.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use super::lease::Lease;
use super::uploader::Uploader;
use crate::error::Error;
use crate::registry::core::worker_ref::WorkerRef;
use crate::sync::catch::catch;
use crate::sync::thread_pool::ThreadPool;
use crate::sync::wakers::wake;
use crate::worker::{WorkerHeartbeat, check_id};

/// The shortest and the longest `ttl` of a lease.
const SHORTEST_TTL: Duration = Duration::from_millis(100);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a run id.
const LONGEST_RUN_ID: usize = 200;

impl WorkerHeartbeat {
    /// Claims a run for this worker: `None` if another worker has it, or this one already.
    ///
    /// Blocks the calling thread until the store answers: in an asynchronous context, use
    /// [`claim_async`](Self::claim_async). The lease lasts for `ttl`, 100 ms to 24 h, and is renewed at
    /// each third of it until it is dropped or lost; a loss is an event
    /// ([`EventKind::LeaseLost`](crate::EventKind::LeaseLost)). With a shorter `ttl`, another worker
    /// can take over sooner after this one is cut off, and the lease survives only a shorter outage
    /// of the store.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let first = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let second = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    ///
    /// let lease = first.claim("run-123", Duration::from_secs(60))?;
    /// assert!(lease.is_some());
    /// assert!(second.claim("run-123", Duration::from_secs(60))?.is_none());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] names an invalid argument; [`Error::NotAttached`] if the registry has no
    /// store; [`Error::Store`] if the store cannot be reached, or its answer is lost;
    /// [`Error::Refused`] if the worker has ended, or another incarnation has taken its place.
    ///
    /// Without an answer, it is not known here whether the run was granted. This worker does not hold it:
    /// the claim is [withdrawn](crate::HeartbeatStore::withdraw) in the background as soon as the store
    /// can be reached, until `ttl` has passed, so that the run is free for others again. A claim of the
    /// same run by the same worker withdraws the earlier one first.
    pub fn claim(&self, run_id: &str, ttl: Duration) -> Result<Option<Lease>, Error> {
        ClaimRequest::new(self, run_id, ttl)?.send()
    }

    /// As [`claim`](Self::claim), without blocking the thread; on any executor.
    ///
    /// The claim begins when the future is first polled: a thread, `wh-claim`, calls the store. Of an
    /// attachment's claims, 64 at a time are with the store; others wait their turn, without a time
    /// limit. A future that is dropped before it is done leaves no lease behind: a claim that waits is
    /// not made, and a lease that is granted later is released.
    ///
    /// # Errors
    /// As [`claim`](Self::claim); [`Error::Thread`] if the thread cannot be started.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let registry = Registry::new();
    /// let attachment = registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("research").registry(&registry).start()?;
    /// let lease = hb.claim_async("run-123", Duration::from_secs(60)).await?;
    /// if let Some(lease) = lease {
    ///     assert!(lease.is_held());
    ///     // work
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "futures do nothing unless they are polled"]
    pub fn claim_async(
        &self,
        run_id: &str,
        ttl: Duration,
    ) -> impl Future<Output = ClaimResult> + Send + Sync + Unpin + use<> {
        let mut claim = AsyncClaim::Ready(Some(ClaimRequest::new(self, run_id, ttl)));
        poll_fn(move |context| claim.poll(context.waker()))
    }
}

/// The result of a claim.
type ClaimResult = Result<Option<Lease>, Error>;

/// A valid claim that has not been sent yet.
struct ClaimRequest {
    uploader: Arc<Uploader>,
    /// Not the handle, because a claim that hangs must not keep the worker alive.
    worker: WorkerRef,
    run_id: String,
    ttl: Duration,
}

impl ClaimRequest {
    fn new(hb: &WorkerHeartbeat, run_id: &str, ttl: Duration) -> Result<Self, Error> {
        check_run_id(run_id)?;
        check_ttl(ttl)?;
        let id = || hb.id().to_owned();
        let uploader = Uploader::of(hb.registry());
        let uploader = uploader.ok_or_else(|| Error::NotAttached { id: id() })?;
        if hb.is_over() {
            return Err(Error::Refused { id: id() });
        }
        Ok(Self {
            uploader,
            worker: hb.membership().worker_ref().clone(),
            run_id: run_id.to_owned(),
            ttl,
        })
    }

    /// Calls the store, and blocks until it answers.
    fn send(self) -> ClaimResult {
        let held = self.uploader.claim(&self.worker, &self.run_id, self.ttl)?;
        let uploader = self.uploader;
        Ok(held.map(|held| Lease::new(held, uploader)))
    }

    fn send_in_background(self) -> Result<WaitingClaim, Error> {
        let slot = Arc::<Mutex<ClaimSlot>>::default();
        let claims = self.uploader.claims().clone();
        let place = Arc::clone(&slot);
        let number = claims.add(move || {
            let answer = catch(|| self.send());
            let answer = answer.unwrap_or_else(|_| Err(Error::store("claim", "it panicked")));
            let mut slot = place.lock();
            slot.answer = Some(answer);
            let waiting = slot.waker.take();
            drop(slot);
            drop(place);
            waiting.into_iter().for_each(wake);
        })?;
        Ok(WaitingClaim {
            slot,
            claims,
            number,
        })
    }
}

/// A claim that an async task waits for.
enum AsyncClaim {
    /// Before the first poll. `None` after the end.
    Ready(Option<Result<ClaimRequest, Error>>),
    /// A thread calls the store, or will.
    Waiting(WaitingClaim),
}

/// Dropped, it leaves no waker behind, and no claim that has not been sent.
struct WaitingClaim {
    slot: Arc<Mutex<ClaimSlot>>,
    claims: ThreadPool,
    number: u64,
}

impl Drop for WaitingClaim {
    fn drop(&mut self) {
        self.claims.withdraw(self.number);
        let waker = self.slot.lock().waker.take();
        // Not under the lock: the waker belongs to an executor.
        drop(waker);
    }
}

/// Where the thread puts the result. A lease that no task takes is released when this is dropped.
#[derive(Default)]
struct ClaimSlot {
    answer: Option<ClaimResult>,
    waker: Option<Waker>,
}

impl AsyncClaim {
    fn poll(&mut self, waker: &Waker) -> Poll<ClaimResult> {
        if let Self::Ready(claim) = self {
            let claim = match claim.take() {
                Some(Ok(claim)) => claim,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                // Polled after its end.
                None => return Poll::Pending,
            };
            match claim.send_in_background() {
                Ok(waiting) => *self = Self::Waiting(waiting),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let Self::Waiting(WaitingClaim { slot, .. }) = self else {
            return Poll::Pending;
        };
        let waker = waker.clone();
        let mut place = slot.lock();
        if let Some(answer) = place.answer.take() {
            drop(place);
            *self = Self::Ready(None);
            return Poll::Ready(answer);
        }
        let replaced = place.waker.replace(waker);
        drop(place);
        drop(replaced);
        Poll::Pending
    }
}

pub(crate) fn check_run_id(run_id: &str) -> Result<(), Error> {
    check_id("run_id", run_id, LONGEST_RUN_ID)
}

pub(crate) fn check_ttl(ttl: Duration) -> Result<(), Error> {
    if !(SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) {
        return Err(Error::invalid(
            "ttl",
            format!("{ttl:?}"),
            format!("{SHORTEST_TTL:?} to {LONGEST_TTL:?}"),
        ));
    }
    Ok(())
}
