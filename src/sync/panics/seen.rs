//! The panics that the hook saw, and to which of them a payload belongs.
//!
//! The hook runs just before a payload is moved into its box, so the address of the box is not known
//! there. But most allocators hand out first what was freed last, so the hook can predict that
//! address: it allocates and frees a piece of the same size, more than once, and finds out whether the
//! allocator works that way. The box is the same to the end, on whatever thread. So a payload belongs
//! to the latest panic that predicted this address, with the same type, size and message; a constant
//! message also has to be the same constant, and a formatted one has to have the same buffer.
//!
//! Where the address cannot be predicted, a payload is only compared with the panics of the same
//! work: a formatted message is identified by its buffer; of other payloads, only a place that all
//! candidates share is certain.
//!
//! One case remains: safe code can't distinguish a freed payload from one that is built by hand at the
//! same address from the same constant.

use std::any::{Any, TypeId};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

use parking_lot::Mutex;

use super::{PanicReport, excerpt, text};

/// The number of remembered panics whose payloads may still exist. There are few: a payload is
/// usually passed on to another thread at once, and a handled one makes room at the next panic of its
/// thread.
const MOST_SEEN: usize = 256;

/// How often an allocator must return the same address in a row to be trusted to do so once more, and
/// how often that is tried: it may first return pieces that are larger than needed.
const SURE: usize = 2;
const MOST_PROBES: usize = 128;

static SEEN: Mutex<VecDeque<Arc<Seen>>> = Mutex::new(VecDeque::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A panic that the hook saw.
#[derive(Debug)]
pub(super) struct Seen {
    print: Print,
    /// The address of its box; 0 if it can't be predicted.
    home: AtomicUsize,
    /// Later panics have larger numbers.
    number: u64,
    thread: ThreadId,
    pub(super) report: PanicReport,
}

/// The properties of a payload that stay the same from the hook on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    kind: TypeId,
    size: usize,
    /// Address, length and capacity of a text.
    text: Option<(usize, usize, usize)>,
}

impl Print {
    fn of(payload: &(dyn Any + Send)) -> Self {
        let text = if let Some(text) = payload.downcast_ref::<&'static str>() {
            Some((text.as_ptr().addr(), text.len(), 0))
        } else {
            payload
                .downcast_ref::<String>()
                .map(|text| (text.as_ptr().addr(), text.len(), text.capacity()))
        };
        Self {
            kind: payload.type_id(),
            size: size_of_val(payload),
            text,
        }
    }

    /// A text with a buffer of its own: no two living payloads have the same.
    fn is_unique(&self) -> bool {
        matches!(self.text, Some((_, _, capacity)) if capacity > 0)
    }
}

impl Seen {
    pub(super) fn new(payload: &(dyn Any + Send), report: PanicReport) -> Self {
        Self {
            print: Print::of(payload),
            home: AtomicUsize::new(0),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            thread: thread::current().id(),
            report,
        }
    }

    /// Must be the last allocation before the payload's box.
    pub(super) fn foresee_home(&self) {
        let size = self.print.size;
        if size == 0 {
            return;
        }
        let probe = || {
            let probe = black_box(Vec::<u8>::with_capacity(size));
            probe.as_ptr().addr()
        };
        let (mut home, mut same) = (probe(), 0);
        for _ in 0..MOST_PROBES {
            let next = probe();
            same = if next == home { same + 1 } else { 0 };
            home = next;
            if same == SURE {
                break;
            }
        }
        let home = if same == SURE { home } else { 0 };
        self.home.store(home, Ordering::Relaxed);
    }

    fn home(&self) -> usize {
        self.home.load(Ordering::Relaxed)
    }

    /// Whether a later panic proves that the payload of this one is gone.
    fn is_gone_with(&self, later: &Self) -> bool {
        let home = self.home();
        let place = self.print.text.filter(|_| self.print.is_unique());
        (home != 0 && home == later.home()) || (place.is_some() && place == later.print.text)
    }
}

/// Adds a panic to a bounded list. Panics whose payloads are known to be gone make room. Returns the
/// removed ones, so that the caller frees their call stacks.
pub(super) fn add(all: &mut VecDeque<Arc<Seen>>, seen: &Arc<Seen>, most: usize) -> Vec<Arc<Seen>> {
    let (mut gone, left): (Vec<_>, Vec<_>) =
        all.drain(..).partition(|other| other.is_gone_with(seen));
    all.extend(left);
    if all.len() >= most {
        gone.extend(all.pop_front());
    }
    all.push_back(Arc::clone(seen));
    gone
}

/// Remembers a panic in case its payload is passed on to another thread.
pub(super) fn remember(seen: &Arc<Seen>) {
    let mut all = SEEN.lock();
    let forgotten = add(&mut all, seen, MOST_SEEN);
    drop(all);
    drop(forgotten);
}

/// Forgets a panic whose payload is gone.
fn forget(seen: &Arc<Seen>) {
    SEEN.lock().retain(|other| !Arc::ptr_eq(other, seen));
}

/// Forgets panics of work that has ended and whose payloads no other work could identify.
pub(super) fn forget_unsure(own: &VecDeque<Arc<Seen>>) {
    let unsure = |seen: &Arc<Seen>| seen.home() == 0;
    if own.iter().any(unsure) {
        let is_own = |seen: &Arc<Seen>| own.iter().any(|other| Arc::ptr_eq(other, seen));
        SEEN.lock().retain(|seen| !unsure(seen) || !is_own(seen));
    }
}

pub(super) fn forget_all() {
    let all = std::mem::take(&mut *SEEN.lock());
    drop(all);
}

/// The report of the panic to which this payload belongs: one of `own`, or of those seen elsewhere.
/// `None` if none matches, or if several with different locations do. The payload is about to be
/// dropped.
pub(super) fn origin(payload: &(dyn Any + Send), own: &VecDeque<Arc<Seen>>) -> Option<PanicReport> {
    let print = Print::of(payload);
    let message = excerpt(text(payload));
    let home = std::ptr::from_ref(payload).cast::<u8>().addr();
    let alike = |seen: &Seen| seen.print == print && seen.report.message == message;
    let at_home = |seen: &&Arc<Seen>| seen.home() == home && alike(seen);
    // The latest: an earlier payload had the same address.
    let number = |seen: &Arc<Seen>| seen.number;
    let among_own = own.iter().rfind(at_home).cloned();
    let among_all = SEEN.lock().iter().rfind(at_home).cloned();
    if let Some(seen) = among_own.into_iter().chain(among_all).max_by_key(number) {
        forget(&seen);
        let mut report = seen.report.clone();
        if !own.iter().any(|other| Arc::ptr_eq(other, &seen)) {
            // It belongs to another worker.
            report.at_hand = None;
        }
        return Some(report);
    }
    let mut unsure = own.iter().filter(|seen| seen.home() == 0 && alike(seen));
    if print.is_unique() {
        return unsure.next_back().map(|seen| seen.report.clone());
    }
    let mut report = unsure.next()?.report.clone();
    for other in unsure {
        if other.report.location != report.location {
            return None;
        }
        // Only the location is certain.
        (report.backtrace, report.at_hand) = (None, None);
    }
    Some(report)
}

/// The only panic among `own`, if it is also the latest of the process: then this thread can't be
/// unwinding from a payload that was passed on since. It may have arisen in another worker.
pub(super) fn latest(own: &VecDeque<Arc<Seen>>) -> Option<PanicReport> {
    let seen = own.front().filter(|_| own.len() == 1)?;
    let next = NEXT.load(Ordering::Relaxed);
    (next == seen.number + 1).then(|| PanicReport {
        at_hand: None,
        ..seen.report.clone()
    })
}

/// The panics of the calling thread that are remembered.
pub(super) fn of_this_thread() -> VecDeque<Arc<Seen>> {
    let thread = thread::current().id();
    let all = SEEN.lock();
    all.iter()
        .filter(|seen| seen.thread == thread)
        .cloned()
        .collect()
}
