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
        let in_flight = LogInFlight::begin(self);
        let (ended, event) = self.end_quietly(worker, end);
        if let Some(event) = event {
            self.subscribers.wake();
            let in_log = self.unreturned.begin_logging(&worker.record);
            self.log(&event);
            drop(in_log);
        }
        drop(in_flight);
        ended
    }

    /// Ends a worker's incarnation. The caller logs the event.
    fn end_quietly(&self, worker: &WorkerRef, end: Termination) -> (bool, Option<Event>) {
        let _events = self.lock_events(&worker.record);
        match worker.end(end, &self.observed_now(), self.clock.wall()) {
            Some(health) => (true, self.publish_end(worker, health)),
            None => (false, None),
        }
    }

    /// Ends this life of a worker that a newer incarnation elsewhere has replaced, and reports it.
    pub(crate) fn fence(&self, worker: &WorkerRef, incarnation: u32) {
        let _in_flight = LogInFlight::begin(self);
        let turn = self.lock_events(&worker.record);
        // No other life begins under the lock of events.
        if worker.record.incarnation() != incarnation {
            return;
        }
        let worker = &*worker.current();
        let end = Termination::Dead(DeathCause::Fenced);
        let (ended, wakers) = worker.cut_off(
            StopCause::Fenced,
            end,
            &self.observed_now(),
            self.clock.wall(),
        );
        let event = ended.and_then(|health| self.publish_end(worker, health));
        drop(turn);
        wakers.into_iter().for_each(wake);
        if let Some(event) = event {
            self.subscribers.wake();
            self.log(&event);
        }
    }

    fn publish_end(&self, worker: &WorkerRef, health: Health) -> Option<Event> {
        self.changed.store(true, Ordering::Release);
        self.publish(Some(&worker.record), EventKind::Became(health))
    }

    /// Ends workers whatever they are doing. The caller notifies executors and the log, which may block,
    /// by [`PendingNotices::deliver`].
    pub(crate) fn cut_off(
        &self,
        workers: &[WorkerRef],
        request: &StopCause,
        end: impl Fn() -> Termination,
    ) -> PendingNotices<'_> {
        let mut notices = PendingNotices::new(self);
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            let worker = &*worker.current();
            let (ended, wakers) = worker.cut_off(
                request.clone(),
                end(),
                &self.observed_now(),
                self.clock.wall(),
            );
            notices.wakers.extend(wakers);
            if let Some(health) = ended {
                notices.note(&worker.record, self.publish_end(worker, health));
            }
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
                let kind = EventKind::Became(Health::Stopping);
                notices.note(&worker.record, self.publish(Some(&worker.record), kind));
            }
        }
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            let worker = &*worker.current();
            let (ended, wakers) = worker.show_stop(&self.observed_now(), self.clock.wall());
            notices.wakers.extend(wakers);
            if let Some(health) = ended {
                notices.note(&worker.record, self.publish_end(worker, health));
            }
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
    events: Vec<(Arc<Record>, Event)>,
}

impl<'a> PendingNotices<'a> {
    fn new(core: &'a Core) -> Self {
        Self {
            core,
            _in_flight: LogInFlight::begin(core),
            wakers: Vec::new(),
            events: Vec::new(),
        }
    }

    fn note(&mut self, record: &Arc<Record>, event: Option<Event>) {
        self.events
            .extend(event.map(|event| (Arc::clone(record), event)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && self.events.is_empty()
    }

    /// Wakes the tasks that wait for the request. [`deliver`](Self::deliver) does so too, before it logs.
    pub(crate) fn wake(&mut self) {
        self.wakers.drain(..).for_each(wake);
        self.core.subscribers.wake();
    }

    pub(crate) fn deliver(mut self) {
        self.wake();
        for (record, event) in std::mem::take(&mut self.events) {
            self.core.log_unless_over(&record, &event);
        }
    }

    /// As [`deliver`](Self::deliver), but another thread writes the log. `core` is the same core.
    fn deliver_in_background(mut self, core: &Arc<Core>) {
        self.wake();
        core.log_in_background(std::mem::take(&mut self.events));
    }
}
