//! A worker's life in a registry: it lasts as long as somebody holds this.

use std::thread;

use super::{Probe, Registry, at_exit};
use crate::health::{DeathCause, StopCause};
use crate::registry::core::unreturned::AtWork;
use crate::registry::core::worker_ref::{Termination, WorkerRef};
use crate::sync::panics::{self, PanicReport};

/// Held by a handle and by the supervised futures that run on its behalf. It is of one life: when
/// the last one is dropped, the worker ends, unless it has ended or begun another life before.
#[derive(Debug)]
pub(crate) struct Membership {
    registry: Registry,
    worker: WorkerRef,
}

impl Membership {
    /// The first one of a life; the cell counts it already.
    pub(super) const fn new(registry: Registry, worker: WorkerRef) -> Self {
        Self { registry, worker }
    }

    pub(crate) const fn registry(&self) -> &Registry {
        &self.registry
    }

    #[inline]
    pub(crate) const fn worker_ref(&self) -> &WorkerRef {
        &self.worker
    }

    pub(crate) fn probe(&self) -> Probe {
        Probe::new(self.registry.clone(), self.worker.clone())
    }

    /// Whether this is the only holder of this life.
    pub(crate) fn is_last(&self) -> bool {
        self.worker.chunk.has_one_holder(self.worker.offset)
    }

    /// Begins the worker's next life. What others hold of this one stays with it, and changes nothing
    /// any more. `None` if the worker was asked to stop.
    pub(crate) fn next_life(&self) -> Option<Self> {
        self.registry.next_life(self)
    }

    /// Supervised work begins, which a shutdown waits for until what is returned is dropped.
    pub(crate) fn begin_work(&self) -> AtWork {
        AtWork::begin(self.registry.core(), &self.worker.record)
    }

    /// Ends the worker. `false` if it had ended before.
    pub(crate) fn end(&self, end: Termination) -> bool {
        self.registry.core().end(&self.worker, end)
    }

    /// It went idle and was asked to stop: nothing is left to do.
    pub(crate) fn end_if(&self, asked_and_idle: bool) {
        if asked_and_idle {
            self.end(Termination::Stopped(StopCause::Completed));
        }
    }

    /// The life is over: asks those that depend on it to stop, without waiting for them.
    pub(crate) fn dismiss_dependents(&self) {
        for dependents in self.worker.unlink() {
            dependents.dismiss(self.registry.core());
        }
    }
}

impl From<PanicReport> for DeathCause {
    fn from(report: PanicReport) -> Self {
        Self::Panicked {
            message: report.message,
            location: report.location,
            thread: report.thread,
            backtrace: report.backtrace,
        }
    }
}

impl Clone for Membership {
    fn clone(&self) -> Self {
        self.worker.chunk.hold(self.worker.offset);
        Self {
            registry: self.registry.clone(),
            worker: self.worker.clone(),
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.worker.chunk.release(self.worker.offset) {
            return;
        }
        // A panic from before the worker's birth is not its own.
        self.end(
            if thread::panicking() && !self.worker.record.born_unwinding {
                match at_exit::unwinding() {
                    Some(cause) => Termination::Overruled(cause),
                    None => Termination::Panicked(panics::unwinding()),
                }
            } else {
                Termination::Stopped(StopCause::Drop)
            },
        );
        self.dismiss_dependents();
        self.registry.retire(&self.worker);
    }
}
