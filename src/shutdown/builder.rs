//! The builder of a shutdown: its signals, timeouts and cleanups.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};

use super::file::WatchedFile;
use super::hooks::{InstallGuard, SignalListener};
use super::termination::TerminationMessage;
use super::{Cleanup, End, Inner, Progress, Shutdown, Signal, exit_race, file, triggers};
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::at_exit::Witness;
use crate::registry::core::escalation::Trigger;
use crate::sync::background;
use crate::sync::latch::Latch;
use crate::sync::wakers::Wakers;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The only thread of a shutdown until it begins.
const THREAD_NAME: &str = "wh-signals";

/// Builds a [`Shutdown`]; made by [`Shutdown::builder`].
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Shutdown, Signal};
///
/// let shutdown = Shutdown::builder()
///     .signals([Signal::Terminate, Signal::Interrupt])
///     .timeout(Duration::from_secs(20))
///     .cleanup("close the database", || println!("closed"))
///     .install()?;
/// shutdown.trigger();
/// println!("{}", shutdown.wait()); // shutdown by the application, clean, took 1.2ms
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[must_use = "nothing happens before install()"]
pub struct ShutdownBuilder {
    signals: Vec<Signal>,
    hook_ignored: bool,
    timeout: Duration,
    force_exit: bool,
    exit_timeout: Option<Duration>,
    registries: Vec<Registry>,
    cleanups: Vec<Cleanup>,
    triggers: Vec<Trigger>,
    files: Vec<PathBuf>,
    termination_message: Option<PathBuf>,
}

impl ShutdownBuilder {
    pub(super) fn new() -> Self {
        Self {
            signals: Signal::DEFAULT.to_vec(),
            hook_ignored: false,
            timeout: DEFAULT_TIMEOUT,
            force_exit: true,
            exit_timeout: None,
            registries: Vec::new(),
            cleanups: Vec::new(),
            triggers: Vec::new(),
            files: Vec::new(),
            termination_message: None,
        }
    }

    /// The signals that begin it; SIGINT, SIGTERM, SIGQUIT and SIGHUP by default. With none, only
    /// [`Shutdown::trigger`] does. Signals that are ignored at the time of installation stay ignored: see
    /// [`hook_ignored_signals`](Self::hook_ignored_signals).
    ///
    /// ```
    /// use worker_heartbeat::{Shutdown, Signal};
    ///
    /// // Another program handles SIGHUP and SIGQUIT.
    /// let shutdown = Shutdown::builder().signals([Signal::Terminate, Signal::Interrupt]).install()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.signals = signals.into_iter().collect();
        self
    }

    /// Whether signals that are ignored at the time of installation are hooked too; no by default. So a
    /// shell's background job (`sh -c 'service &'`) goes on ignoring SIGINT and SIGQUIT, which are not
    /// meant for it, and a process under `nohup` goes on ignoring SIGHUP. Which signals are ignored is
    /// known on Linux, with `/proc`.
    ///
    /// [`Shutdown::signals`] names the hooked ones.
    ///
    /// ```
    /// use worker_heartbeat::Shutdown;
    ///
    /// // Even under nohup, the end of the terminal begins the shutdown.
    /// let shutdown = Shutdown::builder().hook_ignored_signals(true).install()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn hook_ignored_signals(mut self, hook_ignored: bool) -> Self {
        self.hook_ignored = hook_ignored;
        self
    }

    /// A registry whose workers are stopped; [`Registry::global`] by default. Can be called again,
    /// for more than one; the same one twice counts once.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Shutdown, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// let shutdown = Shutdown::builder().registry(&registry).install()?;
    /// shutdown.trigger();
    /// assert!(hb.stop_requested());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn registry(mut self, registry: &Registry) -> Self {
        if !self.registries.iter().any(|known| known.is(registry)) {
            self.registries.push(registry.clone());
        }
        self
    }

    /// The time limit from the beginning to the end of the last cleanup: 10 s by default, 1 ms to 1
    /// day. Time in which the process did not run does not count.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Error, Shutdown};
    ///
    /// // Shorter than the time that a service manager allows.
    /// let shutdown = Shutdown::builder().timeout(Duration::from_secs(20)).install()?;
    /// let refused = Shutdown::builder().timeout(Duration::ZERO).install();
    /// assert!(matches!(refused, Err(Error::Invalid { field: "timeout", .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether the process is ended with status 1 after the timeout, or when a signal arrives again;
    /// yes by default. Otherwise, [`Shutdown::wait`] returns at the end of the timeout. Its report
    /// names the workers that hung, the cleanup that did not end, and the cleanups that did not run.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Shutdown, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// let _task = hb.begin_task("run-123", "sending"); // does not end
    /// let shutdown = Shutdown::builder().timeout(Duration::from_millis(5)).force_exit(false).install()?;
    /// shutdown.trigger();
    /// let report = shutdown.wait();
    /// assert_eq!(report.hung[0].id, "mailer-1");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn force_exit(mut self, force_exit: bool) -> Self {
        self.force_exit = force_exit;
        self
    }

    /// The time limit from the report of [`Shutdown::wait`] to the exit of the process, in the same
    /// range as the timeout; unlimited by default, since `main` may have a report to write. After it,
    /// the process is ended with status 1 and a message.
    ///
    /// For a `main` that returns at once. A shutdown can't see what keeps such a process: the drop of
    /// an async runtime waits for its blocking tasks, a destructor joins a thread, a function
    /// registered with `atexit` hangs.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use worker_heartbeat::Shutdown;
    ///
    /// let shutdown = Shutdown::builder()
    ///     .timeout(Duration::from_secs(20))
    ///     .exit_timeout(Duration::from_secs(5))
    ///     .install()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn exit_timeout(mut self, timeout: Duration) -> Self {
        self.exit_timeout = Some(timeout);
        self
    }

    /// Adds work to do when all workers have ended. Cleanups run in reverse order.
    ///
    /// They run one after the other on a thread of their own, `wh-shutdown`, which is left behind if
    /// one hangs. That thread has no thread-locals of `main` and no context of an async runtime (bring
    /// its handle), and can't close a window that only another thread may close.
    ///
    /// ```
    /// use worker_heartbeat::Shutdown;
    ///
    /// let shutdown = Shutdown::builder()
    ///     .cleanup("close the database", || println!("closed, second"))
    ///     .cleanup("flush the cache", || println!("flushed, first"))
    ///     .install()?;
    /// shutdown.trigger();
    /// assert_eq!(shutdown.wait().cleanups[0].name, "flush the cache");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn cleanup(
        mut self,
        name: impl Into<String>,
        work: impl FnOnce() + Send + 'static,
    ) -> Self {
        self.cleanups.push(Cleanup {
            name: name.into(),
            work: Box::new(work),
        });
        self
    }

    /// Begins the shutdown when this happens to a worker of its registries. Can be called again, for
    /// more than one: the first that applies counts. By default, nothing that happens to a worker ends
    /// the process.
    ///
    /// The shutdown is orderly, as on a signal, and its exit status is 1. What happened is the
    /// [`cause`](crate::ShutdownReport::cause) in the report and in the log, in the status that
    /// systemd shows, and in the [termination message](Self::termination_message) of Kubernetes.
    ///
    /// What has happened before the installation counts too: a worker that was given up or died, and was
    /// not replaced since, a worker that has been stalled, workers that have been missing.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use worker_heartbeat::{Shutdown, Trigger};
    ///
    /// let shutdown = Shutdown::builder()
    ///     .on(Trigger::GaveUp)
    ///     .on(Trigger::StalledFor(Duration::from_secs(300)))
    ///     .on(Trigger::MissingFor(Duration::from_secs(60)))
    ///     .on(Trigger::DeadType("indexer"))
    ///     .on(Trigger::UncaughtPanic)
    ///     .install()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn on(mut self, trigger: Trigger) -> Self {
        self.triggers.push(trigger);
        self
    }

    /// Begins the shutdown when this file appears, or is written, touched or replaced: for a hook
    /// that runs before the process is stopped, such as `preStop: exec: touch /tmp/drain` of
    /// Kubernetes. Can be called again, for more than one. The exit status is that of a shutdown on a
    /// signal.
    ///
    /// A file that is there at the installation is from an earlier life: it begins nothing until it is
    /// touched. The file is looked at four times a second, by a thread of its own, `wh-file`. If that
    /// fails, it is logged once, and tried again.
    ///
    /// ```no_run
    /// use worker_heartbeat::Shutdown;
    ///
    /// let shutdown = Shutdown::builder().on_file("/tmp/drain").install()?;
    /// println!("{}", shutdown.wait()); // shutdown by file /tmp/drain, clean, took 1.2s
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn on_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// A file that gets the reason why the process ends, if it does not end with success: what began
    /// the shutdown, if a [trigger](Self::on) did, and then its report. Kubernetes shows the content of
    /// `/dev/termination-log` as the message of a container's last state.
    ///
    /// At most 4096 bytes, which replace the content. The file is never created: without it, nothing
    /// is written. A file that can't be written is reported in the log, and changes nothing else.
    ///
    /// ```no_run
    /// use worker_heartbeat::{Shutdown, Trigger};
    ///
    /// let shutdown = Shutdown::builder()
    ///     .on(Trigger::GaveUp)
    ///     .termination_message("/dev/termination-log")
    ///     .install()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn termination_message(mut self, path: impl Into<PathBuf>) -> Self {
        self.termination_message = Some(path.into());
        self
    }

    /// Hooks the signals and starts the thread that waits for them. Both stay until the process ends. A
    /// forked child has the signal handlers but not the thread: it may install a shutdown of its own.
    ///
    /// ```
    /// use worker_heartbeat::{Error, Shutdown};
    ///
    /// let shutdown = Shutdown::builder().install()?;
    /// let second = Shutdown::builder().install();
    /// assert!(matches!(second, Err(Error::AlreadyInstalled { .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AlreadyInstalled`] names signals of another shutdown of this process;
    /// [`Error::Invalid`] names a timeout or a trigger
    /// whose value is not allowed; [`Error::SignalBlocked`] names signals that would never arrive, since
    /// every thread blocks them (known on Linux, with `/proc`); [`Error::Signal`] and
    /// [`Error::Thread`] if the system refuses.
    pub fn install(mut self) -> Result<Shutdown, Error> {
        check("timeout", self.timeout)?;
        if let Some(timeout) = self.exit_timeout {
            check("exit_timeout", timeout)?;
        }
        self.triggers.iter().try_for_each(triggers::check)?;
        if let Some(path) = &self.termination_message {
            check_path("termination_message", path)?;
        }
        let files = self.files.into_iter().map(|path| {
            check_path("on_file", &path)?;
            Ok(WatchedFile::new(path))
        });
        let files = files.collect::<Result<Vec<_>, Error>>()?;
        let guard = InstallGuard::take().ok_or_else(|| Error::AlreadyInstalled {
            signals: names(&self.signals),
        })?;
        if self.registries.is_empty() {
            self.registries.push(Registry::global().clone());
        }
        // The thread before the hooks: without it, signals would go nowhere.
        let thread = start().map_err(|error| Error::Thread {
            name: THREAD_NAME.to_owned(),
            error,
        })?;
        let (listener, wake_sender) = guard.install(&self.signals, self.hook_ignored)?;
        let panics = self.triggers.contains(&Trigger::UncaughtPanic);
        let panics = panics
            .then(|| triggers::watch_panics(&wake_sender))
            .transpose()?;
        let inner = Arc::new(Inner {
            registries: self.registries,
            timeout: self.timeout,
            force_exit: self.force_exit,
            exit_timeout: self.exit_timeout,
            signals: Arc::clone(listener.signals()),
            termination: TerminationMessage::new(self.termination_message),
            panics,
            wake_sender,
            begun: OnceLock::new(),
            announced: AtomicBool::new(false),
            requested: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                limit: self.timeout,
                exit_limit: None,
                signals: Vec::new(),
                asked: Vec::new(),
                draining: false,
                cleanups: self.cleanups,
                running: None,
                ran: Vec::new(),
                end: End::Open,
                latch: Latch::new(),
                waiting: Wakers::default(),
            }),
            changed: Condvar::new(),
        });
        inner.registries.iter().for_each(Registry::watch_exit);
        // The thread is waiting for it.
        let _ = thread.send((Arc::clone(&inner), listener));
        exit_race::watch_this_thread();
        files
            .into_iter()
            .try_for_each(|file| file::watch(&inner, file))?;
        triggers::watch(&inner, self.triggers);
        Ok(Shutdown {
            inner,
            _witness: Witness::held(),
        })
    }
}

fn names(signals: &[Signal]) -> String {
    let names: Vec<_> = signals.iter().map(|signal| signal.name()).collect();
    names.join(", ")
}

fn check(name: &'static str, timeout: Duration) -> Result<(), Error> {
    if (SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&timeout) {
        return Ok(());
    }
    let allowed = format!("{SHORTEST_TIMEOUT:?} to 1 day");
    Err(Error::invalid(name, format!("{timeout:?}"), allowed))
}

fn check_path(name: &'static str, path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        let allowed = "the path of a file";
        return Err(Error::invalid(name, format!("{path:?}"), allowed));
    }
    Ok(())
}

/// Starts the thread that waits for signals once it is sent its listener. It lives as long as the
/// process, or ends at once if the installation fails.
fn start() -> io::Result<Sender<(Arc<Inner>, SignalListener)>> {
    let (sender, receiver) = bounded::<(Arc<Inner>, SignalListener)>(1);
    background::detach(THREAD_NAME, move || {
        if let Ok((inner, listener)) = receiver.recv() {
            inner.watch(listener);
        }
    })?;
    Ok(sender)
}

impl fmt::Debug for ShutdownBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownBuilder")
            .field("signals", &self.signals)
            .field("timeout", &self.timeout)
            .field("force_exit", &self.force_exit)
            .field("exit_timeout", &self.exit_timeout)
            .field("cleanups", &self.cleanups)
            .field("triggers", &self.triggers)
            .field("files", &self.files)
            .field("termination_message", &self.termination_message)
            .finish_non_exhaustive()
    }
}
