//! Events as rows of a SQLite file.

use std::sync::atomic::{AtomicBool, Ordering};

use log::Level;
use rusqlite::types::Value;
use rusqlite::{Row, named_params};

use super::columns::{moment, unsigned};
use super::tables::{InTransaction, signed, time};
use crate::clock::Moment;
use crate::error::Error;
use crate::fleet::event_rules::NewEvent;
use crate::fleet::shapes::{
    EventFilter, EventPage, FleetCounts, FleetEvent, FleetEventKind, MOST_NAMES, Retention,
    StoredEnding, WorkerKey,
};
use crate::health::State;
use crate::sync::describe::chain;
use crate::sync::log::log_line;
use crate::sync::printable::Printable;

/// How many events a sweep removes at a time, so that other processes need not wait for long.
const BATCH: i64 = 20_000;
const PUT: &str = "\
INSERT INTO events (seq, at, level, kind, worker_id, incarnation, worker_type, worker_group, hostname, \
    pid, state, stopped, cause, detail, location, reason, last_location, run_id, task, stack, restarts) \
VALUES (:seq, :at, :level, :kind, :worker_id, :incarnation, :worker_type, :worker_group, :hostname, \
    :pid, :state, :stopped, :cause, :detail, :location, :reason, :last_location, :run_id, :task, \
    :stack, :restarts)";

impl InTransaction<'_> {
    pub(super) fn insert_event(&self, seq: u64, new: &NewEvent) {
        let event = &new.event;
        let worker = event.worker.as_ref();
        let ending = event.ending.as_ref();
        let written = self.execute(
            PUT,
            named_params! {
                ":seq": signed(seq),
                ":at": time(new.at),
                ":level": event.kind.level() as i64,
                ":kind": event.kind.name(),
                ":worker_id": worker.map(|worker| &worker.id),
                ":incarnation": worker.map(|worker| signed(worker.incarnation)),
                ":worker_type": event.worker_type,
                ":worker_group": event.group,
                ":hostname": event.hostname,
                ":pid": event.pid,
                ":state": event.state.map(State::name),
                ":stopped": ending.map(|ending| ending.stopped),
                ":cause": ending.map(|ending| &ending.cause),
                ":detail": ending.and_then(|ending| ending.detail.as_ref()),
                ":location": ending.and_then(|ending| ending.location.as_ref()),
                ":reason": event.reason,
                ":last_location": event.last_location,
                ":run_id": event.run_id,
                ":task": event.task,
                ":stack": event.stack,
                ":restarts": event.restarts,
            },
        );
        note(written);
    }

    pub(super) fn add_ending(&self, worker_type: &str, how: &str) {
        note(self.execute(
            "INSERT INTO endings VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET total = total + 1",
            [worker_type, how],
        ));
    }

    pub(super) fn read_endings(&self, counts: &mut FleetCounts) {
        let read = || {
            self.connection
                .prepare_cached("SELECT worker_type, how, total FROM endings LIMIT ?")?
                .query_map([4 * MOST_NAMES as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect()
        };
        let endings: Vec<(String, String, i64)> = note(self.wrap_error(read()));
        for (worker_type, how, total) in endings {
            counts.add_endings(&worker_type, &how, unsigned(total));
        }
    }

    pub(super) fn delete_events(&self, retention: &Retention, now: Moment) {
        if let Some(age) = retention.events {
            note(self.execute(
                "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE at <= ? LIMIT ?)",
                [time(now.before(age)), BATCH],
            ));
        }
        if let Some(most) = retention.most_events {
            let most = signed(most as u64);
            for level in Level::iter() {
                note(self.execute(
                    "DELETE FROM events WHERE seq IN (SELECT seq FROM events \
                     WHERE level = ?1 AND seq <= (SELECT seq FROM events \
                     WHERE level = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2) ORDER BY seq LIMIT ?3)",
                    [level as i64, most, BATCH],
                ));
            }
        }
    }

    pub(super) fn read_offline_groups(&self) -> Vec<String> {
        let read = || {
            self.connection
                .prepare_cached(
                    // The other columns are those of the row with the maximum.
                    "SELECT worker_group FROM (SELECT worker_group, kind, max(seq) FROM events \
                     WHERE kind IN ('group_offline', 'group_online') GROUP BY worker_group) \
                     WHERE kind = 'group_offline'",
                )?
                .query_map([], |row| row.get(0))?
                .collect()
        };
        note(self.wrap_error(read()))
    }

    pub(super) fn read_events(
        &self,
        filter: &EventFilter,
        now: Moment,
    ) -> Result<EventPage, Error> {
        let latest = unsigned(self.last_number()?);
        let number = |number: Option<u64>| number.map_or(Value::Null, |n| signed(n).into());
        let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::from);
        let given = [
            number(filter.after),
            number(filter.before),
            i64::from(filter.lowest_level()).into(),
            text(&filter.worker),
            text(&filter.worker_type),
            text(&filter.group),
            signed(filter.page() as u64 + 1).into(),
        ];
        let order = if filter.after.is_some() {
            "ASC"
        } else {
            "DESC"
        };
        let read = || {
            self.connection
                .prepare_cached(&format!(
                    "SELECT * FROM events WHERE seq > coalesce(?1, -1) \
                     AND seq < coalesce(?2, 9223372036854775807) AND level <= ?3 \
                     AND (?4 IS NULL OR worker_id = ?4) AND (?5 IS NULL OR worker_type = ?5) \
                     AND (?6 IS NULL OR worker_group = ?6) ORDER BY seq {order} LIMIT ?7"
                ))?
                .query_map(rusqlite::params_from_iter(given), |row| event(row, now))?
                .collect()
        };
        Ok(EventPage::of(filter, self.wrap_error(read())?, latest))
    }
}

/// Events are a record only: one that fails is logged, once an episode. SQLite undoes a statement that
/// fails by itself; the rest of the transaction is not affected.
fn note<T: Default>(done: Result<T, Error>) -> T {
    static FAILING: AtomicBool = AtomicBool::new(false);
    let fails = done.is_err();
    if FAILING.swap(fails, Ordering::Relaxed) != fails {
        match &done {
            Err(error) => log_line(
                Level::Warn,
                format_args!("sqlite: events are not kept: {}", Printable(&chain(error))),
            ),
            Ok(_) => log_line(Level::Info, format_args!("sqlite: events are kept again")),
        }
    }
    done.unwrap_or_default()
}

fn event(row: &Row<'_>, now: Moment) -> rusqlite::Result<FleetEvent> {
    let worker: Option<String> = row.get("worker_id")?;
    let incarnation: Option<i64> = row.get("incarnation")?;
    let cause: Option<String> = row.get("cause")?;
    let ending = match cause {
        None => None,
        Some(cause) => Some(StoredEnding {
            stopped: row.get::<_, Option<bool>>("stopped")?.unwrap_or(false),
            cause,
            detail: row.get("detail")?,
            location: row.get("location")?,
        }),
    };
    let state: Option<String> = row.get("state")?;
    let kind: String = row.get("kind")?;
    Ok(FleetEvent {
        seq: unsigned(row.get("seq")?),
        age: now.since(moment(row.get("at")?)),
        worker: worker.map(|id| WorkerKey::new(id, unsigned(incarnation.unwrap_or(0)))),
        worker_type: row.get("worker_type")?,
        group: row.get("worker_group")?,
        hostname: row.get("hostname")?,
        pid: row
            .get::<_, Option<i64>>("pid")?
            .and_then(|pid| u32::try_from(pid).ok()),
        state: state.as_deref().map(State::reported),
        ending,
        reason: row.get("reason")?,
        last_location: row.get("last_location")?,
        run_id: row.get("run_id")?,
        task: row.get("task")?,
        stack: row.get("stack")?,
        restarts: u32::try_from(row.get::<_, i64>("restarts")?).unwrap_or(u32::MAX),
        ..FleetEvent::new(FleetEventKind::from_name(&kind))
    })
}
