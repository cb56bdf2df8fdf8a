//! Workers and leases as rows of a SQLite file, within one transaction.

use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OptionalExtension, named_params};

use super::columns::{lease, unsigned, worker};
use crate::clock::{Moment, nanos};
use crate::error::{Error, StoreErrorKind};
use crate::fleet::event_rules::NewEvent;
use crate::fleet::rules::{LeaseEntry, SweepMark, Tables, WorkerEntry};
use crate::fleet::shapes::{Retention, StoredDeath};

/// The columns that this version writes. A newer version may have added some, which are kept.
const WORKER_COLUMNS: &[&str] = &[
    "worker_id",
    "incarnation",
    "worker_type",
    "worker_group",
    "interval_ns",
    "stale_after_ns",
    "stall_after_ns",
    "startup_grace_ns",
    "beats_only",
    "metadata",
    "restarts",
    "pid",
    "process_started",
    "hostname",
    "boot_id",
    "pid_namespace",
    "status",
    "reason",
    "registered_at",
    "heartbeat_at",
    "progress_at",
    "run_id",
    "task",
    "steps_done",
    "steps_total",
    "beats",
    "stack",
    "ended_at",
    "stopped",
    "ending_cause",
    "ending_detail",
    "ending_location",
    "withdrawn",
    "last_death_at",
    "last_death",
    "task_deadline_ns",
    "progress_after_ns",
    "last_location",
];
const LEASE_COLUMNS: &[&str] = &[
    "run_id",
    "worker_id",
    "incarnation",
    "fence",
    "expires_at",
    "attempt",
];

static PUT_WORKER: LazyLock<String> = LazyLock::new(|| upsert("workers", WORKER_COLUMNS));
static PUT_LEASE: LazyLock<String> = LazyLock::new(|| upsert("leases", LEASE_COLUMNS));

/// Inserts or updates a row by its first column. The parameters have the names of the columns.
fn upsert(table: &str, columns: &[&str]) -> String {
    let key = columns.first().copied().unwrap_or_default();
    let new: Vec<String> = columns.iter().map(|name| format!(":{name}")).collect();
    let set: Vec<String> = columns
        .iter()
        .skip(1)
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    let (names, new, set) = (columns.join(", "), new.join(", "), set.join(", "));
    format!("INSERT INTO {table} ({names}) VALUES ({new}) ON CONFLICT ({key}) DO UPDATE SET {set}")
}

/// The tables within one transaction.
pub(super) struct InTransaction<'a> {
    pub(super) connection: &'a Connection,
    /// The operation that errors name.
    operation: &'static str,
}

pub(super) fn failed(operation: &'static str, error: rusqlite::Error) -> Error {
    let (kind, message) = described(&error);
    Error::store_failed(operation, kind, message, error)
}

/// Whether a write failed because of what was to be written.
pub(super) fn is_about_data(error: &Error) -> bool {
    use ErrorCode::{ConstraintViolation, TooBig, TypeMismatch};
    let source = std::error::Error::source(error);
    let code = source
        .and_then(|source| source.downcast_ref::<rusqlite::Error>())
        .and_then(rusqlite::Error::sqlite_error_code);
    matches!(code, Some(ConstraintViolation | TypeMismatch | TooBig))
}

/// The kind of a failure, and what to say of it.
pub(super) fn described(error: &rusqlite::Error) -> (StoreErrorKind, &'static str) {
    use ErrorCode::{
        AuthorizationForStatementDenied, CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked,
        DiskFull, NotADatabase, PermissionDenied, ReadOnly,
    };
    match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked) => (
            StoreErrorKind::Busy,
            "another process has been writing for too long",
        ),
        Some(CannotOpen) => (StoreErrorKind::Unreachable, "the file cannot be opened"),
        Some(PermissionDenied | ReadOnly | AuthorizationForStatementDenied) => {
            (StoreErrorKind::Denied, "the file cannot be written")
        }
        Some(NotADatabase | DatabaseCorrupt) => (
            StoreErrorKind::Incompatible,
            "it is damaged, or not a database of SQLite",
        ),
        Some(DiskFull) => (StoreErrorKind::Other, "no room is left"),
        _ => (StoreErrorKind::Other, "SQLite failed"),
    }
}

impl<'a> InTransaction<'a> {
    pub(super) const fn new(connection: &'a Connection, operation: &'static str) -> Self {
        Self {
            connection,
            operation,
        }
    }

    /// Undoes what `act` wrote if it fails.
    pub(super) fn alone<T>(
        &mut self,
        act: impl FnOnce(&mut dyn Tables) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let run = |sql| self.wrap_error(self.connection.execute_batch(sql));
        run("SAVEPOINT item")?;
        let done = act(self);
        let end = match &done {
            Ok(_) => "RELEASE item",
            Err(_) => "ROLLBACK TO item; RELEASE item",
        };
        self.wrap_error(self.connection.execute_batch(end))?;
        done
    }

    pub(super) fn wrap_error<T>(&self, result: rusqlite::Result<T>) -> Result<T, Error> {
        result.map_err(|error| failed(self.operation, error))
    }

    pub(super) fn workers(
        &self,
        condition: &str,
        given: Vec<Value>,
    ) -> Result<Vec<WorkerEntry>, Error> {
        let read = || {
            self.connection
                .prepare_cached(&format!("SELECT * FROM workers WHERE {condition}"))?
                .query_map(rusqlite::params_from_iter(given), worker)?
                .collect()
        };
        self.wrap_error(read())
    }

    pub(super) fn leases(
        &self,
        condition: &str,
        given: Vec<Value>,
    ) -> Result<Vec<LeaseEntry>, Error> {
        let read = || {
            self.connection
                .prepare_cached(&format!("SELECT * FROM leases WHERE {condition}"))?
                .query_map(rusqlite::params_from_iter(given), lease)?
                .collect()
        };
        self.wrap_error(read())
    }

    /// From now on, incarnations and fences are higher than this.
    pub(super) fn raise_numbers(&self, least: i64) -> Result<(), Error> {
        self.execute("UPDATE numbers SET last = max(last, ?)", [least])?;
        Ok(())
    }

    /// The last incarnation or fence that was given.
    pub(super) fn last_number(&self) -> Result<i64, Error> {
        let read = || {
            self.connection
                .prepare_cached("SELECT last FROM numbers")?
                .query_row([], |row| row.get(0))
        };
        self.wrap_error(read())
    }

    pub(super) fn execute(&self, sql: &str, given: impl rusqlite::Params) -> Result<usize, Error> {
        let write = || self.connection.prepare_cached(sql)?.execute(given);
        self.wrap_error(write())
    }
}

impl Tables for InTransaction<'_> {
    fn worker(&mut self, id: &str) -> Result<Option<WorkerEntry>, Error> {
        let found = self.workers("worker_id = ?", vec![id.to_owned().into()])?;
        Ok(found.into_iter().next())
    }

    fn put_worker(&mut self, row: &WorkerEntry) -> Result<(), Error> {
        let metadata: serde_json::Map<_, _> = row
            .info
            .metadata
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        let metadata = serde_json::Value::Object(metadata).to_string();
        let withdrawn = (!row.withdrawn.is_empty())
            .then(|| serde_json::Value::from(row.withdrawn.clone()).to_string());
        let process = row.info.process.as_ref();
        let limits = row.info.thresholds.as_ref();
        let ending = row.ending.as_ref();
        self.execute(
            &PUT_WORKER,
            named_params! {
                ":worker_id": row.key.id,
                ":incarnation": signed(row.key.incarnation),
                ":worker_type": row.info.worker_type,
                ":worker_group": row.info.group,
                ":interval_ns": length(row.info.interval),
                ":stale_after_ns": limits.map(|own| length(own.stale_after)),
                ":stall_after_ns": limits.and_then(|own| own.stall_after).map(length),
                ":startup_grace_ns": limits.map(|own| length(own.startup_grace)),
                ":beats_only": limits.is_some_and(|own| own.beats_only),
                ":metadata": metadata,
                ":restarts": row.info.restarts,
                ":pid": process.map(|process| process.pid),
                ":process_started": process.map(|process| signed(process.started)),
                ":hostname": process.map(|process| &process.hostname),
                ":boot_id": process.map(|process| &process.boot_id),
                ":pid_namespace": process.map(|process| signed(process.pid_namespace)),
                ":status": row.status.state.name(),
                ":reason": row.status.reason,
                ":registered_at": time(row.registered_at),
                ":heartbeat_at": row.heartbeat_at.map(time),
                ":progress_at": row.progress_at.map(time),
                ":run_id": row.status.run_id,
                ":task": row.status.task,
                ":steps_done": row.status.progress.map(|(done, _)| signed(done)),
                ":steps_total": row.status.progress.map(|(_, total)| signed(total)),
                ":last_location": row.status.last_location,
                ":beats": signed(row.status.beats),
                ":stack": row.status.stack,
                ":ended_at": ending.map(|(_, at)| time(*at)),
                ":stopped": ending.map(|(ending, _)| ending.stopped),
                ":ending_cause": ending.map(|(ending, _)| &ending.cause),
                ":ending_detail": ending.and_then(|(ending, _)| ending.detail.as_ref()),
                ":ending_location": ending.and_then(|(ending, _)| ending.location.as_ref()),
                ":withdrawn": withdrawn,
                ":last_death_at": row.last_death.as_ref().map(|(_, at)| time(*at)),
                ":task_deadline_ns": limits.and_then(|own| own.task_deadline).map(length),
                ":progress_after_ns": limits.and_then(|own| own.progress_after).map(length),
                ":last_death": row.last_death.as_ref().map(|(death, _)| death_text(death)),
            },
        )?;
        Ok(())
    }

    fn silent(&mut self, threshold: Duration, now: Moment) -> Result<Vec<WorkerEntry>, Error> {
        self.silent_workers(threshold, now)
    }

    fn any_in_group(
        &mut self,
        group: &str,
        wanted: &mut dyn FnMut(&WorkerEntry) -> bool,
    ) -> Result<bool, Error> {
        self.any_worker_in(group, wanted)
    }

    fn forget(
        &mut self,
        retention: &Retention,
        now: Moment,
        dry_run: bool,
        most: usize,
    ) -> Result<usize, Error> {
        self.forget_ended(retention, now, dry_run, most)
    }

    fn last_sweep(&mut self) -> Result<Option<SweepMark>, Error> {
        self.read_last_sweep()
    }

    fn note_sweep(&mut self, mark: &SweepMark) -> Result<(), Error> {
        self.write_last_sweep(mark)
    }

    fn lease(&mut self, run_id: &str) -> Result<Option<LeaseEntry>, Error> {
        let found = self.leases("run_id = ?", vec![run_id.to_owned().into()])?;
        Ok(found.into_iter().next())
    }

    fn leases_of(&mut self, worker_id: &str) -> Result<Vec<LeaseEntry>, Error> {
        self.leases("worker_id = ?", vec![worker_id.to_owned().into()])
    }

    fn expired_leases(&mut self, now: Moment) -> Result<Vec<LeaseEntry>, Error> {
        self.leases("expires_at <= ?", vec![time(now).into()])
    }

    fn put_lease(&mut self, lease: &LeaseEntry) -> Result<(), Error> {
        self.execute(
            &PUT_LEASE,
            named_params! {
                ":run_id": lease.key.run_id,
                ":worker_id": lease.key.worker.id,
                ":incarnation": signed(lease.key.worker.incarnation),
                ":fence": signed(lease.key.fence),
                ":expires_at": time(lease.expires_at),
                // All bits of it: it is only compared.
                ":attempt": lease.attempt.map(|attempt| attempt as i64),
            },
        )?;
        Ok(())
    }

    fn remove_lease(&mut self, run_id: &str) -> Result<(), Error> {
        self.execute("DELETE FROM leases WHERE run_id = ?", [run_id])?;
        Ok(())
    }

    fn put_event(&mut self, new: NewEvent) -> Result<(), Error> {
        let seq = self.next_number()?;
        self.insert_event(seq, &new);
        Ok(())
    }

    fn count_ending(&mut self, worker_type: &str, how: &'static str) -> Result<(), Error> {
        self.add_ending(worker_type, how);
        Ok(())
    }

    fn trim_events(&mut self, retention: &Retention, now: Moment) -> Result<(), Error> {
        self.delete_events(retention, now);
        Ok(())
    }

    fn groups_told_offline(&mut self) -> Result<Vec<String>, Error> {
        Ok(self.read_offline_groups())
    }

    fn next_number(&mut self) -> Result<u64, Error> {
        let next = || {
            self.connection
                .prepare_cached("UPDATE numbers SET last = last + 1 RETURNING last")?
                .query_row([], |row| row.get::<_, i64>(0))
                .optional()
        };
        let next = self.wrap_error(next())?;
        next.map(unsigned)
            .ok_or_else(|| Error::store(self.operation, "the table of numbers is empty"))
    }
}

/// SQLite's numbers are signed; nothing that is counted here comes near the difference.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn time(moment: Moment) -> i64 {
    signed(moment.as_nanos())
}

/// The longest limit of a worker: the file holds no longer one.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(super) fn length(duration: Duration) -> i64 {
    signed(nanos(duration.min(LONGEST)))
}

fn death_text(death: &StoredDeath) -> String {
    let ending = &death.ending;
    serde_json::json!({
        "cause": ending.cause,
        "detail": ending.detail,
        "location": ending.location,
        "run_id": death.run_id,
        "task": death.task,
    })
    .to_string()
}
