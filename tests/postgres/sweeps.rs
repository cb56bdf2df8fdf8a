//! Sweeps beside transactions of others, of large tables, and by roles with few rights.

use std::thread;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};
use worker_heartbeat::fleet::{
    Answer, Beat, ClaimAnswer, ProcessIdentity, Registration, Sweep, WorkerFilter,
};
use worker_heartbeat::{HeartbeatStore, PostgresOptions, State, Sweeper};

use crate::support::postgres::{own, schema, sql, url};
use crate::support::retention;
use crate::{SECOND, beat, claim, silent, store, worker};

/// A session of another program, which stays in its transaction.
struct Other {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Other {
    fn begin(name: &str, text: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url(), NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        let text = format!("BEGIN; {text}").replace("$s", &format!("\"{name}\""));
        runtime.block_on(client.batch_execute(&text)).unwrap();
        Self { runtime, client }
    }

    fn rollback(self) {
        let ended = self.client.batch_execute("ROLLBACK");
        self.runtime.block_on(ended).unwrap();
    }
}

fn run(name: &str, text: &str) -> Vec<Vec<String>> {
    sql(url(), &text.replace("$s", &format!("\"{name}\"")))
}

#[test]
fn an_open_transaction_that_swept_holds_up_no_sweep() {
    let name = schema("held");
    let store = store(&name);
    for call in [
        "SELECT * FROM $s.cleanup_stale_workers(0)",
        "SELECT * FROM $s.sweep_workers('90 s', '1 h', '{}', '{}', '{}', '5 s', false, 1000)",
    ] {
        silent(&store, "a", 1_000 * SECOND);
        let other = Other::begin(&name, call);
        silent(&store, "b", 1_000 * SECOND);
        silent(&store, "c", 1_000 * SECOND);
        let sweeper = Sweeper::new(store.clone()).watched_for(Duration::MAX);
        let report = sweeper.sweep().unwrap();
        assert!(report.success);
        assert_eq!(report.marked_offline, ["b", "c"], "{call}");
        assert_eq!(report.busy, ["a"], "what is left undone is named");
        assert_eq!(sweeper.check(), Ok(()));
        // Neither does a call of the function wait.
        silent(&store, "c", 1_000 * SECOND);
        let marked = run(&name, "SELECT worker_id FROM $s.cleanup_stale_workers(1)");
        assert_eq!(marked, [["c"]]);
        other.rollback();
        let report = store.sweep(&Sweep::default()).unwrap();
        assert_eq!(
            (report.marked_offline, report.busy),
            (vec!["a".to_owned()], vec![])
        );
    }
}

#[test]
fn a_lease_that_another_transaction_locks_delays_its_worker_only() {
    let name = schema("fenced");
    let store = store(&name);
    for id in ["a", "b"] {
        let key = worker(&store, id);
        let granted = claim(&store, &key, &format!("run-{id}"), 60 * SECOND);
        assert!(matches!(granted, ClaimAnswer::Granted(_)));
    }
    run(
        &name,
        "UPDATE $s.worker_heartbeats SET last_heartbeat_at = now() - interval '1 h',
            started_at = now() - interval '1 h'",
    );
    let other = Other::begin(
        &name,
        "SELECT fence FROM $s.leases WHERE run_id = 'run-a' FOR SHARE",
    );
    let report = store.sweep(&Sweep::default()).unwrap();
    assert_eq!(
        (report.marked_offline, report.busy),
        (vec!["b".into()], vec!["a".into()])
    );
    assert_eq!(report.released_leases, ["run-b"]);
    let marked = run(&name, "SELECT worker_id FROM $s.cleanup_stale_workers(1)");
    assert!(marked.is_empty());
    other.rollback();
    let report = store.sweep(&Sweep::default()).unwrap();
    assert_eq!(
        (report.marked_offline, report.busy),
        (vec!["a".to_owned()], vec![])
    );
    assert_eq!(report.released_leases, ["run-a"]);

    // An expired one of an ended worker.
    run(
        &name,
        "INSERT INTO $s.leases (run_id, worker_id, incarnation, fence, expires_at)
            SELECT r, 'a', 1, 1, now() - interval '1 h' FROM unnest(ARRAY['x', 'y']) r",
    );
    let other = Other::begin(
        &name,
        "SELECT fence FROM $s.leases WHERE run_id = 'x' FOR SHARE",
    );
    let report = store.sweep(&Sweep::default()).unwrap();
    assert_eq!(report.released_leases, ["y"]);
    other.rollback();
    let report = store.sweep(&Sweep::default()).unwrap();
    assert_eq!(report.released_leases, ["x"]);
}

#[test]
fn other_locks_hold_up_no_sweep() {
    let name = schema("locks");
    let store = store(&name);
    assert!(store.sweep(&Sweep::default()).unwrap().success);
    let mut sweep = Sweep::default();
    sweep.unless_swept_within = Some(SECOND);
    assert!(store.sweep(&sweep).unwrap().success);
    run(
        &name,
        "INSERT INTO $s.sessions (session_id, backend_pid, backend_start, server_epoch)
            SELECT n, 2000000000 + n, now(), $s.server_epoch() FROM generate_series(1, 3) n",
    );
    let other = Other::begin(
        &name,
        "SELECT FROM $s.sessions FOR UPDATE; SELECT FROM $s.last_sweep FOR UPDATE",
    );
    silent(&store, "a", 1_000 * SECOND);
    thread::sleep(SECOND); // The last sweep is too long ago to make this one unneeded.
    let report = store.sweep(&sweep).unwrap();
    assert_eq!(report.marked_offline, ["a"]);
    other.rollback();
}

/// The processes of a data centre are gone: each row is judged, and marked, once.
#[test]
fn many_stale_workers_take_one_pass() {
    const WORKERS: u32 = 45_000;
    // Other tests of the database would scan tables, too.
    let name = schema("many");
    drop(store(&name));
    run(
        &name,
        &format!(
            "INSERT INTO $s.worker_heartbeats (worker_id, worker_type, incarnation, status,
                last_heartbeat_at, stale_after, worker_group)
            SELECT 'w-' || n, 'poller', n, 'active',
                now() - CASE WHEN n % 3 = 0 THEN interval '1 h' ELSE interval '0' END,
                interval '90 s', CASE WHEN n % 3 = 0 THEN 'gone' ELSE 'there' END
            FROM generate_series(1, {WORKERS}) n"
        ),
    );
    run(&name, "ANALYZE $s.worker_heartbeats");
    let scans = || {
        let figures = "SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables
            WHERE relid = '$s.worker_heartbeats'::regclass";
        run(&name, figures)[0][0].parse::<u32>().unwrap()
    };
    // Figures of a session appear when it ends.
    let swept = |dry_run: bool| {
        let store = crate::store(&name);
        let mut sweep = Sweep::default();
        sweep.dry_run = dry_run;
        let report = store.sweep(&sweep).unwrap();
        drop(store);
        thread::sleep(SECOND);
        report
    };
    let before = scans();
    let report = swept(true);
    assert_eq!(report.marked_offline.len(), 15_000);
    assert_eq!(report.affected_groups, ["gone"]);
    let dry = scans();
    let report = swept(false);
    assert_eq!(report.marked_offline.len(), 15_000);
    assert_eq!(report.affected_groups, ["gone"]);
    let done = scans();
    println!("rows read in scans: {} and {}", dry - before, done - dry);
    for read in [dry - before, done - dry] {
        assert!(read <= 2 * WORKERS, "{read} rows, in 8 batches");
    }
    assert_eq!(swept(false).marked_offline.len(), 0);
}

#[test]
fn a_dry_run_needs_no_right_to_write() {
    let Some(cluster) = own() else { return };
    let owner = PostgresOptions::new()
        .schema("dry")
        .connect(&cluster.url())
        .unwrap();
    silent(&owner, "a", 1_000 * SECOND);
    let key = worker(&owner, "b");
    let ClaimAnswer::Granted(_) = claim(&owner, &key, "run", SECOND / 2) else {
        panic!("not granted");
    };
    sql(
        &cluster.url(),
        "CREATE ROLE reader LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA dry TO reader;
         GRANT SELECT ON ALL TABLES IN SCHEMA dry TO reader;
         CREATE ROLE standby LOGIN PASSWORD 'x' SUPERUSER;
         ALTER ROLE standby SET default_transaction_read_only = on",
    );
    let place = cluster.url().split_once('@').unwrap().1.to_owned();
    for role in ["reader", "standby"] {
        let store = PostgresOptions::new()
            .schema("dry")
            .migrations(false)
            .connect_lazy(&format!("postgres://{role}:x@{place}"))
            .unwrap();
        let sweeper = Sweeper::new(store.clone())
            .watched_for(Duration::MAX)
            .dry_run(true);
        let report = sweeper.sweep().unwrap();
        assert_eq!(report.marked_offline, ["a"], "{role}");
        assert!(store.sweep(&Sweep::default()).is_err(), "{role}");
    }
    assert_eq!(owner.list(&WorkerFilter::new()).unwrap().len(), 2);
    assert_eq!(
        owner.sweep(&Sweep::default()).unwrap().marked_offline,
        ["a"]
    );
}

/// As where a provider hides the statistics of the server.
#[test]
fn sweeps_work_without_the_statistics_of_the_server() {
    let Some(cluster) = own() else { return };
    sql(
        &cluster.url(),
        "CREATE ROLE app LOGIN PASSWORD 'x'; GRANT CREATE ON DATABASE postgres TO app;
         REVOKE ALL ON pg_stat_activity, pg_stat_bgwriter FROM PUBLIC",
    );
    let place = cluster.url().split_once('@').unwrap().1.to_owned();
    let store = PostgresOptions::new()
        .schema("hidden")
        .connect(&format!("postgres://app:x@{place}"))
        .unwrap();
    let mut own = Registration::new("poller", "own");
    own.info.process = Some(ProcessIdentity::current());
    let key = store.register(&[own]).unwrap().remove(0);
    assert_eq!(beat(&store, &key), Answer::Accepted);
    silent(&store, "a", 1_000 * SECOND);
    let _ = store.keep_alive().unwrap();
    for dry_run in [true, false] {
        let mut sweep = Sweep::default();
        sweep.dry_run = dry_run;
        assert_eq!(store.sweep(&sweep).unwrap().marked_offline, ["a"]);
    }
    // Sessions that it may not see prove nothing.
    sql(
        &cluster.url(),
        "INSERT INTO hidden.sessions (session_id, backend_pid, backend_start, server_epoch)
            VALUES (77, 2000000000, now(), hidden.server_epoch());
         UPDATE hidden.worker_heartbeats SET session_id = 77 WHERE worker_id = 'own'",
    );
    for _ in 0..8 {
        assert_eq!(
            store.sweep(&Sweep::default()).unwrap().marked_offline,
            [""; 0]
        );
        thread::sleep(SECOND);
    }
    let row = store.list(&WorkerFilter::new()).unwrap().remove(1);
    assert_eq!((&*row.key.id, row.health().state()), ("own", State::Active));
}

#[test]
fn it_forgets_shares_sweeps_and_charges_pieces() {
    retention::check(&store(&schema("retention")));
    retention::check_unneeded(&store(&schema("unneeded")));
    retention::check_pieces(&store(&schema("pieces")));
}

#[test]
fn the_processes_of_a_host_are_listed_once_each() {
    let store = store(&schema("processes"));
    let here = ProcessIdentity::current();
    let process = |n: u32| {
        let mut process = here.clone();
        process.pid = 100 + n / 2;
        process.started = 7 + u64::from(n % 2);
        process
    };
    let workers: Vec<_> = (0..60)
        .map(|n| {
            let mut worker = Registration::new("poller", format!("w-{n:02}"));
            let mut process = process(n / 10);
            if n == 0 {
                process.boot_id = "another".into();
            }
            worker.info.process = (n != 1).then_some(process);
            worker
        })
        .collect();
    let keys = store.register(&workers).unwrap();
    let beats: Vec<_> = keys
        .iter()
        .map(|key| Beat::new(key.clone(), State::Active))
        .collect();
    store.beat(&beats).unwrap();
    let mut listed = store.processes(&here).unwrap();
    listed.sort_by_key(|process| (process.pid, process.started));
    assert_eq!(listed, (0..6).map(process).collect::<Vec<_>>());
    let of = WorkerFilter::new().host(here.clone()).process(process(2));
    let ids: Vec<_> = store
        .list(&of)
        .unwrap()
        .into_iter()
        .map(|row| row.key)
        .collect();
    assert_eq!(ids, keys[20..30]);
}

/// Of a data centre that is gone, while heartbeats of the others go on.
#[test]
#[ignore = "a measurement: cargo test --features postgres,http --test postgres -- --ignored --nocapture"]
fn how_long_a_sweep_of_a_million_takes() {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    let Some(cluster) = own() else { return };
    let url = cluster.url();
    let options = || {
        PostgresOptions::new()
            .schema("million")
            .statement_timeout(60 * SECOND)
    };
    let store = options().connect(&url).unwrap();
    let keys = store
        .register(
            &(0..1_000)
                .map(|n| Registration::new("poller", format!("beating-{n:04}")))
                .collect::<Vec<_>>(),
        )
        .unwrap();
    for (percent, group) in [(1, "few"), (30, "centre")] {
        sql(
            &url,
            &format!(
                "DELETE FROM million.worker_heartbeats WHERE worker_group <> 'local';
                 INSERT INTO million.worker_heartbeats (worker_id, worker_type, incarnation, status,
                    last_heartbeat_at, stale_after, worker_group)
                 SELECT 'w-' || n, 'poller', n, 'active',
                    now() + CASE WHEN n % 100 < {percent} THEN interval '-1 h' ELSE interval '1 h' END,
                    interval '90 s', CASE WHEN n % 100 < {percent} THEN '{group}' ELSE 'there' END
                 FROM generate_series(1, 999000) n"
            ),
        );
        sql(&url, "VACUUM ANALYZE million.worker_heartbeats");
        sql(&url, "CHECKPOINT");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let beating = scope.spawn(|| {
                let beats: Vec<_> = keys
                    .iter()
                    .map(|key| Beat::new(key.clone(), State::Active))
                    .collect();
                let mut took = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let answers = store.beat(&beats).unwrap();
                    assert!(answers.iter().all(|answer| *answer == Answer::Accepted));
                    took.push(begun.elapsed());
                }
                took.sort();
                took
            });
            let watching = scope.spawn(|| {
                let longest = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)
                    FROM pg_stat_activity WHERE query LIKE '%sweep_batch%' AND pid <> pg_backend_pid()";
                let mut found = 0.0_f64;
                while !done.load(Ordering::Relaxed) {
                    found = found.max(sql(&url, longest)[0][0].parse().unwrap());
                }
                found
            });
            let sweeper = options().connect(&url).unwrap();
            for dry_run in [true, false] {
                let mut sweep = Sweep::default();
                sweep.dry_run = dry_run;
                let begun = Instant::now();
                let report = sweeper.sweep(&sweep).unwrap();
                println!(
                    "{percent} %, dry run {dry_run}: {} marked in {:?}",
                    report.marked_offline.len(),
                    begun.elapsed()
                );
            }
            done.store(true, Ordering::Relaxed);
            let longest = watching.join().unwrap();
            let beats = beating.join().unwrap();
            println!(
                "longest batch {longest:.3} s; {} calls of 1,000 heartbeats: median {:?}, longest {:?}",
                beats.len(),
                beats[beats.len() / 2],
                beats.last()
            );
        });
    }
}
