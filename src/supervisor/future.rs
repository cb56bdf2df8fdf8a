//! Workers that are futures, on any executor.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::restart::{Decision, Restarts};
use super::{Exit, Finish, Supervisor, begin_again, conclude, on_fatal};
use crate::clock::Moment;
use crate::error::Error;
use crate::health::{DeathCause, StopCause};
use crate::panics::{self, OnFatal, PanicReport};
use crate::registry::Membership;
use crate::roster::post::End;
use crate::roster::unreturned::{AtWork, OnThread};
use crate::threads;
use crate::worker::{Builder, WorkerHeartbeat};

/// What supervised work may return: it tells a failure from a success, as
/// [`std::process::Termination`] does for `main`.
///
/// Implemented for `()`, for `Result`, and for common types of values. A type of your own needs
/// nothing but `impl Outcome for MyType {}`.
pub trait Outcome {
    /// Why the work failed, as text; `None` if it did not.
    fn failure(&self) -> Option<String> {
        None
    }
}

impl<T, E: fmt::Display> Outcome for Result<T, E> {
    fn failure(&self) -> Option<String> {
        self.as_ref().err().map(ToString::to_string)
    }
}

impl<T> Outcome for Option<T> {}
impl<T> Outcome for Vec<T> {}
impl<T: ?Sized> Outcome for Box<T> {}
impl<T: ?Sized> Outcome for Arc<T> {}

macro_rules! successes {
    ($($type:ty),* $(,)?) => { $(impl Outcome for $type {})* };
}

successes!(
    (),
    bool,
    char,
    String,
    &'static str,
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    f32,
    f64,
    std::convert::Infallible,
    std::process::ExitCode,
    Exit,
);

/// The type of what never returns, which the compiler infers for a block that always panics. It
/// cannot be named yet, but it can be found.
trait Returns {
    type Output;
}

impl<T> Returns for fn() -> T {
    type Output = T;
}

impl Outcome for <fn() -> ! as Returns>::Output {}

impl<A, B> Outcome for (A, B) {}
impl<A, B, C> Outcome for (A, B, C) {}

impl WorkerHeartbeat {
    /// Runs a future on the worker's behalf, on any executor: each poll is a beat, a panic is
    /// caught and told, and so are an error, the completion, and being dropped before it is done.
    ///
    /// A poll proves that the executor runs the task and that something woke it. It does not prove
    /// that every part of the future makes progress: in `join!(wedged, ticker)`, the ticker keeps
    /// the task polled. A worker that is built with [`Builder::beats_only`] has to beat by itself;
    /// its polls are no progress.
    ///
    /// The worker ends with the future: as stopped if it completed or was cancelled, as dead if it
    /// panicked or returned an error. It lives as long as the future, even if this handle is dropped
    /// before: `tokio::spawn(hb.supervise(work))` is fine.
    ///
    /// The result is the future's output, or [`Error::Panicked`].
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
    pub fn supervise<F>(&self, future: F) -> Supervised<F>
    where
        F: Future,
        F::Output: Outcome,
    {
        Supervised::new(self.membership().clone(), future)
    }
}

/// A future that runs on a worker's behalf; made by [`WorkerHeartbeat::supervise`].
#[must_use = "futures do nothing unless they are polled"]
pub struct Supervised<F> {
    life: Life<F>,
}

impl<F> Supervised<F> {
    fn new(membership: Membership, future: F) -> Self {
        Self {
            life: Life::new(membership, future),
        }
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
        match life.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(output)) => {
                // Telling a failure runs code of the application too.
                match panics::supervise(&life.on_fatal, || output.failure()) {
                    Ok(Some(error)) => life.end(End::Overruled(DeathCause::Failed { error })),
                    Ok(None) => life.end(End::Stopped(StopCause::Completed)),
                    Err(report) => life.end(End::Overruled(report.into())),
                }
                Poll::Ready(Ok(output))
            }
            Poll::Ready(Err(report)) => {
                let error = Error::Panicked {
                    id: life.membership.post().record.id().to_owned(),
                    message: report.message.clone(),
                };
                life.end(End::Overruled(report.into()));
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<F> fmt::Debug for Supervised<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervised")
            .field("id", &self.life.membership.post().record.id())
            .finish_non_exhaustive()
    }
}

/// A future from its first poll to its end. Dropped before, it ends the worker as cancelled, or as
/// dead if the thread unwinds.
struct Life<F> {
    /// `None` once it is over.
    future: Option<Pin<Box<F>>>,
    membership: Membership,
    on_fatal: OnFatal,
    /// From the first poll until the end is told.
    at_work: Option<AtWork>,
}

impl<F> Life<F> {
    fn new(membership: Membership, future: F) -> Self {
        Self {
            future: Some(Box::pin(future)),
            on_fatal: on_fatal(&membership),
            membership,
            at_work: None,
        }
    }

    /// Notes that the calling thread is at it.
    fn on_this_thread(&self) -> Option<OnThread<'_>> {
        self.at_work.as_ref().map(AtWork::on_this_thread)
    }

    fn end(&mut self, end: End) {
        let on_thread = self.on_this_thread();
        self.membership.end(end);
        drop(on_thread);
        self.at_work = None;
    }
}

impl<F: Future> Life<F> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<F::Output, PanicReport>> {
        let Some(future) = &mut self.future else {
            // It has been over for long: whoever still polls waits for nothing.
            return Poll::Pending;
        };
        let membership = &self.membership;
        let at_work = self.at_work.get_or_insert_with(|| membership.begin_work());
        let _on_thread = at_work.on_this_thread();
        let post = membership.post();
        post.run_on(Some(threads::current()));
        if !post.record.profile.thresholds.beats_only {
            post.cell().beat();
        }
        let polled = panics::supervise(&self.on_fatal, || future.as_mut().poll(context));
        let result = match polled {
            Ok(Poll::Pending) => {
                post.run_on(None);
                return Poll::Pending;
            }
            Ok(Poll::Ready(output)) => Ok(output),
            Err(report) => Err(report),
        };
        // What the future still holds goes now, and may panic as it goes.
        let future = self.future.take();
        let dropped = panics::supervise(&self.on_fatal, || drop(future));
        match (result, dropped) {
            (Ok(_), Err(report)) => Poll::Ready(Err(report)),
            (result, _) => Poll::Ready(result),
        }
    }
}

impl<F> Drop for Life<F> {
    fn drop(&mut self) {
        if self.future.is_none() {
            return;
        }
        self.end(if std::thread::panicking() {
            End::Overruled(panics::unwinding().into())
        } else {
            End::Stopped(StopCause::Cancelled)
        });
    }
}

impl Supervisor {
    /// Runs futures on a worker's behalf, one after another, as the restart policy says; on any
    /// executor, which needs no timer: the registry's pacemaker wakes it after the backoff.
    ///
    /// `make` is called for each life of the worker, with its handle. The returned future does
    /// nothing until it is polled, and resolves to how the last life ended. A future that completes
    /// without an error is told as [`Exit::Completed`], and as stopped: unlike a thread, it has
    /// somebody who waits for it.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn supervise<M, F>(
        &self,
        builder: Builder,
        mut make: M,
    ) -> Result<impl Future<Output = Exit> + use<M, F>, Error>
    where
        M: FnMut(Arc<WorkerHeartbeat>) -> F,
        F: Future,
        F::Output: Outcome,
    {
        let mut worker = Arc::new(builder.registry(&self.registry).start()?);
        let mut membership = worker.membership().clone();
        let ending = Arc::new(Finish::default());
        self.adopt(membership.post().clone(), Arc::clone(&ending));
        membership.post().record.detail().returns = true;
        let ending = FinishOnDrop(ending);
        let mut restarts = Restarts::new(self.restart.clone());
        Ok(async move {
            loop {
                let made = Arc::clone(&worker);
                let mut life = Life::new(membership.clone(), async { make(made).await.failure() });
                let outcome = std::future::poll_fn(|context| life.poll(context)).await;
                let outcome = outcome.map(|failure| match failure {
                    Some(error) => Exit::Failed { error },
                    None => Exit::Completed,
                });
                let on_thread = life.on_this_thread();
                let (exit, decision) = conclude(&membership, &mut restarts, outcome, true);
                drop(on_thread);
                drop(life);
                let Decision::Restart { delay, .. } = decision else {
                    ending.0.set(exit.clone());
                    return exit;
                };
                let registry = membership.registry();
                let due = registry.clock().now().after(delay);
                Backoff {
                    membership: &membership,
                    due,
                    timer: None,
                    on_stop: None,
                }
                .await;
                // What the last life left behind keeps its handle, which is of that life.
                drop(Arc::into_inner(worker));
                let Some(next) = begin_again(&membership) else {
                    ending.0.set(exit.clone());
                    return exit;
                };
                worker = Arc::new(WorkerHeartbeat::new(next.clone()));
                membership = next;
            }
        })
    }
}

/// Tells that supervised futures were dropped before they were done.
struct FinishOnDrop(Arc<Finish>);

impl Drop for FinishOnDrop {
    fn drop(&mut self) {
        self.0.set(Exit::Cancelled);
    }
}

/// Waits for a moment, or until the worker is asked to stop. The pacemaker wakes the task. Dropped,
/// it leaves nothing behind.
struct Backoff<'a> {
    membership: &'a Membership,
    due: Moment,
    timer: Option<u64>,
    on_stop: Option<u64>,
}

impl Future for Backoff<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let registry = self.membership.registry();
        let post = self.membership.post();
        if registry.clock().now() >= self.due || post.stop_requested() {
            return Poll::Ready(());
        }
        let waker = context.waker();
        self.timer = Some(registry.roster().set_timer(self.timer, self.due, waker));
        self.on_stop = Some(post.on_stop(self.on_stop, waker));
        registry.ring();
        Poll::Pending
    }
}

impl Drop for Backoff<'_> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.membership.registry().roster().forget_timer(timer);
        }
        if let Some(number) = self.on_stop {
            self.membership.post().forget_stop(number);
        }
    }
}
