//! Connections: how many there are, whatever the server does, and what they leave behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::fleet::{Beat, Claim, Registration, Sweep, WorkerFilter};
use worker_heartbeat::{HeartbeatStore, PostgresOptions, PostgresStore, State};

use crate::support::postgres::{Cluster, own, sql, try_sql};
use crate::{SECOND, retried, worker};

/// Heartbeats, leases, sweeps, lists, and one that asks how the server is.
const MOST_CONNECTIONS: usize = 5;
const SHORT: Duration = Duration::from_millis(400);

fn backends(cluster: &Cluster) -> usize {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'worker-heartbeat'";
    sql(&cluster.url(), count)[0][0].parse().unwrap()
}

/// A process with 20 workers that claim, one thread that beats, one that sweeps and one that lists,
/// while `trouble` lasts. Returns the highest number of backends.
fn busiest(cluster: &Cluster, store: &PostgresStore, trouble: impl FnOnce()) -> usize {
    let key = retried(|| store.register(&[Registration::new("p", "a")])).remove(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..20 {
            let (key, stop) = (&key, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = store.claim(&Claim::new(key.clone(), format!("run-{n}"), SECOND));
                    // As workers do: not in a closed loop.
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let (key, stop) = (&key, &stop);
        let repeat = |call: fn(&PostgresStore, &worker_heartbeat::fleet::WorkerKey)| {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    call(store, key);
                    thread::sleep(Duration::from_millis(20));
                }
            });
        };
        repeat(|store, key| drop(store.beat(&[Beat::new(key.clone(), State::Active)])));
        repeat(|store, _| drop(store.sweep(&Sweep::default())));
        repeat(|store, _| drop(store.list(&WorkerFilter::default())));
        repeat(|store, _| drop(store.keep_alive()));
        let counting = scope.spawn(move || {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = most.max(backends(cluster));
                thread::sleep(Duration::from_millis(50));
            }
            most
        });
        trouble();
        stop.store(true, Ordering::Relaxed);
        counting.join().unwrap()
    })
}

/// The calls succeed again, and one connection is left.
fn assert_back_to_normal(cluster: &Cluster, store: &PostgresStore) {
    let key = retried(|| store.register(&[Registration::new("p", "b")]));
    retried(|| store.beat(&[Beat::new(key[0].clone(), State::Active)]));
    retried(|| store.claim(&Claim::new(key[0].clone(), "another", SECOND)));
    retried(|| store.list(&WorkerFilter::default()));
    retried(|| store.sweep(&Sweep::default()));
    let begun = Instant::now();
    // The server notices asynchronously that a connection was closed.
    while backends(cluster) > 1 {
        assert!(begun.elapsed() < 20 * SECOND, "{}", backends(cluster));
        drop(store.beat(&[Beat::new(key[0].clone(), State::Active)]));
        thread::sleep(Duration::from_millis(50));
    }
}

fn short(schema: &str) -> PostgresOptions {
    PostgresOptions::new()
        .schema(schema)
        .connect_timeout(2 * SECOND)
        .statement_timeout(SHORT)
}

#[test]
fn locked_tables_leave_no_connections_behind() {
    let Some(cluster) = own() else { return };
    for (schema, liveness) in [("direct", true), ("pooled", false)] {
        let patient = PostgresOptions::new()
            .schema(schema)
            .connect(&cluster.url())
            .unwrap();
        worker(&patient, "a");
        drop(patient);
        let store = short(schema)
            .session_liveness(liveness)
            .connect_lazy(&cluster.url())
            .unwrap();
        let most = busiest(&cluster, &store, || {
            sql(
                &cluster.url(),
                &format!(
                    "BEGIN; LOCK TABLE {schema}.worker_heartbeats, {schema}.leases, \
                     {schema}.schema_migrations; SELECT pg_sleep(6); COMMIT"
                ),
            );
        });
        println!("{schema}: at most {most} connections");
        assert!(most <= MOST_CONNECTIONS, "{schema}: {most} connections");
        assert_back_to_normal(&cluster, &store);
    }
}

/// Each commit waits for a standby that is not there. No time limit of the server ends that wait.
#[test]
fn a_commit_that_waits_for_a_standby_is_not_repeated() {
    let Some(cluster) = own() else { return };
    let patient = PostgresOptions::new()
        .schema("x")
        .connect(&cluster.url())
        .unwrap();
    worker(&patient, "a");
    drop(patient);
    let standby = |name: &str| {
        sql(
            &cluster.url(),
            &format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'"),
        );
        sql(&cluster.url(), "SELECT pg_reload_conf()");
    };
    let waiting = || {
        let text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        sql(&cluster.url(), text)[0][0].parse::<usize>().unwrap()
    };
    for liveness in [true, false] {
        let store = short("x")
            .session_liveness(liveness)
            .connect_lazy(&cluster.url())
            .unwrap();
        let (mut waited, mut listed) = (0, false);
        let most = busiest(&cluster, &store, || {
            standby("nobody");
            let begun = Instant::now();
            while begun.elapsed() < 6 * SECOND {
                waited = waited.max(waiting());
                thread::sleep(Duration::from_millis(50));
            }
            // Readers do not wait.
            let begun = Instant::now();
            while !listed && begun.elapsed() < 20 * SECOND {
                listed = store.list(&WorkerFilter::default()).is_ok();
            }
            standby("");
        });
        println!("at most {most} connections, {waited} of them waiting for a standby");
        assert!(most <= MOST_CONNECTIONS, "{most} connections");
        assert!((1..MOST_CONNECTIONS).contains(&waited), "{waited}");
        assert!(listed, "readers wait");
        assert_back_to_normal(&cluster, &store);
    }
}

/// A pool's connections are used by other clients, too.
#[test]
fn nothing_of_a_session_is_left_behind_a_pooling_proxy() {
    let Some(cluster) = own() else { return };
    let Some(pooled) = cluster.pooled_url() else {
        eprintln!("left out: it needs pgbouncer");
        return;
    };
    let left = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), \
                current_setting('idle_in_transaction_session_timeout'), \
                current_setting('worker_heartbeat.session', true), \
                current_setting('default_transaction_isolation'), \
                (SELECT count(*) FROM pg_prepared_statements)";
    let before = sql(&pooled, left);
    // Sessions are not switched off: the proxy is detected.
    let store = PostgresOptions::new().schema("x").connect(&pooled).unwrap();
    let mut registration = Registration::new("p", "a");
    registration.info.process = Some(worker_heartbeat::fleet::ProcessIdentity::current());
    let key = store.register(&[registration]).unwrap().remove(0);
    for _ in 0..5 {
        store
            .beat(&[Beat::new(key.clone(), State::Active)])
            .unwrap();
        store
            .claim(&Claim::new(key.clone(), "run", SECOND))
            .unwrap();
        store.keep_alive().unwrap();
        store.list(&WorkerFilter::default()).unwrap();
        store.sweep(&Sweep::default()).unwrap();
    }
    let sessions = "SELECT count(session_id), (SELECT count(*) FROM x.sessions) \
                    FROM x.worker_heartbeats";
    assert_eq!(sql(&cluster.url(), sessions), [["0", "0"]]);
    // Each of the proxy's connections, in turn.
    for _ in 0..10 {
        assert_eq!(sql(&pooled, left), before);
    }
}

/// A proxy that has three places for whole sessions: one for each process, and one for both.
#[test]
fn few_places_for_sessions_are_enough() {
    let Some(cluster) = own() else { return };
    let Some(pooled) = cluster.proxy_url("session") else {
        eprintln!("left out: it needs pgbouncer");
        return;
    };
    let options = || PostgresOptions::new().schema("x");
    let stores = [
        options().connect(&pooled).unwrap(),
        options().connect(&pooled).unwrap(),
    ];
    thread::scope(|scope| {
        for (n, store) in stores.iter().enumerate() {
            let key = worker(store, &format!("w-{n}"));
            for run in 0..4 {
                let key = key.clone();
                scope.spawn(move || {
                    for _ in 0..20 {
                        let run = format!("run-{n}-{run}");
                        store.claim(&Claim::new(key.clone(), run, SECOND)).unwrap();
                    }
                });
            }
            let beat = [Beat::new(key, State::Active)];
            scope.spawn(move || {
                for _ in 0..20 {
                    store.beat(&beat).unwrap();
                    store.sweep(&Sweep::default()).unwrap();
                    store.list(&WorkerFilter::default()).unwrap();
                }
            });
        }
    });
    assert!(try_sql(&pooled, "SELECT 1").is_ok(), "a place is left");
}
