//! Whether, when and how often a worker is started again.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use crate::clock::Moment;
use crate::health::DeathCause;

/// When a supervised worker is started again, as in Erlang/OTP's `supervisor`: never (temporary),
/// on failure (transient) or always (permanent); at most so often in a period, then it is given up.
///
/// Between two lives it waits: exponential backoff with jitter, 100 ms at first and 30 s at most.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::Restart;
///
/// let restart = Restart::on_failure()
///     .max(5)
///     .within(Duration::from_secs(60))
///     .backoff(Duration::from_millis(200), Duration::from_secs(10));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Restart {
    when: When,
    max: u32,
    within: Duration,
    first_delay: Duration,
    longest_delay: Duration,
    jitter: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Never,
    OnFailure,
    Always,
}

impl Restart {
    const fn new(when: When) -> Self {
        Self {
            when,
            max: 5,
            within: Duration::from_secs(60),
            first_delay: Duration::from_millis(100),
            longest_delay: Duration::from_secs(30),
            jitter: 0.2,
        }
    }

    /// It is never started again.
    #[must_use]
    pub const fn never() -> Self {
        Self::new(When::Never)
    }

    /// It is started again when it panicked or failed, but not when it returned without an error.
    #[must_use]
    pub const fn on_failure() -> Self {
        Self::new(When::OnFailure)
    }

    /// It is started again however it ended, unless it was asked to stop or stopped itself.
    #[must_use]
    pub const fn always() -> Self {
        Self::new(When::Always)
    }

    /// The most restarts in the period; 5 by default. One more failure, and it is given up.
    #[must_use]
    pub const fn max(mut self, restarts: u32) -> Self {
        self.max = restarts;
        self
    }

    /// The period in which restarts are counted; 60 s by default.
    #[must_use]
    pub const fn within(mut self, period: Duration) -> Self {
        self.within = period;
        self
    }

    /// How long it waits before the first restart in the period; twice as long before each further
    /// one, but never longer than `longest`.
    #[must_use]
    pub const fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.first_delay = first;
        self.longest_delay = longest;
        self
    }

    /// The share of each wait that is left to chance, 0 to 1, so that workers that fell together do
    /// not come back together; 0.2 by default. The wait gets shorter by it, never longer.
    #[must_use]
    pub const fn jitter(mut self, share: f64) -> Self {
        // Not `clamp`: what is not a number counts as none.
        self.jitter = if share > 1.0 {
            1.0
        } else if share > 0.0 {
            share
        } else {
            0.0
        };
        self
    }

    fn delay(&self, attempt: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let delay = self
            .first_delay
            .saturating_mul(doubled)
            .min(self.longest_delay);
        let share = 1.0 - self.jitter * chance();
        Duration::try_from_secs_f64(delay.as_secs_f64() * share).map_or(delay, |it| it.min(delay))
    }
}

impl Default for Restart {
    /// [`Restart::never`].
    fn default() -> Self {
        Self::never()
    }
}

/// A number from 0 to 1. The keys of the standard library's hash tables are random enough.
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

/// How a life ended, as far as restarting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was asked to stop, or stopped itself.
    Stopped,
    /// It returned without an error.
    Returned,
    /// It panicked or failed.
    Failed,
}

impl From<&DeathCause> for Fate {
    fn from(cause: &DeathCause) -> Self {
        match cause {
            DeathCause::Exited => Self::Returned,
            _ => Self::Failed,
        }
    }
}

/// What is to be done after a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    LeaveIt,
    Restart { attempt: u32, delay: Duration },
    GiveUp { restarts: u32 },
}

/// A policy at work: it remembers the restarts of the period.
#[derive(Debug)]
pub(super) struct Restarts {
    policy: Restart,
    recent: VecDeque<Moment>,
}

impl Restarts {
    pub(super) const fn new(policy: Restart) -> Self {
        Self {
            policy,
            recent: VecDeque::new(),
        }
    }

    pub(super) fn decide(&mut self, fate: Fate, now: Moment) -> Decision {
        let wanted = match (self.policy.when, fate) {
            (When::Never, _) | (_, Fate::Stopped) | (When::OnFailure, Fate::Returned) => false,
            (When::OnFailure | When::Always, Fate::Failed) | (When::Always, Fate::Returned) => true,
        };
        if !wanted {
            return Decision::LeaveIt;
        }
        while self
            .recent
            .front()
            .is_some_and(|at| now.since(*at) > self.policy.within)
        {
            self.recent.pop_front();
        }
        let restarts = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if restarts >= self.policy.max {
            return Decision::GiveUp { restarts };
        }
        self.recent.push_back(now);
        let attempt = restarts + 1;
        Decision::Restart {
            attempt,
            delay: self.policy.delay(attempt),
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
    fn who_is_started_again() {
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
            assert_eq!(restarts(policy.clone(), Fate::Stopped), stopped);
            assert_eq!(restarts(policy.clone(), Fate::Returned), returned);
            assert_eq!(restarts(policy, Fate::Failed), failed);
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
            .map(|_| match restarts.decide(Fate::Failed, at(0)) {
                Decision::Restart { delay, .. } => delay.as_secs(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(delays[..5], [1, 2, 4, 5, 5]);
        assert_eq!(delays[39], 5);
    }

    #[test]
    fn chance_shortens_the_wait_by_its_share() {
        let policy = Restart::on_failure().jitter(0.5);
        let delays: Vec<_> = (0..200).map(|_| policy.delay(1)).collect();
        let first = policy.first_delay;
        assert!(
            delays
                .iter()
                .all(|delay| (first / 2..=first).contains(delay))
        );
        assert!(delays.iter().any(|delay| *delay != delays[0]));
        for odd in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            assert_eq!(Restart::always().jitter(odd).delay(1), first);
        }
        assert!(Restart::always().jitter(f64::INFINITY).delay(1) <= first);
    }

    #[test]
    fn too_many_in_the_period_and_it_is_given_up() {
        let mut restarts =
            Restarts::new(Restart::on_failure().max(2).within(Duration::from_secs(60)));
        let mut decide = |seconds| restarts.decide(Fate::Failed, at(seconds));
        assert!(matches!(decide(0), Decision::Restart { attempt: 1, .. }));
        assert!(matches!(decide(30), Decision::Restart { attempt: 2, .. }));
        assert_eq!(decide(60), Decision::GiveUp { restarts: 2 });
        assert!(
            matches!(decide(61), Decision::Restart { attempt: 2, .. }),
            "the first is more than a period ago"
        );
    }

    #[test]
    fn absurd_policies_do_no_harm() {
        let policy = Restart::always()
            .max(u32::MAX)
            .within(Duration::MAX)
            .backoff(Duration::MAX, Duration::MAX);
        assert!(policy.delay(u32::MAX) > Duration::ZERO);
        assert_eq!(policy.jitter(0.0).delay(1), Duration::MAX);
        let mut none = Restarts::new(Restart::always().max(0).within(Duration::ZERO));
        assert_eq!(
            none.decide(Fate::Failed, at(0)),
            Decision::GiveUp { restarts: 0 }
        );
    }
}
