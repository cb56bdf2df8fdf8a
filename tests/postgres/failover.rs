//! Numbers never go back, whatever becomes of the server: failovers to standbys that lag, copies,
//! schemas that are dropped, sequences that are reset.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::postgres::{Cluster, own_with_tools, schema, sql, url};
use crate::{SECOND, beat, claim, register, retried, states, store, worker};
use worker_heartbeat::fleet::{
    Answer, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Registration, WorkerKey,
};
use worker_heartbeat::{
    Error, FleetConfig, Lease, PostgresOptions, PostgresStore, Registry, State, Sweeper,
    WorkerHeartbeat,
};

/// JavaScript, and so JSON in many languages, has no whole numbers beyond.
const LARGEST_IN_JSON: u64 = 1 << 53;
/// How long claims may have to wait after a failover.
const CLAIMS_WAIT: Duration = Duration::from_secs(10);

fn connect(url: &str) -> PostgresStore {
    PostgresOptions::new()
        .schema("failover")
        .connect(url)
        .unwrap()
}

fn granted(store: &PostgresStore, key: &WorkerKey, run: &str) -> LeaseKey {
    match claim(store, key, run, 60 * SECOND) {
        ClaimAnswer::Granted(fence) => LeaseKey::new(key.clone(), run, fence),
        answer => panic!("{run}: {answer:?}"),
    }
}

/// Claims a run, as soon as that is possible after a failover.
fn granted_later(store: &PostgresStore, key: &WorkerKey, run: &str) -> LeaseKey {
    let mut lease = None;
    eventually(&format!("{run} is granted"), || {
        let answer = retried(|| store.claim(&Claim::new(key.clone(), run, 60 * SECOND)));
        if let ClaimAnswer::Granted(fence) = answer {
            lease = Some(LeaseKey::new(key.clone(), run, fence));
        }
        lease.is_some()
    });
    lease.unwrap()
}

/// What the primary did while the standby was cut off is lost: registrations, claims, releases.
#[test]
fn a_standby_that_lags_repeats_no_number() {
    let Some(primary) = own_with_tools() else {
        return;
    };
    let before = connect(&primary.url());
    let other = worker(&before, "other");
    let known = granted(&before, &other, "known");
    let standby = primary.standby();
    standby.cut_off();
    let lost = worker(&before, "svc-1");
    let lease = granted(&before, &lost, "run");
    let mut highest = lease.fence;
    for n in 0..100 {
        let released = granted(&before, &other, &format!("run-{n}"));
        assert_eq!(
            before.release(std::slice::from_ref(&released)).unwrap(),
            [true]
        );
        highest = highest.max(released.fence);
    }
    let servers = [&primary, &standby];
    let url = Cluster::url_of_primary(&servers);
    let survivor = connect(&url);
    assert_eq!(beat(&survivor, &lost), Answer::Accepted);
    primary.kill();
    standby.promote();

    let after = connect(&url);
    let again = worker(&after, "svc-1");
    assert!(again.incarnation > highest, "{again:?} after {highest}");
    let next = granted_later(&after, &again, "run");
    assert!(next.fence > again.incarnation && next.fence < LARGEST_IN_JSON);
    // The process that was there before finds out.
    let old = retried(|| {
        survivor.beat(&[worker_heartbeat::fleet::Beat::new(
            lost.clone(),
            State::Active,
        )])
    });
    assert_eq!(old, [Answer::Superseded]);
    let renewals = retried(|| survivor.renew(&[lease.clone(), known.clone()], 60 * SECOND));
    assert_eq!(renewals, [false, true], "what was not lost is still held");
    assert_eq!(survivor.renew(&[next], 60 * SECOND).unwrap(), [true]);
}

/// Neither knows of the other one. Each gives numbers of its own.
#[test]
fn two_standbys_that_are_both_promoted_give_different_numbers() {
    let Some(primary) = own_with_tools() else {
        return;
    };
    let before = connect(&primary.url());
    worker(&before, "svc-1");
    let standbys = [primary.standby(), primary.standby()];
    standbys.iter().for_each(Cluster::cut_off);
    let highest = (0..20)
        .map(|_| register(&before, "svc-1").incarnation)
        .max();
    primary.kill();
    standbys.iter().for_each(Cluster::promote);
    let mut given = BTreeSet::new();
    for standby in &standbys {
        let after = connect(&standby.url());
        for _ in 0..200 {
            let key = register(&after, "svc-1");
            assert!(Some(key.incarnation) > highest && key.incarnation < LARGEST_IN_JSON);
            assert!(given.insert(key.incarnation), "{key:?} was given twice");
        }
    }
}

/// Whoever held a run on the lost server believes in it for a moment longer.
#[test]
fn runs_are_free_once_their_lost_holders_know() {
    let Some(primary) = own_with_tools() else {
        return;
    };
    let before = connect(&primary.url());
    let holder = worker(&before, "holder");
    let kept = granted(&before, &holder, "kept");
    let standby = primary.standby();
    standby.cut_off();
    granted(&before, &holder, "lost");
    primary.kill();
    standby.promote();
    let after = connect(&standby.url());
    let begun = Instant::now();
    let rival = worker(&after, "rival");
    assert_eq!(claim(&after, &rival, "lost", SECOND), ClaimAnswer::Taken);
    // The holder may have released it, and another worker may have claimed it.
    assert_eq!(claim(&after, &holder, "kept", SECOND), ClaimAnswer::Taken);
    assert_eq!(after.renew(&[kept], 60 * SECOND).unwrap(), [true]);
    granted_later(&after, &rival, "lost");
    assert!(begun.elapsed() > CLAIMS_WAIT / 2, "{:?}", begun.elapsed());
    assert_eq!(claim(&after, &rival, "kept", SECOND), ClaimAnswer::Taken);
    // The restart of a server loses nothing, so that nobody has to wait.
    drop(after);
    standby.crash();
    standby.restart();
    let restarted = connect(&standby.url());
    let rival = worker(&restarted, "rival");
    granted(&restarted, &rival, "another");
}

#[test]
fn a_logical_copy_continues_with_higher_numbers() {
    let Some(cluster) = own_with_tools() else {
        return;
    };
    let before = connect(&cluster.url());
    let key = worker(&before, "svc-1");
    let kept = granted(&before, &key, "kept");
    let mut highest = kept.fence;
    for n in 0..50 {
        let lease = granted(&before, &key, &format!("run-{n}"));
        assert_eq!(
            before.release(std::slice::from_ref(&lease)).unwrap(),
            [true]
        );
        highest = lease.fence;
    }
    sql(&cluster.url(), "CREATE DATABASE copy");
    let url = cluster.url_of("copy");
    drop(connect(&url));
    // The new server has never seen a number, and its sequence has been reset for good measure.
    sql(
        &url,
        "DELETE FROM failover.sessions; ALTER SEQUENCE failover.numbers RESTART",
    );
    cluster.copy_rows(&["failover.worker_heartbeats", "failover.leases"], "copy");
    let after = connect(&url);
    assert_eq!(
        after
            .renew(std::slice::from_ref(&kept), 60 * SECOND)
            .unwrap(),
        [true]
    );
    assert_eq!(beat(&after, &key), Answer::Accepted);
    let again = worker(&after, "svc-1");
    assert!(again.incarnation > highest, "{again:?} after {highest}");
    let fence = granted_later(&after, &again, "run-49").fence;
    assert!(fence > again.incarnation, "{fence} after {again:?}");
}

#[test]
fn a_schema_that_is_dropped_and_set_up_again_continues_with_higher_numbers() {
    let name = schema("dropped");
    let before = store(&name);
    let key = worker(&before, "svc-1");
    let lease = granted(&before, &key, "run");
    for round in 0..3 {
        sql(url(), &format!("DROP SCHEMA \"{name}\" CASCADE"));
        let after = store(&name);
        let again = worker(&after, "svc-1");
        assert!(again.incarnation > lease.fence, "{again:?} after {lease:?}");
        let next = granted(&after, &again, "run");
        assert!(next.fence > again.incarnation, "round {round}: {next:?}");
        // The process that holds the old numbers.
        assert_eq!(
            retried(|| Ok::<_, Error>(beat(&before, &key))),
            Answer::Superseded
        );
        assert_eq!(
            before.renew(std::slice::from_ref(&lease), SECOND).unwrap(),
            [false]
        );
        assert_eq!(after.renew(&[next], SECOND).unwrap(), [true]);
    }
}

/// As by a program that restores the values of sequences.
#[test]
fn a_sequence_that_is_behind_the_data_is_moved_ahead() {
    let name = schema("behind");
    let store = store(&name);
    let ask = |text: &str| sql(url(), &text.replace("$s", &format!("\"{name}\"")));
    for reset in [
        "SELECT setval('$s.numbers', 3)",
        "ALTER SEQUENCE $s.numbers RESTART WITH 1",
        "DROP SEQUENCE $s.numbers; CREATE SEQUENCE $s.numbers AS bigint",
    ] {
        let key = worker(&store, "svc-1");
        let lease = granted(&store, &key, "run");
        ask(reset);
        let again = granted(&store, &key, "run");
        assert!(
            again.fence > lease.fence,
            "{reset}: {again:?} after {lease:?}"
        );
        ask(reset);
        let next = register(&store, "svc-1");
        assert!(
            next.incarnation > again.fence,
            "{reset}: {next:?} after {again:?}"
        );
        // Higher than what the clock shows.
        ask("UPDATE $s.worker_heartbeats SET incarnation = incarnation + 1000000000000");
        ask(reset);
        let last = worker(&store, "svc-1");
        assert!(last.incarnation > next.incarnation + 1_000_000_000_000);
        ask(reset);
        assert!(granted(&store, &last, "other").fence > last.incarnation);
        ask("TRUNCATE $s.leases, $s.worker_heartbeats");
    }
}

/// Other programs may have written rows with any number.
#[test]
fn a_number_that_is_far_off_does_not_use_up_the_others() {
    let name = schema("far_off");
    let store = store(&name);
    let key = worker(&store, "svc-1");
    let ask = |text: &str| sql(url(), &text.replace("$s", &format!("\"{name}\"")));
    ask("UPDATE $s.worker_heartbeats SET incarnation = 9223372036854775807");
    ask("SELECT setval('$s.numbers', 1), setval('$s.numbers_source', 1)");
    let other = worker(&store, "other");
    assert!(other.incarnation > key.incarnation && other.incarnation < LARGEST_IN_JSON);
    register(&store, "svc-1");
    let lease = granted(&store, &other, "run");
    assert!(lease.fence > other.incarnation && lease.fence < LARGEST_IN_JSON);
}

/// A transaction that draws the first number after a change of server, and stays open.
#[test]
fn an_open_transaction_holds_up_no_other() {
    let name = schema("open");
    let store = store(&name);
    let key = worker(&store, "svc-1");
    let ask = |text: &str| sql(url(), &text.replace("$s", &format!("\"{name}\"")));
    let drawn = || {
        ask("SELECT last_value FROM $s.numbers")[0][0]
            .parse::<u64>()
            .unwrap()
    };
    let before = drawn();
    ask("SELECT setval('$s.numbers_source', 1)");
    thread::scope(|scope| {
        let open =
            scope.spawn(|| ask("BEGIN; SELECT $s.next_number(); SELECT pg_sleep(3); COMMIT"));
        eventually("the transaction has drawn", || drawn() > before + 1_000_000);
        let lease = granted(&store, &key, "run");
        assert!(lease.fence > key.incarnation);
        assert!(!open.is_finished());
        open.join().unwrap();
    });
}

/// Nothing is lost, so nothing changes: with a synchronous standby, workers and leases go on.
#[test]
fn a_synchronous_standby_takes_over_with_all_leases() {
    let Some(primary) = own_with_tools() else {
        return;
    };
    let before = connect(&primary.url());
    let standby = primary.standby();
    primary.replicate_synchronously();
    let url = Cluster::url_of_primary(&[&primary, &standby]);
    let registry = Registry::new();
    let attachment = registry.attach(connect(&url), FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("svc")
        .id("svc-1")
        .interval(SECOND)
        .stale_after(60 * SECOND)
        .registry(&registry)
        .start()
        .unwrap();
    let lease = hb.claim("run", 60 * SECOND).unwrap().unwrap();
    drop(before);
    primary.kill();
    standby.promote();
    let after = connect(&standby.url());
    eventually("the worker is back", || {
        hb.beat();
        let workers = after.list(&Default::default()).unwrap();
        attachment.status().failures_in_a_row == 0
            && workers
                .iter()
                .any(|worker| worker.heartbeat_age < Some(SECOND))
            && states(&after) == [("svc-1".into(), State::Active)]
    });
    assert!(lease.is_held());
    let rival = worker(&after, "rival");
    assert!(rival.incarnation > u64::try_from(lease.fence()).unwrap());
    assert_eq!(claim(&after, &rival, "run", SECOND), ClaimAnswer::Taken);
    assert!(lease.release().unwrap());
    let next = granted_later(&after, &rival, "run");
    assert!(next.fence > rival.incarnation);
}

/// What the workers of [`failovers_under_claims`] were given.
#[derive(Default)]
struct Observed {
    /// By fence: the run.
    fences: BTreeMap<i64, usize>,
    repeated: Vec<i64>,
    held: Vec<(usize, Arc<Lease>)>,
    doubles: BTreeSet<(usize, i64, i64)>,
}

impl Observed {
    fn look(&mut self) {
        self.held.retain(|(_, lease)| lease.is_held());
        for (n, (run, lease)) in self.held.iter().enumerate() {
            for (other_run, other) in &self.held[n + 1..] {
                // All of them at one moment: the first one is asked again.
                if run == other_run && other.is_held() && lease.is_held() {
                    self.doubles.insert((*run, lease.fence(), other.fence()));
                }
            }
        }
    }
}

/// Several processes claim a few runs, again and again. Each time, the standby lacks what was done last.
/// `FAILOVERS` sets how many there are.
#[test]
fn failovers_under_claims() {
    const RUNS: usize = 6;
    const PROCESSES: usize = 3;
    const WORKERS: usize = 4;
    let rounds = std::env::var("FAILOVERS").map_or(1, |rounds| rounds.parse().unwrap());
    let Some(mut primary) = own_with_tools() else {
        return;
    };
    let observed = Mutex::new(Observed::default());
    let marked = Arc::new(Mutex::new(Vec::new()));
    for round in 0..rounds {
        drop(connect(&primary.url()));
        let standby = primary.standby();
        let url = Cluster::url_of_primary(&[&primary, &standby]);
        let stop = AtomicBool::new(false);
        let claims = |observed: &Mutex<Observed>| observed.lock().unwrap().fences.len();
        thread::scope(|scope| {
            for process in 0..PROCESSES {
                let registry = Registry::new();
                registry.attach(connect(&url), FleetConfig::new()).unwrap();
                for n in 0..WORKERS {
                    let (registry, observed, stop) = (registry.clone(), &observed, &stop);
                    scope.spawn(move || {
                        let hb = WorkerHeartbeat::builder("svc")
                            .id(format!("svc-{process}-{n}"))
                            .interval(SECOND)
                            .stale_after(30 * SECOND)
                            .registry(&registry)
                            .start()
                            .unwrap();
                        let mut run = n;
                        while !stop.load(Ordering::Relaxed) {
                            hb.beat();
                            run = (run * 5 + process + 1) % RUNS;
                            if let Ok(Some(lease)) = hb.claim(&format!("run-{run}"), 20 * SECOND) {
                                let lease = Arc::new(lease);
                                let mut all = observed.lock().unwrap();
                                if all.fences.insert(lease.fence(), run).is_some() {
                                    all.repeated.push(lease.fence());
                                }
                                all.held.push((run, Arc::clone(&lease)));
                                drop(all);
                                // It works: some runs for long, so that leases are lost.
                                for _ in 0..(if run < 3 { 400 } else { 10 }) {
                                    thread::sleep(Duration::from_millis(10));
                                    hb.beat();
                                    if !lease.is_held() || stop.load(Ordering::Relaxed) {
                                        break;
                                    }
                                }
                                observed
                                    .lock()
                                    .unwrap()
                                    .held
                                    .retain(|(_, one)| !Arc::ptr_eq(one, &lease));
                            } else {
                                thread::sleep(Duration::from_millis(10));
                            }
                        }
                        hb.stop();
                    });
                }
            }
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    observed.lock().unwrap().look();
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let reported = Arc::clone(&marked);
            let sweeper = Sweeper::new(connect(&url))
                .interval(SECOND)
                .on_report(move |report| {
                    let marked = report
                        .iter()
                        .flat_map(|report| report.marked_offline.clone());
                    reported.lock().unwrap().extend(marked);
                });
            let running = sweeper.start().unwrap();
            let more = |what: &str, count: usize| {
                let target = claims(&observed) + count;
                eventually(what, || claims(&observed) >= target);
            };
            more("claims on the old primary", 30);
            standby.cut_off();
            more("claims that are lost", 60);
            primary.kill();
            let killed = Instant::now();
            standby.promote();
            more("claims on the new primary", 60);
            println!(
                "round {round}: claims go on {:?} after the kill",
                killed.elapsed()
            );
            stop.store(true, Ordering::Relaxed);
            drop(running);
        });
        primary = standby;
    }
    let observed = observed.into_inner().unwrap();
    println!("{} claims in {rounds} failovers", observed.fences.len());
    assert_eq!(observed.repeated, [0; 0], "fences that were given twice");
    assert!(
        observed.doubles.is_empty(),
        "run and fences: {:?}",
        observed.doubles
    );
    assert_eq!(
        *marked.lock().unwrap(),
        [""; 0],
        "living workers were marked offline"
    );
}

/// Registrations and claims that overlap draw different numbers, also right after a change.
#[test]
fn numbers_that_are_drawn_at_once_differ() {
    let name = schema("at_once");
    store(&name);
    let drawn = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for n in 0..6 {
            let (name, drawn) = (&name, &drawn);
            scope.spawn(move || {
                let store = store(name);
                for round in 0..15 {
                    if round % 5 == 0 {
                        sql(
                            url(),
                            &format!("SELECT setval('\"{name}\".numbers_source', 1)"),
                        );
                    }
                    let registrations: Vec<_> = (0..20)
                        .map(|k| Registration::new("poller", format!("{n}-{k}")))
                        .collect();
                    let keys = store.register(&registrations).unwrap();
                    drawn
                        .lock()
                        .unwrap()
                        .extend(keys.into_iter().map(|key| key.incarnation));
                }
            });
        }
    });
    let drawn = drawn.into_inner().unwrap();
    let different: BTreeSet<u64> = drawn.iter().copied().collect();
    assert_eq!(different.len(), drawn.len());
}
