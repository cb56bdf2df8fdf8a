//! Which states of which workers make a process unwell. The only definition of "well".

mod verdict;

use std::collections::BTreeMap;
use std::fmt;

use super::State;
use crate::sync::printable::Printable;
pub use verdict::{RuleResult, Verdict};

/// Which states of which workers make a process unwell: for probes, systemd, the beacon, and
/// [`Summary::verdict`](crate::Summary::verdict).
///
/// A preset says which states fail, and where it applies. What is added to it is an exception:
///
/// | preset | applies to |
/// | --- | --- |
/// | [`liveness`](Self::liveness) | `/livez`, the watchdog of systemd |
/// | [`startup`](Self::startup) | `/startupz`, `READY=1` for systemd |
/// | [`readiness`](Self::readiness) | `/readyz` |
/// | [`health`](Self::health) | `/v1/worker/health`, the beacon, [`Summary::is_healthy`](crate::Summary::is_healthy), `heartbeat-monitor check` |
/// | [`strict`](Self::strict) | as `health`, where it is set |
///
/// ```
/// use worker_heartbeat::{Policy, Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let indexer = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
/// let batch = WorkerHeartbeat::builder("batch").id("batch-1").registry(&registry).start()?;
/// indexer.beat();
/// batch.fail("disk full");
///
/// let summary = registry.summary();
/// assert!(!summary.verdict(&Policy::readiness()).is_well());
/// let policy = Policy::readiness().ignore_type("batch");
/// let verdict = summary.verdict(&policy);
/// assert!(verdict.is_well());
/// assert_eq!(policy.to_string(), "readiness, ignoring batch");
/// assert!(verdict.to_string().starts_with("well (readiness); tolerated: 1 dead; batch-1: dead: failed: disk full"));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Policy {
    preset: Preset,
    /// By the preset, and added to it.
    failing: States,
    /// Without a living worker, the process is not well.
    needs_workers: bool,
    exceptions: Exceptions,
}

/// What a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preset {
    Liveness,
    Startup,
    Readiness,
    Health,
    Strict,
}

/// What a policy tolerates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Exceptions {
    states: States,
    dead: usize,
    restarting: bool,
    types: BTreeMap<String, TypeExceptions>,
}

/// What a policy tolerates of the workers of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct TypeExceptions {
    ignored: bool,
    states: States,
    /// A number of its own.
    dead: Option<usize>,
}

/// A set of states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct States([bool; State::ALL.len()]);

impl States {
    const fn with(mut self, states: &[State]) -> Self {
        let mut n = 0;
        while n < states.len() {
            self.0[states[n] as usize] = true;
            n += 1;
        }
        self
    }

    const fn without(mut self, state: State) -> Self {
        self.0[state as usize] = false;
        self
    }

    const fn has(self, state: State) -> bool {
        self.0[state as usize]
    }

    fn iter(self) -> impl Iterator<Item = State> {
        State::ALL.into_iter().filter(move |state| self.has(*state))
    }
}

impl Preset {
    const ALL: [Self; 5] = [
        Self::Liveness,
        Self::Startup,
        Self::Readiness,
        Self::Health,
        Self::Strict,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Startup => "startup",
            Self::Readiness => "readiness",
            Self::Health => "health",
            Self::Strict => "strict",
        }
    }

    /// The states that fail it.
    const fn failing(self) -> States {
        let failing = States([false; State::ALL.len()]).with(&[
            State::Dead,
            State::Stale,
            State::NeverStarted,
            State::Stalled,
            State::Unobserved,
        ]);
        match self {
            // A restart would only begin an overdue task again.
            Self::Liveness => failing,
            Self::Health => failing.with(&[State::Overdue]),
            Self::Startup => failing.with(&[State::Starting]),
            Self::Readiness | Self::Strict => failing.with(&[State::Starting, State::Overdue]),
        }
    }

    /// Whether types with fewer workers than expected fail it.
    const fn needs_expected(self) -> bool {
        !matches!(self, Self::Liveness)
    }

    /// Whether the begin of a shutdown fails it.
    const fn fails_on_shutdown(self) -> bool {
        matches!(self, Self::Readiness | Self::Strict)
    }
}

impl Policy {
    pub(crate) fn of(preset: Preset) -> Self {
        Self {
            preset,
            failing: preset.failing(),
            needs_workers: preset == Preset::Strict,
            exceptions: Exceptions::default(),
        }
    }

    /// Whether to restart the process: a worker is dead, stale, stalled, overdue or never started, or the
    /// pacemaker does not tick.
    ///
    /// Missing workers, a shutdown, starting and overdue workers don't fail it, because a restart does not
    /// mend them: it would begin the task again.
    pub fn liveness() -> Self {
        Self::of(Preset::Liveness)
    }

    /// Whether the process has started: as [`liveness`](Self::liveness), and every worker has started, and
    /// the [expected](crate::Registry::expect_workers) ones live.
    pub fn startup() -> Self {
        Self::of(Preset::Startup)
    }

    /// Whether to send work to the process: as [`startup`](Self::startup), no worker is overdue, and no
    /// shutdown has begun.
    pub fn readiness() -> Self {
        Self::of(Preset::Readiness)
    }

    /// Whether all is well: as [`liveness`](Self::liveness), no worker is overdue, and the
    /// [expected](crate::Registry::expect_workers) workers live. The default.
    pub fn health() -> Self {
        Self::of(Preset::Health)
    }

    /// Every worker is well, the expected ones live, there is at least one, and no shutdown has begun.
    pub fn strict() -> Self {
        Self::of(Preset::Strict)
    }

    /// The preset with this name.
    ///
    /// ```
    /// use worker_heartbeat::Policy;
    ///
    /// assert_eq!(Policy::from_name("readiness"), Some(Policy::readiness()));
    /// assert_eq!(Policy::from_name("lax"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let mut presets = Preset::ALL.into_iter();
        presets.find(|preset| preset.name() == name).map(Self::of)
    }

    /// Workers of this type don't count: neither their states nor how many are
    /// [expected](crate::Registry::expect_workers). The verdict still shows them, and names types that no
    /// worker has ([`Verdict::unknown_types`]): they may be misspelt.
    ///
    /// ```
    /// use worker_heartbeat::{Policy, Registry};
    ///
    /// let registry = Registry::new();
    /// registry.expect_workers("batch", 3);
    /// let policy = Policy::readiness().ignore_type("btach");
    /// let verdict = registry.summary().verdict(&policy);
    /// assert_eq!(verdict.unknown_types, ["btach"]);
    /// assert!(!verdict.is_well(), "3 workers of type batch are missing");
    /// ```
    pub fn ignore_type(mut self, worker_type: impl Into<String>) -> Self {
        self.of_type(worker_type).ignored = true;
        self
    }

    /// So many workers may be dead, stale or never started: in all types together, without those that are
    /// ignored or have a [number of their own](Self::tolerate_dead_in). If more are, all of them count.
    ///
    /// A worker that is tolerated is not missing either, where its type is
    /// [expected](crate::Registry::expect_workers).
    ///
    /// ```
    /// use worker_heartbeat::{Policy, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// registry.expect_workers("indexer", 2);
    /// let first = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let second = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// first.beat();
    /// second.fail("disk full");
    /// let summary = registry.summary();
    /// assert!(!summary.verdict(&Policy::readiness()).is_well());
    /// assert!(summary.verdict(&Policy::readiness().tolerate_dead(1)).is_well());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn tolerate_dead(mut self, count: usize) -> Self {
        self.exceptions.dead = count;
        self
    }

    /// As [`tolerate_dead`](Self::tolerate_dead), of one type; they don't count there.
    ///
    /// ```
    /// use worker_heartbeat::Policy;
    ///
    /// let policy = Policy::liveness().tolerate_dead_in("batch", 5);
    /// assert_eq!(policy.to_string(), "liveness, tolerating 5 dead of type batch");
    /// ```
    pub fn tolerate_dead_in(mut self, worker_type: impl Into<String>, count: usize) -> Self {
        self.of_type(worker_type).dead = Some(count);
        self
    }

    /// Any number of workers may be in this state. For [`State::Unobserved`], the pacemaker may stand
    /// still, too.
    ///
    /// ```
    /// use worker_heartbeat::{Policy, State};
    ///
    /// let policy = Policy::liveness().tolerate(State::Stale);
    /// assert_eq!(policy.to_string(), "liveness, tolerating stale");
    /// ```
    pub const fn tolerate(mut self, state: State) -> Self {
        self.exceptions.states = self.exceptions.states.with(&[state]);
        self
    }

    /// As [`tolerate`](Self::tolerate), of one type.
    ///
    /// ```
    /// use worker_heartbeat::{Policy, State};
    ///
    /// let policy = Policy::liveness().tolerate_in("batch", State::Stalled);
    /// assert_eq!(policy.to_string(), "liveness, tolerating stalled of type batch");
    /// ```
    pub fn tolerate_in(mut self, worker_type: impl Into<String>, state: State) -> Self {
        let states = &mut self.of_type(worker_type).states;
        *states = states.with(&[state]);
        self
    }

    /// A dead worker does not count while its [supervisor](crate::Supervisor) is about to restart it: to
    /// restart the process would not be better. Its last death does, once it was given up.
    ///
    /// A store does not know this; there, it has no effect.
    ///
    /// ```
    /// use worker_heartbeat::Policy;
    ///
    /// let policy = Policy::liveness().tolerate_restarting();
    /// assert_eq!(policy.to_string(), "liveness, tolerating restarting");
    /// ```
    pub const fn tolerate_restarting(mut self) -> Self {
        self.exceptions.restarting = true;
        self
    }

    /// A worker in this state makes the process unwell, too.
    ///
    /// ```
    /// use worker_heartbeat::{Policy, State};
    ///
    /// let policy = Policy::health().fail_on(State::Stopped);
    /// assert_eq!(policy.to_string(), "health, failing on stopped");
    /// ```
    pub const fn fail_on(mut self, state: State) -> Self {
        self.failing = self.failing.with(&[state]);
        self.exceptions.states = self.exceptions.states.without(state);
        self
    }

    /// The process is not well without a living worker.
    ///
    /// ```
    /// use worker_heartbeat::{Policy, Registry};
    ///
    /// let summary = Registry::new().summary();
    /// assert!(summary.verdict(&Policy::health()).is_well());
    /// let verdict = summary.verdict(&Policy::health().needs_workers());
    /// assert_eq!(verdict.to_string(), "unwell (health): living: there are no workers");
    /// ```
    pub const fn needs_workers(mut self) -> Self {
        self.needs_workers = true;
        self
    }

    #[cfg(any(feature = "http", all(unix, feature = "systemd")))]
    pub(crate) const fn preset(&self) -> Preset {
        self.preset
    }

    #[cfg(any(feature = "http", all(unix, feature = "systemd")))]
    pub(crate) fn with_exceptions_of(mut self, other: &Self) -> Self {
        self.exceptions = other.exceptions.clone();
        self
    }

    /// The types that it names, and whether what it says of each contradicts itself.
    #[cfg(any(feature = "beacon", feature = "http", all(unix, feature = "systemd")))]
    pub(crate) fn types(&self) -> impl Iterator<Item = (&str, bool)> {
        self.exceptions.types.iter().map(|(name, of_type)| {
            let has_others = of_type.dead.is_some() || of_type.states != States::default();
            (&**name, of_type.ignored && has_others)
        })
    }

    fn of_type(&mut self, worker_type: impl Into<String>) -> &mut TypeExceptions {
        self.exceptions.types.entry(worker_type.into()).or_default()
    }

    fn is_ignored(&self, worker_type: &str) -> bool {
        let exceptions = self.exceptions.types.get(worker_type);
        exceptions.is_some_and(|exceptions| exceptions.ignored)
    }

    /// Whether a worker of this type in this state counts against the process, as far as its number is
    /// not tolerated.
    fn fails_on(&self, worker_type: &str, state: State) -> bool {
        self.failing.has(state)
            && !self.exceptions.states.has(state)
            && self
                .exceptions
                .types
                .get(worker_type)
                .is_none_or(|of_type| !of_type.ignored && !of_type.states.has(state))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::health()
    }
}

/// The preset, and what differs from it.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.preset.name())?;
        for state in self.failing.iter() {
            if !self.preset.failing().has(state) {
                write!(f, ", failing on {state}")?;
            }
        }
        if self.needs_workers && self.preset != Preset::Strict {
            f.write_str(", needing workers")?;
        }
        let Exceptions {
            states,
            dead,
            restarting,
            types,
        } = &self.exceptions;
        for state in states.iter() {
            write!(f, ", tolerating {state}")?;
        }
        if *dead > 0 {
            write!(f, ", tolerating {dead} dead")?;
        }
        if *restarting {
            f.write_str(", tolerating restarting")?;
        }
        for (name, of_type) in types {
            let name = Printable(name);
            if of_type.ignored {
                write!(f, ", ignoring {name}")?;
                continue;
            }
            for state in of_type.states.iter() {
                write!(f, ", tolerating {state} of type {name}")?;
            }
            if let Some(dead) = of_type.dead {
                write!(f, ", tolerating {dead} dead of type {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::health::{MissingWorkers, StateCounts, Summary};

    fn summary(states: &[State]) -> Summary {
        let mut counts = StateCounts::default();
        states.iter().for_each(|state| counts.add(*state));
        let mut summary = Summary {
            total: states.len(),
            states: counts,
            ..Summary::default()
        };
        summary.stats_by_type.insert("a".to_owned(), counts.into());
        summary
    }

    /// What makes a process unwell by which preset, as the guide shows it.
    #[test]
    fn the_table_of_the_guide_is_right() {
        let mut cases: Vec<_> = State::ALL
            .into_iter()
            .map(|state| (format!("`{state}`"), summary(&[State::Idle, state])))
            .collect();
        let mut missing = summary(&[State::Idle]);
        let few = MissingWorkers::new("a".to_owned(), 2, 1);
        missing.missing.push(few);
        cases.push(("missing workers".to_owned(), missing));
        cases.push(("no living worker".to_owned(), summary(&[State::Stopped])));
        let mut stopping = summary(&[State::Idle]);
        stopping.stopping = true;
        cases.push(("a shutdown has begun".to_owned(), stopping));
        let names = Preset::ALL.map(Preset::name);
        let mut table = format!("| | {} |\n|{}\n", names.join(" | "), " --- |".repeat(6));
        for (name, summary) in cases {
            let cells = Preset::ALL.map(|preset| match summary.verdict(&Policy::of(preset)) {
                verdict if verdict.is_well() => "",
                _ => "fails",
            });
            table += &format!("| {name} | {} |\n", cells.join(" | "));
        }
        let guide = include_str!("../../../docs/guide/http.md");
        assert!(guide.contains(&table), "not in the guide:\n{table}");
    }

    #[test]
    fn types_that_a_summary_does_not_list_count_all_the_same() {
        let mut summary = summary(&[State::Idle]);
        summary.states.add(State::Dead);
        summary.unlisted_types = 1;
        let policy = Policy::liveness().ignore_type("a").ignore_type("b");
        let verdict = summary.verdict(&policy);
        assert!(!verdict.is_well());
        assert!(verdict.unknown_types.is_empty(), "it is not known");
        assert!(summary.verdict(&policy.tolerate_dead(1)).is_well());
    }

    #[test]
    fn a_policy_says_what_differs_from_its_preset() {
        for preset in Preset::ALL {
            let policy = Policy::of(preset);
            assert_eq!(policy.to_string(), preset.name());
            assert_eq!(Policy::from_name(preset.name()), Some(policy));
        }
        let policy = Policy::readiness()
            .ignore_type("batch\n")
            .tolerate_in("x", State::Stalled)
            .tolerate_dead_in("x", 1)
            .tolerate_dead(2)
            .tolerate_restarting()
            .fail_on(State::Stopped)
            .needs_workers();
        assert_eq!(
            policy.to_string(),
            "readiness, failing on stopped, needing workers, tolerating 2 dead, tolerating restarting, \
             ignoring batch\\n, tolerating stalled of type x, tolerating 1 dead of type x"
        );
    }
}
