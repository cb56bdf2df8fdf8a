//! What sweeps need of the tables beyond single rows: the silent, the ended, and the last sweep.

use std::time::Duration;

use rusqlite::{OptionalExtension, named_params, params};

use super::columns::{moment, unsigned, worker};
use super::tables::{InTransaction, length, signed, time};
use crate::clock::Moment;
use crate::error::Error;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::rules::{SweepMark, WorkerEntry};
use crate::fleet::shapes::Retention;

/// Ended workers whose retention is over. A comparison with NULL, for no limit, is never true.
const FORGOTTEN: &str = "\
SELECT w.worker_id FROM workers w WHERE w.ended_at IS NOT NULL AND (\
    w.stopped AND w.ended_at <= :stopped OR NOT w.stopped AND (w.ended_at <= :dead \
    OR w.ended_at <= :replaced AND EXISTS (SELECT 1 FROM workers l \
        WHERE l.worker_group = w.worker_group AND l.worker_type = w.worker_type \
        AND l.ended_at IS NULL AND l.registered_at > coalesce(w.heartbeat_at, w.registered_at)))) \
LIMIT :most";

impl InTransaction<'_> {
    pub(super) fn silent_workers(
        &self,
        threshold: Duration,
        now: Moment,
    ) -> Result<Vec<WorkerEntry>, Error> {
        self.workers(
            "ended_at IS NULL AND ?1 - coalesce(heartbeat_at, registered_at) > CASE \
             WHEN stale_after_ns IS NULL THEN ?2 \
             ELSE min(stale_after_ns, coalesce(startup_grace_ns, stale_after_ns)) END \
             ORDER BY worker_id",
            vec![time(now).into(), length(threshold).into()],
        )
    }

    pub(super) fn any_worker_in(
        &self,
        group: &str,
        wanted: &mut dyn FnMut(&WorkerEntry) -> bool,
    ) -> Result<bool, Error> {
        let mut search = || {
            let mut statement = self
                .connection
                .prepare_cached("SELECT * FROM workers WHERE worker_group = ?")?;
            let mut rows = statement.query([group])?;
            while let Some(row) = rows.next()? {
                if wanted(&worker(row)?) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        self.wrap_error(search())
    }

    pub(super) fn forget_ended(
        &self,
        retention: &Retention,
        now: Moment,
        dry_run: bool,
        most: usize,
    ) -> Result<usize, Error> {
        let until = |age: Option<Duration>| age.map(|age| time(now.before(age)));
        let given = named_params! {
            ":stopped": until(retention.stopped),
            ":dead": until(retention.dead),
            ":replaced": until(retention.replaced),
            ":most": signed(most as u64),
        };
        if !dry_run {
            let delete = format!("DELETE FROM workers WHERE worker_id IN ({FORGOTTEN})");
            return self.execute(&delete, given);
        }
        let count = || {
            let mut count = self
                .connection
                .prepare_cached(&format!("SELECT count(*) FROM ({FORGOTTEN})"))?;
            count.query_row(given, |row| row.get::<_, i64>(0))
        };
        let count = self.wrap_error(count())?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(super) fn read_last_sweep(&self) -> Result<Option<SweepMark>, Error> {
        let read = || {
            self.connection
                .prepare_cached("SELECT swept_at, watched_since, threshold_ns FROM last_sweep")?
                .query_row([], |row| {
                    Ok(SweepMark {
                        at: moment(row.get(0)?),
                        watched_since: moment(row.get(1)?),
                        threshold: Duration::from_nanos(unsigned(row.get(2)?)),
                    })
                })
                .optional()
        };
        self.wrap_error(read())
    }

    pub(super) fn write_last_sweep(&self, mark: &SweepMark) -> Result<(), Error> {
        self.execute(
            "INSERT OR REPLACE INTO last_sweep VALUES (1, ?, ?, ?)",
            params![
                time(mark.at),
                time(mark.watched_since),
                length(mark.threshold)
            ],
        )?;
        Ok(())
    }

    pub(super) fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        let read = || {
            self.connection
                .prepare_cached(
                    "SELECT DISTINCT hostname, pid, process_started FROM workers \
                     WHERE ended_at IS NULL AND pid IS NOT NULL AND boot_id = ? \
                     AND pid_namespace = ?",
                )?
                .query_map(params![host.boot_id, signed(host.pid_namespace)], |row| {
                    Ok(ProcessIdentity {
                        hostname: row.get::<_, Option<String>>(0)?.unwrap_or_default(),
                        pid: row.get(1)?,
                        started: unsigned(row.get(2)?),
                        boot_id: host.boot_id.clone(),
                        pid_namespace: host.pid_namespace,
                    })
                })?
                .collect()
        };
        self.wrap_error(read())
    }
}
