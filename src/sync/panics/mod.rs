//! Panics: observed where they arise, described, and contained.

mod seen;
pub(crate) mod uncaught;

use std::any::Any;
use std::backtrace::Backtrace;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use once_cell::sync::OnceCell;

use super::catch::catch;
use super::describe::chain;
use crate::error::known_error;
use seen::Seen;

/// The known facts of a panic.
#[derive(Clone, Debug)]
pub(crate) struct PanicReport {
    pub message: String,
    pub location: Option<String>,
    pub thread: String,
    pub backtrace: Option<Arc<Backtrace>>,
    /// The worker's task when the panic arose; `None` if it arose elsewhere, or the hook could not
    /// read it.
    pub at_hand: Option<AtHand>,
}

/// The run and the task of a worker.
pub(crate) type AtHand = (Option<String>, Option<String>);

/// The worker on whose behalf supervised work runs. Both methods are called in the panic hook: they
/// must not panic.
pub(crate) trait Charge: Send + Sync {
    /// Called when the panic is about to end the process.
    fn last_words(&self, report: &PanicReport);
    /// The worker's task. It must not wait for a lock that the panicking thread may hold.
    fn at_hand(&self) -> Option<AtHand>;
}

/// Held while there is a supervisor or supervised work. Meanwhile panics of other threads are
/// remembered as well: their payloads may be passed on to that work, also between two polls of a
/// future.
///
/// Created on the application's thread that asks for supervision. This installs the hook before any
/// thread starts, so that an application that sets its own hook afterwards does not race with it.
#[derive(Debug)]
pub(crate) struct Interest(());

/// How many there are.
static INTERESTS: AtomicUsize = AtomicUsize::new(0);

impl Interest {
    pub(crate) fn new() -> Self {
        INTERESTS.fetch_add(1, Ordering::Relaxed);
        install();
        Self(())
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        if INTERESTS.fetch_sub(1, Ordering::Relaxed) == 1 {
            seen::forget_all();
        }
    }
}

/// Supervised work that runs on a thread.
struct Ward {
    charge: Option<Arc<dyn Charge>>,
    /// Its panics, including those that it caught itself, while their payloads may exist.
    seen: VecDeque<Arc<Seen>>,
    /// How many panics there were.
    count: usize,
}

/// The number of panics that are kept for one piece of work.
const MOST_SEEN: usize = 16;

/// The number of bytes of a message that are remembered, rounded up to a character.
const LONGEST_EXCERPT: usize = 8 * 1_024;

thread_local! {
    /// Supervised work on this thread, the innermost last.
    static WARDS: RefCell<Vec<Ward>> = const { RefCell::new(Vec::new()) };
}

static HOOK: OnceCell<()> = OnceCell::new();
static LISTENER: OnceCell<Listener> = OnceCell::new();

/// A listener for every panic of the process. It must not panic.
#[derive(Clone, Copy)]
pub(crate) struct Listener {
    /// Called before the previous hook. The flag is set if the work is supervised.
    pub before: fn(&PanicHookInfo<'_>, bool),
    /// Called after it. The flag is set if the process is about to abort.
    pub after: fn(bool),
}

/// Passes every panic of the process to this listener.
pub(crate) fn listen(listener: Listener) {
    let _ = LISTENER.set(listener);
    install();
}

/// Whether the calling thread runs supervised work.
pub(crate) fn is_supervised() -> bool {
    let found = WARDS.try_with(|wards| wards.try_borrow().map(|wards| !wards.is_empty()));
    matches!(found, Ok(Ok(true)))
}

/// Runs supervised work on a worker's behalf and catches its panic.
pub(crate) fn supervise<T>(
    charge: &Arc<dyn Charge>,
    work: impl FnOnce() -> T,
) -> Result<T, Box<PanicReport>> {
    run(Some(Arc::clone(charge)), work)
}

/// Runs work that belongs to no worker, and catches its panic.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Box<PanicReport>> {
    run(None, work)
}

fn run<T>(
    charge: Option<Arc<dyn Charge>>,
    work: impl FnOnce() -> T,
) -> Result<T, Box<PanicReport>> {
    install();
    let ward = Ward {
        charge,
        seen: VecDeque::new(),
        count: 0,
    };
    // An ending thread has no thread-locals any more. Its panics are caught nevertheless.
    let pushed = WARDS
        .try_with(|wards| wards.borrow_mut().push(ward))
        .is_ok();
    let result = catch(work);
    let ward = pushed
        .then(|| WARDS.try_with(|wards| wards.borrow_mut().pop()).ok())
        .flatten()
        .flatten();
    let own = ward.map(|ward| ward.seen).unwrap_or_default();
    let result = result.map_err(|caught| {
        let report = seen::origin(caught.payload(), &own);
        let mut report = report.unwrap_or_else(unseen);
        report.message = message(caught.payload());
        Box::new(report)
    });
    seen::forget_unsure(&own);
    result
}

/// The panic from which this thread is unwinding, as far as it is known.
pub(crate) fn unwinding() -> Box<PanicReport> {
    let in_ward = WARDS.try_with(|wards| {
        let wards = wards.try_borrow().ok()?;
        let ward = wards.last()?;
        Some((ward.seen.clone(), ward.count))
    });
    let (own, count) = in_ward.ok().flatten().unwrap_or_else(|| {
        let own = seen::of_this_thread();
        let count = own.len();
        (own, count)
    });
    let report = seen::latest(&own).filter(|_| count == 1);
    Box::new(report.unwrap_or_else(unseen))
}

/// The report of a panic that the hook has not seen or can't distinguish from others.
fn unseen() -> PanicReport {
    PanicReport {
        message: "the panic that its thread unwound from was not seen".to_owned(),
        location: None,
        thread: thread_name(),
        backtrace: None,
        at_hand: None,
    }
}

/// Installs a hook before the process's panic hook, once. The hook acts while there is supervised
/// work, and always calls the previous hook.
fn install() {
    // Taking the hook while this thread unwinds would panic. Later work installs it.
    if HOOK.get().is_some() || thread::panicking() {
        return;
    }
    HOOK.get_or_init(|| {
        let found = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let listener = LISTENER.get();
            if let Some(listener) = listener {
                (listener.before)(info, is_supervised());
            }
            let noted = note(info);
            found(info);
            uncaught::note(info);
            if listener.is_some() || noted.is_some() {
                let fatal = is_fatal(info);
                if let Some(noted) = noted.as_ref().filter(|_| fatal) {
                    noted.last_words();
                }
                if let Some(listener) = listener {
                    (listener.after)(fatal);
                }
            }
            // Last.
            if let Some(noted) = noted {
                noted.remember();
            }
        }));
    });
}

/// A panic that the hook has recorded.
struct Noted {
    seen: Arc<Seen>,
    /// The worker whose work panicked.
    charge: Option<Arc<dyn Charge>>,
}

/// Records a panic. Runs inside the panic hook, where another panic would abort the process: it must
/// not panic.
fn note(info: &PanicHookInfo<'_>) -> Option<Noted> {
    // Taken out first, so that the thread-local is not borrowed while the worker's code is called.
    let charge = WARDS
        .try_with(|wards| {
            let wards = wards.try_borrow().ok()?;
            wards.last().map(|ward| ward.charge.clone())
        })
        .ok()
        .flatten();
    if charge.is_none() && INTERESTS.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let charge = charge.flatten();
    let report = PanicReport {
        at_hand: charge.as_ref().and_then(|charge| charge.at_hand()),
        ..report(info)
    };
    Some(Noted {
        seen: Arc::new(Seen::new(info.payload(), report)),
        charge,
    })
}

/// Describes a panic, with the call stack of the caller.
fn report(info: &PanicHookInfo<'_>) -> PanicReport {
    PanicReport {
        message: excerpt(text(info.payload())),
        location: info.location().map(ToString::to_string),
        thread: thread_name(),
        backtrace: Some(Arc::new(Backtrace::force_capture())),
        at_hand: None,
    }
}

impl Noted {
    /// The process is about to abort.
    fn last_words(&self) {
        if let Some(charge) = &self.charge {
            charge.last_words(&fatal_report(&self.seen.report));
        }
    }

    /// Must be the last call in the hook.
    fn remember(self) {
        let seen = self.seen;
        drop(self.charge);
        seen.foresee_home();
        let forgotten = WARDS.try_with(|wards| {
            let mut wards = wards.try_borrow_mut().ok()?;
            let ward = wards.last_mut()?;
            ward.count = ward.count.saturating_add(1);
            Some(seen::add(&mut ward.seen, &seen, MOST_SEEN))
        });
        drop(forgotten);
        seen::remember(&seen);
        // Again: memory that was just freed may be where the box will be.
        seen.foresee_home();
    }
}

// --- panics that end the process ------------------------------------------------------------

/// The message with which the standard library panics at the end of a function, or of a destructor
/// during unwinding, that a panic can't leave; and the number of panics that led to it.
const DEAD_ENDS: [(&str, usize); 2] = [
    ("panic in a function that cannot unwind", 1),
    ("panic in a destructor during cleanup", 2),
];

/// Whether the process is aborted as soon as the hook returns.
fn is_fatal(info: &PanicHookInfo<'_>) -> bool {
    if cfg!(panic = "abort") {
        return true;
    }
    // `PanicHookInfo::can_unwind` is not stable, but `Debug` shows its value.
    match format!("{info:?}").rsplit_once("can_unwind: ") {
        Some((_, value)) => value.starts_with("false"),
        None => DEAD_ENDS
            .iter()
            .any(|(end, _)| text(info.payload()) == *end),
    }
}

/// The report of the panic that ends the process, or of the panics that led to it.
fn fatal_report(last: &PanicReport) -> PanicReport {
    let dead_end = DEAD_ENDS.iter().find(|(text, _)| *text == last.message);
    let Some((text, led)) = dead_end else {
        return last.clone();
    };
    let (before, count) = WARDS
        .try_with(|wards| {
            let wards = wards.try_borrow().ok()?;
            let ward = wards.last()?;
            let from = ward.seen.len().saturating_sub(*led);
            let seen: Vec<_> = ward.seen.iter().skip(from).cloned().collect();
            Some((seen, ward.count))
        })
        .ok()
        .flatten()
        .unwrap_or_default();
    let one = |report: &PanicReport| match &report.location {
        Some(place) => format!("a panic at {place}: {}", report.message),
        None => format!("a panic: {}", report.message),
    };
    let reports = before.iter().map(|seen| &seen.report);
    match (count == *led).then(|| before.split_first()).flatten() {
        // There were no others, so these are the ones.
        Some((first, rest)) => {
            let rest = rest.iter().map(|seen| one(&seen.report) + "; ");
            PanicReport {
                message: format!(
                    "{}; {}{text}",
                    first.report.message,
                    rest.collect::<String>()
                ),
                ..first.report.clone()
            }
        }
        None => PanicReport {
            message: reports.fold((*text).to_owned(), |text, report| {
                format!("{text}; before that, {}", one(report))
            }),
            location: None,
            ..last.clone()
        },
    }
}

pub(crate) fn thread_name() -> String {
    let thread = thread::current();
    thread
        .name()
        .map_or_else(|| format!("{:?}", thread.id()), ToOwned::to_owned)
}

/// The message of a panic payload. For an error, the application writes the text; the panic hook must
/// not run that, and uses [`plain_message`].
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    match known_text(payload) {
        Some(text) => text.to_owned(),
        None => known_error(unboxed(payload)).map_or_else(|| NO_TEXT.to_owned(), chain),
    }
}

/// The message of a panic payload, as far as it is known without running the application's code.
pub(crate) fn plain_message(payload: &(dyn Any + Send)) -> String {
    text(payload).to_owned()
}

const NO_TEXT: &str = "a value that is not a text";

fn text(payload: &(dyn Any + Send)) -> &str {
    known_text(payload).unwrap_or(NO_TEXT)
}

fn known_text(payload: &(dyn Any + Send)) -> Option<&str> {
    fn of<T: AsRef<str> + 'static>(payload: &dyn Any) -> Option<&str> {
        payload.downcast_ref::<T>().map(AsRef::as_ref)
    }
    let payload = unboxed(payload);
    of::<&'static str>(payload)
        .or_else(|| of::<String>(payload))
        .or_else(|| of::<Cow<'static, str>>(payload))
        .or_else(|| of::<Box<str>>(payload))
        .or_else(|| of::<Arc<str>>(payload))
}

/// The content of the innermost box: a payload that is raised again after it was caught is in two.
fn unboxed(payload: &(dyn Any + Send)) -> &dyn Any {
    let mut payload: &dyn Any = payload;
    loop {
        payload = if let Some(inner) = payload.downcast_ref::<Box<dyn Any + Send>>() {
            &**inner
        } else if let Some(inner) = payload.downcast_ref::<Box<dyn Any + Send + Sync>>() {
            &**inner
        } else {
            return payload;
        };
    }
}

/// The beginning of a message: many panics are remembered, and some messages are large.
fn excerpt(text: &str) -> String {
    let end = text
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| *at >= LONGEST_EXCERPT);
    text[..end.unwrap_or(text.len())].to_owned()
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

    fn place(line: u32) -> Option<String> {
        Some(format!("{}:{line}:", file!()))
    }

    /// Whether a report has the location and the stack of a panic in this line.
    fn is_from(report: &PanicReport, line: u32) -> bool {
        let place = place(line).unwrap();
        let location = report.location.as_ref();
        location.is_some_and(|location| location.starts_with(&place)) && report.backtrace.is_some()
    }

    #[test]
    fn a_payload_that_panics_when_it_is_dropped_is_contained() {
        for depth in 0..3 {
            drop(catch(|| panic::panic_any(Bomb(depth))));
        }
    }

    #[test]
    fn a_panic_is_described_where_it_happened() {
        let report = contain(|| panic!("no module named {}", "server")).unwrap_err();
        assert_eq!(report.message, "no module named server");
        assert!(is_from(&report, line!() - 2), "{report:?}");
        assert!(report.thread.contains("a_panic_is_described"));
    }

    #[test]
    fn any_payload_is_described() {
        let report = contain(|| panic::panic_any(7_u8)).unwrap_err();
        assert_eq!(report.message, "a value that is not a text");
        assert!(is_from(&report, line!() - 2), "{report:?}");
        let report = contain(|| panic::panic_any(Bomb(2))).unwrap_err();
        assert_eq!(report.message, "a value that is not a text");
    }

    #[test]
    fn nested_work_is_distinguished() {
        let outer = contain(|| {
            let inner = contain(|| panic!("inner"));
            assert_eq!(inner.unwrap_err().message, "inner");
            panic!("outer")
        });
        let outer: Result<(), _> = outer;
        assert_eq!(outer.unwrap_err().message, "outer");
        assert!(WARDS.with(|wards| wards.borrow().is_empty()));
    }

    #[test]
    fn work_that_catches_its_own_panic_is_well() {
        let result = contain(|| panic::catch_unwind(|| panic!("caught")).is_err());
        assert!(result.unwrap());
    }
}
