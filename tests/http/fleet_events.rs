//! The events of a store over HTTP.

use std::net::SocketAddr;

use serde_json::Value;
use worker_heartbeat::fleet::{EventFilter, Registration, Stop, StoredEnding};
use worker_heartbeat::{
    Coordinator, DeathCause, HealthEndpoint, HeartbeatStore, HttpStore, MemoryStore, Registry,
};

use crate::support::coordinator::{Reply, exchange, request};

fn get(address: SocketAddr, path: &str, headers: &str) -> Reply {
    exchange(address, &request("GET", path, headers, b"")).expect(path)
}

/// A worker with this id dies.
fn die(store: &MemoryStore, id: &str) {
    let worker = Registration::new("indexer", id);
    let key = store.register(&[worker]).unwrap().remove(0);
    let ending = StoredEnding::dead(&DeathCause::Failed {
        error: "s3cret".into(),
    });
    store.stop(&[Stop::new(key, ending)]).unwrap();
}

fn ids(reply: &Reply) -> Vec<String> {
    let events = reply.json()["events"].as_array().unwrap().clone();
    let id = |event: &Value| event["worker"]["id"].as_str().unwrap().to_owned();
    events.iter().map(id).collect()
}

#[test]
fn the_events_of_a_store_are_read_from_a_cursor_on_and_strangers_see_no_reasons() {
    let store = MemoryStore::new();
    for id in ["a", "b", "c"] {
        die(&store, id);
    }
    let server = HealthEndpoint::new(&Registry::new())
        .fleet(store.clone())
        .serve("127.0.0.1:0")
        .unwrap();
    let address = server.local_addr();
    let latest = get(address, "/v1/fleet/events?limit=2", "");
    assert_eq!(latest.status, 200);
    assert_eq!(ids(&latest), ["b", "c"]);
    let json = latest.json();
    assert_eq!(json["more"], true);
    let event = &json["events"][1];
    assert_eq!(event["kind"], "died");
    assert_eq!(event["level"], "error");
    assert_eq!(event["text"], "died: failed: s3cret");
    assert!(event["at"].as_f64().unwrap() > 1_500_000_000.0, "{event}");
    let cursor = json["cursor"].as_u64().unwrap();
    die(&store, "d");
    let next = get(address, &format!("/v1/fleet/events?after={cursor}"), "");
    assert_eq!(ids(&next), ["d"]);
    let before = event["seq"].as_u64().unwrap();
    let path = format!("/v1/fleet/events?before={before}&level=error&type=indexer&group=local");
    assert_eq!(ids(&get(address, &path, "")), ["a", "b"]);
    assert_eq!(ids(&get(address, "/v1/fleet/events?worker=b", "")), ["b"]);
    // Through a proxy.
    let stranger = get(
        address,
        "/v1/fleet/events",
        "X-Forwarded-For: 203.0.113.7\r\n",
    );
    assert_eq!(ids(&stranger), ["a", "b", "c", "d"]);
    assert!(!stranger.body.contains("s3cret"), "{}", stranger.body);
    for wrong in ["limit=0", "limit=1001", "after=-1", "level=loud"] {
        let path = format!("/v1/fleet/events?{wrong}");
        assert_eq!(get(address, &path, "").status, 400, "{wrong}");
    }
}

#[test]
fn no_store_and_a_store_that_keeps_no_events_are_told_apart_from_an_empty_list() {
    let server = HealthEndpoint::new(&Registry::new())
        .serve("127.0.0.1:0")
        .unwrap();
    let none = get(server.local_addr(), "/v1/fleet/events", "");
    assert_eq!(none.status, 404);
    assert_eq!(none.json()["error"], "no store is attached");
    let empty = HealthEndpoint::new(&Registry::new())
        .fleet(MemoryStore::new())
        .serve("127.0.0.1:0")
        .unwrap();
    let empty = get(empty.local_addr(), "/v1/fleet/events", "");
    assert_eq!((empty.status, ids(&empty)), (200, Vec::new()));
}

/// Very many large events don't make an answer that is too large to be read.
#[test]
fn pages_of_large_events_are_cut_and_none_is_missing() {
    let store = MemoryStore::new();
    let text = "\u{1}".repeat(2_000);
    for n in 0..900 {
        let worker = Registration::new("indexer", format!("w-{n}"));
        let key = store.register(&[worker]).unwrap().remove(0);
        let error = text.clone();
        let ending = StoredEnding::dead(&DeathCause::Failed { error });
        store.stop(&[Stop::new(key, ending)]).unwrap();
    }
    let coordinator = Coordinator::new(store).serve("127.0.0.1:0").unwrap();
    let client = HttpStore::new(format!("http://{}", coordinator.local_addr())).unwrap();
    let mut filter = EventFilter::new().after(0).limit(1_000);
    let mut found = 0;
    let mut pages = 0;
    loop {
        let page = client.events(&filter).unwrap().expect("it keeps events");
        found += page.events.len();
        pages += 1;
        if !page.more {
            break;
        }
        filter = filter.after(page.cursor);
    }
    assert_eq!(found, 900);
    assert!(pages > 1, "{pages}");
    // Backward, too.
    let mut filter = EventFilter::new().limit(1_000);
    let mut found = 0;
    loop {
        let page = client.events(&filter).unwrap().expect("it keeps events");
        found += page.events.len();
        if !page.more {
            break;
        }
        filter = filter.before(page.events[0].seq);
    }
    assert_eq!(found, 900);
}
