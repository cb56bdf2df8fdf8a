//! A sweep, in batches that lock their rows only briefly.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::types::Type;

use super::connection::Connection;
use super::rows;
use crate::error::Error;
use crate::fleet::shapes::Sweep;
use crate::health::{DeathCause, SweepReport};

/// How many workers one transaction marks.
const BATCH: i32 = 2_000;
/// A process whose session is missing may come back through another one within this time.
const SESSION_GRACE: Duration = Duration::from_secs(5);

pub(super) fn sweep(connection: &Connection, sweep: &Sweep) -> Result<SweepReport, Error> {
    let ended = sweep.killed.iter().chain(&sweep.gone);
    let mut causes = vec![DeathCause::Killed.name(); sweep.killed.len()];
    causes.resize(ended.clone().count(), DeathCause::Gone.name());
    let ids: Vec<_> = ended.clone().map(|key| rows::text(&key.id)).collect();
    let incarnations: Vec<i64> = ended.map(|key| rows::ordered(key.incarnation)).collect();
    let threshold = rows::limit(sweep.threshold);
    let watched_for = rows::age(sweep.watched_for);
    let limit = if sweep.dry_run { i32::MAX } else { BATCH };
    let mut found = Found::default();
    loop {
        let answer = connection.query(
            "sweep",
            false,
            "SELECT what, name, worker_group FROM @schema@.sweep_workers(@schema@.micros($1), \
             @schema@.micros($2), $3, $4, $5, @schema@.micros($6), $7, $8)",
            &[
                (&threshold, Type::INT8),
                (&watched_for, Type::INT8),
                (&ids, Type::TEXT_ARRAY),
                (&incarnations, Type::INT8_ARRAY),
                (&causes, Type::TEXT_ARRAY),
                (&rows::age(SESSION_GRACE), Type::INT8),
                (&sweep.dry_run, Type::BOOL),
                (&limit, Type::INT4),
            ],
        )?;
        // Another sweep is running. If it began between two batches, it does the rest.
        if answer.is_empty() {
            break;
        }
        found.swept = true;
        let before = found.workers.len();
        for row in &answer {
            found
                .add(row)
                .map_err(|error| rows::unreadable("sweep", &error))?;
        }
        if found.workers.len() - before < usize::try_from(limit).unwrap_or(usize::MAX) {
            break;
        }
    }
    if !found.swept {
        return Ok(SweepReport::default());
    }
    let affected_groups = if found.groups.is_empty() {
        Vec::new()
    } else {
        let groups: Vec<&String> = found.groups.iter().collect();
        // A sweep that is no dry run has marked them already.
        let convicted: Vec<&String> = found.workers.iter().filter(|_| sweep.dry_run).collect();
        let offline = connection.query(
            "sweep",
            true,
            "SELECT g FROM @schema@.offline_groups($1, $2, @schema@.micros($3), \
             @schema@.micros($4)) g",
            &[
                (&groups, Type::TEXT_ARRAY),
                (&convicted, Type::TEXT_ARRAY),
                (&threshold, Type::INT8),
                (&watched_for, Type::INT8),
            ],
        )?;
        let names: Result<BTreeSet<String>, _> = offline.iter().map(|row| row.try_get(0)).collect();
        names
            .map_err(|error| rows::unreadable("sweep", &error))?
            .into_iter()
            .collect()
    };
    Ok(SweepReport {
        success: true,
        marked_offline: found.workers.into_iter().collect(),
        affected_groups,
        released_leases: found.leases.into_iter().collect(),
    })
}

/// Sorted, without duplicates.
#[derive(Default)]
struct Found {
    swept: bool,
    workers: BTreeSet<String>,
    groups: BTreeSet<String>,
    leases: BTreeSet<String>,
}

impl Found {
    fn add(&mut self, row: &tokio_postgres::Row) -> Result<(), tokio_postgres::Error> {
        match row.try_get(0)? {
            "worker" => {
                self.workers.insert(row.try_get(1)?);
                self.groups.insert(row.try_get(2)?);
            }
            "lease" => {
                self.leases.insert(row.try_get(1)?);
            }
            _ => {}
        }
        Ok(())
    }
}
