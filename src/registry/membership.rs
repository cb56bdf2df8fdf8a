//! Membership in a registry: a life lasts as long as it has a holder.

use std::thread;

use super::{Probe, Registry, at_exit};
use crate::health::{CallSite, DeathCause, StopCause};
use crate::registry::core::unreturned::AtWork;
use crate::registry::core::worker_ref::{Termination, WorkerRef};
use crate::sync::panics::{self, PanicReport};

/// Held by a handle and by its supervised futures. It belongs to one life: when the last one is dropped,
/// the worker ends, unless it has ended or begun another life before.
#[derive(Debug)]
pub(crate) struct Membership {
    registry: Registry,
    worker: WorkerRef,
}

impl Membership {
    /// The first holder of a life; the cell counts it already.
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

    /// Begins the worker's next life, and reports it. Other holders of this life stay with it, and have
    /// no effect any more. `None` if the worker was asked to stop.
    pub(crate) fn next_life(&self) -> Option<Self> {
        self.registry.next_life(self)
    }

    /// Marks the begin of supervised work. A shutdown waits until the result is dropped.
    pub(crate) fn begin_work(&self) -> AtWork {
        AtWork::begin(&self.registry.inner.core, &self.worker.record)
    }

    /// Ends the worker. `false` if it had ended before.
    pub(crate) fn end(&self, end: Termination) -> bool {
        self.registry.end(&self.worker, end)
    }

    /// Reports that the task with this number failed.
    pub(crate) fn fail_task(&self, number: Option<u64>, error: String, site: CallSite) {
        if let Some((life, failed)) = self.worker.fail_task(number, error, site) {
            let core = &self.registry.inner.core;
            core.emit_alive(&self.worker.record, life, failed);
        }
    }

    /// Ends a worker that went idle after it was asked to stop.
    pub(crate) fn end_if(&self, asked_and_idle: bool) {
        if asked_and_idle {
            self.end(Termination::Stopped(StopCause::Completed));
        }
    }

    /// The life is over: asks its dependents to stop, without waiting for them.
    pub(crate) fn dismiss_dependents(&self) {
        for dependents in self.worker.unlink() {
            dependents.dismiss(&self.registry.inner.core);
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
        // A panic that began before the worker was registered is not its own.
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
