//! Evidence on a worker's thread.

#[cfg(feature = "stacks")]
use std::time::Duration;

use super::WorkerRef;
use crate::cell::{CellSnapshot, Work};
use crate::clock::Moment;
#[cfg(feature = "stacks")]
use crate::health::CallStack;
use crate::health::StallCause;
use crate::health::evidence::{self, Sample};
use crate::registry::core::record::{Detail, ThreadEnded};
#[cfg(feature = "stacks")]
use crate::stacks::{self, NoStack};
use crate::sync::procfs::Presence;
use crate::sync::threads;
#[cfg(feature = "stacks")]
use crate::sync::threads::KernelThread;

/// The longest time between two samples of a stalled worker's thread: 2 to this power of
/// resolutions.
const LONGEST_WAIT: u32 = 6;

/// The number of the thread that does the work; 0 if none is known.
fn working_thread(snapshot: &CellSnapshot, detail: &Detail) -> u32 {
    match snapshot.work.thread {
        // Between two polls: the last thread that reported since is the one that works on it.
        0 => detail.threads.helper(snapshot.beats).unwrap_or(0),
        bound => bound,
    }
}

#[cfg(feature = "stacks")]
impl WorkerRef {
    /// Reads the call stack of the thread that does the work. Waits for other captures for this long.
    pub(crate) fn capture_stack(&self, patience: Duration) -> Result<CallStack, NoStack> {
        let failed = |why: &str| NoStack::Final(why.to_owned());
        let thread = self.kernel_thread().map_err(failed)?;
        let stack = stacks::capture(thread.id, patience);
        // The kernel may have given the id to another thread meanwhile.
        match thread.look() {
            Presence::There(_) => stack,
            Presence::Gone | Presence::Unknown => Err(failed("its thread has ended")),
        }
    }

    /// The kernel's identity of the thread that does the work. `Err` says why there is none.
    fn kernel_thread(&self) -> Result<KernelThread, &'static str> {
        let snapshot = self.living_snapshot().ok_or("it is over")?;
        match working_thread(&snapshot, &self.record.detail()) {
            0 if snapshot.work.parked => Err("its future waits, and no thread runs it"),
            0 => Err("no thread has reported for it yet"),
            number => threads::kernel_thread(number).ok_or("its thread has ended"),
        }
    }
}

impl WorkerRef {
    /// Samples the thread of a silent worker; `fresh`: for the first time in its episode. Returns
    /// the number of resolutions after which another sample will say more.
    pub(crate) fn gather_evidence(&self, fresh: bool) -> Option<u32> {
        let snapshot = self.living_snapshot()?;
        let mut detail = self.record.detail();
        if fresh {
            detail.first_sample = None;
            detail.evidence = StallCause::Unknown;
        }
        let thread = working_thread(&snapshot, &detail);
        let look = threads::kernel_thread(thread).map(|known| known.look());
        if snapshot.work.parked && (thread == 0 || look == Some(Presence::Gone)) {
            detail.evidence = StallCause::Blocked {
                // The pacemaker does not vouch for this worker: polls do not count as progress.
                place: Some(if self.record.profile.thresholds.beats_only {
                    "its future, which makes no progress of its own".to_owned()
                } else {
                    "its future, which has not been polled".to_owned()
                }),
            };
            return None;
        }
        if look == Some(Presence::Gone) {
            // It ended so abruptly that its destructors did not run.
            detail.evidence = StallCause::ThreadEnded;
            return None;
        }
        let Some(first) = detail
            .first_sample
            .take_if(|first| first.thread() == thread)
        else {
            detail.looks = 0;
            detail.first_sample = Sample::take(thread);
            return detail.first_sample.as_ref().map(|_| 1);
        };
        let age = first.age();
        let long = age >= evidence::LONG_WINDOW;
        let first_finding =
            age >= evidence::SHORTEST_WINDOW && detail.evidence == StallCause::Unknown;
        let second = (long || first_finding).then(|| Sample::take(thread));
        let finding = second
            .flatten()
            .and_then(|second| Some((second.since(&first)?, second)));
        detail.first_sample = Some(match finding {
            Some((cause, second)) => {
                detail.evidence = cause;
                // The next finding covers the time from here on.
                if long { second } else { first }
            }
            None => first,
        });
        // Twice as long each time: otherwise a host with many stalled workers, or a mock clock,
        // whose time passes at once, would do nothing but sample.
        detail.looks = (detail.looks + 1).min(LONGEST_WAIT);
        Some(1 << detail.looks)
    }

    /// Notes that the worker's thread has ended: the worker is stalled from `now` on, unless
    /// another thread that has reported for it is alive. If it has made more `beats` than these, it
    /// goes on without that thread instead. Returns whether it is stalled.
    pub(crate) fn abandon(
        &self,
        thread: u32,
        beats: Option<u64>,
        now: Moment,
        lives: impl Fn(u32) -> bool,
    ) -> bool {
        let mut detail = self.record.detail();
        let Some(snapshot) = self.living_snapshot() else {
            return false;
        };
        let goes_on = beats.is_some_and(|beats| snapshot.beats != beats);
        if goes_on || snapshot.work.thread != thread {
            self.cell().change_work(|work| without_thread(work, thread));
            return false;
        }
        if detail.threads.any(lives) {
            return false;
        }
        detail.thread_ended = Some(ThreadEnded {
            at: now,
            beats: snapshot.beats,
        });
        self.cell().change_work(|work| Work {
            thread_ended: work.thread == thread,
            ..work
        });
        true
    }

    /// A worker whose thread has ended has made progress: it has another thread, which is not
    /// known.
    pub(crate) fn go_on_without_thread(&self) {
        let mut detail = self.record.detail();
        if detail.thread_ended.take().is_some() && self.living_snapshot().is_some() {
            self.cell().change_work(|work| {
                if work.thread_ended {
                    without_thread(work, work.thread)
                } else {
                    work
                }
            });
        }
    }
}

/// The same work, not bound to this thread.
fn without_thread(work: Work, thread: u32) -> Work {
    if work.thread == thread {
        Work {
            thread: 0,
            thread_ended: false,
            ..work
        }
    } else {
        work
    }
}
