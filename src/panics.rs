//! Panics: seen where they happen, described, and kept from spreading.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Arc;
use std::thread;

use once_cell::sync::OnceCell;

/// What is known of a panic.
#[derive(Clone, Debug)]
pub(crate) struct PanicReport {
    pub message: String,
    pub location: Option<String>,
    pub thread: String,
    pub backtrace: Option<Arc<Backtrace>>,
}

/// Called with a panic that will end the process.
pub(crate) type OnFatal = Arc<dyn Fn(&PanicReport) + Send + Sync>;

/// The supervised work that runs on a thread.
struct Ward {
    on_fatal: OnFatal,
    report: Option<PanicReport>,
}

thread_local! {
    /// Supervised work on this thread, the innermost last.
    static WARDS: RefCell<Vec<Ward>> = const { RefCell::new(Vec::new()) };
}

static HOOK: OnceCell<()> = OnceCell::new();
static LISTENER: OnceCell<Listener> = OnceCell::new();

/// Hears of every panic of the process. It must not panic.
#[derive(Clone, Copy)]
pub(crate) struct Listener {
    /// Called before the hook that was found. The flag says whether the work is supervised.
    pub before: fn(&PanicHookInfo<'_>, bool),
    /// Called as the last thing.
    pub after: fn(),
}

/// Has every panic of the process told to this listener.
pub(crate) fn listen(listener: Listener) {
    let _ = LISTENER.set(listener);
    // The hook cannot be taken while this thread unwinds.
    if !thread::panicking() {
        HOOK.get_or_init(install);
    }
}

/// Whether the calling thread is at supervised work.
pub(crate) fn is_supervised() -> bool {
    let found = WARDS.try_with(|wards| wards.try_borrow().map(|wards| !wards.is_empty()));
    matches!(found, Ok(Ok(true)))
}

/// Runs supervised work and catches its panic. `on_fatal` is called in the panic hook if the
/// process is about to be aborted by the panic.
///
/// The first call puts a hook before the process's panic hook; it acts for supervised work only
/// and always calls the hook that it found.
pub(crate) fn supervise<T>(on_fatal: &OnFatal, work: impl FnOnce() -> T) -> Result<T, PanicReport> {
    HOOK.get_or_init(install);
    let ward = Ward {
        on_fatal: Arc::clone(on_fatal),
        report: None,
    };
    // The thread-local can't be gone: this is not called while the thread ends.
    let pushed = WARDS
        .try_with(|wards| wards.borrow_mut().push(ward))
        .is_ok();
    let result = catch_unwind(AssertUnwindSafe(work));
    let report = pushed
        .then(|| WARDS.try_with(|wards| wards.borrow_mut().pop()).ok())
        .flatten()
        .flatten()
        .and_then(|ward| ward.report);
    result.map_err(|payload| {
        let message = message(&*payload);
        // A panic that was passed on came by no hook: what the hook saw last was another one.
        let report = report
            .filter(|report| report.message == message)
            .unwrap_or_else(|| PanicReport { message, ..here() });
        dispose(payload);
        report
    })
}

/// The panic that this thread is unwinding from, as far as it is known.
pub(crate) fn unwinding() -> PanicReport {
    WARDS
        .try_with(|wards| {
            let wards = wards.try_borrow().ok()?;
            wards.last()?.report.clone()
        })
        .ok()
        .flatten()
        .unwrap_or_else(here)
}

/// A report of a panic that no hook has seen.
fn here() -> PanicReport {
    PanicReport {
        message: "its thread is not supervised, so the message was not seen".to_owned(),
        location: None,
        thread: thread_name(),
        backtrace: None,
    }
}

fn install() {
    let found = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let listener = LISTENER.get();
        if let Some(listener) = listener {
            (listener.before)(info, is_supervised());
        }
        let fatal = note(info);
        found(info);
        if let Some((on_fatal, report)) = fatal {
            on_fatal(&report);
        }
        if let Some(listener) = listener {
            (listener.after)();
        }
    }));
}

/// Notes a panic of supervised work. Returns whom to tell if it will end the process. Runs inside
/// the panic hook, where another panic would abort at once: it must not panic.
fn note(info: &PanicHookInfo<'_>) -> Option<(OnFatal, PanicReport)> {
    WARDS
        .try_with(|wards| {
            let mut wards = wards.try_borrow_mut().ok()?;
            let ward = wards.last_mut()?;
            let report = PanicReport {
                message: message(info.payload()),
                location: info.location().map(ToString::to_string),
                thread: thread_name(),
                backtrace: Some(Arc::new(Backtrace::force_capture())),
            };
            ward.report = Some(report.clone());
            cfg!(panic = "abort").then(|| (Arc::clone(&ward.on_fatal), report))
        })
        .ok()
        .flatten()
}

pub(crate) fn thread_name() -> String {
    let thread = thread::current();
    thread
        .name()
        .map_or_else(|| format!("{:?}", thread.id()), ToOwned::to_owned)
}

/// Drops a panic payload, which may be anything, and may panic again when it is dropped.
pub(crate) fn dispose(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Whoever panics in `drop` twice in a row leaks.
        std::mem::forget(second);
    }
}

/// The message in a panic payload.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is not a text".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bomb(u32);

    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 > 0 {
                panic::panic_any(Bomb(self.0 - 1));
            }
        }
    }

    fn nobody() -> OnFatal {
        Arc::new(|_| {})
    }

    #[test]
    fn a_payload_that_panics_when_it_is_dropped_is_contained() {
        for depth in 0..3 {
            dispose(Box::new(Bomb(depth)));
        }
    }

    #[test]
    fn a_panic_is_described_where_it_happened() {
        let report = supervise(&nobody(), || panic!("no module named {}", "server")).unwrap_err();
        assert_eq!(report.message, "no module named server");
        let location = report.location.unwrap();
        assert!(location.contains("panics.rs:"), "{location}");
        assert!(report.thread.contains("a_panic_is_described"));
        assert!(report.backtrace.is_some());
    }

    #[test]
    fn any_payload_is_described() {
        let report = supervise(&nobody(), || panic::panic_any(7_u8)).unwrap_err();
        assert_eq!(report.message, "a value that is not a text");
        let report = supervise(&nobody(), || panic::panic_any(Bomb(2))).unwrap_err();
        assert_eq!(report.message, "a value that is not a text");
    }

    #[test]
    fn nested_work_is_told_apart() {
        let outer = supervise(&nobody(), || {
            let inner = supervise(&nobody(), || panic!("inner"));
            assert_eq!(inner.unwrap_err().message, "inner");
            panic!("outer")
        });
        let outer: Result<(), _> = outer;
        assert_eq!(outer.unwrap_err().message, "outer");
        assert!(WARDS.with(|wards| wards.borrow().is_empty()));
    }

    #[test]
    fn work_that_catches_its_own_panic_is_well() {
        let result = supervise(&nobody(), || catch_unwind(|| panic!("caught")).is_err());
        assert!(result.unwrap());
    }
}
