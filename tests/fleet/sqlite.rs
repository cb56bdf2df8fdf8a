//! The store in a SQLite file: many processes, kills, locks, full disks, changes of the clock.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::folder::Folder;
use crate::support::process::Process;
use crate::support::{PATIENCE, SECOND, eventually};
use nix::sys::signal::Signal;
use rusqlite::Connection;
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, ProcessIdentity, Registration, Stop, StoredEnding, Sweep,
    WorkerFilter, WorkerKey, conformance,
};
use worker_heartbeat::{
    DeathCause, Error, FleetConfig, HeartbeatStore, Registry, SqliteStore, State, StoreErrorKind,
    StoredWorker, Sweeper, WorkerHeartbeat,
};

/// A store in a folder that is removed when the test ends.
struct Place(Folder);

impl Place {
    fn new() -> Self {
        Self(Folder::new("sqlite"))
    }

    fn file(&self) -> PathBuf {
        self.0.join("fleet.db")
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(self.file()).unwrap()
    }
}

fn rows(store: &SqliteStore) -> Vec<StoredWorker> {
    store.list(&WorkerFilter::default()).unwrap()
}

fn row(store: &SqliteStore, id: &str) -> Option<StoredWorker> {
    rows(store).into_iter().find(|row| row.key.id == id)
}

fn state(store: &SqliteStore, id: &str) -> Option<State> {
    row(store, id).map(|row| row.health().state())
}

fn register(store: &SqliteStore, id: &str) -> WorkerKey {
    let keys = store.register(&[Registration::new("poller", id)]).unwrap();
    keys.into_iter().next().unwrap()
}

#[test]
fn the_store_in_a_file_conforms() {
    let place = Place::new();
    conformance::assert_conforms(&place.store());
}

#[test]
fn workers_survive_the_processes_that_wrote_them() {
    let place = Place::new();
    let key = register(&place.store(), "a");
    let store = place.store();
    assert_eq!(row(&store, "a").unwrap().key, key);
    assert!(register(&store, "b").incarnation > key.incarnation);
}

#[test]
fn a_file_of_another_program_is_refused_and_unchanged() {
    let place = Place::new();
    let refused = |reason: &str| {
        let refused = SqliteStore::open(place.file()).unwrap_err();
        let error = refused.to_string();
        assert!(
            error.contains(reason) && error.contains("fleet.db"),
            "{error}"
        );
        let kind = StoreErrorKind::Incompatible;
        assert!(matches!(refused, Error::Store { kind: is, .. } if is == kind));
        assert_source_is_not_repeated(&refused);
    };
    let foreign = Connection::open(place.file()).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (x)").unwrap();
    refused("it belongs to another program");
    foreign
        .execute_batch("DROP TABLE theirs; PRAGMA application_id = 7")
        .unwrap();
    refused("it belongs to another program");
    foreign
        .execute_batch("PRAGMA application_id = 0x77686274; PRAGMA user_version = 99")
        .unwrap();
    refused("it was made by a newer version");
    std::fs::write(
        place.file(),
        "this is not a database, but long enough to be taken for one",
    )
    .unwrap();
    drop(foreign);
    refused("not a database");
    let nowhere = SqliteStore::open(place.0.join("missing/fleet.db"));
    let nowhere = nowhere.unwrap_err();
    assert!(matches!(
        nowhere,
        Error::Store {
            operation: "open",
            kind: StoreErrorKind::Unreachable,
            ..
        }
    ));
    assert_source_is_not_repeated(&nowhere);
    let driver = nowhere.source().expect("the error of the driver");
    assert!(driver.is::<rusqlite::Error>());
}

/// The message of an error does not repeat that of its source.
fn assert_source_is_not_repeated(error: &Error) {
    let text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        assert!(!text.contains(&error.to_string()), "{text}: {error}");
        source = error.source();
    }
}

#[test]
fn a_clone_shares_its_connection() {
    let place = Place::new();
    let store = place.store();
    let clone = store.clone();
    let key = register(&store, "a");
    assert_eq!(row(&clone, "a").unwrap().key, key);
    assert!(register(&clone, "b").incarnation > key.incarnation);
    drop(store);
    assert_eq!(row(&clone, "a").unwrap().key, key);
}

#[test]
fn a_file_of_an_older_version_is_brought_up_to_date() {
    let place = Place::new();
    register(&place.store(), "a");
    Connection::open(place.file())
        .unwrap()
        .execute_batch(
            "ALTER TABLE workers DROP COLUMN ending_location; ALTER TABLE workers DROP COLUMN stack; \
             PRAGMA user_version = 1",
        )
        .unwrap();
    let store = place.store();
    let key = row(&store, "a").unwrap().key;
    let mut ending = StoredEnding::dead(&DeathCause::Exited);
    ending.location = Some("src/jobs.rs:19:5".into());
    store.stop(&[Stop::new(key, ending.clone())]).unwrap();
    let stored = row(&store, "a").unwrap().ending;
    assert_eq!(stored.map(|(ending, _)| ending), Some(ending));
}

#[test]
fn many_processes_may_start_at_once_on_a_new_file() {
    let place = Place::new();
    let workers: Vec<_> = (0..8)
        .map(|n| start(&place.file(), &format!("w{n}"), "60"))
        .collect();
    let store = place.store();
    eventually("all workers are stored", || {
        rows(&store)
            .iter()
            .filter(|row| row.health().is_recent())
            .count()
            == 8
    });
    drop(workers);
}

#[test]
fn a_killed_process_is_dead_within_two_seconds_and_its_run_free() {
    let place = Place::new();
    let store = place.store();
    let mut victim = start(&place.file(), "victim", "60");
    claim(&mut victim, "run-1");
    let _bystander = start(&place.file(), "bystander", "60");
    eventually("both workers are well", || {
        ["victim", "bystander"].map(|id| state(&store, id)) == [Some(State::Active); 2]
    });
    let _sweeper = Sweeper::new(place.store())
        .interval(SECOND)
        .start()
        .unwrap();
    victim.signal(Signal::SIGKILL);
    let killed = Instant::now();
    eventually("the record is true", || {
        state(&store, "victim") == Some(State::Dead)
    });
    let took = killed.elapsed();
    println!("SIGKILL to dead: {took:?}");
    assert!(took < 2 * SECOND + SECOND / 2, "{took:?}");
    let health = row(&store, "victim").unwrap().health().to_string();
    assert!(
        health.starts_with("dead: its process was killed"),
        "{health}"
    );
    let claim = Claim::new(row(&store, "bystander").unwrap().key, "run-1", SECOND);
    assert!(matches!(
        store.claim(&claim).unwrap(),
        ClaimAnswer::Granted(_)
    ));
    assert_eq!(state(&store, "bystander"), Some(State::Active));
}

#[test]
fn a_process_that_was_stopped_past_its_lease_is_fenced() {
    let place = Place::new();
    let store = place.store();
    let rival = register(&store, "rival");
    // The interval is 300 ms, so the worker is stale after 900 ms.
    let mut sleeper = start(&place.file(), "sleeper", "0.3");
    let fence = claim(&mut sleeper, "run-1");
    eventually("the worker is well", || {
        state(&store, "sleeper") == Some(State::Active)
    });
    let before = row(&store, "sleeper").unwrap().key;
    sleeper.signal(Signal::SIGSTOP);
    // Real time: the kernel stops the process.
    std::thread::sleep(Duration::from_millis(1_500));
    let report = store.sweep(&Sweep::default()).unwrap();
    assert_eq!(report.marked_offline, ["sleeper"]);
    assert_eq!(report.released_leases, ["run-1"]);
    let claim = Claim::new(rival, "run-1", 60 * SECOND);
    let ClaimAnswer::Granted(newer) = store.claim(&claim).unwrap() else {
        panic!("the run is free");
    };
    assert!(newer > fence, "a resource can refuse the older fence");
    sleeper.signal(Signal::SIGCONT);
    assert_eq!(
        sleeper.ask("held"),
        "false",
        "the worker no longer holds the lease"
    );
    let late = Beat::new(before.clone(), State::Active);
    assert_ne!(store.beat(&[late]).unwrap(), [Answer::Accepted]);
    eventually("the worker is registered again", || {
        row(&store, "sleeper")
            .is_some_and(|row| row.key.incarnation > before.incarnation && row.health().is_recent())
    });
    assert_eq!(sleeper.ask("held"), "false");
    assert_eq!(
        sleeper.ask("claim run-1"),
        "none",
        "another worker holds it"
    );
}

#[test]
fn a_locked_file_fails_a_call_and_slows_no_worker() {
    let place = Place::new();
    let store = SqliteStore::open_with_timeout(place.file(), Duration::from_millis(50)).unwrap();
    let registry = Registry::new();
    let attachment = registry.attach(store, FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .id("a")
        .interval(SECOND)
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    assert!(attachment.flush(PATIENCE));
    let writer = Connection::open(place.file()).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    hb.update_task("run-1", "", worker_heartbeat::Activity::Processing);
    eventually("the attachment fails", || {
        attachment.status().failures_in_a_row > 0
    });
    let error = attachment.status().last_error.unwrap();
    assert!(
        error.contains("another process has been writing for too long"),
        "{error}"
    );
    hb.beat();
    assert!(hb.is_recent());
    writer.execute_batch("COMMIT").unwrap();
    let reader = place.store();
    eventually("the store has the worker", || {
        state(&reader, "a") == Some(State::Processing)
    });
    eventually("the attachment is well again", || {
        attachment.status().failures_in_a_row == 0
    });
}

#[test]
fn a_full_disk_fails_calls_and_heals() {
    let place = Place::new();
    // The kernel limits the size of this process's files, which has the effect of a full disk.
    let mut process = start_limited(&place.file(), "a", "0.3");
    let store = place.store();
    eventually("the worker is well", || {
        state(&store, "a") == Some(State::Active)
    });
    assert_eq!(process.ask("fill"), "failing");
    assert_eq!(process.ask("recent"), "true", "the worker is not affected");
    assert_eq!(process.ask("lift"), "restored");
    eventually("the store has the worker again", || {
        state(&store, "a") == Some(State::Active)
    });
}

#[test]
fn setting_the_wall_clock_or_another_boot_convicts_no_worker() {
    let place = Place::new();
    let store = place.store();
    let key = register(&store, "a");
    store
        .beat(&[Beat::new(key.clone(), State::Active)])
        .unwrap();
    let claim = Claim::new(key.clone(), "run", 60 * SECOND);
    assert!(matches!(
        store.claim(&claim).unwrap(),
        ClaimAnswer::Granted(_)
    ));
    // As after a boot with a wall clock that was an hour behind.
    let file = Connection::open(place.file()).unwrap();
    let hour = 3_600_000_000_000_i64;
    file.execute_batch(&format!(
        "UPDATE clock SET boot_id = 'another';
         UPDATE workers SET registered_at = registered_at + {hour}, heartbeat_at = heartbeat_at + {hour};
         UPDATE leases SET expires_at = expires_at + {hour};"
    ))
    .unwrap();
    for _ in 0..3 {
        let row = row(&store, "a").unwrap();
        assert!(row.heartbeat_age.unwrap() < 10 * SECOND, "{row:?}");
        assert!(
            store
                .sweep(&Sweep::default())
                .unwrap()
                .marked_offline
                .is_empty()
        );
        store
            .beat(&[Beat::new(key.clone(), State::Active)])
            .unwrap();
    }
    let remaining = row(&store, "a").unwrap().lease_remaining.unwrap();
    assert!(
        remaining > 30 * SECOND && remaining <= 60 * SECOND,
        "{remaining:?}"
    );
}

#[test]
fn the_tables_can_be_read_with_sql() {
    let place = Place::new();
    let store = place.store();
    let mut registration = Registration::new("poller", "a");
    registration.info.metadata = vec![("version".into(), "1.4.2".into())];
    let keys = store.register(&[registration]).unwrap();
    store
        .beat(&[Beat::new(keys[0].clone(), State::Processing)])
        .unwrap();
    let file = Connection::open(place.file()).unwrap();
    let read: (String, String, i64) = file
        .query_row(
            "SELECT status, metadata ->> 'version',
                    abs(heartbeat_at / 1000000000 - unixepoch())
               FROM workers WHERE worker_id = 'a'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    assert_eq!((&*read.0, &*read.1), ("processing", "1.4.2"));
    assert!(
        read.2 < 60,
        "the store's clock is about right: {} s off",
        read.2
    );
}

/// Starts another process with one worker; see [`play`].
fn start(file: &Path, id: &str, interval: &str) -> Process {
    Process::start(&role(file, id, interval))
}

/// As [`start`], with files of at most 400 kB.
fn start_limited(file: &Path, id: &str, interval: &str) -> Process {
    let limit = r#"trap '' XFSZ; ulimit -S -f 400; exec "$0" "$@""#;
    Process::start_by(&["bash", "-c", limit], &role(file, id, interval))
}

fn role(file: &Path, id: &str, interval: &str) -> String {
    format!("{} {id} {interval}", file.display())
}

fn claim(process: &mut Process, run: &str) -> u64 {
    process.ask(&format!("claim {run}")).parse().unwrap()
}

/// The role of the other process: it beats, and answers queries.
pub(crate) fn play(role: &str) {
    let [file, id, interval] = role.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{role}");
    };
    let registry = Registry::new();
    let store = SqliteStore::open(file).unwrap();
    let attachment = registry.attach(store, FleetConfig::new()).unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .id(id)
        .interval(Duration::from_secs_f64(interval.parse().unwrap()))
        .registry(&registry)
        .start()
        .unwrap();
    hb.beat();
    println!("\n@ready");
    let mut lease = None;
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let say = |answer: &str| println!("@{line}: {answer}");
        hb.beat();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("claim", run) => match hb.claim(run, 600 * SECOND).unwrap() {
                Some(claimed) => {
                    say(&claimed.fence().to_string());
                    lease = Some(claimed);
                }
                None => say("none"),
            },
            ("held", _) => say(&lease.as_ref().is_some_and(|own| own.is_held()).to_string()),
            ("recent", _) => say(&hb.is_recent().to_string()),
            ("gone", _) => say(&ProcessIdentity::current().is_gone().to_string()),
            ("sweep", _) => {
                let sweeper = Sweeper::new(SqliteStore::open(file).unwrap());
                let report = sweeper.watched_for(Duration::ZERO).sweep().unwrap();
                say(&report.marked_offline.join(" "));
            }
            ("list", _) => match SqliteStore::open_read_only(file) {
                Ok(store) => say(&rows(&store).len().to_string()),
                Err(error) => say(&error.to_string()),
            },
            ("fill", _) => {
                let mut n = 0;
                while attachment.status().failures_in_a_row == 0 {
                    n += 1;
                    let text = n.to_string().repeat(1_000);
                    hb.update_task(
                        n.to_string(),
                        &text[..1_000],
                        worker_heartbeat::Activity::Active,
                    );
                    attachment.flush(PATIENCE);
                }
                say("failing");
            }
            ("lift", _) => {
                use nix::sys::resource::{Resource, getrlimit, setrlimit};
                let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
                setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
                eventually("the attachment is restored", || {
                    attachment.status().failures_in_a_row == 0
                });
                say("restored");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn absurd_values_are_refused_with_a_reason() {
    let place = Place::new();
    let store = place.store();
    register(&store, "a");
    let file = Connection::open(place.file()).unwrap();
    for (column, value, reason) in [
        (
            "stale_after_ns",
            "4000000000000000000",
            "limits_are_0_to_100_years",
        ),
        ("interval_ns", "-1", "limits_are_0_to_100_years"),
        ("heartbeat_at", "'yesterday'", "times_are_integers"),
    ] {
        let update = format!("UPDATE workers SET {column} = {value}");
        let refused = file.execute(&update, []).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    let mut longest = Registration::new("poller", "longest");
    longest.info.thresholds = Some(worker_heartbeat::Thresholds::new(Duration::MAX));
    assert!(store.register(&[longest]).is_ok());
}

/// Such as one that another program wrote to a file without these constraints.
#[test]
fn a_bad_row_does_no_harm() {
    let place = Place::new();
    let store = place.store();
    let key = register(&store, "good");
    let file = Connection::open(place.file()).unwrap();
    file.execute_batch(
        "PRAGMA ignore_check_constraints = ON;
         INSERT INTO workers SELECT * FROM workers WHERE false;
         INSERT INTO workers (worker_id, incarnation, worker_type, worker_group, interval_ns,
            stale_after_ns, stall_after_ns, beats_only, metadata, restarts, pid, hostname, status,
            reason, registered_at, heartbeat_at, steps_done, steps_total, beats)
            VALUES ('bad-1', -1, 7, x'ff', 'often', 9e300, -1, 'yes', 'null', -1, 'none', 7.5, 0, x'ff00',
                'then', 9223372036854775807, 'x', 1, 1e30);
         INSERT INTO workers (worker_id, incarnation, worker_type, worker_group, interval_ns,
            stale_after_ns, beats_only, metadata, restarts, pid, status, registered_at, heartbeat_at,
            beats, ended_at)
            VALUES ('bad-2', 2, '', '', 0, -9223372036854775808, 2, '[1]', 9223372036854775807, -1, 'well',
                -1, -1, -1, NULL);
         INSERT INTO leases (run_id, worker_id, incarnation, fence, expires_at)
            VALUES ('run', 'bad-1', 'x', 1e300, 'never');",
    )
    .unwrap();
    assert_eq!(rows(&store).len(), 3);
    assert_eq!(store.summary().unwrap().total, 3);
    assert!(store.find("bad-1").unwrap().is_some());
    let beat = Beat::new(key.clone(), State::Idle);
    assert_eq!(store.beat(&[beat]).unwrap(), [Answer::Accepted]);
    let swept = store.sweep(&Sweep::default()).unwrap();
    assert!(!swept.marked_offline.contains(&key.id), "{swept:?}");
    assert_eq!(state(&store, "good"), Some(State::Idle));
}

#[test]
fn an_item_that_the_file_refuses_is_refused_alone() {
    let place = Place::new();
    let store = place.store();
    let keys = ["a", "b", "c"].map(|id| register(&store, id));
    let file = Connection::open(place.file()).unwrap();
    file.execute_batch(
        "CREATE TRIGGER checked BEFORE INSERT ON workers WHEN NEW.task = 'bad' OR NEW.worker_type = 'bad'
         BEGIN SELECT RAISE(ABORT, 'no bad ones'); END",
    )
    .unwrap();
    let mut beats = keys.map(|key| Beat::new(key, State::Idle));
    beats[1].status.task = Some("bad".into());
    let answers = store.beat(&beats).unwrap();
    assert_eq!(
        answers,
        [Answer::Accepted, Answer::Invalid, Answer::Accepted]
    );
    assert_eq!(state(&store, "b"), Some(State::Starting));
    assert_eq!(state(&store, "c"), Some(State::Idle));
    let new = [("d", "poller"), ("e", "bad"), ("f", "poller")];
    let new = new.map(|(id, worker_type)| Registration::new(worker_type, id));
    let registered = store.register_each(&new).unwrap();
    let is_known: Vec<bool> = registered.iter().map(Result::is_ok).collect();
    assert_eq!(is_known, [true, false, true]);
    let reason = registered[1].as_ref().unwrap_err().to_string();
    assert!(reason.contains("no bad ones"), "{reason}");
}
