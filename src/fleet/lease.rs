//! The lease of a run, as its worker holds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::uploader::Uploader;
use super::uploader::session::{ClockReading, LeaseState};
use crate::error::Error;
use crate::worker::{WorkerHeartbeat, check_id};

/// The right to work on a run, until it is dropped, released, or lost; made by
/// [`WorkerHeartbeat::claim`].
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
    /// The run.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.held.key.run_id
    }

    /// The number of this claim: higher than that of every claim before, of any run.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.held.key.fence
    }

    /// Whether this worker certainly holds the run now.
    ///
    /// Decided here, without a call to the store: the time counts from before the last renewal was
    /// sent, and with a margin, so that a worker that is cut off stops believing before another one
    /// can claim. The lease also ends with the worker, and once the store has not accepted a
    /// heartbeat of it for about `stale_after`.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// How long it will be held if it is not renewed; zero if it is not held.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.held
            .remaining(&ClockReading::of(self.uploader.clock()))
    }

    /// Releases the run now. Returns whether it was held until then. Dropping a lease releases it in
    /// the background.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached; the release is repeated in the background,
    /// and the lease expires in any case.
    pub fn release(self) -> Result<bool, Error> {
        if !self.held.end() {
            return Ok(false);
        }
        self.uploader.release_now(&self.held)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held.end() {
            self.uploader.release_soon(&self.held);
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

/// The shortest and the longest `ttl` of a lease.
const SHORTEST_TTL: Duration = Duration::from_millis(100);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a run id.
const LONGEST_RUN_ID: usize = 200;

impl WorkerHeartbeat {
    /// Claims a run for this worker: `None` if another worker has it, or this one already.
    ///
    /// Blocks until the store answers. The lease lasts for `ttl`, 100 ms to 24 h, and is renewed at
    /// each third of it until it is dropped or lost; a loss is an event
    /// ([`EventKind::LeaseLost`](crate::EventKind::LeaseLost)). With a shorter `ttl`, another worker
    /// can take over sooner after this one is cut off, and the lease survives only a shorter outage
    /// of the store.
    ///
    /// # Errors
    /// [`Error::Invalid`] names an invalid argument; [`Error::NotAttached`] if the registry has no
    /// store; [`Error::Store`] if the store cannot be reached; [`Error::Refused`] if the worker has
    /// ended, or another incarnation has taken its place.
    pub fn claim(&self, run_id: &str, ttl: Duration) -> Result<Option<Lease>, Error> {
        check_run_id(run_id)?;
        check_ttl(ttl)?;
        let uploader = Uploader::of(self.registry()).ok_or_else(|| Error::NotAttached {
            id: self.id().to_owned(),
        })?;
        if self.is_over() {
            return Err(Error::Refused {
                id: self.id().to_owned(),
            });
        }
        let held = uploader.claim(self.membership().worker_ref(), run_id, ttl)?;
        Ok(held.map(|held| Lease { held, uploader }))
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
