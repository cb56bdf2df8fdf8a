//! The time of a registry, as far as its pacemaker observed it.
//!
//! Unobserved time is not charged to workers: from one tick to the next, the registry's time line
//! moves forward by at most two resolutions, however far the clock moves.

use std::time::Duration;

use crate::atomic::{AtomicU64, Ordering, fence};
use crate::clock::{Moment, nanos};

/// The shortest resolution.
pub(crate) const SHORTEST_RESOLUTION: Duration = Duration::from_millis(10);
/// The longest resolution.
pub(crate) const LONGEST_RESOLUTION: Duration = Duration::from_secs(1);

/// How often the pacemaker has to tick to convict at most a tenth of this threshold late.
pub(crate) fn resolution_for(threshold: Duration) -> Duration {
    (threshold / 10).clamp(SHORTEST_RESOLUTION, LONGEST_RESOLUTION)
}

/// Waits for a pacemaker that is between its stores, and may have been preempted.
fn wait_a_moment(attempt: u32) {
    #[cfg(all(loom, test))]
    {
        let _ = attempt;
        loom::thread::yield_now();
    }
    #[cfg(not(all(loom, test)))]
    if attempt < 64 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Written by the pacemaker, one tick at a time; read by any thread, without a lock.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// Odd while a tick is written.
    version: AtomicU64,
    /// The last tick, on the clock.
    tick_at: AtomicU64,
    /// The clock's time that was not charged.
    forgiven: AtomicU64,
    /// How far the time line may move until the next tick.
    budget: AtomicU64,
}

/// The registry's time at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ObservedNow {
    /// The clock's time.
    pub clock: Moment,
    /// The same moment on the registry's time line.
    pub now: Moment,
    /// The last tick on the registry's time line.
    pub tick: Moment,
    /// The age of the last tick by the clock, in nanoseconds.
    tick_age: u64,
    /// The next tick is overdue: part of the time since the last one is not charged.
    pub overdue: bool,
    /// The time that was not charged so far, in nanoseconds.
    pub forgiven: u64,
    /// The time since the last tick, if the pacemaker did not tick when it was woken.
    pub unwatched: Option<Duration>,
}

impl ObservedNow {
    /// The age of the last tick by the clock.
    pub(crate) const fn tick_age(&self) -> Duration {
        Duration::from_nanos(self.tick_age)
    }
}

impl Timeline {
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            version: AtomicU64::new(0),
            tick_at: AtomicU64::new(now.as_nanos()),
            forgiven: AtomicU64::new(0),
            budget: AtomicU64::new(nanos(2 * LONGEST_RESOLUTION)),
        }
    }

    /// The registry's time when the clock shows `clock`.
    #[inline]
    pub(crate) fn observed_now(&self, clock: Moment) -> ObservedNow {
        let mut attempt = 0_u32;
        loop {
            let before = self.version.load(Ordering::Acquire);
            let tick_at = self.tick_at.load(Ordering::Relaxed);
            let forgiven = self.forgiven.load(Ordering::Relaxed);
            let budget = self.budget.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.version.load(Ordering::Relaxed) == before {
                // Another thread's tick may be later than the clock that the caller read.
                let since = clock.as_nanos().saturating_sub(tick_at);
                let tick = tick_at.saturating_sub(forgiven);
                return ObservedNow {
                    clock,
                    now: Moment::from_nanos(tick.saturating_add(since.min(budget))),
                    tick: Moment::from_nanos(tick),
                    tick_age: since,
                    overdue: since > budget,
                    forgiven,
                    unwatched: None,
                };
            }
            wait_a_moment(attempt);
            attempt = attempt.saturating_add(1);
        }
    }

    /// No earlier than the registry's time now, and at most two resolutions later. Reads no clock.
    #[inline]
    pub(crate) fn not_before_now(&self) -> Moment {
        // While a tick is written, the parts may not fit together; this is for information only.
        let tick_at = self.tick_at.load(Ordering::Relaxed);
        let forgiven = self.forgiven.load(Ordering::Relaxed);
        let budget = self.budget.load(Ordering::Relaxed);
        Moment::from_nanos(tick_at.saturating_sub(forgiven).saturating_add(budget))
    }

    /// Marks a tick. Returns the time at it, and how much time was forgiven. One caller at a time.
    pub(crate) fn tick(&self, clock: Moment, resolution: Duration) -> (ObservedNow, Duration) {
        let before = self.observed_now(clock);
        let forgiven = self.forgiven.load(Ordering::Relaxed);
        let budget = self.budget.load(Ordering::Relaxed);
        let excess = before.tick_age.saturating_sub(budget);
        let at = self.tick_at.load(Ordering::Relaxed).max(clock.as_nanos());

        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.tick_at.store(at, Ordering::Relaxed);
        self.forgiven
            .store(forgiven.saturating_add(excess), Ordering::Relaxed);
        self.budget
            .store(nanos(resolution).saturating_mul(2), Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
        (self.observed_now(clock), Duration::from_nanos(excess))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn the_resolution_is_a_tenth_within_its_bounds() {
        assert_eq!(resolution_for(Duration::from_secs(5)), SECOND / 2);
        assert_eq!(resolution_for(Duration::from_secs(90)), SECOND);
        assert_eq!(
            resolution_for(Duration::from_millis(50)),
            SHORTEST_RESOLUTION
        );
    }

    #[test]
    fn unobserved_time_is_forgiven() {
        let line = Timeline::new(at(0));
        let (_, forgiven) = line.tick(at(1), SECOND);
        assert_eq!(forgiven, Duration::ZERO);
        assert_eq!(line.observed_now(at(3)).now, at(3));
        assert!(!line.observed_now(at(3)).overdue);

        let asleep = line.observed_now(at(3601));
        assert!(asleep.overdue);
        assert_eq!(asleep.now, at(3), "two resolutions, not an hour");

        let (observed, forgiven) = line.tick(at(3601), SECOND);
        assert_eq!(forgiven, Duration::from_secs(3598));
        assert_eq!(observed.now, at(3));
        assert_eq!(observed.tick_age(), Duration::ZERO);
        assert_eq!(line.observed_now(at(3602)).now, at(4));
    }

    #[test]
    fn the_time_line_never_goes_back() {
        let line = Timeline::new(at(0));
        let mut last = Moment::ZERO;
        for (clock, resolution) in [(1, 1), (7, 10), (90, 1), (91, 1), (95, 10), (115, 1)] {
            let resolution = Duration::from_millis(resolution * 100);
            let seen = line.observed_now(at(clock)).now;
            assert!(seen >= last);
            let (observed, _) = line.tick(at(clock), resolution);
            assert_eq!(observed.now, seen);
            last = seen;
        }
        let (observed, _) = line.tick(at(5), SECOND);
        assert!(observed.now >= last, "a late clock reading changes nothing");
    }
}
