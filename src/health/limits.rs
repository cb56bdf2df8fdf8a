//! What a worker is allowed.

use std::time::Duration;

use super::Activity;
use crate::clock::nanos;

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
    /// Limits for a worker that is vouched for: no `stall_after`, and `startup_grace` equal to
    /// `stale_after`.
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
            startup_grace: stale_after,
            beats_only: false,
        }
    }

    /// The shortest of them.
    pub(crate) fn shortest(&self) -> Duration {
        self.stale_after
            .min(self.startup_grace)
            .min(self.stall_after.unwrap_or(Duration::MAX))
    }
}

/// [`Thresholds`] in nanoseconds, as moments are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(super) stale_after: u64,
    /// By activity; [`ENDLESS`](Self::ENDLESS) where there is no limit. A table, because a processor
    /// can't predict a branch on whether a worker is idle.
    pub(super) stall_after: [u64; Activity::COUNT],
    pub(super) startup_grace: u64,
    pub(super) beats_only: bool,
}

impl Limits {
    /// Centuries, and still within the time line when added to a moment.
    pub(super) const ENDLESS: u64 = u64::MAX / 2;
}

impl From<&Thresholds> for Limits {
    fn from(thresholds: &Thresholds) -> Self {
        let mut stall_after =
            [thresholds.stall_after.map_or(Self::ENDLESS, nanos); Activity::COUNT];
        stall_after[Activity::Idle as usize] = Self::ENDLESS;
        Self {
            stale_after: nanos(thresholds.stale_after),
            stall_after,
            startup_grace: nanos(thresholds.startup_grace),
            beats_only: thresholds.beats_only,
        }
    }
}
