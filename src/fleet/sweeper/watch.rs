//! How long a sweeper has watched its store, and in which pieces.
//!
//! The time between two sweeps that the store answered is watched, however long the sweeps took. It
//! is not watched if the sweeper did not run when it should have, if the machine was suspended, or if
//! the store could not be reached.

use std::time::{Duration, SystemTime};

use crate::clock::Moment;
use crate::fleet::shapes::WatchedSpan;

/// When there are more earlier spans, two of them become one.
const MOST_SPANS: usize = 64;

/// How late a sweeper may be, and how long a sweep may take.
pub(super) fn slack(interval: Duration) -> Duration {
    Duration::from_secs(1).saturating_add(interval / 4)
}

/// One moment on both clocks. The monotonic clock stops while a machine is suspended, the wall clock
/// does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub clock: Moment,
    pub wall: SystemTime,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Watch {
    current: Option<Current>,
    /// The oldest first.
    before: Vec<Span>,
}

/// The span that goes on.
#[derive(Clone, Copy, Debug)]
struct Current {
    since: Moment,
    /// Watched time before that.
    extra: Duration,
    /// The last moment at which the sweeper was at work.
    last: Now,
}

/// A span, or several with gaps between them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    began: Moment,
    ended: Moment,
    /// How much of it was watched.
    watched: Duration,
}

impl Watch {
    /// The caller has watched for this long.
    pub(super) const fn for_long(extra: Duration, now: Now) -> Self {
        Self {
            current: Some(Current {
                since: now.clock,
                extra,
                last: now,
            }),
            before: Vec::new(),
        }
    }

    /// A sweep begins.
    pub(super) fn begin(&mut self, now: Now, interval: Duration) {
        self.pass(now, interval.saturating_add(slack(interval)), interval);
        let new = Current {
            since: now.clock,
            extra: Duration::ZERO,
            last: now,
        };
        self.current.get_or_insert(new).last = now;
    }

    /// The sweeper was at work until now.
    pub(super) fn work_done(&mut self, now: Now, interval: Duration) {
        self.pass(now, Duration::MAX, interval);
        // Nothing is watched before the store answers a sweep.
        if let Some(current) = &mut self.current {
            current.last = now;
        }
    }

    /// The store failed: nothing was watched from the last sweep that it answered until the next one.
    /// Of that, only the time until the failing sweep counts among the pieces.
    pub(super) fn interrupt(&mut self, failed_at: Moment) {
        if let Some(current) = self.current.take() {
            self.close(current.since, failed_at);
        }
    }

    /// How long the store has been watched without a gap.
    pub(super) fn unbroken(&self, now: Moment) -> Duration {
        self.current.map_or(Duration::ZERO, |current| {
            now.since(current.since).saturating_add(current.extra)
        })
    }

    /// The spans before that.
    pub(super) fn before(&self, now: Moment) -> Vec<WatchedSpan> {
        // The watched part of several spans is taken for the oldest: so no silence is charged with more
        // than was watched of it.
        let spans = self.before.iter();
        spans
            .map(|span| {
                let watched_until = span.began.after(span.watched);
                WatchedSpan::new(now.since(span.began), now.since(watched_until))
            })
            .collect()
    }

    /// Ends the current span if more than this has passed since the last work, or if the machine was
    /// suspended.
    fn pass(&mut self, now: Now, allowed: Duration, interval: Duration) {
        let Some(current) = self.current else {
            return;
        };
        let passed = now.clock.since(current.last.clock);
        let by_wall = now.wall.duration_since(current.last.wall);
        let suspended = by_wall.unwrap_or_default() > passed.saturating_add(slack(interval));
        if passed > allowed || suspended {
            self.current = None;
            // Of the time for which the sweeper meant to sleep, this much counts among the pieces.
            let meant = interval.min(slack(interval)).min(passed);
            self.close(current.since, current.last.clock.after(meant));
        }
    }

    fn close(&mut self, began: Moment, ended: Moment) {
        if ended > began {
            let watched = ended.since(began);
            self.before.push(Span {
                began,
                ended,
                watched,
            });
        }
        if self.before.len() > MOST_SPANS {
            self.merge_two(ended);
        }
    }

    /// Merges the two neighbours that are closest together, in proportion to their age: the older, the
    /// coarser.
    fn merge_two(&mut self, now: Moment) {
        let coarseness = |pair: &[Span]| {
            let length = pair[1].ended.since(pair[0].began).as_secs_f64();
            length
                / now
                    .since(pair[1].ended)
                    .as_secs_f64()
                    .max(f64::MIN_POSITIVE)
        };
        let pairs = self.before.windows(2).map(coarseness).enumerate();
        if let Some((n, _)) = pairs.min_by(|(_, a), (_, b)| a.total_cmp(b)) {
            let newer = self.before.remove(n + 1);
            self.before[n].ended = newer.ended;
            self.before[n].watched += newer.watched;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::shapes::Sweep;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Now {
        let passed = Duration::from_secs(seconds);
        Now {
            clock: Moment::ZERO.after(passed),
            wall: SystemTime::UNIX_EPOCH + passed,
        }
    }

    /// A sweep that the store answers after `took` seconds.
    fn answered(watch: &mut Watch, begun: u64, took: u64) -> Duration {
        watch.begin(at(begun), SECOND);
        let unbroken = watch.unbroken(at(begun).clock);
        watch.work_done(at(begun + took), SECOND);
        unbroken
    }

    fn failed(watch: &mut Watch, begun: u64) {
        watch.begin(at(begun), SECOND);
        watch.interrupt(at(begun).clock);
    }

    fn charged(watch: &Watch, now: u64, silence: u64) -> Duration {
        let sweep = Sweep {
            watched_for: watch.unbroken(at(now).clock),
            watched_before: watch.before(at(now).clock),
            ..Sweep::default()
        };
        sweep.charged(Duration::from_secs(silence))
    }

    #[test]
    fn a_slow_sweep_is_watched_time() {
        let mut watch = Watch::default();
        for round in 0..10 {
            let unbroken = answered(&mut watch, round * 31, 30);
            assert_eq!(unbroken, SECOND * 31 * round as u32);
        }
    }

    #[test]
    fn a_pause_begins_a_new_span() {
        let mut watch = Watch::default();
        answered(&mut watch, 0, 0);
        assert_eq!(answered(&mut watch, 2, 0), 2 * SECOND);
        assert_eq!(answered(&mut watch, 100, 0), Duration::ZERO);
        // Of the pause, the time for which it meant to sleep.
        assert_eq!(
            watch.before,
            [Span {
                began: at(0).clock,
                ended: at(3).clock,
                watched: 3 * SECOND
            }]
        );
        // A suspended machine: only the wall clock goes on.
        watch.begin(
            Now {
                clock: at(101).clock,
                wall: at(3_600).wall,
            },
            SECOND,
        );
        assert_eq!(watch.unbroken(at(101).clock), Duration::ZERO);
    }

    #[test]
    fn an_outage_gives_everybody_the_full_allowance_again() {
        let mut watch = Watch::default();
        for second in 0..1_000 {
            answered(&mut watch, second, 0);
        }
        for second in 1_000..1_600 {
            failed(&mut watch, second);
        }
        answered(&mut watch, 1_600, 0);
        // It was well before the outage.
        assert!(charged(&watch, 1_600, 601) < SECOND);
        answered(&mut watch, 1_601, 0);
        assert_eq!(charged(&watch, 1_601, 602), SECOND);
    }

    #[test]
    fn failures_that_come_again_and_again_only_delay() {
        for rounds in [200_u64, 5_000, 200_000] {
            let mut watch = Watch::default();
            for round in 0..rounds {
                answered(&mut watch, 2 * round, 0);
                failed(&mut watch, 2 * round + 1);
            }
            assert!(watch.before.len() <= MOST_SPANS);
            let now = 2 * rounds;
            for silence in [now / 10, now / 2, now] {
                let charged = charged(&watch, now, silence);
                // Half of it in pieces, which count a quarter, and are merged to older ones.
                let watched = Duration::from_secs(silence) / 2 / 4;
                assert!(charged <= watched + SECOND, "{rounds}: {charged:?}");
                assert!(
                    charged >= watched / 2,
                    "{rounds}: {charged:?} of {watched:?}"
                );
            }
        }
    }
}
