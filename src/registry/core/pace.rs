//! The pace of workers: what is learned of their silences, by type, and how fast each makes progress.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::{Moment, nanos};
use crate::health::{
    Activity, Learn, Learned, Learner, Limits, Rate, RateChange, RateWatch, Signs,
};
use crate::registry::core::timeline::ObservedNow;

/// Types that are remembered although no worker has them any more.
const MOST_UNUSED: usize = 1_000;

/// How the pace of a worker is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PaceSpec {
    pub learn: Option<Learn>,
    pub at_most: Option<Rate>,
}

impl PaceSpec {
    pub(crate) const fn is_watched(&self) -> bool {
        self.learn.is_some() || self.at_most.is_some()
    }
}

/// What was learned of the workers of one type, which share it.
#[derive(Debug)]
pub(crate) struct LearnedLimits {
    learn: Learn,
    /// Of work with and without a named task.
    learners: Mutex<[Learner; 2]>,
    /// The limits in force, in nanoseconds.
    allowed: [AtomicU64; 2],
}

impl LearnedLimits {
    fn new(learn: Learn) -> Self {
        let ceiling = nanos(learn.ceiling);
        Self {
            learn,
            learners: Mutex::new([Learner::new(learn), Learner::new(learn)]),
            allowed: [AtomicU64::new(ceiling), AtomicU64::new(ceiling)],
        }
    }

    /// Limits with those that were learned.
    #[inline]
    pub(super) fn apply(&self, limits: Limits) -> Limits {
        let [active, processing] = &self.allowed;
        limits
            .shortened(Activity::Active, active.load(Ordering::Relaxed))
            .shortened(Activity::Processing, processing.load(Ordering::Relaxed))
    }

    /// Learns from a silence. Returns whether the limit got shorter.
    fn observe(&self, activity: Activity, from: Moment, to: Moment) -> bool {
        let mut learners = self.learners.lock();
        let place = place(activity);
        let learner = &mut learners[place];
        learner.observe(from, to);
        let allowed = learner.allowed_nanos();
        self.allowed[place].swap(allowed, Ordering::Relaxed) > allowed
    }

    /// What was learned of this activity; of an idle worker, of the one that was seen more often.
    pub(crate) fn learned(&self, activity: Activity) -> Learned {
        let learners = self.learners.lock();
        let [active, processing] = [learners[0].learned(), learners[1].learned()];
        match activity {
            Activity::Active => active,
            Activity::Idle if active.silences > processing.silences => active,
            Activity::Idle | Activity::Processing => processing,
        }
    }

    /// Forgets all.
    fn reset(&self) {
        let mut learners = self.learners.lock();
        for (learner, allowed) in learners.iter_mut().zip(&self.allowed) {
            *learner = Learner::new(self.learn);
            allowed.store(learner.allowed_nanos(), Ordering::Relaxed);
        }
    }
}

const fn place(activity: Activity) -> usize {
    matches!(activity, Activity::Processing) as usize
}

/// What was learned, by type.
#[derive(Debug, Default)]
pub(super) struct LearnedByType {
    by_type: HashMap<(Box<str>, Learn), Arc<LearnedLimits>>,
    /// The number of types at which unused ones are removed.
    clean_at: usize,
}

impl LearnedByType {
    /// What the workers of this type share.
    pub(super) fn of(&mut self, worker_type: &str, learn: Learn) -> Arc<LearnedLimits> {
        let key = (worker_type.into(), learn);
        if let Some(known) = self.by_type.get(&key) {
            return Arc::clone(known);
        }
        if self.by_type.len() >= self.clean_at {
            self.by_type
                .retain(|_, limits| Arc::strong_count(limits) > 1);
            self.clean_at = self.by_type.len() + MOST_UNUSED;
        }
        let limits = Arc::new(LearnedLimits::new(learn));
        self.by_type.insert(key, Arc::clone(&limits));
        limits
    }

    /// Forgets what was learned of a type. Returns whether it learns.
    pub(super) fn forget(&self, worker_type: &str) -> bool {
        let all = self.by_type.iter();
        let of_type = all.filter(|((name, _), _)| **name == *worker_type);
        of_type.fold(false, |_, (_, limits)| {
            limits.reset();
            true
        })
    }
}

/// The pace of one life of a worker, as the pacemaker saw it last.
#[derive(Debug)]
pub(crate) struct Pace {
    silence: Silence,
    rate: RateWatch,
    /// The unobserved time so far.
    forgiven: u64,
}

/// A silence that lasts.
#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Moment,
    activity: Activity,
    /// It was announced, or the worker is idle: nothing is learned from it.
    is_expected: bool,
    /// The unobserved time before it.
    forgiven: u64,
}

impl Silence {
    fn of(signs: &Signs, since: Moment, observed: &ObservedNow) -> Self {
        let is_announced = signs.quiet_until.is_some_and(|until| until > since);
        Self {
            since,
            activity: signs.activity,
            is_expected: is_announced || signs.activity == Activity::Idle,
            forgiven: observed.forgiven,
        }
    }
}

/// What an observation of the pace changed.
#[derive(Debug, Default)]
pub(crate) struct PaceChange {
    /// A limit got shorter, for all workers of the type.
    pub shortened: bool,
    pub rate: Option<RateChange>,
}

impl Pace {
    /// The pace of a worker that made its first progress.
    pub(super) fn begin(signs: &Signs, since: Moment, beats: u64, observed: &ObservedNow) -> Self {
        Self {
            silence: Silence::of(signs, since, observed),
            rate: RateWatch::new(observed.now, beats),
            forgiven: observed.forgiven,
        }
    }

    /// Takes what the pacemaker sees now: the last progress, and the beats so far.
    pub(super) fn observe(
        &mut self,
        spec: &PaceSpec,
        learned: Option<&LearnedLimits>,
        (signs, since, beats): (&Signs, Moment, u64),
        observed: &ObservedNow,
    ) -> PaceChange {
        let mut change = PaceChange::default();
        if since > self.silence.since {
            let silence = std::mem::replace(&mut self.silence, Silence::of(signs, since, observed));
            // Time that was not observed is neither learned nor charged.
            let is_whole = silence.forgiven == observed.forgiven;
            if let (Some(learned), false, true) = (learned, silence.is_expected, is_whole) {
                change.shortened = learned.observe(silence.activity, silence.since, since);
            }
        }
        if let Some(at_most) = spec.at_most {
            if self.forgiven == observed.forgiven {
                change.rate = self.rate.observe(at_most, observed.now, beats);
            } else {
                self.rate.skip(observed.now, beats);
            }
        }
        self.forgiven = observed.forgiven;
        change
    }

    /// When to look again, even without progress.
    pub(super) fn due(&self, spec: &PaceSpec) -> Moment {
        let due = spec.at_most.and_then(|at_most| self.rate.due(at_most));
        due.unwrap_or(Moment::NEVER)
    }

    /// How fast it races, if it does.
    pub(crate) fn racing(&self) -> Option<Rate> {
        self.rate.racing().map(|racing| racing.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_types_are_not_remembered() {
        let mut types = LearnedByType::default();
        let used: Vec<_> = (0..100)
            .map(|n: u32| types.of(&format!("used-{n}"), Learn::new()))
            .collect();
        for n in 0..1_000_000 {
            types.of(&n.to_string(), Learn::new());
            assert!(types.by_type.len() <= used.len() + MOST_UNUSED);
        }
        for (n, limits) in used.iter().enumerate() {
            let again = types.of(&format!("used-{n}"), Learn::new());
            assert!(Arc::ptr_eq(limits, &again));
        }
    }
}
