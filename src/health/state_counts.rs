//! How many workers are in each state.

use std::fmt;

use super::State;

/// How many workers are in each state.
///
/// ```
/// use worker_heartbeat::{Registry, State, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
/// let states = registry.summary().states;
/// assert_eq!(states.get(State::Starting), 1);
/// for (state, count) in states.iter().filter(|(_, count)| *count > 0) {
///     println!("{count} {state}"); // 1 starting
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct StateCounts([usize; State::ALL.len()]);

impl StateCounts {
    /// How many are in this state.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, State, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").start()?;
    /// hb.mark_idle();
    /// assert_eq!(Registry::global().summary().states.get(State::Idle), 1);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub const fn get(&self, state: State) -> usize {
        self.0[state as usize]
    }

    /// Every state with its count, in the order of [`State::ALL`].
    ///
    /// ```
    /// use worker_heartbeat::StateCounts;
    ///
    /// for (state, count) in StateCounts::default().iter() {
    ///     println!("{state}: {count}"); // starting: 0 ...
    /// }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (State, usize)> + '_ {
        State::ALL.into_iter().map(|state| (state, self.get(state)))
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }

    /// How many are well: [`State::is_recent`].
    #[must_use]
    pub fn active(&self) -> usize {
        self.count(State::is_recent)
    }

    /// How many are dead, stale or never started: [`State::is_offline`].
    #[must_use]
    pub fn dead(&self) -> usize {
        self.count(State::is_offline)
    }

    fn count(&self, which: impl Fn(State) -> bool) -> usize {
        self.iter()
            .filter(|(state, _)| which(*state))
            .map(|(_, count)| count)
            .sum()
    }

    #[inline]
    pub(crate) fn add(&mut self, state: State) {
        self.0[state as usize] += 1;
    }

    pub(crate) fn add_many(&mut self, state: State, count: usize) {
        self.0[state as usize] += count;
    }

    pub(crate) fn remove_many(&mut self, state: State, count: usize) {
        let kept = &mut self.0[state as usize];
        *kept = kept.saturating_sub(count);
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

impl fmt::Debug for StateCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().filter(|(_, count)| *count > 0))
            .finish()
    }
}
