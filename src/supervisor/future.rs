//! Workers that are futures, on any executor.

use std::any::type_name;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

use super::children::ask;
use super::{InCharge, Outcome, end_of_work};
use crate::error::Error;
use crate::health::{CallSite, StopCause};
use crate::registry::core::polls::Polls;
use crate::registry::core::unreturned::{AtWork, OnThread};
use crate::registry::core::worker_ref::Termination;
use crate::registry::{Membership, Probe};
use crate::sync::panics::{self, Charge, PanicReport};
use crate::sync::threads;
use crate::worker::WorkerHeartbeat;

impl WorkerHeartbeat {
    /// Supervises a future on any executor: each poll is a beat, and a panic is caught. The end is
    /// recorded: completion, an error, a panic, or a drop before completion.
    ///
    /// A poll proves that the executor runs the task and that something woke it. It does not prove
    /// that every part of the future makes progress: in `join!(wedged, ticker)`, the ticker keeps the
    /// task polled. If a worker is built with [`Builder::beats_only`](crate::Builder::beats_only), polls are not progress: it
    /// must beat by itself.
    ///
    /// The worker ends with the future: as stopped if it completed or was cancelled, as dead if it
    /// panicked or returned an error. It lives as long as the future, even if this handle is dropped
    /// before: `tokio::spawn(hb.supervise(work))` works. A future that is dropped before its first
    /// poll, such as that of a disabled branch of `select!`, ends the worker only if this handle was
    /// dropped too.
    ///
    /// The result is the future's output, or [`Error::Panicked`].
    ///
    /// The call installs the panic hook, if no [`Supervisor`](crate::Supervisor) has.
    ///
    /// ```
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     let mut future = std::pin::pin!(future);
    /// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
    /// #             return output;
    /// #         }
    /// #     }
    /// # }
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("fetcher").registry(&registry).start()?;
    /// let result = block_on(hb.supervise(async {
    ///     hb.update_task("run-7", "fetching", worker_heartbeat::Activity::Processing);
    ///     Err::<(), _>("no route to host")
    /// }));
    /// assert_eq!(result?, Err("no route to host"));
    /// assert!(hb.health().to_string().contains("failed: no route to host"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[track_caller]
    pub fn supervise<F>(&self, future: F) -> Supervised<F>
    where
        F: Future,
        F::Output: Outcome,
    {
        Supervised {
            life: Life::new::<F>(self.membership().clone(), future, Location::caller()),
        }
    }
}

/// A supervised future; made by [`WorkerHeartbeat::supervise`].
///
/// ```
/// use worker_heartbeat::{Supervised, WorkerHeartbeat};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let hb = WorkerHeartbeat::builder("fetcher").start()?;
/// let fetch = hb.supervise(async { 42 });
/// let probe = fetch.probe();
/// assert_eq!(fetch.await?, 42);
/// assert!(probe.health().to_string().starts_with("stopped: completed"));
/// # Ok::<(), worker_heartbeat::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "futures do nothing unless they are polled"]
pub struct Supervised<F> {
    life: Life<F>,
}

impl<F> Supervised<F> {
    /// The worker's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.life.membership.worker_ref().record.id()
    }

    /// A read-only view of the worker, which outlives the future.
    ///
    /// ```
    /// use worker_heartbeat::{State, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("fetcher").start()?;
    /// let fetch = hb.supervise(async { 42 });
    /// drop(hb); // the future has the worker now
    /// let probe = fetch.probe();
    /// drop(fetch);
    /// assert_eq!(probe.health().state(), State::Stopped);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn probe(&self) -> Probe {
        self.life.membership.probe()
    }

    /// Asks the worker to stop. The future continues until it reacts, for instance to
    /// [`wait_for_stop`](WorkerHeartbeat::wait_for_stop).
    ///
    /// ```
    /// use worker_heartbeat::WorkerHeartbeat;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let hb = WorkerHeartbeat::builder("listener").start()?;
    /// let listener = hb.supervise(hb.wait_for_stop());
    /// listener.stop();
    /// listener.await?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stop(&self) {
        let membership = &self.life.membership;
        ask(membership.registry(), membership.worker_ref());
    }
}

impl<F> Future for Supervised<F>
where
    F: Future,
    F::Output: Outcome,
{
    type Output = Result<F::Output, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let life = &mut self.life;
        let Poll::Ready(result) = life.poll(context) else {
            return Poll::Pending;
        };
        let result = life.conclude(result);
        // The children are not awaited: that would require keeping the output, and then the future
        // could move between threads only if the output could.
        life.membership.dismiss_dependents();
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for Supervised<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervised")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// One life of a worker: polls a future to its end. Dropped before, it ends the worker as cancelled,
/// or as dead if the drop of the future panics or the thread already unwinds. If it was never polled,
/// and other handles of the worker exist, only a panic of the drop ends the worker.
pub(super) struct Life<F> {
    /// `None` after its end.
    future: Option<Pin<Box<F>>>,
    membership: Membership,
    charge: Arc<dyn Charge>,
    /// It was created while the thread was unwinding from a panic.
    born_unwinding: bool,
    /// From the first poll until the end is reported.
    at_work: Option<AtWork>,
    polls: Arc<Polls>,
}

impl<F> Life<F> {
    /// `T`: the future of the application, which this one runs. `site`: where that was passed.
    pub(super) fn new<T>(membership: Membership, future: F, site: CallSite) -> Self {
        let polls = Arc::new(Polls::new(type_name::<T>(), site));
        // Another future may have been polled for this worker.
        let mut detail = membership.worker_ref().record.detail();
        detail.polls.get_or_insert_with(|| Arc::clone(&polls));
        drop(detail);
        Self {
            polls,
            future: Some(Box::pin(future)),
            charge: InCharge::of(&membership),
            membership,
            born_unwinding: thread::panicking(),
            at_work: None,
        }
    }

    /// Marks the calling thread as working on it.
    pub(super) fn on_this_thread(&self) -> Option<OnThread<'_>> {
        self.at_work.as_ref().map(AtWork::on_this_thread)
    }

    fn end(&mut self, end: Termination) {
        let on_thread = self.on_this_thread();
        self.membership.end(end);
        drop(on_thread);
        self.at_work = None;
    }

    /// A panic that began before its creation does not count.
    fn ends_by_unwinding(&self) -> bool {
        thread::panicking() && !self.born_unwinding
    }
}

impl<F: Future> Life<F> {
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<F::Output, Box<PanicReport>>> {
        let Some(future) = &mut self.future else {
            // Polled after completion.
            return Poll::Pending;
        };
        let membership = &self.membership;
        let thread = threads::current();
        let worker_ref = membership.worker_ref();
        let at_work = self.at_work.get_or_insert_with(|| {
            worker_ref.record.detail().polls = Some(Arc::clone(&self.polls));
            membership.begin_work()
        });
        let _on_thread = at_work.on_thread(thread);
        let begins_by = membership.registry().not_before_now();
        self.polls.begin(thread, begins_by);
        worker_ref.run_on(Some(thread));
        if !worker_ref.record.profile.thresholds.beats_only {
            worker_ref.cell().beat();
        }
        let polled = panics::supervise(&self.charge, || future.as_mut().poll(context));
        let result = match polled {
            Ok(Poll::Pending) => {
                self.polls.end();
                worker_ref.run_on(None);
                return Poll::Pending;
            }
            Ok(Poll::Ready(output)) => Ok(output),
            Err(report) => Err(report),
        };
        // The captured values are dropped now, which may panic.
        let future = self.future.take();
        let dropped = panics::supervise(&self.charge, || drop(future));
        match (result, dropped) {
            (Ok(_), Err(report)) => Poll::Ready(Err(report)),
            (result, _) => Poll::Ready(result),
        }
    }

    /// Ends the worker according to the result of its future.
    fn conclude(&mut self, result: Result<F::Output, Box<PanicReport>>) -> Result<F::Output, Error>
    where
        F::Output: Outcome,
    {
        let id = self.membership.worker_ref().record.id();
        let (end, result) = end_of_work(&self.charge, id, result);
        self.end(end);
        result
    }
}

impl<F> Drop for Life<F> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else {
            return;
        };
        // The future is not the cause then, whatever its drop does.
        let unwinding = self.ends_by_unwinding().then(panics::unwinding);
        let dropped = panics::supervise(&self.charge, || drop(future));
        // It never ran: `select!` creates and drops the future of a disabled branch.
        let never_ran = self.at_work.is_none();
        if never_ran && dropped.is_ok() && !self.membership.is_last() {
            return;
        }
        self.end(match (unwinding, dropped) {
            (Some(report), _) | (None, Err(report)) => Termination::Panicked(report),
            (None, Ok(())) => Termination::Stopped(StopCause::Cancelled),
        });
        self.membership.dismiss_dependents();
    }
}
