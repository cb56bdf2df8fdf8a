//! Claims whose answer is lost on the way from a coordinator.

use std::time::Duration;

use worker_heartbeat::{Error, FleetConfig, HttpStore, MemoryStore, Registry, WorkerHeartbeat};

use crate::support::PATIENCE;
use crate::support::coordinator::{client, done, post, start};
use crate::support::losing_proxy::LosingProxy;

const TTL: Duration = Duration::from_secs(600);

#[test]
fn after_a_lost_answer_a_run_is_free_for_others_within_a_round() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let proxy = LosingProxy::start(coordinator.local_addr());
    let registry = Registry::new();
    let behind = HttpStore::new(format!("http://{}", proxy.address())).unwrap();
    let attachment = registry.attach(behind, FleetConfig::new()).unwrap();
    let start = |registry: &Registry, id| {
        let builder = WorkerHeartbeat::builder("poller").registry(registry);
        builder.id(id).start().unwrap()
    };
    let hb = start(&registry, "a");
    let elsewhere = Registry::new();
    elsewhere
        .attach(client(&coordinator), FleetConfig::new())
        .unwrap();
    let rival = start(&elsewhere, "b");
    assert!(attachment.flush(PATIENCE));
    for n in 0..10 {
        let run = format!("run-{n}");
        // However often the request is sent.
        proxy.lose_answers("/api/store/claim", usize::MAX);
        let before = proxy.lost();
        let error = hb.claim(&run, TTL).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error}");
        assert!(proxy.lost() > before);
        proxy.lose_answers("/api/store/claim", 0);
        assert!(attachment.flush(PATIENCE));
        let lease = rival.claim(&run, TTL).unwrap();
        assert!(lease.is_some(), "{run} is locked");
    }
}

#[test]
fn a_worker_in_any_language_asks_again_with_its_attempt_or_gives_it_up() {
    let store = MemoryStore::new();
    let coordinator = start(&store);
    let at = coordinator.local_addr();
    for id in ["a", "b"] {
        done(at, "register", &format!(r#"{{"worker_id": "{id}"}}"#));
    }
    let claim = r#"{"worker_id": "a", "run_id": "run", "ttl_s": 600, "attempt": 7}"#;
    let first = done(at, "claim", claim);
    assert_eq!(first["granted"], true);
    let again = done(at, "claim", claim);
    assert_eq!(again["fence"], first["fence"]);
    let other = r#"{"worker_id": "b", "run_id": "run", "ttl_s": 600}"#;
    assert_eq!(done(at, "claim", other)["granted"], false);
    let release = r#"{"worker_id": "a", "run_id": "run", "attempt": 7}"#;
    assert_eq!(done(at, "release", release)["released"], true);
    assert_eq!(done(at, "release", release)["released"], false);
    let fence = done(at, "claim", other)["fence"].clone();
    let done_with = format!(r#"{{"worker_id": "b", "run_id": "run", "fence": {fence}}}"#);
    assert_eq!(done(at, "release", &done_with)["released"], true);
    // The request arrives late.
    assert_eq!(done(at, "claim", claim)["granted"], false);
    assert_eq!(done(at, "claim", other)["granted"], true);
    let odd = r#"{"worker_id": "b", "run_id": "run", "attempt": -1}"#;
    assert_eq!(post(at, "release", odd).status, 400);
}

#[test]
fn the_lives_of_workers_are_kept_behind_a_coordinator() {
    use crate::support::duties;
    for duty in [
        duties::last_deaths_are_kept as fn(&dyn worker_heartbeat::HeartbeatStore),
        duties::duplicates_are_refused_on_request,
    ] {
        let coordinator = start(&MemoryStore::new());
        duty(&client(&coordinator));
    }
}
