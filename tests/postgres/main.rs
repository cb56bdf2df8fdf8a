//! The store in PostgreSQL, on a real server.

mod absurd;
mod clock;
mod events;
mod exhausted;
mod failover;
mod locks;
mod reads;
mod replica;
#[path = "../support/mod.rs"]
mod support;
mod sweeps;
#[cfg(feature = "http")]
mod texts;
mod upgrades;

mod connections;
mod credentials;
mod hosts;
mod lost_answers;
mod sql_users;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::postgres::{PASSWORD, own, schema, sql, url};
use support::process::{self, Process};
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, StoredEnding, Sweep,
    WorkerFilter, WorkerKey, conformance,
};
use worker_heartbeat::{
    Error, FleetConfig, HeartbeatStore, PostgresOptions, PostgresStore, Registry, State, StopCause,
    StoreErrorKind, Sweeper, Thresholds, WorkerHeartbeat,
};

const SECOND: Duration = Duration::from_secs(1);
/// How many metadata entries a worker may have.
const MOST_METADATA: usize = 64;

/// With time limits that hold on a busy machine.
fn store(schema: &str) -> PostgresStore {
    PostgresOptions::new()
        .schema(schema)
        .connect_timeout(60 * SECOND)
        .statement_timeout(60 * SECOND)
        .connect(url())
        .unwrap()
}

fn register(store: &PostgresStore, id: &str) -> WorkerKey {
    let keys = store.register(&[Registration::new("poller", id)]).unwrap();
    keys.into_iter().next().unwrap()
}

fn beat(store: &PostgresStore, key: &WorkerKey) -> Answer {
    store
        .beat(&[Beat::new(key.clone(), State::Active)])
        .unwrap()[0]
}

fn worker(store: &PostgresStore, id: &str) -> WorkerKey {
    let key = register(store, id);
    // A busy machine may need longer for a table that grows than a heartbeat waits for any lock.
    let mut answer = Answer::Busy;
    support::eventually("an answer", || {
        answer = beat(store, &key);
        answer != Answer::Busy
    });
    assert_eq!(answer, Answer::Accepted);
    key
}

fn silent(store: &PostgresStore, id: &str, age: Duration) -> WorkerKey {
    let key = register(store, id);
    let mut beat = Beat::new(key.clone(), State::Active);
    beat.heartbeat_age = Some(age);
    assert_eq!(store.beat(&[beat]).unwrap(), [Answer::Accepted]);
    key
}

fn claim(store: &PostgresStore, key: &WorkerKey, run: &str, ttl: Duration) -> ClaimAnswer {
    let claim = Claim::new(key.clone(), run, ttl);
    store.claim(&claim).unwrap()
}

/// On a busy machine, a row may be locked for longer than a call waits: then nothing was done.
#[track_caller]
fn unless_busy<T>(answer: Result<T, Error>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(Error::Store {
            kind: StoreErrorKind::Busy,
            ..
        }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn states(store: &PostgresStore) -> Vec<(String, State)> {
    let workers = store.list(&WorkerFilter::default()).unwrap();
    let state = |worker: worker_heartbeat::StoredWorker| {
        let state = worker.health().state();
        (worker.key.id, state)
    };
    workers.into_iter().map(state).collect()
}

// --- what every store does ----------------------------------------------------------------------

#[test]
fn conforms() {
    conformance::assert_conforms(&store(&schema("conforms")));
}

#[test]
fn conforms_without_sessions_in_a_schema_of_another_name() {
    let name = schema("Odd-Name");
    let options = PostgresOptions::new().schema(name).session_liveness(false);
    conformance::assert_conforms(&options.connect(url()).unwrap());
}

// --- SQL ----------------------------------------------------------------------------------------

#[test]
fn the_queries_of_the_guide_work_as_written() {
    let guide = include_str!("../../docs/guide/fleet.md");
    let blocks = guide.split("```sql\n").skip(1);
    let queries = blocks
        .filter_map(|block| block.split_once("```"))
        .map(|(queries, _)| queries)
        .find(|queries| queries.contains("v_active_workers"))
        .unwrap();
    let name = schema("guide");
    let store = store(&name);
    worker(&store, "indexer-1");
    let queries = queries.replace("worker_heartbeat.", &format!("{name}."));
    let rows: Vec<_> = queries
        .split_inclusive(";\n")
        .map(|query| sql(url(), query).len())
        .collect();
    // Those that are active, those that are dead, one type, the worst, one state, and those that became
    // stale.
    assert_eq!(rows, [1, 0, 1, 1, 1, 0]);
}

/// The only test in this schema. The statements are quoted verbatim from an operator's notes.
#[test]
fn the_four_queries_work_as_written() {
    sql(url(), "DROP SCHEMA IF EXISTS pm_pipeline CASCADE");
    let store = store("pm_pipeline");
    let active = "SELECT worker_id, worker_type, status, current_run_id, current_task, ROUND(seconds_since_heartbeat::numeric, 1) AS seconds_ago
  FROM pm_pipeline.v_active_workers ORDER BY worker_type, worker_id;";
    let dead = "SELECT worker_id, worker_type, last_heartbeat_at, current_run_id, current_task, ROUND(seconds_since_heartbeat::numeric / 60, 1) AS minutes_ago
  FROM pm_pipeline.v_dead_workers;";
    let stats = "SELECT * FROM pm_pipeline.get_worker_stats();";
    let cleanup = "SELECT * FROM pm_pipeline.cleanup_stale_workers(60);";
    for query in [active, dead, stats, cleanup] {
        assert!(sql(url(), query).is_empty(), "{query}");
    }
    let well = worker(&store, "well");
    let mut at = Beat::new(well, State::Processing);
    at.status.run_id = Some("run-1".into());
    at.status.task = Some("Researching".into());
    store.beat(&[at]).unwrap();
    // Two workers with the default limit, and one with its own.
    silent(&store, "quiet", 60 * SECOND);
    silent(&store, "silent", 7_200 * SECOND);
    let mut strict = Registration::new("poller", "strict");
    strict.info.thresholds = Some(Thresholds::new(60 * SECOND));
    let strict = store.register(&[strict]).unwrap().remove(0);
    let mut aged = Beat::new(strict, State::Idle);
    aged.heartbeat_age = Some(100 * SECOND);
    store.beat(&[aged]).unwrap();
    register(&store, "starting");
    let stop = |key| Stop::new(key, StoredEnding::stopped(&StopCause::Stop));
    store.stop(&[stop(worker(&store, "stopped"))]).unwrap();

    let rows = sql(url(), active);
    let ids: Vec<&str> = rows.iter().map(|row| &*row[0]).collect();
    assert_eq!(ids, ["quiet", "well"]);
    assert_eq!(
        rows[1][..5],
        ["well", "poller", "processing", "run-1", "Researching"]
    );
    assert_eq!(rows[0][5].split('.').next(), Some("60"));
    let ids: BTreeSet<_> = sql(url(), dead)
        .into_iter()
        .map(|row| row[0].clone())
        .collect();
    assert_eq!(ids, ["silent", "strict"].map(String::from).into());
    let stats = sql(url(), stats);
    assert_eq!(stats[0][..6], ["poller", "6", "2", "2", "1", "1"]);
    let cleaned = sql(url(), cleanup);
    assert_eq!(cleaned.len(), 1);
    assert_eq!(cleaned[0][0], "silent");
    assert!(sql(url(), cleanup).is_empty());
    let states = states(&store);
    assert!(
        states.contains(&("silent".into(), State::Dead)),
        "{states:?}"
    );
}

#[test]
fn functions_act_on_the_same_rows() {
    let name = schema("functions");
    let store = store(&name);
    let ask = |text: &str| sql(url(), &text.replace("$s", &format!("\"{name}\"")));
    ask(
        "SELECT $s.upsert_worker_heartbeat('py-1', 'python', 'processing', 'run-7', 'Parsing', '{\"load\": 0.5}')",
    );
    let row = store.list(&WorkerFilter::default()).unwrap().remove(0);
    assert_eq!((&*row.key.id, &*row.info.worker_type), ("py-1", "python"));
    assert_eq!(row.health().state(), State::Processing);
    assert_eq!(
        (row.status.run_id.as_deref(), row.status.task.as_deref()),
        (Some("run-7"), Some("Parsing"))
    );
    assert_eq!(row.info.metadata, [("load".to_owned(), "0.5".to_owned())]);
    let again = ask("SELECT $s.upsert_worker_heartbeat('py-1', 'python', 'idle')");
    assert_eq!(again[0][0], row.key.incarnation.to_string());
    assert_eq!(states(&store), [("py-1".into(), State::Idle)]);
    let refused = support::postgres::try_sql(
        url(),
        &format!("SELECT \"{name}\".upsert_worker_heartbeat('x', 'y', 'healthy')"),
    );
    assert!(refused.is_err());
    // A lease that this crate claimed for it is released when it stops.
    assert!(matches!(
        claim(&store, &row.key, "run-7", 60 * SECOND),
        ClaimAnswer::Granted(_)
    ));
    assert_eq!(
        ask("SELECT $s.stop_worker('py-1'), $s.stop_worker('py-1'), $s.stop_worker('unknown')"),
        [["t", "f", "f"]]
    );
    assert_eq!(beat(&store, &row.key), Answer::Ended);
    assert_eq!(states(&store), [("py-1".into(), State::Stopped)]);
    let other = worker(&store, "rs-1");
    assert!(matches!(
        claim(&store, &other, "run-7", 60 * SECOND),
        ClaimAnswer::Granted(_)
    ));
    let next = ask("SELECT $s.upsert_worker_heartbeat('py-1', 'python')");
    assert!(next[0][0].parse::<u64>().unwrap() > row.key.incarnation);

    // Registered long ago: a worker believes in its leases from its registration on.
    let aged = |id: &str| {
        ask(&format!(
            "UPDATE $s.worker_heartbeats SET started_at = started_at - interval '1 hour' \
             WHERE worker_id = '{id}'"
        ));
    };
    let gone = silent(&store, "gone", 100 * SECOND);
    aged("gone");
    assert!(matches!(
        claim(&store, &gone, "run-8", 600 * SECOND),
        ClaimAnswer::Granted(_)
    ));
    assert_eq!(
        ask("SELECT worker_id, round(allowed_seconds) FROM $s.detect_stale_workers()"),
        [["gone", "90"]]
    );
    // A silent worker has not ended before it is marked.
    assert!(ask("SELECT * FROM $s.release_dead_worker_leases()").is_empty());
    assert_eq!(
        ask("SELECT worker_id FROM $s.cleanup_stale_workers(1)"),
        [["gone"]]
    );
    assert!(matches!(
        claim(&store, &other, "run-8", SECOND),
        ClaimAnswer::Granted(_)
    ));
    // Superseded: the lease is released once its holder no longer believes in it.
    let old = silent(&store, "old", 89 * SECOND);
    aged("old");
    assert!(matches!(
        claim(&store, &old, "run-9", 600 * SECOND),
        ClaimAnswer::Granted(_)
    ));
    worker(&store, "old");
    assert!(ask("SELECT * FROM $s.release_dead_worker_leases()").is_empty());
    thread::sleep(Duration::from_millis(1_200));
    assert_eq!(
        ask("SELECT run_id, worker_id FROM $s.release_dead_worker_leases()"),
        [["run-9", "old"]]
    );
    let stats = ask(
        "SELECT worker_type, total_workers, active_workers, dead_workers FROM $s.get_worker_stats()",
    );
    assert_eq!(
        stats,
        [["poller", "3", "2", "1"], ["python", "1", "1", "0"]]
    );
}

/// Each state that can be reported or recorded, each limit, and ages on both sides of it. None is near
/// its limit, so that the verdicts are the same however long the test takes.
#[test]
fn views_judge_as_the_library_does() {
    let name = schema("judged");
    let store = store(&name);
    let ask = |text: &str| sql(url(), &text.replace("$s", &format!("\"{name}\"")));
    let seconds = |age: u64| Duration::from_secs(age);
    let limits = [
        None,
        Some(Thresholds::new(1_000 * SECOND)),
        Some({
            let mut own = Thresholds::new(10_000 * SECOND);
            own.startup_grace = 500 * SECOND;
            own.stall_after = Some(SECOND);
            own.beats_only = true;
            own
        }),
    ];
    let mut statements = Vec::new();
    let mut written = 0;
    let mut register = |limits: &Option<Thresholds>, what: &str| {
        written += 1;
        let mut registration =
            Registration::new(format!("type-{}", written % 3), format!("{written}-{what}"));
        registration.info.thresholds = limits.clone();
        store.register(&[registration]).unwrap().remove(0)
    };
    for limits in &limits {
        for age in [0, 50, 150, 600, 2_000, 20_000] {
            for state in State::ALL {
                let key = register(limits, &format!("{state}-{age}"));
                let mut beat = Beat::new(key, state);
                beat.heartbeat_age = Some(seconds(age));
                beat.progress_age = Some(seconds(age));
                assert_eq!(store.beat(&[beat]).unwrap(), [Answer::Accepted]);
            }
            let silent = register(limits, &format!("silent-{age}"));
            let stopped = register(limits, &format!("stop-{age}"));
            let dead = register(limits, &format!("death-{age}"));
            statements.push(format!(
                "UPDATE $s.worker_heartbeats SET started_at = now() - interval '{age} s' \
                 WHERE worker_id = '{}'",
                silent.id
            ));
            let stop =
                Stop::new(stopped, StoredEnding::stopped(&StopCause::Completed)).ago(seconds(age));
            assert_eq!(store.stop(&[stop]).unwrap(), [Answer::Accepted]);
            statements.push(format!(
                "SELECT $s.stop_workers('{{{}}}', '{{{}}}', '{{false}}', '{{exited}}', '{{NULL}}', '{{NULL}}', '{{0}}')",
                dead.id, dead.incarnation
            ));
        }
    }
    // Rows of other languages, with and without a limit.
    for status in [
        "starting",
        "idle",
        "active",
        "processing",
        "stopping",
        "stopped",
    ] {
        for limit in ["NULL", "'500 s'", "'1 year'"] {
            for age in [0, 50, 150, 600, 31_500_000, 31_600_000] {
                let id = format!("{status}-{limit}-{age}").replace('\'', "");
                for status in ["active", status] {
                    statements.push(format!(
                        "SELECT $s.upsert_worker_heartbeat('{id}', 'other', '{status}', \
                         p_stale_after => {limit})"
                    ));
                }
                statements.push(format!(
                    "UPDATE $s.worker_heartbeats SET last_heartbeat_at = now() - interval '{age} s' \
                     WHERE worker_id = '{id}'"
                ));
            }
        }
    }
    // Rows that no function writes: with only one of the two limits.
    statements.push(
        "INSERT INTO $s.worker_heartbeats (worker_id, worker_type, incarnation, started_at, \
         stale_after, startup_grace) VALUES \
         ('stale-only', 'hand', 1, now() - interval '40 s', '20 s', NULL), \
         ('grace-only', 'hand', 2, now() - interval '40 s', NULL, '20 s')"
            .to_owned(),
    );
    ask(&statements.join(";"));

    let workers = store.list(&WorkerFilter::default()).unwrap();
    let states: BTreeMap<String, State> = workers
        .iter()
        .map(|worker| (worker.key.id.clone(), worker.health().state()))
        .collect();
    let seen: BTreeSet<State> = states.values().copied().collect();
    assert_eq!(seen, State::ALL.into(), "every state is compared");
    let of = |which: fn(State) -> bool| -> Vec<Vec<String>> {
        let found = states.iter().filter(|(_, state)| which(**state));
        found
            .map(|(id, state)| vec![id.clone(), state.to_string()])
            .collect()
    };
    let all = "SELECT worker_id, $s.worker_state(w) FROM $s.worker_heartbeats w ORDER BY worker_id";
    assert_eq!(ask(all), of(|_| true));
    let active = "SELECT worker_id, state FROM $s.v_active_workers ORDER BY worker_id";
    assert_eq!(ask(active), of(State::is_recent));
    let dead = "SELECT worker_id, state FROM $s.v_dead_workers ORDER BY worker_id";
    assert_eq!(ask(dead), of(State::is_offline));
    let stale = ask("SELECT worker_id FROM $s.detect_stale_workers()");
    let convicted = of(|state| state.is_offline() && !state.is_terminal());
    assert_eq!(
        stale,
        convicted.iter().map(|row| &row[..1]).collect::<Vec<_>>()
    );

    let summary = store.summary().unwrap();
    let stats = ask(
        "SELECT worker_type, total_workers, active_workers, dead_workers, stopped_workers, \
         starting_workers, idle_workers, processing_workers, stalled_workers, overdue_workers \
         FROM $s.get_worker_stats()",
    );
    let expected = summary.stats_by_type.iter().map(|(worker_type, stats)| {
        let states = [
            State::Stopped,
            State::Starting,
            State::Idle,
            State::Processing,
            State::Stalled,
            State::Overdue,
        ];
        let states = states.map(|state| stats.states.get(state));
        let counts = [stats.total, stats.active, stats.dead];
        let counts = counts.into_iter().chain(states);
        let mut row = vec![worker_type.clone()];
        row.extend(counts.map(|count| count.to_string()));
        row
    });
    assert_eq!(stats, expected.collect::<Vec<_>>());

    // A sweep marks the same workers.
    let mut dry_run = Sweep::default();
    dry_run.dry_run = true;
    let swept = store.sweep(&dry_run).unwrap().marked_offline;
    assert_eq!(swept, stale.concat());
    let refused = support::postgres::try_sql(
        url(),
        &format!("SELECT \"{name}\".upsert_worker_heartbeat('x', 'y', p_stale_after => '-1 s')"),
    );
    assert!(refused.is_err());
}

/// Judging a large table must not cost a function call for each row, apart from silent ones.
#[test]
fn judging_is_inlined() {
    let name = schema("inlined");
    drop(store(&name));
    for table in [
        "v_active_workers",
        "v_dead_workers",
        "worker_heartbeats w WHERE $s.is_stale(w, '90 s', '1 h')",
    ] {
        let explain = format!("EXPLAIN (VERBOSE) SELECT * FROM $s.{table}");
        let plan = sql(url(), &explain.replace("$s", &format!("\"{name}\"")));
        let filter = plan
            .concat()
            .into_iter()
            .find(|line| line.contains("Filter:"))
            .unwrap();
        assert!(filter.contains("last_heartbeat_at"), "{filter}");
        let silent = format!("{name}.deferred_heartbeat(");
        assert!(!filter.replace(&silent, "").contains(&name), "{filter}");
    }
}

#[test]
fn odd_texts_do_no_harm() {
    let store = store(&schema("texts"));
    let key = worker(&store, "zero\0byte");
    assert_eq!(key.id, "zero\u{fffd}byte");
    let mut odd = Beat::new(key.clone(), State::Stopped);
    odd.status.task = Some("a\0b".into());
    odd.metadata = vec![("k\0".into(), "v\0".into())];
    odd.status.beats = u64::MAX;
    assert_eq!(store.beat(&[odd]).unwrap(), [Answer::Accepted]);
    let row = store.list(&WorkerFilter::default()).unwrap().remove(0);
    assert_eq!(
        (row.status.task.as_deref(), row.status.beats),
        (Some("a\u{fffd}b"), u64::MAX)
    );
    // Metadata of heartbeats is bounded; existing entries are still replaced.
    let many = |value: &str| {
        let mut beat = Beat::new(key.clone(), State::Active);
        beat.metadata = (0..200)
            .map(|n| (format!("name-{n:03}"), value.to_owned()))
            .collect();
        beat
    };
    for value in ["old", "new"] {
        assert_eq!(store.beat(&[many(value)]).unwrap(), [Answer::Accepted]);
    }
    let row = store.list(&WorkerFilter::default()).unwrap().remove(0);
    assert_eq!(row.info.metadata.len(), MOST_METADATA);
    let new = row.info.metadata.iter().filter(|(_, value)| value == "new");
    assert_eq!(new.count(), MOST_METADATA - 1);
    let mut endless = Registration::new("poller", "endless");
    endless.info.thresholds = Some(Thresholds::new(Duration::MAX));
    endless.info.interval = Duration::MAX;
    let endless = store.register(&[endless]).unwrap().remove(0);
    assert!(matches!(
        claim(&store, &endless, "run", Duration::MAX),
        ClaimAnswer::Granted(_)
    ));
    let late = Stop::new(endless, StoredEnding::stopped(&StopCause::Stop)).ago(Duration::MAX);
    assert_eq!(store.stop(&[late]).unwrap(), [Answer::Accepted]);
    assert_eq!(store.purge(Duration::ZERO).unwrap(), 1);
}

// --- setting up ---------------------------------------------------------------------------------

#[test]
fn a_hundred_start_at_once() {
    let name = schema("hundred");
    thread::scope(|scope| {
        for n in 0..100 {
            let name = &name;
            scope.spawn(move || worker(&store(name), &format!("w-{n}")));
        }
    });
    assert_eq!(states(&store(&name)).len(), 100);
    let versions = sql(
        url(),
        &format!("SELECT count(*), max(version) FROM \"{name}\".schema_migrations"),
    );
    assert_eq!(versions, [["10", "23"]]);
}

#[test]
fn the_shorter_form_of_sweep_workers_marks_the_listed_workers_killed() {
    let name = schema("before");
    let store = store(&name);
    let killed = worker(&store, "a");
    worker(&store, "b");
    assert!(matches!(
        claim(&store, &killed, "run", 600 * SECOND),
        ClaimAnswer::Granted(_)
    ));
    let sweep = |ids: &str| {
        let text = format!(
            "SELECT what, name FROM \"{name}\".sweep_workers('90 s', '0', {ids}, '5 s', false, 100)"
        );
        sql(url(), &text)
    };
    assert_eq!(sweep("'{}', '{}'"), [["swept", "NULL"]]);
    let found = sweep(&format!("'{{a}}', '{{{}}}'", killed.incarnation));
    assert_eq!(
        found,
        [["swept", "NULL"], ["worker", "a"], ["lease", "run"]]
    );
    let rows = store.list(&WorkerFilter::default()).unwrap();
    let ending = rows[0].ending.as_ref().map(|(ending, _)| &*ending.cause);
    assert_eq!(ending, Some("killed"));
    assert!(rows[1].ending.is_none());
}

/// A schema that a program of an earlier version set up.
#[test]
fn an_older_schema_is_brought_up_to_date() {
    let name = schema("older");
    let key = worker(&store(&name), "a");
    sql(
        url(),
        &"DELETE FROM $s.schema_migrations WHERE version > 6;
          INSERT INTO $s.schema_migrations VALUES (6, 'older');
          CREATE OR REPLACE FUNCTION $s.worker_state(worker $s.worker_heartbeats) RETURNS text
              LANGUAGE sql AS $$ SELECT 'of an older version' $$"
            .replace("$s", &format!("\"{name}\"")),
    );
    let error = PostgresOptions::new()
        .schema(&name)
        .migrations(false)
        .connect(url())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is of version 6, this program needs 23"),
        "{error}"
    );
    assert_eq!(beat(&store(&name), &key), Answer::Accepted);
    let rows = format!("SELECT worker_id, state FROM \"{name}\".v_active_workers");
    assert_eq!(sql(url(), &rows), [["a", "active"]]);
}

#[test]
fn a_script_can_set_up_the_schema() {
    let name = schema("manual");
    let options = || PostgresOptions::new().schema(&name).migrations(false);
    let error = options().connect(url()).unwrap_err().to_string();
    assert!(error.contains("is not set up"), "{error}");
    let script = options().migration_sql().unwrap();
    sql(url(), &script);
    sql(url(), &script);
    let store = options().connect(url()).unwrap();
    worker(&store, "a");
    sql(
        url(),
        &format!(
            "INSERT INTO \"{name}\".schema_migrations (version, name) VALUES (99, 'of the future')"
        ),
    );
    for migrations in [true, false] {
        let error = options()
            .migrations(migrations)
            .connect(url())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("of version 99") && error.contains("use a newer"),
            "{error}"
        );
    }
}

#[test]
fn async_code_may_call_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = store(&schema("async"));
        let key = worker(&store, "a");
        assert!(matches!(
            claim(&store, &key, "run", SECOND),
            ClaimAnswer::Granted(_)
        ));
        drop(store);
    });
}

// --- what goes wrong ----------------------------------------------------------------------------

#[test]
fn errors_contain_no_password() {
    let shown = |text: String| {
        assert!(
            !text.contains(PASSWORD) && !text.contains("ho%25rse"),
            "{text}"
        );
    };
    let wrong = |url: String| {
        let error = PostgresStore::connect(&url).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error}");
        shown(error.to_string());
        shown(format!("{error:?}"));
    };
    let Some(cluster) = own() else { return };
    let url = cluster.url();
    let store = PostgresOptions::new().schema("x").connect(&url).unwrap();
    shown(format!("{store:?}"));
    assert!(format!("{store:?}").contains("tester@127.0.0.1"));
    wrong(url.replace("tester:", "unknown:"));
    wrong(url.replace("/postgres", "/nowhere"));
    // A database with the password as its name: the server's message quotes it.
    wrong(url.replace("/postgres", "/cor-rect%3Aho%25rse%2Fbat%3Ftery"));
    wrong(
        url.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1")
            .replace("/postgres", "/postgres?sslmode=require"),
    );
}

#[test]
fn tls_follows_the_url() {
    let Some(cluster) = own() else { return };
    let authority = cluster.enable_tls();
    let encrypted = |options: PostgresOptions, mode: &str| {
        let store = options
            .schema("x")
            .connect(&format!("{}?sslmode={mode}", cluster.url()))?;
        let asked = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'worker-heartbeat'";
        worker(&store, mode);
        Ok::<_, Error>(sql(&cluster.url(), asked)[0][0] == "t")
    };
    let plain = PostgresOptions::new;
    let checked = || plain().root_certificate(authority);
    // The server reloads its settings asynchronously.
    let deadline = Instant::now() + 10 * SECOND;
    while !encrypted(plain(), "prefer").unwrap() {
        assert!(Instant::now() < deadline, "never encrypted");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(!encrypted(plain(), "disable").unwrap());
    for mode in ["require", "verify-full"] {
        let error = encrypted(plain(), mode).unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        assert!(encrypted(checked(), mode).unwrap());
    }
    assert!(encrypted(checked(), "prefer").unwrap());
}

#[test]
fn calls_time_out_if_the_server_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!(
        "postgres://a:b@127.0.0.1:{}/c",
        listener.local_addr().unwrap().port()
    );
    let short = Duration::from_millis(300);
    let options = || {
        PostgresOptions::new()
            .connect_timeout(short)
            .statement_timeout(short)
    };
    let begun = Instant::now();
    let error = options().connect(&silent).unwrap_err().to_string();
    assert!(begun.elapsed() < 20 * SECOND, "{:?}", begun.elapsed());
    assert!(error.contains("no answer within 300ms"), "{error}");

    // A server that stops answering.
    let Some(cluster) = own() else { return };
    let limit = SECOND;
    let store = PostgresOptions::new()
        .connect_timeout(limit)
        .statement_timeout(limit)
        .schema("x")
        .connect_lazy(&cluster.url())
        .unwrap();
    let registration = [Registration::new("poller", "a")];
    let key = retried(|| store.register(&registration)).remove(0);
    let lease = Claim::new(key.clone(), "run", SECOND);
    retried(|| store.claim(&lease));
    signal(&cluster.processes(), "STOP");
    let beat = [Beat::new(key, State::Idle)];
    for _ in 0..2 {
        let begun = Instant::now();
        assert!(store.beat(&beat).is_err());
        assert!(store.claim(&lease).is_err());
        assert!(begun.elapsed() < 30 * limit, "{:?}", begun.elapsed());
    }
    signal(&cluster.processes(), "CONT");
    assert_eq!(retried(|| store.beat(&beat)), [Answer::Accepted]);
}

/// A busy machine may exceed a short time limit several times.
fn retried<T>(call: impl Fn() -> Result<T, Error>) -> T {
    let begun = Instant::now();
    loop {
        match call() {
            Ok(done) => return done,
            Err(error) => assert!(begun.elapsed() < 60 * SECOND, "{error}"),
        }
    }
}

fn signal(processes: &[i32], name: &str) {
    let pids = processes.iter().map(ToString::to_string);
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .args(pids)
        .status();
    assert!(status.unwrap().success());
}

/// The store is opened while the server is down; then the server crashes and restarts repeatedly.
#[test]
fn a_server_that_crashes_stops_no_worker() {
    const WORKERS: usize = 50;
    let interval = 4 * SECOND;
    let Some(cluster) = own() else { return };
    cluster.crash();
    let open = || {
        PostgresOptions::new()
            .schema("crash")
            .connect_lazy(&cluster.url())
            .unwrap()
    };
    assert!(PostgresOptions::new().connect(&cluster.url()).is_err());
    let registry = Registry::new();
    let attachment = registry.attach(open(), FleetConfig::new()).unwrap();
    let stop = AtomicBool::new(false);
    let sweeper = Sweeper::new(open())
        .interval(SECOND)
        .watched_for(Duration::MAX);
    let marked = std::sync::Arc::new(Mutex::new(Vec::new()));
    let reported = std::sync::Arc::clone(&marked);
    let sweeper = sweeper.on_report(move |report| {
        if let Ok(report) = report {
            reported
                .lock()
                .unwrap()
                .extend(report.marked_offline.clone());
        }
    });
    let running = sweeper.start().unwrap();
    thread::scope(|scope| {
        let working: Vec<_> = (0..WORKERS)
            .map(|n| {
                let (stop, registry) = (&stop, &registry);
                scope.spawn(move || {
                    let hb = WorkerHeartbeat::builder("poller")
                        .id(format!("w-{n:02}"))
                        .interval(interval)
                        .stale_after(30 * SECOND)
                        .registry(registry)
                        .start()
                        .unwrap();
                    let mut longest = Duration::ZERO;
                    let mut last = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        hb.beat();
                        thread::sleep(Duration::from_millis(20));
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    hb.stop();
                    longest
                })
            })
            .collect();
        let store = open();
        let mut slowest = Duration::ZERO;
        for round in 0..6 {
            if round > 0 {
                cluster.crash();
                thread::sleep(Duration::from_millis(300 * round));
            }
            cluster.restart();
            let up = Instant::now();
            loop {
                let rows = store.list(&WorkerFilter::default()).unwrap_or_default();
                let back = rows.iter().filter(|row| {
                    row.health().state() == State::Active
                        && row.heartbeat_age.is_some_and(|age| age < up.elapsed())
                });
                if back.count() == WORKERS {
                    break;
                }
                assert!(up.elapsed() < 60 * SECOND, "round {round}: {rows:?}");
                thread::sleep(Duration::from_millis(20));
            }
            slowest = slowest.max(up.elapsed());
            assert!(
                up.elapsed() <= interval.max(20 * SECOND),
                "round {round}: after {:?}",
                up.elapsed()
            );
        }
        // If one of its processes is killed, the server restarts all others.
        let backend = sql(
            &cluster.url(),
            "SELECT max(pid) FROM pg_stat_activity WHERE application_name = 'worker-heartbeat'",
        );
        signal(&[backend[0][0].parse().unwrap()], "KILL");
        thread::sleep(6 * SECOND);
        let active = states(&store)
            .into_iter()
            .filter(|(_, state)| *state == State::Active);
        assert_eq!(active.count(), WORKERS);
        stop.store(true, Ordering::Relaxed);
        let longest = working
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .max()
            .unwrap();
        println!(
            "all are back after {slowest:?} at most; the longest pause of any worker was {longest:?}"
        );
        assert!(longest < SECOND, "a worker stood still for {longest:?}");
    });
    assert!(attachment.status().failures > 0);
    drop(running);
    assert_eq!(*marked.lock().unwrap(), [""; 0]);
}

// --- ended processes ----------------------------------------------------------------------------

/// Not a test: the child process of the next test.
#[test]
fn stage() {
    let Some(role) = process::role() else { return };
    let (schema, url) = role.split_once(' ').unwrap();
    let registry = Registry::new();
    let store = PostgresOptions::new().schema(schema).connect(url).unwrap();
    let attachment = registry.attach(store, FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("victim")
        .id("victim")
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    let _lease = hb.claim("run", 600 * SECOND).unwrap().unwrap();
    attachment.flush(10 * SECOND);
    println!("\n@ready");
    loop {
        hb.beat();
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_killed_process_is_dead_within_seconds_wherever_it_ran() {
    let name = schema("killed");
    let store = store(&name);
    let victim = Process::start(&format!("{name} {}", url()));
    // The worker's session is terminated, and the worker connects again.
    let terminate = "SELECT pg_terminate_backend(backend_pid) FROM $s.sessions"
        .replace("$s", &format!("\"{name}\""));
    for _ in 0..8 {
        assert_eq!(
            store.sweep(&Sweep::default()).unwrap().marked_offline,
            [""; 0]
        );
        thread::sleep(SECOND);
        if sql(
            url(),
            &format!("SELECT lost_at FROM \"{name}\".sessions WHERE lost_at IS NOT NULL"),
        )
        .is_empty()
        {
            sql(url(), &terminate);
        }
    }
    assert_eq!(states(&store), [("victim".into(), State::Active)]);
    victim.signal(Signal::SIGKILL);
    let killed = Instant::now();
    victim.wait();
    let report = loop {
        let report = store.sweep(&Sweep::default()).unwrap();
        if !report.marked_offline.is_empty() {
            break report;
        }
        assert!(killed.elapsed() < 60 * SECOND, "not found in 60 s");
        thread::sleep(SECOND);
    };
    println!("found after {:?}", killed.elapsed());
    assert_eq!(report.marked_offline, ["victim"]);
    // The process might be alive and cut off.
    assert_eq!(report.released_leases, [""; 0]);
    let row = store.list(&WorkerFilter::default()).unwrap().remove(0);
    let health = row.health().to_string();
    assert!(health.starts_with("dead: its process is gone"), "{health}");
    let remaining = sql(
        url(),
        &format!(
            "SELECT extract(epoch FROM expires_at - now()) BETWEEN 60 AND 90 FROM \"{name}\".leases"
        ),
    );
    assert_eq!(remaining, [["t"]], "until 90 s after its last heartbeat");
    let other = worker(&store, "other");
    assert_eq!(claim(&store, &other, "run", SECOND), ClaimAnswer::Taken);
}

/// The workers of this test don't come back: only the rule for sessions keeps them alive.
#[test]
fn sessions_that_end_with_the_server_or_unwatched_prove_nothing() {
    let Some(cluster) = own() else { return };
    let options = || PostgresOptions::new().schema("x");
    let store = options().connect(&cluster.url()).unwrap();
    let sweep = || {
        let watcher = options().session_liveness(false);
        let watcher = watcher.connect(&cluster.url()).unwrap();
        watcher.sweep(&Sweep::default()).unwrap().marked_offline
    };
    let here = |id: &str| {
        let mut registration = Registration::new("poller", id);
        registration.info.process = Some(worker_heartbeat::fleet::ProcessIdentity::current());
        let key = store.register(&[registration]).unwrap().remove(0);
        assert_eq!(beat(&store, &key), Answer::Accepted);
        let session =
            format!("SELECT session_id FROM x.worker_heartbeats WHERE worker_id = '{id}'");
        let session = sql(&cluster.url(), &session).remove(0).remove(0);
        assert_ne!(session, "NULL", "{id}");
        session
    };
    let backend = |session: &str| {
        let backend = format!("SELECT backend_pid FROM x.sessions WHERE session_id = {session}");
        sql(&cluster.url(), &backend)[0][0].parse::<i32>().unwrap()
    };
    here("restarted");
    cluster.crash();
    cluster.restart();
    let session = here("crashed");
    signal(&[backend(&session)], "KILL");
    let up = || support::postgres::try_sql(&cluster.url(), "SELECT 1").is_ok();
    thread::sleep(SECOND);
    while !up() {
        thread::sleep(Duration::from_millis(50));
    }
    for _ in 0..8 {
        assert_eq!(sweep(), [""; 0]);
        thread::sleep(SECOND);
    }
    let session = here("gone");
    sql(
        &cluster.url(),
        &format!("SELECT pg_terminate_backend({})", backend(&session)),
    );
    thread::sleep(Duration::from_millis(200));
    assert_eq!(sweep(), [""; 0]);
    // A long gap between two sweeps proves nothing.
    thread::sleep(6 * SECOND);
    assert_eq!(sweep(), [""; 0]);
    for n in 0.. {
        thread::sleep(SECOND);
        let marked = sweep();
        if !marked.is_empty() {
            assert_eq!(marked, ["gone"]);
            break;
        }
        assert!(n < 5, "never convicted");
    }
}

/// The end of a process that forwards heartbeats of other processes proves nothing about those;
/// neither does a store that is closed.
#[test]
fn only_workers_of_the_own_process_depend_on_its_session() {
    let name = schema("coordinator");
    let sessions =
        format!("SELECT count(*) FROM \"{name}\".worker_heartbeats WHERE session_id IS NOT NULL");
    let elsewhere = || {
        let mut process = worker_heartbeat::fleet::ProcessIdentity::current();
        process.pid += 1;
        process
    };
    let here = worker_heartbeat::fleet::ProcessIdentity::current;
    let carrier = store(&name);
    let register = |id: &str, process| {
        let mut registration = Registration::new("poller", id);
        registration.info.process = Some(process);
        let key = carrier.register(&[registration]).unwrap().remove(0);
        assert_eq!(beat(&carrier, &key), Answer::Accepted);
    };
    register("elsewhere", elsewhere());
    assert_eq!(sql(url(), &sessions), [["0"]]);
    register("here", here());
    assert_eq!(sql(url(), &sessions), [["1"]]);
    assert!(carrier.keep_alive().unwrap(), "just opened");
    assert!(!carrier.keep_alive().unwrap());
    drop(carrier);
    let known = format!("SELECT count(*) FROM \"{name}\".sessions");
    assert_eq!(sql(url(), &known), [["0"]]);
}

/// Behind such a proxy, processes share sessions. The store detects that.
#[test]
fn sessions_behind_a_pooling_proxy_prove_nothing() {
    let Some(cluster) = own() else { return };
    let Some(pooled) = cluster.pooled_url() else {
        eprintln!("left out: it needs pgbouncer");
        return;
    };
    let options = || PostgresOptions::new().schema("pooled");
    let direct = options().connect(&cluster.url()).unwrap();
    let registries: Vec<Registry> = (0..3).map(|_| Registry::new()).collect();
    let workers: Vec<_> = registries
        .iter()
        .map(|registry| {
            let store = options().connect(&pooled).unwrap();
            registry.attach(store, FleetConfig::new()).unwrap();
            let hb = WorkerHeartbeat::builder("pooled")
                .registry(registry)
                .start()
                .unwrap();
            hb.beat();
            hb
        })
        .collect();
    let sessions = "SELECT count(*) FROM pooled.worker_heartbeats WHERE session_id IS NOT NULL";
    let begun = Instant::now();
    while begun.elapsed() < 9 * SECOND {
        // The proxy's connections are closed and reopened.
        sql(
            &cluster.url(),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE pid <> pg_backend_pid() AND usename = 'tester' AND state = 'idle' \
             AND (query LIKE '%is_session%' OR query LIKE '%SELECT 1%')",
        );
        assert_eq!(
            direct.sweep(&Sweep::default()).unwrap().marked_offline,
            [""; 0]
        );
        thread::sleep(SECOND);
    }
    assert_eq!(states(&direct).len(), 3);
    assert_eq!(sql(&cluster.url(), sessions), [["0"]]);
    drop(workers);
    conformance::assert_conforms(&options().session_liveness(false).connect(&pooled).unwrap());
}

// --- leases -------------------------------------------------------------------------------------

/// A worker believed that it held a run.
struct Belief {
    run: usize,
    from: Instant,
    until: Instant,
    fence: u64,
}

#[test]
fn no_run_is_ever_held_twice() {
    const RUNS: usize = 3;
    let stale_after = Duration::from_millis(200);
    let name = schema("leases");
    store(&name);
    let beliefs = Mutex::new(Vec::new());
    let releases = Mutex::new(Vec::new());
    let swept = Mutex::new(0);
    let begun = Instant::now();
    // A busy machine needs longer for enough claims.
    let goes_on = || {
        let enough = beliefs.lock().unwrap().len() > 100 && *swept.lock().unwrap() > 5;
        begun.elapsed() < if enough { 6 * SECOND } else { 60 * SECOND }
    };
    thread::scope(|scope| {
        for n in 0..10_u64 {
            let (name, beliefs, releases, goes_on) = (&name, &beliefs, &releases, &goes_on);
            scope.spawn(move || {
                let store = store(name);
                let mut dice = Dice(n + 1);
                // Some share an id.
                let id = format!("w-{}", n % 7);
                while goes_on() {
                    let mut registration = Registration::new("poller", &id);
                    registration.info.thresholds = Some(Thresholds::new(stale_after));
                    let Some(keys) = unless_busy(store.register(&[registration])) else {
                        continue;
                    };
                    let key = keys[0].clone();
                    for _ in 0..dice.roll(12) {
                        let sent = Instant::now();
                        if beat(&store, &key) != Answer::Accepted {
                            break;
                        }
                        let heard = sent;
                        let run = dice.roll(RUNS as u64) as usize;
                        let ttl = Duration::from_millis(20 + dice.roll(200));
                        let mut sent = Instant::now();
                        let asked = Claim::new(key.clone(), run.to_string(), ttl);
                        let Some(ClaimAnswer::Granted(fence)) = unless_busy(store.claim(&asked))
                        else {
                            continue;
                        };
                        let from = Instant::now();
                        let lease = [LeaseKey::new(key.clone(), run.to_string(), fence)];
                        // A pause may be longer than the lease and the limit.
                        let longest = if dice.roll(4) == 0 { 500 } else { 30 };
                        thread::sleep(Duration::from_millis(dice.roll(longest)));
                        let again = Instant::now();
                        let promised = (sent + ttl).min(heard + stale_after);
                        if dice.roll(2) == 0
                            && again < promised
                            && unless_busy(store.renew(&lease, ttl)).is_some_and(|done| done[0])
                        {
                            sent = again;
                            thread::sleep(Duration::from_millis(dice.roll(60)));
                        }
                        let until = (sent + ttl).min(heard + stale_after).min(Instant::now());
                        beliefs.lock().unwrap().push(Belief {
                            run,
                            from,
                            until: until.max(from),
                            fence,
                        });
                        if dice.roll(3) > 0 {
                            // Released twice, concurrently.
                            let twice = thread::scope(|scope| {
                                let release = || unless_busy(store.release(&lease));
                                let other = scope.spawn(release);
                                (release(), other.join().unwrap())
                            });
                            if let (Some(one), Some(other)) = twice {
                                releases.lock().unwrap().push((one[0], other[0]));
                            }
                        }
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let store = store(&name);
                while goes_on() {
                    let report = store.sweep(&Sweep::default()).unwrap();
                    *swept.lock().unwrap() += report.marked_offline.len();
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
    });
    let mut beliefs = beliefs.into_inner().unwrap();
    beliefs.sort_by_key(|belief| (belief.run, belief.fence));
    for pair in beliefs.windows(2).filter(|pair| pair[0].run == pair[1].run) {
        assert!(pair[0].fence < pair[1].fence, "a fence was given twice");
        // An answer that comes after the lease has expired makes nobody believe in it.
        let [first, next] = [&pair[0], &pair[1]];
        assert!(
            first.until <= next.from || first.until == first.from || next.until == next.from,
            "run {} was held twice, by the fences {} and {}",
            pair[0].run,
            pair[0].fence,
            pair[1].fence
        );
    }
    let releases = releases.into_inner().unwrap();
    assert!(!releases.contains(&(true, true)), "released twice");
    let swept = swept.into_inner().unwrap();
    println!(
        "{} claims, {} double releases tried, {swept} workers swept",
        beliefs.len(),
        releases.len()
    );
    assert!(
        beliefs.len() > 100 && swept > 5,
        "{} claims, {swept} swept",
        beliefs.len()
    );
}

/// A batch of heartbeats locks its rows until all are written.
#[test]
fn claims_and_sweeps_do_not_wait_behind_a_batch() {
    let name = schema("waiting");
    let store = store(&name);
    let key = worker(&store, "a");
    silent(&store, "b", 1_000 * SECOND);
    let ClaimAnswer::Granted(_) = claim(&store, &key, "warm-up", SECOND) else {
        panic!("not granted");
    };
    store
        .sweep(&{
            let mut sweep = Sweep::default();
            sweep.dry_run = true;
            sweep
        })
        .unwrap();
    let batch = format!(
        "BEGIN; UPDATE \"{name}\".worker_heartbeats SET beats = beats + 1; SELECT pg_sleep(6); COMMIT"
    );
    thread::scope(|scope| {
        let writing = scope.spawn(|| sql(url(), &batch));
        thread::sleep(Duration::from_millis(700));
        let ClaimAnswer::Granted(fence) = claim(&store, &key, "run", 60 * SECOND) else {
            panic!("not granted");
        };
        let lease = [LeaseKey::new(key.clone(), "run", fence)];
        assert_eq!(store.renew(&lease, 60 * SECOND).unwrap(), [true]);
        // A locked row is skipped: its heartbeat may be arriving.
        assert_eq!(
            store.sweep(&Sweep::default()).unwrap().marked_offline,
            [""; 0]
        );
        assert_eq!(store.release(&lease).unwrap(), [true]);
        assert!(!writing.is_finished());
        writing.join().unwrap();
    });
    assert_eq!(
        store.sweep(&Sweep::default()).unwrap().marked_offline,
        ["b"]
    );
}

#[test]
fn conflicting_transactions_are_retried_once() {
    let name = schema("conflicts");
    let store = store(&name);
    let key = worker(&store, "a");
    sql(
        url(),
        &"CREATE SEQUENCE $s.tries;
          CREATE FUNCTION $s.collide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF nextval('$s.tries') <> 2 THEN
                  RAISE EXCEPTION 'collision' USING ERRCODE = 'deadlock_detected';
              END IF;
              RETURN NEW;
          END $$;
          CREATE TRIGGER collide BEFORE INSERT ON $s.leases FOR EACH ROW EXECUTE FUNCTION $s.collide()"
            .replace("$s", &format!("\"{name}\"")),
    );
    assert!(matches!(
        claim(&store, &key, "run", SECOND),
        ClaimAnswer::Granted(_)
    ));
    let another = Claim::new(key.clone(), "another", SECOND);
    let error = store.claim(&another).unwrap_err().to_string();
    assert!(
        error.contains("cannot claim") && error.contains("40P01"),
        "{error}"
    );
    assert_eq!(beat(&store, &key), Answer::Accepted);
}

struct Dice(u64);

impl Dice {
    /// Less than `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

// --- figures ------------------------------------------------------------------------------------

/// An hour of 1,000 workers, at 30 s each.
#[test]
fn heartbeats_are_heap_only_updates_and_the_table_does_not_grow() {
    // Long transactions of other tests in the same database would keep old row versions.
    let cluster = own();
    let url = &cluster
        .as_ref()
        .map_or_else(|| url().to_owned(), support::postgres::Cluster::url);
    let name = schema("hot");
    let store = PostgresOptions::new().schema(&name).connect(url).unwrap();
    let table = format!("'\"{name}\".worker_heartbeats'::regclass");
    let registrations: Vec<_> = (0..1_000)
        .map(|n| Registration::new("poller", format!("poller-{n:04}")))
        .collect();
    let keys = store.register(&registrations).unwrap();
    let round = |n: u64| {
        let beat = |key: &WorkerKey| {
            let mut beat = Beat::new(key.clone(), State::Processing);
            beat.status.run_id = Some(format!("run-{n}"));
            beat.status.task = Some(format!("Researching example.com, page {n}"));
            beat.status.progress = Some((n, 120));
            beat.status.beats = n;
            beat
        };
        let beats: Vec<_> = keys.iter().map(beat).collect();
        let answers = store.beat(&beats).unwrap();
        assert!(answers.iter().all(|answer| *answer == Answer::Accepted));
    };
    let size = || {
        sql(
            url,
            &format!("SELECT pg_relation_size({table}), pg_indexes_size({table})"),
        )[0]
        .clone()
    };
    for n in 0..5 {
        round(n);
    }
    let before = size();
    for n in 5..120 {
        round(n);
    }
    let after = size();
    drop(store);
    let figures =
        format!("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = {table}");
    let deadline = Instant::now() + 10 * SECOND;
    let (updates, hot) = loop {
        let row = sql(url, &figures).remove(0);
        let (updates, hot): (f64, f64) = (row[0].parse().unwrap(), row[1].parse().unwrap());
        if updates >= 120_000.0 || Instant::now() > deadline {
            break (updates, hot);
        }
        thread::sleep(Duration::from_millis(200));
    };
    println!(
        "{updates} updates, {:.2} % heap-only; table and indexes from {before:?} to {after:?} bytes",
        hot / updates * 100.0
    );
    assert!(
        updates >= 120_000.0 && hot / updates > 0.99,
        "{hot} of {updates}"
    );
    let bytes = |size: &[String]| size[0].parse::<f64>().unwrap() + size[1].parse::<f64>().unwrap();
    assert!(
        bytes(&after) < bytes(&before) * 1.5,
        "{before:?} to {after:?}"
    );
}
