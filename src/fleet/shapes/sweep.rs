//! What a sweep of a store does: whom it judges, and which records it forgets.

use std::time::Duration;

use super::{DEFAULT_THRESHOLD, WorkerKey};

/// Events of each level.
pub(crate) const MOST_EVENTS_KEPT: usize = 20_000;

/// Time that was watched in pieces, with gaps between them, counts this much less.
pub(crate) const PIECES: u32 = 4;

/// One pass over a store: stale workers are marked offline, their leases are released.
///
/// ```
/// use worker_heartbeat::MemoryStore;
/// use worker_heartbeat::fleet::{HeartbeatStore, Sweep};
///
/// let report = MemoryStore::new().sweep(&Sweep::default())?;
/// assert!(report.success && report.marked_offline.is_empty());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sweep {
    /// Longest time without a heartbeat, for workers without a limit of their own; 90 s by default.
    pub threshold: Duration,
    /// How long the caller has watched the store without a gap; for ever by default. Silence before
    /// that is not charged to any worker, except as [`charged`](Self::charged) says.
    pub watched_for: Duration,
    /// Earlier spans of time in which the caller watched the store, with gaps between them; none by
    /// default. A store that ignores them convicts later.
    pub watched_before: Vec<WatchedSpan>,
    /// Workers whose process was killed by a signal, as the kernel of their host reports. They are
    /// marked dead at once.
    pub killed: Vec<WorkerKey>,
    /// Workers whose process is gone, as the kernel of their host reports, for an unknown reason.
    /// They are marked dead at once.
    pub gone: Vec<WorkerKey>,
    /// Report what would be done, and change nothing. Needs no right to write.
    pub dry_run: bool,
    /// Do nothing if another caller has swept the store within this time, with a limit that is at
    /// most [`threshold`](Self::threshold), and had watched it for at least as long; `None` by
    /// default. A store that ignores it sweeps.
    pub unless_swept_within: Option<Duration>,
    /// Forget workers that ended long ago; none by default. A store that ignores it keeps them until
    /// [`purge`](super::super::HeartbeatStore::purge).
    pub retention: Option<Retention>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            threshold: DEFAULT_THRESHOLD,
            watched_for: Duration::MAX,
            watched_before: Vec::new(),
            killed: Vec::new(),
            gone: Vec::new(),
            dry_run: false,
            unless_swept_within: None,
            retention: None,
        }
    }
}

impl Sweep {
    /// How much of a worker's silence is charged: as much as was watched without a gap until now, or a
    /// quarter of what was watched in pieces, whichever is more.
    ///
    /// So a gap, such as an outage of the store, gives every worker its full allowance again, but gaps
    /// that come again and again only delay a conviction.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::fleet::{Sweep, WatchedSpan};
    ///
    /// let second = Duration::from_secs(1);
    /// let mut sweep = Sweep::default();
    /// sweep.watched_for = 30 * second;
    /// assert_eq!(sweep.charged(20 * second), 20 * second);
    /// assert_eq!(sweep.charged(900 * second), 30 * second);
    ///
    /// sweep.watched_before = vec![WatchedSpan::new(440 * second, 40 * second)];
    /// assert_eq!(sweep.charged(140 * second), 130 * second / 4);
    /// assert_eq!(sweep.charged(900 * second), 430 * second / 4);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn charged(&self, silence: Duration) -> Duration {
        let unbroken = silence.min(self.watched_for);
        let spans = self.watched_before.iter();
        let before: Duration = spans
            .map(|span| silence.min(span.began).saturating_sub(span.ended))
            .fold(Duration::ZERO, Duration::saturating_add);
        unbroken.max(unbroken.saturating_add(before) / PIECES)
    }

    /// No silence is charged with more than this.
    #[cfg(feature = "postgres")]
    pub(crate) fn longest_charged(&self) -> Duration {
        self.charged(Duration::MAX)
    }
}

/// A span of time in which a store was watched.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::fleet::WatchedSpan;
///
/// let span = WatchedSpan::new(Duration::from_secs(60), Duration::from_secs(20));
/// assert_eq!(span.began - span.ended, Duration::from_secs(40));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatchedSpan {
    /// How long ago it began.
    pub began: Duration,
    /// How long ago it ended.
    pub ended: Duration,
}

impl WatchedSpan {
    /// A span that began and ended this long ago.
    #[must_use]
    pub const fn new(began: Duration, ended: Duration) -> Self {
        Self { began, ended }
    }
}

/// How long the records of ended workers are kept. `None`: until a
/// [`purge`](super::super::HeartbeatStore::purge).
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{MemoryStore, Sweeper};
/// use worker_heartbeat::fleet::Retention;
///
/// let week = Duration::from_secs(7 * 86_400);
/// assert_eq!(Retention::new().dead, Some(week));
///
/// let sweeper = Sweeper::new(MemoryStore::new()).retention(Retention::new().dead(4 * week));
/// let keeps_all = Sweeper::new(MemoryStore::new()).retention(Retention::none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Workers that stopped; an hour by default.
    pub stopped: Option<Duration>,
    /// Workers that died; seven days by default.
    pub dead: Option<Duration>,
    /// Workers that died and were replaced: a living worker of the same type and group was registered
    /// after they were last heard of. A day by default.
    pub replaced: Option<Duration>,
    /// Events, since they happened; seven days by default.
    pub events: Option<Duration>,
    /// The most events of each [level](crate::fleet::FleetEventKind::level), the latest ones; 20,000 by
    /// default. `None`: any number, except in a [`MemoryStore`](crate::MemoryStore).
    pub most_events: Option<usize>,
}

impl Retention {
    /// The default: stopped workers are kept for an hour, dead ones for seven days, those that were
    /// replaced for a day; of events of each level, 20,000 for seven days.
    #[must_use]
    pub const fn new() -> Self {
        const HOUR: Duration = Duration::from_secs(3_600);
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            stopped: Some(HOUR),
            dead: Some(Duration::from_secs(7 * 86_400)),
            replaced: Some(DAY),
            events: Some(Duration::from_secs(7 * 86_400)),
            most_events: Some(MOST_EVENTS_KEPT),
        }
    }

    /// All are kept.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            stopped: None,
            dead: None,
            replaced: None,
            events: None,
            most_events: None,
        }
    }

    /// How long workers are kept that stopped.
    #[must_use]
    pub fn stopped(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.stopped = age.into();
        self
    }

    /// How long workers are kept that died.
    #[must_use]
    pub fn dead(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.dead = age.into();
        self
    }

    /// How long workers are kept that died and were replaced.
    #[must_use]
    pub fn replaced(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.replaced = age.into();
        self
    }

    /// How long events are kept.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::fleet::Retention;
    ///
    /// let retention = Retention::new().events(Duration::from_secs(86_400)).most_events(1_000);
    /// assert_eq!(retention.most_events, Some(1_000));
    /// ```
    #[must_use]
    pub fn events(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.events = age.into();
        self
    }

    /// How many events of each level are kept, the latest ones.
    #[must_use]
    pub fn most_events(mut self, most: impl Into<Option<usize>>) -> Self {
        self.most_events = most.into();
        self
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn no_silence_is_charged_with_more_than_itself() {
        let sweep = Sweep {
            watched_for: seconds(10),
            watched_before: vec![
                WatchedSpan::new(seconds(1_000), seconds(500)),
                WatchedSpan::new(seconds(60), seconds(20)),
            ],
            ..Sweep::default()
        };
        let mut last = Duration::ZERO;
        for silence in (0..2_000).map(seconds) {
            let charged = sweep.charged(silence);
            assert!(charged <= silence && charged >= last);
            last = charged;
        }
        assert_eq!(last, seconds(550) / PIECES);
        assert_eq!(sweep.charged(Duration::MAX), last);
        assert_eq!(Sweep::default().charged(Duration::MAX), Duration::MAX);
    }
}
