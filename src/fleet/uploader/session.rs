//! How long a process believes in its leases: decided without a call to the store.

use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, SystemTime};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::sync_state::address;
use crate::clock::{Clock, Moment};
use crate::fleet::shapes::{LeaseKey, WorkerKey};
use crate::health::LeaseLoss;
use crate::registry::core::worker_ref::WorkerRef;
use crate::sync::latch::Latch;
use crate::sync::wakers::{Wakers, wake};

/// The share of a limit that is not used, since two clocks may run at different speeds, and a store's
/// may be coarse.
const MARGIN: u32 = 20;
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// The state of a lease, shared by its holder, those who wait for its loss and the thread that renews
/// it.
#[derive(Debug)]
pub(in crate::fleet) struct LeaseState {
    pub key: LeaseKey,
    pub ttl: Duration,
    session: Arc<StoreSession>,
    /// When the last renewal that the store accepted was sent.
    renewed: Mutex<ClockReading>,
    /// Its record was locked: it is not renewed before.
    postponed_until: Mutex<Moment>,
    /// Why it is not held any more.
    loss: OnceLock<LeaseLoss>,
    waiting: Mutex<Waiting>,
}

/// Those who wait for the loss of a lease.
#[derive(Debug)]
struct Waiting {
    threads: Latch<LeaseLoss>,
    tasks: Wakers,
}

/// The session of one incarnation with a store, on which all its leases depend.
#[derive(Debug)]
pub(in crate::fleet) struct StoreSession {
    pub key: WorkerKey,
    stale_after: Duration,
    worker: WorkerRef,
    /// The incarnation, as the process counts it.
    incarnation: u32,
    heard: Mutex<Heard>,
    /// Why the store no longer knows this incarnation, or refuses it.
    broken: OnceLock<LeaseLoss>,
}

/// A heartbeat that the store has accepted.
#[derive(Clone, Copy, Debug)]
struct Heard {
    sent: ClockReading,
    /// Its age when it was sent.
    age: Duration,
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

    /// The time since an earlier reading, by the clock that shows more of it.
    fn since(&self, earlier: &Self) -> Duration {
        let by_wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        self.moment.since(earlier.moment).max(by_wall)
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

    pub(super) const fn moment(&self) -> Moment {
        self.moment
    }

    /// Reached as soon as one of the two is.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            moment: self.moment.min(other.moment),
            wall: self.wall.min(other.wall),
        }
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
            heard: Mutex::new(Heard {
                sent: *sent,
                age: Duration::ZERO,
            }),
            broken: OnceLock::new(),
        }
    }

    /// The store accepted a heartbeat of this age. No sweep convicts it for silence before that is
    /// older than `stale_after`.
    pub(super) fn accepted(&self, sent: &ClockReading, heartbeat_age: Option<Duration>) {
        if let Some(age) = heartbeat_age {
            *self.heard.lock() = Heard { sent: *sent, age };
        }
    }

    /// The store no longer knows this incarnation, or refuses it.
    pub(super) fn break_off(&self, why: LeaseLoss) {
        // The first reason counts.
        let _ = self.broken.set(why);
    }

    pub(super) fn record_address(&self) -> usize {
        address(&self.worker.record)
    }

    /// Until when no sweep convicts the worker for its silence.
    fn until(&self) -> Deadline {
        let heard = self.heard.lock();
        heard.sent.deadline(self.stale_after, heard.age)
    }

    /// Why its leases are not held, whatever their own time.
    fn loss(&self) -> Option<LeaseLoss> {
        if let Some(why) = self.broken.get() {
            return Some(why.clone());
        }
        let record = &self.worker.record;
        // In this order: the next incarnation begins after this one has ended, and changes the number.
        let ended = record.is_over() || record.incarnation() != self.incarnation;
        ended.then(|| LeaseLoss::WorkerEnded {
            ending: self.worker.ending(),
        })
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
            renewed: Mutex::new(*sent),
            postponed_until: Mutex::new(Moment::ZERO),
            loss: OnceLock::new(),
            waiting: Mutex::new(Waiting {
                threads: Latch::new(),
                tasks: Wakers::default(),
            }),
        }
    }

    /// The worker that claimed it.
    pub(super) fn owner(&self) -> &WorkerRef {
        &self.session.worker
    }

    pub(super) fn renewed(&self, sent: &ClockReading) {
        *self.renewed.lock() = *sent;
    }

    /// When to renew it: at a third of its `ttl`.
    pub(super) fn renewal_due(&self) -> Moment {
        let due = self.renewed.lock().moment.after(self.ttl / 3);
        due.max(*self.postponed_until.lock())
    }

    pub(super) fn postpone(&self, until: Moment) {
        *self.postponed_until.lock() = until;
    }

    /// Ends it, and wakes all who wait for that. `false` if it had ended before.
    pub(super) fn end(&self, loss: &LeaseLoss) -> bool {
        if self.loss.set(loss.clone()).is_err() {
            return false;
        }
        let mut waiting = self.waiting.lock();
        waiting.threads.set(loss.clone());
        let tasks = waiting.tasks.take();
        drop(waiting);
        tasks.for_each(wake);
        true
    }

    pub(super) fn belongs_to(&self, session: &Arc<StoreSession>) -> bool {
        Arc::ptr_eq(&self.session, session)
    }

    pub(super) fn is_over(&self) -> bool {
        self.loss.get().is_some()
    }

    /// Until when it is held if nothing happens, or why it is not held.
    pub(super) fn belief(&self, now: &ClockReading) -> Result<Deadline, LeaseLoss> {
        if let Some(loss) = self.loss.get() {
            return Err(loss.clone());
        }
        if let Some(loss) = self.session.loss() {
            return Err(loss);
        }
        let renewed = *self.renewed.lock();
        let (own, session) = (
            renewed.deadline(self.ttl, Duration::ZERO),
            self.session.until(),
        );
        if own.remaining(now).is_zero() {
            return Err(LeaseLoss::Expired {
                unrenewed: now.since(&renewed),
                error: None,
            });
        }
        if session.remaining(now).is_zero() {
            let heard = *self.session.heard.lock();
            return Err(LeaseLoss::Unheard {
                unheard: now.since(&heard.sent).saturating_add(heard.age),
                error: None,
            });
        }
        Ok(own.or(session))
    }

    pub(in crate::fleet) fn remaining(&self, now: &ClockReading) -> Duration {
        if self.is_over() {
            return Duration::ZERO;
        }
        let until = self.belief(now);
        until.map_or(Duration::ZERO, |until| until.remaining(now))
    }

    /// Wakes this waker once the lease has ended. Returns the number by which the waker is replaced or
    /// forgotten; `None` if the lease has ended.
    pub(in crate::fleet) fn on_end(&self, known: Option<u64>, waker: &Waker) -> Option<u64> {
        // Neither cloned nor dropped under the lock: wakers belong to executors.
        let waker = waker.clone();
        let mut waiting = self.waiting.lock();
        if self.is_over() {
            return None;
        }
        let (number, replaced) = waiting.tasks.keep(known, waker);
        drop(waiting);
        drop(replaced);
        Some(number)
    }

    pub(in crate::fleet) fn forget(&self, number: u64) {
        let forgotten = self.waiting.lock().tasks.forget(number);
        drop(forgotten);
    }

    /// A channel that receives the reason once the lease has ended.
    pub(in crate::fleet) fn end_receiver(&self) -> Receiver<LeaseLoss> {
        self.waiting.lock().threads.receiver()
    }
}
