//! Rows and tables that other clients of the database lock.

use std::sync::mpsc;

use tokio_postgres::NoTls;
use worker_heartbeat::fleet::Renewal;
use worker_heartbeat::{Attachment, StoreErrorKind};

use super::*;

/// A transaction of another program, which holds its locks until it is dropped.
pub struct Transaction {
    end: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Transaction {
    fn begin(url: &str, statement: &str) -> Self {
        Self::that_ends_with("ROLLBACK", url, statement)
    }

    /// It is committed when this is dropped.
    pub fn begin_to_commit(url: &str, statement: &str) -> Self {
        Self::that_ends_with("COMMIT", url, statement)
    }

    fn that_ends_with(last: &'static str, url: &str, statement: &str) -> Self {
        let (url, statement) = (url.to_owned(), format!("BEGIN; {statement}"));
        let (locked, ready) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(&statement).await.unwrap();
                locked.send(()).unwrap();
                let _ = tokio::task::spawn_blocking(move || ended.recv()).await;
                client.batch_execute(last).await.unwrap();
            });
        });
        ready.recv().unwrap();
        Self {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn lock_worker(schema: &str, id: &str, how: &str) -> Transaction {
    let statement =
        format!("SELECT FROM {schema}.worker_heartbeats WHERE worker_id = '{id}' FOR {how}");
    Transaction::begin(url(), &statement)
}

fn lock_lease(schema: &str, run: &str, how: &str) -> Transaction {
    let statement = format!("SELECT fence FROM {schema}.leases WHERE run_id = '{run}' FOR {how}");
    Transaction::begin(url(), &statement)
}

pub fn is_busy<T: std::fmt::Debug>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::Store { kind, .. }) if *kind == StoreErrorKind::Busy)
}

/// Less than the time limit of a call, which is what waiting for a lock would take.
fn in_time<T>(call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = call();
    assert!(begun.elapsed() < 30 * SECOND, "{:?}", begun.elapsed());
    done
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < 60 * SECOND, "{what}");
        thread::sleep(Duration::from_millis(20)); // polls
    }
}

#[test]
fn locked_workers_are_answered_as_busy_and_the_others_are_written() {
    let name = schema("locked");
    let store = store(&name);
    let registrations: Vec<_> = (0..1_000)
        .map(|n| Registration::new("poller", format!("w-{n}")))
        .collect();
    let keys = store.register(&registrations).unwrap();
    for how in ["UPDATE", "NO KEY UPDATE", "SHARE"] {
        let _first = lock_worker(&name, "w-7", how);
        let _second = lock_worker(&name, "w-500", how);
        for _ in 0..2 {
            let beats: Vec<_> = keys
                .iter()
                .map(|key| Beat::new(key.clone(), State::Active))
                .collect();
            let answers = in_time(|| store.beat(&beats)).unwrap();
            for (n, answer) in answers.into_iter().enumerate() {
                let expected = match n {
                    7 | 500 => Answer::Busy,
                    _ => Answer::Accepted,
                };
                assert_eq!(answer, expected, "{n} {how}");
            }
        }
    }
    let _reader = lock_worker(&name, "w-7", "KEY SHARE");
    assert_eq!(beat(&store, &keys[7]), Answer::Accepted);
    assert_eq!(beat(&store, &keys[500]), Answer::Accepted);
}

#[test]
fn an_update_of_another_transaction_that_is_not_committed_holds_up_nothing() {
    let name = schema("updated");
    let store = store(&name);
    let (a, b) = (worker(&store, "a"), worker(&store, "b"));
    let update =
        format!("UPDATE {name}.worker_heartbeats SET metadata = '{{}}' WHERE worker_id = 'a'");
    let open = Transaction::begin(url(), &update);
    let beats = [&b, &a].map(|key| Beat::new(key.clone(), State::Idle));
    let answers = in_time(|| store.beat(&beats)).unwrap();
    assert_eq!(answers, [Answer::Accepted, Answer::Busy]);
    drop(open);
    assert_eq!(store.beat(&beats).unwrap(), [Answer::Accepted; 2]);
}

#[test]
fn a_refused_worker_is_refused_even_if_its_row_is_locked() {
    let name = schema("locked_refused");
    let store = store(&name);
    let (first, stopped) = (register(&store, "a"), register(&store, "b"));
    register(&store, "a");
    let stop = Stop::new(stopped.clone(), StoredEnding::stopped(&StopCause::Stop));
    store.stop(&[stop]).unwrap();
    let _locked = lock_worker(&name, "a", "UPDATE");
    let _other = lock_worker(&name, "b", "UPDATE");
    let beats = [first, stopped].map(|key| Beat::new(key, State::Idle));
    assert_eq!(
        in_time(|| store.beat(&beats)).unwrap(),
        [Answer::Superseded, Answer::Ended]
    );
}

#[test]
fn ends_of_other_workers_do_not_wait_and_a_locked_lease_hides_no_end() {
    let name = schema("locked_ends");
    let store = store(&name);
    let keys = ["a", "b", "c"].map(|id| worker(&store, id));
    for key in &keys {
        claim(&store, key, &format!("run-{}", key.id), 600 * SECOND);
    }
    let row = lock_worker(&name, "a", "KEY SHARE");
    let lease = lock_lease(&name, "run-b", "SHARE");
    let ending = StoredEnding::stopped(&StopCause::Stop);
    let stops = keys.clone().map(|key| Stop::new(key, ending.clone()));
    let answers = in_time(|| store.stop(&stops)).unwrap();
    assert_eq!(answers, [Answer::Busy, Answer::Busy, Answer::Accepted]);
    let leases = format!("SELECT run_id FROM {name}.leases ORDER BY 1");
    assert_eq!(sql(url(), &leases), [["run-a"], ["run-b"]]);
    drop((row, lease));
    let answers = store.stop(&stops).unwrap();
    assert_eq!(answers[2], Answer::Ended);
    assert!(!answers.contains(&Answer::Busy), "{answers:?}");
    assert_eq!(sql(url(), &leases), Vec::<Vec<String>>::new());
}

#[test]
fn registrations_of_other_workers_do_not_wait() {
    let name = schema("locked_registrations");
    let store = store(&name);
    let a = worker(&store, "a");
    claim(&store, &worker(&store, "b"), "run-b", 600 * SECOND);
    let row = lock_worker(&name, "a", "KEY SHARE");
    let _lease = lock_lease(&name, "run-b", "SHARE");
    let insert = format!(
        "INSERT INTO {name}.worker_heartbeats (worker_id, worker_type, incarnation) VALUES ('c', 't', 1)"
    );
    let _inserted = Transaction::begin(url(), &insert);
    let all: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"]
        .map(|id| Registration::new("poller", id))
        .to_vec();
    let answers = in_time(|| store.register_each(&all)).unwrap();
    for (worker, answer) in all.iter().zip(&answers) {
        let locked = ["a", "b", "c"].contains(&&*worker.id);
        assert_eq!(is_busy(answer), locked, "{} {answer:?}", worker.id);
    }
    assert!(is_busy(&in_time(|| store.register(&all))));
    assert!(in_time(|| store.register(&all[3..])).is_ok());
    drop(row);
    let again = store.register_each(&all[..1]).unwrap();
    assert!(again[0].as_ref().unwrap().incarnation > a.incarnation);
}

#[test]
fn leases_of_other_runs_are_renewed_and_released() {
    let name = schema("locked_leases");
    let store = store(&name);
    let keys = ["a", "b", "c"].map(|id| worker(&store, id));
    let leases: Vec<LeaseKey> = keys
        .iter()
        .map(|key| {
            let run = format!("run-{}", key.id);
            match claim(&store, key, &run, 600 * SECOND) {
                ClaimAnswer::Granted(fence) => LeaseKey::new(key.clone(), run, fence),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    for how in ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"] {
        let lease = lock_lease(&name, "run-a", how);
        let row = lock_worker(&name, "b", how);
        let renewals = in_time(|| store.try_renew(&leases, 600 * SECOND)).unwrap();
        let expected = match how {
            "UPDATE" => [Renewal::Busy, Renewal::Busy, Renewal::Renewed],
            "KEY SHARE" => [Renewal::Renewed; 3],
            // The key of a worker's row can be read under these locks.
            _ => [Renewal::Busy, Renewal::Renewed, Renewal::Renewed],
        };
        assert_eq!(renewals, expected, "{how}");
        if how != "KEY SHARE" {
            assert!(is_busy(&in_time(|| store.renew(&leases, 600 * SECOND))));
        }
        drop((lease, row));
        assert_eq!(store.renew(&leases, 600 * SECOND).unwrap(), [true; 3]);
    }
    let lease = lock_lease(&name, "run-a", "SHARE");
    assert!(is_busy(&in_time(|| store.release(&leases))));
    let left = format!("SELECT run_id FROM {name}.leases");
    assert_eq!(sql(url(), &left), [["run-a"]]);
    drop(lease);
    assert_eq!(store.release(&leases).unwrap(), [true, false, false]);
}

#[test]
fn a_claim_of_a_locked_run_is_busy_and_others_go_on_meanwhile() {
    let name = schema("locked_claim");
    let store = store(&name);
    let (a, b) = (worker(&store, "a"), worker(&store, "b"));
    claim(&store, &a, "run-1", 600 * SECOND);
    let _lease = lock_lease(&name, "run-1", "UPDATE");
    let _row = lock_worker(&name, "a", "UPDATE");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for key in [&a, &b] {
                let claim = Claim::new(key.clone(), "run-1", 600 * SECOND);
                assert!(is_busy(&in_time(|| store.claim(&claim))), "{key}");
            }
            done.store(true, Ordering::Release);
        });
        let mut granted = 0;
        while !done.load(Ordering::Acquire) {
            let run = format!("other-{granted}");
            assert!(matches!(
                claim(&store, &b, &run, SECOND),
                ClaimAnswer::Granted(_)
            ));
            granted += 1;
        }
        assert!(granted > 4, "{granted} claims while two waited");
    });
}

/// Workers with an interval of 100 ms, of which one is locked for longer than it may be silent.
fn fleet(store: &PostgresStore, count: usize) -> (Registry, Attachment, Vec<WorkerHeartbeat>) {
    let registry = Registry::new();
    let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let workers = (0..count).map(|n| {
        WorkerHeartbeat::builder("poller")
            .id(format!("w-{n}"))
            .interval(Duration::from_millis(500))
            .stale_after(6 * SECOND)
            .registry(&registry)
            .start()
            .unwrap()
    });
    let workers: Vec<_> = workers.collect();
    for worker in &workers {
        worker.beat();
    }
    assert!(attachment.flush(60 * SECOND));
    (registry, attachment, workers)
}

#[test]
fn no_worker_is_convicted_for_a_lock_on_a_row_and_the_others_are_well_meanwhile() {
    let name = schema("locked_fleet");
    let store = store(&name);
    let (_registry, attachment, workers) = fleet(&store, 20);
    let lease = workers[1].claim("run-1", 60 * SECOND).unwrap().unwrap();
    let locked = lock_worker(&name, "w-0", "UPDATE");
    until("it is counted", || attachment.status().busy == 1);
    // For longer than it may be silent.
    let age = "SELECT extract(epoch FROM now() - last_heartbeat_at) > 7 FROM ".to_owned()
        + &format!("{name}.worker_heartbeats WHERE worker_id = 'w-0'");
    until("its row is old", || sql(url(), &age) == [["t"]]);
    let judged = |id: &str| {
        let list = store.list(&WorkerFilter::new()).unwrap();
        let worker = list.into_iter().find(|worker| worker.key.id == id);
        worker.unwrap().health().is_recent()
    };
    for n in 0..20 {
        assert!(judged(&format!("w-{n}")), "w-{n}");
    }
    let counts = format!("SELECT count(*) FROM {name}.v_dead_workers");
    assert_eq!(sql(url(), &counts), [["0"]]);
    let status = attachment.status();
    assert_eq!((status.busy, status.failures), (1, 0), "{status:?}");
    drop(locked);
    let swept = Sweeper::new(store.clone())
        .watched_for(3_600 * SECOND)
        .sweep()
        .unwrap();
    assert_eq!(swept.marked_offline, Vec::<String>::new());
    assert!(lease.is_held());
    until("it is sent again", || attachment.status().busy == 0);
    assert_eq!(workers[0].snapshot().incarnation, 1);
    let left = format!("SELECT count(*) FROM {name}.deferred_heartbeats");
    until("nothing is left", || sql(url(), &left) == [["0"]]);
}

fn lock_table(schema: &str, table: &str, mode: &str) -> Transaction {
    let statement = format!("LOCK TABLE {schema}.{table} IN {mode} MODE");
    Transaction::begin(url(), &statement)
}

/// Its process came back through another session, which a locked row cannot name.
#[test]
fn a_worker_is_not_gone_with_an_earlier_session_while_its_row_is_locked() {
    let name = schema("cut_and_locked");
    let store = store(&name);
    let own = |id: &str| {
        let mut registration = Registration::new("poller", id);
        registration.info.process = Some(worker_heartbeat::fleet::ProcessIdentity::current());
        let key = store.register(&[registration]).unwrap().remove(0);
        assert_eq!(beat(&store, &key), Answer::Accepted);
        key
    };
    let key = own("a");
    let lost = format!(
        "SELECT pg_terminate_backend(s.backend_pid) FROM {name}.sessions s
            JOIN {name}.worker_heartbeats w ON w.session_id = s.session_id AND w.worker_id = 'a'"
    );
    assert_eq!(sql(url(), &lost), [["t"]]);
    let watcher = PostgresOptions::new().schema(&name).session_liveness(false);
    let watcher = watcher.connect(url()).unwrap();
    let sweep = || watcher.sweep(&Sweep::default()).unwrap().marked_offline;
    until("the session is missing", || {
        assert_eq!(sweep(), [""; 0]);
        let missing = format!("SELECT 1 FROM {name}.sessions WHERE lost_at IS NOT NULL");
        !sql(url(), &missing).is_empty()
    });
    let absent = format!("UPDATE {name}.sessions SET lost_for = '1 min' WHERE lost_at IS NOT NULL");
    {
        let _locked = lock_worker(&name, "a", "UPDATE");
        assert_eq!(beat(&store, &key), Answer::Busy);
        sql(url(), &absent);
        assert_eq!(sweep(), [""; 0]);
    }
    assert_eq!(sweep(), [""; 0]);
    // Without a heartbeat since, its process is gone.
    sql(
        url(),
        &format!(
            "UPDATE {name}.deferred_heartbeats SET heartbeat_at = heartbeat_at - interval '1 h'"
        ),
    );
    assert_eq!(sweep(), ["a"]);
}

/// A lock of `SHARE`, as `CREATE INDEX` takes it: rows can be read, and not written.
#[test]
fn a_sweep_that_comes_before_the_next_heartbeat_convicts_nobody_for_a_lock() {
    let name = schema("deferred");
    let store = store(&name);
    let key = silent(&store, "a", 100 * SECOND);
    for mode in ["SHARE", "ACCESS EXCLUSIVE", "row"] {
        let beat = [Beat::new(key.clone(), State::Idle)];
        if mode == "row" {
            let _locked = lock_worker(&name, "a", "UPDATE");
            assert_eq!(in_time(|| store.beat(&beat)).unwrap(), [Answer::Busy]);
        } else {
            let _locked = lock_table(&name, "worker_heartbeats", mode);
            assert!(is_busy(&in_time(|| store.beat(&beat))));
        }
        let sweeper = Sweeper::new(store.clone()).watched_for(3_600 * SECOND);
        assert_eq!(
            sweeper.sweep().unwrap().marked_offline,
            Vec::<String>::new(),
            "{mode}"
        );
        let cleanup = format!("SELECT worker_id FROM {name}.cleanup_stale_workers(1)");
        assert_eq!(sql(url(), &cleanup), Vec::<Vec<String>>::new(), "{mode}");
    }
    // What was deferred is as old as its heartbeat.
    sql(
        url(),
        &format!(
            "UPDATE {name}.deferred_heartbeats SET heartbeat_at = heartbeat_at - interval '100 s'"
        ),
    );
    let sweeper = Sweeper::new(store.clone()).watched_for(3_600 * SECOND);
    assert_eq!(sweeper.sweep().unwrap().marked_offline, ["a"]);
}

#[test]
fn a_process_ends_in_good_order_though_a_row_is_locked() {
    let name = schema("locked_stop");
    let store = store(&name);
    let (_registry, attachment, workers) = fleet(&store, 3);
    let locked = lock_worker(&name, "w-0", "SHARE");
    in_time(|| workers.into_iter().for_each(|worker| worker.stop()));
    until("the others have ended", || {
        let ended = |(id, state): &(String, State)| id == "w-0" || *state == State::Stopped;
        states(&store).iter().all(ended)
    });
    drop(locked);
    assert!(attachment.flush(60 * SECOND));
    assert!(
        states(&store)
            .iter()
            .all(|(_, state)| *state == State::Stopped)
    );
}

#[test]
fn sweeps_and_purges_do_not_wait_for_locked_rows() {
    let name = schema("locked_sweep");
    let store = store(&name);
    let (a, _b) = (
        silent(&store, "a", 100 * SECOND),
        silent(&store, "b", 100 * SECOND),
    );
    let ended = silent(&store, "c", SECOND);
    let stop = Stop::new(ended, StoredEnding::stopped(&StopCause::Stop)).ago(60 * SECOND);
    store.stop(&[stop]).unwrap();
    sql(
        url(),
        &format!("INSERT INTO {name}.sessions SELECT 999999, 1, now(), {name}.server_epoch()"),
    );
    let _session = Transaction::begin(url(), &format!("SELECT FROM {name}.sessions FOR UPDATE"));
    let _row = lock_worker(&name, &a.id, "KEY SHARE");
    let _ended = lock_worker(&name, "c", "KEY SHARE");
    let sweep = Sweep::default();
    let swept = in_time(|| store.sweep(&sweep)).unwrap();
    assert_eq!(swept.marked_offline, ["b"]);
    assert_eq!(in_time(|| store.purge(30 * SECOND)).unwrap(), 0);
}

#[test]
fn a_worker_whose_id_is_locked_is_registered_later_and_the_others_at_once() {
    let name = schema("locked_id");
    let store = store(&name);
    let earlier = worker(&store, "w-0");
    let locked = lock_worker(&name, "w-0", "KEY SHARE");
    let registry = Registry::new();
    let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let workers = ["w-0", "w-1", "w-2"].map(|id| {
        let builder = WorkerHeartbeat::builder("poller").id(id);
        builder.registry(&registry).start().unwrap()
    });
    until("the others are registered", || {
        attachment.status().registered == 2 && attachment.status().busy == 1
    });
    let status = attachment.status();
    assert_eq!((status.failures, status.refused), (0, 0), "{status:?}");
    assert!(workers[1].claim("run-1", 60 * SECOND).unwrap().is_some());
    drop(locked);
    assert!(attachment.flush(60 * SECOND));
    assert_eq!(attachment.status().registered, 3);
    let found = store.find("w-0").unwrap().unwrap();
    assert!(found.key.incarnation > earlier.incarnation);
}

/// As `CREATE INDEX` does, or many writers that wait for the table to grow.
#[test]
fn a_registration_outwaits_a_short_lock_of_the_table() {
    let name = schema("short");
    let store = store(&name);
    let lock = format!("LOCK TABLE {name}.worker_heartbeats IN SHARE MODE");
    let locked = Transaction::begin(url(), &lock);
    let registered = thread::spawn(move || store.register(&[Registration::new("poller", "a")]));
    let waiting = format!(
        "SELECT count(*) > 0 FROM pg_locks \
         WHERE NOT granted AND relation = '{name}.worker_heartbeats'::regclass"
    );
    until("the registration waits", || sql(url(), &waiting) == [["t"]]);
    // Longer than the limit of one wait, 100 ms.
    thread::sleep(Duration::from_millis(300));
    drop(locked);
    assert_eq!(registered.join().unwrap().unwrap().len(), 1);
}

/// In opposite orders, with ids that are new to both, known, and repeated.
#[test]
fn two_batches_of_the_same_ids_are_registered_at_the_same_time() {
    const ROUNDS: usize = 12;
    const IDS: usize = 400;
    let name = schema("overlap");
    // The server counts deadlocks by database.
    sql(url(), &format!("CREATE DATABASE {name}"));
    let (server, _) = url().rsplit_once('/').unwrap();
    let database = format!("{server}/{name}");
    let connect = || {
        let options = PostgresOptions::new().schema(&name);
        let options = options.statement_timeout(60 * SECOND);
        options.connect(&database).unwrap()
    };
    let stores = [connect(), connect()];
    // A wait that is given up would hide a deadlock.
    sql(
        &database,
        &format!(
            "DO $$ BEGIN EXECUTE (SELECT format('ALTER FUNCTION %s SET lock_timeout = ''60s''',
                 p.oid::regprocedure) FROM pg_proc p
                 WHERE p.proname = 'register_workers' AND p.pronamespace = '{name}'::regnamespace);
             END $$"
        ),
    );
    let start = std::sync::Barrier::new(stores.len());
    let highest = Mutex::new(BTreeMap::<String, u64>::new());
    thread::scope(|scope| {
        for (side, store) in stores.iter().enumerate() {
            let (start, highest) = (&start, &highest);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // Half of them are of the round before.
                    let ids = round * IDS / 2..round * IDS / 2 + IDS;
                    let mut batch: Vec<_> = ids
                        .chain([round * IDS / 2])
                        .map(|n| Registration::new("poller", format!("w-{n:05}")))
                        .collect();
                    if side == 1 {
                        batch.reverse();
                    }
                    start.wait();
                    let keys = store.register(&batch).unwrap();
                    assert_eq!(keys.len(), batch.len());
                    for (key, registration) in keys.into_iter().zip(batch) {
                        assert_eq!(key.id, registration.id);
                        let mut highest = highest.lock().unwrap();
                        let known = highest.entry(key.id.clone()).or_default();
                        assert_ne!(*known, key.incarnation, "{key}");
                        *known = (*known).max(key.incarnation);
                    }
                }
            });
        }
    });
    let highest = highest.into_inner().unwrap();
    let rows = stores[0].list(&WorkerFilter::new()).unwrap();
    let stored: BTreeMap<_, _> = rows
        .into_iter()
        .map(|worker| (worker.key.id, worker.key.incarnation))
        .collect();
    assert_eq!(stored, highest);
    drop(stores);
    let deadlocks = format!("SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'");
    assert_eq!(sql(url(), &deadlocks), [["0"]]);
    // It may still have connections.
    let _ = support::postgres::try_sql(url(), &format!("DROP DATABASE {name}"));
}
