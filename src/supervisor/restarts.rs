//! Whether and when a worker is restarted, by its policy and its history.

use std::collections::VecDeque;
use std::time::Duration;

use super::restart::{Restart, When};
use crate::clock::Moment;
use crate::health::DeathCause;

/// How a life ended, as far as restarting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LifeEnd {
    /// It was asked to stop, or stopped itself.
    Stopped,
    /// It returned without an error.
    Returned,
    /// It panicked or failed.
    Failed,
}

impl From<&DeathCause> for LifeEnd {
    fn from(cause: &DeathCause) -> Self {
        match cause {
            DeathCause::Exited => Self::Returned,
            _ => Self::Failed,
        }
    }
}

/// What follows the end of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    LeaveIt,
    Restart { attempt: u32, delay: Duration },
    GiveUp { restarts: u32 },
}

/// Applies a policy to one worker: counts its restarts.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: Restart,
    recent: Recent,
    in_a_row: u32,
    life_began: Moment,
}

impl Restarts {
    pub(super) const fn new(policy: Restart) -> Self {
        Self {
            policy,
            recent: Recent(VecDeque::new()),
            in_a_row: 0,
            life_began: Moment::ZERO,
        }
    }

    /// Whether a worker that returned without an error is not restarted.
    pub(super) const fn leaves_returned(&self) -> bool {
        !matches!(self.policy.when, When::Always)
    }

    /// A life begins, by the registry's time line.
    pub(super) const fn life_begins(&mut self, now: Moment) {
        self.life_began = now;
    }

    /// A life ends, by the registry's time line. `well`: it had not been convicted.
    pub(super) fn life_ends(&mut self, now: Moment, well: bool) {
        let took = now.since(self.life_began);
        if well && self.policy.reset_after.is_some_and(|long| took >= long) {
            self.in_a_row = 0;
        }
    }

    /// Decides by the clock's time.
    pub(super) fn decide(&mut self, end: LifeEnd, now: Moment) -> Decision {
        let wanted = match (self.policy.when, end) {
            (When::Never, _) | (_, LifeEnd::Stopped) | (When::OnFailure, LifeEnd::Returned) => {
                false
            }
            (When::OnFailure | When::Always, LifeEnd::Failed)
            | (When::Always, LifeEnd::Returned) => true,
        };
        if !wanted {
            return Decision::LeaveIt;
        }
        let consecutive = self.policy.reset_after.is_some();
        let restarts = if consecutive {
            self.in_a_row
        } else {
            self.recent.count(now, self.policy.within)
        };
        if restarts >= self.policy.max {
            return Decision::GiveUp { restarts };
        }
        let attempt = restarts.saturating_add(1);
        if consecutive {
            self.in_a_row = attempt;
        } else {
            self.recent.add(now, self.policy.within);
        }
        Decision::Restart {
            attempt,
            delay: self.policy.delay(attempt),
        }
    }
}

/// The restarts of the period. Up to [`Recent::EXACT`] are kept one by one; beyond, restarts that are close
/// to each other form a group, which leaves the period with its latest restart.
#[derive(Debug)]
struct Recent(VecDeque<Group>);

#[derive(Debug)]
struct Group {
    first: Moment,
    last: Moment,
    restarts: u32,
}

impl Recent {
    const EXACT: usize = 256;

    /// The number of restarts in the period that ends now.
    fn count(&mut self, now: Moment, period: Duration) -> u32 {
        let over = |group: &Group| now.since(group.last) > period;
        while self.0.front().is_some_and(over) {
            self.0.pop_front();
        }
        let restarts = self.0.iter().map(|group| group.restarts);
        restarts.fold(0, u32::saturating_add)
    }

    fn add(&mut self, now: Moment, period: Duration) {
        let close = period / (Self::EXACT as u32);
        let full = self.0.len() >= Self::EXACT;
        match self.0.back_mut() {
            Some(group) if full && now.since(group.first) <= close => {
                group.last = now;
                group.restarts = group.restarts.saturating_add(1);
            }
            _ => self.0.push_back(Group {
                first: now,
                last: now,
                restarts: 1,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn the_policy_and_the_end_decide_on_a_restart() {
        let restarts = |policy: Restart, fate| {
            matches!(
                Restarts::new(policy).decide(fate, at(0)),
                Decision::Restart { .. }
            )
        };
        for (policy, stopped, returned, failed) in [
            (Restart::never(), false, false, false),
            (Restart::on_failure(), false, false, true),
            (Restart::always(), false, true, true),
        ] {
            assert_eq!(restarts(policy.clone(), LifeEnd::Stopped), stopped);
            assert_eq!(restarts(policy.clone(), LifeEnd::Returned), returned);
            assert_eq!(restarts(policy, LifeEnd::Failed), failed);
        }
    }

    #[test]
    fn the_wait_doubles_to_its_limit() {
        let policy = Restart::on_failure()
            .max(100)
            .jitter(0.0)
            .backoff(Duration::from_secs(1), Duration::from_secs(5));
        let mut restarts = Restarts::new(policy);
        let delays: Vec<_> = (0..40)
            .map(|_| match restarts.decide(LifeEnd::Failed, at(0)) {
                Decision::Restart { delay, .. } => delay.as_secs(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(delays[..5], [1, 2, 4, 5, 5]);
        assert_eq!(delays[39], 5);
    }

    #[test]
    fn a_worker_with_too_many_restarts_in_the_period_is_given_up() {
        let mut restarts =
            Restarts::new(Restart::on_failure().max(2).within(Duration::from_secs(60)));
        let mut decide = |seconds| restarts.decide(LifeEnd::Failed, at(seconds));
        assert!(matches!(decide(0), Decision::Restart { attempt: 1, .. }));
        assert!(matches!(decide(30), Decision::Restart { attempt: 2, .. }));
        assert_eq!(decide(60), Decision::GiveUp { restarts: 2 });
        assert!(
            matches!(decide(61), Decision::Restart { attempt: 2, .. }),
            "the first is more than a period ago"
        );
    }

    /// The waits of a worker whose lives are well for so many seconds and then fail; `None`: given up.
    fn history(policy: Restart, lives: impl IntoIterator<Item = u64>) -> Vec<Option<u64>> {
        let mut restarts = Restarts::new(policy.jitter(0.0));
        let mut now = Moment::ZERO;
        let mut waits = Vec::new();
        for life in lives {
            restarts.life_begins(now);
            now = now.after(Duration::from_secs(life));
            restarts.life_ends(now, true);
            match restarts.decide(LifeEnd::Failed, now) {
                Decision::Restart { delay, .. } => {
                    now = now.after(delay);
                    waits.push(Some(delay.as_secs()));
                }
                _ => {
                    waits.push(None);
                    break;
                }
            }
        }
        waits
    }

    fn slow(max: u32) -> Restart {
        Restart::on_failure()
            .max(max)
            .within(Duration::from_secs(60))
            .backoff(Duration::from_secs(5), Duration::from_secs(300))
    }

    #[test]
    fn failures_in_a_row_are_counted_however_long_the_waits_are() {
        let policy = slow(8).reset_after(Duration::from_secs(600));
        let waits = history(policy, [0; 20]);
        let expected = [5, 10, 20, 40, 80, 160, 300, 300].map(Some);
        assert_eq!(waits[..8], expected);
        assert_eq!(waits[8..], [None]);
    }

    #[test]
    fn only_a_life_that_was_well_for_long_enough_resets_the_count() {
        let policy = slow(3).reset_after(Duration::from_secs(600));
        assert_eq!(
            history(policy.clone(), [0, 0, 600, 0, 0, 0]),
            [Some(5), Some(10), Some(5), Some(10), Some(20), None]
        );
        // Short of it, however often, and however long all of them together.
        assert_eq!(
            history(policy.clone(), [599; 9]),
            [Some(5), Some(10), Some(20), None]
        );
        // The period has no effect, even if it is longer.
        let policy = policy
            .reset_after(Duration::from_secs(1))
            .within(Duration::MAX);
        assert_eq!(history(policy, [2; 50]), [Some(5); 50]);
    }

    #[test]
    fn a_life_that_was_not_well_does_not_reset_the_count() {
        let policy = slow(9).reset_after(Duration::from_secs(60));
        let mut restarts = Restarts::new(policy.jitter(0.0));
        for attempt in 1..=3 {
            restarts.life_ends(at(attempt * 1_000), false);
            let decision = restarts.decide(LifeEnd::Failed, at(attempt * 1_000));
            let Decision::Restart {
                attempt: decided, ..
            } = decision
            else {
                panic!("{decision:?}");
            };
            assert_eq!(u64::from(decided), attempt);
        }
    }

    #[test]
    fn waits_that_are_longer_than_the_period_are_as_documented() {
        let waits = history(slow(5), [0; 1_000]);
        assert_eq!(waits[..4], [5, 10, 20, 40].map(Some));
        let later = &waits[4..];
        assert!(later.iter().all(|wait| matches!(wait, Some(20 | 40))));
    }

    #[test]
    fn memory_is_bounded_whatever_the_policy() {
        for period in [Duration::MAX, Duration::from_secs(3600), Duration::ZERO] {
            let policy = Restart::always().max(u32::MAX).within(period);
            let mut restarts = Restarts::new(policy);
            for second in 0..100_000 {
                assert!(matches!(
                    restarts.decide(LifeEnd::Failed, at(second)),
                    Decision::Restart { .. }
                ));
            }
            let kept = restarts.recent.0.len();
            assert!(kept <= 2 * Recent::EXACT + 1, "{kept} of {period:?}");
            let now = at(100_000);
            let counted = u64::from(restarts.recent.count(now, period));
            let real = period.as_secs().min(100_000);
            assert!(counted >= real, "{counted} of {period:?}");
            assert!(counted <= real + real / 128 + 1, "{counted} of {period:?}");
        }
    }

    #[test]
    fn many_are_counted_exactly() {
        let policy = Restart::always().max(256).within(Duration::from_secs(256));
        let mut restarts = Restarts::new(policy);
        for second in 0..256 {
            assert!(matches!(
                restarts.decide(LifeEnd::Failed, at(second)),
                Decision::Restart { .. }
            ));
        }
        assert_eq!(
            restarts.decide(LifeEnd::Failed, at(256)),
            Decision::GiveUp { restarts: 256 }
        );
        assert!(matches!(
            restarts.decide(LifeEnd::Failed, at(257)),
            Decision::Restart { attempt: 256, .. }
        ));
    }

    #[test]
    fn extreme_policies_do_not_overflow() {
        let policy = Restart::always()
            .max(u32::MAX)
            .within(Duration::MAX)
            .backoff(Duration::MAX, Duration::MAX);
        assert!(policy.delay(u32::MAX) > Duration::ZERO);
        assert_eq!(policy.jitter(0.0).delay(1), Duration::MAX);
        let mut none = Restarts::new(Restart::always().max(0).within(Duration::ZERO));
        assert_eq!(
            none.decide(LifeEnd::Failed, at(0)),
            Decision::GiveUp { restarts: 0 }
        );
    }
}
