//! What a shutdown is: its signals, its time, its cleanups.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use parking_lot::{Condvar, Mutex};

use super::hooks::{Ear, Turn};
use super::{Cleanup, End, Inner, Progress, Shutdown, Signal, leaving};
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::at_exit::Witness;
use crate::sync::background;
use crate::sync::latch::Latch;
use crate::sync::wakers::Wakers;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The one thread of a shutdown until that begins.
const THREAD_NAME: &str = "wh-signals";

/// Describes a shutdown; made by [`Shutdown::builder`].
#[must_use = "nothing happens before install()"]
pub struct ShutdownBuilder {
    signals: Vec<Signal>,
    hook_ignored: bool,
    timeout: Duration,
    force_exit: bool,
    exit_timeout: Option<Duration>,
    registries: Vec<Registry>,
    cleanups: Vec<Cleanup>,
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
        }
    }

    /// The signals that begin it; SIGINT, SIGTERM, SIGQUIT and SIGHUP by default. With none, only
    /// [`Shutdown::trigger`] does. Those that are ignored when it is installed stay ignored: see
    /// [`hook_ignored_signals`](Self::hook_ignored_signals).
    pub fn signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.signals = signals.into_iter().collect();
        self
    }

    /// Whether signals that are ignored when it is installed are hooked too; no by default, so that
    /// what the process was started to ignore stays ignored: SIGINT and SIGQUIT of a shell's
    /// background job (`sh -c 'service &'`), which a Ctrl-C is not meant for; SIGHUP under `nohup`.
    /// Which signals are ignored is known on Linux, with `/proc`.
    ///
    /// [`Shutdown::signals`] names those that were hooked.
    pub const fn hook_ignored_signals(mut self, hook_ignored: bool) -> Self {
        self.hook_ignored = hook_ignored;
        self
    }

    /// A registry whose workers are stopped; [`Registry::global`] by default. Can be called again,
    /// for more than one; the same one twice counts once.
    pub fn registry(mut self, registry: &Registry) -> Self {
        if !self.registries.iter().any(|known| known.is(registry)) {
            self.registries.push(registry.clone());
        }
        self
    }

    /// How long it may take, from its beginning to the end of the last cleanup; 10 s by default, 1
    /// ms to 1 day. Time in which the process did not run does not count.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether the process is ended with status 1 when it takes longer, or when the same signal comes
    /// again; yes by default. Otherwise, [`Shutdown::wait`] returns at the end of the timeout, and
    /// names in its report the workers that hung, the cleanup that did not end, and those that were
    /// not run.
    pub const fn force_exit(mut self, force_exit: bool) -> Self {
        self.force_exit = force_exit;
        self
    }

    /// How long the process may live after [`Shutdown::wait`] has its report, in the same range as the
    /// timeout; for as long as it likes by default, since `main` may have a report to write. When the
    /// time is over, the process is ended with status 1, with words that say so.
    ///
    /// For a `main` that returns at once. What can keep it is beyond a shutdown: the drop of an
    /// asynchronous runtime waits for its blocking tasks, a destructor joins a thread, a function of
    /// `atexit` hangs.
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

    /// Something to do when all workers have ended. The last one added is the first one run.
    ///
    /// Cleanups run one after the other on a thread of their own, `wh-shutdown`, which is left behind
    /// if one hangs. So what belongs to a thread is not there: thread-locals of `main`, the context
    /// of an asynchronous runtime (bring its handle), or a window that only its own thread may close.
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

    /// Hooks the signals and starts the one thread that waits for them. Both stay until the process
    /// ends. A forked child has the hooks and not the thread: it may install a shutdown of its own.
    ///
    /// # Errors
    /// [`Error::AlreadyInstalled`] the second time in a process; [`Error::Invalid`] names a timeout
    /// that is not allowed; [`Error::SignalBlocked`] names signals that would never arrive, since
    /// every thread blocks them (known on Linux, with `/proc`); [`Error::Signal`] and
    /// [`Error::Thread`] if the system refuses.
    pub fn install(mut self) -> Result<Shutdown, Error> {
        check("timeout", self.timeout)?;
        if let Some(timeout) = self.exit_timeout {
            check("exit_timeout", timeout)?;
        }
        let turn = Turn::take().ok_or(Error::AlreadyInstalled)?;
        if self.registries.is_empty() {
            self.registries.push(Registry::global().clone());
        }
        // The thread before the hooks: without it, signals would go nowhere.
        let thread = start().map_err(|source| Error::Thread {
            name: THREAD_NAME.to_owned(),
            source,
        })?;
        let (ear, bell) = turn.install(&self.signals, self.hook_ignored)?;
        let inner = Arc::new(Inner {
            registries: self.registries,
            timeout: self.timeout,
            force_exit: self.force_exit,
            exit_timeout: self.exit_timeout,
            signals: Arc::clone(ear.signals()),
            bell,
            begun: OnceLock::new(),
            requested: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                limit: self.timeout,
                exit_limit: None,
                signals: Vec::new(),
                asked: Vec::new(),
                attended: false,
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
        let _ = thread.send((Arc::clone(&inner), ear));
        leaving::mind_this_thread();
        Ok(Shutdown {
            inner,
            _witness: Witness::held(),
        })
    }
}

fn check(name: &'static str, timeout: Duration) -> Result<(), Error> {
    if (SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&timeout) {
        return Ok(());
    }
    let allowed = format!("{SHORTEST_TIMEOUT:?} to 1 day");
    Err(Error::invalid(name, format!("{timeout:?}"), allowed))
}

/// Starts the thread that waits for signals, as soon as it is handed its ear. It lives as long as
/// the process, or ends at once if nothing is hooked.
fn start() -> io::Result<Sender<(Arc<Inner>, Ear)>> {
    let (sender, receiver) = bounded::<(Arc<Inner>, Ear)>(1);
    background::detach(THREAD_NAME, move || {
        if let Ok((inner, ear)) = receiver.recv() {
            inner.watch(ear);
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
            .finish_non_exhaustive()
    }
}
