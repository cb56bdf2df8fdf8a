//! The files of the store in SQLite: replaced, removed, not writable. And processes in namespaces of
//! their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::folder::Folder;
use crate::support::process::Process;
use crate::support::{SECOND, eventually};
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, WorkerFilter, WorkerKey,
};
use worker_heartbeat::{
    Error, FleetConfig, HeartbeatStore, Registry, SqliteStore, State, StoreErrorKind,
    WorkerHeartbeat,
};

fn register(store: &SqliteStore, id: &str) -> WorkerKey {
    let keys = store.register(&[Registration::new("poller", id)]).unwrap();
    let key = keys.into_iter().next().unwrap();
    let answers = store.beat(&[Beat::new(key.clone(), State::Active)]);
    assert_eq!(answers.unwrap(), [Answer::Accepted]);
    key
}

fn claim(store: &SqliteStore, key: &WorkerKey, run: &str) -> LeaseKey {
    let claim = Claim::new(key.clone(), run, 60 * SECOND);
    match store.claim(&claim).unwrap() {
        ClaimAnswer::Granted(fence) => LeaseKey::new(key.clone(), run, fence),
        answer => panic!("{run}: {answer:?}"),
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

type Fault = (&'static str, fn(&Path));

/// What may happen to the files while they are open.
const FAULTS: [Fault; 6] = [
    ("all are removed", |file| {
        for suffix in ["", "-wal", "-shm"] {
            fs::remove_file(beside(file, suffix)).unwrap();
        }
    }),
    ("the database is removed", |file| {
        fs::remove_file(file).unwrap()
    }),
    ("the -wal and the -shm are removed", |file| {
        fs::remove_file(beside(file, "-wal")).unwrap();
        fs::remove_file(beside(file, "-shm")).unwrap();
    }),
    ("the -wal is removed", |file| {
        fs::remove_file(beside(file, "-wal")).unwrap()
    }),
    ("the -shm is removed", |file| {
        fs::remove_file(beside(file, "-shm")).unwrap()
    }),
    ("another database takes its place", |file| {
        let other = beside(file, ".other");
        drop(SqliteStore::open(&other).unwrap());
        fs::rename(other, file).unwrap();
        for suffix in ["-wal", "-shm"] {
            fs::remove_file(beside(file, suffix)).unwrap();
        }
    }),
];

#[test]
fn a_file_that_was_replaced_has_no_two_holders_and_repeats_no_number() {
    for (what, fault) in FAULTS {
        let folder = Folder::new("replaced");
        let file = folder.join("fleet.db");
        let before = SqliteStore::open(&file).unwrap();
        let key = register(&before, "svc-1");
        let lease = claim(&before, &key, "run");
        fault(&file);
        let mut opened = None;
        eventually(what, || {
            opened = SqliteStore::open(&file).ok();
            if opened.is_none() {
                // An old -shm without its -wal cannot be used until its users have left it.
                let _ = before.keep_alive().unwrap();
            }
            opened.is_some()
        });
        let after = opened.unwrap();
        let rows = after.list(&WorkerFilter::default()).unwrap();
        if rows.iter().any(|row| row.key == key) {
            // The others found everything, so that nothing is lost.
            let rival = register(&after, "rival");
            let answer = after.claim(&Claim::new(rival, "run", SECOND)).unwrap();
            assert_eq!(answer, ClaimAnswer::Taken, "{what}");
            let renew = || before.renew(std::slice::from_ref(&lease), 60 * SECOND);
            assert_eq!(renew().or_else(|_| renew()).unwrap(), [true], "{what}");
            println!("{what}: nothing is lost");
            continue;
        }
        let again = register(&after, "svc-1");
        assert!(again.incarnation > lease.fence, "{what}");
        let next = claim(&after, &again, "run");
        assert!(next.fence > again.incarnation, "{what}");
        // The process that has the old files open. No call of it succeeds there.
        let error = before
            .beat(&[Beat::new(key.clone(), State::Active)])
            .unwrap_err();
        let kind = StoreErrorKind::Incompatible;
        assert!(
            matches!(error, Error::Store { kind: is, .. } if is == kind),
            "{what}: {error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("fleet.db") && text.contains("while it was open"),
            "{what}: {text}"
        );
        let answers = before
            .beat(&[Beat::new(key.clone(), State::Active)])
            .unwrap();
        assert_ne!(answers, [Answer::Accepted], "{what}");
        assert_eq!(
            before.renew(std::slice::from_ref(&lease), SECOND).unwrap(),
            [false],
            "{what}"
        );
        assert_eq!(
            after.renew(std::slice::from_ref(&next), SECOND).unwrap(),
            [true],
            "{what}"
        );
        assert!(
            register(&before, "svc-2").incarnation > next.fence,
            "{what}"
        );
        // The end of the old process takes nothing away from the others.
        drop(before);
        assert_eq!(after.renew(&[next], SECOND).unwrap(), [true], "{what}");
        let rows = after.list(&WorkerFilter::default()).unwrap();
        assert_eq!(rows.len(), 2, "{what}");
    }
}

/// The same, for processes.
#[test]
fn a_process_whose_file_was_replaced_gives_its_run_up() {
    for (what, fault) in FAULTS {
        let folder = Folder::new("replaced-by-process");
        let file = folder.join("fleet.db");
        let start = |id: &str| Process::start(&format!("{} {id} 60", file.display()));
        let mut first = start("first");
        let fence: u64 = first.ask("claim run").parse().unwrap();
        fault(&file);
        // An old -shm without its -wal cannot be used until its users have left it.
        eventually(what, || SqliteStore::open(&file).is_ok());
        let mut second = start("second");
        let granted = second.ask("claim run");
        println!("{what}: {granted} after {fence}");
        if granted == "none" {
            assert_eq!(first.ask("held"), "true", "{what}");
        } else {
            assert!(granted.parse::<u64>().unwrap() > fence, "{what}");
            first.ask_until("held", "false");
            assert_eq!(second.ask("held"), "true", "{what}");
        }
        let store = SqliteStore::open(&file).unwrap();
        eventually("both workers are there", || {
            let rows = store.list(&WorkerFilter::default()).unwrap_or_default();
            rows.iter().map(|row| &*row.key.id).eq(["first", "second"])
        });
        drop(first);
        assert_eq!(
            second.ask("held"),
            (granted != "none").to_string(),
            "{what}"
        );
    }
}

/// Without any call that would find out: workers come back, and leases are lost.
#[test]
fn workers_are_registered_again_in_a_file_that_replaces_theirs() {
    // Without others, a -wal that was removed is written to the database when it is closed.
    let lost = |what: &str| !what.starts_with("the -");
    for (what, fault) in FAULTS.into_iter().filter(|(what, _)| lost(what)) {
        let folder = Folder::new("replaced-under-workers");
        let file = folder.join("fleet.db");
        let registry = Registry::new();
        let store = SqliteStore::open(&file).unwrap();
        registry.attach(store, FleetConfig::new()).unwrap();
        let hb = WorkerHeartbeat::builder("svc")
            .id("svc-1")
            .interval(60 * SECOND)
            .registry(&registry)
            .start()
            .unwrap();
        let lease = hb.claim("run", 600 * SECOND).unwrap().unwrap();
        fault(&file);
        eventually(what, || !lease.is_held());
        let reader = SqliteStore::open(&file).unwrap();
        eventually("the worker is back", || {
            let rows = reader.list(&WorkerFilter::default()).unwrap_or_default();
            rows.iter()
                .any(|row| row.key.id == "svc-1" && row.ending.is_none())
        });
        let again = hb.claim("run", 600 * SECOND).unwrap().unwrap();
        assert!(again.fence() > lease.fence(), "{what}");
    }
}

/// An earlier copy of the file, under another number or the same one.
#[test]
fn an_earlier_copy_continues_with_higher_numbers() {
    let folder = Folder::new("copy");
    let file = folder.join("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    register(&store, "svc-1");
    drop(store);
    let copy = folder.join("copy.db");
    fs::copy(&file, &copy).unwrap();
    for replace in [
        (|from, to| fs::copy(from, to).map(drop)) as fn(&Path, &Path) -> std::io::Result<()>,
        |from, to| fs::rename(from, to),
    ] {
        let store = SqliteStore::open(&file).unwrap();
        let key = register(&store, "svc-1");
        let lease = claim(&store, &key, "run");
        assert_eq!(store.release(std::slice::from_ref(&lease)).unwrap(), [true]);
        drop(store);
        replace(&copy, &file).unwrap();
        let store = SqliteStore::open(&file).unwrap();
        let key = register(&store, "svc-1");
        assert!(key.incarnation > lease.fence, "{key:?} after {lease:?}");
    }
}

#[test]
fn a_change_of_the_current_folder_does_not_matter() {
    let folder = Folder::new("relative");
    let here = std::env::current_dir().unwrap();
    // A relative path to the folder, from wherever this test runs.
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let file = folder.join("fleet.db");
    let relative = up.join(file.strip_prefix("/").unwrap());
    let store = SqliteStore::open(relative).unwrap();
    let key = register(&store, "a");
    assert!(format!("{store:?}").contains(here.to_str().unwrap()));
    let rows = SqliteStore::open(file)
        .unwrap()
        .list(&WorkerFilter::default());
    assert_eq!(rows.unwrap()[0].key, key);
}

#[test]
fn a_store_for_reading_changes_nothing() {
    let folder = Folder::new("read-only");
    let file = folder.join("fleet.db");
    let missing = SqliteStore::open_read_only(&file).unwrap_err();
    let kind = StoreErrorKind::Unreachable;
    assert!(
        matches!(missing, Error::Store { kind: is, .. } if is == kind),
        "{missing:?}"
    );
    assert!(!file.exists());
    fs::write(&file, "").unwrap();
    let empty = SqliteStore::open_read_only(&file).unwrap_err().to_string();
    assert!(empty.contains("it is not set up"), "{empty}");
    fs::remove_file(&file).unwrap();

    let store = SqliteStore::open(&file).unwrap();
    let key = register(&store, "a");
    let reader = SqliteStore::open_read_only(&file).unwrap();
    assert_eq!(reader.summary().unwrap().total, 1);
    register(&store, "b");
    assert_eq!(reader.summary().unwrap().total, 2);
    let kind = StoreErrorKind::Denied;
    for refused in [
        reader
            .register(&[Registration::new("poller", "c")])
            .unwrap_err(),
        reader.beat(&[Beat::new(key, State::Idle)]).unwrap_err(),
        reader.purge(Duration::ZERO).unwrap_err(),
    ] {
        assert!(
            matches!(refused, Error::Store { kind: is, .. } if is == kind),
            "{refused:?}"
        );
    }
    drop(store);
    assert_eq!(reader.summary().unwrap().total, 2);
    let before = fs::read(&file).unwrap();
    drop(reader);
    assert_eq!(
        SqliteStore::open_read_only(&file)
            .unwrap()
            .summary()
            .unwrap()
            .total,
        2
    );
    assert!(fs::read(&file).unwrap() == before);
}

fn can_run(program: &[&str]) -> bool {
    let status = Command::new(program[0])
        .args(&program[1..])
        .arg("true")
        .output();
    let can = status.is_ok_and(|done| done.status.success());
    if !can {
        eprintln!("left out: {program:?} does not work here");
    }
    can
}

/// The same file, read by a user who may write neither it nor its folder.
#[test]
fn another_user_may_read_the_file() {
    const AS_NOBODY: [&str; 4] = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let folder = Folder::new("another user");
    let file = folder.join("fleet?.db");
    if !can_run(&AS_NOBODY) {
        return;
    }
    let store = SqliteStore::open(&file).unwrap();
    register(&store, "a");
    let read = || {
        let mut command = Command::new(AS_NOBODY[0]);
        command
            .args(&AS_NOBODY[1..])
            .arg(std::env::current_exe().unwrap());
        command
            .args(["--exact", "sqlite_files::reader", "--nocapture"])
            .env("READ_FILE", &file);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = text.lines().find_map(|line| line.strip_prefix("@read: "));
        found.unwrap_or_else(|| panic!("{output:?}")).to_owned()
    };
    assert_eq!(read(), "1", "with a writer");
    drop(store);
    assert!(!beside(&file, "-wal").exists());
    assert_eq!(read(), "1", "without a writer");
    let store = SqliteStore::open(&file).unwrap();
    register(&store, "b");
    assert_eq!(read(), "2", "with a writer again");
}

/// Not a test: what the other user runs.
#[test]
fn reader() {
    let Some(file) = std::env::var_os("READ_FILE") else {
        return;
    };
    let read = SqliteStore::open_read_only(file).and_then(|store| store.summary());
    match read {
        Ok(summary) => println!("\n@read: {}", summary.total),
        Err(error) => println!("\n@read: {error}"),
    }
}

/// In a new pid namespace, `/proc` shows the processes of the old one until it is mounted again.
#[test]
fn a_foreign_proc_proves_nothing() {
    const ALONE: [&str; 4] = ["unshare", "--pid", "--fork", "--kill-child"];
    if !can_run(&ALONE) {
        return;
    }
    let folder = Folder::new("foreign-proc");
    let role = format!("{} a 60", folder.join("fleet.db").display());
    for own_proc in [false, true] {
        let mut program = ALONE.to_vec();
        program.extend(own_proc.then_some("--mount-proc"));
        if !can_run(&program) {
            continue;
        }
        let mut process = Process::start_by(&program, &role);
        assert_ne!(process.ask("claim run"), "none");
        assert_eq!(process.ask("gone"), "false");
        assert_eq!(process.ask("sweep"), "");
        assert_eq!(process.ask("held"), "true");
        drop(process);
        // The namespace ends with its first process.
        eventually("the run is free", || {
            let store = SqliteStore::open(folder.join("fleet.db")).unwrap();
            let rows = store.list(&WorkerFilter::default()).unwrap();
            let key = rows[0].key.clone();
            store
                .stop(&[worker_heartbeat::fleet::Stop::new(
                    key,
                    worker_heartbeat::fleet::StoredEnding::stopped(
                        &worker_heartbeat::StopCause::Stop,
                    ),
                )])
                .is_ok()
        });
    }
}
