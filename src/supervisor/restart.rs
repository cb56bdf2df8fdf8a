//! The policy of restarts.

use std::time::Duration;

use crate::sync::random::random;

/// The restart policy of a supervised worker, as in Erlang/OTP's `supervisor`: never (temporary), on
/// failure (transient) or always (permanent); at most [`max`](Self::max) times, after which the
/// worker is given up.
///
/// Before each restart, the worker waits: exponential backoff with jitter, 100 ms at first and 30 s
/// at most.
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
    pub(super) when: When,
    pub(super) max: u32,
    pub(super) within: Duration,
    pub(super) reset_after: Option<Duration>,
    first_delay: Duration,
    longest_delay: Duration,
    jitter: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
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

    /// The worker is never restarted.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Restart, Supervisor, WorkerHeartbeat};
    ///
    /// let supervisor = Supervisor::new(Registry::global()).restart(Restart::never());
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import"), |_| Err("disk full".into()))?;
    /// assert_eq!(import.join().to_string(), "failed: disk full");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub const fn never() -> Self {
        Self::new(When::Never)
    }

    /// The worker is restarted when it panicked or failed, but not when it returned without an error.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, Restart, Supervisor, WorkerHeartbeat};
    ///
    /// let restart = Restart::on_failure().backoff(Duration::ZERO, Duration::ZERO);
    /// let supervisor = Supervisor::new(Registry::global()).restart(restart);
    /// let mut tries = 0;
    /// let import = supervisor.spawn(WorkerHeartbeat::builder("import").finite(), move |_| {
    ///     tries += 1;
    ///     if tries < 3 { Err("disk full".into()) } else { Ok(()) }
    /// })?;
    /// assert!(import.join().is_completed());
    /// assert_eq!(import.probe().snapshot().restarts, 2);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub const fn on_failure() -> Self {
        Self::new(When::OnFailure)
    }

    /// The worker is restarted however it ended, unless it was asked to stop or stopped itself.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, Restart, Supervisor, WorkerHeartbeat};
    ///
    /// let restart = Restart::always().max(3).backoff(Duration::ZERO, Duration::ZERO);
    /// let supervisor = Supervisor::new(Registry::global()).restart(restart);
    /// let listener = supervisor.spawn(WorkerHeartbeat::builder("listener"), |_| Ok(()))?;
    /// let exit = listener.join().to_string();
    /// assert_eq!(exit, "given up after 3 restarts: returned while not asked to");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub const fn always() -> Self {
        Self::new(When::Always)
    }

    /// The maximum number of restarts in the [period](Self::within) or, with
    /// [`reset_after`](Self::reset_after), in a row; 5 by default. At the next failure, the worker is
    /// given up.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Restart;
    ///
    /// // The third failure within a minute is one too many.
    /// let restart = Restart::on_failure().max(2).within(Duration::from_secs(60));
    /// # let _ = restart;
    /// ```
    #[must_use]
    pub const fn max(mut self, restarts: u32) -> Self {
        self.max = restarts;
        self
    }

    /// The period in which restarts are counted; 60 s by default. It must be longer than the waits of
    /// [`max`](Self::max) restarts; otherwise, the worker is never given up.
    ///
    /// With [`reset_after`](Self::reset_after) it has no effect.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Restart;
    ///
    /// let restart = Restart::on_failure().max(10).within(Duration::from_secs(3600));
    /// # let _ = restart;
    /// ```
    #[must_use]
    pub const fn within(mut self, period: Duration) -> Self {
        self.within = period;
        self
    }

    /// Counts failures as consecutive until the worker was well for this long: `max` then limits the
    /// restarts in a row instead of those in a period, and the backoff grows with each of them.
    ///
    /// The length of a life is measured by the registry's clock, without time in which the process
    /// was suspended or stopped, and without the wait before it. A life was not well if it made no
    /// progress within its start-up grace, or was stalled or stale at its end. Each life that is
    /// shorter than `well` is one more failure.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Restart;
    ///
    /// // Given up after the 15th restart in a row. A life of ten minutes begins the count again.
    /// let restart = Restart::on_failure().max(15).reset_after(Duration::from_secs(600));
    /// # let _ = restart;
    /// ```
    #[must_use]
    pub const fn reset_after(mut self, well: Duration) -> Self {
        self.reset_after = Some(well);
        self
    }

    /// The wait before the first restart that counts. It doubles with each further restart, up to
    /// `longest`. See [what counts](Self#what-counts).
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::Restart;
    ///
    /// // At most 1, 2, 4, 8, 8, 8 ... s; at least 80 % of that.
    /// let restart = Restart::on_failure().backoff(Duration::from_secs(1), Duration::from_secs(8));
    /// # let _ = restart;
    /// ```
    #[must_use]
    pub const fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.first_delay = first;
        self.longest_delay = longest;
        self
    }

    /// The random share of each wait, 0 to 1, so that workers that failed together do not come back
    /// together; 0.2 by default. It makes waits shorter, never longer.
    ///
    /// ```
    /// use worker_heartbeat::Restart;
    ///
    /// // Any wait up to the full one: for many workers that depend on one server.
    /// let restart = Restart::on_failure().jitter(1.0);
    /// # let _ = restart;
    /// ```
    #[must_use]
    pub const fn jitter(mut self, share: f64) -> Self {
        // Not `clamp`: NaN counts as 0.
        self.jitter = if share > 1.0 {
            1.0
        } else if share > 0.0 {
            share
        } else {
            0.0
        };
        self
    }

    /// The wait before this attempt.
    pub(super) fn delay(&self, attempt: u32) -> Duration {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_shortens_the_wait_by_at_most_its_share() {
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
}
