//! The beginning of a shutdown: every worker is asked to stop, the application is woken, the log written.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Begun, Inner, ShutdownCause};
use crate::clock::{Clock, Moment, ObservedTime, Patience};
use crate::health::StopCause;
use crate::registry::Registry;
use crate::registry::core::PendingNotices;
use crate::sync::background;
use crate::sync::log::log_line;
use crate::sync::wakers::wake;

impl Inner {
    /// Records that the shutdown begins. `false` if it had begun before.
    pub(super) fn begin(&self, cause: ShutdownCause) -> bool {
        let time = Arc::new(ObservedTime::begin(self.timeout));
        self.begun.set(Begun { cause, time }).is_ok()
    }

    /// Begins the shutdown on this thread, unless it has begun.
    pub(super) fn begin_here(self: &Arc<Self>, cause: ShutdownCause) {
        if self.begin(cause) {
            self.wake_sender.wake();
            Self::announce_in_background(self, cause, true);
        }
    }

    /// Announces the shutdown on a short-lived thread, since log implementations and wakers may block.
    /// If no thread can be started, the calling thread does it, and logs only if it `may_log`.
    pub(super) fn announce_in_background(this: &Arc<Self>, cause: ShutdownCause, may_log: bool) {
        let inner = Arc::clone(this);
        if background::detach("wh-announce", move || inner.announce(cause, true)).is_err() {
            this.announce(cause, may_log);
        }
    }

    /// Asks the workers to stop, then wakes the application, then logs if it may.
    pub(super) fn announce(&self, cause: ShutdownCause, may_log: bool) {
        let stop_cause = match cause {
            ShutdownCause::Signal(signal) => StopCause::Signal(signal.name()),
            _ => StopCause::Shutdown,
        };
        // The workers before the application: if it ends them, that must not look like an unrequested
        // return.
        let clocks = self.registries.iter().map(Registry::clock);
        let asked = clocks.map(Clock::now).collect();
        let mut notices: Vec<_> = self
            .registries
            .iter()
            .map(|registry| registry.request_stop(&stop_cause))
            .collect();
        self.set_requested(cause, asked);

        // All wakers before the first log line: the log may block.
        notices.iter_mut().for_each(PendingNotices::wake);
        if !may_log {
            return;
        }
        self.log_begin();
        notices.into_iter().for_each(PendingNotices::deliver);
    }

    /// Every worker has been asked to stop, at these times: wakes the application.
    pub(super) fn set_requested(&self, cause: ShutdownCause, asked: Vec<Moment>) {
        let mut progress = self.progress.lock();
        progress.asked = asked;
        self.requested.store(true, Ordering::Release);
        progress.latch.set(cause);
        let waiting = progress.waiting.take();
        drop(progress);
        self.changed.notify_all();
        waiting.for_each(wake);
    }

    pub(super) fn log_begin(&self) {
        let Some(Begun { cause, .. }) = self.begun.get() else {
            return;
        };
        let level = if cause.is_fault() {
            log::Level::Error
        } else {
            log::Level::Info
        };
        log_line(
            level,
            format_args!("shutdown begun by {cause}, {:?} allowed", self.timeout),
        );
    }

    /// Waits until every worker has been asked to stop; another thread may be doing that.
    pub(super) fn wait_for_request(&self) {
        let patience = Patience::new(self.timeout);
        let mut progress = self.progress.lock();
        while !self.is_requested() {
            let Some(slice) = patience.slice() else {
                return;
            };
            self.changed.wait_for(&mut progress, slice);
        }
    }
}
