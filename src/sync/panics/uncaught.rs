//! Panics that end their threads.
//!
//! When a panic arises, it is not known whether something catches it. The thread that it ends is known
//! by two signs: the destructor of a thread-local runs soon afterwards, and the call stack shows no
//! frame that catches the panic before the end of the thread.

use std::cell::RefCell;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::{PanicReport, is_supervised, report};
use crate::clock::ObservedTime;
use crate::sync::catch::is_catching;

/// A thread whose panic is not caught ends within this time.
const UNWINDING: Duration = Duration::from_secs(1);
/// How long the panic hook waits for a lock that is held only briefly.
const LONGEST_LOCK: Duration = Duration::from_millis(100);
/// Panics that are watched at once; more are caught ones, of a program that panics all the time.
const MOST: usize = 1_024;

/// The standard library's name of the main thread.
const MAIN: &str = "main";

/// Who wants to know.
static WATCHES: Mutex<Vec<Weak<UncaughtPanics>>> = Mutex::new(Vec::new());
static WATCHED: AtomicBool = AtomicBool::new(false);

/// The panics of threads that may be ending. Their owner looks in often while there are any.
pub(crate) struct UncaughtPanics {
    panicked: Mutex<Vec<Panicked>>,
    time: ObservedTime,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Panicked {
    thread: Arc<EndingThread>,
    at: Duration,
}

/// The latest panic of a thread.
struct EndingThread {
    report: PanicReport,
    ended: AtomicBool,
}

/// Dropped at the end of its thread.
struct AtEnd(RefCell<Option<Arc<EndingThread>>>);

thread_local! {
    static AT_END: AtEnd = const { AtEnd(RefCell::new(None)) };
}

impl Drop for AtEnd {
    fn drop(&mut self) {
        if let Some(thread) = self.0.get_mut().take() {
            thread.ended.store(true, Ordering::Release);
            watches().iter().for_each(|watch| (watch.wake)());
        }
    }
}

fn watches() -> Vec<Arc<UncaughtPanics>> {
    let watches = WATCHES.try_lock_for(LONGEST_LOCK);
    let watches = watches.iter().flat_map(|watches| watches.iter());
    watches.filter_map(Weak::upgrade).collect()
}

impl UncaughtPanics {
    /// Watches the panics of all threads from now on. `wake` is called on a thread that panics or ends:
    /// it must not block.
    pub(crate) fn watch(wake: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let watch = Arc::new(Self {
            panicked: Mutex::default(),
            time: ObservedTime::begin(UNWINDING),
            wake: Box::new(wake),
        });
        let mut watches = WATCHES.lock();
        watches.retain(|other| other.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        drop(watches);
        WATCHED.store(true, Ordering::Release);
        super::install();
        watch
    }

    /// How long until the next call of [`take`](Self::take); `None` if no thread may be ending.
    pub(crate) fn slice(&self) -> Option<Duration> {
        (!self.panicked.lock().is_empty()).then(|| self.time.slice())
    }

    /// A panic that has ended its thread.
    pub(crate) fn take(&self) -> Option<PanicReport> {
        let now = self.time.read();
        let mut ended = Vec::new();
        self.panicked.lock().retain(|panicked| {
            let over = panicked.thread.ended.load(Ordering::Acquire);
            if over {
                ended.push(Arc::clone(&panicked.thread));
            }
            !over && now.saturating_sub(panicked.at) <= UNWINDING
        });
        let mut ended = ended.iter().map(|thread| &thread.report);
        ended.find(|report| !is_caught(report)).cloned()
    }

    fn add(&self, thread: &Arc<EndingThread>) {
        let at = self.time.read();
        if let Some(mut panicked) = self.panicked.try_lock_for(LONGEST_LOCK) {
            if panicked.len() < MOST {
                panicked.push(Panicked {
                    thread: Arc::clone(thread),
                    at,
                });
            }
        }
        (self.wake)();
    }
}

impl std::fmt::Debug for UncaughtPanics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UncaughtPanics").finish_non_exhaustive()
    }
}

/// Notes a panic, in the panic hook: it must not panic.
pub(super) fn note(info: &PanicHookInfo<'_>) {
    if !WATCHED.load(Ordering::Acquire) || is_supervised() || is_catching() {
        return;
    }
    if thread::current().name() == Some(MAIN) {
        // Its end is that of the process.
        return;
    }
    let thread = Arc::new(EndingThread {
        report: report(info),
        ended: AtomicBool::new(false),
    });
    // A thread that is at its end has no thread-locals any more.
    let kept = AT_END.try_with(|at_end| {
        let mut at_end = at_end.0.try_borrow_mut().ok()?;
        // An earlier panic of this thread was caught.
        Some(at_end.replace(Arc::clone(&thread)))
    });
    if let Ok(Some(earlier)) = kept {
        for watch in watches() {
            if let Some(earlier) = &earlier {
                watch.forget(earlier);
            }
            watch.add(&thread);
        }
    }
}

impl UncaughtPanics {
    fn forget(&self, thread: &Arc<EndingThread>) {
        if let Some(mut panicked) = self.panicked.try_lock_for(LONGEST_LOCK) {
            panicked.retain(|other| !Arc::ptr_eq(&other.thread, thread));
        }
    }
}

/// Whether the call stack of a panic shows that something catches it before the end of its thread.
fn is_caught(report: &PanicReport) -> bool {
    let Some(backtrace) = &report.backtrace else {
        return false;
    };
    shows_catch(&backtrace.to_string())
}

/// As [`is_caught`], in the text of a call stack.
fn shows_catch(backtrace: &str) -> bool {
    /// Part of the names of the functions that catch.
    const CATCHING: [&str; 3] = ["panicking::try", "catch_unwind", "__rust_try"];
    /// They stand between a function that catches and its caller.
    const BETWEEN: [&str; 2] = ["do_call", "AssertUnwindSafe"];
    // `12: path::of::function`
    let names = backtrace.lines().filter_map(|line| {
        let (number, name) = line.trim_start().split_once(": ")?;
        number
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(name)
    });
    let has = |name: &str, parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let mut catching = false;
    for name in names {
        if name.contains("__rust_begin_short_backtrace") {
            // What follows starts the thread, and catches its panics at its end.
            return catching;
        }
        if has(name, &CATCHING) {
            catching = true;
        } else if catching && name.contains("thread::scoped::scope") {
            // It raises the panic again.
            catching = false;
        } else if catching && !has(name, &BETWEEN) {
            return true;
        }
    }
    false
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::backtrace::Backtrace;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn here() -> bool {
        shows_catch(&Backtrace::force_capture().to_string())
    }

    #[test]
    fn a_call_stack_shows_what_catches() {
        let plain = || std::thread::spawn(here).join().unwrap();
        assert!(!plain(), "the thread itself does not count");
        let caught = std::thread::spawn(|| catch_unwind(here).unwrap());
        assert!(caught.join().unwrap());
        let scope = || std::thread::scope(|_| here());
        assert!(!std::thread::spawn(scope).join().unwrap());
        let both = move || catch_unwind(AssertUnwindSafe(scope)).unwrap();
        assert!(std::thread::spawn(both).join().unwrap());
        let inner = || std::thread::scope(|_| catch_unwind(here).unwrap());
        assert!(std::thread::spawn(inner).join().unwrap());
        assert!(!shows_catch("   0: <unknown>\n   1: <unknown>\n"));
    }
}
