//! Too fast: steps of progress, counted in cycles.

use std::fmt;
use std::time::Duration;

use crate::clock::{Moment, nanos};
use crate::sync::printable::Age;

/// A number of steps in a time, as for [`Builder::at_most`](crate::Builder::at_most).
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::Rate;
///
/// assert_eq!(Rate::per_second(100), Rate::new(100, Duration::from_secs(1)));
/// assert_eq!(Rate::per_minute(3).to_string(), "3 in 1 min");
/// assert_eq!(Rate::new(300, Duration::from_millis(1500)).per_second_f64(), 200.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    pub(crate) count: u64,
    pub(crate) per: Duration,
}

impl Rate {
    /// So many steps in a time.
    #[must_use]
    pub const fn new(count: u64, per: Duration) -> Self {
        Self { count, per }
    }

    /// So many steps in a second.
    #[must_use]
    pub const fn per_second(count: u64) -> Self {
        Self::new(count, Duration::from_secs(1))
    }

    /// So many steps in a minute.
    #[must_use]
    pub const fn per_minute(count: u64) -> Self {
        Self::new(count, Duration::from_secs(60))
    }

    /// So many steps in an hour.
    #[must_use]
    pub const fn per_hour(count: u64) -> Self {
        Self::new(count, Duration::from_secs(3_600))
    }

    /// The number of steps.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.count
    }

    /// The time that they take.
    #[must_use]
    pub const fn per(self) -> Duration {
        self.per
    }

    /// Steps in a second; 0 if the time is zero.
    #[must_use]
    pub fn per_second_f64(self) -> f64 {
        if self.per.is_zero() {
            return 0.0;
        }
        self.count as f64 / self.per.as_secs_f64()
    }

    /// Whether it is higher than another one.
    fn exceeds(self, other: Self) -> bool {
        let product = |one: Self, other: Self| u128::from(one.count) * u128::from(nanos(other.per));
        product(self, other) > product(other, self)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.count, Age(self.per))
    }
}

/// As a worker's reason says it.
pub(crate) fn racing_text(rate: Rate, at_most: Rate) -> String {
    format!("racing: {rate}, at most {at_most} allowed")
}

/// The shortest and the longest cycle.
const CYCLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// An episode begins after so many fast cycles in a row, and ends after so many others.
const CYCLES: u32 = 3;

/// Watches the rate of one worker in cycles, as AUTOSAR's alive supervision does.
#[derive(Clone, Debug)]
pub(crate) struct RateWatch {
    /// The present cycle began at this time, with so many steps.
    cycle: Count,
    /// The present series of fast cycles, or in an episode of others, began so.
    series: Count,
    /// Cycles of the series that are over.
    cycles: u32,
    racing: Option<Racing>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    at: Moment,
    steps: u64,
}

impl Count {
    /// The rate from another count to this one.
    fn rate_since(self, other: Self) -> Rate {
        Rate::new(
            self.steps.saturating_sub(other.steps),
            self.at.since(other.at),
        )
    }
}

/// An episode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Racing {
    pub since: Moment,
    /// That of the last cycles that were too fast.
    pub rate: Rate,
}

/// What a new count changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RateChange {
    Began(Rate),
    /// After so long.
    Ended(Duration),
}

impl RateWatch {
    pub(crate) const fn new(now: Moment, steps: u64) -> Self {
        let count = Count { at: now, steps };
        Self {
            cycle: count,
            series: count,
            cycles: 0,
            racing: None,
        }
    }

    /// The present episode.
    pub(crate) const fn racing(&self) -> Option<Racing> {
        self.racing
    }

    /// The time between the last count and this one was not observed in full: it is not judged.
    pub(crate) fn skip(&mut self, now: Moment, steps: u64) {
        let count = Count { at: now, steps };
        (self.cycle, self.series, self.cycles) = (count, count, 0);
    }

    /// When the present cycle is over, if that may end an episode.
    pub(crate) fn due(&self, at_most: Rate) -> Option<Moment> {
        self.racing.map(|_| self.cycle.at.after(cycle(at_most)))
    }

    /// Takes the steps so far.
    pub(crate) fn observe(&mut self, at_most: Rate, now: Moment, steps: u64) -> Option<RateChange> {
        let count = Count { at: now, steps };
        if now.since(self.cycle.at) < cycle(at_most) {
            return None;
        }
        let is_fast = count.rate_since(self.cycle).exceeds(at_most);
        if is_fast == self.racing.is_some() {
            // The series is broken.
            (self.series, self.cycles) = (count, 0);
            if let Some(racing) = &mut self.racing {
                racing.rate = count.rate_since(self.cycle);
            }
        } else {
            self.cycles += 1;
        }
        self.cycle = count;
        if self.cycles < CYCLES {
            return None;
        }
        let rate = count.rate_since(self.series);
        let change = match self.racing {
            None if rate.count <= at_most.count => return None,
            None => {
                self.racing = Some(Racing { since: now, rate });
                RateChange::Began(rate)
            }
            Some(racing) => {
                self.racing = None;
                RateChange::Ended(now.since(racing.since))
            }
        };
        (self.series, self.cycles) = (count, 0);
        Some(change)
    }
}

fn cycle(at_most: Rate) -> Duration {
    at_most.per.clamp(CYCLE.0, CYCLE.1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.after(Duration::from_millis(millis))
    }

    /// Counts every 100 ms: so many steps a second.
    fn run(watch: &mut RateWatch, at_most: Rate, seconds: &[u64]) -> Vec<(u64, RateChange)> {
        let (mut steps, mut changes) = (0, Vec::new());
        for tick in 1..=10 * seconds.len() as u64 {
            steps += seconds[(tick as usize - 1) / 10] / 10;
            let change = watch.observe(at_most, at(100 * tick), steps);
            changes.extend(change.map(|change| (100 * tick, change)));
        }
        changes
    }

    #[test]
    fn an_episode_begins_after_three_fast_cycles_and_ends_after_three_others() {
        let mut watch = RateWatch::new(Moment::ZERO, 0);
        let mut seconds = vec![100; 5];
        seconds.extend([5_000; 4]);
        // It does not flap.
        seconds.extend([100, 100, 5_000, 100, 5_000]);
        seconds.extend([0; 4]);
        let changes = run(&mut watch, Rate::per_second(100), &seconds);
        let rate = Rate::new(15_000, Duration::from_secs(3));
        assert_eq!(
            changes,
            [
                (8_000, RateChange::Began(rate)),
                (17_000, RateChange::Ended(Duration::from_secs(9)))
            ]
        );
    }

    #[test]
    fn a_burst_is_no_episode() {
        let mut watch = RateWatch::new(Moment::ZERO, 0);
        let seconds = [90, 50_000, 50_000, 90, 50_000, 0, 100, 100];
        assert_eq!(run(&mut watch, Rate::per_second(100), &seconds), []);
    }

    #[test]
    fn a_slow_rate_is_not_exceeded_by_fewer_steps_than_it_allows() {
        let at_most = Rate::per_hour(600);
        let mut watch = RateWatch::new(Moment::ZERO, 0);
        // 10 s a cycle: many of them are too fast, but there are 600 steps only.
        let mut seconds = vec![10; 60];
        seconds.extend([0; 60]);
        assert_eq!(run(&mut watch, at_most, &seconds), []);
        let mut watch = RateWatch::new(Moment::ZERO, 0);
        let changes = run(&mut watch, at_most, &[50; 60]);
        let rate = Rate::new(1_500, Duration::from_secs(30));
        assert_eq!(changes, [(30_000, RateChange::Began(rate))]);
    }

    #[test]
    fn time_that_was_not_observed_is_not_judged() {
        let at_most = Rate::per_second(100);
        let mut watch = RateWatch::new(Moment::ZERO, 0);
        assert_eq!(watch.observe(at_most, at(1_000), 1_000), None);
        assert_eq!(watch.observe(at_most, at(2_000), 2_000), None);
        watch.skip(at(2_100), 900_000);
        for second in 3..6 {
            assert_eq!(
                watch.observe(at_most, at(1_000 * second + 100), 900_000),
                None
            );
        }
    }

    #[test]
    fn a_counter_that_goes_back_or_wraps_is_not_fast() {
        let at_most = Rate::new(1, Duration::MAX);
        let mut watch = RateWatch::new(Moment::ZERO, u64::MAX);
        for second in 1..10 {
            assert_eq!(watch.observe(at_most, at(10_000 * second), 5), None);
        }
        let most = Rate::new(u64::MAX, Duration::from_secs(1));
        assert!(!most.exceeds(most) && !Rate::new(0, Duration::ZERO).exceeds(most));
    }
}
