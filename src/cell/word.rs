//! The words of a cell that hold more than one value, and how they are packed.

use crate::clock::Moment;
use crate::health::Activity;

/// The `state` word: where in its life the cell's occupant is, and which occupant it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifecycle {
    pub phase: Phase,
    /// The worker was asked to stop.
    pub stop_requested: bool,
    /// Differs from that of the cell's previous occupant.
    pub tag: u32,
    /// Number of the occupant's profile.
    pub profile: u32,
}

/// The discriminants are the packed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Empty,
    Live,
    Stopped,
    Dead,
}

pub(super) const TAG_BITS: u32 = 29;

impl Lifecycle {
    pub(crate) const EMPTY: Self = Self {
        phase: Phase::Empty,
        stop_requested: false,
        tag: 0,
        profile: 0,
    };

    /// Tags wrap around: a reader is misled only if it is preempted for a whole cycle of them.
    pub(crate) const fn next_tag(self) -> u32 {
        (self.tag + 1) & ((1 << TAG_BITS) - 1)
    }

    pub(super) const fn pack(self) -> u64 {
        self.phase as u64
            | (self.stop_requested as u64) << 2
            | (self.tag as u64) << 3
            | (self.profile as u64) << 32
    }

    #[inline(always)]
    pub(super) const fn unpack(word: u64) -> Self {
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

/// The `work` word: what the worker reports that it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub activity: Activity,
    /// The worker announced a silence; its length is in the record.
    pub quiet: bool,
    /// The worker is a future between two polls: no thread runs it.
    pub parked: bool,
    /// A supervisor runs the work, and sees the end of its thread itself.
    pub supervised: bool,
    /// Its thread has ended. The record holds when, and the beats by then.
    pub thread_ended: bool,
    /// Its tasks have limits, which the record holds.
    pub limited: bool,
    /// Incremented by each new task.
    pub task: u32,
    /// The number of the thread that does the work; 0 if unknown.
    pub thread: u32,
}

// The lowest two bits are the activity.
pub(super) const QUIET: u64 = 1 << 2;
pub(super) const PARKED: u64 = 1 << 3;
pub(super) const THREAD_ENDED: u64 = 1 << 4;
pub(super) const SUPERVISED: u64 = 1 << 5;
pub(super) const LIMITED: u64 = 1 << 6;
pub(super) const TASK_BITS: u32 = 24;
pub(super) const TASK_MASK: u64 = (1 << TASK_BITS) - 1;

impl Work {
    pub(super) const fn pack(self) -> u64 {
        const fn flag(set: bool, bit: u64) -> u64 {
            if set { bit } else { 0 }
        }
        self.activity as u64
            | flag(self.quiet, QUIET)
            | flag(self.parked, PARKED)
            | flag(self.thread_ended, THREAD_ENDED)
            | flag(self.supervised, SUPERVISED)
            | flag(self.limited, LIMITED)
            | ((self.task as u64) & TASK_MASK) << 8
            | (self.thread as u64) << 32
    }

    #[inline(always)]
    pub(super) const fn unpack(word: u64) -> Self {
        Self {
            activity: match word & 3 {
                1 => Activity::Idle,
                2 => Activity::Processing,
                _ => Activity::Active,
            },
            quiet: word & QUIET != 0,
            parked: word & PARKED != 0,
            thread_ended: word & THREAD_ENDED != 0,
            limited: word & LIMITED != 0,
            supervised: word & SUPERVISED != 0,
            task: ((word >> 8) & TASK_MASK) as u32,
            thread: (word >> 32) as u32,
        }
    }

    /// The work as reported by this thread: bound to it, unless a supervisor runs the work on a thread of
    /// its own.
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

/// The `schedule` word: the episode that the pacemaker last reported, and when it must judge the worker
/// again even without progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub episode: Episode,
    pub due: Moment,
}

/// What the pacemaker last reported of a worker. The discriminants are the packed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Episode {
    /// Nothing: the worker is well. A beat needs no judgement.
    Well,
    Starting,
    NeverStarted,
    /// Three quarters of its allowance are used: a warning was sent.
    Late,
    Stalled,
    Stale,
    /// Well, but its allowance may change with its next progress: it is idle, or in an announced
    /// silence. A beat needs a judgement.
    Quiet,
    Overdue,
}

impl Schedule {
    /// The cell needs no judgement.
    pub(crate) const OFF: Self = Self {
        episode: Episode::Well,
        due: Moment::NEVER,
    };

    pub(super) const fn pack(self) -> u64 {
        // 61 bits of nanoseconds are 73 years.
        let due = self.due.as_nanos();
        let due = if due > u64::MAX >> 3 {
            u64::MAX >> 3
        } else {
            due
        };
        due << 3 | self.episode as u64
    }

    #[inline(always)]
    pub(super) const fn unpack(word: u64) -> Self {
        Self {
            episode: match word & 7 {
                0 => Episode::Well,
                1 => Episode::Starting,
                2 => Episode::NeverStarted,
                3 => Episode::Late,
                4 => Episode::Stalled,
                5 => Episode::Stale,
                6 => Episode::Quiet,
                _ => Episode::Overdue,
            },
            due: if word >> 3 == u64::MAX >> 3 {
                Moment::NEVER
            } else {
                Moment::from_nanos(word >> 3)
            },
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_due_time_beyond_the_range_is_never() {
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
            for bit in 0..5 {
                let work = Work {
                    activity,
                    quiet: bit == 0,
                    parked: bit == 1,
                    thread_ended: bit == 2,
                    supervised: bit == 3,
                    limited: bit == 4,
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
            Episode::Overdue,
        ] {
            for due in [Moment::ZERO, Moment::from_nanos(1 << 60), Moment::NEVER] {
                let schedule = Schedule { episode, due };
                assert_eq!(Schedule::unpack(schedule.pack()), schedule);
            }
        }
    }
}
