//! Graceful shutdown: signals, draining the workers, cleanups, and a time limit for all of it.

mod begin;
mod builder;
mod drain;
mod exit_race;
mod file;
mod hooks;
mod report;
mod self_pipe;
mod signal_state;
mod signals;
mod termination;
mod triggers;
mod waiting;
mod watchdog;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

pub use builder::ShutdownBuilder;
pub use report::{CleanupReport, CleanupState, ShutdownCause, ShutdownReport};
pub use signals::Signal;

use crate::clock::{Moment, ObservedTime};
use crate::registry::Registry;
use crate::registry::at_exit::Witness;
use crate::sync::latch::Latch;
use crate::sync::panics::uncaught::UncaughtPanics;
use crate::sync::wakers::Wakers;
use hooks::Signals;
use self_pipe::WakeSender;
use termination::TerminationMessage;

/// A graceful shutdown, on a signal or when the application asks for it. Opt-in: nothing is hooked
/// before [`ShutdownBuilder::install`]. A process may have several, for different signals: each signal
/// belongs to one.
///
/// 1. A signal arrives, or [`trigger`](Self::trigger) is called. The cause is logged. Idle workers
///    are stopped at once. Working ones are asked to stop, and are stopped when their task ends. The
///    pacemaker continues, so they keep their heartbeats while they drain.
/// 2. [`wait`](Self::wait), or [`wait_async`](Self::wait_async), waits for all of them. The
///    [supervised](crate::Supervisor) work of idle workers may still have something to write: the
///    shutdown waits for it to return, for at most a quarter of the timeout and 2 s. Then the cleanups
///    run, in reverse order, on a thread of their own. The call returns a report, which `main` can
///    return as the exit status.
/// 3. If that takes longer than the timeout (10 s), a thread that takes no part in the drain ends the
///    process with status 1, and names the workers that hung. So does another signal that arrives
///    more than a second after the first one. The first signal after `trigger` changes nothing: a
///    service manager may send its only SIGTERM late.
///
/// If the [process ends](crate::guide::shutdown#the-end-of-the-process) in another way, the workers that still live are
/// ended, too.
///
/// These messages go to the log, and to `stderr` if the log does not take them.
///
/// **Time** counts while the process runs. Time in which it was stopped, suspended or starved is not
/// charged: a gap counts as at most a tenth of the timeout or half a second.
///
/// **Signals that were ignored** when the shutdown is installed stay ignored, as a shell ignores
/// SIGINT and SIGQUIT for background jobs, and `nohup` ignores SIGHUP; see
/// [`ShutdownBuilder::hook_ignored_signals`].
///
/// **After a fork** the child has the signal handlers, but not the thread that waits for signals, so
/// that signals can't stop it. Install the shutdown after the last fork, or again in the child, or
/// call [`restore_defaults`](Self::restore_defaults) in the child.
///
/// A cheap clone.
///
/// ```no_run
/// use std::process::ExitCode;
/// use worker_heartbeat::{Shutdown, WorkerHeartbeat};
///
/// fn main() -> Result<ExitCode, worker_heartbeat::Error> {
///     let shutdown = Shutdown::builder()
///         .cleanup("close the database", || println!("closed"))
///         .install()?;
///     let hb = WorkerHeartbeat::builder("main_loop").start()?;
///     while !shutdown.requested() {
///         hb.beat();
///         // work
///     }
///     drop(hb);
///     Ok(shutdown.wait().exit_code())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Shutdown {
    inner: Arc<Inner>,
    _witness: Witness,
}

#[derive(Debug)]
struct Inner {
    registries: Vec<Registry>,
    timeout: Duration,
    force_exit: bool,
    /// How long the process may live after the report.
    exit_timeout: Option<Duration>,
    signals: Arc<Signals>,
    termination: TerminationMessage,
    /// With [`Trigger::UncaughtPanic`](crate::Trigger::UncaughtPanic).
    panics: Option<Arc<UncaughtPanics>>,
    wake_sender: WakeSender,
    begun: OnceLock<Begun>,
    /// The workers are being asked to stop, by a thread that found a trigger.
    announced: AtomicBool,
    /// Every worker was asked to stop.
    requested: AtomicBool,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug)]
struct Begun {
    cause: ShutdownCause,
    time: Arc<ObservedTime>,
}

#[derive(Debug)]
struct Progress {
    /// The deadline, in observed time since the beginning.
    limit: Duration,
    /// The deadline for the exit of the process, once there is a report.
    exit_limit: Option<Duration>,
    /// The signals that arrived, each with the observed time of its first arrival.
    signals: Vec<(Signal, Duration)>,
    /// When the workers were asked to stop, by the clock of each registry.
    asked: Vec<Moment>,
    /// A call of `wait` or a poll of `wait_async` has started the drain.
    draining: bool,
    /// The cleanups that have not run yet.
    cleanups: Vec<Cleanup>,
    running: Option<Running>,
    ran: Vec<CleanupReport>,
    end: End,
    latch: Latch<ShutdownCause>,
    /// Async tasks that wait for the beginning or the end.
    waiting: Wakers,
}

/// How a shutdown ends. The first claim wins; only another signal overrules it.
#[derive(Debug)]
enum End {
    Open,
    /// The report is being built.
    Concluding,
    Reported(ShutdownReport),
    /// The process is being ended: there is no report any more.
    Forced,
}

/// Something to do when all workers have ended.
struct Cleanup {
    name: String,
    work: Box<dyn FnOnce() + Send>,
}

/// A cleanup that is running.
#[derive(Debug)]
struct Running {
    name: String,
    thread: ThreadId,
}

impl fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cleanup").field(&self.name).finish()
    }
}

impl Shutdown {
    /// Describes a shutdown. See [`ShutdownBuilder`].
    ///
    /// ```
    /// use worker_heartbeat::Shutdown;
    ///
    /// let shutdown = Shutdown::builder().install()?;
    /// assert!(!shutdown.requested());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn builder() -> ShutdownBuilder {
        ShutdownBuilder::new()
    }

    /// Whether a shutdown has begun. Cheap enough for every turn of a loop.
    ///
    /// In a forked child, where no signal begins one, a signal that has arrived ends the process in this
    /// call.
    ///
    /// ```
    /// use worker_heartbeat::{Shutdown, WorkerHeartbeat};
    ///
    /// let shutdown = Shutdown::builder().install()?;
    /// let hb = WorkerHeartbeat::builder("adder").start()?;
    /// let mut sum = 0;
    /// while !shutdown.requested() {
    ///     hb.beat();
    ///     sum += 1;
    ///     if sum == 10 {
    ///         shutdown.trigger();
    ///     }
    /// }
    /// # assert_eq!(sum, 10);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn requested(&self) -> bool {
        self.inner.is_requested()
    }

    /// The signal that began it; `None` if it has not begun, or was not begun by one.
    ///
    /// ```
    /// use worker_heartbeat::{Shutdown, Signal};
    ///
    /// let shutdown = Shutdown::builder().install()?;
    /// match shutdown.signal() {
    ///     Some(Signal::Hangup) => println!("the terminal is gone"),
    ///     Some(signal) => println!("shutting down by {signal}"),
    ///     None => println!("still at work"),
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        match self.inner.begun.get()?.cause {
            ShutdownCause::Signal(signal) if self.inner.is_requested() => Some(signal),
            _ => None,
        }
    }

    /// The signals that begin it: the chosen ones, without those that stay ignored.
    ///
    /// ```
    /// use worker_heartbeat::{Shutdown, Signal};
    ///
    /// let shutdown = Shutdown::builder().signals([Signal::Terminate]).install()?;
    /// assert_eq!(shutdown.signals(), [Signal::Terminate]);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn signals(&self) -> Vec<Signal> {
        self.inner.signals.iter().collect()
    }

    /// A channel that receives a message and closes when the shutdown begins, or at once if it has
    /// begun. For [`crossbeam_channel::select!`] and for threads that block on channels.
    ///
    /// All receivers share one channel: take one message from each. Ask for one before a loop, not in
    /// every turn. Beyond 131,072 receivers, dropped ones included, a receiver finds its channel closed
    /// and empty.
    ///
    /// ```
    /// use crossbeam_channel::{never, select};
    /// use worker_heartbeat::Shutdown;
    ///
    /// let shutdown = Shutdown::builder().install()?;
    /// let (requests, end) = (never::<String>(), shutdown.receiver());
    /// # shutdown.trigger();
    /// loop {
    ///     select! {
    ///         recv(requests) -> request => println!("{}", request?),
    ///         recv(end) -> cause => {
    ///             println!("shutdown by {}", cause?);
    ///             break;
    ///         }
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn receiver(&self) -> Receiver<ShutdownCause> {
        self.inner.progress.lock().latch.receiver()
    }

    /// Waits for the shutdown to begin, without blocking the thread. Works on any executor, and is
    /// cancel-safe.
    ///
    /// ```
    /// # use worker_heartbeat::{Registry, Shutdown};
    /// # let shutdown = Shutdown::builder().signals([]).registry(&Registry::new()).install()?;
    /// # shutdown.trigger();
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// tokio::select! {
    ///     () = shutdown.requested_async() => println!("no more requests"),
    ///     // request = listener.accept() => ...
    /// }
    /// let report = shutdown.wait_async().await;
    /// # assert!(report.is_clean());
    /// # });
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn requested_async(&self) -> impl Future<Output = ()> + Send + Sync + Unpin + use<> {
        waiting::until_requested(&self.inner)
    }

    /// Begins the shutdown. If it has begun, nothing changes. When this returns, every worker has been
    /// asked to stop.
    ///
    /// ```
    /// use worker_heartbeat::{Shutdown, ShutdownCause, WorkerHeartbeat};
    ///
    /// let shutdown = Shutdown::builder().install()?;
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// shutdown.trigger();
    /// assert!(hb.stop_requested() && shutdown.requested());
    /// drop(hb);
    /// assert_eq!(shutdown.wait().cause, ShutdownCause::Triggered);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn trigger(&self) {
        exit_race::watch_this_thread();
        self.inner.begin_here(ShutdownCause::Triggered);
        self.inner.wait_for_request();
    }

    /// Waits for the shutdown to begin, for all workers to end, and for the cleanups. Returns the
    /// report, at the end of the timeout at the latest. After the timeout, which only
    /// [`force_exit(false)`](ShutdownBuilder::force_exit) outlives, the first call starts the timeout
    /// again.
    ///
    /// **This blocks the calling thread.** Asynchronous code uses [`wait_async`](Self::wait_async).
    /// Supervised futures that only this thread polls can't end meanwhile: drop their runtime first.
    ///
    /// If the calling thread holds a worker's handle, drop it or [`stop`](crate::WorkerHeartbeat::stop)
    /// it first. Supervised work may call this; the shutdown doesn't wait for it then. All calls return
    /// the same report. A call from a cleanup returns at once, since it can't wait for itself: its
    /// report describes that moment, and is not clean.
    ///
    /// ```no_run
    /// use std::process::ExitCode;
    /// use worker_heartbeat::{Registry, Shutdown, Supervisor, WorkerHeartbeat};
    ///
    /// fn main() -> Result<ExitCode, worker_heartbeat::Error> {
    ///     let shutdown = Shutdown::builder().install()?;
    ///     let listener = WorkerHeartbeat::builder("listener");
    ///     Supervisor::new(Registry::global())
    ///         .spawn(listener, |hb| Ok(hb.stop_receiver().recv()?))?;
    ///     let report = shutdown.wait(); // until Ctrl-C
    ///     eprintln!("{report}");
    ///     Ok(report.exit_code())
    /// }
    /// ```
    #[must_use = "the report is the exit status"]
    pub fn wait(&self) -> ShutdownReport {
        exit_race::watch_this_thread();
        waiting::wait(&self.inner)
    }

    /// Like [`wait`](Self::wait), without blocking the thread: on a current-thread runtime, the
    /// workers' futures continue meanwhile. Works on any executor, and is cancel-safe.
    ///
    /// The shutdown doesn't wait for a supervised future that awaits this once its worker has ended:
    /// its worker is idle, or calls [`stop`](crate::WorkerHeartbeat::stop) first.
    ///
    /// The first poll after the shutdown has begun starts the drain, which then continues whether or
    /// not the future is polled.
    ///
    /// See [`requested_async`](Self::requested_async) for an example.
    ///
    /// ```
    /// use worker_heartbeat::Shutdown;
    ///
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// let shutdown = Shutdown::builder().install()?;
    /// # shutdown.trigger();
    /// let report = shutdown.wait_async().await;
    /// assert!(report.is_clean());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "futures do nothing unless they are polled"]
    pub fn wait_async(&self) -> impl Future<Output = ShutdownReport> + Send + Sync + Unpin + use<> {
        exit_race::watch_this_thread();
        waiting::until_reported(&self.inner)
    }

    /// Restores the actions that the hooked signals had before: signals that ended the process do so
    /// again. For a child after a fork, which has the signal handlers but not the thread that waits for
    /// signals. It takes no lock that the parent could hold.
    ///
    /// A signal that arrived in the child before this call counts. The child may also
    /// [install](ShutdownBuilder::install) a shutdown of its own, before or after.
    ///
    /// ```
    /// use worker_heartbeat::Shutdown;
    ///
    /// // In the child: SIGTERM ends it.
    /// Shutdown::restore_defaults();
    /// ```
    pub fn restore_defaults() {
        hooks::restore_defaults();
    }
}

impl Inner {
    fn is_requested(&self) -> bool {
        self.signals.act_in_child();
        self.requested.load(Ordering::Acquire)
    }
}
