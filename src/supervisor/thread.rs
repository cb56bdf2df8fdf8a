//! Workers on threads of their own.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::children::ask;
use super::exit::{Finish, Wait};
use super::restart::Restart;
use super::restarts::{Decision, Restarts};
use super::stopping::stop_linked;
use super::{Exit, InCharge, Supervisor, begin_again, decide, end_life, end_of_drop};
use crate::clock::Sleeper;
use crate::error::{BoxError, Error};
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::{Probe, Registry};
use crate::sync::describe::chain;
use crate::sync::panics::{self, Interest};
use crate::sync::threads;
use crate::worker::{Builder, WorkerHeartbeat};

impl Supervisor {
    /// Starts a worker on a thread of its own, named by the worker's id.
    ///
    /// The work receives the worker's handle, and runs again at each restart. It should return when
    /// [`WorkerHeartbeat::stop_requested`] is true. Every end is reported: a panic, an error, and an
    /// unrequested return, unless the worker is [`finite`](Builder::finite).
    ///
    /// The worker belongs to the supervisor's registry.
    ///
    /// To run a function with another error type, call it in a closure, where `?` converts the error
    /// to a [`BoxError`]. This includes `anyhow::Result`.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// fn work(hb: &WorkerHeartbeat) -> std::io::Result<()> {
    ///     hb.beat();
    ///     Err(std::io::Error::other("disk full"))
    /// }
    ///
    /// let supervisor = Supervisor::new(&Registry::new());
    /// let worker = supervisor.spawn(WorkerHeartbeat::builder("import"), |hb| Ok(work(hb)?))?;
    /// assert_eq!(worker.join().to_string(), "failed: disk full");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Builder::start`]; [`Error::ShuttingDown`] during a [shutdown](Self#shutdown) of the
    /// supervisor, and after it; [`Error::Thread`] also if the worker's thread can't be started: then
    /// the worker is failed.
    #[track_caller]
    pub fn spawn<F>(&self, builder: Builder, work: F) -> Result<SupervisedWorker, Error>
    where
        F: FnMut(&WorkerHeartbeat) -> Result<(), BoxError> // another error: |hb| Ok(work(hb)?)
            + Send
            + 'static,
    {
        self.check_open()?;
        let finite = builder.is_finite();
        let worker = builder.registry(&self.registry).start()?;
        let (probe, worker_ref) = (worker.probe(), worker.membership().worker_ref().clone());
        let name = worker.id().to_owned();
        let ending = Arc::new(Finish::default());
        self.adopt(&worker_ref, &ending)?;
        let at_end = Arc::clone(&ending);
        let restart = self.restart.clone();
        // Kept between two lives too.
        let interest = Interest::new();
        // Both threads can take the worker, so that it is reported as failed if its thread cannot
        // be started.
        let shared_worker = Arc::new(Mutex::new(Some((worker, work))));
        let taken = Arc::clone(&shared_worker);
        // Created here, so that a mock clock waits for it from the start.
        let sleeper = Sleeper::new(self.registry.clock());
        let spawned = thread::Builder::new().name(name.clone()).spawn(move || {
            let Some((worker, work)) = taken.lock().take() else {
                return;
            };
            let _interest = interest;
            let at_work = worker.membership().begin_work();
            let _on_thread = at_work.on_this_thread();
            let exit = run(worker, work, restart, finite, sleeper);
            at_end.set(exit);
        });
        let thread = spawned.map_err(|source| {
            let error = format!("its thread cannot be started: {source}");
            if let Some((worker, _)) = shared_worker.lock().take() {
                worker.fail(&error);
            }
            ending.set(Exit::Failed { error });
            Error::Thread {
                name,
                error: source,
            }
        })?;
        Ok(SupervisedWorker {
            registry: self.registry.clone(),
            worker_ref,
            probe,
            ending,
            thread: Mutex::new(Some(thread)),
        })
    }
}

/// Runs on the worker's thread: one life after another.
fn run<F>(
    mut worker: WorkerHeartbeat,
    work: F,
    restart: Restart,
    finite: bool,
    sleeper: Sleeper,
) -> Exit
where
    F: FnMut(&WorkerHeartbeat) -> Result<(), BoxError>,
{
    // `None` once its captured values were dropped.
    let mut work = Some(work);
    let mut restarts = Restarts::new(restart);
    worker.membership().worker_ref().record.detail().returns = true;
    let alarm = Waker::from(Arc::new(sleeper.alarm()));
    let mut exit = loop {
        let Some(lives) = &mut work else {
            break Exit::Completed;
        };
        let membership = worker.membership();
        let charge = InCharge::of(membership);
        membership.worker_ref().run_on(Some(threads::current()));
        restarts.life_begins(membership.registry().peek_observed_now().now);
        sleeper.step_away();
        let mut outcome = panics::supervise(&charge, || match lives(&worker) {
            Ok(()) => Exit::Completed,
            Err(error) => Exit::Failed {
                error: chain(&*error),
            },
        });
        let worker_ref = membership.worker_ref();
        let returned = matches!(outcome, Ok(Exit::Completed)) && !worker_ref.record.is_over();
        if returned && !finite && !worker_ref.stop_requested() && restarts.leaves_returned() {
            // An unrequested return is a death, which no later death replaces. So the captured values
            // are dropped first: a panic of their drop counts.
            let held = work.take();
            let dropped = panics::supervise(&charge, || drop(held));
            outcome = dropped.map(|()| Exit::Completed);
        }
        // Before others see the end, so that a mock clock that they move waits for the restart.
        sleeper.come_back();
        let over = end_life(membership, &mut restarts, outcome, finite);
        stop_linked(membership);
        if work.is_none() {
            break over.exit;
        }
        let (exit, decision) = decide(membership, &mut restarts, over);
        let Decision::Restart { delay, .. } = decision else {
            break exit;
        };
        let clock = membership.registry().clock();
        let due = clock.now().after(delay);
        let number = membership.worker_ref().on_stop(None, &alarm);
        while clock.now() < due && !membership.worker_ref().stop_requested() {
            sleeper.sleep_until(due);
        }
        membership.worker_ref().forget_stop(number);
        let Some(next) = begin_again(membership) else {
            break exit;
        };
        worker = WorkerHeartbeat::new(next);
    };
    let membership = worker.membership();
    if let Some(held) = work {
        // Dropping the captured values may take long.
        sleeper.step_away();
        let dropped = panics::contain(|| drop(held));
        sleeper.come_back();
        exit = end_of_drop(Some(membership), exit, dropped);
    }
    membership.worker_ref().record.detail().returns = false;
    membership.registry().leave_dead(membership.worker_ref());
    drop(worker);
    exit
}

/// A worker on a thread of its own; made by [`Supervisor::spawn`]. Dropping it leaves the worker
/// running.
///
/// ```
/// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
///
/// let supervisor = Supervisor::new(Registry::global());
/// let listener = WorkerHeartbeat::builder("listener");
/// let listener = supervisor.spawn(listener, |hb| Ok(hb.stop_receiver().recv()?))?;
/// println!("{}: {}", listener.id(), listener.probe().health());
/// listener.stop();
/// assert!(listener.join().is_completed());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
pub struct SupervisedWorker {
    registry: Registry,
    worker_ref: WorkerRef,
    probe: Probe,
    ending: Arc<Finish>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl SupervisedWorker {
    /// The worker's id.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let import = WorkerHeartbeat::builder("import").id("import-1").finite();
    /// assert_eq!(supervisor.spawn(import, |_| Ok(()))?.id(), "import-1");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> &str {
        self.probe.id()
    }

    /// A read-only view of the worker, which follows it through restarts.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import"), |_| Err("disk full".into()))?;
    /// let probe = import.probe();
    /// import.join();
    /// assert!(probe.health().to_string().starts_with("dead: failed: disk full"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn probe(&self) -> Probe {
        self.probe.clone()
    }

    /// Asks the worker to stop, without waiting for it.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let listener = WorkerHeartbeat::builder("listener");
    /// let listener = supervisor.spawn(listener, |hb| Ok(hb.stop_receiver().recv()?))?;
    /// listener.stop();
    /// listener.join();
    /// let health = listener.probe().health();
    /// assert!(health.to_string().starts_with("stopped: by its supervisor"), "{health}");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn stop(&self) {
        ask(&self.registry, &self.worker_ref);
    }

    /// Waits for the worker's end after its last life, and returns how it ended. To be called on a
    /// thread other than the worker's own.
    ///
    /// It blocks the calling thread. Async code uses [`join_async`](Self::join_async).
    ///
    /// ```
    /// use worker_heartbeat::{Exit, Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import"), |_| {
    ///     let numbers: Vec<u32> = Vec::new();
    ///     println!("{}", numbers[3]);
    ///     Ok(())
    /// })?;
    /// match import.join() {
    ///     Exit::Panicked { message, .. } => println!("{message}"), // index out of bounds: ...
    ///     exit => unreachable!("{exit}"),
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn join(&self) -> Exit {
        let exit = self.ending.wait(None).unwrap_or(Exit::Cancelled);
        if let Some(thread) = self.thread.lock().take() {
            // The thread can't panic: panics of the work are caught.
            drop(thread.join());
        }
        exit
    }

    /// As [`join`](Self::join), without blocking the thread. Works on any executor, and is
    /// cancel-safe.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let supervisor = Supervisor::new(Registry::global());
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import").finite(), |_| Ok(()))?;
    /// assert!(import.join_async().await.is_completed());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join_async(&self) -> impl Future<Output = Exit> + Send + use<> {
        let mut wait = Wait::new(Arc::clone(&self.ending));
        poll_fn(move |context| {
            wait.poll(context.waker())
                .map_or(Poll::Pending, Poll::Ready)
        })
    }

    /// How the worker ended; `None` while it runs.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global());
    /// let listener = WorkerHeartbeat::builder("listener");
    /// let listener = supervisor.spawn(listener, |hb| Ok(hb.stop_receiver().recv()?))?;
    /// assert!(listener.exit().is_none(), "it still runs");
    /// listener.stop();
    /// listener.join();
    /// assert!(listener.exit().is_some());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.ending.exit()
    }
}

impl fmt::Debug for SupervisedWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisedWorker")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
