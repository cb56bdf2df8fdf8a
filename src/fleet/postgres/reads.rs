//! Counts, and lists in the order of severity. Each is one statement.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::lists::{clean, limit, search, states, workers};
use super::{Connections, rows};
use crate::error::Error;
use crate::fleet::shapes::{FleetCounts, MOST_NAMES, StoredWorker, WorkerFilter, severity_rank};
use crate::health::State;

impl Connections {
    /// In the order of severity.
    pub(super) fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        if filter.host.is_some() || filter.process.is_some() {
            return self.worst_of_host(filter);
        }
        let sql = format!(
            "SELECT {} FROM @schema@.worst_workers($1, $2, $3, $4, $5, $6, $7) w",
            rows::COLUMNS
        );
        let after = filter.after_state.map(|state| {
            let id = clean(&filter.after).unwrap_or_default();
            (state.name(), id)
        });
        let texts = || {
            let texts = [&filter.worker_type, &filter.group, &filter.search];
            texts.into_iter().flatten().map(String::as_str)
        };
        // Nothing has a name with a character that the database lacks.
        while texts().all(|text| self.texts.fits(text)) {
            let found = self.scans.try_query(
                "list",
                true,
                &sql,
                &[
                    (&limit(filter), Type::INT8),
                    (&after.as_ref().map(|(state, _)| *state), Type::TEXT),
                    (&after.as_ref().map(|(_, id)| id.as_str()), Type::TEXT),
                    (&states(filter), Type::TEXT_ARRAY),
                    (&clean(&filter.worker_type), Type::TEXT),
                    (&clean(&filter.group), Type::TEXT),
                    (&search(filter), Type::TEXT),
                ],
            );
            match found {
                Ok(found) => {
                    let mut found = workers(&found)?;
                    // A statement that calls a function need not keep its order.
                    found.sort_by_cached_key(severity);
                    return Ok(found);
                }
                Err(failed) => self.learn_from(failed, texts())?,
            }
        }
        Ok(Vec::new())
    }

    /// The workers of a host are few.
    fn worst_of_host(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let mut all = filter.clone().limit(usize::MAX);
        all.after = None;
        let mut found = self.list(&all)?;
        found.retain(|worker| filter.is_after(worker.health().state(), &worker.key.id));
        found.sort_by_cached_key(severity);
        found.truncate(filter.limit);
        Ok(found)
    }

    pub(super) fn counts(&self) -> Result<FleetCounts, Error> {
        let most = i64::try_from(MOST_NAMES).unwrap_or(i64::MAX);
        let sql = "SELECT kind, name, detail, workers FROM @schema@.fleet_counts($1)";
        let found = self
            .scans
            .query("list", true, sql, &[(&most, Type::INT8)])?;
        let mut counts = FleetCounts::new();
        for row in &found {
            add(&mut counts, row).map_err(|error| rows::unreadable("list", &error))?;
        }
        counts.unlisted_types = counts.unlisted_types.saturating_sub(counts.types.len());
        counts.unlisted_groups = counts.unlisted_groups.saturating_sub(counts.groups.len());
        Ok(counts)
    }
}

fn add(counts: &mut FleetCounts, row: &Row) -> Result<(), tokio_postgres::Error> {
    let name = row.try_get::<_, Option<&str>>(1)?.unwrap_or_default();
    let detail = row.try_get::<_, Option<&str>>(2)?.unwrap_or_default();
    let workers = usize::try_from(row.try_get::<_, i64>(3)?).unwrap_or(0);
    let state = State::reported;
    match row.try_get::<_, &str>(0)? {
        "state" => counts.states.add_many(state(name), workers),
        "type" => {
            let entry = counts.types.entry(name.to_owned()).or_default();
            entry.add_many(state(detail), workers);
        }
        "group" => {
            let entry = counts.groups.entry(name.to_owned()).or_default();
            entry.add_many(state(detail), workers);
        }
        "death" => counts.add_deaths(name, detail, workers),
        "ended" => counts.add_endings(name, detail, workers as u64),
        "leased" => counts.leased_workers = workers,
        "types" => counts.unlisted_types = workers,
        "groups" => counts.unlisted_groups = workers,
        _ => {}
    }
    Ok(())
}

fn severity(worker: &StoredWorker) -> (usize, String) {
    let rank = severity_rank(worker.health().state());
    (rank, worker.key.id.clone())
}
