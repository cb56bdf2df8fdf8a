//! The lease of a run, as its worker holds it.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::uploader::Uploader;
use super::uploader::session::{ClockReading, LeaseState};
use crate::error::Error;
use crate::health::LeaseLoss;

/// The right to work on a run, until it is dropped, released, or lost; made by
/// [`WorkerHeartbeat::claim`](crate::WorkerHeartbeat::claim).
///
/// While it is held, no other worker holds the run. It is renewed in the background. Pass its
/// [`fence`](Self::fence) with every write to what the run works on, and refuse writes with a lower
/// one there: then even a process that was stopped between [`is_held`](Self::is_held) and the write
/// does no harm.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// registry.attach(MemoryStore::new(), FleetConfig::new())?;
/// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
///
/// if let Some(lease) = hb.claim("run-123", Duration::from_secs(60))? {
///     assert!(lease.is_held() && lease.fence() > 0);
///     lease.release()?;
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[must_use = "the run is released when the lease is dropped"]
pub struct Lease {
    held: Arc<LeaseState>,
    uploader: Arc<Uploader>,
}

impl Lease {
    pub(super) const fn new(held: Arc<LeaseState>, uploader: Arc<Uploader>) -> Self {
        Self { held, uploader }
    }

    /// The run.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.held.key.run_id
    }

    /// The number of this claim: higher than that of every claim before, of any run. Never negative;
    /// it has the type that SQL binds.
    ///
    /// ```sql
    /// UPDATE results SET value = $1, fence = $2 WHERE run_id = $3 AND fence <= $2
    /// ```
    #[must_use]
    pub fn fence(&self) -> i64 {
        // Stores count in the same range.
        i64::try_from(self.held.key.fence).unwrap_or(i64::MAX)
    }

    /// Whether this worker certainly holds the run now.
    ///
    /// Decided here, without a call to the store: the time counts from before the last renewal was
    /// sent, and with a margin, so that a worker that is cut off stops believing before another one
    /// can claim. The lease also ends with the worker, and once the store has not accepted a
    /// heartbeat of it for about `stale_after`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let lease = hb.claim("run-123", Duration::from_secs(60))?.expect("the run is free");
    /// for step in ["read", "sort", "write"] {
    ///     if !lease.is_held() {
    ///         break; // another worker may have claimed the run
    ///     }
    ///     println!("{step}");
    /// }
    /// hb.stop();
    /// assert!(!lease.is_held(), "it ends with its worker");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Why it is not held any more; `None` while it is held. Once a call has found that it is lost, it
    /// stays lost, and everyone who [waits](Self::lost) for that is woken.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, MemoryStore, MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// registry.attach(MemoryStore::with_clock(time.clock()), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let lease = hb.claim("run-123", Duration::from_secs(60))?.expect("the run is free");
    /// assert!(lease.loss().is_none());
    /// time.suspend(Duration::from_secs(300)); // the laptop is closed
    /// let loss = lease.loss().expect("nobody renewed it");
    /// assert_eq!(loss.to_string(), "not renewed for 5 min");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn loss(&self) -> Option<LeaseLoss> {
        self.uploader.loss(&self.held)
    }

    /// Waits until the lease is not held any more, on any executor. Returns why.
    ///
    /// It belongs to no lifetime, so that it can be moved into a task. It may be dropped at any time and
    /// leaves nothing behind; any number may wait. If the lease is released or dropped, it returns
    /// [`LeaseLoss::Released`]. A store that fails or hangs is no loss before the lease expires.
    ///
    /// **How soon**: the thread that finds the loss wakes all who wait, before it does anything else. That
    /// is the thread that ends the worker; the uploader, when the store refuses a renewal or a heartbeat;
    /// the pacemaker, at the moment when the lease expires, also if the uploader hangs in the store; and
    /// every thread that calls [`is_held`](Self::is_held) or [`loss`](Self::loss), so that no caller waits
    /// longer than until another one knows. After SIGSTOP, that moment is past when the process goes on:
    /// who waits is woken at once. While a machine is suspended, its monotonic clock may stand still: then
    /// the pacemaker notices at its next tick, one [resolution](crate::Registry::resolution) (10 ms to 1 s)
    /// after it goes on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, LeaseLoss, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let registry = Registry::new();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let lease = hb.claim_async("run-123", Duration::from_secs(60)).await?.expect("the run is free");
    /// tokio::select! {
    ///     loss = lease.lost() => println!("the run is lost: {loss}"),
    ///     () = tokio::time::sleep(Duration::from_millis(1)) => println!("done"),
    /// }
    /// let lost = lease.lost();
    /// lease.release()?;
    /// assert!(matches!(lost.await, LeaseLoss::Released));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "futures do nothing unless they are polled"]
    pub fn lost(&self) -> impl Future<Output = LeaseLoss> + Send + Sync + Unpin + use<> {
        let mut wait = LossWait {
            held: Arc::clone(&self.held),
            uploader: Arc::clone(&self.uploader),
            number: None,
        };
        poll_fn(move |context| wait.poll(context.waker()))
    }

    /// A channel that receives the reason when the lease is not held any more, and is closed then; as soon
    /// as [`lost`](Self::lost). For threads: it can be selected with other channels. All receivers of a
    /// lease share one channel, with a message for each: one that receives twice takes that of another,
    /// which then finds the channel closed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use crossbeam_channel::{never, select};
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let lease = hb.claim("run-123", Duration::from_secs(60))?.expect("the run is free");
    /// let lost = lease.lost_receiver();
    /// let pages = never::<u32>(); // the work
    /// hb.stop();
    /// select! {
    ///     recv(lost) -> loss => println!("the run is lost: {}", loss.expect("it comes once")),
    ///     recv(pages) -> page => println!("{page:?}"),
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn lost_receiver(&self) -> Receiver<LeaseLoss> {
        let receiver = self.held.end_receiver();
        // If it is lost and this was not noticed.
        self.uploader.loss(&self.held);
        receiver
    }

    /// Runs a future until it is done, or until the lease is lost: then it is dropped at once, with all
    /// that it owns, and the reason is returned.
    ///
    /// A future is dropped between two polls. One that blocks its thread goes on until it returns, and if
    /// it is done by then, its result counts: pass the [fence](Self::fence) with its writes. It does not
    /// begin if the lease is lost already.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// let registry = Registry::new();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let lease = hb.claim_async("run-123", Duration::from_secs(60)).await?.expect("the run is free");
    /// let pages = async {
    ///     tokio::time::sleep(Duration::from_millis(1)).await;
    ///     42
    /// };
    /// match lease.run_until_lost(pages).await {
    ///     Ok(pages) => println!("{pages} pages"),
    ///     Err(loss) => println!("another worker may have the run: {loss}"),
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Why the lease was lost before the future was done.
    pub async fn run_until_lost<F: Future>(&self, future: F) -> Result<F::Output, LeaseLoss> {
        let mut lost = self.lost();
        let mut future = pin!(future);
        poll_fn(|context| match Pin::new(&mut lost).poll(context) {
            Poll::Ready(loss) => Poll::Ready(Err(loss)),
            Poll::Pending => future.as_mut().poll(context).map(Ok),
        })
        .await
    }

    /// How long it will be held if it is not renewed; zero if it is not held.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let lease = hb.claim("run-123", Duration::from_secs(60))?.expect("the run is free");
    /// assert!(lease.remaining() <= Duration::from_secs(60));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let now = ClockReading::of(self.uploader.clock());
        let remaining = self.held.remaining(&now);
        if remaining.is_zero() {
            // It must not come back by a late answer of the store, and others may wait for this.
            self.uploader.loss(&self.held);
        }
        remaining
    }

    /// Releases the run now. Returns whether it was held until then. Dropping a lease releases it in
    /// the background.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let lease = hb.claim("run-123", Duration::from_secs(60))?.expect("the run is free");
    /// // work
    /// assert!(lease.release()?, "it was held to the end of the work");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached; the release is repeated in the background,
    /// and the lease expires in any case.
    pub fn release(self) -> Result<bool, Error> {
        self.uploader.release_now(&self.held)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.uploader.loss(&self.held).is_none() {
            self.uploader.lose(&self.held, LeaseLoss::Released);
        }
    }
}

/// A task that waits for the loss of a lease. Dropped, it leaves no waker behind.
struct LossWait {
    held: Arc<LeaseState>,
    uploader: Arc<Uploader>,
    number: Option<u64>,
}

impl LossWait {
    fn poll(&mut self, waker: &Waker) -> Poll<LeaseLoss> {
        let number = self.held.on_end(self.number, waker);
        self.number = number.or(self.number);
        // After the waker was left, so that no loss is missed.
        match self.uploader.loss(&self.held) {
            Some(loss) => Poll::Ready(loss),
            None => Poll::Pending,
        }
    }
}

impl Drop for LossWait {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.held.forget(number);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("run_id", &self.run_id())
            .field("fence", &self.fence())
            .field("remaining", &self.remaining())
            .finish()
    }
}
