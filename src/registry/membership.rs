//! A worker's life in a registry: it lasts as long as somebody holds this.

use std::sync::atomic::Ordering;
use std::thread;

use super::{Probe, Registry};
use crate::health::{DeathCause, StopCause};
use crate::panics::{self, PanicReport};
use crate::roster::post::{End, Post};

/// Held by a handle and by the supervised futures that run on its behalf. When the last one is
/// dropped, the worker ends, if it has not ended before.
#[derive(Debug)]
pub(crate) struct Membership {
    registry: Registry,
    post: Post,
}

impl Membership {
    /// The first one; the record counts it already.
    pub(super) const fn new(registry: Registry, post: Post) -> Self {
        Self { registry, post }
    }

    pub(crate) const fn registry(&self) -> &Registry {
        &self.registry
    }

    #[inline]
    pub(crate) const fn post(&self) -> &Post {
        &self.post
    }

    pub(crate) fn probe(&self) -> Probe {
        Probe::new(self.registry.clone(), self.post.clone())
    }

    /// Ends the worker. `false` if it had ended before.
    pub(crate) fn end(&self, end: End) -> bool {
        self.registry.roster().end(&self.post, end)
    }

    /// It went idle and was asked to stop: nothing is left to do.
    pub(crate) fn end_if(&self, asked_and_idle: bool) {
        if asked_and_idle {
            self.end(End::Stopped(StopCause::Completed));
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
        self.post.record.holders.fetch_add(1, Ordering::Relaxed);
        Self {
            registry: self.registry.clone(),
            post: self.post.clone(),
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.post.record.holders.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.end(if thread::panicking() {
            End::Overruled(panics::unwinding().into())
        } else {
            End::Stopped(StopCause::Drop)
        });
        self.registry.retire(&self.post);
    }
}
