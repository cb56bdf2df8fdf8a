//! The right to work on a run, and when not to believe in it any more.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::store::{LeaseKey, WorkerKey};
use super::uplink::Uplink;
use crate::clock::{Clock, Moment};
use crate::error::Error;
use crate::roster::post::Post;
use crate::worker::WorkerHeartbeat;

/// Two clocks may run at different speeds, and a store's may be coarse: this share of a limit is
/// not believed in.
const MARGIN: u32 = 20;
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// The right to work on a run, until it is dropped, released, or lost; made by
/// [`WorkerHeartbeat::claim`].
///
/// While it is held, nobody else holds the run. It is renewed in the background. Hand its
/// [`fence`](Self::fence) on with every write to what the run works on, and refuse there what has a
/// lower one: even a process that was stopped between [`is_held`](Self::is_held) and the write does
/// no harm then.
#[must_use = "the run is given back when the lease is dropped"]
pub struct Lease {
    held: Arc<Held>,
    uplink: Arc<Uplink>,
}

/// What a lease shares with whoever renews it.
#[derive(Debug)]
pub(super) struct Held {
    pub key: LeaseKey,
    pub ttl: Duration,
    bond: Arc<Bond>,
    until: Mutex<Deadline>,
    renewed_at: Mutex<Moment>,
    /// Not ours any more; whether that has been told.
    over: AtomicBool,
}

/// What one incarnation has with a store, and all its leases hang on.
#[derive(Debug)]
pub(super) struct Bond {
    pub key: WorkerKey,
    stale_after: Duration,
    post: Post,
    /// Which life of the worker, as the process counts it.
    life: u32,
    until: Mutex<Deadline>,
    broken: AtomicBool,
}

/// By two clocks, whichever shows it first: the monotonic one does not count the time that a
/// machine is suspended, and the wall clock can be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Deadline {
    moment: Moment,
    wall: SystemTime,
}

/// A reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub moment: Moment,
    pub wall: SystemTime,
}

impl Now {
    pub(super) fn of(clock: &Clock) -> Self {
        Self {
            moment: clock.now(),
            wall: clock.wall(),
        }
    }

    /// So long from now, less the margin.
    pub(super) fn deadline(&self, limit: Duration, spent: Duration) -> Deadline {
        let margin = (limit / MARGIN).max(LEAST_MARGIN);
        let left = limit.saturating_sub(margin).saturating_sub(spent);
        Deadline {
            moment: self.moment.after(left),
            wall: self.wall.checked_add(left).unwrap_or(self.wall),
        }
    }
}

impl Deadline {
    pub(super) fn remaining(&self, now: &Now) -> Duration {
        let by_wall = self.wall.duration_since(now.wall).unwrap_or_default();
        self.moment.since(now.moment).min(by_wall)
    }
}

impl Bond {
    /// Registered: `sent` was before the store was asked.
    pub(super) fn new(
        key: WorkerKey,
        stale_after: Duration,
        post: Post,
        life: u32,
        sent: &Now,
    ) -> Self {
        Self {
            key,
            stale_after,
            post,
            life,
            until: Mutex::new(sent.deadline(stale_after, Duration::ZERO)),
            broken: AtomicBool::new(false),
        }
    }

    /// The store took in a heartbeat of this age. A sweep that convicts for silence does not do so
    /// before it is older than `stale_after`.
    pub(super) fn told(&self, sent: &Now, heartbeat_age: Option<Duration>) {
        if let Some(age) = heartbeat_age {
            *self.until.lock() = sent.deadline(self.stale_after, age);
        }
    }

    /// The store does not know this incarnation any more, or refuses it.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn is_alive(&self) -> bool {
        let record = &self.post.record;
        !self.broken.load(Ordering::Acquire)
            && record.incarnation() == self.life
            && !record.is_over()
    }
}

impl Held {
    pub(super) fn new(key: LeaseKey, ttl: Duration, bond: Arc<Bond>, sent: &Now) -> Self {
        Self {
            key,
            ttl,
            bond,
            until: Mutex::new(sent.deadline(ttl, Duration::ZERO)),
            renewed_at: Mutex::new(sent.moment),
            over: AtomicBool::new(false),
        }
    }

    pub(super) fn renewed(&self, sent: &Now) {
        *self.until.lock() = sent.deadline(self.ttl, Duration::ZERO);
        *self.renewed_at.lock() = sent.moment;
    }

    /// When to renew it: at a third of its time.
    pub(super) fn renewal_due(&self) -> Moment {
        self.renewed_at.lock().after(self.ttl / 3)
    }

    /// Ends it. `false` if it was over before.
    pub(super) fn end(&self) -> bool {
        !self.over.swap(true, Ordering::AcqRel)
    }

    pub(super) fn hangs_on(&self, bond: &Arc<Bond>) -> bool {
        Arc::ptr_eq(&self.bond, bond)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.bond.broken.load(Ordering::Acquire)
    }

    pub(super) fn remaining(&self, now: &Now) -> Duration {
        if self.over.load(Ordering::Acquire) || !self.bond.is_alive() {
            return Duration::ZERO;
        }
        let (lease, bond) = (*self.until.lock(), *self.bond.until.lock());
        lease.remaining(now).min(bond.remaining(now))
    }
}

impl Lease {
    pub(super) fn new(held: Arc<Held>, uplink: Arc<Uplink>) -> Self {
        Self { held, uplink }
    }

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
        self.held.remaining(&Now::of(self.uplink.clock()))
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
        self.uplink.release_now(&self.held)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.held.end() {
            self.uplink.release_soon(&self.held);
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
        let uplink = Uplink::of(self.registry()).ok_or_else(|| Error::NotAttached {
            id: self.id().to_owned(),
        })?;
        if self.is_over() {
            return Err(Error::Refused {
                id: self.id().to_owned(),
            });
        }
        uplink.claim(self.membership().post(), run_id, ttl)
    }
}

pub(crate) fn check_run_id(run_id: &str) -> Result<(), Error> {
    if run_id.is_empty() || run_id.len() > LONGEST_RUN_ID || run_id.chars().any(char::is_control) {
        return Err(Error::invalid(
            "run_id",
            format!("{:?}", &run_id[..run_id.floor_char_boundary(64)]),
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
