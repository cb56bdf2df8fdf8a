//! The builder's limits on the pace: learned ones, and the one on its rate.

use std::time::Duration;

use super::Builder;
use super::limits::{LONGEST, check_duration};
use crate::error::Error;
use crate::health::{Learn, Rate};
use crate::registry::core::pace::PaceSpec;
use crate::registry::core::timeline::SHORTEST_RESOLUTION;

impl Builder {
    /// Learns [`stall_after`](Self::stall_after) from the worker's silences, between a floor and a
    /// ceiling. While it learns, the limit is the ceiling; a `stall_after` that is shorter than the
    /// ceiling takes its place.
    ///
    /// All workers of a type in a registry learn together, of work with a named task and of work
    /// without one apart. A worker that is restarted or replaced begins with what was learned;
    /// [`Registry::forget_learned`](crate::Registry::forget_learned) begins anew. The pacemaker sees
    /// the silences, so a beat costs what it always costs, and a silence that is shorter than the
    /// resolution is seen as one resolution. [`Learner`](crate::Learner) has the rule.
    ///
    /// Nothing is learned from idle time, from an announced silence, or from a silence in which time
    /// was not observed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Health, Learn, MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer")
    ///     .learn_stall_after(Learn::new().ceiling(Duration::from_secs(30)))
    ///     .registry(&registry)
    ///     .start()?;
    /// for _ in 0..400 {
    ///     hb.beat();
    ///     time.advance(Duration::from_millis(800));
    /// }
    /// let learned = hb.snapshot().learned.expect("it learns");
    /// assert_eq!(learned.to_string(), "usually 800 ms, allowed 1.6 s, from 399 silences");
    /// time.advance(Duration::from_secs(1));
    /// assert!(matches!(hb.health(), Health::Stalled(_)));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn learn_stall_after(mut self, learn: Learn) -> Self {
        self.pace.learn = Some(learn);
        self
    }

    /// The highest rate of progress: beats, tasks and all that counts as a beat. A worker that is faster
    /// for a while, such as a loop that fails at once, over and over, is
    /// [racing](crate::EventKind::Racing): a warning, not a state. At least 1 step, in 1 ms to 365 days.
    ///
    /// The rate is measured in cycles of the rate's time, but of 1 s to 10 s. Three cycles in a row
    /// that are too fast, with more steps than the rate's number, begin the episode; three in a row
    /// that are not end it. Time that was not observed is not judged.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{EventKind, MockClock, Rate, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let events = registry.subscribe();
    /// let hb = WorkerHeartbeat::builder("mailer")
    ///     .at_most(Rate::per_second(10))
    ///     .registry(&registry)
    ///     .start()?;
    /// for attempt in 0..50 {
    ///     for _ in 0..20 {
    ///         let task = hb.begin_task(attempt, "connecting");
    ///         task.fail("refused");
    ///     }
    ///     time.advance(Duration::from_millis(100));
    /// }
    /// assert!(hb.snapshot().racing.is_some());
    /// assert!(events.try_iter().any(|event| matches!(event.kind, EventKind::Racing { .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn at_most(mut self, rate: Rate) -> Self {
        self.pace.at_most = Some(rate);
        self
    }
}

/// Checks the limits on the pace. `stall_after`: an explicit limit, which is a ceiling. Returns the
/// limits with their ceiling.
pub(super) fn check_pace(pace: PaceSpec, stall_after: Option<Duration>) -> Result<PaceSpec, Error> {
    if let Some(Rate { count, per }) = pace.at_most {
        if count == 0 || per < Duration::from_millis(1) || per > LONGEST {
            return Err(Error::invalid(
                "at_most",
                format!("{count} in {per:?}"),
                "at least 1, in 1ms to 365 days",
            ));
        }
    }
    let Some(Learn { floor, ceiling }) = pace.learn else {
        return Ok(pace);
    };
    check_duration("learn_stall_after floor", floor, SHORTEST_RESOLUTION)?;
    check_duration("learn_stall_after ceiling", ceiling, SHORTEST_RESOLUTION)?;
    let highest = stall_after.map_or(ceiling, |stall_after| stall_after.min(ceiling));
    if floor > highest {
        let limit = if highest < ceiling {
            "stall_after"
        } else {
            "the ceiling"
        };
        return Err(Error::invalid(
            "learn_stall_after floor",
            format!("{floor:?}"),
            format!("at most {limit}, which is {highest:?}"),
        ));
    }
    Ok(PaceSpec {
        learn: Some(Learn::new().floor(floor).ceiling(highest)),
        ..pace
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::worker::WorkerHeartbeat;

    #[test]
    fn bad_paces_are_refused_by_name() {
        let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
        let worker = || WorkerHeartbeat::builder("w");
        let learning =
            |floor, ceiling| worker().learn_stall_after(Learn::new().floor(floor).ceiling(ceiling));
        let (floor, ceiling) = ("learn_stall_after floor", "learn_stall_after ceiling");
        for (builder, field) in [
            (learning(zero, second), floor),
            (learning(second, zero), ceiling),
            (learning(second, Duration::MAX), ceiling),
            (learning(second * 2, second), floor),
            (learning(second * 2, second * 3).stall_after(second), floor),
            (worker().at_most(Rate::per_second(0)), "at_most"),
            (worker().at_most(Rate::new(1, zero)), "at_most"),
            (worker().at_most(Rate::new(1, Duration::MAX)), "at_most"),
        ] {
            let error = builder.start().expect_err("this must be refused");
            let message = error.to_string();
            assert!(
                message.starts_with(&format!("invalid {field}: ")),
                "{message}"
            );
            assert!(message.contains("; allowed: "), "{message}");
        }
    }
}
