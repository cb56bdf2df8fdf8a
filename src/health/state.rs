//! What a worker reports that it is doing, and the names of its states.

use std::fmt;

/// What a worker reports that it is doing.
///
/// ```
/// use worker_heartbeat::{Activity, State, WorkerHeartbeat};
///
/// let hb = WorkerHeartbeat::builder("mailer").start()?;
/// hb.update_task("", "waiting for mails", Activity::Idle);
/// assert_eq!(hb.health().state(), State::Idle);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activity {
    /// At work, without a named task. Progress is expected.
    #[default]
    Active,
    /// Waiting for work. No progress is expected.
    Idle,
    /// At a task. Progress is expected.
    Processing,
}

impl Activity {
    pub(crate) const COUNT: usize = Self::Processing as usize + 1;
}

/// The state of a worker, without its reason: workers are counted, filtered and labelled by it.
///
/// ```
/// use worker_heartbeat::State;
///
/// for state in State::ALL {
///     println!("{state}: recent {}, offline {}", state.is_recent(), state.is_offline());
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum State {
    /// See [`Health::Starting`](super::Health::Starting).
    Starting,
    /// See [`Health::NeverStarted`](super::Health::NeverStarted).
    NeverStarted,
    /// See [`Health::Idle`](super::Health::Idle).
    Idle,
    /// See [`Health::Active`](super::Health::Active).
    Active,
    /// See [`Health::Processing`](super::Health::Processing).
    Processing,
    /// See [`Health::Stalled`](super::Health::Stalled).
    Stalled,
    /// See [`Health::Overdue`](super::Health::Overdue).
    Overdue,
    /// See [`Health::Stale`](super::Health::Stale).
    Stale,
    /// See [`Health::Unobserved`](super::Health::Unobserved).
    Unobserved,
    /// See [`Health::Stopping`](super::Health::Stopping).
    Stopping,
    /// See [`Health::Stopped`](super::Health::Stopped).
    Stopped,
    /// See [`Health::Dead`](super::Health::Dead).
    Dead,
}

impl State {
    /// Every state, in the order of the table of states.
    pub const ALL: [Self; 12] = [
        Self::Starting,
        Self::NeverStarted,
        Self::Idle,
        Self::Active,
        Self::Processing,
        Self::Stalled,
        Self::Overdue,
        Self::Stale,
        Self::Unobserved,
        Self::Stopping,
        Self::Stopped,
        Self::Dead,
    ];

    /// Every state, the worst first. Lists of the worst workers are in this order.
    ///
    /// ```
    /// use worker_heartbeat::State;
    ///
    /// assert_eq!(State::WORST_FIRST[0], State::Dead);
    /// ```
    pub const WORST_FIRST: [Self; Self::ALL.len()] = [
        Self::Dead,
        Self::NeverStarted,
        Self::Stalled,
        Self::Stale,
        Self::Overdue,
        Self::Unobserved,
        Self::Starting,
        Self::Stopping,
        Self::Processing,
        Self::Active,
        Self::Idle,
        Self::Stopped,
    ];

    /// The position in [`WORST_FIRST`](Self::WORST_FIRST).
    pub(crate) fn severity_rank(self) -> usize {
        let position = Self::WORST_FIRST.iter().position(|other| *other == self);
        position.unwrap_or(Self::WORST_FIRST.len())
    }

    /// The name in snake case, as in JSON and metrics: `never_started`.
    ///
    /// ```
    /// use worker_heartbeat::State;
    ///
    /// assert_eq!(State::NeverStarted.name(), "never_started");
    /// ```
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::NeverStarted => "never_started",
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Processing => "processing",
            Self::Stalled => "stalled",
            Self::Overdue => "overdue",
            Self::Stale => "stale",
            Self::Unobserved => "unobserved",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Dead => "dead",
        }
    }

    /// The state with this name.
    ///
    /// ```
    /// use worker_heartbeat::State;
    ///
    /// assert_eq!(State::from_name("never_started"), Some(State::NeverStarted));
    /// assert_eq!(State::from_name("asleep"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// The state with this name, as another program reports it. A newer one may know states that this
    /// one does not: none of them is well, and none of them is offline.
    #[cfg(any(feature = "serde", feature = "sqlite", feature = "postgres"))]
    pub(crate) fn reported(name: &str) -> Self {
        Self::from_name(name).unwrap_or(Self::Unobserved)
    }

    /// Whether a worker in this state is well: idle, active, processing or stopping.
    ///
    /// ```
    /// use worker_heartbeat::State;
    ///
    /// assert!(State::Idle.is_recent() && State::Stopping.is_recent());
    /// assert!(!State::Starting.is_recent() && !State::Stalled.is_recent());
    /// ```
    #[must_use]
    pub const fn is_recent(self) -> bool {
        matches!(
            self,
            Self::Idle | Self::Active | Self::Processing | Self::Stopping
        )
    }

    /// Whether a worker in this state is offline: never started, stale or dead. A sweep marks it
    /// so.
    ///
    /// ```
    /// use worker_heartbeat::State;
    ///
    /// assert!(State::Stale.is_offline() && State::Dead.is_offline());
    /// assert!(!State::Stalled.is_offline(), "it still lives");
    /// assert!(!State::Overdue.is_offline(), "it still works");
    /// ```
    #[must_use]
    pub const fn is_offline(self) -> bool {
        matches!(self, Self::NeverStarted | Self::Stale | Self::Dead)
    }

    /// Whether a summary names workers in this state: dead, never started, stalled, overdue or stale.
    pub(crate) const fn is_unwell(self) -> bool {
        self.is_offline() || matches!(self, Self::Stalled | Self::Overdue)
    }

    /// Whether this state is the last of its incarnation: stopped or dead.
    ///
    /// ```
    /// use worker_heartbeat::State;
    ///
    /// assert!(State::Stopped.is_terminal() && State::Dead.is_terminal());
    /// assert!(!State::Stale.is_terminal(), "its next heartbeat recovers it");
    /// ```
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Stopped | Self::Dead)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_recent_offline_terminal_or_in_between() {
        for state in State::ALL {
            let marks = [state.is_recent(), state.is_offline()];
            assert!(marks.iter().filter(|mark| **mark).count() <= 1, "{state}");
        }
        assert!(State::Stopping.is_recent());
        assert!(!State::Starting.is_recent() && !State::Starting.is_offline());
        assert!(!State::Stalled.is_offline());
        assert!(!State::Overdue.is_recent() && !State::Overdue.is_offline());
        assert!(State::Overdue.is_unwell());
    }

    #[test]
    fn the_order_of_severity_has_every_state_once() {
        let mut ranks = State::ALL.map(State::severity_rank);
        ranks.sort_unstable();
        assert!(ranks.into_iter().eq(0..State::ALL.len()));
    }
}
