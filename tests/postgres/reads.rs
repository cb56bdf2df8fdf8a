//! Reads cost what is shown: rows are counted, not times.

use std::time::Duration;

use worker_heartbeat::fleet::{
    Beat, FleetCounts, HeartbeatStore, Registration, Stop, StoredEnding, WorkerFilter, WorkerKey,
};
use worker_heartbeat::{DeathCause, PostgresStore, State};

use crate::support::postgres::{schema, sql, url};

const COUNT: usize = 4_000;
const DEAD: usize = 150;

/// Workers of which the last ones by id are dead, and one is stale.
fn filled(schema: &str) -> PostgresStore {
    filled_with(schema, DEAD)
}

fn filled_with(schema: &str, dead: usize) -> PostgresStore {
    let store = crate::store(schema);
    let workers: Vec<_> = (0..COUNT)
        .map(|n| {
            let mut registration = Registration::new("poller", format!("w-{n:05}"));
            registration.info.group = format!("machine-{}", n % 3);
            registration
        })
        .collect();
    let keys = store.register(&workers).unwrap();
    let beats = |keys: &[WorkerKey]| -> Vec<Beat> {
        let beat = |key: &WorkerKey| Beat::new(key.clone(), State::Idle);
        keys.iter().map(beat).collect()
    };
    let mut beats = beats(&keys);
    beats[7].heartbeat_age = Some(Duration::from_secs(1_000));
    store.beat(&beats).unwrap();
    let stops: Vec<_> = keys[COUNT - dead..]
        .iter()
        .map(|key| Stop::new(key.clone(), StoredEnding::dead(&DeathCause::Exited)))
        .collect();
    store.stop(&stops).unwrap();
    sql(url(), &format!("ANALYZE \"{schema}\".worker_heartbeats"));
    store
}

/// The rows that a statement reads of the table of workers: by scans, and by indexes.
fn rows_read(schema: &str, statement: &str) -> (u64, u64) {
    // Statements that are sent together are one transaction.
    let text = format!(
        "{statement}; SELECT seq_tup_read, coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables \
         WHERE relid = '\"{schema}\".worker_heartbeats'::regclass"
    );
    let rows = sql(url(), &text);
    let last = rows.last().unwrap();
    (last[0].parse().unwrap(), last[1].parse().unwrap())
}

#[test]
fn a_page_of_the_worst_reads_as_many_rows_as_it_shows() {
    let schema = schema("worst");
    let store = filled(&schema);
    let worst = format!("SELECT count(*) FROM \"{schema}\".worst_workers");
    let (scanned, fetched) = rows_read(&schema, &format!("{worst}(100)"));
    assert_eq!(scanned, 0);
    assert!(fetched <= 2 * 100, "{fetched} rows for a page of 100");
    // The next page.
    let (scanned, fetched) = rows_read(&schema, &format!("{worst}(40, 'dead', 'w-03900')"));
    assert!(
        scanned == 0 && fetched <= 2 * 40,
        "{scanned} and {fetched} rows"
    );
    // A page that the dead workers do not fill needs one scan for the stale ones, and no more.
    let (scanned, fetched) = rows_read(&schema, &format!("{worst}(200)"));
    assert_eq!(scanned, COUNT as u64);
    assert!(fetched <= 500, "{fetched} rows for a page of 200");

    let worst = store
        .worst_first(&WorkerFilter::new().limit(DEAD + 3))
        .unwrap();
    let ids: Vec<_> = worst.iter().map(|worker| &*worker.key.id).collect();
    assert_eq!((ids[0], ids[DEAD - 1]), ("w-03850", "w-03999"));
    assert_eq!(ids[DEAD..], ["w-00007", "w-00000", "w-00001"]);
}

#[test]
fn the_view_of_dead_workers_finds_dead_ones_by_an_index() {
    let schema = schema("dead");
    let _store = filled(&schema);
    // A table of this size would be scanned.
    let text = format!(
        "SET LOCAL enable_seqscan = off; EXPLAIN SELECT worker_id FROM \"{schema}\".v_dead_workers"
    );
    let plan: String = sql(url(), &text).concat().join("\n");
    assert!(plan.contains("worker_heartbeats_attention"), "{plan}");
    let view = format!("SELECT count(*), min(state), max(state) FROM \"{schema}\".v_dead_workers");
    assert_eq!(
        sql(url(), &view),
        [[(DEAD + 1).to_string(), "dead".into(), "stale".into()]]
    );
}

#[test]
fn heartbeats_of_workers_that_are_well_touch_no_index() {
    let schema = schema("touch");
    let _store = crate::store(&schema);
    // As heartbeats write: the state changes from one to another. In one transaction with the rows,
    // so that each page has the room that is kept for them.
    let table = format!("\"{schema}\".worker_heartbeats");
    let rows = sql(
        url(),
        &format!(
            "INSERT INTO {table} (worker_id, worker_type, incarnation, status, last_heartbeat_at) \
             SELECT 'w-' || n, 'poller', n, 'processing', now() FROM generate_series(1, 500) n; \
             UPDATE {table} SET status = 'idle', last_heartbeat_at = clock_timestamp(); \
             SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables \
             WHERE relid = '{table}'::regclass"
        ),
    );
    assert_eq!(rows, [["500", "500"]]);
}

#[test]
fn counts_read_each_row_once_and_are_bounded() {
    let schema = schema("counts");
    let store = filled_with(&schema, 3);
    let FleetCounts {
        types,
        groups,
        deaths,
        unlisted_groups,
        ..
    } = store.counts().unwrap();
    assert_eq!(types["poller"].total(), COUNT);
    assert_eq!(groups["machine-2"].total(), COUNT / 3);
    assert_eq!(groups["machine-1"].get(State::Stale), 1);
    assert_eq!(deaths["poller"]["exited"], 3);
    assert_eq!(unlisted_groups, 0);
    let counts = format!("SELECT count(*) FROM \"{schema}\".fleet_counts(1)");
    let (scanned, _) = rows_read(&schema, &counts);
    assert_eq!(scanned, COUNT as u64);
    // Of two groups more, the number is left; of each kind, the one with the most unwell workers.
    let listed = format!(
        "SELECT kind, count(DISTINCT name), max(name) FROM \"{schema}\".fleet_counts(1) \
         WHERE kind IN ('group', 'type') GROUP BY kind ORDER BY kind"
    );
    assert_eq!(
        sql(url(), &listed),
        [["group", "1", "machine-1"], ["type", "1", "poller"]]
    );
    let all = format!("SELECT workers FROM \"{schema}\".fleet_counts(1) WHERE kind = 'groups'");
    assert_eq!(sql(url(), &all), [["3"]]);
}

#[test]
fn a_search_finds_ids_types_and_groups() {
    let schema = schema("search");
    let store = filled(&schema);
    for (text, expected) in [
        ("W-0000", 10),
        ("machine-2", COUNT / 3),
        ("%", 0),
        ("poller", COUNT),
        ("w-00007", 1),
    ] {
        let filter = WorkerFilter::new().search(text);
        assert_eq!(store.list(&filter).unwrap().len(), expected, "{text}");
        assert_eq!(
            store.worst_first(&filter).unwrap().len(),
            expected,
            "{text}"
        );
    }
}
