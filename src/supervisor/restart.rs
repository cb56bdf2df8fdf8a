//! Whether, when and how often a worker is started again.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Moment;
use crate::health::DeathCause;
use crate::sync::random::random;

/// When a supervised worker is started again, as in Erlang/OTP's `supervisor`: never (temporary),
/// on failure (transient) or always (permanent); at most [`max`](Self::max) times, then it is given
/// up.
///
/// Between two lives the worker waits: exponential backoff with jitter, 100 ms at first and 30 s at
/// most.
///
/// # What counts
/// There are two ways to count restarts. Each failure that would lead to a restart is handled as
/// follows, where *n* is the count before it: if *n* is [`max`](Self::max), the worker is given up;
/// otherwise this is restart *n* + 1, and the wait before it is
/// min(first × 2<sup>*n*</sup>, longest), shortened by the [`jitter`](Self::jitter).
///
/// * **Restarts in a period** (the default): *n* is the number of restarts that were decided on in
///   the last [`within`](Self::within). The waits belong to the period: a worker that waits for long
///   is restarted seldom, so older restarts leave the period and *n* falls. If the waits alone are
///   longer than the period allows, a worker that fails at once is restarted for ever:
///   `max(5).within(60 s).backoff(5 s, 300 s)` waits 5, 10, 20, 40 s, then 20
///   to 40 s again and again, and never gives up.
/// * **Consecutive failures**: with [`reset_after`](Self::reset_after), *n* is the number of restarts
///   since the worker was last well for that long. The waits do not matter. This suits long waits.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::Restart;
///
/// // For work that fails rarely: five failures in a minute are too many.
/// let strict = Restart::on_failure()
///     .max(5)
///     .within(Duration::from_secs(60))
///     .backoff(Duration::from_millis(200), Duration::from_secs(1));
/// // For work that depends on a server that may be away for an hour: 5, 10, 20, 40 s and so on up to
/// // 5 min, and given up after the 15th restart in a row.
/// let patient = Restart::on_failure()
///     .max(15)
///     .reset_after(Duration::from_secs(600))
///     .backoff(Duration::from_secs(5), Duration::from_secs(300));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Restart {
    when: When,
    max: u32,
    within: Duration,
    reset_after: Option<Duration>,
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
            reset_after: None,
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

    /// The most restarts in the [period](Self::within) or, with [`reset_after`](Self::reset_after),
    /// in a row; 5 by default. One more failure, and the worker is given up.
    #[must_use]
    pub const fn max(mut self, restarts: u32) -> Self {
        self.max = restarts;
        self
    }

    /// The period in which restarts are counted; 60 s by default. It has to be longer than the waits
    /// of [`max`](Self::max) restarts, or the worker is never given up.
    ///
    /// With [`reset_after`](Self::reset_after) it has no effect.
    #[must_use]
    pub const fn within(mut self, period: Duration) -> Self {
        self.within = period;
        self
    }

    /// Counts failures as consecutive until the worker was well for this long: `max` then limits the
    /// restarts in a row instead of those in a period, and the backoff grows with each of them.
    ///
    /// A life was well for as long as it took, by the registry's clock, without the time in which the
    /// process was suspended or stopped. A life was not well if it never made any progress within its
    /// start-up grace, or was stalled or stale at its end. The wait before it does not belong to it.
    /// A life that is shorter than this, however often, is one more failure.
    #[must_use]
    pub const fn reset_after(mut self, well: Duration) -> Self {
        self.reset_after = Some(well);
        self
    }

    /// How long the worker waits before the first restart that counts; twice as long before each
    /// further one, but never longer than `longest`. See [what counts](Self#what-counts).
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

/// A number from 0 to 1.
fn chance() -> f64 {
    let bits = random() >> 11;
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

/// A policy at work: it remembers the restarts that count.
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

    /// Whether a worker that returned without an error is not started again.
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
    pub(super) fn decide(&mut self, fate: Fate, now: Moment) -> Decision {
        let wanted = match (self.policy.when, fate) {
            (When::Never, _) | (_, Fate::Stopped) | (When::OnFailure, Fate::Returned) => false,
            (When::OnFailure | When::Always, Fate::Failed) | (When::Always, Fate::Returned) => true,
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

/// The restarts of the period. Up to [`Recent::EXACT`] each is kept; beyond, those that are close to
/// each other are kept as one, and leave the period together with the latest of them.
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

    /// How many there are in the period that ends now.
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

    /// What becomes of a worker each of whose lives is well for so many seconds and then fails.
    fn history(policy: Restart, lives: impl IntoIterator<Item = u64>) -> Vec<Option<u64>> {
        let mut restarts = Restarts::new(policy.jitter(0.0));
        let mut now = Moment::ZERO;
        let mut waits = Vec::new();
        for life in lives {
            restarts.life_begins(now);
            now = now.after(Duration::from_secs(life));
            restarts.life_ends(now, true);
            match restarts.decide(Fate::Failed, now) {
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
    fn only_a_life_that_was_well_for_long_enough_ends_the_row() {
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
        // The period has no say, even if it is the longer one.
        let policy = policy
            .reset_after(Duration::from_secs(1))
            .within(Duration::MAX);
        assert_eq!(history(policy, [2; 50]), [Some(5); 50]);
    }

    #[test]
    fn a_life_that_was_not_well_does_not_end_the_row() {
        let policy = slow(9).reset_after(Duration::from_secs(60));
        let mut restarts = Restarts::new(policy.jitter(0.0));
        for attempt in 1..=3 {
            restarts.life_ends(at(attempt * 1_000), false);
            let decision = restarts.decide(Fate::Failed, at(attempt * 1_000));
            let Decision::Restart { attempt: told, .. } = decision else {
                panic!("{decision:?}");
            };
            assert_eq!(u64::from(told), attempt);
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
                    restarts.decide(Fate::Failed, at(second)),
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
                restarts.decide(Fate::Failed, at(second)),
                Decision::Restart { .. }
            ));
        }
        assert_eq!(
            restarts.decide(Fate::Failed, at(256)),
            Decision::GiveUp { restarts: 256 }
        );
        assert!(matches!(
            restarts.decide(Fate::Failed, at(257)),
            Decision::Restart { attempt: 256, .. }
        ));
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
