//! Conversions between the store's types and the tables' columns.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio_postgres::Row;

use crate::error::Error;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::shapes::{
    Answer, StoredDeath, StoredEnding, StoredWorker, WorkerInfo, WorkerKey, WorkerStatus,
};
use crate::health::{State, Thresholds};

/// A hundred years: a sum of such times stays within the range of the database.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The columns that `list` reads. A worker that is silent by its row may have been heard from while
/// its row was locked.
pub(super) const COLUMNS: &str = "\
w.worker_id, w.incarnation, w.worker_type, w.worker_group, \
(extract(epoch FROM @schema@.bounded(w.heartbeat_interval)) * 1000000)::bigint AS heartbeat_interval, \
(extract(epoch FROM @schema@.bounded(w.stale_after)) * 1000000)::bigint AS stale_after, \
(extract(epoch FROM @schema@.bounded(w.stall_after)) * 1000000)::bigint AS stall_after, \
(extract(epoch FROM @schema@.bounded(w.startup_grace)) * 1000000)::bigint AS startup_grace, \
(extract(epoch FROM @schema@.bounded(w.task_deadline)) * 1000000)::bigint AS task_deadline, \
(extract(epoch FROM @schema@.bounded(w.progress_after)) * 1000000)::bigint AS progress_after, \
w.beats_only, w.metadata::text AS metadata, w.restarts, w.hostname, w.pid, w.process_started, \
w.boot_id, w.pid_namespace, CASE WHEN w.ended_at IS NULL \
THEN w.status ELSE coalesce(w.last_status, w.status) END AS reported, w.reason, \
@schema@.age_micros(w.started_at) AS registered_age, \
CASE WHEN w.ended_at IS NULL AND @schema@.silence(w) > \
@schema@.allowed_silence(w, @schema@.default_stale_after()) THEN @schema@.age_micros(greatest( \
w.last_heartbeat_at, @schema@.deferred_heartbeat(w.worker_id, w.incarnation))) \
ELSE @schema@.age_micros(w.last_heartbeat_at) END AS heartbeat_age, \
@schema@.age_micros(w.last_progress_at) AS progress_age, \
w.current_run_id, w.current_task, w.progress_done, w.progress_total, w.beats, w.last_location, \
w.stack, \
(SELECT -@schema@.age_micros(max(l.expires_at)) FROM @schema@.leases l \
WHERE l.worker_id = w.worker_id AND l.incarnation = w.incarnation AND l.expires_at > now()) \
AS lease_remaining, \
w.status = 'stopped' AS stopped, w.ended_cause, w.ended_detail, w.ended_location, \
@schema@.age_micros(w.ended_at) AS ended_age, w.last_death_cause, w.last_death_detail, \
w.last_death_location, w.last_death_run_id, w.last_death_task, \
@schema@.age_micros(w.last_death_at) AS last_death_age";

/// An age in whole microseconds, rounded down: ages are never over-estimated.
pub(super) fn age(age: Duration) -> i64 {
    age.min(LONGEST).as_micros() as i64
}

/// A limit in whole microseconds, rounded up: limits are never shortened.
pub(super) fn limit(limit: Duration) -> i64 {
    age(limit.saturating_add(Duration::from_nanos(999)))
}

pub(super) fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// Keeps the bits of a number that is not compared in the database.
pub(super) const fn number(number: u64) -> i64 {
    number as i64
}

/// The inverse of [`number`].
pub(super) const fn bits(number: i64) -> u64 {
    number as u64
}

/// Keeps the order of numbers; the database never gives one that does not fit.
pub(super) fn ordered(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// PostgreSQL stores no zero bytes: one in a text must not fail a whole batch.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Other programs may have written values that are not strings; these are shown as JSON.
fn metadata(json: &str) -> Vec<(String, String)> {
    let fields: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    fields
        .into_iter()
        .map(|(name, value)| match value {
            Value::String(value) => (name, value),
            value => (name, value.to_string()),
        })
        .collect()
}

/// A worker ends by a stop, never by a beat.
pub(super) const fn status(state: State) -> &'static str {
    if state.is_terminal() {
        State::Stopping.name()
    } else {
        state.name()
    }
}

pub(super) fn answer(name: &str) -> Answer {
    match name {
        "superseded" => Answer::Superseded,
        "ended" => Answer::Ended,
        "busy" => Answer::Busy,
        _ => Answer::Unknown,
    }
}

pub(super) fn unreadable(operation: &'static str, error: &tokio_postgres::Error) -> Error {
    Error::store(
        operation,
        format_args!("failed to read the answer: {error}"),
    )
}

pub(super) fn worker(row: &Row) -> Result<StoredWorker, tokio_postgres::Error> {
    let time =
        |name| Ok::<_, tokio_postgres::Error>(row.try_get::<_, Option<i64>>(name)?.map(duration));
    let thresholds = match time("stale_after")? {
        None => None,
        Some(stale_after) => Some(Thresholds {
            stale_after,
            stall_after: time("stall_after")?,
            task_deadline: time("task_deadline")?,
            progress_after: time("progress_after")?,
            startup_grace: time("startup_grace")?.unwrap_or(stale_after),
            beats_only: row.try_get("beats_only")?,
        }),
    };
    let process = match row.try_get::<_, Option<i64>>("pid")? {
        None => None,
        Some(pid) => Some(ProcessIdentity {
            hostname: row.try_get::<_, Option<_>>("hostname")?.unwrap_or_default(),
            pid: u32::try_from(pid).unwrap_or(0),
            started: unsigned(row.try_get("process_started")?),
            boot_id: row.try_get::<_, Option<_>>("boot_id")?.unwrap_or_default(),
            pid_namespace: unsigned(row.try_get("pid_namespace")?),
        }),
    };
    let done: Option<i64> = row.try_get("progress_done")?;
    let total: Option<i64> = row.try_get("progress_total")?;
    let ending = match time("ended_age")? {
        None => None,
        Some(ago) => Some((
            StoredEnding {
                stopped: row.try_get("stopped")?,
                cause: row
                    .try_get::<_, Option<_>>("ended_cause")?
                    .unwrap_or_default(),
                detail: row.try_get("ended_detail")?,
                location: row.try_get("ended_location")?,
            },
            ago,
        )),
    };
    Ok(StoredWorker {
        key: WorkerKey {
            id: row.try_get("worker_id")?,
            incarnation: unsigned(row.try_get("incarnation")?),
        },
        info: WorkerInfo {
            worker_type: row.try_get("worker_type")?,
            group: row.try_get("worker_group")?,
            interval: time("heartbeat_interval")?.unwrap_or_default(),
            thresholds,
            metadata: metadata(row.try_get("metadata")?),
            restarts: u32::try_from(row.try_get::<_, i64>("restarts")?).unwrap_or(u32::MAX),
            process,
        },
        status: WorkerStatus {
            state: State::reported(row.try_get("reported")?),
            reason: row.try_get("reason")?,
            run_id: row.try_get("current_run_id")?,
            task: row.try_get("current_task")?,
            progress: done
                .zip(total)
                .map(|(done, total)| (bits(done), bits(total))),
            last_location: row.try_get("last_location")?,
            beats: unsigned(row.try_get("beats")?),
            stack: row.try_get("stack")?,
        },
        registered_age: time("registered_age")?.unwrap_or_default(),
        heartbeat_age: time("heartbeat_age")?,
        progress_age: time("progress_age")?,
        lease_remaining: time("lease_remaining")?,
        ending,
        last_death: match time("last_death_age")? {
            None => None,
            Some(age) => Some(StoredDeath {
                ending: StoredEnding {
                    stopped: false,
                    cause: row
                        .try_get::<_, Option<_>>("last_death_cause")?
                        .unwrap_or_default(),
                    detail: row.try_get("last_death_detail")?,
                    location: row.try_get("last_death_location")?,
                },
                run_id: row.try_get("last_death_run_id")?,
                task: row.try_get("last_death_task")?,
                age,
            }),
        },
    })
}

fn unsigned(number: Option<i64>) -> u64 {
    bits(number.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_rounded_down_and_limits_up() {
        let odd = Duration::from_nanos(1_500);
        assert_eq!((age(odd), limit(odd)), (1, 2));
        assert_eq!(limit(Duration::from_micros(7)), 7);
        assert_eq!(age(Duration::MAX), limit(Duration::MAX));
        assert_eq!(duration(-5), Duration::ZERO);
    }

    #[test]
    fn numbers_are_restored() {
        for n in [0, 7, u64::MAX] {
            assert_eq!(bits(number(n)), n);
        }
        assert_eq!(ordered(u64::MAX), i64::MAX);
    }

    #[test]
    fn metadata_of_other_programs_may_be_any_json() {
        let read = metadata(r#"{"a": "b", "load": 0.5, "x": [1, null]}"#);
        let expected = [("a", "b"), ("load", "0.5"), ("x", "[1,null]")];
        assert_eq!(read, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        for none in ["null", "[1]", "7", ""] {
            assert_eq!(metadata(none), []);
        }
    }
}
