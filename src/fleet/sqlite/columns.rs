//! Reads rows, whatever another program may have written into them.

use std::borrow::Cow;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Row as SqlRow, RowIndex};

use crate::clock::Moment;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::rules::{LeaseEntry, WorkerEntry};
use crate::fleet::shapes::{
    LeaseKey, StoredDeath, StoredEnding, WorkerInfo, WorkerKey, WorkerStatus,
};
use crate::health::{DeathCause, State, Thresholds};

/// Other programs may write to the file. A column of another type is read as far as it makes sense, so
/// that no row keeps others from being read.
pub(super) struct Columns<'a>(pub(super) &'a SqlRow<'a>);

impl<'a> Columns<'a> {
    pub(super) fn some_integer(&self, column: impl RowIndex) -> rusqlite::Result<Option<i64>> {
        Ok(match self.0.get_ref(column)? {
            ValueRef::Null | ValueRef::Blob(_) => None,
            ValueRef::Integer(number) => Some(number),
            // Saturates.
            ValueRef::Real(number) => Some(number as i64),
            ValueRef::Text(text) => String::from_utf8_lossy(text).trim().parse().ok(),
        })
    }

    pub(super) fn integer(&self, column: impl RowIndex) -> rusqlite::Result<i64> {
        Ok(self.some_integer(column)?.unwrap_or(0))
    }

    fn number(&self, column: &str) -> rusqlite::Result<u64> {
        self.integer(column).map(unsigned)
    }

    fn small(&self, column: &str) -> rusqlite::Result<u32> {
        let number = self.number(column)?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn flag(&self, column: &str) -> rusqlite::Result<bool> {
        Ok(self.integer(column)? != 0)
    }

    /// Empty if there is none.
    pub(super) fn shown(&self, column: impl RowIndex) -> rusqlite::Result<Cow<'a, str>> {
        Ok(match self.0.get_ref(column)? {
            ValueRef::Null => Cow::Borrowed(""),
            ValueRef::Integer(number) => Cow::Owned(number.to_string()),
            ValueRef::Real(number) => Cow::Owned(number.to_string()),
            ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text),
        })
    }

    fn some_text(&self, column: &str) -> rusqlite::Result<Option<String>> {
        let is_null = matches!(self.0.get_ref(column)?, ValueRef::Null);
        let text = self.shown(column)?;
        Ok((!is_null).then(|| text.into_owned()))
    }

    fn text(&self, column: &str) -> rusqlite::Result<String> {
        Ok(self.some_text(column)?.unwrap_or_default())
    }

    fn length(&self, column: &str) -> rusqlite::Result<Option<Duration>> {
        Ok(self.some_integer(column)?.map(span))
    }

    fn at(&self, column: &str) -> rusqlite::Result<Option<Moment>> {
        Ok(self.some_integer(column)?.map(moment))
    }
}

pub(super) fn worker(row: &SqlRow<'_>) -> rusqlite::Result<WorkerEntry> {
    let row = Columns(row);
    let thresholds = match row.length("stale_after_ns")? {
        None => None,
        Some(stale_after) => Some(Thresholds {
            stale_after,
            stall_after: row.length("stall_after_ns")?,
            task_deadline: row.length("task_deadline_ns")?,
            progress_after: row.length("progress_after_ns")?,
            startup_grace: row.length("startup_grace_ns")?.unwrap_or(stale_after),
            beats_only: row.flag("beats_only")?,
        }),
    };
    let process = match row.some_integer("pid")? {
        None => None,
        Some(_) => Some(ProcessIdentity {
            hostname: row.text("hostname")?,
            pid: row.small("pid")?,
            started: row.number("process_started")?,
            boot_id: row.text("boot_id")?,
            pid_namespace: row.number("pid_namespace")?,
        }),
    };
    let ending = match row.at("ended_at")? {
        None => None,
        Some(at) => {
            let ending = StoredEnding {
                stopped: row.flag("stopped")?,
                cause: row.text("ending_cause")?,
                detail: row.some_text("ending_detail")?,
                location: row.some_text("ending_location")?,
            };
            Some((ending, at))
        }
    };
    let done = row.some_integer("steps_done")?;
    let total = row.some_integer("steps_total")?;
    Ok(WorkerEntry {
        key: WorkerKey::new(row.text("worker_id")?, row.number("incarnation")?),
        info: WorkerInfo {
            worker_type: row.text("worker_type")?,
            group: row.text("worker_group")?,
            interval: row.length("interval_ns")?.unwrap_or_default(),
            thresholds,
            metadata: metadata(&row.text("metadata")?),
            restarts: row.small("restarts")?,
            process,
        },
        status: WorkerStatus {
            state: State::reported(&row.text("status")?),
            reason: row.some_text("reason")?,
            run_id: row.some_text("run_id")?,
            task: row.some_text("task")?,
            progress: done.zip(total).map(|(d, t)| (unsigned(d), unsigned(t))),
            last_location: row.some_text("last_location")?,
            beats: row.number("beats")?,
            stack: row.some_text("stack")?,
        },
        registered_at: moment(row.integer("registered_at")?),
        heartbeat_at: row.at("heartbeat_at")?,
        progress_at: row.at("progress_at")?,
        ending,
        last_death: row
            .at("last_death_at")?
            .zip(row.some_text("last_death")?)
            .map(|(at, text)| (death(&text), at)),
        withdrawn: row
            .some_text("withdrawn")?
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
    })
}

pub(super) fn lease(row: &SqlRow<'_>) -> rusqlite::Result<LeaseEntry> {
    let row = Columns(row);
    Ok(LeaseEntry {
        key: LeaseKey {
            worker: WorkerKey {
                id: row.text("worker_id")?,
                incarnation: row.number("incarnation")?,
            },
            run_id: row.text("run_id")?,
            fence: row.number("fence")?,
        },
        expires_at: moment(row.integer("expires_at")?),
        attempt: row.some_integer("attempt")?.map(|attempt| attempt as u64),
    })
}

/// An object of strings; other values, which another program wrote, are shown as JSON.
fn metadata(text: &str) -> Vec<(String, String)> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(entries)) => entries
            .into_iter()
            .map(|(name, value)| match value {
                serde_json::Value::String(text) => (name, text),
                other => (name, other.to_string()),
            })
            .collect(),
        _ => Vec::new(),
    }
}

pub(super) fn unsigned(number: i64) -> u64 {
    number.max(0).unsigned_abs()
}

pub(super) fn moment(time: i64) -> Moment {
    Moment::from_nanos(unsigned(time))
}

pub(super) fn span(length: i64) -> Duration {
    Duration::from_nanos(unsigned(length))
}

/// Another program may have written anything.
fn death(text: &str) -> StoredDeath {
    let fields: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let field = |name: &str| fields.get(name)?.as_str().map(str::to_owned);
    let mut ending = StoredEnding::dead(&DeathCause::Lost);
    ending.cause = field("cause").unwrap_or_default();
    ending.detail = field("detail");
    ending.location = field("location");
    StoredDeath {
        run_id: field("run_id"),
        task: field("task"),
        ..StoredDeath::new(ending, Duration::ZERO)
    }
}
