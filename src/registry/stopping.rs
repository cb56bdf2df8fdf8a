//! Stopping workers, ending them, and waiting for their ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Registry;
use crate::clock::Patience;
use crate::health::StopCause;
use crate::registry::core::PendingNotices;
use crate::registry::core::escalation::{Escalate, Escalation, Trigger};
use crate::registry::core::unreturned::Waits;
use crate::registry::core::worker_ref::{Termination, WorkerRef};

impl Registry {
    /// Asks every worker to stop, those to come included. When this returns, all of them have been asked.
    pub(crate) fn request_stop(&self, cause: &StopCause) -> PendingNotices<'_> {
        self.inner
            .stopping
            .lock()
            .get_or_insert_with(|| cause.clone());
        let core = &self.inner.core;
        core.stopping.store(true, Ordering::Release);
        let workers = self.inner.scan.count(|| core.worker_refs());
        core.request_stop(&workers, cause)
    }

    /// As [`request_stop`](Self::request_stop), because of this escalation. All notices are delivered;
    /// another thread writes the log.
    pub(crate) fn escalate(&self, escalation: Escalation, cause: &StopCause) {
        let core = &self.inner.core;
        let _ = core.escalated.set(escalation);
        self.request_stop(cause).deliver_in_background(core);
    }

    /// What began the shutdown, if a trigger did.
    #[cfg(any(feature = "http", feature = "beacon", all(unix, feature = "systemd")))]
    pub(crate) fn escalation(&self) -> Option<Escalation> {
        self.inner.core.escalated.get().copied()
    }

    /// Adds the triggers of a shutdown.
    pub(crate) fn add_triggers(&self, triggers: &Arc<[Trigger]>, shutdown: Arc<dyn Escalate>) {
        let core = &self.inner.core;
        core.add_triggers(triggers, shutdown);
        for worker in self.worker_refs() {
            core.note_ended(&worker.record);
        }
        core.act_on_events();
        self.ring();
    }

    /// No supervisor restarts this worker any more.
    pub(crate) fn leave_dead(&self, worker: &WorkerRef) {
        self.inner.core.leave_dead(&worker.record);
    }

    /// Whether all workers were asked to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.stopping.lock().is_some()
    }

    /// Asks one worker to stop. The log is written by another thread.
    pub(crate) fn request_stop_of(&self, worker: &WorkerRef, cause: &StopCause) {
        let core = &self.inner.core;
        core.request_stop_in_background(worker, cause);
    }

    /// Ends a worker, and reports it. `false` if it had ended before.
    pub(crate) fn end(&self, worker: &WorkerRef, end: Termination) -> bool {
        self.inner.core.end(worker, end)
    }

    /// Ends this life of a worker that a newer incarnation elsewhere has replaced, and reports it.
    pub(crate) fn fence(&self, worker: &WorkerRef, incarnation: u32) {
        self.inner.core.fence(worker, incarnation);
    }

    /// Whether the calling thread runs supervised work of this worker.
    pub(crate) fn runs_here(&self, worker: &WorkerRef) -> bool {
        self.inner.core.unreturned.is_here(&worker.record)
    }

    /// Marks the supervised work that the calling thread runs as waiting for the end of a shutdown.
    pub(crate) fn begin_waits(registries: &[Self], blocking: bool) -> Waits {
        Waits::begin(
            registries.iter().map(|registry| &registry.inner.core),
            blocking,
        )
    }

    /// Waits until every worker has ended, within the patience. Returns whether all have.
    pub(crate) fn drain(&self, patience: &Patience) -> bool {
        let core = &self.inner.core;
        core.wait_for_ends(patience, || self.unended().is_empty())
    }

    /// Waits until supervised work has returned, within the patience, and for at most `log` for work
    /// whose thread is writing to the log.
    pub(crate) fn wait_for_work(&self, patience: &Patience, log: Duration) {
        let core = &self.inner.core;
        core.wait_for_ends(patience, || !core.unreturned.is_awaited(log));
    }

    /// The ids of the workers that have ended while their supervised work has not returned.
    pub(crate) fn unreturned(&self, log: Duration) -> Vec<String> {
        let mut awaited = self.inner.core.unreturned.awaited(log);
        awaited.retain(|record| record.is_over());
        let ids = awaited.iter().map(|record| record.id().to_owned());
        ids.collect()
    }

    /// Waits until every end has been logged, within the patience.
    pub(crate) fn wait_for_log(&self, patience: &Patience) {
        let core = &self.inner.core;
        core.wait_for_ends(patience, || core.all_logged());
    }

    /// Waits until the present state is in the store that the registry is attached to, within the
    /// patience and the configured farewell.
    pub(crate) fn flush_store(&self, patience: &Patience) {
        if let Some(store_hook) = self.inner.core.store_hook.get() {
            store_hook.farewell(patience);
        }
    }

    /// The workers that have not ended.
    pub(crate) fn living(&self) -> Vec<WorkerRef> {
        let core = &self.inner.core;
        let mut workers = self.inner.scan.count(|| core.worker_refs());
        workers.retain(|worker| !worker.record.is_over());
        workers
    }

    /// The living workers that a shutdown waits for: all but those that wait for the shutdown.
    pub(crate) fn unended(&self) -> Vec<WorkerRef> {
        let blocked = self.inner.core.unreturned.blocked();
        let mut workers = self.living();
        let waits = |worker: &WorkerRef| {
            blocked
                .iter()
                .any(|record| Arc::ptr_eq(record, &worker.record))
        };
        workers.retain(|worker| !waits(worker));
        workers
    }
}
