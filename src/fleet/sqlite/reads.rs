//! Lists and counts of a SQLite file. Each is one pass over the rows, in one transaction.

use rusqlite::types::Value;
use rusqlite::{Row as SqlRow, Rows};

use super::columns::{Columns, moment, span};
use super::tables::{InTransaction, signed, time};
use crate::clock::Moment;
use crate::error::Error;
use crate::fleet::rules::LeaseEntry;
use crate::fleet::shapes::{FleetCounts, JudgedFacts, StoredWorker, WorkerFilter, Worst};
use crate::health::{State, Thresholds};

/// What a row is judged by, in the order in which [`judged`] reads it.
const JUDGED: &str = "status, registered_at, heartbeat_at, stale_after_ns, startup_grace_ns, \
                      iif(ended_at IS NULL, NULL, ifnull(stopped, 0))";

impl InTransaction<'_> {
    pub(super) fn list(
        &mut self,
        filter: &WorkerFilter,
        now: Moment,
    ) -> Result<Vec<StoredWorker>, Error> {
        if filter.states.is_empty() {
            let (mut condition, mut given) = condition(filter);
            condition.push_str(" AND worker_id > ? ORDER BY worker_id LIMIT ?");
            given.push(filter.after.clone().unwrap_or_default().into());
            given.push(signed(filter.limit as u64).into());
            return self.stored(&condition, given, now);
        }
        let after = filter.after.as_deref().unwrap_or_default();
        let mut ids = Vec::new();
        self.judge(filter, now, |state, id| {
            if id > after && filter.states.contains(&state) {
                ids.push(id.to_owned());
            }
            ids.len() < filter.limit
        })?;
        self.with_ids(ids, now)
    }

    pub(super) fn worst_first(
        &mut self,
        filter: &WorkerFilter,
        now: Moment,
    ) -> Result<Vec<StoredWorker>, Error> {
        let mut worst = Worst::new(filter.limit);
        self.judge(filter, now, |state, id| {
            let wanted = filter.states.is_empty() || filter.states.contains(&state);
            if wanted && filter.is_after(state, id) {
                worst.add(state, id, || id.to_owned());
            }
            true
        })?;
        self.with_ids(worst.into_vec(), now)
    }

    pub(super) fn counts(&mut self, now: Moment) -> Result<FleetCounts, Error> {
        let mut counts = FleetCounts::new();
        let mut read = || {
            let sql =
                format!("SELECT {JUDGED}, worker_type, worker_group, ending_cause FROM workers");
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let state = judged(row, now)?;
                let text = |column: usize| Columns(row).shown(column);
                let (worker_type, group, cause) = (text(6)?, text(7)?, text(8)?);
                counts.add_many(&worker_type, &group, state, &cause, 1);
            }
            let leased = "SELECT count(DISTINCT l.worker_id) FROM leases l JOIN workers w \
                          USING (worker_id, incarnation) WHERE l.expires_at > ?";
            let mut statement = self.connection.prepare_cached(leased)?;
            statement.query_row([time(now)], |row| row.get::<_, i64>(0))
        };
        let leased = self.wrap_error(read())?;
        counts.leased_workers = usize::try_from(leased).unwrap_or(0);
        self.read_endings(&mut counts);
        Ok(counts.bounded())
    }

    /// Judges the rows that pass the filter, its states aside, in the order of their ids, until `each`
    /// returns `false`.
    fn judge(
        &self,
        filter: &WorkerFilter,
        now: Moment,
        mut each: impl FnMut(State, &str) -> bool,
    ) -> Result<(), Error> {
        let (condition, given) = condition(filter);
        let read = || {
            let sql = format!(
                "SELECT {JUDGED}, worker_id FROM workers WHERE {condition} ORDER BY worker_id"
            );
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut rows: Rows<'_> = statement.query(rusqlite::params_from_iter(given))?;
            while let Some(row) = rows.next()? {
                if !each(judged(row, now)?, &Columns(row).shown(6)?) {
                    break;
                }
            }
            Ok(())
        };
        self.wrap_error(read())
    }

    /// The workers with these ids, in this order.
    fn with_ids(&self, ids: Vec<String>, now: Moment) -> Result<Vec<StoredWorker>, Error> {
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            found.extend(self.stored("worker_id = ?", vec![id.into()], now)?);
        }
        Ok(found)
    }

    /// With the leases of each, which an index finds.
    fn stored(
        &self,
        condition: &str,
        given: Vec<Value>,
        now: Moment,
    ) -> Result<Vec<StoredWorker>, Error> {
        let rows = self.workers(condition, given)?;
        let stored = rows.into_iter().map(|row| {
            let own = vec![row.key.id.clone().into()];
            let leases: Vec<LeaseEntry> = self.leases("worker_id = ?", own)?;
            Ok(row.stored(now, &leases))
        });
        stored.collect()
    }
}

/// The filter as a condition, apart from its states, `after` and `limit`.
fn condition(filter: &WorkerFilter) -> (String, Vec<Value>) {
    let mut conditions = vec!["true".to_owned()];
    let mut given = Vec::new();
    let mut with = |condition: &str, value: Option<Value>| {
        if let Some(value) = value {
            conditions.push(condition.to_owned());
            given.push(value);
        }
    };
    with(
        "worker_type = ?",
        filter.worker_type.clone().map(Value::from),
    );
    with("worker_group = ?", filter.group.clone().map(Value::from));
    if let Some(host) = &filter.host {
        with(
            "ended_at IS NULL AND boot_id = ?",
            Some(host.boot_id.clone().into()),
        );
        with("pid_namespace = ?", Some(signed(host.pid_namespace).into()));
    }
    if let Some(process) = &filter.process {
        conditions.push(
            "ended_at IS NULL AND pid = ? AND process_started = ? AND boot_id = ? \
             AND pid_namespace = ?"
                .to_owned(),
        );
        given.extend([
            i64::from(process.pid).into(),
            signed(process.started).into(),
            process.boot_id.clone().into(),
            signed(process.pid_namespace).into(),
        ]);
    }
    if let Some(text) = &filter.search {
        // lower() changes ASCII letters only.
        let columns = ["worker_id", "worker_type", "worker_group"];
        let contain = columns.map(|column| format!("instr(lower({column}), ?) > 0"));
        conditions.push(format!("({})", contain.join(" OR ")));
        given.extend(columns.map(|_| Value::from(text.to_ascii_lowercase())));
    }
    (conditions.join(" AND "), given)
}

/// The state of a row that begins with [`JUDGED`].
fn judged(row: &SqlRow<'_>, now: Moment) -> rusqlite::Result<State> {
    let row = Columns(row);
    let age = |at: i64| now.since(moment(at));
    let thresholds = match row.some_integer(3)?.map(span) {
        None => None,
        Some(stale_after) => {
            let mut thresholds = Thresholds::new(stale_after);
            if let Some(grace) = row.some_integer(4)? {
                thresholds.startup_grace = span(grace);
            }
            Some(thresholds)
        }
    };
    let facts = JudgedFacts {
        reported: State::reported(&row.shown(0)?),
        registered_age: age(row.integer(1)?),
        heartbeat_age: row.some_integer(2)?.map(age),
        thresholds,
        stopped: row.some_integer(5)?.map(|stopped| stopped != 0),
    };
    Ok(facts.state())
}
