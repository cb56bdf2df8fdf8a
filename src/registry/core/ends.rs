//! How lives end: by a request to stop, by their own end, or cut off; and what waits for that.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use super::Core;
use super::events::{Event, EventKind};
use super::record::Record;
use super::worker_ref::{Termination, WorkerRef};
use crate::clock::Patience;
use crate::health::{DeathCause, Health, StopCause};
use crate::sync::wakers::wake;

impl Core {
    /// Ends a worker's incarnation, and reports it. `false` if it had ended before.
    pub(crate) fn end(&self, worker: &WorkerRef, end: Termination) -> bool {
        let mut notices = PendingNotices::new(self);
        let events = self.lock_events(&worker.record);
        let health = worker.end(end, &self.observed_now(), self.clock.wall());
        let ended = health.is_some();
        notices.add(worker, (health, Vec::new()));
        drop(events);
        if notices.is_empty() {
            // Nobody wants to know it, but it may begin a shutdown.
            notices.wake();
        } else {
            let _logging = self.unreturned.begin_logging(&worker.record);
            notices.deliver();
        }
        ended
    }

    /// Ends this life of a worker that a newer incarnation elsewhere has replaced, and reports it.
    pub(crate) fn fence(&self, worker: &WorkerRef, incarnation: u32) {
        let mut notices = PendingNotices::new(self);
        let events = self.lock_events(&worker.record);
        // No other life begins under the lock of events.
        if worker.record.incarnation() == incarnation {
            let end = Termination::Dead(DeathCause::Fenced);
            notices.cut_off(worker, StopCause::Fenced, end);
        }
        drop(events);
        notices.deliver();
    }

    /// Ends workers whatever they are doing. The caller notifies executors and the log, which may
    /// block, by [`PendingNotices::deliver`].
    pub(crate) fn cut_off(
        &self,
        workers: &[WorkerRef],
        request: &StopCause,
        end: impl Fn() -> Termination,
    ) -> PendingNotices<'_> {
        let mut notices = PendingNotices::new(self);
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            notices.cut_off(worker, request.clone(), end());
        }
        notices
    }

    /// Whether every end has been logged.
    pub(crate) fn all_logged(&self) -> bool {
        self.logs_in_flight.load(Ordering::Acquire) == 0
    }

    /// Asks workers to stop; idle ones are stopped at once. When this returns, all of them have been
    /// asked. The caller notifies executors and the log, which may block, by
    /// [`PendingNotices::deliver`].
    pub(crate) fn request_stop(
        &self,
        workers: &[WorkerRef],
        cause: &StopCause,
    ) -> PendingNotices<'_> {
        let mut notices = PendingNotices::new(self);
        // All requests before any end: a subscriber never sees the end of a worker before its request.
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            let worker = worker.current();
            if worker.claim_stop(cause.clone()) == Some(true) {
                notices.publish(&worker, Health::Stopping);
            }
        }
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            let worker = &*worker.current();
            let observed = self.observed_now();
            let shown = worker.show_stop(&observed, self.clock.wall());
            notices.add(worker, shown);
            self.draining.add(worker, observed.now);
        }
        notices
    }

    /// As [`request_stop`](Self::request_stop) for one worker, with all notices delivered; another thread
    /// writes the log.
    pub(crate) fn request_stop_in_background(
        self: &Arc<Self>,
        worker: &WorkerRef,
        cause: &StopCause,
    ) {
        self.request_stop(std::slice::from_ref(worker), cause)
            .deliver_in_background(self);
    }

    /// Notes that something ended that other threads may wait for.
    pub(super) fn note_end(&self) {
        *self.ends.lock() += 1;
        self.ended.notify_all();
    }

    /// Waits until `over` returns `true`, within the patience. Returns its last result. It is called
    /// at every end, and once in a slice: a log that blocks delays the count of an end.
    pub(crate) fn wait_for_ends(
        &self,
        patience: &Patience,
        mut over: impl FnMut() -> bool,
    ) -> bool {
        loop {
            let before = *self.ends.lock();
            if over() {
                return true;
            }
            let Some(slice) = patience.slice() else {
                return false;
            };
            let mut ends = self.ends.lock();
            if *ends == before {
                self.ended.wait_for(&mut ends, slice);
            }
        }
    }
}

/// Held until an end has been logged: a process that waits for the ends of its workers waits for that
/// too.
#[derive(Debug)]
pub(super) struct LogInFlight<R: Deref<Target = Core>>(pub(super) R);

impl<R: Deref<Target = Core>> LogInFlight<R> {
    pub(super) fn begin(core: R) -> Self {
        core.logs_in_flight.fetch_add(1, Ordering::AcqRel);
        Self(core)
    }
}

impl<R: Deref<Target = Core>> Drop for LogInFlight<R> {
    fn drop(&mut self) {
        self.0.logs_in_flight.fetch_sub(1, Ordering::AcqRel);
        self.0.note_end();
    }
}

/// Notices of stops and ends that have not been delivered: wakers, and events for the log.
#[must_use = "executors wait for it"]
pub(crate) struct PendingNotices<'a> {
    core: &'a Core,
    _in_flight: LogInFlight<&'a Core>,
    wakers: Vec<Waker>,
    /// The workers that have ended.
    ended: Vec<Arc<Record>>,
    events: Vec<(Arc<Record>, Event)>,
}

impl<'a> PendingNotices<'a> {
    fn new(core: &'a Core) -> Self {
        Self {
            core,
            _in_flight: LogInFlight::begin(core),
            wakers: Vec::new(),
            ended: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Ends a worker whatever it is doing. Under its lock of events.
    fn cut_off(&mut self, worker: &WorkerRef, request: StopCause, end: Termination) {
        let (worker, core) = (&*worker.current(), self.core);
        let ended = worker.cut_off(request, end, &core.observed_now(), core.clock.wall());
        self.add(worker, ended);
    }

    /// Adds the end of a worker, if it ended, and wakers. Under its lock of events.
    fn add(&mut self, worker: &WorkerRef, (ended, wakers): (Option<Health>, Vec<Waker>)) {
        self.wakers.extend(wakers);
        if let Some(health) = ended {
            self.core.changed.store(true, Ordering::Release);
            self.ended.push(Arc::clone(&worker.record));
            self.publish(worker, health);
        }
    }

    fn publish(&mut self, worker: &WorkerRef, health: Health) {
        let record = &worker.record;
        let event = self.core.publish(Some(record), EventKind::Became(health));
        self.events
            .extend(event.map(|event| (Arc::clone(record), event)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && self.ended.is_empty() && self.events.is_empty()
    }

    /// Wakes the tasks that wait for the request, or for the loss of a lease. [`deliver`](Self::deliver) does so too, before it logs.
    pub(crate) fn wake(&mut self) {
        self.wakers.drain(..).for_each(wake);
        let store_hook = self.core.store_hook.get();
        for record in std::mem::take(&mut self.ended) {
            if let Some(store_hook) = &store_hook {
                store_hook.worker_ended(&record);
            }
        }
        self.core.act_on_events();
    }

    pub(crate) fn deliver(mut self) {
        self.wake();
        for (record, event) in std::mem::take(&mut self.events) {
            self.core.log_unless_over(&record, &event);
        }
    }

    /// As [`deliver`](Self::deliver), but another thread writes the log. `core` is the same core.
    pub(in crate::registry) fn deliver_in_background(mut self, core: &Arc<Core>) {
        self.wake();
        core.log_in_background(std::mem::take(&mut self.events));
    }
}
