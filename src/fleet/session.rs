//! What a worker's process believes of its leases, and for how long: decided without the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::key::{LeaseKey, WorkerKey};
use crate::clock::{Clock, Moment};
use crate::registry::core::worker_ref::WorkerRef;

/// Two clocks may run at different speeds, and a store's may be coarse: this share of a limit is
/// not believed in.
const MARGIN: u32 = 20;
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// What a lease shares with whoever renews it.
#[derive(Debug)]
pub(super) struct LeaseState {
    pub key: LeaseKey,
    pub ttl: Duration,
    session: Arc<StoreSession>,
    until: Mutex<Deadline>,
    renewed_at: Mutex<Moment>,
    /// Not ours any more; whether that has been told.
    over: AtomicBool,
}

/// What one incarnation has with a store, and all its leases hang on.
#[derive(Debug)]
pub(super) struct StoreSession {
    pub key: WorkerKey,
    stale_after: Duration,
    worker: WorkerRef,
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

impl StoreSession {
    /// Registered: `sent` was before the store was asked.
    pub(super) fn new(
        key: WorkerKey,
        stale_after: Duration,
        worker: WorkerRef,
        life: u32,
        sent: &Now,
    ) -> Self {
        Self {
            key,
            stale_after,
            worker,
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
        let record = &self.worker.record;
        !self.broken.load(Ordering::Acquire)
            // In this order: of a next life, which begins when this one is over, the number is seen.
            && !record.is_over()
            && record.incarnation() == self.life
    }
}

impl LeaseState {
    pub(super) fn new(
        key: LeaseKey,
        ttl: Duration,
        session: Arc<StoreSession>,
        sent: &Now,
    ) -> Self {
        Self {
            key,
            ttl,
            session,
            until: Mutex::new(sent.deadline(ttl, Duration::ZERO)),
            renewed_at: Mutex::new(sent.moment),
            over: AtomicBool::new(false),
        }
    }

    /// The worker that claimed it.
    pub(super) fn owner(&self) -> &WorkerRef {
        &self.session.worker
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

    pub(super) fn hangs_on(&self, session: &Arc<StoreSession>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.session.broken.load(Ordering::Acquire)
    }

    pub(super) fn remaining(&self, now: &Now) -> Duration {
        if self.over.load(Ordering::Acquire) || !self.session.is_alive() {
            return Duration::ZERO;
        }
        let (lease, session) = (*self.until.lock(), *self.session.until.lock());
        lease.remaining(now).min(session.remaining(now))
    }
}
