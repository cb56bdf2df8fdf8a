//! Time, as a value that is passed in: the system's clock or a mock.
//!
//! Decisions use monotonic [`Moment`]s. Wall time is for people, and always computed as "now minus
//! age".

mod mock;
mod observed;
mod sleeper;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use mock::MockClock;
pub(crate) use observed::{ObservedTime, Patience};
pub(crate) use sleeper::{Alarm, Sleeper};

/// A point on a clock's monotonic time line, in nanoseconds since that clock was made.
///
/// Moments of different clocks cannot be compared.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::MockClock;
///
/// let time = MockClock::new();
/// let before = time.now();
/// time.advance(Duration::from_secs(3));
/// assert_eq!(time.now().since(before), Duration::from_secs(3));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment at which the clock was made.
    pub const ZERO: Self = Self(0);
    /// Later than every moment that a clock will ever show.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment that lies this many nanoseconds after the clock was made.
    ///
    /// ```
    /// use worker_heartbeat::Moment;
    ///
    /// assert_eq!(Moment::from_nanos(7).as_nanos(), 7);
    /// assert_eq!(Moment::from_nanos(0), Moment::ZERO);
    /// ```
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock was made.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this moment; zero if `earlier` is later.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Moment;
    ///
    /// let later = Moment::ZERO.after(Duration::from_secs(3));
    /// assert_eq!(later.since(Moment::ZERO), Duration::from_secs(3));
    /// assert_eq!(Moment::ZERO.since(later), Duration::ZERO);
    /// ```
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment, moved forward; [`Moment::NEVER`] if that leaves the time line.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Moment;
    ///
    /// assert_eq!(Moment::ZERO.after(Duration::from_nanos(7)), Moment::from_nanos(7));
    /// assert_eq!(Moment::ZERO.after(Duration::MAX), Moment::NEVER);
    /// ```
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// As [`after`](Self::after), with a duration in nanoseconds.
    #[inline]
    pub(crate) const fn after_nanos(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// This moment, moved back; [`Moment::ZERO`] if that leaves the time line.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Moment;
    ///
    /// let moment = Moment::from_nanos(7);
    /// assert_eq!(moment.before(Duration::from_nanos(3)), Moment::from_nanos(4));
    /// assert_eq!(moment.before(Duration::from_secs(1)), Moment::ZERO);
    /// ```
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

/// A duration in nanoseconds; saturates after centuries.
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
}

/// Where a registry gets its time from: the system, or a [`MockClock`].
///
/// A cheap clone. Two clones show the same time.
///
/// ```
/// use worker_heartbeat::{Clock, MockClock, Registry};
///
/// fn service(clock: Clock) -> Registry {
///     Registry::with_clock(clock)
/// }
///
/// let live = service(Clock::system());
/// let tested = service(MockClock::new().clock());
/// # let _ = (live, tested);
/// ```
#[derive(Clone, Debug)]
pub struct Clock {
    source: ClockSource,
}

#[derive(Clone, Debug)]
enum ClockSource {
    System { anchor: Instant },
    Mock(Arc<mock::MockTime>),
}

impl Clock {
    /// The system's monotonic clock, starting at zero now.
    #[must_use]
    pub fn system() -> Self {
        Self {
            source: ClockSource::System {
                anchor: Instant::now(),
            },
        }
    }

    /// The present moment.
    ///
    /// ```
    /// use worker_heartbeat::Clock;
    ///
    /// let clock = Clock::system();
    /// let began = clock.now();
    /// // work
    /// println!("it took {:?}", clock.now().since(began));
    /// ```
    #[must_use]
    #[inline]
    pub fn now(&self) -> Moment {
        match &self.source {
            ClockSource::System { anchor } => {
                Moment(nanos(Instant::now().saturating_duration_since(*anchor)))
            }
            ClockSource::Mock(state) => state.now(),
        }
    }

    /// Whether a test moves it.
    pub(crate) const fn is_mock(&self) -> bool {
        matches!(self.source, ClockSource::Mock(_))
    }

    /// The present wall time. A mock clock's wall time starts at the real one and moves with it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::MockClock;
    ///
    /// let time = MockClock::new();
    /// let began = time.clock().wall();
    /// time.advance(Duration::from_secs(3600));
    /// assert_eq!(time.clock().wall().duration_since(began)?, Duration::from_secs(3600));
    /// # Ok::<(), std::time::SystemTimeError>(())
    /// ```
    #[must_use]
    pub fn wall(&self) -> SystemTime {
        match &self.source {
            ClockSource::System { .. } => SystemTime::now(),
            ClockSource::Mock(state) => state.wall(),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_saturate_at_both_ends() {
        let early = Moment::from_nanos(5);
        assert_eq!(early.before(Duration::from_secs(1)), Moment::ZERO);
        assert_eq!(early.since(Moment::NEVER), Duration::ZERO);
        assert_eq!(early.after(Duration::MAX), Moment::NEVER);
        assert_eq!(early.after(Duration::from_nanos(7)), Moment::from_nanos(12));
    }

    #[test]
    fn the_system_clock_starts_at_zero_and_never_goes_back() {
        let clock = Clock::system();
        let first = clock.now();
        let second = clock.clone().now();
        assert!(second >= first);
        assert!(first < Moment::ZERO.after(Duration::from_secs(60)));
    }
}
