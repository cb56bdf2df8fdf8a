//! A sweep: one pass finds the workers to mark, then short transactions mark them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::{events, one, rows};
use crate::error::Error;
use crate::fleet::host::ProcessIdentity;
use crate::fleet::shapes::{Retention, Sweep, WorkerKey};
use crate::health::{DeathCause, SweepReport};

/// How many workers one transaction marks or forgets, and how many leases it releases.
const BATCH: usize = 2_000;
/// How many workers one pass finds: more are found by another pass, so that memory is bounded.
const PASS: usize = 100_000;
/// A process whose session is missing may come back through another one within this time.
const SESSION_GRACE: Duration = Duration::from_secs(5);

pub(super) fn sweep(connection: &Connection, sweep: &Sweep) -> Result<SweepReport, Error> {
    if let Some(ago) = recently_swept(connection, sweep)? {
        return Ok(SweepReport {
            recently_swept: Some(ago),
            ..SweepReport::default()
        });
    }
    let mut pass = Pass::new(connection, sweep)?;
    pass.mark_workers()?;
    pass.release_expired()?;
    let mut report = pass.into_report()?;
    if !sweep.dry_run {
        events::record_sweep(connection, sweep, &report);
    }
    if let Some(retention) = &sweep.retention {
        report.forgotten = forget(connection, retention, sweep.dry_run)?;
        if !sweep.dry_run {
            events::trim(connection, retention);
        }
    }
    Ok(report)
}

/// The processes that have living workers on this host. The index is probed once a process.
pub(super) fn processes(
    connection: &Connection,
    host: &ProcessIdentity,
) -> Result<Vec<ProcessIdentity>, Error> {
    let found = connection.query(
        "list",
        true,
        "WITH RECURSIVE process AS (\
         (SELECT w.pid, w.process_started, w.hostname FROM @schema@.worker_heartbeats w \
         WHERE w.boot_id = $1 AND w.pid_namespace = $2 AND w.ended_at IS NULL \
         AND w.process_started IS NOT NULL \
         ORDER BY w.boot_id, w.pid_namespace, w.pid, w.process_started LIMIT 1) \
         UNION ALL \
         SELECT next.* FROM process p, LATERAL (\
         SELECT w.pid, w.process_started, w.hostname FROM @schema@.worker_heartbeats w \
         WHERE w.boot_id = $1 AND w.pid_namespace = $2 AND w.ended_at IS NULL \
         AND (w.pid, w.process_started) > (p.pid, p.process_started) \
         ORDER BY w.boot_id, w.pid_namespace, w.pid, w.process_started LIMIT 1) next) \
         SELECT pid, process_started, hostname FROM process",
        &[
            (&host.boot_id, Type::TEXT),
            (&rows::number(host.pid_namespace), Type::INT8),
        ],
    )?;
    let process = |row: &Row| {
        Ok(ProcessIdentity {
            hostname: row.try_get::<_, Option<String>>(2)?.unwrap_or_default(),
            pid: u32::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0),
            started: rows::bits(row.try_get(1)?),
            ..host.clone()
        })
    };
    let processes: Result<Vec<_>, tokio_postgres::Error> = found.iter().map(process).collect();
    processes.map_err(|error| rows::unreadable("list", &error))
}

/// Forgets in batches, each in a transaction of its own. A dry run only counts.
pub(super) fn forget(
    connection: &Connection,
    retention: &Retention,
    dry_run: bool,
) -> Result<usize, Error> {
    let age = |age: Option<Duration>| age.map(rows::limit);
    let limit = if dry_run { i32::MAX } else { BATCH as i32 };
    let mut forgotten = 0;
    loop {
        let answer = connection.query(
            "purge",
            false,
            "SELECT @schema@.forget_workers(@schema@.micros($1), @schema@.micros($2), \
             @schema@.micros($3), $4, $5)",
            &[
                (&age(retention.stopped), Type::INT8),
                (&age(retention.dead), Type::INT8),
                (&age(retention.replaced), Type::INT8),
                (&dry_run, Type::BOOL),
                (&limit, Type::INT4),
            ],
        )?;
        let count: i64 = one(&answer, "purge")?;
        let count = usize::try_from(count).unwrap_or(0);
        forgotten += count;
        if dry_run || count < BATCH {
            return Ok(forgotten);
        }
    }
}

fn recently_swept(connection: &Connection, sweep: &Sweep) -> Result<Option<Duration>, Error> {
    let Some(within) = sweep.unless_swept_within else {
        return Ok(None);
    };
    let answer = connection.query(
        "sweep",
        true,
        "SELECT (extract(epoch FROM @schema@.begin_sweep(@schema@.micros($1), @schema@.micros($2), \
         @schema@.micros($3), $4)) * 1000000)::bigint",
        &[
            (&rows::age(within), Type::INT8),
            (&rows::limit(sweep.threshold), Type::INT8),
            (&rows::age(sweep.watched_for), Type::INT8),
            (&sweep.dry_run, Type::BOOL),
        ],
    )?;
    let ago: Option<i64> = one(&answer, "sweep")?;
    Ok(ago.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
}

/// What all statements of one sweep need, and what they found.
struct Pass<'a> {
    connection: &'a Connection,
    sweep: &'a Sweep,
    threshold: i64,
    watched_for: i64,
    /// When earlier spans of watched time began and ended; `None` if there are none.
    began: Option<Vec<i64>>,
    ended: Option<Vec<i64>>,
    /// Sessions that ended.
    lost: Vec<i64>,
    /// What the kernel proves of workers.
    proved: HashMap<&'a WorkerKey, &'static str>,
    workers: BTreeSet<String>,
    groups: BTreeSet<String>,
    leases: BTreeSet<String>,
    busy: BTreeSet<String>,
}

impl<'a> Pass<'a> {
    fn new(connection: &'a Connection, sweep: &'a Sweep) -> Result<Self, Error> {
        let lost = connection.query(
            "sweep",
            false,
            "SELECT @schema@.look_for_sessions(@schema@.micros($1), $2)",
            &[
                (&rows::age(SESSION_GRACE), Type::INT8),
                (&sweep.dry_run, Type::BOOL),
            ],
        )?;
        let spans = (!sweep.watched_before.is_empty()).then_some(&sweep.watched_before);
        let ages = |of: fn(&crate::fleet::shapes::WatchedSpan) -> Duration| {
            spans.map(|spans| spans.iter().map(|span| rows::age(of(span))).collect())
        };
        // That it was killed takes precedence.
        let gone = sweep.gone.iter().map(|key| (key, DeathCause::Gone.name()));
        let killed = sweep
            .killed
            .iter()
            .map(|key| (key, DeathCause::Killed.name()));
        Ok(Self {
            connection,
            sweep,
            threshold: rows::limit(sweep.threshold),
            watched_for: rows::age(sweep.watched_for),
            began: ages(|span| span.began),
            ended: ages(|span| span.ended),
            lost: one(&lost, "sweep")?,
            proved: gone.chain(killed).collect(),
            workers: BTreeSet::new(),
            groups: BTreeSet::new(),
            leases: BTreeSet::new(),
            busy: BTreeSet::new(),
        })
    }

    /// Marks all that a pass finds, then passes again if there may be more.
    fn mark_workers(&mut self) -> Result<(), Error> {
        let most = if self.sweep.dry_run {
            i32::MAX as usize
        } else {
            PASS
        };
        loop {
            let found = self.candidates(most)?;
            let before = self.workers.len();
            for batch in found.chunks(BATCH) {
                self.mark_batch(batch)?;
            }
            if found.len() < most || self.workers.len() == before {
                return Ok(());
            }
        }
    }

    fn candidates(&self, most: usize) -> Result<Vec<(String, i64)>, Error> {
        let ids: Vec<_> = self.proved.keys().map(|key| rows::text(&key.id)).collect();
        let incarnations: Vec<i64> = self
            .proved
            .keys()
            .map(|key| rows::ordered(key.incarnation))
            .collect();
        let found = self.connection.query(
            "sweep",
            true,
            "SELECT worker_id, incarnation FROM @schema@.sweep_candidates(@schema@.micros($1), \
             @schema@.micros($2), @schema@.micros($3), $4, $5, $6, $7, $8, $9)",
            &[
                (&self.threshold, Type::INT8),
                (&rows::age(self.sweep.longest_charged()), Type::INT8),
                (&self.watched_for, Type::INT8),
                (&self.began, Type::INT8_ARRAY),
                (&self.ended, Type::INT8_ARRAY),
                (&self.lost, Type::INT8_ARRAY),
                (&ids, Type::TEXT_ARRAY),
                (&incarnations, Type::INT8_ARRAY),
                (&i32::try_from(most).unwrap_or(i32::MAX), Type::INT4),
            ],
        )?;
        let found: Result<Vec<_>, tokio_postgres::Error> = found
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect();
        found.map_err(|error| rows::unreadable("sweep", &error))
    }

    fn mark_batch(&mut self, batch: &[(String, i64)]) -> Result<(), Error> {
        let ids: Vec<&str> = batch.iter().map(|(id, _)| id.as_str()).collect();
        let incarnations: Vec<i64> = batch.iter().map(|(_, incarnation)| *incarnation).collect();
        let proved: Vec<Option<&str>> = batch
            .iter()
            .map(|(id, incarnation)| {
                if self.proved.is_empty() {
                    return None;
                }
                let key = WorkerKey::new(id.clone(), u64::try_from(*incarnation).unwrap_or(0));
                self.proved.get(&key).copied()
            })
            .collect();
        let answer = self.connection.query(
            "sweep",
            false,
            "SELECT what, name, worker_group FROM @schema@.sweep_batch($1, $2, $3, $4, \
             @schema@.micros($5), @schema@.micros($6), $7, $8, $9)",
            &[
                (&ids, Type::TEXT_ARRAY),
                (&incarnations, Type::INT8_ARRAY),
                (&proved, Type::TEXT_ARRAY),
                (&self.lost, Type::INT8_ARRAY),
                (&self.threshold, Type::INT8),
                (&self.watched_for, Type::INT8),
                (&self.began, Type::INT8_ARRAY),
                (&self.ended, Type::INT8_ARRAY),
                (&self.sweep.dry_run, Type::BOOL),
            ],
        )?;
        for row in &answer {
            self.add(row)
                .map_err(|error| rows::unreadable("sweep", &error))?;
        }
        Ok(())
    }

    fn add(&mut self, row: &Row) -> Result<(), tokio_postgres::Error> {
        match row.try_get(0)? {
            "worker" => {
                let (id, group): (String, String) = (row.try_get(1)?, row.try_get(2)?);
                self.busy.remove(&id);
                self.workers.insert(id);
                self.groups.insert(group);
            }
            "lease" => {
                self.leases.insert(row.try_get(1)?);
            }
            "busy" => {
                self.busy.insert(row.try_get(1)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Releases the expired leases of workers that have ended.
    fn release_expired(&mut self) -> Result<(), Error> {
        let condition = if self.sweep.dry_run {
            "AND @schema@.has_ended(l.worker_id, l.incarnation)"
        } else {
            ""
        };
        let most = if self.sweep.dry_run {
            i64::MAX
        } else {
            PASS as i64
        };
        let sql = format!(
            "SELECT l.run_id FROM @schema@.leases l WHERE l.expires_at <= now() {condition} LIMIT $1"
        );
        let found = self
            .connection
            .query("sweep", true, &sql, &[(&most, Type::INT8)])?;
        let found = names(&found)?;
        if self.sweep.dry_run {
            self.leases.extend(found);
            return Ok(());
        }
        for batch in found.chunks(BATCH) {
            let released = self.connection.query(
                "sweep",
                false,
                "SELECT r FROM @schema@.release_expired($1) r",
                &[(&batch, Type::TEXT_ARRAY)],
            )?;
            self.leases.extend(names(&released)?);
        }
        Ok(())
    }

    fn into_report(self) -> Result<SweepReport, Error> {
        Ok(SweepReport {
            success: true,
            affected_groups: self.offline_groups()?,
            marked_offline: self.workers.into_iter().collect(),
            released_leases: self.leases.into_iter().collect(),
            busy: self.busy.into_iter().collect(),
            ..SweepReport::default()
        })
    }

    fn offline_groups(&self) -> Result<Vec<String>, Error> {
        if self.groups.is_empty() {
            return Ok(Vec::new());
        }
        let groups: Vec<&String> = self.groups.iter().collect();
        // A sweep that is no dry run has marked them already.
        let convicted = self.workers.iter().filter(|_| self.sweep.dry_run);
        let convicted: Vec<&String> = convicted.collect();
        let offline = self.connection.query(
            "sweep",
            true,
            "SELECT g FROM @schema@.offline_groups($1, $2, @schema@.micros($3), \
             @schema@.micros($4)) g ORDER BY g COLLATE \"C\"",
            &[
                (&groups, Type::TEXT_ARRAY),
                (&convicted, Type::TEXT_ARRAY),
                (&self.threshold, Type::INT8),
                (&self.watched_for, Type::INT8),
            ],
        )?;
        names(&offline)
    }
}

fn names(found: &[Row]) -> Result<Vec<String>, Error> {
    let names: Result<Vec<String>, _> = found.iter().map(|row| row.try_get(0)).collect();
    names.map_err(|error| rows::unreadable("sweep", &error))
}
