//! Why the process ends.
//!
//! At the end, nothing reports whether `main` returned or panicked, nor whether an earlier panic
//! was caught. Three things show it: the panic hook sees each panic; values of this crate that the
//! main thread holds are dropped while it unwinds; and a main thread that has caught a panic drops
//! such values without unwinding.

use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::{LOCK_PATIENCE, MAIN, ProcessEnd, arm, conclude, on_main};
use crate::health::DeathCause;
use crate::sync::panics;

/// If the main thread holds no such value, its panic is the reason of an end that follows within
/// this time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What is known of panics.
struct Panics {
    /// Panics of the main thread that were not seen to be caught. At most two: with more than one,
    /// it is unknown which one ends the process.
    main: Vec<DeathCause>,
    main_at: Option<Instant>,
    /// One of them has dropped a value of this crate.
    unwound: bool,
    /// The latest panic of the process, and its thread.
    latest: Option<(PathBuf, DeathCause)>,
}

static PANICS: Mutex<Panics> = Mutex::new(Panics {
    main: Vec::new(),
    main_at: None,
    unwound: false,
    latest: None,
});
/// Whether a panic of the main thread is noted.
static NOTED: AtomicBool = AtomicBool::new(false);
/// The number of values that the main thread made for itself and has not dropped.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// The status that `main` returns, if known.
static STATUS: OnceCell<i32> = OnceCell::new();

/// `main` returns this status.
pub(crate) fn main_returns(status: i32) {
    let _ = STATUS.set(status);
}

/// Makes panics noted from now on.
pub(super) fn listen() {
    panics::listen(panics::Listener { before, after });
}

/// The reason why the process ends, on the ending thread.
pub(super) fn find() -> ProcessEnd {
    if thread::panicking() {
        // A panic hook exits, or a destructor.
        return ProcessEnd::Panic(panic_in_flight());
    }
    let status = STATUS.get().copied();
    match panic_of_main() {
        Some(cause) if status.is_none() && super::is_main() => ProcessEnd::Panic(cause),
        _ => ProcessEnd::Exit { status },
    }
}

/// The panic from which the main thread has unwound completely.
fn panic_of_main() -> Option<DeathCause> {
    let panics = PANICS.try_lock_for(LOCK_PATIENCE)?;
    let alone = HELD.load(Ordering::Relaxed) == 0;
    let at_once = panics.main_at.is_some_and(|at| at.elapsed() < AT_ONCE);
    (panics.unwound || alone && at_once).then(|| panics.of_main())
}

/// The panic that the calling thread is in, at the end of the process.
fn panic_in_flight() -> DeathCause {
    let panics = PANICS.try_lock_for(LOCK_PATIENCE);
    let latest = panics.and_then(|panics| panics.latest.clone());
    match latest {
        Some((thread, cause)) if this_thread().as_ref() == Some(&thread) => cause,
        _ => unseen(&panics::thread_name()),
    }
}

/// The panic from which the calling thread is unwinding, if it is the main one and the panic is
/// known.
pub(crate) fn unwinding() -> Option<DeathCause> {
    if !NOTED.load(Ordering::Relaxed) || panics::is_supervised() || !on_main() {
        return None;
    }
    let panics = PANICS.try_lock_for(LOCK_PATIENCE)?;
    (thread::panicking() && panics.main.len() == 1).then(|| panics.of_main())
}

impl Panics {
    fn of_main(&self) -> DeathCause {
        match &self.main[..] {
            [only] => only.clone(),
            [] => unseen(MAIN),
            _ => panicked(
                "more than once; which panic ended it is not known",
                None,
                MAIN,
            ),
        }
    }
}

fn unseen(thread: &str) -> DeathCause {
    panicked("its message was not seen", None, thread)
}

fn panicked(message: impl Into<String>, location: Option<String>, thread: &str) -> DeathCause {
    DeathCause::Panicked {
        message: message.into(),
        location,
        thread: thread.to_owned(),
        backtrace: None,
    }
}

/// The thread as the kernel knows it, until its very end; `None` where the kernel does not report
/// it.
fn this_thread() -> Option<PathBuf> {
    std::fs::read_link("/proc/thread-self").ok()
}

/// Notes a panic, before the previous hook runs, which may exit. It must not panic.
fn before(info: &PanicHookInfo<'_>, supervised: bool) {
    let main = super::is_main();
    let cause = panicked(
        panics::plain_message(info.payload()),
        info.location().map(ToString::to_string),
        &if main {
            MAIN.to_owned()
        } else {
            panics::thread_name()
        },
    );
    let Some(mut panics) = PANICS.try_lock_for(LOCK_PATIENCE) else {
        return;
    };
    // Supervised work catches its panics.
    if main && !supervised {
        if panics.main.len() < 2 {
            panics.main.push(cause.clone());
        }
        panics.main_at = Some(Instant::now());
        NOTED.store(true, Ordering::Relaxed);
    }
    panics.latest = this_thread().map(|thread| (thread, cause));
    drop(panics);
    if main {
        // This may be the first code of this crate on this thread.
        arm();
    }
}

/// Ends the workers if the panic is about to abort the process.
fn after(aborts: bool) {
    if aborts {
        conclude(&ProcessEnd::Panic(panic_in_flight()));
    }
}

/// A part of the values that an application holds. If it is dropped on the main thread, it shows
/// whether that thread unwinds from a panic, or has caught it.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    held: bool,
}

impl Witness {
    /// For a value that the calling thread makes for itself.
    pub(crate) fn held() -> Self {
        let held = on_main();
        HELD.fetch_add(usize::from(held), Ordering::Relaxed);
        Self { held }
    }
}

impl Clone for Witness {
    /// Clones are made for others.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Drop for Witness {
    #[inline]
    fn drop(&mut self) {
        if self.held {
            HELD.fetch_sub(1, Ordering::Relaxed);
        }
        if NOTED.load(Ordering::Relaxed) || thread::panicking() {
            testify();
        }
    }
}

#[cold]
fn testify() {
    // What supervised work drops does not depend on how the thread ends.
    if !on_main() || panics::is_supervised() {
        return;
    }
    let Some(mut panics) = PANICS.try_lock_for(LOCK_PATIENCE) else {
        return;
    };
    let panicking = thread::panicking();
    if !panicking {
        panics.main.clear();
        panics.main_at = None;
    }
    panics.unwound = panicking;
    NOTED.store(panicking, Ordering::Relaxed);
}
