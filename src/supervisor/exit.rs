//! The exit of supervised work: its result for callers, and a place for waiters.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::Error;
use crate::health::{DeathCause, Exit, StopCause};
use crate::registry::core::worker_ref::Termination;
use crate::sync::panics::PanicReport;
use crate::sync::wakers::{Wakers, wake};

impl Exit {
    /// Whether it returned without an error.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import").finite(), |_| Ok(()))?;
    /// assert!(import.join().is_completed());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub const fn is_completed(&self) -> bool {
        matches!(self, Self::Completed)
    }

    /// Converts it for `?`: `Ok` only if the work returned without an error. Cancelled work did not.
    ///
    /// ```
    /// use worker_heartbeat::{Error, Registry, Supervisor, WorkerHeartbeat};
    ///
    /// fn import() -> Result<(), Error> {
    ///     let supervisor = Supervisor::new(Registry::global());
    ///     let import = supervisor.spawn(WorkerHeartbeat::builder("import").finite(), |_| Ok(()))?;
    ///     import.join().into_result()
    /// }
    ///
    /// import()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotCompleted`] with this exit.
    pub fn into_result(self) -> Result<(), Error> {
        match self {
            Self::Completed => Ok(()),
            exit => Err(Error::NotCompleted { exit }),
        }
    }

    /// How the worker ends after a life with this exit.
    pub(super) fn end(&self, finite: bool) -> Termination {
        match self {
            Self::Completed if finite => Termination::Stopped(StopCause::Completed),
            Self::Completed => Termination::Dead(DeathCause::Exited),
            Self::Failed { error } => Termination::Overruled(DeathCause::Failed {
                error: error.clone(),
            }),
            _ => Termination::Stopped(StopCause::Cancelled),
        }
    }
}

impl From<&PanicReport> for Exit {
    fn from(report: &PanicReport) -> Self {
        Self::Panicked {
            message: report.message.clone(),
            location: report.location.clone(),
        }
    }
}

/// The exit of supervised work, once it is known, and the waiters for it.
#[derive(Debug, Default)]
pub(super) struct Finish {
    state: Mutex<FinishState>,
    set: Condvar,
}

#[derive(Debug, Default)]
struct FinishState {
    exit: Option<Exit>,
    waiting: Wakers,
}

impl Finish {
    pub(super) fn set(&self, exit: Exit) {
        let mut state = self.state.lock();
        state.exit.get_or_insert(exit);
        let waiting = state.waiting.take();
        drop(state);
        self.set.notify_all();
        waiting.for_each(wake);
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        self.state.lock().exit.clone()
    }

    pub(super) fn is_set(&self) -> bool {
        self.state.lock().exit.is_some()
    }

    /// Waits for the exit, for at most this time if one is given.
    pub(super) fn wait(&self, at_most: Option<Duration>) -> Option<Exit> {
        let mut state = self.state.lock();
        let is_open = |state: &mut FinishState| state.exit.is_none();
        match at_most {
            Some(time) => {
                self.set.wait_while_for(&mut state, is_open, time);
            }
            None => self.set.wait_while(&mut state, is_open),
        }
        state.exit.clone()
    }

    /// Wakes this task once there is an exit. `None`: there is one already. Otherwise a number with
    /// which the waker can be replaced or removed.
    fn wake_later(&self, known: Option<u64>, waker: &Waker) -> Option<u64> {
        let waker = waker.clone();
        let mut state = self.state.lock();
        if state.exit.is_some() {
            drop(state);
            return None;
        }
        let (number, old) = state.waiting.keep(known, waker);
        drop(state);
        drop(old);
        Some(number)
    }

    fn forget(&self, number: u64) {
        let forgotten = self.state.lock().waiting.forget(number);
        drop(forgotten);
    }
}

/// A task's wait for an exit. Dropping it releases its waker.
#[derive(Debug)]
pub(super) struct Wait {
    finish: Arc<Finish>,
    number: Option<u64>,
}

impl Wait {
    pub(super) const fn new(finish: Arc<Finish>) -> Self {
        Self {
            finish,
            number: None,
        }
    }

    pub(super) fn is_for(&self, finish: &Arc<Finish>) -> bool {
        Arc::ptr_eq(&self.finish, finish)
    }

    /// The exit, if there is one; otherwise the task is woken later.
    pub(super) fn poll(&mut self, waker: &Waker) -> Option<Exit> {
        self.number = self.finish.wake_later(self.number, waker);
        if self.number.is_none() {
            self.finish.exit()
        } else {
            None
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.finish.forget(number);
        }
    }
}
