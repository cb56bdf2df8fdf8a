//! One worker's 64 bytes: what it beats into, and what the pacemaker knows of it.
//!
//! Each word has one kind of writer, which is what makes `beat` free of locks:
//!
//! | word | written by |
//! | --- | --- |
//! | `counter`, `work` | the worker |
//! | `seen`, `progress_at`, `task_at` | the pacemaker, one tick at a time |
//! | `state`, `base`, `schedule` | whoever holds the lock that guards that change (see `core`) |
//!
//! A change of occupant or incarnation ([`Cell::settle`]) writes them all.
//!
//! A cell is used by one worker after another. The counter is never set back, so that a pacemaker
//! that is still busy with the previous occupant can at worst stamp a progress time a little late,
//! and never invents a beat: whether a worker has beaten is told by `counter != base`.

use crate::atomic::{AtomicU64, Ordering, fence};
use crate::clock::Moment;
use crate::health::Activity;

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

/// The `state` word: where in its life the cell's occupant is, and which occupant it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifecycle {
    pub phase: Phase,
    /// Somebody asked the worker to stop.
    pub stop_requested: bool,
    /// Tells one occupant of the cell from the next.
    pub tag: u32,
    /// Number of the occupant's profile.
    pub profile: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Empty,
    Live,
    Stopped,
    Dead,
}

const TAG_BITS: u32 = 29;

impl Lifecycle {
    pub(crate) const EMPTY: Self = Self {
        phase: Phase::Empty,
        stop_requested: false,
        tag: 0,
        profile: 0,
    };

    /// Tags wrap around; a reader would have to sleep through all of them to be misled.
    pub(crate) const fn next_tag(self) -> u32 {
        (self.tag + 1) & ((1 << TAG_BITS) - 1)
    }

    const fn pack(self) -> u64 {
        let phase = match self.phase {
            Phase::Empty => 0,
            Phase::Live => 1,
            Phase::Stopped => 2,
            Phase::Dead => 3,
        };
        phase
            | (self.stop_requested as u64) << 2
            | (self.tag as u64) << 3
            | (self.profile as u64) << 32
    }

    #[inline(always)]
    const fn unpack(word: u64) -> Self {
        Self {
            phase: match word & 3 {
                0 => Phase::Empty,
                1 => Phase::Live,
                2 => Phase::Stopped,
                _ => Phase::Dead,
            },
            stop_requested: word & 4 != 0,
            tag: (word >> 3) as u32 & ((1 << TAG_BITS) - 1),
            profile: (word >> 32) as u32,
        }
    }
}

/// The `work` word: what the worker says it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub activity: Activity,
    /// The worker announced a silence; how long is written in its record.
    pub quiet: bool,
    /// Between two polls of a future: no thread runs it.
    pub parked: bool,
    /// A supervisor runs the work, and knows the end of its thread.
    pub supervised: bool,
    /// Its thread was found to have ended. When, and whether it has beaten since, is written in its
    /// record.
    pub thread_ended: bool,
    /// Goes up with each new task.
    pub task: u32,
    /// The number of the thread that does the work; 0 if unknown.
    pub thread: u32,
}

// The lowest two bits are the activity.
const QUIET: u64 = 1 << 2;
const PARKED: u64 = 1 << 3;
const THREAD_ENDED: u64 = 1 << 4;
const SUPERVISED: u64 = 1 << 5;
const TASK_BITS: u32 = 24;
const TASK_MASK: u64 = (1 << TASK_BITS) - 1;

const fn activity_bits(activity: Activity) -> u64 {
    match activity {
        Activity::Active => 0,
        Activity::Idle => 1,
        Activity::Processing => 2,
    }
}

impl Work {
    const fn pack(self) -> u64 {
        const fn flag(set: bool, bit: u64) -> u64 {
            if set { bit } else { 0 }
        }
        activity_bits(self.activity)
            | flag(self.quiet, QUIET)
            | flag(self.parked, PARKED)
            | flag(self.thread_ended, THREAD_ENDED)
            | flag(self.supervised, SUPERVISED)
            | ((self.task as u64) & TASK_MASK) << 8
            | (self.thread as u64) << 32
    }

    #[inline(always)]
    const fn unpack(word: u64) -> Self {
        Self {
            activity: match word & 3 {
                1 => Activity::Idle,
                2 => Activity::Processing,
                _ => Activity::Active,
            },
            quiet: word & QUIET != 0,
            parked: word & PARKED != 0,
            thread_ended: word & THREAD_ENDED != 0,
            supervised: word & SUPERVISED != 0,
            task: ((word >> 8) & TASK_MASK) as u32,
            thread: (word >> 32) as u32,
        }
    }

    /// The work, as this thread reports on it. It is bound to that thread, unless a supervisor runs it
    /// on a thread of its own.
    #[inline]
    pub(crate) const fn reported_by(self, thread: u32) -> Self {
        if self.supervised && !self.parked {
            return self;
        }
        Self {
            thread,
            thread_ended: false,
            ..self
        }
    }

    pub(crate) const fn next_task(self) -> u32 {
        ((self.task as u64 + 1) & TASK_MASK) as u32
    }
}

/// The `schedule` word: which episode the pacemaker has told of, and when it must judge again even if
/// the worker gives no sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub episode: Episode,
    pub due: Moment,
}

/// What the pacemaker last told the world of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Episode {
    /// Nothing: it is well. A beat needs no further look.
    Well,
    Starting,
    NeverStarted,
    /// Silent for long, and warned of.
    Late,
    Stalled,
    Stale,
    /// Well, but with its next sign its allowance may change: it is at rest, or in an announced
    /// silence. A beat needs a look.
    Quiet,
}

impl Schedule {
    /// Nobody has to look at this cell, ever.
    pub(crate) const OFF: Self = Self {
        episode: Episode::Well,
        due: Moment::NEVER,
    };

    const fn pack(self) -> u64 {
        let episode = match self.episode {
            Episode::Well => 0,
            Episode::Starting => 1,
            Episode::NeverStarted => 2,
            Episode::Late => 3,
            Episode::Stalled => 4,
            Episode::Stale => 5,
            Episode::Quiet => 6,
        };
        // 61 bits of nanoseconds are 73 years.
        let due = self.due.as_nanos();
        let due = if due > u64::MAX >> 3 {
            u64::MAX >> 3
        } else {
            due
        };
        due << 3 | episode
    }

    #[inline(always)]
    const fn unpack(word: u64) -> Self {
        Self {
            episode: match word & 7 {
                0 => Episode::Well,
                1 => Episode::Starting,
                2 => Episode::NeverStarted,
                3 => Episode::Late,
                4 => Episode::Stalled,
                5 => Episode::Stale,
                _ => Episode::Quiet,
            },
            due: if word >> 3 == u64::MAX >> 3 {
                Moment::NEVER
            } else {
                Moment::from_nanos(word >> 3)
            },
        }
    }
}

/// The place of one cell among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub chunk: u32,
    pub offset: u32,
}

/// The place of one life: a cell, and the tag that tells its occupant from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CellKey(u64);

const OFFSET_BITS: u32 = 14;

impl CellKey {
    /// Chunks have up to this many cells.
    pub(crate) const MOST_OFFSETS: usize = 1 << OFFSET_BITS;

    pub(crate) const fn new(slot: Slot, tag: u32) -> Self {
        Self(
            (slot.chunk as u64) << (OFFSET_BITS + TAG_BITS)
                | (slot.offset as u64) << TAG_BITS
                | tag as u64,
        )
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) const fn slot(self) -> Slot {
        Slot {
            chunk: (self.0 >> (OFFSET_BITS + TAG_BITS)) as u32,
            offset: (self.0 >> TAG_BITS) as u32 & (Self::MOST_OFFSETS as u32 - 1),
        }
    }

    /// Whether it is in this cell.
    #[inline]
    pub(crate) const fn is_in(self, slot: Slot) -> bool {
        self.0 >> TAG_BITS == Self::new(slot, 0).0 >> TAG_BITS
    }

    #[inline]
    pub(crate) const fn tag(self) -> u32 {
        self.0 as u32 & ((1 << TAG_BITS) - 1)
    }
}

/// What the pacemaker has to do about a cell that it has observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Nothing.
    None,
    /// Judge it in full at this moment, to the nanosecond, unless it gives a sign before.
    LookAt(Moment),
    /// Judge it in full now: something is due, or a worker that was not well gave a sign.
    Look,
}

/// What one look at a cell found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CellSnapshot {
    pub state: Lifecycle,
    pub work: Work,
    pub schedule: Schedule,
    /// The worker has made progress at least once in this incarnation.
    pub beaten: bool,
    /// It made progress since the pacemaker's last look.
    pub moved: bool,
    /// When the pacemaker last saw progress; when the incarnation began, if it saw none.
    pub progress_at: Moment,
    /// When the pacemaker first saw the current task; `None` if it has not seen it yet.
    pub task_at: Option<Moment>,
    /// Beats of this incarnation.
    pub beats: u64,
}

impl CellSnapshot {
    /// Whether the cell alone is enough to judge the worker: it lives, and its record has nothing to
    /// add.
    #[inline]
    pub(crate) const fn is_plain(&self) -> bool {
        matches!(self.state.phase, Phase::Live) && !self.work.quiet && !self.work.thread_ended
    }
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

    // --- the worker's side ----------------------------------------------------------------------

    /// One step of progress. Two threads that beat into one cell at the same instant may count as
    /// one: what matters is that the counter moved.
    #[inline]
    pub(crate) fn beat(&self) {
        let counter = self.counter.load(Ordering::Relaxed);
        self.counter
            .store(counter.wrapping_add(1), Ordering::Relaxed);
    }

    pub(crate) fn work(&self) -> Work {
        Work::unpack(self.work.load(Ordering::Relaxed))
    }

    /// One step of progress, and a word on what it is doing. The step comes first: who sees the new
    /// word sees the step too, and does not take a long idle time for a long silence at work.
    pub(crate) fn beat_with(&self, change: impl Fn(Work) -> Work) {
        self.beat();
        self.change_work(change);
    }

    /// As [`beat_with`](Self::beat_with): this thread reports what the worker is doing, and whether it
    /// is a new task. The work is bound to that thread, unless a supervisor runs it on a thread of its
    /// own. Returns the number of the thread that it was bound to before.
    #[inline]
    pub(crate) fn report(&self, activity: Activity, thread: u32, new_task: bool) -> u32 {
        const KEPT: u64 = QUIET | PARKED | SUPERVISED;
        self.beat();
        let mut old = self.work.load(Ordering::Relaxed);
        loop {
            let bound = if old & (PARKED | SUPERVISED) == SUPERVISED {
                old & (THREAD_ENDED | u64::MAX << 32)
            } else {
                u64::from(thread) << 32
            };
            let task = ((old >> 8) + u64::from(new_task)) & TASK_MASK;
            let new = old & KEPT | activity_bits(activity) | task << 8 | bound;
            let changed =
                self.work
                    .compare_exchange_weak(old, new, Ordering::Release, Ordering::Relaxed);
            match changed {
                Ok(_) => return (old >> 32) as u32,
                Err(other) => old = other,
            }
        }
    }

    /// A word on what it is doing. Not progress.
    ///
    /// Others may say something at the same time, and are not to be taken back.
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

    // --- changes of life, each under the occupant's or the chunk's lock --------------------------

    /// A new occupant, or a new incarnation of the present one. Returns the beats of the one before,
    /// which nobody finds here any more.
    pub(crate) fn settle(&self, state: Lifecycle, now: Moment, schedule: Schedule) -> u64 {
        // Who sees anything of what follows sees the end of the last occupant, too.
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
        // Sequentially consistent, together with `state_after_work`: of a worker that goes idle
        // and somebody who asks it to stop, at least one sees the other.
        self.state.store(state.pack(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn state(&self) -> Lifecycle {
        Lifecycle::unpack(self.state.load(Ordering::Acquire))
    }

    /// The state, read after everything that this thread has written to the cell.
    pub(crate) fn state_after_work(&self) -> Lifecycle {
        fence(Ordering::SeqCst);
        Lifecycle::unpack(self.state.load(Ordering::SeqCst))
    }

    pub(crate) fn set_schedule(&self, schedule: Schedule) {
        self.schedule.store(schedule.pack(), Ordering::Release);
    }

    // --- the pacemaker's side -------------------------------------------------------------------

    /// Stamps progress that came since the last look, and tells whether there is more to do.
    ///
    /// What is due is judged by the tick's time. Progress is stamped with a time that is read after
    /// it was seen: a tick may take long, and a beat made meanwhile must not be dated before it.
    #[inline]
    pub(crate) fn observe(&self, tick: Moment, now: impl FnOnce() -> Moment) -> Sign {
        let schedule = self.schedule.load(Ordering::Acquire);
        let well = schedule & 7 == 0;
        let expected = if schedule >> 3 <= tick.as_nanos() {
            Sign::Look
        } else if well {
            Sign::None
        } else {
            Sign::LookAt(Moment::from_nanos(schedule >> 3))
        };
        let task = self.work.load(Ordering::Acquire) >> 8 & TASK_MASK;
        let counter = self.counter.load(Ordering::Relaxed);
        let new_task = self.task_at.load(Ordering::Relaxed) & TASK_MASK != task;
        if counter == self.seen.load(Ordering::Relaxed) && !new_task {
            return expected;
        }
        let now = now();
        if new_task {
            // Milliseconds, rounded up so that a task's age is never over-estimated.
            let millis = now.as_nanos().div_ceil(1_000_000);
            self.task_at
                .store(millis << TASK_BITS | task, Ordering::Relaxed);
        }
        // The time before the counter: a reader that sees the counter as seen sees its time too.
        // Never back: the cell may have got a new occupant meanwhile.
        self.progress_at.fetch_max(now.as_nanos(), Ordering::AcqRel);
        self.seen.store(counter, Ordering::Release);
        if well { expected } else { Sign::Look }
    }

    // --- readers --------------------------------------------------------------------------------

    /// Beats of the present incarnation, and after its end.
    pub(crate) fn beats(&self) -> u64 {
        let base = self.base.load(Ordering::Relaxed);
        steps(base, self.counter.load(Ordering::Relaxed))
    }

    /// Everything in the cell. `None` while the occupant changes; the caller looks again or asks the
    /// occupant's record.
    // Scanned by the million.
    #[inline(always)]
    pub(crate) fn snapshot(&self) -> Option<CellSnapshot> {
        let before = self.state.load(Ordering::Acquire);
        let schedule = self.schedule.load(Ordering::Acquire);
        // What it does before how far it got, the seen counter before its time: see the writers.
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

/// From one value of the counter to another. None if it went back, as threads that beat at once may
/// make it do.
const fn steps(from: u64, to: u64) -> u64 {
    let steps = to.wrapping_sub(from);
    if steps > u64::MAX / 2 { 0 } else { steps }
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
    fn a_place_survives_packing() {
        let slot = Slot {
            chunk: (1 << 21) - 1,
            offset: CellKey::MOST_OFFSETS as u32 - 1,
        };
        for (slot, tag) in [
            (slot, 0),
            (slot, (1 << TAG_BITS) - 1),
            (
                Slot {
                    chunk: 0,
                    offset: 7,
                },
                3,
            ),
        ] {
            let place = CellKey::from_word(CellKey::new(slot, tag).word());
            assert_eq!((place.slot(), place.tag()), (slot, tag));
        }
    }

    #[test]
    fn a_counter_that_was_set_back_has_made_no_steps() {
        assert_eq!((steps(3, 5), steps(5, 3), steps(u64::MAX, 1)), (2, 0, 2));
        assert_eq!(steps(0, u64::MAX / 2), u64::MAX / 2);
    }

    #[test]
    fn a_glance_counts_no_beats_of_a_counter_that_was_set_back() {
        let cell = Cell::new();
        cell.counter.store(7, Ordering::Relaxed);
        cell.settle(live(1), Moment::ZERO, SOON);
        // As a thread does that was interrupted between its load and its store.
        cell.counter.store(5, Ordering::Relaxed);
        assert_eq!(cell.snapshot().unwrap().beats, 0);
        assert_eq!(cell.beats(), 0);
    }

    #[test]
    fn a_time_beyond_what_a_watch_can_keep_is_never() {
        let last = u64::MAX >> 3;
        for due in [0, 1, last - 1, last, last + 1, u64::MAX] {
            let schedule = Schedule {
                episode: Episode::Quiet,
                due: Moment::from_nanos(due),
            };
            let kept = Schedule::unpack(schedule.pack());
            let expected = if due < last { due } else { u64::MAX };
            assert_eq!(kept.due.as_nanos(), expected);
            assert_eq!(kept.episode, Episode::Quiet);
        }
    }

    #[test]
    fn words_survive_packing() {
        for phase in [Phase::Empty, Phase::Live, Phase::Stopped, Phase::Dead] {
            for stop_requested in [false, true] {
                let state = Lifecycle {
                    phase,
                    stop_requested,
                    tag: (1 << TAG_BITS) - 1,
                    profile: u32::MAX - 1,
                };
                assert_eq!(Lifecycle::unpack(state.pack()), state);
                assert_eq!(state.next_tag(), 0);
            }
        }
        for activity in [Activity::Active, Activity::Idle, Activity::Processing] {
            for bit in 0..4 {
                let work = Work {
                    activity,
                    quiet: bit == 0,
                    parked: bit == 1,
                    thread_ended: bit == 2,
                    supervised: bit == 3,
                    task: TASK_MASK as u32,
                    thread: u32::MAX,
                };
                assert_eq!(Work::unpack(work.pack()), work);
                assert_eq!(work.next_task(), 0);
            }
        }
        for episode in [
            Episode::Well,
            Episode::Starting,
            Episode::NeverStarted,
            Episode::Late,
            Episode::Stalled,
            Episode::Stale,
            Episode::Quiet,
        ] {
            for due in [Moment::ZERO, Moment::from_nanos(1 << 60), Moment::NEVER] {
                let schedule = Schedule { episode, due };
                assert_eq!(Schedule::unpack(schedule.pack()), schedule);
            }
        }
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
            Sign::LookAt(SOON.due),
            "nothing to tell yet"
        );
        cell.beat();
        let snapshot = cell.snapshot().unwrap();
        assert!(snapshot.beaten && snapshot.moved);
        assert_eq!(snapshot.progress_at, Moment::from_nanos(10));
        assert_eq!(observe(&cell, 30), Sign::Look, "its first beat is news");
        let snapshot = cell.snapshot().unwrap();
        assert!(snapshot.beaten && !snapshot.moved);
        assert_eq!(snapshot.progress_at, Moment::from_nanos(30));
        assert_eq!(snapshot.beats, 1);
        assert_eq!(observe(&cell, 50), Sign::Look, "it is due");
        cell.set_schedule(Schedule {
            episode: Episode::Well,
            due: Moment::from_nanos(60),
        });
        cell.beat();
        assert_eq!(observe(&cell, 59), Sign::None);
        assert_eq!(observe(&cell, 60), Sign::Look);
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
