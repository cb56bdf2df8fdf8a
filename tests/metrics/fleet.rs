//! What is told of a store, and of one that hangs or fails.

use std::time::Instant;

use worker_heartbeat::fleet::{Beat, Claim, Registration, Stop, StoredEnding, WorkerKey};
use worker_heartbeat::{HeartbeatStore, MemoryStore, Metrics, Registry, State, StopCause};

use crate::scrape::{Mood, Moody, Scrape};
use crate::support::SECOND;

fn registered(store: &dyn HeartbeatStore, id: &str, group: &str, state: State) -> WorkerKey {
    let mut registration = Registration::new("w", id);
    registration.info.group = group.to_owned();
    let key = store.register(&[registration]).unwrap().remove(0);
    store.beat(&[Beat::new(key.clone(), state)]).unwrap();
    key
}

fn scrape(store: &Moody) -> Scrape {
    Scrape::of(&Metrics::new(&Registry::new()).fleet(store.clone()))
}

#[test]
fn workers_groups_and_leases_of_a_store_are_told() {
    let store = Moody::new(MemoryStore::new());
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

    let told = scrape(&store);
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
        assert_eq!(told.get(series), value, "{series}");
    }
    assert!(told.get("fleet_reading_age_seconds") < 60.0);
}

#[test]
fn a_store_is_not_read_again_and_again() {
    let store = Moody::new(MemoryStore::new());
    let metrics = Metrics::new(&Registry::new()).fleet(store.clone());
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(Scrape::of(&metrics.clone()).get("fleet_up"), 1.0);
    }
    let readings = 1 + begun.elapsed().as_secs() as usize / 5;
    assert!(
        store.lists() <= readings,
        "{} in {:?}",
        store.lists(),
        begun.elapsed()
    );
}

#[test]
fn a_store_that_fails_or_panics_is_told_and_so_is_the_rest() {
    for mood in [Mood::Failing, Mood::Panicking] {
        let store = Moody::new(MemoryStore::new());
        store.be(mood);
        let told = scrape(&store);
        assert_eq!(told.get("fleet_up"), 0.0, "{mood:?}");
        assert_eq!(told.get("fleet_read_failures_total"), 1.0);
        assert_eq!(told.find("fleet_reading_age_seconds"), None);
        assert_eq!(told.get("store_attached"), 0.0, "the registry is told of");
    }
}

#[test]
fn a_store_that_hangs_holds_up_no_scrape_for_long() {
    let store = Moody::new(MemoryStore::new());
    let metrics = Metrics::new(&Registry::new()).fleet(store.clone());
    store.hang(|| {
        let begun = Instant::now();
        assert_eq!(Scrape::of(&metrics).get("fleet_up"), 0.0);
        let waited = begun.elapsed();
        assert!(waited >= SECOND / 2, "it waits for the store: {waited:?}");
        for _ in 0..20 {
            let told = Scrape::of(&metrics);
            assert_eq!(told.get("fleet_up"), 0.0);
            assert_eq!(told.get("fleet_read_failures_total"), 0.0);
        }
        assert!(store.lists() <= 1, "one reading at a time");
        // Twenty that waited would have taken twenty seconds.
        assert!(begun.elapsed() < 15 * SECOND, "{:?}", begun.elapsed());
    });
    crate::support::eventually("the reading ends", || {
        Scrape::of(&metrics).get("fleet_up") == 1.0
    });
}
