//! The end of the process, in good order or in time.

mod builder;
mod report;
mod signals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};

pub use builder::ShutdownBuilder;
pub use report::{CleanupReport, ShutdownCause, ShutdownReport};
pub use signals::Signal;

use crate::health::StopCause;
use crate::notice::Notice;
use crate::panics::{self, OnFatal};
use crate::registry::Registry;
use crate::roster::{StopNews, say};
use crate::supervisor::HungWorker;
use signals::{Hooks, wire::Bell};

/// A signal that comes again within this time is a duplicate: terminals and service managers send
/// the same wish twice, to the process and to its group.
const DUPLICATE: Duration = Duration::from_secs(1);
/// How long a clean shutdown waits for the log to be told of it.
const LOG_PATIENCE: Duration = Duration::from_secs(2);
/// How long the process waits for its last words to be written.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A graceful shutdown, on a signal or when the application asks for it. Opt-in: nothing is hooked
/// before [`ShutdownBuilder::install`], and that can be called once in a process.
///
/// 1. A signal comes, or [`trigger`](Self::trigger) is called. It is logged by name. Idle workers
///    are stopped at once; working ones are asked to, and stopped when their task ends. The
///    pacemaker goes on, so they keep their heartbeats while they drain.
/// 2. [`wait`](Self::wait) waits for all of them, runs the cleanups in reverse order, and returns a
///    report, which `main` can return as the exit status.
/// 3. If that takes longer than the timeout (10 s), a thread that depends on nothing being drained
///    ends the process with status 1, and names who hung. So does another signal, if it comes more
///    than a second after the first.
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
}

#[derive(Debug)]
struct Inner {
    registries: Vec<Registry>,
    timeout: Duration,
    force_exit: bool,
    requested: AtomicBool,
    progress: Mutex<Progress>,
    changed: Condvar,
    bell: Bell,
    /// Somebody is ending the process.
    exiting: AtomicBool,
}

#[derive(Debug)]
struct Progress {
    begun: Option<(ShutdownCause, Instant)>,
    cleanups: Vec<Cleanup>,
    /// The cleanup that is running.
    cleaning: Option<String>,
    /// Somebody is in `wait`, and sees to it that it goes on.
    attended: bool,
    report: Option<ShutdownReport>,
    notice: Notice<ShutdownCause>,
}

/// Something to do when all workers have ended.
pub(super) struct Cleanup {
    name: String,
    work: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cleanup").field(&self.name).finish()
    }
}

impl Shutdown {
    /// Describes a shutdown. See [`ShutdownBuilder`].
    pub fn builder() -> ShutdownBuilder {
        ShutdownBuilder::new()
    }

    /// Whether a shutdown has begun. Cheap enough for every turn of a loop.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.inner.requested.load(Ordering::Acquire)
    }

    /// The signal that began it; `None` if it has not begun, or was not begun by one.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        match self.inner.progress.lock().begun {
            Some((ShutdownCause::Signal(signal), _)) if self.requested() => Some(signal),
            _ => None,
        }
    }

    /// A channel that gets a message, and is closed, when the shutdown begins; at once if it has: for
    /// [`crossbeam_channel::select!`] and for threads that block on channels.
    #[must_use]
    pub fn receiver(&self) -> Receiver<ShutdownCause> {
        self.inner.progress.lock().notice.receiver()
    }

    /// Begins the shutdown. If it has begun, nothing changes.
    pub fn trigger(&self) {
        if self.inner.begin(ShutdownCause::Triggered) {
            self.inner.bell.ring();
            self.inner.announce(ShutdownCause::Triggered);
        }
    }

    /// Waits for the shutdown to begin, for all workers to end, and for the cleanups, which run on
    /// this thread. Returns how it went.
    ///
    /// A worker whose handle the calling thread holds has to end before: drop it, or
    /// [`stop`](crate::WorkerHeartbeat::stop) it.
    ///
    /// If somebody else waits already, this call returns the same report.
    #[must_use = "the report is the exit status"]
    pub fn wait(&self) -> ShutdownReport {
        self.inner.wait()
    }
}

impl Inner {
    /// Notes that a shutdown begins. `false` if it has begun before.
    fn begin(&self, cause: ShutdownCause) -> bool {
        let mut progress = self.progress.lock();
        if progress.begun.is_some() {
            return false;
        }
        progress.begun = Some((cause, Instant::now()));
        true
    }

    /// Asks the workers to stop, then tells the application, and then the log.
    fn announce(&self, cause: ShutdownCause) {
        let stop_cause = match cause {
            ShutdownCause::Signal(signal) => StopCause::Signal(signal.name()),
            ShutdownCause::Triggered => StopCause::Shutdown,
        };
        // The workers before the application: what it does to end them must not look like a return
        // that nobody asked for.
        let news: Vec<_> = self
            .registries
            .iter()
            .map(|registry| registry.request_stop(&stop_cause))
            .collect();
        let mut progress = self.progress.lock();
        self.requested.store(true, Ordering::Release);
        progress.notice.say(cause);
        drop(progress);
        self.changed.notify_all();

        say(
            log::Level::Info,
            format_args!("shutdown begun by {cause}, {:?} allowed", self.timeout),
        );
        news.into_iter().for_each(StopNews::tell);
    }

    // --- the thread that depends on nothing -----------------------------------------------------

    /// Waits for signals and for the deadline. Never logs and never takes part in the drain: it
    /// must be there when all that hangs.
    fn watch(self: &Arc<Self>, mut hooks: Hooks) {
        loop {
            let deadline = self.deadline();
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            for signal in hooks.wait(left) {
                self.receive(signal);
            }
            if self.deadline().is_some_and(|at| Instant::now() >= at) {
                self.end_process("the shutdown took too long");
            }
        }
    }

    /// When the process is to be ended by force; `None` if it is not.
    fn deadline(&self) -> Option<Instant> {
        let progress = self.progress.lock();
        if !self.force_exit || progress.report.is_some() {
            return None;
        }
        progress.begun?.1.checked_add(self.timeout)
    }

    fn receive(self: &Arc<Self>, signal: Signal) {
        let cause = ShutdownCause::Signal(signal);
        if self.begin(cause) {
            // On a thread of its own, for the moment that it takes: it logs, and log
            // implementations may block.
            let inner = Arc::clone(self);
            let begun = thread::Builder::new()
                .name("wh-shutdown".to_owned())
                .spawn(move || inner.announce(cause));
            if begun.is_err() {
                self.announce(cause);
            }
            return;
        }
        let begun = self.progress.lock().begun;
        let again = begun.is_some_and(|(_, at)| at.elapsed() >= DUPLICATE);
        if again && self.force_exit {
            self.end_process(&format!("{signal} came again"));
        }
    }

    /// Ends the process with status 1, and names who hung.
    fn end_process(&self, why: &str) -> ! {
        if self.exiting.swap(true, Ordering::AcqRel) {
            // Somebody else is at it.
            loop {
                thread::park();
            }
        }
        let words = format!("exit with status 1: {why}; {}", self.culprits());
        let (sender, receiver) = bounded::<()>(1);
        // Whoever writes the words may hang like everything else.
        let _ = thread::Builder::new().spawn(move || {
            if log::max_level() == log::LevelFilter::Off {
                use std::io::Write;
                let _ = writeln!(std::io::stderr(), "worker-heartbeat: {words}");
            } else {
                say(log::Level::Error, format_args!("{words}"));
                log::logger().flush();
            }
            drop(sender);
        });
        let _ = receiver.recv_timeout(LAST_WORDS);
        signal_hook::low_level::exit(1)
    }

    /// Who keeps the process from ending.
    fn culprits(&self) -> String {
        let hung = self.hung();
        if !hung.is_empty() {
            let named = hung
                .iter()
                .map(|worker| format!("{} ({})", worker.id, worker.health));
            return format!("still at work: {}", named.collect::<Vec<_>>().join(", "));
        }
        let progress = self.progress.lock();
        match &progress.cleaning {
            Some(name) => format!("cleanup {name:?} is still running"),
            None if !progress.attended => "all workers ended, but nobody called wait()".to_owned(),
            None if progress.report.is_none() => "all workers have just ended".to_owned(),
            None => "all workers and cleanups ended, but the process did not".to_owned(),
        }
    }

    fn hung(&self) -> Vec<HungWorker> {
        let mut hung = Vec::new();
        for registry in &self.registries {
            let view = registry.roster().view();
            hung.extend(
                registry
                    .living()
                    .into_iter()
                    .map(|post| HungWorker::new(post.record.id().to_owned(), post.health(&view))),
            );
        }
        hung
    }

    // --- whoever waits --------------------------------------------------------------------------

    fn wait(&self) -> ShutdownReport {
        let mut progress = self.progress.lock();
        let (cause, begun_at) = loop {
            if let Some(report) = &progress.report {
                return report.clone();
            }
            match progress.begun {
                Some(begun) if !progress.attended && self.requested.load(Ordering::Acquire) => {
                    break begun;
                }
                _ => self.changed.wait(&mut progress),
            }
        };
        progress.attended = true;
        drop(progress);

        let deadline = begun_at + self.timeout;
        for registry in &self.registries {
            registry.drain(deadline);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        for registry in &self.registries {
            // Before the cleanups, which may close what the store needs.
            registry.tell_store(left / 2);
        }
        let hung = self.hung();
        if !hung.is_empty() && self.force_exit {
            self.end_process("the shutdown took too long");
        }
        let cleanups = if hung.is_empty() {
            self.clean_up()
        } else {
            // What they clean up may still be in use.
            Vec::new()
        };
        // A log that is slow is waited for, one that blocks is not.
        let left = deadline.saturating_duration_since(Instant::now());
        for registry in &self.registries {
            registry.wait_for_log(LOG_PATIENCE.min(left / 2));
        }
        let report = ShutdownReport {
            cause,
            hung,
            cleanups,
            took: begun_at.elapsed(),
        };
        self.progress.lock().report = Some(report.clone());
        self.changed.notify_all();
        report
    }

    /// Runs the cleanups, the last one first.
    fn clean_up(&self) -> Vec<CleanupReport> {
        let mut reports = Vec::new();
        loop {
            let mut progress = self.progress.lock();
            progress.cleaning = None;
            let Some(Cleanup { name, work }) = progress.cleanups.pop() else {
                return reports;
            };
            progress.cleaning = Some(name.clone());
            drop(progress);
            let nobody: OnFatal = Arc::new(|_| {});
            let panic = panics::supervise(&nobody, work).err().map(|report| {
                say(
                    log::Level::Error,
                    format_args!("cleanup {name:?} panicked: {}", report.message),
                );
                report.message
            });
            reports.push(CleanupReport { name, panic });
        }
    }
}

/// Starts the thread that waits for signals, as soon as it is handed its hooks. It lives as long as
/// the process, or ends at once if there are to be none.
fn start() -> std::io::Result<Sender<(Arc<Inner>, Hooks)>> {
    let (sender, receiver) = bounded::<(Arc<Inner>, Hooks)>(1);
    thread::Builder::new()
        .name("wh-signals".to_owned())
        .spawn(move || {
            if let Ok((inner, hooks)) = receiver.recv() {
                inner.watch(hooks);
            }
        })?;
    Ok(sender)
}
