//! Reports unobserved time, once an episode of late ticks.

use std::time::Duration;

use crate::clock::Moment;

/// So many ticks in time end an episode.
const RECOVERED: u32 = 3;
/// The next episode is reported this long after the last report at the earliest.
const SPACING: Duration = Duration::from_secs(1);
/// An episode that continues is reported again after this time.
const LONG: Duration = Duration::from_secs(60);

/// The present episode of late ticks, if there is one.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// An episode is going on.
    late: bool,
    /// Ticks in time since the last late one.
    in_time: u32,
    reported_at: Option<Moment>,
    unreported: Duration,
}

impl Gaps {
    /// Notes what a tick forgave. Returns what is to be reported now.
    pub(super) fn note(&mut self, forgiven: Duration, now: Moment) -> Option<Duration> {
        let goes_on = self.late;
        if forgiven.is_zero() {
            self.in_time = self.in_time.saturating_add(1);
            self.late = self.late && self.in_time < RECOVERED;
        } else {
            self.in_time = 0;
            self.late = true;
            self.unreported += forgiven;
        }
        let spacing = if goes_on && self.late { LONG } else { SPACING };
        let due = self
            .reported_at
            .is_none_or(|reported| now.since(reported) >= spacing);
        if self.unreported.is_zero() || !due {
            return None;
        }
        self.reported_at = Some(now);
        Some(std::mem::take(&mut self.unreported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(80);

    fn at(millis: u64) -> Moment {
        Moment::ZERO.after(Duration::from_millis(millis))
    }

    /// Ticks in time, every 10 ms from this moment on. Returns what was reported meanwhile.
    fn recover(gaps: &mut Gaps, from: u64, ticks: u64) -> Duration {
        let reports = (1..=ticks).filter_map(|n| gaps.note(Duration::ZERO, at(from + 10 * n)));
        reports.sum()
    }

    #[test]
    fn an_episode_is_reported_when_it_begins_and_when_it_ends() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.note(Duration::ZERO, at(0)), None);
        assert_eq!(gaps.note(GAP, at(100)), Some(GAP), "the first at once");
        for n in 2..=200 {
            assert_eq!(gaps.note(GAP, at(100 * n)), None);
        }
        assert_eq!(recover(&mut gaps, 20_000, 5), 199 * GAP);
        assert_eq!(recover(&mut gaps, 30_000, 5), Duration::ZERO);
    }

    #[test]
    fn each_of_several_stops_is_reported_at_once() {
        let mut gaps = Gaps::default();
        let stop = Duration::from_secs(3);
        for n in 1..=3 {
            let from = n * 3_500;
            assert_eq!(gaps.note(stop, at(from)), Some(stop));
            assert_eq!(recover(&mut gaps, from, 10), Duration::ZERO);
        }
    }

    #[test]
    fn repeated_short_gaps_are_reported_once_a_second_and_none_is_lost() {
        let mut gaps = Gaps::default();
        let mut reports = Vec::new();
        for n in 1..=1_000 {
            reports.extend(gaps.note(GAP, at(100 * n)));
            let rest = recover(&mut gaps, 100 * n, 4);
            reports.extend((!rest.is_zero()).then_some(rest));
        }
        assert!(reports.len() <= 101, "{}", reports.len());
        let rest = recover(&mut gaps, 200_000, 4);
        assert_eq!(reports.iter().sum::<Duration>() + rest, 1_000 * GAP);
    }

    #[test]
    fn a_long_episode_is_reported_again() {
        let mut gaps = Gaps::default();
        let reports = (1..=6_000).filter_map(|n| gaps.note(GAP, at(100 * n)));
        assert!((9..=11).contains(&reports.count()));
    }
}
