//! Steps of the database's clock, as the monotonic clock of this process sees them.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::one;
use crate::error::{Error, StoreErrorKind};
use crate::fleet::shapes::Sweep;
use crate::sync::log::log_line;

/// Smaller steps, and drifts of less than a twentieth, are not charged to the clock.
const LEAST_STEP: Duration = Duration::from_secs(1);
const DRIFT: u32 = 20;
/// How many workers one statement corrects.
const BATCH: i64 = 10_000;

/// When the database's clock was read last, and what it showed.
#[derive(Debug, Default)]
pub(super) struct ClockWatch {
    last: Mutex<Option<Reading>>,
    /// When the clock was last found to be set forward.
    set_forward: Mutex<Option<Instant>>,
}

/// The database read its clock between two moments.
#[derive(Clone, Copy, Debug)]
struct Reading {
    before: Instant,
    after: Instant,
    /// Microseconds since 1970.
    shown: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Forward(Duration),
    Back(Duration),
}

impl ClockWatch {
    /// Before a sweep. If the clock was set forward, all workers seem to be silent for that long: this is
    /// an error once, after which a sweeper counts silence from the start. If it was set back, heartbeats are from
    /// the future, and would hide a silence: they count from now on.
    pub(super) fn check(&self, connection: &Connection, dry_run: bool) -> Result<(), Error> {
        let mut last = self.last.lock();
        let before = Instant::now();
        let sql = "SELECT (extract(epoch FROM now()) * 1000000)::bigint";
        let rows = connection.query("sweep", true, sql, &[])?;
        let reading = Reading {
            before,
            after: Instant::now(),
            shown: one(&rows, "sweep")?,
        };
        let step = last.replace(reading).and_then(|last| reading.step(&last));
        drop(last);
        match step {
            Some(Step::Forward(by)) => {
                *self.set_forward.lock() = Some(Instant::now());
                Err(Error::store_kind(
                    "sweep",
                    StoreErrorKind::Other,
                    format!(
                        "the clock of the database was set forward by {by:.1?}; silence is counted \
                         anew"
                    ),
                ))
            }
            Some(Step::Back(by)) if !dry_run => {
                log_line(
                    log::Level::Warn,
                    format_args!(
                        "postgres: the clock of the database was set back by {by:.1?}; heartbeats \
                         from the future count from now on"
                    ),
                );
                correct(connection)
            }
            _ => Ok(()),
        }
    }

    /// The sweep without the time that was watched before the clock was set forward: by the new time,
    /// a worker seems to have been silent in it.
    pub(super) fn clip<'a>(&self, sweep: &'a Sweep) -> Cow<'a, Sweep> {
        let Some(set) = *self.set_forward.lock() else {
            return Cow::Borrowed(sweep);
        };
        let mut sweep = sweep.clone();
        for span in &mut sweep.watched_before {
            span.began = span.began.min(set.elapsed());
        }
        sweep.watched_before.retain(|span| span.began > span.ended);
        Cow::Owned(sweep)
    }
}

impl Reading {
    fn step(&self, last: &Self) -> Option<Step> {
        let shown = i128::from(self.shown) - i128::from(last.shown);
        let micros = |time: Duration| i128::try_from(time.as_micros()).unwrap_or(i128::MAX);
        let step = |micros: i128| Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let longest = self.after.saturating_duration_since(last.before);
        let shortest = self.before.saturating_duration_since(last.after);
        let slack = micros(LEAST_STEP + longest / DRIFT);
        if shown > micros(longest) + slack {
            Some(Step::Forward(step(shown - micros(longest))))
        } else if shown + slack < micros(shortest) {
            Some(Step::Back(step(micros(shortest) - shown)))
        } else {
            None
        }
    }
}

fn correct(connection: &Connection) -> Result<(), Error> {
    loop {
        let corrected = connection.query(
            "sweep",
            true,
            "WITH ahead AS MATERIALIZED (\
             SELECT w.worker_id FROM @schema@.worker_heartbeats w WHERE w.ended_at IS NULL \
             AND greatest(w.last_heartbeat_at, w.started_at) > now() LIMIT $1 FOR UPDATE SKIP LOCKED), \
             corrected AS (\
             UPDATE @schema@.worker_heartbeats w SET started_at = least(w.started_at, now()), \
             last_heartbeat_at = least(w.last_heartbeat_at, now()), \
             last_progress_at = least(w.last_progress_at, now()) \
             FROM ahead a WHERE w.worker_id = a.worker_id RETURNING 1) \
             SELECT count(*) FROM corrected",
            &[(&BATCH, Type::INT8)],
        )?;
        if one::<i64>(&corrected, "sweep")? < BATCH {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_charged_that_was_watched_before_the_clock_was_set() {
        use crate::fleet::shapes::WatchedSpan;

        let second = Duration::from_secs(1);
        let sweep = Sweep {
            watched_for: Duration::ZERO,
            watched_before: [(900, 60), (50, 20)]
                .map(|(began, ended)| WatchedSpan::new(began * second, ended * second))
                .to_vec(),
            ..Sweep::default()
        };
        let watch = ClockWatch::default();
        assert_eq!(watch.clip(&sweep).charged(3_600 * second), 870 * second / 4);
        *watch.set_forward.lock() = Instant::now().checked_sub(40 * second);
        let charged = watch.clip(&sweep).charged(3_600 * second);
        assert!(charged < 21 * second / 4, "{charged:?}");
        *watch.set_forward.lock() = Some(Instant::now());
        assert_eq!(watch.clip(&sweep).charged(3_600 * second), Duration::ZERO);
    }

    #[test]
    fn only_a_step_that_the_duration_of_the_calls_cannot_explain_is_one() {
        let start = Instant::now();
        let at = |before: u64, after: u64, shown: i64| Reading {
            before: start + Duration::from_millis(before),
            after: start + Duration::from_millis(after),
            shown: shown * 1_000,
        };
        let last = at(0, 10, 1_000);
        let step = |reading: Reading| reading.step(&last);
        assert_eq!(step(at(10_000, 10_010, 11_000)), None);
        assert_eq!(step(at(10_000, 14_000, 15_000)), None, "a slow call");
        assert_eq!(step(at(10_000, 10_010, 12_400)), None, "drift");
        let (hour, back) = (3_600_000, Step::Back(Duration::from_millis(3_600_000 - 10)));
        let forward = Step::Forward(Duration::from_millis(3_600_000 - 10));
        assert_eq!(step(at(10_000, 10_010, 11_000 + hour)), Some(forward));
        assert_eq!(step(at(10_000, 10_010, 11_000 - hour)), Some(back));
    }
}
