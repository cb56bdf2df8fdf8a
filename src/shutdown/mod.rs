//! The end of the process, in good order or in time.

mod builder;
mod course;
mod hooks;
mod inherited;
mod leaving;
mod report;
mod signals;
mod waiting;
mod watch;
mod wire;

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

use crate::clock::{Clock, Moment, ObservedTime, Patience};
use crate::health::StopCause;
use crate::registry::Registry;
use crate::registry::at_exit::Witness;
use crate::registry::core::worker_ref::wake;
use crate::registry::core::{PendingNotices, say};
use crate::sync::background;
use crate::sync::latch::Latch;
use crate::sync::wakers::Wakers;
use hooks::Signals;
use wire::Bell;

/// A graceful shutdown, on a signal or when the application asks for it. Opt-in: nothing is hooked
/// before [`ShutdownBuilder::install`], and that can be called once in a process.
///
/// 1. A signal comes, or [`trigger`](Self::trigger) is called. It is logged by name. Idle workers
///    are stopped at once; working ones are asked to, and stopped when their task ends. The
///    pacemaker goes on, so they keep their heartbeats while they drain.
/// 2. [`wait`](Self::wait), or [`wait_async`](Self::wait_async), waits for all of them. The
///    [supervised](crate::Supervisor) work of idle workers may have something to write on its way
///    out: it is waited for, too, for at most a quarter of the timeout and 2 s. Then the cleanups
///    run, in reverse order, on a thread of their own. A report is returned, which `main` can return
///    as the exit status.
/// 3. If that takes longer than the timeout (10 s), a thread that depends on nothing being drained
///    ends the process with status 1, and names who hung. So does another signal, if it comes more
///    than a second after the first one. The first signal after `trigger` changes nothing: a service
///    manager may send its one SIGTERM late.
///
/// If the [process ends](crate::guide::shutdown#the-end-of-the-process) otherwise, the workers that still live are
/// ended, too.
///
/// These words go to the log, and to `stderr` if the log does not take them.
///
/// **Time** is counted as far as the process ran: a process that was stopped, suspended or starved
/// is not charged for it. A gap counts as a tenth of the timeout, or half a second, at most.
///
/// **Signals that were ignored** when the shutdown is installed stay ignored, as a shell ignores
/// SIGINT and SIGQUIT for what it starts in the background, and `nohup` ignores SIGHUP; see
/// [`ShutdownBuilder::hook_ignored_signals`].
///
/// **After a fork** the child has the hooks, but not the thread that waits for signals, and cannot
/// be stopped by them. Install the shutdown after the last fork, or again in the child; or let the
/// child call [`restore_defaults`](Self::restore_defaults).
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
    bell: Bell,
    begun: OnceLock<Begun>,
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
    /// When the time is over, in observed time since the beginning.
    limit: Duration,
    /// When the time for the end of the process is over, once there is a report.
    exit_limit: Option<Duration>,
    /// The signals that came, each with the observed time at which it came first.
    signals: Vec<(Signal, Duration)>,
    /// When the workers were asked to stop, by the clock of each registry.
    asked: Vec<Moment>,
    /// A call of `wait` or a poll of `wait_async` has started the end.
    attended: bool,
    /// Those that were not run yet.
    cleanups: Vec<Cleanup>,
    running: Option<Running>,
    ran: Vec<CleanupReport>,
    end: End,
    latch: Latch<ShutdownCause>,
    /// Tasks to be woken when the shutdown begins, and when it is over.
    waiting: Wakers,
}

/// Which end a shutdown comes to. The first one that is claimed counts, and another signal.
#[derive(Debug)]
enum End {
    Open,
    /// The report is being made.
    Concluding,
    Reported(ShutdownReport),
    /// The process is being ended: no report is given any more.
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
    pub fn builder() -> ShutdownBuilder {
        ShutdownBuilder::new()
    }

    /// Whether a shutdown has begun. Cheap enough for every turn of a loop.
    ///
    /// In a forked child, where no signal begins one, this ends the process by a signal that has come.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.inner.is_requested()
    }

    /// The signal that began it; `None` if it has not begun, or was not begun by one.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        match self.inner.begun.get()?.cause {
            ShutdownCause::Signal(signal) if self.inner.is_requested() => Some(signal),
            _ => None,
        }
    }

    /// The signals that begin it: those that were chosen, without those that are left ignored.
    #[must_use]
    pub fn signals(&self) -> Vec<Signal> {
        self.inner.signals.iter().collect()
    }

    /// A channel that gets a message, and is closed, when the shutdown begins; at once if it has: for
    /// [`crossbeam_channel::select!`] and for threads that block on channels.
    ///
    /// All receivers share one channel: take one message from each. Ask for one before a loop, not in
    /// every turn: of more than 131,072, dropped ones included, the others find a channel that is
    /// closed, and has no message.
    #[must_use]
    pub fn receiver(&self) -> Receiver<ShutdownCause> {
        self.inner.progress.lock().latch.receiver()
    }

    /// Waits, without blocking the thread, for the shutdown to begin. Works on any executor; the
    /// future can be dropped and made again at any time.
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

    /// Begins the shutdown. If it has begun, nothing changes. When this returns, every worker was
    /// asked to stop.
    pub fn trigger(&self) {
        leaving::mind_this_thread();
        let cause = ShutdownCause::Triggered;
        if self.inner.begin(cause) {
            self.inner.bell.ring();
            Inner::announce_aside(&self.inner, cause, true);
        }
        self.inner.wait_for_request();
    }

    /// Waits for the shutdown to begin, for all workers to end, and for the cleanups. Returns how
    /// it went, at the end of the timeout at the latest; a call that comes later, which only
    /// [`force_exit(false)`](ShutdownBuilder::force_exit) leaves time for, gives all of it the
    /// timeout once more.
    ///
    /// **This blocks the calling thread.** Asynchronous code uses [`wait_async`](Self::wait_async).
    /// Supervised futures that only this thread polls cannot end meanwhile: drop their runtime before.
    ///
    /// A worker whose handle the calling thread holds has to end before: drop it, or
    /// [`stop`](crate::WorkerHeartbeat::stop) it. Supervised work may call this: it is not waited for
    /// then. All calls return the same report. A call from a cleanup returns at once, since it cannot wait for that cleanup: its report is that of the
    /// moment, and not clean.
    #[must_use = "the report is the exit status"]
    pub fn wait(&self) -> ShutdownReport {
        leaving::mind_this_thread();
        waiting::wait(&self.inner)
    }

    /// As [`wait`](Self::wait), without blocking the thread: on a current-thread runtime, the
    /// workers' futures go on meanwhile. Works on any executor.
    ///
    /// A supervised future that awaits this is not waited for, once its worker has ended: it is idle,
    /// or calls [`stop`](crate::WorkerHeartbeat::stop) before.
    ///
    /// The first poll that finds the shutdown begun starts the end of it, which then goes on whether
    /// the future is polled or not. The future can be dropped and made again at any time.
    ///
    /// See [`requested_async`](Self::requested_async) for an example.
    #[must_use = "futures do nothing unless they are polled"]
    pub fn wait_async(&self) -> impl Future<Output = ShutdownReport> + Send + Sync + Unpin + use<> {
        leaving::mind_this_thread();
        waiting::until_reported(&self.inner)
    }

    /// From now on, hooked signals do in this process what they did before they were hooked: those
    /// that ended the process do so again. For a child after a fork, which has the hooks and not the
    /// thread that waits for signals. It takes no lock that could be held in the parent.
    ///
    /// A signal that came to the child before this call counts. The child may also
    /// [install](ShutdownBuilder::install) a shutdown of its own, before or after.
    ///
    /// ```
    /// use worker_heartbeat::Shutdown;
    ///
    /// // in the child: SIGTERM ends it
    /// Shutdown::restore_defaults();
    /// ```
    pub fn restore_defaults() {
        hooks::restore_defaults();
    }
}

impl Inner {
    fn is_requested(&self) -> bool {
        self.signals.obey_in_child();
        self.requested.load(Ordering::Acquire)
    }

    /// Notes that a shutdown begins. `false` if it has begun before.
    fn begin(&self, cause: ShutdownCause) -> bool {
        let time = Arc::new(ObservedTime::begin(self.timeout));
        self.begun.set(Begun { cause, time }).is_ok()
    }

    /// Does that on a thread of its own, for the moment that it takes: it calls log implementations
    /// and wakers, which may block. If there is no thread to be had, the log hears of it only if the
    /// calling one `may_log`.
    fn announce_aside(this: &Arc<Self>, cause: ShutdownCause, may_log: bool) {
        let inner = Arc::clone(this);
        if background::detach("wh-announce", move || inner.announce(cause, true)).is_err() {
            this.announce(cause, may_log);
        }
    }

    /// Asks the workers to stop, then tells the application, and then the log, if it may.
    fn announce(&self, cause: ShutdownCause, may_log: bool) {
        let stop_cause = match cause {
            ShutdownCause::Signal(signal) => StopCause::Signal(signal.name()),
            ShutdownCause::Triggered => StopCause::Shutdown,
        };
        // The workers before the application: what it does to end them must not look like a return
        // that nobody asked for.
        let clocks = self.registries.iter().map(Registry::clock);
        let asked = clocks.map(Clock::now).collect();
        let mut notices: Vec<_> = self
            .registries
            .iter()
            .map(|registry| registry.request_stop(&stop_cause))
            .collect();
        let mut progress = self.progress.lock();
        progress.asked = asked;
        self.requested.store(true, Ordering::Release);
        progress.latch.set(cause);
        let waiting = progress.waiting.take();
        drop(progress);
        self.changed.notify_all();
        waiting.for_each(wake);

        // All wakers before the first words: the log may block.
        notices.iter_mut().for_each(PendingNotices::wake);
        if !may_log {
            return;
        }
        say(
            log::Level::Info,
            format_args!("shutdown begun by {cause}, {:?} allowed", self.timeout),
        );
        notices.into_iter().for_each(PendingNotices::deliver);
    }

    /// Until every worker was asked to stop, which another thread may be about to do.
    fn wait_for_request(&self) {
        let patience = Patience::new(self.timeout);
        let mut progress = self.progress.lock();
        while !self.is_requested() {
            let Some(slice) = patience.slice() else {
                return;
            };
            self.changed.wait_for(&mut progress, slice);
        }
    }
}
