//! Reading a cell without a lock, while its worker, the pacemaker and its supervisor write.

use super::Cell;
use super::word::{Lifecycle, Phase, Schedule, TASK_BITS, TASK_MASK, Work};
use crate::atomic::{Ordering, fence};
use crate::clock::Moment;
use crate::health::Activity;

/// The content of a cell at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CellSnapshot {
    pub state: Lifecycle,
    pub work: Work,
    pub schedule: Schedule,
    /// The worker has made progress at least once in this incarnation.
    pub beaten: bool,
    /// It made progress since the pacemaker last observed it.
    pub moved: bool,
    /// When the pacemaker last saw progress; when the incarnation began, if it saw none.
    pub progress_at: Moment,
    /// When the pacemaker first saw the current task; `None` if it has not seen it yet.
    pub task_at: Option<Moment>,
    /// Beats of this incarnation.
    pub beats: u64,
}

impl CellSnapshot {
    /// Whether the cell alone decides the state of the worker: it lives, and its record has nothing to
    /// add.
    #[inline]
    pub(crate) const fn is_plain(&self) -> bool {
        // No limit applies to the task of an idle worker.
        let limited = self.work.limited && !matches!(self.work.activity, Activity::Idle);
        matches!(self.state.phase, Phase::Live)
            && !self.work.quiet
            && !self.work.thread_ended
            && !limited
    }
}

impl Cell {
    /// Beats of the present incarnation, those after its end included.
    pub(crate) fn beats(&self) -> u64 {
        let base = self.base.load(Ordering::Relaxed);
        steps(base, self.counter.load(Ordering::Relaxed))
    }

    /// A consistent snapshot. `None` while the occupant changes: the caller retries, or reads the
    /// occupant's record.
    // Scanned by the million.
    #[inline(always)]
    pub(crate) fn snapshot(&self) -> Option<CellSnapshot> {
        let before = self.state.load(Ordering::Acquire);
        let schedule = self.schedule.load(Ordering::Acquire);
        // The reverse of the order in which they are written: see `observe` and `beat_with`.
        let work = Work::unpack(self.work.load(Ordering::Acquire));
        let seen = self.seen.load(Ordering::Acquire);
        let progress_at = self.progress_at.load(Ordering::Acquire);
        let task_at = self.task_at.load(Ordering::Relaxed);
        let base = self.base.load(Ordering::Relaxed);
        let counter = self.counter.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let after = self.state.load(Ordering::Relaxed);
        let (state, after) = (Lifecycle::unpack(before), Lifecycle::unpack(after));
        if state.tag != after.tag || state.phase != after.phase {
            return None;
        }
        let beaten = counter != base;
        let new_task = task_at & TASK_MASK != u64::from(work.task);
        Some(CellSnapshot {
            state,
            work,
            schedule: Schedule::unpack(schedule),
            beaten,
            moved: beaten && (counter != seen || new_task),
            progress_at: Moment::from_nanos(progress_at),
            task_at: (!new_task)
                .then(|| Moment::from_nanos((task_at >> TASK_BITS).saturating_mul(1_000_000))),
            beats: steps(base, counter),
        })
    }
}

/// Steps from one value of the counter to another; 0 if it went back, as concurrent beats may make it
/// do.
pub(super) const fn steps(from: u64, to: u64) -> u64 {
    let steps = to.wrapping_sub(from);
    if steps > u64::MAX / 2 { 0 } else { steps }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_was_set_back_has_made_no_steps() {
        assert_eq!((steps(3, 5), steps(5, 3), steps(u64::MAX, 1)), (2, 0, 2));
        assert_eq!(steps(0, u64::MAX / 2), u64::MAX / 2);
    }

    #[test]
    fn a_snapshot_counts_no_beats_of_a_counter_that_was_set_back() {
        let cell = Cell::new();
        cell.counter.store(7, Ordering::Relaxed);
        cell.settle(Lifecycle::EMPTY, Moment::ZERO, Schedule::OFF);
        // As a thread does that was interrupted between its load and its store.
        cell.counter.store(5, Ordering::Relaxed);
        assert_eq!(cell.snapshot().unwrap().beats, 0);
        assert_eq!(cell.beats(), 0);
    }
}
