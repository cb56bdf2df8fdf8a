//! The right to work on a run, as its worker has it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::session::{LeaseState, Now};
use super::uploader::Uploader;
use crate::error::Error;
use crate::sync::printable::prefix;
use crate::worker::WorkerHeartbeat;

/// The right to work on a run, until it is dropped, released, or lost; made by
/// [`WorkerHeartbeat::claim`].
///
/// While it is held, nobody else holds the run. It is renewed in the background. Hand its
/// [`fence`](Self::fence) on with every write to what the run works on, and refuse there what has a
/// lower one: even a process that was stopped between [`is_held`](Self::is_held) and the write does
/// no harm then.
#[must_use = "the run is given back when the lease is dropped"]
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

    /// Whether the run is certainly this worker's now. Decided here, without asking the store: from
    /// the moment before the last renewal was sent, and with a margin, so that a worker that is cut
    /// off stops believing before anybody else can claim. It also ends with the worker, and once
    /// the store has not taken in a heartbeat of it for about `stale_after`.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// How long it will be held if it is not renewed; zero if it is not held.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.held.remaining(&Now::of(self.uploader.clock()))
    }

    /// Gives the run back now. Returns whether it was held until then. Dropping a lease does the
    /// same a little later, in the background.
    ///
    /// # Errors
    /// [`Error::Store`] if the store can't be told; it is tried again in the background, and the
    /// lease expires in any case.
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

/// The shortest and the longest time for which a run can be claimed.
const SHORTEST_TTL: Duration = Duration::from_millis(100);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
/// Bytes of a run id.
const LONGEST_RUN_ID: usize = 200;

impl WorkerHeartbeat {
    /// Claims a run for this worker: `None` if another one has it, or this one already.
    ///
    /// Asks the store, and waits for its answer. The lease lasts for `ttl`, 100 ms to 24 h, and is
    /// renewed at each third of it until it is dropped or lost: to lose one is told as an event.
    /// The shorter it is, the sooner another worker can take over when this one is cut off, and the
    /// shorter an outage of the store that it survives.
    ///
    /// # Errors
    /// [`Error::Invalid`] names what is not allowed; [`Error::NotAttached`] if the registry has no
    /// store; [`Error::Store`] if the store cannot be reached; [`Error::Refused`] if the worker is
    /// over, or another incarnation has taken its place.
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
    if run_id.is_empty() || run_id.len() > LONGEST_RUN_ID || run_id.chars().any(char::is_control) {
        return Err(Error::invalid(
            "run_id",
            format!("{:?}", prefix(run_id, 64)),
            format!("1 to {LONGEST_RUN_ID} bytes without control characters"),
        ));
    }
    Ok(())
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
