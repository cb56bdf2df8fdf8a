//! Runs workers on threads or in futures, and reports how each of them ended.

mod children;
mod drained;
mod exit;
mod future;
mod futures;
mod outcome;
mod restart;
mod restarts;
mod run;
mod stopping;
mod thread;
mod timer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use drained::DrainedWorker;
pub use future::Supervised;
pub use futures::SupervisedFuture;
pub use outcome::Outcome;
pub use restart::Restart;
pub use stopping::{DeadWorker, HungWorker, StopReport};
pub use thread::SupervisedWorker;

use crate::error::Error;
use crate::health::{DeathCause, Ending, Exit, StopCause};
use crate::registry::core::events::EventKind;
use crate::registry::core::is_conviction;
use crate::registry::core::worker_ref::{Termination, WorkerRef};
use crate::registry::{Membership, Registry};
use crate::sync::panics::{self, AtHand, Charge, Interest, PanicReport};
use crate::worker::WorkerHeartbeat;
use children::{Child, Children};
use exit::Finish;
use restarts::{Decision, LifeEnd, Restarts};
use stopping::{StopFuture, Stopping};

/// Runs workers on threads of their own or in futures, reports how each of them ended, and restarts
/// them according to a policy.
///
/// The first supervisor installs a panic hook, on the thread that creates it. The hook records the
/// message, the location and the call stack of panics, and always calls the previous hook; a hook
/// that the application sets later must call the previous one as well. (A thread that unwinds from a
/// panic can't set a hook; the next supervisor or supervised work does it.) While there is a
/// supervisor or supervised work, the hook records panics of all threads, since their payloads may
/// reach the work: through rayon, or through a thread that is joined.
///
/// A clone is cheap, and has the same workers.
///
/// # Shutdown
/// [`shutdown`](Self::shutdown) ends the workers of a supervisor for good. From then on, this
/// supervisor and its clones refuse every spawn with [`Error::ShuttingDown`], from threads of the
/// application as well as from a worker. After a clean shutdown, nothing that the supervisor started
/// still runs. To start workers again, create another supervisor.
///
/// Dropping a supervisor leaves its workers running.
///
/// # Supervisors within workers
/// A supervised worker may start workers of its own. A supervisor that is made by
/// [`linked_to`](Self::linked_to) ends them with the life of their parent. One that is made by
/// [`new`](Self::new) does not: its workers outlive that life, a next life that uses the same ids is
/// refused with [`Error::DuplicateId`], and the shutdown of the parent's supervisor does not include
/// them.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let supervisor = Supervisor::new(&registry);
/// let parent = WorkerHeartbeat::builder("parent").finite();
/// let parent = supervisor.spawn(parent, |hb| {
///     let children = Supervisor::linked_to(hb);
///     let child = WorkerHeartbeat::builder("child").id("child-1");
///     children.spawn(child, |hb| {
///         // Asked to stop when the parent returns, panics or fails.
///         hb.stop_receiver().recv()?;
///         Ok(())
///     })?;
///     Ok(())
/// })?;
/// assert!(parent.join().is_completed());
/// assert!(registry.get("child-1").is_some_and(|child| child.health().state().is_terminal()));
/// assert!(supervisor.shutdown(Duration::from_secs(10)).is_clean());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Supervisor {
    registry: Registry,
    restart: Restart,
    children: Arc<Children>,
}

impl Supervisor {
    /// A supervisor for workers of this registry, without restarts.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import").finite(), |hb| {
    ///     hb.beat();
    ///     Ok(())
    /// })?;
    /// assert!(import.join().is_completed());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            registry: registry.clone(),
            restart: Restart::never(),
            children: Arc::default(),
        }
    }

    /// A supervisor for children of `parent`: workers of its registry that end with its current life.
    ///
    /// When that life ends, by a return, an error or a panic, the supervisor starts no more workers,
    /// and stops the children as [`shutdown`](Self::shutdown) does. The parent is reported as stopped
    /// or dead at once. Its next life begins, and its supervisor regards it as ended, once the
    /// children have ended too, or after a [limit](Self::stop_children_within). After the limit, the
    /// remaining children are named by [`EventKind::ChildHung`](crate::EventKind::ChildHung) and in
    /// the log, and are left running.
    ///
    /// A parent that runs by [`spawn`](Self::spawn) waits on its own thread; one that runs by
    /// [`supervise`](Self::supervise) waits without blocking its executor. In these cases the
    /// children are asked to stop all at once, without waiting: the parent's future is dropped before
    /// it completes; it runs by [`WorkerHeartbeat::supervise`]; or the parent is not supervised and
    /// its handle is dropped.
    ///
    /// If that life has ended already, every spawn is refused.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let registry = Registry::global();
    /// let hb = WorkerHeartbeat::builder("parent").start()?;
    /// hb.run(|| {
    ///     let child = WorkerHeartbeat::builder("child").id("child-1");
    ///     Supervisor::linked_to(&hb).spawn(child, |child| Ok(child.stop_receiver().recv()?))
    /// })??;
    /// let child = registry.get("child-1").expect("it is remembered");
    /// assert!(child.health().to_string().starts_with("stopped: "), "with its parent");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn linked_to(parent: &WorkerHeartbeat) -> Self {
        let supervisor = Self::new(parent.registry());
        children::link(parent.membership(), &supervisor.children);
        supervisor
    }

    /// The restart policy of workers that are spawned from now on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, Restart, Supervisor, WorkerHeartbeat};
    ///
    /// let restart = Restart::on_failure().max(1).backoff(Duration::ZERO, Duration::ZERO);
    /// let supervisor = Supervisor::new(Registry::global()).restart(restart);
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import"), |_| Err("disk full".into()))?;
    /// assert_eq!(import.join().to_string(), "given up after 1 restarts: failed: disk full");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How long the workers of a [linked](Self::linked_to) supervisor may take to end in total, once
    /// the parent's life has ended; 10 s of real time by default. If several supervisors are linked
    /// to one life, the longest limit applies to all.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Supervisor, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("parent").start()?;
    /// let children = Supervisor::linked_to(&hb).stop_children_within(Duration::from_secs(3));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn stop_children_within(self, limit: Duration) -> Self {
        self.children.set_limit(limit);
        self
    }

    /// The registry of its workers.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Asks its workers to stop, in reverse order of their start, and waits for them. Each is asked
    /// after the previous one has ended or has used up its share of the time. Once one has used up
    /// its share, the others are asked within the first half of the time, so that each has the second
    /// half. Returns after `timeout` at the latest, and names the workers that did not end. They are
    /// left running: a thread can't be killed.
    ///
    /// The timeout is real time, whatever the registry's clock shows. Time in which the process did
    /// not run does not count.
    ///
    /// No more workers are started: see [Shutdown](Self#shutdown). Concurrent shutdowns all wait, and
    /// each reports the state at its return.
    ///
    /// One of its workers may call it. That worker is asked to stop as well, but not waited for: the
    /// report lists it among those that did not end.
    ///
    /// It blocks the calling thread: in an asynchronous context, use
    /// [`shutdown_async`](Self::shutdown_async).
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Error, Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let listener = WorkerHeartbeat::builder("listener").id("listener-1");
    /// supervisor.spawn(listener, |hb| Ok(hb.stop_receiver().recv()?))?;
    /// let report = supervisor.shutdown(Duration::from_secs(10));
    /// assert_eq!(report.ended, ["listener-1"]);
    ///
    /// let late = supervisor.spawn(WorkerHeartbeat::builder("listener"), |_| Ok(()));
    /// assert!(matches!(late, Err(Error::ShuttingDown)));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn shutdown(&self, timeout: Duration) -> StopReport {
        self.stopping(timeout).wait()
    }

    /// As [`shutdown`](Self::shutdown), without blocking the thread. Works on any executor, without a
    /// timer.
    ///
    /// It begins at the first poll. If the future is dropped before it completes, the workers that
    /// were asked to stop still stop, and no more workers are started.
    ///
    /// While it waits, one thread of the process, `wh-timer`, provides the timers.
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
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(&Registry::new());
    /// supervisor.spawn(WorkerHeartbeat::builder("listener"), |hb| {
    ///     hb.stop_receiver().recv()?;
    ///     Ok(())
    /// })?;
    /// let report = block_on(supervisor.shutdown_async(Duration::from_secs(10)));
    /// assert!(report.is_clean());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn shutdown_async(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = StopReport> + Send + use<> {
        let supervisor = self.clone();
        async move { StopFuture::new(supervisor.stopping(timeout)).await }
    }

    fn stopping(&self, timeout: Duration) -> Stopping {
        Stopping::new(&self.registry, vec![Arc::clone(&self.children)], timeout)
    }

    /// Refuses to start workers during a shutdown and after it.
    fn check_open(&self) -> Result<(), Error> {
        if self.children.is_closed() {
            Err(Error::ShuttingDown)
        } else {
            Ok(())
        }
    }

    /// Adds a worker to the children before it can run.
    fn adopt(&self, worker: &WorkerRef, ending: &Arc<Finish>) -> Result<(), Error> {
        let child = Child {
            worker: worker.clone(),
            ending: Arc::clone(ending),
        };
        if self.children.adopt(child) {
            Ok(())
        } else {
            Err(Error::ShuttingDown)
        }
    }
}

/// The supervised work of a worker, in which panics are caught.
struct InCharge {
    registry: Registry,
    worker: WorkerRef,
    _interest: Interest,
}

impl InCharge {
    fn of(membership: &Membership) -> Arc<dyn Charge> {
        Arc::new(Self {
            registry: membership.registry().clone(),
            worker: membership.worker_ref().clone(),
            _interest: Interest::new(),
        })
    }
}

impl Charge for InCharge {
    fn last_words(&self, report: &PanicReport) {
        let end = Termination::Panicked(Box::new(report.clone()));
        self.registry.end(&self.worker, end);
    }

    fn at_hand(&self) -> Option<AtHand> {
        self.worker.task_at_hand()
    }
}

/// The end of work that runs once: how its worker ends, and what its caller gets.
fn end_of_work<T: Outcome>(
    charge: &Arc<dyn Charge>,
    id: &str,
    outcome: Result<T, Box<PanicReport>>,
) -> (Termination, Result<T, Error>) {
    match outcome {
        Ok(output) => {
            // Describing a failure runs code of the application, which may panic.
            let end = match panics::supervise(charge, || output.failure()) {
                Ok(Some(error)) => Termination::Overruled(DeathCause::Failed { error }),
                Ok(None) => Termination::Stopped(StopCause::Completed),
                Err(report) => Termination::Panicked(report),
            };
            (end, Ok(output))
        }
        Err(report) => {
            let error = Error::Panicked {
                id: id.to_owned(),
                message: report.message.clone(),
                location: report.location.clone(),
            };
            (Termination::Panicked(report), Err(error))
        }
    }
}

/// How a life ended, before the decision about a restart.
struct EndedLife {
    exit: Exit,
    /// The worker had been asked to stop.
    asked: bool,
}

/// Ends the incarnation of a life that has ended.
fn end_life(
    membership: &Membership,
    restarts: &mut Restarts,
    outcome: Result<Exit, Box<PanicReport>>,
    finite: bool,
) -> EndedLife {
    let worker = membership.worker_ref();
    let asked = worker.stop_requested();
    let view = membership.registry().peek_observed_now();
    let state = worker.health(&view).state();
    restarts.life_ends(view.now, !is_conviction(state));
    let exit = match outcome {
        Ok(exit) => {
            membership.end(exit.end(finite || asked));
            match (exit, worker.ending()) {
                // Before it returned, the work called `fail`, or contained a panic that ended its worker.
                (Exit::Completed, Some(Ending::Dead(death))) => match &death.cause {
                    DeathCause::Failed { error } => Exit::Failed {
                        error: error.clone(),
                    },
                    DeathCause::Panicked {
                        message, location, ..
                    } => Exit::Panicked {
                        message: message.clone(),
                        location: location.clone(),
                    },
                    _ => Exit::Completed,
                },
                (exit, _) => exit,
            }
        }
        Err(report) => {
            let exit = Exit::from(&*report);
            membership.end(Termination::Panicked(report));
            exit
        }
    };
    EndedLife { exit, asked }
}

/// The exit after the work's captured values were dropped. A panic of that drop counts if the work
/// had not failed before.
fn end_of_drop(
    membership: Option<&Membership>,
    exit: Exit,
    dropped: Result<(), Box<PanicReport>>,
) -> Exit {
    match (exit, dropped) {
        (Exit::Completed | Exit::Cancelled, Err(report)) => {
            let exit = Exit::from(&*report);
            if let Some(membership) = membership {
                membership.end(Termination::Panicked(report));
            }
            exit
        }
        (exit, _) => exit,
    }
}

/// Decides whether the worker is restarted.
fn decide(membership: &Membership, restarts: &mut Restarts, over: EndedLife) -> (Exit, Decision) {
    let worker = membership.worker_ref();
    let EndedLife { exit, asked } = over;
    let fate = match worker.ending() {
        _ if asked || worker.stop_requested() => LifeEnd::Stopped,
        Some(Ending::Dead(death)) => LifeEnd::from(&death.cause),
        Some(Ending::Stopped(StopCause::Completed)) => LifeEnd::Returned,
        _ => LifeEnd::Stopped,
    };
    let registry = membership.registry();
    let decision = if registry.is_stopping() {
        Decision::LeaveIt
    } else {
        restarts.decide(fate, registry.clock().now())
    };
    match decision {
        Decision::LeaveIt => {
            registry.leave_dead(worker);
            (exit, decision)
        }
        Decision::Restart { attempt, delay } => {
            let kind = EventKind::Restarting { attempt, delay };
            registry.emit(Some(worker), kind);
            (exit, decision)
        }
        Decision::GiveUp { restarts } => {
            worker.give_up(restarts);
            registry.emit(Some(worker), EventKind::GaveUp { restarts });
            registry.leave_dead(worker);
            let death = match worker.ending() {
                Some(Ending::Dead(death)) => Some(death),
                _ => None,
            };
            (Exit::GaveUp { restarts, death }, decision)
        }
    }
}

/// Begins the next life. `None` if the worker was asked to stop meanwhile.
fn begin_again(last: &Membership) -> Option<Membership> {
    if last.registry().is_stopping() {
        return None;
    }
    last.next_life()
}
