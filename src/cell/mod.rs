//! A worker's 64 bytes: the counter that it beats into, and what the pacemaker knows of it. Uses atomics
//! alone, no lock.
//!
//! Each word has one kind of writer, so that `beat` needs no lock:
//!
//! | word | written by |
//! | --- | --- |
//! | `counter`, `work` | the worker |
//! | `seen`, `progress_at`, `task_at` | the pacemaker, one tick at a time |
//! | `state`, `base`, `schedule` | the holder of the lock that guards the change (see `registry::core`) |
//!
//! A change of occupant or incarnation ([`Cell::settle`]) writes them all.
//!
//! Workers reuse cells. The counter is never reset: a worker has beaten if `counter != base`. So a
//! pacemaker that is still observing the previous occupant can stamp a progress time a little late, but
//! cannot make up a beat.

mod key;
mod snapshot;
mod word;

use crate::atomic::{AtomicU64, Ordering, fence};
use crate::clock::Moment;
use crate::health::Activity;
pub(crate) use key::{CellKey, Slot};
pub(crate) use snapshot::CellSnapshot;
use snapshot::steps;
pub(crate) use word::{Episode, Lifecycle, Phase, Schedule, Work};
use word::{LIMITED, PARKED, QUIET, SUPERVISED, TASK_BITS, TASK_MASK, THREAD_ENDED};

/// See the module.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Cell {
    counter: AtomicU64,
    base: AtomicU64,
    work: AtomicU64,
    state: AtomicU64,
    seen: AtomicU64,
    progress_at: AtomicU64,
    schedule: AtomicU64,
    task_at: AtomicU64,
}

/// What the pacemaker has to do after it has observed a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Nothing.
    None,
    /// Judge the worker at this very moment, unless it makes progress before.
    JudgeAt(Moment),
    /// Judge the worker now: its time has come, or it was not well and made progress.
    Judge,
}

impl Cell {
    pub(crate) fn new() -> Self {
        Self {
            counter: AtomicU64::new(0),
            base: AtomicU64::new(0),
            work: AtomicU64::new(0),
            state: AtomicU64::new(Lifecycle::EMPTY.pack()),
            seen: AtomicU64::new(0),
            progress_at: AtomicU64::new(0),
            schedule: AtomicU64::new(Schedule::OFF.pack()),
            task_at: AtomicU64::new(0),
        }
    }

    // --- written by the worker ------------------------------------------------------------------

    /// One step of progress. Concurrent beats of two threads may count as one: all that matters is
    /// that the counter moved.
    #[inline]
    pub(crate) fn beat(&self) {
        let counter = self.counter.load(Ordering::Relaxed);
        self.counter
            .store(counter.wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn work(&self) -> Work {
        Work::unpack(self.work.load(Ordering::Relaxed))
    }

    /// One step of progress, and a change of the `work` word. The step comes first: a reader that sees
    /// the new word sees the step too, so it can't mistake a long idle time for a stall.
    pub(crate) fn beat_with(&self, change: impl Fn(Work) -> Work) {
        self.beat();
        self.change_work(change);
    }

    /// As [`beat_with`](Self::beat_with) and [`Work::reported_by`], in fewer instructions. Returns the
    /// number of the thread that the work was bound to before.
    #[inline]
    pub(crate) fn report(&self, activity: Activity, thread: u32, new_task: bool) -> u32 {
        const KEPT: u64 = QUIET | PARKED | SUPERVISED | LIMITED;
        self.beat();
        let mut old = self.work.load(Ordering::Relaxed);
        loop {
            let bound = if old & (PARKED | SUPERVISED) == SUPERVISED {
                old & (THREAD_ENDED | u64::MAX << 32)
            } else {
                u64::from(thread) << 32
            };
            let task = ((old >> 8) + u64::from(new_task)) & TASK_MASK;
            let new = old & KEPT | activity as u64 | task << 8 | bound;
            let changed =
                self.work
                    .compare_exchange_weak(old, new, Ordering::Release, Ordering::Relaxed);
            match changed {
                Ok(_) => return (old >> 32) as u32,
                Err(other) => old = other,
            }
        }
    }

    /// Changes the `work` word. Not progress.
    ///
    /// Keeps what other threads change at the same time.
    pub(crate) fn change_work(&self, change: impl Fn(Work) -> Work) {
        let mut old = self.work.load(Ordering::Relaxed);
        while let Err(other) = self.work.compare_exchange_weak(
            old,
            change(Work::unpack(old)).pack(),
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            old = other;
        }
    }

    // --- written under the occupant's or the chunk's lock ---------------------------------------

    /// A new occupant, or a new incarnation of the present one. Returns the beats of the previous one,
    /// which the cell no longer holds.
    pub(crate) fn settle(&self, state: Lifecycle, now: Moment, schedule: Schedule) -> u64 {
        // A reader that sees any of the stores below sees the end of the previous occupant too.
        fence(Ordering::Release);
        let counter = self.counter.load(Ordering::Relaxed);
        let base = self.base.load(Ordering::Relaxed);
        self.base.store(counter, Ordering::Relaxed);
        self.seen.store(counter, Ordering::Relaxed);
        let work = Work {
            activity: Activity::Active,
            quiet: false,
            parked: false,
            thread_ended: false,
            supervised: false,
            limited: false,
            task: self.work().next_task(),
            thread: 0,
        };
        self.work.store(work.pack(), Ordering::Relaxed);
        self.task_at.store(u64::from(work.task), Ordering::Relaxed);
        self.progress_at
            .fetch_max(now.as_nanos(), Ordering::Relaxed);
        self.schedule.store(schedule.pack(), Ordering::Relaxed);
        self.state.store(state.pack(), Ordering::Release);
        steps(base, counter)
    }

    pub(crate) fn set_state(&self, state: Lifecycle) {
        // Sequentially consistent, as `state_after_work`: of a worker that goes idle and a thread that
        // asks it to stop, at least one sees the other.
        self.state.store(state.pack(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn state(&self) -> Lifecycle {
        Lifecycle::unpack(self.state.load(Ordering::Acquire))
    }

    /// The state, read after all that this thread has written to the cell.
    pub(crate) fn state_after_work(&self) -> Lifecycle {
        fence(Ordering::SeqCst);
        Lifecycle::unpack(self.state.load(Ordering::SeqCst))
    }

    pub(crate) fn set_schedule(&self, schedule: Schedule) {
        self.schedule.store(schedule.pack(), Ordering::Release);
    }

    // --- written by the pacemaker ---------------------------------------------------------------

    /// Stamps progress made since the last observation.
    ///
    /// What is due is decided by the tick's time. Progress is stamped with a time that is read after
    /// the counter: a tick may take long, and must not date a beat before it was made.
    #[inline]
    pub(crate) fn observe(&self, tick: Moment, now: impl FnOnce() -> Moment) -> Sign {
        let schedule = self.schedule.load(Ordering::Acquire);
        let well = schedule & 7 == 0;
        let expected = if schedule >> 3 <= tick.as_nanos() {
            Sign::Judge
        } else if well {
            Sign::None
        } else {
            Sign::JudgeAt(Moment::from_nanos(schedule >> 3))
        };
        let work = self.work.load(Ordering::Acquire);
        let task = work >> 8 & TASK_MASK;
        let counter = self.counter.load(Ordering::Relaxed);
        let new_task = self.task_at.load(Ordering::Relaxed) & TASK_MASK != task;
        if counter == self.seen.load(Ordering::Relaxed) && !new_task {
            return expected;
        }
        let now = now();
        if new_task {
            // Milliseconds, rounded up: a task's age is never over-estimated.
            let millis = now.as_nanos().div_ceil(1_000_000);
            self.task_at
                .store(millis << TASK_BITS | task, Ordering::Relaxed);
        }
        // The time before the counter: a reader that sees the counter stamped sees its time too.
        // Never back: the cell may have a new occupant by now.
        self.progress_at.fetch_max(now.as_nanos(), Ordering::AcqRel);
        self.seen.store(counter, Ordering::Release);
        // A new task may have to end before the worker would be judged.
        let begins_limit = new_task && work & LIMITED != 0;
        if well && !begins_limit {
            expected
        } else {
            Sign::Judge
        }
    }

    // --- readers --------------------------------------------------------------------------------
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_cache_line() {
        assert_eq!(size_of::<Cell>(), 64);
        assert_eq!(align_of::<Cell>(), 64);
    }

    #[test]
    fn a_report_binds_the_work_to_its_thread_unless_a_supervisor_runs_it() {
        let cell = Cell::new();
        cell.settle(live(1), Moment::ZERO, SOON);
        let task = cell.work().task;
        assert_eq!(cell.report(Activity::Processing, 7, true), 0);
        let work = cell.work();
        assert_eq!((work.activity, work.thread), (Activity::Processing, 7));
        assert_eq!((work.task, cell.beats()), (task + 1, 1));
        for (quiet, parked, supervised, bound) in [
            (true, false, false, 8),
            (false, true, false, 8),
            (true, false, true, 7),
            (true, true, true, 8),
        ] {
            cell.change_work(|work| Work {
                thread: 7,
                thread_ended: true,
                quiet,
                parked,
                supervised,
                ..work
            });
            let expected = Work {
                activity: Activity::Idle,
                thread: bound,
                thread_ended: bound == 7,
                ..cell.work()
            };
            assert_eq!(cell.report(Activity::Idle, 8, false), 7);
            assert_eq!(cell.work(), expected);
        }
        let last = Work {
            task: TASK_MASK as u32,
            ..cell.work()
        };
        cell.change_work(|_| last);
        cell.report(Activity::Active, 9, true);
        assert_eq!((cell.work().task, cell.work().quiet), (0, last.quiet));
    }

    fn live(tag: u32) -> Lifecycle {
        Lifecycle {
            phase: Phase::Live,
            stop_requested: false,
            tag,
            profile: 0,
        }
    }

    fn observe(cell: &Cell, nanos: u64) -> Sign {
        let now = Moment::from_nanos(nanos);
        cell.observe(now, || now)
    }

    const SOON: Schedule = Schedule {
        episode: Episode::Starting,
        due: Moment::from_nanos(50),
    };

    #[test]
    fn progress_is_stamped_when_it_is_seen() {
        let cell = Cell::new();
        cell.settle(live(1), Moment::from_nanos(10), SOON);
        let snapshot = cell.snapshot().unwrap();
        assert!(!snapshot.beaten && !snapshot.moved);
        assert_eq!(
            observe(&cell, 20),
            Sign::JudgeAt(SOON.due),
            "nothing to report yet"
        );
        cell.beat();
        let snapshot = cell.snapshot().unwrap();
        assert!(snapshot.beaten && snapshot.moved);
        assert_eq!(snapshot.progress_at, Moment::from_nanos(10));
        assert_eq!(
            observe(&cell, 30),
            Sign::Judge,
            "its first beat is reported"
        );
        let snapshot = cell.snapshot().unwrap();
        assert!(snapshot.beaten && !snapshot.moved);
        assert_eq!(snapshot.progress_at, Moment::from_nanos(30));
        assert_eq!(snapshot.beats, 1);
        assert_eq!(observe(&cell, 50), Sign::Judge, "it is due");
        cell.set_schedule(Schedule {
            episode: Episode::Well,
            due: Moment::from_nanos(60),
        });
        cell.beat();
        assert_eq!(observe(&cell, 59), Sign::None);
        assert_eq!(observe(&cell, 60), Sign::Judge);
    }

    #[test]
    fn a_new_occupant_has_not_beaten() {
        let cell = Cell::new();
        cell.settle(live(1), Moment::ZERO, SOON);
        cell.beat();
        let before = cell.settle(live(2), Moment::from_nanos(5), SOON);
        assert_eq!((before, cell.beats()), (1, 0));
        let snapshot = cell.snapshot().unwrap();
        assert!(!snapshot.beaten && !snapshot.moved);
        assert_eq!(snapshot.beats, 0);
        assert_eq!(
            snapshot.task_at,
            Some(Moment::ZERO),
            "the old task is not the new one's"
        );
    }

    #[test]
    fn a_task_is_dated_when_it_is_first_seen_and_never_earlier() {
        let cell = Cell::new();
        cell.settle(live(1), Moment::ZERO, SOON);
        cell.beat_with(|work| Work {
            task: work.next_task(),
            ..work
        });
        assert_eq!(cell.snapshot().unwrap().task_at, None);
        observe(&cell, 1_500_000);
        let first = Some(Moment::from_nanos(2_000_000));
        assert_eq!(cell.snapshot().unwrap().task_at, first);
        assert!(!cell.snapshot().unwrap().moved);
        cell.beat();
        observe(&cell, 9_000_000);
        assert_eq!(cell.snapshot().unwrap().task_at, first);
    }
}
