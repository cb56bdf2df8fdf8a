//! The metrics of a store, and of one that hangs or fails.

use std::time::Instant;

use worker_heartbeat::fleet::{Beat, Claim, Registration, Stop, StoredEnding, WorkerKey};
use worker_heartbeat::{HeartbeatStore, MemoryStore, Metrics, Registry, State, StopCause};

use crate::scrape::Scrape;
use crate::support::store::{Mode, ReadCounter, TestStore};
use crate::support::{SECOND, eventually};

fn registered(store: &dyn HeartbeatStore, id: &str, group: &str, state: State) -> WorkerKey {
    let mut registration = Registration::new("w", id);
    registration.info.group = group.to_owned();
    let key = store.register(&[registration]).unwrap().remove(0);
    store.beat(&[Beat::new(key.clone(), state)]).unwrap();
    key
}

fn metrics(store: &TestStore) -> Metrics {
    Metrics::new(&Registry::new()).fleet(store.clone())
}

/// A scrape with the outcome of the first reading of the store. A scrape waits for that for a second at
/// most, and a busy machine may take longer.
fn read_scrape(metrics: &Metrics) -> Scrape {
    let mut found = None;
    eventually("the store was read", || {
        let scrape = Scrape::of(metrics);
        let failures = scrape.get("fleet_read_failures_total");
        found = (scrape.get("fleet_up") == 1.0 || failures > 0.0).then_some(scrape);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn workers_groups_and_leases_of_a_store_are_exported() {
    let store = TestStore::default();
    let idle = registered(&store, "a", "one", State::Idle);
    let claim = Claim::new(idle, "run-1", 60 * SECOND);
    store.claim(&claim).unwrap();
    registered(&store, "b", "two", State::Stalled);
    let stopped = registered(&store, "c", "three", State::Idle);
    let stop = Stop::new(stopped, StoredEnding::stopped(&StopCause::Stop)).ago(SECOND);
    store.stop(&[stop]).unwrap();
    let mut registration = Registration::new("w", "d");
    registration.info.group = "four".to_owned();
    let old = store.register(&[registration]).unwrap().remove(0);
    let mut silent = Beat::new(old, State::Idle);
    silent.heartbeat_age = Some(1_000 * SECOND);
    store.beat(&[silent]).unwrap();

    let scrape = read_scrape(&metrics(&store));
    for (series, value) in [
        ("fleet_up", 1.0),
        ("fleet_read_failures_total", 0.0),
        ("fleet_workers{worker_type=\"w\",state=\"idle\"}", 1.0),
        ("fleet_workers{worker_type=\"w\",state=\"stalled\"}", 1.0),
        ("fleet_workers{worker_type=\"w\",state=\"stopped\"}", 1.0),
        ("fleet_workers{worker_type=\"w\",state=\"dead\"}", 0.0),
        ("fleet_workers{worker_type=\"w\",state=\"stale\"}", 1.0),
        ("fleet_groups{state=\"online\"}", 2.0),
        ("fleet_groups{state=\"offline\"}", 1.0),
        ("fleet_groups{state=\"stopped\"}", 1.0),
        ("fleet_leased_workers", 1.0),
    ] {
        assert_eq!(scrape.get(series), value, "{series}");
    }
    assert!(scrape.get("fleet_reading_age_seconds") < 60.0);
}

#[test]
fn a_store_is_not_read_again_and_again() {
    let store = TestStore::default();
    let metrics = metrics(&store);
    let begun = Instant::now();
    read_scrape(&metrics);
    for _ in 0..50 {
        assert_eq!(Scrape::of(&metrics.clone()).get("fleet_up"), 1.0);
    }
    let readings = 1 + begun.elapsed().as_secs() as usize;
    assert!(
        store.lists() <= readings,
        "{} in {:?}",
        store.lists(),
        begun.elapsed()
    );
}

#[test]
fn a_failing_or_panicking_store_is_reported_and_other_metrics_are_still_exported() {
    for mode in [Mode::Failing("on purpose".to_owned()), Mode::Panicking] {
        let store = TestStore::default();
        store.set(mode.clone());
        let scrape = read_scrape(&metrics(&store));
        assert_eq!(scrape.get("fleet_up"), 0.0, "{mode:?}");
        assert_eq!(scrape.get("fleet_read_failures_total"), 1.0);
        assert_eq!(scrape.find("fleet_reading_age_seconds"), None);
        assert_eq!(
            scrape.get("store_attached"),
            0.0,
            "the registry has no attachment"
        );
    }
}

#[test]
fn a_hanging_store_delays_no_scrape_for_long() {
    let store = TestStore::default();
    let metrics = metrics(&store);
    {
        let _held = store.hold();
        let begun = Instant::now();
        assert_eq!(Scrape::of(&metrics).get("fleet_up"), 0.0);
        let waited = begun.elapsed();
        assert!(waited >= SECOND / 2, "it waits for the store: {waited:?}");
        for _ in 0..20 {
            let scrape = Scrape::of(&metrics);
            assert_eq!(scrape.get("fleet_up"), 0.0);
            assert_eq!(scrape.get("fleet_read_failures_total"), 0.0);
        }
        assert!(store.lists() <= 1, "one read at a time");
        // Twenty scrapes that each waited would have taken twenty seconds.
        assert!(begun.elapsed() < 15 * SECOND, "{:?}", begun.elapsed());
    }
    eventually("the read ends", || {
        Scrape::of(&metrics).get("fleet_up") == 1.0
    });
}

#[test]
fn the_store_is_asked_for_counts_and_not_for_its_workers() {
    let memory = MemoryStore::new();
    for n in 0..1_100 {
        registered(&memory, &n.to_string(), "one", State::Idle);
    }
    let store = ReadCounter::new(&memory);
    let metrics = Metrics::new(&Registry::new()).fleet(store.clone());
    let scrape = read_scrape(&metrics);
    assert_eq!(
        scrape.get("fleet_workers{worker_type=\"w\",state=\"idle\"}"),
        1_100.0
    );
    assert_eq!(store.listed(), 0);
}

#[test]
fn a_store_that_takes_longer_than_a_scrape_waits_delays_no_later_scrape() {
    let store = TestStore::default();
    let metrics = metrics(&store);
    {
        let _held = store.hold();
        // It waits for a second, and so does the store.
        assert_eq!(Scrape::of(&metrics).get("fleet_up"), 0.0);
    }
    // The figures are there, and have their age.
    eventually("the read ends", || {
        Scrape::of(&metrics).get("fleet_up") == 1.0
    });
    let _held = store.hold();
    let lists = store.lists();
    eventually("another read begins", || {
        // The store may have answered at once when it was read last: then this scrape waits.
        Scrape::of(&metrics);
        store.lists() > lists
    });
    for _ in 0..3 {
        let begun = Instant::now();
        Scrape::of(&metrics);
        let waited = begun.elapsed();
        assert!(waited < SECOND / 2, "it waits for a slow store: {waited:?}");
    }
}
