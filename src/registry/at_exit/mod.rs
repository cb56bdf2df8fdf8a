//! The end of the process: ends the workers that still live, and waits until that is reported.
//!
//! Code runs at that time
//! * when `main` returns or panics and when the main thread calls `exit`: the destructor of a
//!   thread-local of the main thread (with glibc and on macOS; elsewhere such destructors do not run);
//! * with the feature `exit-hook`, whichever thread calls `exit`: a function of the C library's list;
//! * in [`Registry::exit`], at the end of a shutdown by force, and after the panic hook where panics
//!   abort.
//!
//! All other threads go on then: they may hold locks, or hang. Thread-locals of the ending thread
//! may be gone. So the work is done on a thread of its own, with a limited wait.

mod reason;

use std::cell::Cell;
use std::fmt;
use std::process;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::{Registry, WeakRegistry};
use crate::clock::Patience;
use crate::health::{DeathCause, StopCause};
use crate::registry::core::PendingNotices;
use crate::registry::core::worker_ref::{Termination, WorkerRef};
use crate::sync::background;
use crate::sync::catch::catch;
use crate::sync::latch::Latch;
pub(crate) use reason::{Witness, main_returns, unwinding};

/// Names of the threads; the kernel keeps 15 bytes of them.
const THREAD_NAME: &str = "wh-exit";
const LOG_THREAD_NAME: &str = "wh-exit-log";
/// How long the end of the process waits if no store is attached.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits for a lock that is held only briefly.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// The standard library's name of the main thread.
const MAIN: &str = "main";
/// The exit status of a process whose main thread panics.
const PANICKED: i32 = 101;

/// Why the process ends.
#[derive(Clone, Debug)]
pub(crate) enum ProcessEnd {
    Exit { status: Option<i32> },
    Panic(DeathCause),
}

impl ProcessEnd {
    /// The cause of the request to stop.
    fn request(&self) -> StopCause {
        StopCause::ProcessExit {
            status: match self {
                Self::Exit { status } => *status,
                Self::Panic(_) => Some(PANICKED),
            },
        }
    }

    fn end(&self) -> Termination {
        match self {
            Self::Exit { .. } => Termination::Stopped(self.request()),
            Self::Panic(cause) => Termination::Dead(cause.clone()),
        }
    }
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the process ended")?;
        match self {
            Self::Exit { status: None } => Ok(()),
            Self::Exit {
                status: Some(status),
            } => write!(f, " with status {status}"),
            Self::Panic(cause) => match cause {
                DeathCause::Panicked { thread, .. } => write!(f, ": thread {thread} {cause}"),
                _ => write!(f, ": {cause}"),
            },
        }
    }
}

/// A registry's part in the end of the process.
#[derive(Debug)]
pub(super) struct AtExit {
    end: OnceCell<ProcessEnd>,
    latch: Mutex<Latch<()>>,
    /// Other reporters of the registry's workers. Each channel is closed after the last report.
    reporters: Mutex<Vec<Receiver<()>>>,
}

impl Default for AtExit {
    fn default() -> Self {
        Self {
            end: OnceCell::new(),
            latch: Mutex::new(Latch::new()),
            reporters: Mutex::default(),
        }
    }
}

/// The registries whose workers are ended with the process, and the process that they belong to: a
/// forked child has copies of its parent's.
static WATCHED: Mutex<Vec<(u32, WeakRegistry)>> = Mutex::new(Vec::new());

impl Registry {
    /// Ends the process with this exit status, as [`std::process::exit`] does. Before that, ends the
    /// workers of this registry that still live, as
    /// [`StopCause::ProcessExit`](crate::StopCause::ProcessExit); those of every other registry that
    /// is [attached](Self::attach) or part of a [`Shutdown`](crate::Shutdown) too. Their leases are
    /// released, and the stores get it within the
    /// [farewell](crate::FleetConfig::farewell).
    ///
    /// Where `main` returns or panics, or the main thread calls [`std::process::exit`], the same
    /// happens without this call, as far as the platform permits: see [the end of the
    /// process](crate::guide::shutdown#the-end-of-the-process). On other threads, call this, or enable the feature
    /// `exit-hook`.
    ///
    /// ```no_run
    /// use worker_heartbeat::Registry;
    ///
    /// std::thread::spawn(|| Registry::global().exit(3));
    /// ```
    pub fn exit(&self, status: i32) -> ! {
        self.watch_exit();
        conclude(&ProcessEnd::Exit {
            status: Some(status),
        });
        process::exit(status)
    }

    /// Makes the end of the process end this registry's workers.
    pub(crate) fn watch_exit(&self) {
        arm();
        reason::listen();
        let owner = process::id();
        let mut watched = WATCHED.lock();
        watched.retain(|(other, registry)| *other == owner && registry.is_alive());
        if !watched.iter().any(|(_, registry)| registry.is(self)) {
            watched.push((owner, self.downgrade()));
        }
    }

    /// Adds a reporter of this registry's workers. The result is closed, or receives a message,
    /// when the process ends; `ended` must be closed once that is reported.
    #[cfg(any(feature = "beacon", all(unix, feature = "systemd")))]
    pub(crate) fn report_exit(&self, ended: Receiver<()>) -> Receiver<()> {
        use crossbeam_channel::TryRecvError;
        let at_exit = &self.inner.at_exit;
        let mut reporters = at_exit.reporters.lock();
        reporters.retain(|other| other.try_recv() != Err(TryRecvError::Disconnected));
        reporters.push(ended);
        drop(reporters);
        self.watch_exit();
        at_exit.latch.lock().receiver()
    }

    /// Why the process is ending, if it is.
    pub(crate) fn process_end(&self) -> Option<&ProcessEnd> {
        self.inner.at_exit.end.get()
    }

    /// Ends every worker, those to come included.
    fn end_all(&self, end: &ProcessEnd) -> [PendingNotices<'_>; 2] {
        let at_exit = &self.inner.at_exit;
        // Before the others are counted: a worker that comes now is either among them or sees this.
        let _ = at_exit.end.set(end.clone());
        let core = &self.inner.core;
        let ended = core.cut_off(&self.living(), &end.request(), || end.end());
        // Ended workers must not be restarted.
        let asked = self.request_stop(&end.request());
        at_exit.latch.lock().set(());
        [ended, asked]
    }

    /// Ends a worker that came while the process was ending.
    pub(super) fn end_if_ending(&self, workers: &[WorkerRef]) {
        if let Some(end) = self.process_end() {
            let core = &self.inner.core;
            core.cut_off(workers, &end.request(), || end.end())
                .deliver();
        }
    }

    /// How long the end of the process may wait for this registry.
    fn exit_patience(&self) -> Duration {
        let store_hook = self.inner.core.store_hook.get();
        store_hook.map_or(PATIENCE, |store_hook| store_hook.patience())
    }

    fn await_reports(&self, patience: &Patience) {
        self.flush_store(patience);
        let reporters = self.inner.at_exit.reporters.lock().clone();
        reporters.iter().for_each(|ended| wait_for(ended, patience));
    }
}

// --- the end ------------------------------------------------------------------------------------

/// The work at the end of this process, once it has begun. The channel is closed when it is done.
static CONCLUSION: Mutex<Option<Conclusion>> = Mutex::new(None);

#[derive(Clone)]
struct Conclusion {
    process: u32,
    patience: Patience,
    done: Receiver<()>,
}

/// Ends the workers of all watched registries, and waits until that is reported, for a limited
/// time. A second call waits for the first one.
pub(crate) fn conclude(end: &ProcessEnd) {
    if let Some(conclusion) = begin(end) {
        wait_for(&conclusion.done, &conclusion.patience);
    }
}

/// Waits until the channel is closed.
fn wait_for(done: &Receiver<()>, patience: &Patience) {
    while let Some(slice) = patience.slice() {
        if done.recv_timeout(slice) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// The longest time that the end of the process may take.
pub(crate) fn longest() -> Duration {
    let watched = WATCHED.try_lock_for(LOCK_PATIENCE);
    let registries = watched.iter().flat_map(|watched| watched.iter());
    let patience = registries.filter_map(|(_, registry)| Some(registry.upgrade()?.exit_patience()));
    patience.max().unwrap_or_default()
}

fn begin(end: &ProcessEnd) -> Option<Conclusion> {
    let process = process::id();
    let mut begun = CONCLUSION.try_lock_for(LOCK_PATIENCE)?;
    if let Some(conclusion) = begun.as_ref().filter(|begun| begun.process == process) {
        return Some(conclusion.clone());
    }
    let watched = WATCHED.try_lock_for(LOCK_PATIENCE)?;
    let own = watched.iter().filter(|(owner, _)| *owner == process);
    let registries: Vec<_> = own.filter_map(|(_, registry)| registry.upgrade()).collect();
    drop(watched);
    let patience = registries.iter().map(Registry::exit_patience).max()?;
    let patience = Patience::new(patience);
    let allowed = patience.clone();
    let (doing, done) = bounded(0);
    let end = end.clone();
    let work = move || {
        drop(catch(|| carry_out(&registries, &end, &allowed, doing)));
        // There is no time left to drop the last reference of a registry.
        std::mem::forget(registries);
    };
    background::detach(THREAD_NAME, work).ok()?;
    let conclusion = Conclusion {
        process,
        patience,
        done,
    };
    Some(begun.insert(conclusion).clone())
}

fn carry_out(registries: &[Registry], end: &ProcessEnd, patience: &Patience, doing: Sender<()>) {
    let ended = registries.iter().flat_map(|registry| registry.end_all(end));
    let notices: Vec<_> = ended.filter(|notices| !notices.is_empty()).collect();
    let notices = Mutex::new((!notices.is_empty()).then(|| (notices, doing.clone())));
    let deliver = || {
        let Some((notices, doing)) = notices.lock().take() else {
            return;
        };
        notices.into_iter().for_each(PendingNotices::deliver);
        drop(catch(|| log::logger().flush()));
        drop(doing);
    };
    thread::scope(|scope| {
        // Executors and log implementations may hang. The stores do not wait for them.
        let writing = thread::Builder::new()
            .name(LOG_THREAD_NAME.to_owned())
            .spawn_scoped(scope, deliver);
        for registry in registries {
            registry.await_reports(patience);
        }
        drop(doing);
        if writing.is_err() {
            deliver();
        }
    });
}

// --- the main thread ------------------------------------------------------------------------------

/// Whether a thread is the main one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ThreadKind {
    Unknown,
    Main,
    Elsewhere,
}

/// Dropped when its thread ends. The main thread ends with the process.
struct Guard(Cell<ThreadKind>);

thread_local! {
    static GUARD: Guard = const { Guard(Cell::new(ThreadKind::Unknown)) };
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.get() == ThreadKind::Main {
            at_end();
        }
    }
}

/// Makes the end of the process noticed, if this is the main thread.
pub(super) fn arm() {
    // The thread-local may be gone: workers can be registered while a thread ends.
    let _ = GUARD.try_with(|guard| {
        if guard.0.get() == ThreadKind::Unknown {
            guard.0.set(if is_main() {
                ThreadKind::Main
            } else {
                ThreadKind::Elsewhere
            });
        }
    });
}

/// Whether the calling thread is the main one. Asks the kernel in the first call on a thread.
fn on_main() -> bool {
    arm();
    GUARD
        .try_with(|guard| guard.0.get() == ThreadKind::Main)
        .unwrap_or(false)
}

/// The process ends; the reason is still to be found.
fn at_end() {
    drop(catch(|| conclude(&reason::find())));
}

// Called by the C library, whichever thread ends the process.
#[cfg(all(feature = "exit-hook", unix))]
dtor::declarative::dtor! {
    #[dtor(unsafe)]
    fn at_exit() {
        at_end();
    }
}

/// Whether the process ends with the calling thread.
fn is_main() -> bool {
    if !cfg!(unix) {
        // There, thread-locals of the main thread are dropped when all other threads are gone.
        return false;
    }
    if let Ok(link) = std::fs::read_link("/proc/thread-self") {
        // `<process>/task/<thread>`
        return link.iter().next() == link.file_name();
    }
    // Any thread can have this name, but only one is the first.
    let this = thread::current();
    this.name() == Some(MAIN) && format!("{:?}", this.id()) == "ThreadId(1)"
}
