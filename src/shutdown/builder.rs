//! What a shutdown is: its signals, its time, its cleanups.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Cleanup, Hooks, Inner, Progress, Shutdown, Signal, start};
use crate::error::Error;
use crate::notice::Notice;
use crate::registry::Registry;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Describes a shutdown; made by [`Shutdown::builder`].
#[must_use = "nothing happens before install()"]
pub struct ShutdownBuilder {
    signals: Vec<Signal>,
    timeout: Duration,
    force_exit: bool,
    registries: Vec<Registry>,
    cleanups: Vec<Cleanup>,
}

impl ShutdownBuilder {
    pub(super) fn new() -> Self {
        Self {
            signals: Signal::DEFAULT.to_vec(),
            timeout: DEFAULT_TIMEOUT,
            force_exit: true,
            registries: Vec::new(),
            cleanups: Vec::new(),
        }
    }

    /// The signals that begin it; SIGINT, SIGTERM, SIGQUIT and SIGHUP by default. With none, only
    /// [`Shutdown::trigger`] does. A SIGHUP that the process was started to ignore, as by `nohup`,
    /// stays ignored.
    pub fn signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.signals = signals.into_iter().collect();
        self
    }

    /// A registry whose workers are stopped; [`Registry::global`] by default. Can be called again,
    /// for more than one.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registries.push(registry.clone());
        self
    }

    /// How long it may take, from its beginning to the end of the last cleanup; 10 s by default, 1
    /// ms to 1 day.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether the process is ended with status 1 when it takes longer, or when a signal comes
    /// again; yes by default. Otherwise, [`Shutdown::wait`] returns at the end of the timeout, and
    /// names who hung in its report.
    pub const fn force_exit(mut self, force_exit: bool) -> Self {
        self.force_exit = force_exit;
        self
    }

    /// Something to do when all workers have ended. The last one added is the first one run.
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
    /// ends.
    ///
    /// # Errors
    /// [`Error::AlreadyInstalled`] the second time in a process; [`Error::Invalid`] names a timeout
    /// that is not allowed; [`Error::Signal`] and [`Error::Thread`] if the system refuses.
    pub fn install(mut self) -> Result<Shutdown, Error> {
        if !(SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&self.timeout) {
            return Err(Error::invalid(
                "timeout",
                format!("{:?}", self.timeout),
                format!("{SHORTEST_TIMEOUT:?} to 1 day"),
            ));
        }
        if INSTALLED.swap(true, Ordering::AcqRel) {
            return Err(Error::AlreadyInstalled);
        }
        if self.registries.is_empty() {
            self.registries.push(Registry::global().clone());
        }
        let installed = self.hook();
        if installed.is_err() {
            INSTALLED.store(false, Ordering::Release);
        }
        installed
    }

    fn hook(self) -> Result<Shutdown, Error> {
        // The thread before the hooks: without it, signals would go nowhere.
        let thread = start().map_err(|source| Error::Thread {
            name: "wh-signals".to_owned(),
            source,
        })?;
        let (hooks, bell) = Hooks::install(&self.signals)?;
        let inner = Arc::new(Inner {
            registries: self.registries,
            timeout: self.timeout,
            force_exit: self.force_exit,
            requested: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                begun: None,
                cleanups: self.cleanups,
                cleaning: None,
                attended: false,
                report: None,
                notice: Notice::new(),
            }),
            changed: Condvar::new(),
            bell,
            exiting: AtomicBool::new(false),
        });
        // The thread is waiting for it.
        let _ = thread.send((Arc::clone(&inner), hooks));
        Ok(Shutdown { inner })
    }
}

impl fmt::Debug for ShutdownBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownBuilder")
            .field("signals", &self.signals)
            .field("timeout", &self.timeout)
            .field("force_exit", &self.force_exit)
            .field("cleanups", &self.cleanups)
            .finish_non_exhaustive()
    }
}
