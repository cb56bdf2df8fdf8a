//! What the store has been sent, worker by worker.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::resolve::{ClaimCall, ClaimPlace, UnresolvedClaim};
use super::session::{LeaseState, StoreSession};
use super::thread::retry_pause;
use crate::clock::Moment;
use crate::fleet::shapes::LeaseKey;
use crate::health::{LeaseLoss, State};
use crate::registry::core::record::Record;
use crate::registry::core::worker_ref::WorkerRef;

/// The shortest pause before a busy store is asked again.
const SHORTEST_BUSY: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SyncState {
    /// By the address of their records, which they keep alive.
    pub workers: HashMap<usize, SyncedWorker>,
    pub leases: Leases,
    /// The claims that are with the store.
    pub calls: HashMap<ClaimPlace, ClaimCall>,
    /// Claims whose outcome is not known.
    pub unresolved: Vec<UnresolvedClaim>,
    pub to_release: Vec<LeaseKey>,
    /// The record of one of them is locked; the next attempt is then.
    pub release_at: Moment,
}

impl SyncState {
    pub(super) fn get_mut(&mut self, worker: &WorkerRef) -> Option<&mut SyncedWorker> {
        self.workers.get_mut(&address(&worker.record))
    }

    pub(super) fn unfinished(&self) -> impl Iterator<Item = &SyncedWorker> {
        self.workers.values().filter(|worker| !worker.finished)
    }
}

/// The leases that are renewed, by the address of their workers' records.
#[derive(Debug, Default)]
pub(super) struct Leases(HashMap<usize, Vec<Arc<LeaseState>>>);

impl Leases {
    pub(super) fn add(&mut self, lease: &Arc<LeaseState>) {
        let place = address(&lease.owner().record);
        self.0.entry(place).or_default().push(Arc::clone(lease));
    }

    pub(super) fn remove(&mut self, lease: &Arc<LeaseState>) {
        let place = address(&lease.owner().record);
        if let Some(leases) = self.0.get_mut(&place) {
            leases.retain(|other| !Arc::ptr_eq(other, lease));
            if leases.is_empty() {
                self.0.remove(&place);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<LeaseState>> {
        self.0.values().flatten()
    }

    /// Those of a worker, by the address of its record.
    pub(super) fn of(&self, record: usize) -> &[Arc<LeaseState>] {
        self.0.get(&record).map_or(&[], Vec::as_slice)
    }

    /// Those that depend on this session.
    pub(super) fn of_session(
        &self,
        session: &Arc<StoreSession>,
    ) -> impl Iterator<Item = &Arc<LeaseState>> {
        let leases = self.of(session.record_address()).iter();
        leases.filter(move |lease| lease.belongs_to(session))
    }
}

#[derive(Debug)]
pub(super) struct SyncedWorker {
    pub worker: WorkerRef,
    /// The incarnation that is synchronized, as the process counts it.
    pub incarnation: u32,
    pub session: Option<Arc<StoreSession>>,
    /// Its last accepted heartbeat.
    pub sent: Option<SentState>,
    /// The store has its end, or refused it: nothing is left to send.
    pub finished: bool,
    /// A sweep marked it offline.
    pub swept: bool,
    /// Until then, a registration without an answer may still reach the store.
    pub unsure_until: Moment,
    /// The store refused it; the next attempt is then.
    pub refused_until: Option<Moment>,
    /// The store was busy with it, or did not answer for it alone.
    pub busy: Option<Busy>,
}

/// A store that answered [`Answer::Busy`](crate::fleet::Answer::Busy) for a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    /// The next attempt.
    until: Moment,
    /// How often in a row.
    pub times: u32,
}

/// What a heartbeat contained, as far as a change of it is urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SentState {
    pub state: State,
    pub task: u32,
    /// Which call stack the store has: its number, and whether it could be read.
    pub stack: Option<(u64, bool)>,
    pub at: Moment,
}

impl SyncedWorker {
    pub(super) const fn new(worker: WorkerRef, incarnation: u32) -> Self {
        Self {
            worker,
            incarnation,
            session: None,
            sent: None,
            finished: false,
            swept: false,
            unsure_until: Moment::ZERO,
            refused_until: None,
            busy: None,
        }
    }

    pub(super) const fn is_busy(&self) -> bool {
        self.busy.is_some() && !self.finished
    }

    /// Whether it is not to be left alone for a while.
    pub(super) fn may_be_sent(&self, now: Moment) -> bool {
        self.refused_until.is_none_or(|until| until <= now)
            && self.busy.is_none_or(|busy| busy.until <= now)
    }

    /// Whether a heartbeat is due: its time has come, or something changed.
    pub(super) fn is_due(&self, now: &SentState) -> bool {
        let interval = self.worker.record.profile.interval;
        let changed = |sent: SentState| {
            (sent.state, sent.task, sent.stack) != (now.state, now.task, now.stack)
                // A round that comes a little early counts for this worker too.
                || now.at.since(sent.at) >= interval / 4 * 3
        };
        self.may_be_sent(now.at) && (self.busy.is_some() || self.sent.is_none_or(changed))
    }

    /// Whether the worker is still in this incarnation.
    pub(super) fn is_present(&self) -> bool {
        self.worker.record.incarnation() == self.incarnation
    }

    /// Its heartbeat or its end is sent again after a pause, which grows up to a quarter of its
    /// interval.
    pub(super) fn retry_busy(&mut self, now: Moment) {
        let times = self.busy.map_or(0, |busy| busy.times);
        let longest = self.worker.record.profile.interval / 4;
        let pause = retry_pause(times).min(longest.max(SHORTEST_BUSY));
        self.busy = Some(Busy {
            until: now.after(pause),
            times: times.saturating_add(1),
        });
    }

    fn due_at(&self) -> Option<Moment> {
        if let Some(busy) = self.busy {
            return Some(busy.until);
        }
        Some(self.sent?.at.after(self.worker.record.profile.interval))
    }

    pub(super) const fn is_refused(&self) -> bool {
        self.refused_until.is_some() && !self.finished
    }

    /// When the next call for it is due at the latest.
    pub(super) fn next_at(&self) -> Option<Moment> {
        if self.finished {
            return None;
        }
        let waiting = self.refused_until.max(self.busy.map(|busy| busy.until));
        waiting.or_else(|| self.due_at())
    }

    /// The store does not know this incarnation, or no longer.
    pub(super) fn forget(&mut self, why: LeaseLoss) {
        if let Some(session) = self.session.take() {
            session.break_off(why);
        }
        self.sent = None;
        self.busy = None;
    }

    pub(super) fn is_session(&self, session: &Arc<StoreSession>) -> bool {
        let own = self.session.as_ref();
        own.is_some_and(|own| Arc::ptr_eq(own, session))
    }

    /// Ends the synchronization of this incarnation.
    pub(super) fn finish(&mut self) {
        self.forget(LeaseLoss::WorkerEnded {
            ending: self.worker.ending(),
        });
        self.finished = true;
        self.busy = None;
        self.worker.record.set_end_stored(self.incarnation);
    }
}

pub(super) fn address(record: &Arc<Record>) -> usize {
    Arc::as_ptr(record).addr()
}
