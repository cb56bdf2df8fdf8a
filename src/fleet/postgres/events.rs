//! Events: read, and recorded where a sweep is over. The functions that write workers record the others.

use log::Level;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::lists::clean;
use super::{Connections, one, rows};
use crate::error::Error;
use crate::fleet::shapes::{
    EventFilter, EventPage, FleetEvent, FleetEventKind, Retention, StoredEnding, Sweep, WorkerKey,
};
use crate::health::{State, SweepReport};
use crate::sync::log::log_line;
use crate::sync::printable::Printable;

/// How many events one transaction removes.
const BATCH: i64 = 10_000;

impl Connections {
    pub(super) fn events(&self, filter: &EventFilter) -> Result<EventPage, Error> {
        let limit = i64::try_from(filter.page())
            .unwrap_or(i64::MAX)
            .saturating_add(1);
        let texts = || {
            let texts = [&filter.worker, &filter.worker_type, &filter.group];
            texts.into_iter().flatten().map(String::as_str)
        };
        let sql = "SELECT e.seq, @schema@.age_micros(e.at) AS age, e.kind, e.worker_id, e.incarnation, \
             e.worker_type, e.worker_group, e.hostname, e.pid, e.state, e.cause, e.detail, e.location, \
             e.reason, e.last_location, e.run_id, e.task, e.stack, e.restarts \
             FROM @schema@.read_events($1, $2, $3, $4, $5, $6, $7) e";
        // Nothing has a name with a character that the database lacks.
        while texts().all(|text| self.texts.fits(text)) {
            let found = self.scans.try_query(
                "list",
                true,
                sql,
                &[
                    (&filter.after.map(rows::ordered), Type::INT8),
                    (&filter.before.map(rows::ordered), Type::INT8),
                    (&limit, Type::INT8),
                    (&filter.level.map(|level| level as i32), Type::INT4),
                    (&clean(&filter.worker), Type::TEXT),
                    (&clean(&filter.worker_type), Type::TEXT),
                    (&clean(&filter.group), Type::TEXT),
                ],
            );
            match found {
                Ok(found) => {
                    return page(filter, &found).map_err(|error| rows::unreadable("list", &error));
                }
                Err(failed) => self.learn_from(failed, texts())?,
            }
        }
        Ok(EventPage::of(filter, Vec::new(), filter.after.unwrap_or(0)))
    }
}

fn page(filter: &EventFilter, found: &[Row]) -> Result<EventPage, tokio_postgres::Error> {
    let Some((first, rest)) = found.split_first() else {
        return Ok(EventPage::of(filter, Vec::new(), filter.after.unwrap_or(0)));
    };
    let latest = rows::bits(first.try_get::<_, Option<i64>>("seq")?.unwrap_or(0));
    let mut events = rest.iter().map(event).collect::<Result<Vec<_>, _>>()?;
    // A statement that calls a function need not keep its order.
    events.sort_unstable_by_key(|event| event.seq);
    if filter.after.is_none() {
        events.reverse();
    }
    Ok(EventPage::of(filter, events, latest))
}

fn event(row: &Row) -> Result<FleetEvent, tokio_postgres::Error> {
    let kind = FleetEventKind::from_name(row.try_get("kind")?);
    let incarnation: Option<i64> = row.try_get("incarnation")?;
    let worker: Option<String> = row.try_get("worker_id")?;
    let pid: Option<i64> = row.try_get("pid")?;
    let ending = match row.try_get("cause")? {
        None => None,
        Some(cause) => Some(StoredEnding {
            stopped: kind == FleetEventKind::Stopped,
            cause,
            detail: row.try_get("detail")?,
            location: row.try_get("location")?,
        }),
    };
    let age: Option<i64> = row.try_get("age")?;
    Ok(FleetEvent {
        seq: rows::bits(row.try_get("seq")?),
        age: rows::duration(age.unwrap_or(0)),
        worker: worker.map(|id| WorkerKey::new(id, rows::bits(incarnation.unwrap_or(0)))),
        worker_type: row.try_get("worker_type")?,
        group: row.try_get("worker_group")?,
        hostname: row.try_get("hostname")?,
        pid: pid.and_then(|pid| u32::try_from(pid).ok()),
        state: row
            .try_get::<_, Option<&str>>("state")?
            .map(State::reported),
        ending,
        reason: row.try_get("reason")?,
        last_location: row.try_get("last_location")?,
        run_id: row.try_get("run_id")?,
        task: row.try_get("task")?,
        stack: row.try_get("stack")?,
        restarts: u32::try_from(row.try_get::<_, i64>("restarts")?).unwrap_or(u32::MAX),
        ..FleetEvent::new(kind)
    })
}

/// A sweep that was done stays done if its events can't be kept.
pub(super) fn record_sweep(connection: &Connection, sweep: &Sweep, report: &SweepReport) {
    let count = |names: &[String]| i64::try_from(names.len()).unwrap_or(i64::MAX);
    let recorded = connection.query(
        "sweep",
        false,
        "SELECT @schema@.record_sweep($1, $2, $3, @schema@.micros($4), @schema@.micros($5))",
        &[
            (&count(&report.marked_offline), Type::INT8),
            (&count(&report.released_leases), Type::INT8),
            (&report.affected_groups, Type::TEXT_ARRAY),
            (&rows::limit(sweep.threshold), Type::INT8),
            (&rows::age(sweep.watched_for), Type::INT8),
        ],
    );
    warn("recorded", recorded);
}

pub(super) fn trim(connection: &Connection, retention: &Retention) {
    if retention.events.is_none() && retention.most_events.is_none() {
        return;
    }
    let most = retention.most_events;
    let most = most.map(|most| i64::try_from(most).unwrap_or(i64::MAX));
    loop {
        let trimmed = connection.query(
            "purge",
            false,
            "SELECT @schema@.trim_events(@schema@.micros($1), $2, $3)",
            &[
                (&retention.events.map(rows::limit), Type::INT8),
                (&most, Type::INT8),
                (&BATCH, Type::INT8),
            ],
        );
        let trimmed = trimmed.and_then(|rows| one::<i64>(&rows, "purge"));
        let is_over = trimmed.as_ref().map_or(true, |count| *count < BATCH);
        warn("removed", trimmed);
        if is_over {
            return;
        }
    }
}

fn warn<T>(what: &str, done: Result<T, Error>) {
    if let Err(error) = done {
        log_line(
            Level::Warn,
            format_args!(
                "postgres: events are not {what}: {}",
                Printable(&error.to_string())
            ),
        );
    }
}
