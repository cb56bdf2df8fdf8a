//! What happened to the workers of a store, as it keeps it.

use std::time::Duration;

use log::Level;
use worker_heartbeat::fleet::{
    EventFilter, FleetEvent, Registration, Retention, Stop, StoredEnding, Sweep, WorkerKey,
};
use worker_heartbeat::{
    BoxError, DeathCause, FleetConfig, HeartbeatStore, MemoryStore, Restart, StopCause, Supervisor,
    WorkerHeartbeat,
};

use crate::support::{SECOND, World, eventually};

fn failed(error: &str) -> StoredEnding {
    StoredEnding::dead(&DeathCause::Failed {
        error: error.to_owned(),
    })
}

fn events(store: &dyn HeartbeatStore, filter: EventFilter) -> Vec<FleetEvent> {
    let page = store.events(&filter.limit(1_000)).unwrap();
    page.expect("the store keeps events").events
}

fn texts(store: &dyn HeartbeatStore, level: Level) -> Vec<String> {
    let events = events(store, EventFilter::new().level(level));
    events.iter().map(ToString::to_string).collect()
}

fn register(store: &dyn HeartbeatStore, id: &str) -> WorkerKey {
    store
        .register(&[Registration::new("poller", id)])
        .unwrap()
        .remove(0)
}

fn trim(store: &dyn HeartbeatStore, retention: Retention) {
    let mut sweep = Sweep::default();
    sweep.retention = Some(retention);
    assert!(store.sweep(&sweep).unwrap().success);
}

/// What every store keeps; `later` lets its time pass.
fn check_retention(store: &dyn HeartbeatStore, later: impl FnOnce(Duration)) {
    let key = register(store, "victim");
    store.stop(&[Stop::new(key, failed("no disk"))]).unwrap();
    // Very many workers stop in good order.
    for n in 0..40 {
        let key = register(store, &format!("w-{n}"));
        let stop = Stop::new(key, StoredEnding::stopped(&StopCause::Completed));
        store.stop(&[stop]).unwrap();
    }
    trim(store, Retention::none().most_events(10));
    let death = "worker victim: died: failed: no disk";
    assert_eq!(texts(store, Level::Info), [death]);
    let all = texts(store, Level::Debug);
    assert_eq!(all.len(), 11, "{all:?}");
    assert_eq!(all[10], "worker w-39: stopped: completed");
    // Without a number, an age, or both, they stay.
    trim(store, Retention::none());
    trim(store, Retention::none().events(60 * SECOND));
    assert_eq!(texts(store, Level::Debug).len(), 11);
    let cursor = store.events(&EventFilter::new()).unwrap().unwrap().cursor;
    later(SECOND);
    trim(store, Retention::none().events(Duration::from_millis(1)));
    assert!(texts(store, Level::Debug).is_empty());
    // A reader that was here before goes on behind them.
    let key = register(store, "next");
    store.stop(&[Stop::new(key, failed("again"))]).unwrap();
    let next = events(store, EventFilter::new().after(cursor));
    assert_eq!(next[0].to_string(), "worker next: died: failed: again");
    assert!(next[0].seq > cursor);
}

#[test]
fn events_are_bounded_by_number_and_age_and_no_level_pushes_out_another() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    check_retention(&store, |time| world.time.advance(time));
}

#[cfg(feature = "sqlite")]
#[test]
fn events_in_a_file_are_bounded_by_number_and_age() {
    let folder = crate::support::folder::Folder::new("events");
    let store = worker_heartbeat::SqliteStore::open(folder.join("fleet.db")).unwrap();
    // The time of a file is that of its host.
    check_retention(&store, |_| std::thread::sleep(Duration::from_millis(5)));
}

/// The store is asked for what is new only, however many events it keeps.
#[test]
fn a_store_in_memory_keeps_no_more_than_its_limit_without_any_sweep() {
    let store = MemoryStore::new();
    let mut key = register(&store, "victim");
    store.stop(&[Stop::new(key, failed("first"))]).unwrap();
    for n in 0..20_100 {
        key = register(&store, "looper");
        let stop = Stop::new(key, StoredEnding::stopped(&StopCause::Stop)).ago(n * SECOND);
        store.stop(&[stop]).unwrap();
    }
    let mut before = EventFilter::new().limit(1_000);
    let mut count = 0;
    loop {
        let page = store.events(&before).unwrap().unwrap();
        count += page.events.len();
        if !page.more {
            break;
        }
        before = before.before(page.events[0].seq);
    }
    // All of one level, and the death.
    assert_eq!(count, 20_001);
    assert_eq!(
        texts(&store, Level::Error),
        ["worker victim: died: failed: first"]
    );
}

/// A supervisor restarts it faster than its process writes to the store.
#[test]
fn each_death_of_a_worker_that_crashes_again_and_again_is_an_event() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let supervisor = Supervisor::new(&world.registry).restart(
        Restart::always()
            .max(3)
            .within(600 * SECOND)
            .backoff(SECOND, SECOND),
    );
    let mut life = 0;
    let worker = supervisor
        .spawn(
            WorkerHeartbeat::builder("looper").id("looper-1"),
            move |hb: &WorkerHeartbeat| -> Result<(), BoxError> {
                life += 1;
                hb.beat();
                Err(format!("boom {life}").into())
            },
        )
        .unwrap();
    let deaths = || texts(&store, Level::Error);
    for n in 1..=4 {
        eventually("its death is stored", || {
            world.millis(300);
            attachment.flush(SECOND);
            deaths().len() >= n
        });
    }
    let expected: Vec<String> = (1..=4)
        .map(|n| format!("worker looper-1: died: failed: boom {n}"))
        .collect();
    assert_eq!(deaths(), expected);
    let row = store.find("looper-1").unwrap().unwrap();
    let last = row.last_death.expect("it died before");
    assert_eq!(last.cause().to_string(), "failed: boom 3");
    drop(worker);
}

/// "Not kept" is not "nothing happened".
#[test]
fn a_store_of_another_kind_says_that_it_keeps_no_events() {
    let store = crate::third_party::VecStore::new();
    assert!(store.events(&EventFilter::new()).unwrap().is_none());
}

#[cfg(feature = "sqlite")]
mod in_a_file {
    use rusqlite::Connection;
    use worker_heartbeat::fleet::{Answer, Beat};
    use worker_heartbeat::{SqliteStore, State};

    use super::*;
    use crate::support::folder::Folder;

    /// The number of the fifth version has the oldest version that may use the file above it.
    #[test]
    fn a_file_without_events_is_brought_up_to_date() {
        let folder = Folder::new("events-before");
        let file = folder.join("fleet.db");
        register(&SqliteStore::open(&file).unwrap(), "a");
        let before = Connection::open(&file).unwrap();
        before
            .execute_batch("DROP TABLE events; DROP TABLE endings; PRAGMA user_version = 0x40005")
            .unwrap();
        let refused = SqliteStore::open_read_only(&file).unwrap_err().to_string();
        assert!(refused.contains("older version"), "{refused}");
        let store = SqliteStore::open(&file).unwrap();
        let key = store.find("a").unwrap().expect("it is kept").key;
        store.stop(&[Stop::new(key, failed("no disk"))]).unwrap();
        assert_eq!(
            texts(&store, Level::Error),
            ["worker a: died: failed: no disk"]
        );
        let reader = SqliteStore::open_read_only(&file).unwrap();
        assert_eq!(texts(&reader, Level::Error).len(), 1);
    }

    /// An event is a record only.
    #[test]
    fn a_table_of_events_that_is_gone_stops_no_heartbeat_and_no_sweep() {
        let folder = Folder::new("events-gone");
        let file = folder.join("fleet.db");
        let store = SqliteStore::open(&file).unwrap();
        let key = register(&store, "a");
        Connection::open(&file)
            .unwrap()
            .execute_batch("DROP TABLE events; DROP TABLE endings")
            .unwrap();
        let stalled = Beat::new(key.clone(), State::Stalled);
        assert_eq!(store.beat(&[stalled]).unwrap(), [Answer::Accepted]);
        let mut sweep = Sweep::default();
        sweep.killed = vec![key.clone()];
        sweep.retention = Some(Retention::new());
        let report = store.sweep(&sweep).unwrap();
        assert_eq!(report.marked_offline, ["a"]);
        assert!(register(&store, "a").incarnation > key.incarnation);
        assert_eq!(store.counts().unwrap().states.total(), 1);
        assert!(store.events(&EventFilter::new()).is_err());
    }
}
