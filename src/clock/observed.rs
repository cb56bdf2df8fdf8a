//! Observed time, by which the deadlines of real threads are measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::nanos;

const SHORTEST_SLICE: Duration = Duration::from_millis(10);
const LONGEST_SLICE: Duration = Duration::from_millis(250);
/// Slices in the allowed time, unless they get too short or too long.
const SLICES: u32 = 20;

/// A stopwatch that charges at most two slices for a gap between two readings.
///
/// A waiting thread reads it once in a slice. A longer gap is time in which the process did not
/// run: it was stopped, suspended or starved. Each reading charges something, so a slow waiter
/// comes to the end too, only later.
#[derive(Debug)]
pub(crate) struct ObservedTime {
    began: Instant,
    slice: Duration,
    /// The last reading, in nanoseconds since the beginning.
    read: AtomicU64,
    /// What has been charged, in nanoseconds.
    charged: AtomicU64,
}

impl ObservedTime {
    /// Begins now. The slices suit a deadline after this time.
    pub(crate) fn begin(allowed: Duration) -> Self {
        Self {
            began: Instant::now(),
            slice: (allowed / SLICES).clamp(SHORTEST_SLICE, LONGEST_SLICE),
            read: AtomicU64::new(0),
            charged: AtomicU64::new(0),
        }
    }

    /// How often a waiting thread has to read it.
    pub(crate) const fn slice(&self) -> Duration {
        self.slice
    }

    /// Real time since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Reads it: the observed time since the beginning.
    pub(crate) fn read(&self) -> Duration {
        self.read_at(nanos(self.began.elapsed()))
    }

    fn read_at(&self, now: u64) -> Duration {
        // Several threads may read at once: each gap is charged once.
        let before = self.read.fetch_max(now, Ordering::AcqRel);
        let gap = now.saturating_sub(before);
        let charge = gap.min(nanos(2 * self.slice));
        let charged = self.charged.fetch_add(charge, Ordering::AcqRel);
        Duration::from_nanos(charged.saturating_add(charge))
    }
}

/// How long a thread may wait for something, in observed time.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    time: Arc<ObservedTime>,
    until: Duration,
}

impl Patience {
    /// This long from now.
    pub(crate) fn new(allowed: Duration) -> Self {
        Self::until(&Arc::new(ObservedTime::begin(allowed)), allowed)
    }

    /// Until a stopwatch shows this time.
    pub(crate) fn until(time: &Arc<ObservedTime>, until: Duration) -> Self {
        Self {
            time: Arc::clone(time),
            until,
        }
    }

    /// The same, but at most this long from now.
    pub(crate) fn at_most(&self, allowed: Duration) -> Self {
        let until = self.time.read().saturating_add(allowed);
        Self::until(&self.time, until.min(self.until))
    }

    /// The remaining time.
    pub(crate) fn left(&self) -> Duration {
        self.until.saturating_sub(self.time.read())
    }

    /// How long to wait until the next call; `None` when the time is over.
    pub(crate) fn slice(&self) -> Option<Duration> {
        let left = self.left();
        (!left.is_zero()).then(|| left.min(self.time.slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_gap_is_charged_with_two_slices_and_a_slow_watcher_comes_to_the_end() {
        let time = ObservedTime::begin(millis(1_000));
        assert_eq!(time.slice(), millis(50));
        assert_eq!(time.read_at(60 * MS), millis(60));
        assert_eq!(
            time.read_at(3_600_000 * MS),
            millis(160),
            "stopped for an hour"
        );
        assert_eq!(time.read_at(3_600_010 * MS), millis(170));
        assert_eq!(
            time.read_at(3_600_000 * MS),
            millis(170),
            "another thread, late"
        );
        let readings = (1..).find(|n| time.read_at((3_600_010 + n * 60_000) * MS) >= millis(1_000));
        assert_eq!(readings, Some(9));
    }

    #[test]
    fn slices_suit_the_time_that_is_allowed() {
        for (allowed, slice) in [
            (Duration::ZERO, SHORTEST_SLICE),
            (millis(100), SHORTEST_SLICE),
            (millis(1_000), millis(50)),
            (Duration::from_secs(10), LONGEST_SLICE),
            (Duration::MAX, LONGEST_SLICE),
        ] {
            assert_eq!(ObservedTime::begin(allowed).slice(), slice, "{allowed:?}");
        }
    }

    #[test]
    fn patience_ends_and_a_part_of_it_ends_before() {
        let long = Patience::new(Duration::MAX);
        assert_eq!(long.slice(), Some(LONGEST_SLICE));
        assert!(long.at_most(millis(20)).slice() <= Some(millis(20)));
        assert_eq!(long.at_most(Duration::ZERO).slice(), None);
        assert_eq!(
            Patience::new(Duration::ZERO).at_most(Duration::MAX).slice(),
            None
        );
    }
}
