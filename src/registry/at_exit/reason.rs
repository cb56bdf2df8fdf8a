//! Why the process ends.
//!
//! At the end nothing says whether `main` returned or panicked, and whether an earlier panic was
//! caught. Three things show it: the panic hook sees each panic; what the main thread holds of ours is
//! dropped while it unwinds; and a main thread that goes on drops such things otherwise.

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

/// If the main thread holds nothing of ours, a panic of it is the reason of an end that follows within
/// this time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What is known of panics.
struct Panics {
    /// Of the main thread, not seen to be caught. Two at most: of more than one it is not known which
    /// one ends the process.
    main: Vec<DeathCause>,
    main_at: Option<Instant>,
    /// One of them has dropped something of ours.
    unwound: bool,
    /// The latest of the process, and the thread that it is of.
    latest: Option<(PathBuf, DeathCause)>,
}

static PANICS: Mutex<Panics> = Mutex::new(Panics {
    main: Vec::new(),
    main_at: None,
    unwound: false,
    latest: None,
});
/// Whether anything is noted there of the main thread.
static NOTED: AtomicBool = AtomicBool::new(false);
/// How many of our things the main thread made for itself that have not been dropped.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// The status that `main` returns, where it is known.
static STATUS: OnceCell<i32> = OnceCell::new();

/// `main` returns this status.
pub(crate) fn main_returns(status: i32) {
    let _ = STATUS.set(status);
}

/// Has panics noted from now on.
pub(super) fn listen() {
    panics::listen(panics::Listener { before, after });
}

/// Why the process ends, now that it does, on this thread.
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

/// The panic that the main thread has unwound from, all the way.
fn panic_of_main() -> Option<DeathCause> {
    let panics = PANICS.try_lock_for(LOCK_PATIENCE)?;
    let alone = HELD.load(Ordering::Relaxed) == 0;
    let at_once = panics.main_at.is_some_and(|at| at.elapsed() < AT_ONCE);
    (panics.unwound || alone && at_once).then(|| panics.of_main())
}

/// The panic that the calling thread is at, at the end of the process.
fn panic_in_flight() -> DeathCause {
    let panics = PANICS.try_lock_for(LOCK_PATIENCE);
    let latest = panics.and_then(|panics| panics.latest.clone());
    match latest {
        Some((thread, cause)) if this_thread().as_ref() == Some(&thread) => cause,
        _ => unseen(&panics::thread_name()),
    }
}

/// The panic that the calling thread is unwinding from, if it is the main one and that is known.
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

/// The thread as the kernel knows it, which it does to the end; `None` where it does not say.
fn this_thread() -> Option<PathBuf> {
    std::fs::read_link("/proc/thread-self").ok()
}

/// Adjustments a panic, before the hook that was found runs: that may exit. It must not panic.
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
        // Perhaps nothing of ours has run on this thread yet.
        arm();
    }
}

/// Ends the workers if the panic is about to abort the process.
fn after(aborts: bool) {
    if aborts {
        conclude(&ProcessEnd::Panic(panic_in_flight()));
    }
}

/// A part of what an application holds. Where it is dropped on the main thread, it shows whether that
/// thread unwinds from a panic, or has caught it and goes on.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    held: bool,
}

impl Witness {
    /// In something that the calling thread makes for itself.
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
    // What supervised work drops says nothing of the thread.
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
