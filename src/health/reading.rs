//! The input of the verdict.

use std::time::Duration;

use super::limits::Term;
use super::{
    Activity, Ending, FutureInfo, Limits, SourceLocation, StackCapture, StallCause, State,
};
use crate::clock::{Moment, nanos};

/// What is known of a worker at one moment: the input of [`judge`](super::judge).
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Moment, Reading, State, Thresholds, judge};
///
/// let now = Moment::ZERO.after(Duration::from_secs(100));
/// let mut reading = Reading::new(Moment::ZERO);
/// reading.progress_at = Some(now);
/// reading.heartbeat_at = Some(now);
/// let thresholds = Thresholds::new(Duration::from_secs(90));
/// assert_eq!(judge(&reading, &thresholds, now).state(), State::Active);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reading {
    /// How it ended, and how long ago.
    pub ending: Option<(Ending, Duration)>,
    /// Time since the last observation, if that is longer than it should be.
    pub unwatched: Option<Duration>,
    /// What it reports that it is doing.
    pub activity: Activity,
    /// It was asked to stop.
    pub stop_requested: bool,
    /// When its incarnation began.
    pub started_at: Moment,
    /// When it last made progress; `None` if it never did.
    pub progress_at: Option<Moment>,
    /// Until when it was known to be well; `None` if it never was.
    pub heartbeat_at: Option<Moment>,
    /// The end of its announced silence.
    pub quiet_until: Option<Moment>,
    /// When its thread was found to have ended, if it made no progress since.
    pub thread_ended_at: Option<Moment>,
    /// When the task began whose deadline ends first; `None` if it is at none.
    pub task_at: Option<Moment>,
    /// The deadline of that task, if it is not the one of the thresholds.
    pub task_deadline: Option<Duration>,
    /// Steps done and total steps of its task, if it reported any.
    pub progress: Option<(u64, u64)>,
    /// When these steps last changed.
    pub moved_at: Option<Moment>,
    /// What its thread was found doing, if it stalled.
    pub evidence: StallCause,
    /// Where it last reported, other than by a mere beat.
    pub last_location: Option<SourceLocation>,
    /// What is known of its future, if it is one.
    pub future: Option<Box<FutureInfo>>,
    /// The call stack of its thread, if it stalled.
    pub stack: Option<StackCapture>,
    /// Its present run.
    pub run_id: Option<String>,
    /// Its present task.
    pub task: Option<String>,
}

impl Reading {
    /// A worker whose incarnation began at `started_at` and of which nothing else is known.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Moment, Reading, State, Thresholds, judge};
    ///
    /// let reading = Reading::new(Moment::ZERO);
    /// let thresholds = Thresholds::new(Duration::from_secs(90));
    /// assert_eq!(judge(&reading, &thresholds, Moment::ZERO).state(), State::Starting);
    /// ```
    #[must_use]
    pub const fn new(started_at: Moment) -> Self {
        Self {
            ending: None,
            unwatched: None,
            activity: Activity::Active,
            stop_requested: false,
            started_at,
            progress_at: None,
            heartbeat_at: None,
            quiet_until: None,
            thread_ended_at: None,
            task_at: None,
            task_deadline: None,
            progress: None,
            moved_at: None,
            evidence: StallCause::Unknown,
            last_location: None,
            future: None,
            stack: None,
            run_id: None,
            task: None,
        }
    }

    pub(super) fn signs(&self, limits: &Limits) -> Signs {
        let deadline = self.task_deadline.map_or(limits.task_deadline, nanos);
        let moved_at = self.moved_at.filter(|_| self.progress.is_some());
        let term = |since, allowance| Term { since, allowance };
        Signs {
            activity: self.activity,
            stop_requested: self.stop_requested,
            unwatched: self.unwatched,
            started_at: self.started_at,
            progress_at: self.progress_at,
            heartbeat_at: self.heartbeat_at,
            quiet_until: self.quiet_until,
            thread_ended_at: self.thread_ended_at,
            deadline: self.task_at.map(|at| Deadline {
                term: term(at, deadline),
                task: 0,
            }),
            headway: moved_at.map(|at| term(at, limits.progress_after)),
        }
    }
}

/// The deadline that ends first, of all tasks that a worker is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub term: Term,
    /// The position of the task among the open ones; the outermost is first.
    pub task: usize,
}

/// What the state of a living worker depends on. Small and `Copy`: a summary judges millions of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signs {
    pub activity: Activity,
    pub stop_requested: bool,
    pub unwatched: Option<Duration>,
    pub started_at: Moment,
    pub progress_at: Option<Moment>,
    pub heartbeat_at: Option<Moment>,
    pub quiet_until: Option<Moment>,
    pub thread_ended_at: Option<Moment>,
    pub deadline: Option<Deadline>,
    /// Since when its progress stands still, and how long it may.
    pub headway: Option<Term>,
}

impl Signs {
    /// Whether it is at work, and its thread has ended. While it is idle, another thread may take up
    /// its next task.
    #[inline]
    pub(super) const fn is_abandoned(&self) -> bool {
        self.thread_ended_at.is_some() && self.is_at_work()
    }

    /// The moment after which it is stalled; never, if it can't stall now.
    #[inline]
    pub(super) fn stalls_at(&self, limits: &Limits) -> Moment {
        self.silence_ends_at(limits).min(self.standstill_ends_at())
    }

    /// The moment after which it is stalled without a beat.
    #[inline]
    pub(super) fn silence_ends_at(&self, limits: &Limits) -> Moment {
        self.progress_at.map_or(Moment::NEVER, |at| {
            self.extended(at.after_nanos(limits.stall_after[self.activity as usize]))
        })
    }

    /// The moment after which it is convicted without a beat.
    pub(crate) fn silence_limit(&self, limits: &Limits) -> Moment {
        let limit = self.silence_ends_at(limits);
        if limits.beats_only {
            limit.min(self.stales_at(limits))
        } else {
            limit
        }
    }

    /// The moment after which it is stalled, whether it beats or not, unless its progress moves.
    #[inline]
    pub(super) fn standstill_ends_at(&self) -> Moment {
        match self.headway {
            Some(headway) if self.is_at_work() => self.extended(headway.ends_at()),
            _ => Moment::NEVER,
        }
    }

    /// The moment after which it is overdue; never, if no deadline applies. An announced silence does
    /// not extend a deadline.
    #[inline]
    pub(super) fn overdue_at(&self) -> Moment {
        match self.deadline {
            Some(deadline) if self.is_at_work() => deadline.term.ends_at(),
            _ => Moment::NEVER,
        }
    }

    const fn is_at_work(&self) -> bool {
        !matches!(self.activity, Activity::Idle)
    }

    /// The moment after which it is stale; never, if it has no heartbeat yet.
    #[inline]
    pub(super) fn stales_at(&self, limits: &Limits) -> Moment {
        let Some(at) = self.heartbeat_at else {
            return Moment::NEVER;
        };
        let limit = at.after_nanos(limits.stale_after);
        if limits.beats_only {
            self.extended(limit)
        } else {
            limit
        }
    }

    /// An announced silence extends a limit on progress.
    #[inline]
    fn extended(&self, limit: Moment) -> Moment {
        self.quiet_until.map_or(limit, |until| limit.max(until))
    }

    /// Whether it is stalled for its silence, rather than for its standstill.
    pub(super) fn is_silent(&self, limits: &Limits, now: Moment) -> bool {
        self.is_abandoned() || now > self.silence_ends_at(limits)
    }

    /// Since when that lasts for which it is in this state.
    pub(crate) fn lasts_since(&self, state: State, limits: &Limits, now: Moment) -> Moment {
        let since = match state {
            State::Overdue => self.deadline.map(|deadline| deadline.term.since),
            State::Stalled if !self.is_silent(limits, now) => self.headway.map(|term| term.since),
            _ => None,
        };
        since.unwrap_or_else(|| self.silent_since())
    }

    /// Since when it has been in this state, if it is that of a conviction.
    pub(crate) fn convicted_since(&self, state: State, limits: &Limits) -> Option<Moment> {
        let limit = match state {
            State::Stalled if self.is_abandoned() => return self.thread_ended_at,
            State::Stalled => self.stalls_at(limits),
            State::Stale => self.stales_at(limits),
            State::Overdue => self.overdue_at(),
            State::NeverStarted => self.started_at.after_nanos(limits.startup_grace),
            _ => return None,
        };
        Some(limit.after_nanos(1))
    }

    /// When it last made progress; when it began, if it never did.
    pub(crate) fn silent_since(&self) -> Moment {
        self.progress_at.unwrap_or(self.started_at)
    }
}
