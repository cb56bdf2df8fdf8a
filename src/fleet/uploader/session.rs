//! How long a process believes in its leases: decided without a call to the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::clock::{Clock, Moment};
use crate::fleet::shapes::{LeaseKey, WorkerKey};
use crate::registry::core::worker_ref::WorkerRef;

/// The share of a limit that is not used, since two clocks may run at different speeds, and a store's
/// may be coarse.
const MARGIN: u32 = 20;
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// The state of a lease, shared by its holder and the thread that renews it.
#[derive(Debug)]
pub(in crate::fleet) struct LeaseState {
    pub key: LeaseKey,
    pub ttl: Duration,
    session: Arc<StoreSession>,
    until: Mutex<Deadline>,
    renewed_at: Mutex<Moment>,
    /// Its record was locked: it is not renewed before.
    postponed_until: Mutex<Moment>,
    /// It was lost or released.
    over: AtomicBool,
}

/// The session of one incarnation with a store, on which all its leases depend.
#[derive(Debug)]
pub(in crate::fleet) struct StoreSession {
    pub key: WorkerKey,
    stale_after: Duration,
    worker: WorkerRef,
    /// The incarnation, as the process counts it.
    incarnation: u32,
    until: Mutex<Deadline>,
    broken: AtomicBool,
}

/// A time on two clocks; it is reached when one of them shows it. The monotonic clock does not count
/// suspension, and the wall clock can be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::fleet) struct Deadline {
    moment: Moment,
    wall: SystemTime,
}

/// A reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub(in crate::fleet) struct ClockReading {
    pub moment: Moment,
    pub wall: SystemTime,
}

impl ClockReading {
    pub(in crate::fleet) fn of(clock: &Clock) -> Self {
        Self {
            moment: clock.now(),
            wall: clock.wall(),
        }
    }

    /// This long from now, less the margin.
    pub(in crate::fleet) fn deadline(&self, limit: Duration, spent: Duration) -> Deadline {
        let margin = (limit / MARGIN).max(LEAST_MARGIN);
        let left = limit.saturating_sub(margin).saturating_sub(spent);
        Deadline {
            moment: self.moment.after(left),
            wall: self.wall.checked_add(left).unwrap_or(self.wall),
        }
    }
}

impl Deadline {
    pub(in crate::fleet) fn remaining(&self, now: &ClockReading) -> Duration {
        let by_wall = self.wall.duration_since(now.wall).unwrap_or_default();
        self.moment.since(now.moment).min(by_wall)
    }
}

impl StoreSession {
    /// A session from its registration on; `sent` is from before the call to the store.
    pub(super) fn new(
        key: WorkerKey,
        stale_after: Duration,
        worker: WorkerRef,
        incarnation: u32,
        sent: &ClockReading,
    ) -> Self {
        Self {
            key,
            stale_after,
            worker,
            incarnation,
            until: Mutex::new(sent.deadline(stale_after, Duration::ZERO)),
            broken: AtomicBool::new(false),
        }
    }

    /// The store accepted a heartbeat of this age. No sweep convicts it for silence before that is
    /// older than `stale_after`.
    pub(super) fn accepted(&self, sent: &ClockReading, heartbeat_age: Option<Duration>) {
        if let Some(age) = heartbeat_age {
            *self.until.lock() = sent.deadline(self.stale_after, age);
        }
    }

    /// The store no longer knows this incarnation, or refuses it.
    pub(super) fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn is_alive(&self) -> bool {
        let record = &self.worker.record;
        !self.broken.load(Ordering::Acquire)
            // In this order: the next incarnation begins after this one has ended, and changes the
            // number.
            && !record.is_over()
            && record.incarnation() == self.incarnation
    }
}

impl LeaseState {
    pub(super) fn new(
        key: LeaseKey,
        ttl: Duration,
        session: Arc<StoreSession>,
        sent: &ClockReading,
    ) -> Self {
        Self {
            key,
            ttl,
            session,
            until: Mutex::new(sent.deadline(ttl, Duration::ZERO)),
            renewed_at: Mutex::new(sent.moment),
            postponed_until: Mutex::new(Moment::ZERO),
            over: AtomicBool::new(false),
        }
    }

    /// The worker that claimed it.
    pub(super) fn owner(&self) -> &WorkerRef {
        &self.session.worker
    }

    pub(super) fn renewed(&self, sent: &ClockReading) {
        *self.until.lock() = sent.deadline(self.ttl, Duration::ZERO);
        *self.renewed_at.lock() = sent.moment;
    }

    /// When to renew it: at a third of its `ttl`.
    pub(super) fn renewal_due(&self) -> Moment {
        let due = self.renewed_at.lock().after(self.ttl / 3);
        due.max(*self.postponed_until.lock())
    }

    pub(super) fn postpone(&self, until: Moment) {
        *self.postponed_until.lock() = until;
    }

    /// Ends it. `false` if it had ended before.
    pub(in crate::fleet) fn end(&self) -> bool {
        !self.over.swap(true, Ordering::AcqRel)
    }

    pub(super) fn belongs_to(&self, session: &Arc<StoreSession>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.session.broken.load(Ordering::Acquire)
    }

    pub(in crate::fleet) fn remaining(&self, now: &ClockReading) -> Duration {
        if self.over.load(Ordering::Acquire) || !self.session.is_alive() {
            return Duration::ZERO;
        }
        let (lease, session) = (*self.until.lock(), *self.session.until.lock());
        lease.remaining(now).min(session.remaining(now))
    }
}
