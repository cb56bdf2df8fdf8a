//! The policies of a reporter: one for each of its verdicts.

use crate::error::Error;
use crate::health::{Policy, Preset};
use crate::serve::process_health::check_policy;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    given: Vec<Policy>,
}

impl Policies {
    /// Adds a policy, in place of one from the same preset.
    pub(super) fn add(&mut self, policy: Policy) {
        self.given.retain(|other| other.preset() != policy.preset());
        self.given.push(policy);
    }

    /// The policy from this preset. One that was not given makes the exceptions of the last one that was:
    /// a worker that does not count for readiness is no reason to restart the process.
    pub(super) fn of(&self, preset: Preset) -> Policy {
        let mut given = self.given.iter();
        match given.find(|policy| policy.preset() == preset) {
            Some(policy) => policy.clone(),
            None => {
                let policy = Policy::of(preset);
                let last = self.given.last();
                last.map_or(policy.clone(), |last| policy.with_exceptions_of(last))
            }
        }
    }

    /// The policy for the health of the process as a whole.
    #[cfg(feature = "http")]
    pub(super) fn health(&self) -> Policy {
        let is_strict = |policy: &Policy| policy.preset() == Preset::Strict;
        let is_health = |policy: &Policy| policy.preset() == Preset::Health;
        let mut own = self.given.iter().rev();
        match own.find(|policy| is_strict(policy) || is_health(policy)) {
            Some(policy) => policy.clone(),
            None => self.of(Preset::Health),
        }
    }

    /// # Errors
    /// If a policy contradicts itself, or names a type that no worker can have.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.given.iter().try_for_each(check_policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;

    #[test]
    fn a_policy_that_was_not_given_makes_the_exceptions_of_the_last_one() {
        let mut policies = Policies::default();
        assert_eq!(policies.of(Preset::Liveness), Policy::liveness());
        policies.add(Policy::readiness().ignore_type("batch").tolerate_dead(2));
        assert_eq!(
            policies.of(Preset::Liveness).to_string(),
            "liveness, tolerating 2 dead, ignoring batch"
        );
        policies.add(Policy::liveness().tolerate(State::Stale));
        policies.add(Policy::readiness());
        assert_eq!(
            policies.of(Preset::Liveness).to_string(),
            "liveness, tolerating stale"
        );
        assert_eq!(policies.of(Preset::Readiness), Policy::readiness());
        assert_eq!(policies.of(Preset::Startup), Policy::startup());
    }
}
