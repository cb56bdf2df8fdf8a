//! What readers ask of a registry about one worker, and the time that they judge by.

use std::time::{Duration, SystemTime};

use super::{READER_PATIENCE, Registry, Snapshot};
use crate::health::evidence::SHORTEST_WINDOW;
use crate::health::{Health, StallCause, Stalled};
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::WorkerRef;

impl Registry {
    /// The age of the pacemaker's last tick; `None` without workers, and so without a pacemaker.
    pub(crate) fn tick_age(&self, observed: &ObservedNow) -> Option<Duration> {
        self.inner
            .pacemaker
            .is_running()
            .then(|| observed.tick_age())
    }

    /// The registry's time now. If the pacemaker is overdue, wakes it and waits for it.
    #[inline]
    pub(crate) fn observed_now(&self) -> ObservedNow {
        let observed = self.inner.core.observed_now();
        if observed.overdue {
            self.fresh_observed_now()
        } else {
            observed
        }
    }

    /// The registry's time just after a tick, if the pacemaker ticks in time.
    #[cold]
    pub(crate) fn fresh_observed_now(&self) -> ObservedNow {
        let ticked = self.inner.pacemaker.await_tick(READER_PATIENCE);
        let mut observed = self.inner.core.observed_now();
        if !ticked && observed.overdue {
            observed.unwatched = Some(observed.tick_age());
        }
        observed
    }

    #[inline]
    pub(crate) fn is_recent(&self, worker: &WorkerRef) -> bool {
        let observed = self.inner.core.observed_now();
        match worker.plain_state(&observed) {
            Some(state) if !observed.overdue => state.is_recent(),
            _ => self.is_recent_in_full(worker),
        }
    }

    /// [`is_recent`](Self::is_recent) by the record, and after a tick if the pacemaker is overdue.
    #[cold]
    fn is_recent_in_full(&self, worker: &WorkerRef) -> bool {
        worker.health(&self.observed_now()).is_recent()
    }

    pub(crate) fn health(&self, worker: &WorkerRef) -> Health {
        let observed = self.observed_now();
        let health = worker.health(&observed);
        if self.gather_evidence(worker, &health) {
            return worker.health(&observed);
        }
        health
    }

    pub(crate) fn snapshot(&self, worker: &WorkerRef) -> Snapshot {
        let mut snapshot = self.snapshot_as_it_is(worker);
        if self.gather_evidence(worker, &snapshot.health) {
            snapshot = self.snapshot_as_it_is(worker);
        }
        snapshot.store = self.inner.core.store_hook.get().map(|store| store.status());
        snapshot
    }

    /// Without more evidence on a stall, and without the store's status.
    fn snapshot_as_it_is(&self, worker: &WorkerRef) -> Snapshot {
        self.snapshot_at(worker, &self.observed_now())
    }

    pub(crate) fn snapshot_at(&self, worker: &WorkerRef, observed: &ObservedNow) -> Snapshot {
        Snapshot::take(worker, observed, self.inner.core.clock.wall())
    }

    pub(crate) fn last_heartbeat(&self, worker: &WorkerRef) -> Option<SystemTime> {
        let observed = self.observed_now();
        let heartbeat_at = worker.facts(&observed).heartbeat_at()?;
        self.inner
            .core
            .clock
            .wall()
            .checked_sub(observed.now.since(heartbeat_at))
    }

    /// Gathers evidence on a worker that has just stalled. Returns whether it did.
    fn gather_evidence(&self, worker: &WorkerRef, health: &Health) -> bool {
        let Health::Stalled(Stalled {
            cause: StallCause::Unknown,
            ..
        }) = health
        else {
            return false;
        };
        if worker.gather_evidence(false).is_some() {
            std::thread::sleep(SHORTEST_WINDOW);
            worker.gather_evidence(false);
        }
        true
    }
}
