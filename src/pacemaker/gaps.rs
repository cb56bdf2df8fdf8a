//! Time that was not observed, reported once an episode.

use std::time::Duration;

use crate::clock::Moment;

/// An episode is over when the pacemaker has looked in time for so long.
const RECOVERY: Duration = Duration::from_secs(1);
/// One that lasts longer is reported again.
const LONG: Duration = Duration::from_secs(60);

/// The episode of late looks that goes on.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    episode: Option<Episode>,
}

#[derive(Clone, Copy, Debug)]
struct Episode {
    reported_at: Moment,
    last_gap_at: Moment,
    /// Not reported yet.
    forgiven: Duration,
}

impl Gaps {
    /// Takes in what a tick forgave. Returns what is to be reported now.
    pub(super) fn note(&mut self, forgiven: Duration, now: Moment) -> Option<Duration> {
        let Some(episode) = &mut self.episode else {
            if forgiven.is_zero() {
                return None;
            }
            self.episode = Some(Episode {
                reported_at: now,
                last_gap_at: now,
                forgiven: Duration::ZERO,
            });
            return Some(forgiven);
        };
        if !forgiven.is_zero() {
            episode.last_gap_at = now;
            episode.forgiven += forgiven;
        }
        let is_over = now.since(episode.last_gap_at) >= RECOVERY;
        if !is_over && now.since(episode.reported_at) < LONG {
            return None;
        }
        let rest = std::mem::take(&mut episode.forgiven);
        episode.reported_at = now;
        if is_over {
            self.episode = None;
        }
        (!rest.is_zero()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn an_episode_is_reported_when_it_begins_and_when_it_ends() {
        let mut gaps = Gaps::default();
        let gap = Duration::from_millis(80);
        assert_eq!(gaps.note(Duration::ZERO, at(0)), None);
        assert_eq!(gaps.note(gap, at(100)), Some(gap), "the first at once");
        for n in 2..=20 {
            assert_eq!(gaps.note(gap, at(100 * n)), None);
        }
        assert_eq!(gaps.note(Duration::ZERO, at(2_500)), None);
        assert_eq!(gaps.note(Duration::ZERO, at(3_000)), Some(19 * gap));
        assert_eq!(gaps.note(Duration::ZERO, at(9_000)), None);
        assert_eq!(gaps.note(gap, at(9_100)), Some(gap), "another episode");
        assert_eq!(gaps.note(Duration::ZERO, at(20_000)), None);
    }

    #[test]
    fn a_long_episode_is_reported_again_and_nothing_is_left_out() {
        let mut gaps = Gaps::default();
        let gap = Duration::from_millis(80);
        let reports: Vec<_> = (1..=6_000)
            .filter_map(|n| gaps.note(gap, at(100 * n)))
            .collect();
        assert!(reports.len() <= 11, "{}", reports.len());
        let rest = gaps.note(Duration::ZERO, at(700_000)).unwrap();
        assert_eq!(reports.iter().sum::<Duration>() + rest, 6_000 * gap);
    }
}
