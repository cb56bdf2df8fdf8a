//! The verdict of a policy on all workers together.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use super::Policy;
use crate::health::report::{MOST_NAMED, name_workers};
use crate::health::{State, StateCounts, Summary, UnwellWorker};
use crate::sync::printable::Printable;

/// The pacemaker has failed if its last tick is older than this and than ten resolutions.
const MAX_TICK_AGE: Duration = Duration::from_secs(5);
/// The states that the rule `workers` is about, the worst first. The others have rules of their own, or
/// fail only where a policy says so.
const UNWELL: [State; 5] = [
    State::Dead,
    State::Stale,
    State::NeverStarted,
    State::Stalled,
    State::Overdue,
];

/// What a [`Policy`] says of all workers together; see [`Summary::verdict`].
///
/// ```
/// use worker_heartbeat::{Policy, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
/// hb.fail("disk full");
/// let verdict = registry.summary().verdict(&Policy::readiness());
/// assert!(!verdict.is_well());
/// for (rule, failure) in verdict.failures() {
///     assert_eq!(rule, "workers");
///     assert!(failure.starts_with("1 dead; mailer-1: dead: failed: disk full"));
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// The policy, as its `Display`.
    pub policy: String,
    /// The policy's rules, and what came of each.
    pub rules: Vec<RuleResult>,
    /// Types that the policy names, and that no worker has.
    pub unknown_types: Vec<String>,
}

/// What came of one rule of a [`Policy`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuleResult {
    /// `pacemaker`: it ticks. `workers`: none is in a state that fails. `started`: all have. `expected`: they
    /// live. `living`: at least one does. `shutdown`: none has begun.
    pub rule: &'static str,
    /// Why it is not met, with the workers by name: the five worst.
    pub failure: Option<String>,
    /// What would fail it, and is tolerated.
    pub tolerated: Option<String>,
}

impl Verdict {
    /// Whether every rule is met.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The rules that are not met, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let failures = self.rules.iter();
        failures.filter_map(|result| Some((result.rule, result.failure.as_deref()?)))
    }

    /// What is tolerated, by rule.
    pub fn tolerated(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let tolerated = self.rules.iter();
        tolerated.filter_map(|result| Some((result.rule, result.tolerated.as_deref()?)))
    }
}

/// Whether it is well, by which policy, the failures, and what is tolerated.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_well() { "well" } else { "unwell" };
        write!(
            f,
            "{word} ({})",
            self.policy.split(',').next().unwrap_or_default()
        )?;
        for (n, (rule, failure)) in self.failures().enumerate() {
            let separator = if n == 0 { ": " } else { "; " };
            write!(f, "{separator}{rule}: {failure}")?;
        }
        for (n, (_, tolerated)) in self.tolerated().enumerate() {
            let separator = if n == 0 { "; tolerated: " } else { "; " };
            write!(f, "{separator}{tolerated}")?;
        }
        for name in &self.unknown_types {
            write!(f, "; no worker has the type {}", Printable(name))?;
        }
        Ok(())
    }
}

impl Summary {
    /// Whether all is well by this policy, and why not.
    ///
    /// ```
    /// use worker_heartbeat::{Policy, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// let summary = registry.summary();
    /// assert!(summary.verdict(&Policy::liveness()).is_well());
    /// let verdict = summary.verdict(&Policy::readiness());
    /// assert_eq!(verdict.to_string(), "unwell (readiness): started: 1 starting");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn verdict(&self, policy: &Policy) -> Verdict {
        let sorted = Sorted::new(self, policy);
        let mut rules = Vec::new();
        let mut add = |applies: bool, rule, (failure, tolerated)| {
            if applies {
                rules.push(RuleResult {
                    rule,
                    failure,
                    tolerated,
                });
            }
        };
        let preset = policy.preset;
        let failing = policy.failing;
        add(
            failing.has(State::Unobserved),
            "pacemaker",
            sorted.pacemaker(),
        );
        add(true, "workers", sorted.workers());
        add(failing.has(State::Starting), "started", sorted.started());
        add(preset.needs_expected(), "expected", sorted.expected());
        add(policy.needs_workers, "living", (sorted.living(), None));
        let shutdown = self.stopping.then(|| "it is shutting down".to_owned());
        add(preset.fails_on_shutdown(), "shutdown", (shutdown, None));
        Verdict {
            policy: policy.to_string(),
            rules,
            unknown_types: sorted.unknown_types(),
        }
    }
}

/// Why a rule is not met, and what is tolerated.
type Findings = (Option<String>, Option<String>);

/// The workers of a summary, sorted by a policy.
struct Sorted<'a> {
    summary: &'a Summary,
    policy: &'a Policy,
    failing: StateCounts,
    tolerated: StateCounts,
    types: BTreeMap<&'a str, TypeTotals>,
    /// No more are dead than are tolerated in all types together.
    few_dead: bool,
}

#[derive(Default)]
struct TypeTotals {
    states: StateCounts,
    /// Dead workers that a supervisor is about to restart, if that is tolerated.
    restarting: usize,
    /// Workers that are dead, stale or never started, and count.
    dead: usize,
    /// No more of them than are tolerated.
    few_dead: bool,
}

impl<'a> Sorted<'a> {
    fn new(summary: &'a Summary, policy: &'a Policy) -> Self {
        let mut types = BTreeMap::<&str, TypeTotals>::new();
        let mut listed = StateCounts::default();
        for (name, stats) in &summary.stats_by_type {
            listed.add_all(&stats.states);
            types.entry(name).or_default().states = stats.states;
        }
        // A store lists only so many types. No type has an empty name.
        let mut unlisted = StateCounts::default();
        for (state, count) in summary.states.iter() {
            unlisted.add_many(state, count.saturating_sub(listed.get(state)));
        }
        if unlisted.total() > 0 {
            types.entry("").or_default().states = unlisted;
        }
        for worker in &summary.dead_workers {
            if is_restarting(policy, worker) {
                types.entry(&worker.worker_type).or_default().restarting += 1;
            }
        }
        let exceptions = &policy.exceptions;
        let own = |name: &str| exceptions.types.get(name).and_then(|of_type| of_type.dead);
        let mut dead = 0;
        for (name, totals) in &mut types {
            let counts = totals.states.iter();
            let offline =
                counts.filter(|(state, _)| state.is_offline() && policy.fails_on(name, *state));
            totals.dead = offline.map(|(_, count)| count).sum();
            totals.dead = totals.dead.saturating_sub(totals.restarting);
            match own(name) {
                Some(most) => totals.few_dead = totals.dead <= most,
                None => dead += totals.dead,
            }
        }
        let few_dead = dead <= exceptions.dead;
        let mut sorted = Self {
            summary,
            policy,
            failing: StateCounts::default(),
            tolerated: StateCounts::default(),
            few_dead,
            types: BTreeMap::new(),
        };
        for (name, totals) in &mut types {
            if own(name).is_none() {
                totals.few_dead = few_dead;
            }
            for (state, count) in totals.states.iter() {
                if !policy.failing.has(state) {
                    continue;
                }
                let counts =
                    policy.fails_on(name, state) && !(state.is_offline() && totals.few_dead);
                let spared = match state {
                    _ if !counts => count,
                    State::Dead => totals.restarting.min(count),
                    _ => 0,
                };
                sorted.failing.add_many(state, count - spared);
                sorted.tolerated.add_many(state, spared);
            }
        }
        sorted.types = types;
        sorted
    }

    fn fails(&self, worker: &UnwellWorker) -> bool {
        let (name, state) = (&*worker.worker_type, worker.health.state());
        let few_dead = self.types.get(name).is_some_and(|totals| totals.few_dead);
        self.policy.fails_on(name, state)
            && !(state.is_offline() && few_dead)
            && !is_restarting(self.policy, worker)
    }

    fn pacemaker(&self) -> Findings {
        let age = self.summary.tick_age;
        let is_late = age > MAX_TICK_AGE.max(self.summary.resolution * 10);
        let text = format!("no tick of the pacemaker for {:.1} s", age.as_secs_f64());
        let tolerates = self.policy.exceptions.states.has(State::Unobserved);
        match (
            is_late && !tolerates || self.failing.get(State::Unobserved) > 0,
            is_late || self.tolerated.get(State::Unobserved) > 0,
        ) {
            (true, _) => (Some(text), None),
            (_, true) => (None, Some(text)),
            _ => (None, None),
        }
    }

    fn workers(&self) -> Findings {
        let others = State::ALL.into_iter().filter(|state| {
            !UNWELL.contains(state) && !matches!(state, State::Starting | State::Unobserved)
        });
        let states: Vec<State> = UNWELL.into_iter().chain(others).collect();
        let describe = |counts: &StateCounts, fails: bool| {
            let mut text = in_states(counts, &states)?;
            let exceptions = &self.policy.exceptions;
            if fails && exceptions.dead > 0 && !self.few_dead {
                // Writing to a string never fails.
                let _ = write!(text, " ({} dead tolerated)", exceptions.dead);
            }
            let named = self.summary.named();
            let named: Vec<_> = named
                .filter(|worker| self.policy.failing.has(worker.health.state()))
                .filter(|worker| self.fails(worker) == fails)
                .collect();
            let all = counts.iter().filter(|(state, _)| state.is_unwell());
            let all = all.map(|(_, count)| count).sum();
            let _ = name_workers(&mut text, named, all, MOST_NAMED);
            Some(text)
        };
        (
            describe(&self.failing, true),
            describe(&self.tolerated, false),
        )
    }

    fn started(&self) -> Findings {
        let states = [State::Starting, State::NeverStarted];
        let tolerated = in_states(&self.tolerated, &states[..1]);
        (in_states(&self.failing, &states), tolerated)
    }

    /// Workers that are dead and tolerated are not missing.
    fn expected(&self) -> Findings {
        let (mut failing, mut tolerated) = (Vec::new(), Vec::new());
        for missing in &self.summary.missing {
            let totals = self.types.get(&*missing.worker_type);
            let spared = totals.map_or(0, |totals| {
                totals.restarting + if totals.few_dead { totals.dead } else { 0 }
            });
            let short = missing.expected.saturating_sub(missing.living);
            let is_tolerated = self.policy.is_ignored(&missing.worker_type) || short <= spared;
            let list = if is_tolerated {
                &mut tolerated
            } else {
                &mut failing
            };
            list.push(missing.to_string());
        }
        let join = |list: Vec<String>| (!list.is_empty()).then(|| list.join("; "));
        (join(failing), join(tolerated))
    }

    fn living(&self) -> Option<String> {
        let counted = self
            .types
            .iter()
            .filter(|(name, _)| !self.policy.is_ignored(name));
        let mut states = counted.flat_map(|(_, totals)| totals.states.iter());
        if states.any(|(state, count)| count > 0 && !state.is_terminal()) {
            None
        } else if self.summary.total == 0 {
            Some("there are no workers".to_owned())
        } else {
            Some("no worker lives".to_owned())
        }
    }

    fn unknown_types(&self) -> Vec<String> {
        // If the summary does not list all types, it is not known.
        if self.summary.unlisted_types > 0 {
            return Vec::new();
        }
        let is_known = |name: &str| {
            let mut missing = self.summary.missing.iter();
            self.types.contains_key(name) || missing.any(|missing| missing.worker_type == name)
        };
        let named = self.policy.exceptions.types.keys();
        named.filter(|name| !is_known(name)).cloned().collect()
    }
}

fn is_restarting(policy: &Policy, worker: &UnwellWorker) -> bool {
    policy.exceptions.restarting && worker.restarting && worker.health.state() == State::Dead
}

/// How many workers are in these states; `None` if there are none.
fn in_states(counts: &StateCounts, states: &[State]) -> Option<String> {
    let counts = states
        .iter()
        .map(|state| (counts.get(*state), state.name()));
    let counts = counts.filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    (!counts.is_empty()).then(|| counts.join(", "))
}
