//! What a worker is allowed.

use std::time::Duration;

use super::Activity;
use crate::clock::{Moment, nanos};

/// The limits that a worker is judged by.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Thresholds, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer").interval(Duration::from_secs(10)).start()?;
/// assert_eq!(hb.snapshot().thresholds, Thresholds::new(Duration::from_secs(30)));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Thresholds {
    /// Longest time without a heartbeat.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "stale_after_s", with = "crate::serial::seconds")
    )]
    pub stale_after: Duration,
    /// Longest time at work without progress; `None`: no limit.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "stall_after_s",
            default,
            with = "crate::serial::optional_seconds"
        )
    )]
    pub stall_after: Option<Duration>,
    /// Longest time at one task; `None`: no limit. A task may have
    /// [a deadline of its own](crate::TaskGuard::deadline).
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "task_deadline_s",
            default,
            skip_serializing_if = "Option::is_none",
            with = "crate::serial::optional_seconds"
        )
    )]
    pub task_deadline: Option<Duration>,
    /// Longest time in which the [progress](crate::TaskGuard::progress) of a task stands still;
    /// `None`: no limit.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "progress_after_s",
            default,
            skip_serializing_if = "Option::is_none",
            with = "crate::serial::optional_seconds"
        )
    )]
    pub progress_after: Option<Duration>,
    /// Longest time from registration to the first progress.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "startup_grace_s", with = "crate::serial::seconds")
    )]
    pub startup_grace: Duration,
    /// The pacemaker does not vouch: only the worker's own progress moves its heartbeat.
    #[cfg_attr(feature = "serde", serde(default))]
    pub beats_only: bool,
}

impl Thresholds {
    /// Limits for a worker that is vouched for: `stale_after`, an equal `startup_grace`, and no others.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Thresholds;
    ///
    /// let thresholds = Thresholds::new(Duration::from_secs(90));
    /// assert_eq!(thresholds.startup_grace, Duration::from_secs(90));
    /// assert_eq!(thresholds.stall_after, None);
    /// ```
    #[must_use]
    pub const fn new(stale_after: Duration) -> Self {
        Self {
            stale_after,
            stall_after: None,
            task_deadline: None,
            progress_after: None,
            startup_grace: stale_after,
            beats_only: false,
        }
    }

    /// The shortest of them.
    pub(crate) fn shortest(&self) -> Duration {
        let optional = [self.stall_after, self.task_deadline, self.progress_after];
        let shortest = self.stale_after.min(self.startup_grace);
        optional.into_iter().flatten().fold(shortest, Duration::min)
    }
}

/// [`Thresholds`] in nanoseconds, as moments are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(super) stale_after: u64,
    /// By activity; [`ENDLESS`](Self::ENDLESS) where there is no limit. A table, because a processor
    /// can't predict a branch on whether a worker is idle.
    pub(super) stall_after: [u64; Activity::COUNT],
    /// [`ENDLESS`](Self::ENDLESS) if there is none.
    pub(crate) task_deadline: u64,
    /// [`ENDLESS`](Self::ENDLESS) if there is none.
    pub(crate) progress_after: u64,
    pub(super) startup_grace: u64,
    pub(crate) beats_only: bool,
}

impl Limits {
    /// With at most so many nanoseconds without progress at this activity.
    #[inline]
    pub(crate) fn shortened(mut self, activity: Activity, allowed: u64) -> Self {
        let limit = &mut self.stall_after[activity as usize];
        *limit = allowed.min(*limit);
        self
    }

    /// Centuries, and still within the time line when added to a moment.
    pub(crate) const ENDLESS: u64 = u64::MAX / 2;

    /// Whether the tasks of the worker have limits, apart from those of its silence.
    pub(crate) const fn limit_tasks(&self) -> bool {
        self.task_deadline < Self::ENDLESS || self.limit_progress()
    }

    pub(crate) const fn limit_progress(&self) -> bool {
        self.progress_after < Self::ENDLESS
    }
}

/// A limit on something that began at a known time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub since: Moment,
    /// Nanoseconds.
    pub allowance: u64,
}

impl Term {
    /// It is kept until this moment; never beyond, if it is [`ENDLESS`](Limits::ENDLESS).
    #[inline]
    pub(crate) const fn ends_at(self) -> Moment {
        if self.allowance < Limits::ENDLESS {
            self.since.after_nanos(self.allowance)
        } else {
            Moment::NEVER
        }
    }
}

impl From<&Thresholds> for Limits {
    fn from(thresholds: &Thresholds) -> Self {
        let mut stall_after =
            [thresholds.stall_after.map_or(Self::ENDLESS, nanos); Activity::COUNT];
        stall_after[Activity::Idle as usize] = Self::ENDLESS;
        Self {
            stale_after: nanos(thresholds.stale_after),
            stall_after,
            task_deadline: thresholds.task_deadline.map_or(Self::ENDLESS, nanos),
            progress_after: thresholds.progress_after.map_or(Self::ENDLESS, nanos),
            startup_grace: nanos(thresholds.startup_grace),
            beats_only: thresholds.beats_only,
        }
    }
}
