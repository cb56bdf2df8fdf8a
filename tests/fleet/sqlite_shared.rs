//! A SQLite file that other versions, and other programs, use at the same time.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, Registration, Sweep, WorkerFilter,
};
use worker_heartbeat::{HeartbeatStore, SqliteStore, State};

use crate::support::SECOND;
use crate::support::folder::Folder;

const SHORT: Duration = Duration::from_millis(100);

fn file(folder: &Folder) -> PathBuf {
    folder.join("fleet.db")
}

/// A process that hangs in a transaction, for example.
#[test]
fn readers_do_not_wait_for_a_process_that_writes() {
    let folder = Folder::new("sqlite-writer");
    let store = SqliteStore::open(file(&folder)).unwrap();
    store.register(&[Registration::new("poller", "a")]).unwrap();
    let writer = Connection::open(file(&folder)).unwrap();
    writer
        .execute_batch("BEGIN IMMEDIATE; UPDATE workers SET beats = 7")
        .unwrap();
    let reader = SqliteStore::open_with_timeout(file(&folder), SHORT).unwrap();
    assert_eq!(reader.list(&WorkerFilter::default()).unwrap().len(), 1);
    assert!(reader.sweep(&Sweep::default()).is_err(), "it has to write");
    assert_eq!(reader.summary().unwrap().total, 1);
}

/// The first upgraded process migrates the file while the others still run.
#[test]
fn an_older_program_goes_on_after_a_migration_that_only_adds() {
    let folder = Folder::new("sqlite-newer");
    drop(SqliteStore::open(file(&folder)).unwrap());
    let newer = Connection::open(file(&folder)).unwrap();
    let version: i32 = newer
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    // The upper bits are the oldest version that may use the tables.
    let version = version & 0xffff;
    newer
        .execute_batch(
            "ALTER TABLE workers ADD COLUMN later TEXT; ALTER TABLE leases ADD COLUMN later TEXT",
        )
        .unwrap();
    newer
        .pragma_update(None, "user_version", version << 16 | (version + 1))
        .unwrap();
    let store = SqliteStore::open(file(&folder)).unwrap();
    let key = store
        .register(&[Registration::new("poller", "a")])
        .unwrap()
        .remove(0);
    let beat = Beat::new(key.clone(), State::Active);
    assert_eq!(store.beat(&[beat]).unwrap(), [Answer::Accepted]);
    let claimed = store.claim(&Claim::new(key, "run", 60 * SECOND)).unwrap();
    assert!(matches!(claimed, ClaimAnswer::Granted(_)), "{claimed:?}");
    assert!(store.sweep(&Sweep::default()).unwrap().success);

    for refused in [version + 1, (version + 1) << 16 | (version + 1)] {
        newer.pragma_update(None, "user_version", refused).unwrap();
        let error = SqliteStore::open(file(&folder)).unwrap_err().to_string();
        assert!(error.contains("by a newer version"), "{error}");
    }
}

#[test]
fn the_write_ahead_log_shrinks_after_a_reader_that_held_it() {
    const LIMIT: u64 = 8 * 1024 * 1024;
    let folder = Folder::new("sqlite-wal");
    let store = SqliteStore::open(file(&folder)).unwrap();
    let workers: Vec<_> = (0..1_000)
        .map(|n| {
            let mut worker = Registration::new("poller", format!("w-{n}"));
            worker.info.metadata = vec![("text".into(), "x".repeat(1_000))];
            worker
        })
        .collect();
    let keys = store.register(&workers).unwrap();
    let beats: Vec<_> = keys
        .iter()
        .map(|key| Beat::new(key.clone(), State::Active))
        .collect();
    let reader = Connection::open(file(&folder)).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let _: i64 = reader
        .query_row("SELECT count(*) FROM workers", [], |row| row.get(0))
        .unwrap();
    let log = folder.join("fleet.db-wal");
    let size = || fs::metadata(&log).unwrap().len();
    while size() < 2 * LIMIT {
        store.beat(&beats).unwrap();
    }
    reader.execute_batch("COMMIT").unwrap();
    // The next ones copy the log into the file, and begin a new one.
    for _ in 0..3 {
        store.beat(&beats).unwrap();
    }
    assert!(size() <= LIMIT, "{} bytes", size());
}
