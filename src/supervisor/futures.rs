//! A worker that runs one future after another, as its restart policy says; on any executor.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

use super::children::ask;
use super::exit::Finish;
use super::future::Life;
use super::restarts::{Decision, Restarts};
use super::stopping::StopLinked;
use super::{Exit, Outcome, Supervisor, begin_again, decide, end_life, end_of_drop};
use crate::clock::Moment;
use crate::error::Error;
use crate::health::{CallSite, DeathCause, Ending, StopCause};
use crate::registry::core::worker_ref::{Termination, WorkerRef};
use crate::registry::{Membership, Probe, Registry};
use crate::sync::panics::{self, Interest};
use crate::worker::{Builder, WorkerHeartbeat};

impl Supervisor {
    /// Supervises futures, one per life of the worker, and restarts them according to the policy.
    /// Works on any executor, without a timer: the registry's pacemaker wakes the task after the
    /// backoff.
    ///
    /// `make` is called for each life of the worker, with its handle. The returned
    /// [`SupervisedFuture`] does nothing until it is polled, and resolves to how the last life ended.
    /// A future that completes without an error is [`Exit::Completed`], and its worker is stopped,
    /// whether it is [`finite`](Builder::finite) or not. Dropped before completion, it ends the
    /// worker as cancelled, or as dead if the drop of the work panics.
    ///
    /// # Errors
    /// As [`Builder::start`]; [`Error::ShuttingDown`] during a [shutdown](Self#shutdown) of the
    /// supervisor, and after it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, Restart, Supervisor, WorkerHeartbeat};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let registry = Registry::new();
    /// let restart = Restart::on_failure().max(2).backoff(Duration::ZERO, Duration::ZERO);
    /// let supervisor = Supervisor::new(&registry).restart(restart);
    /// let mut tries = 0;
    /// let fetcher = supervisor.supervise(WorkerHeartbeat::builder("fetcher"), |hb| {
    ///     tries += 1;
    ///     async move {
    ///         hb.update_task("run-7", "fetching", worker_heartbeat::Activity::Processing);
    ///         if tries < 3 { Err("no route to host") } else { Ok(()) }
    ///     }
    /// })?;
    /// let probe = fetcher.probe();
    /// assert!(fetcher.await.is_completed());
    /// assert_eq!(probe.snapshot().restarts, 2);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn supervise<M, F>(
        &self,
        builder: Builder,
        make: M,
    ) -> Result<SupervisedFuture<impl Future<Output = Exit> + use<M, F>>, Error>
    where
        M: FnMut(Arc<WorkerHeartbeat>) -> F,
        F: Future,
        F::Output: Outcome,
    {
        self.check_open()?;
        let worker = builder.registry(&self.registry).start()?;
        let worker_ref = worker.membership().worker_ref().clone();
        let ending = Arc::new(Finish::default());
        self.adopt(&worker_ref, &ending)?;
        worker_ref.record.detail().returns = true;
        let lives = Lives {
            registry: self.registry.clone(),
            make: Some(make),
            restarts: Restarts::new(self.restart.clone()),
            worker: Some(Arc::new(worker)),
            worker_ref,
            _interest: Interest::new(),
            site: Location::caller(),
            publisher: ExitPublisher { ending, exit: None },
        };
        Ok(SupervisedFuture {
            registry: self.registry.clone(),
            worker_ref: lives.worker_ref.clone(),
            lives: Box::pin(lives.run()),
        })
    }
}

/// The lives of a worker as one future; made by [`Supervisor::supervise`]. Resolves to how the last
/// life ended.
///
/// ```
/// use worker_heartbeat::{Exit, Registry, Supervisor, WorkerHeartbeat};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let supervisor = Supervisor::new(Registry::global());
/// let fetcher = supervisor.supervise(WorkerHeartbeat::builder("fetcher"), |hb| async move {
///     hb.beat();
///     Err::<(), _>("no route to host")
/// })?;
/// let exit = tokio::spawn(fetcher).await?;
/// assert_eq!(exit.to_string(), "failed: no route to host");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "futures do nothing unless they are polled"]
pub struct SupervisedFuture<F> {
    registry: Registry,
    worker_ref: WorkerRef,
    lives: Pin<Box<F>>,
}

impl<F> SupervisedFuture<F> {
    /// The worker's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.worker_ref.record.id()
    }

    /// A read-only view of the worker, which follows it through restarts and outlives the future.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let fetcher = WorkerHeartbeat::builder("fetcher").id("fetcher-1");
    /// let fetcher = supervisor.supervise(fetcher, |hb| async move { hb.wait_for_stop().await })?;
    /// let probe = fetcher.probe();
    /// assert_eq!(probe.id(), "fetcher-1");
    /// drop(fetcher);
    /// assert!(probe.health().to_string().starts_with("stopped: its future was cancelled"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn probe(&self) -> Probe {
        Probe::new(self.registry.clone(), self.worker_ref.clone())
    }

    /// Asks the worker to stop. It is not restarted; its current future continues until it reacts,
    /// for instance to [`wait_for_stop`](WorkerHeartbeat::wait_for_stop).
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let supervisor = Supervisor::new(Registry::global());
    /// let listener = WorkerHeartbeat::builder("listener");
    /// let listener = supervisor.supervise(listener, |hb| async move { hb.wait_for_stop().await })?;
    /// listener.stop();
    /// assert!(listener.await.is_completed());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stop(&self) {
        ask(&self.registry, &self.worker_ref);
    }
}

impl<F: Future<Output = Exit>> Future for SupervisedFuture<F> {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Exit> {
        self.lives.as_mut().poll(context)
    }
}

impl<F> fmt::Debug for SupervisedFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisedFuture")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

/// A worker's futures, one after another.
struct Lives<M> {
    registry: Registry,
    /// `None` after its end.
    make: Option<M>,
    restarts: Restarts,
    /// The handle of the current life; `None` between two lives.
    worker: Option<Arc<WorkerHeartbeat>>,
    worker_ref: WorkerRef,
    /// Kept between two lives too.
    _interest: Interest,
    /// Where it was passed to the supervisor.
    site: CallSite,
    /// Dropped last: when the exit is published, the worker's id is free.
    publisher: ExitPublisher,
}

impl<M, F> Lives<M>
where
    M: FnMut(Arc<WorkerHeartbeat>) -> F,
    F: Future,
    F::Output: Outcome,
{
    async fn run(mut self) -> Exit {
        let exit = self.live().await;
        let exit = self.drop_make(exit);
        self.publisher.exit = Some(exit.clone());
        exit
    }

    async fn live(&mut self) -> Exit {
        loop {
            let (Some(make), Some(worker)) = (&mut self.make, &self.worker) else {
                return Exit::Cancelled;
            };
            let (membership, made) = (worker.membership().clone(), Arc::clone(worker));
            let registry = membership.registry();
            self.restarts.life_begins(registry.peek_observed_now().now);
            let work = async { make(made).await.failure() };
            let mut life = Life::new::<F>(membership.clone(), work, self.site);
            let outcome = std::future::poll_fn(|context| life.poll(context)).await;
            let outcome = outcome.map(|failure| match failure {
                Some(error) => Exit::Failed { error },
                None => Exit::Completed,
            });
            let on_thread = life.on_this_thread();
            let over = end_life(&membership, &mut self.restarts, outcome, true);
            drop(on_thread);
            drop(life);
            StopLinked::new(membership.clone()).await;
            let (exit, decision) = decide(&membership, &mut self.restarts, over);
            let Decision::Restart { delay, .. } = decision else {
                return exit;
            };
            let due = registry.clock().now().after(delay);
            Backoff {
                membership: &membership,
                due,
                timer: None,
                on_stop: None,
            }
            .await;
            // Values that outlive the last life keep the handle of that life.
            self.worker = None;
            let Some(next) = begin_again(&membership) else {
                return exit;
            };
            self.worker = Some(Arc::new(WorkerHeartbeat::new(next)));
        }
    }
}

impl<M> Lives<M> {
    /// Drops the captured values of `make`.
    fn drop_make(&mut self, exit: Exit) -> Exit {
        let make = self.make.take();
        let dropped = panics::contain(|| drop(make));
        let worker = self.worker.as_ref();
        end_of_drop(worker.map(|worker| worker.membership()), exit, dropped)
    }
}

impl<M> Drop for Lives<M> {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            // Only if it was never polled; otherwise its last life has ended.
            let unwinds = thread::panicking() && !self.worker_ref.record.born_unwinding;
            worker.membership().end(if unwinds {
                Termination::Dead(DeathCause::from(*panics::unwinding()))
            } else {
                Termination::Stopped(StopCause::Cancelled)
            });
        }
        if self.publisher.exit.is_none() {
            let ending = self.worker_ref.current().ending();
            let exit = ending.as_ref().and_then(panic_of);
            self.publisher.exit = Some(self.drop_make(exit.unwrap_or(Exit::Cancelled)));
        }
        // It is not restarted, even if a part of it still exists.
        self.worker_ref.record.detail().returns = false;
        self.registry.leave_dead(&self.worker_ref);
    }
}

/// The exit of a future whose drop panicked.
fn panic_of(ending: &Ending) -> Option<Exit> {
    let Ending::Dead(death) = ending else {
        return None;
    };
    match &death.cause {
        DeathCause::Panicked {
            message, location, ..
        } => Some(Exit::Panicked {
            message: message.clone(),
            location: location.clone(),
        }),
        _ => None,
    }
}

/// Publishes the exit when it is dropped; cancelled, if there is none.
struct ExitPublisher {
    ending: Arc<Finish>,
    exit: Option<Exit>,
}

impl Drop for ExitPublisher {
    fn drop(&mut self) {
        self.ending.set(self.exit.take().unwrap_or(Exit::Cancelled));
    }
}

/// Waits for the end of the backoff, or until the worker is asked to stop. The pacemaker wakes the
/// task. Dropping it releases its timer and its waker.
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
        let worker_ref = self.membership.worker_ref();
        if registry.clock().now() >= self.due || worker_ref.stop_requested() {
            return Poll::Ready(());
        }
        let waker = context.waker();
        self.timer = Some(registry.set_timer(self.timer, self.due, waker));
        self.on_stop = Some(worker_ref.on_stop(self.on_stop, waker));
        Poll::Pending
    }
}

impl Drop for Backoff<'_> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.membership.registry().forget_timer(timer);
        }
        if let Some(number) = self.on_stop {
            self.membership.worker_ref().forget_stop(number);
        }
    }
}
