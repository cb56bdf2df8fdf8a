//! The `events` command: what happened before, and what happens while it follows.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;
use worker_heartbeat::fleet::{Beat, Registration, Stop, StoredEnding};
use worker_heartbeat::{DeathCause, HeartbeatStore, SqliteStore, State};

use crate::fixtures::{Folder, ends, filled, monitor};

/// A worker stalls, then dies.
fn die(store: &SqliteStore, id: &str) {
    let worker = Registration::new("indexer", id);
    let key = store.register(&[worker]).unwrap().remove(0);
    let mut beat = Beat::new(key.clone(), State::Stalled);
    beat.status.reason = Some("no progress for 6 s, 5 s allowed".into());
    beat.status.last_location = Some("src/jobs.rs:42".into());
    beat.status.run_id = Some("run-7".into());
    beat.status.stack = Some("0: shop::stock::reserve\n1: shop::evil\u{1b}[2J".into());
    store.beat(&[beat]).unwrap();
    let error = "no disk".into();
    let ending = StoredEnding::dead(&DeathCause::Failed { error });
    store.stop(&[Stop::new(key, ending)]).unwrap();
}

#[test]
fn events_show_what_happened_with_the_reason_the_place_and_the_call_stack() {
    let folder = Folder::new("events");
    let (file, store) = filled(&folder);
    die(&store, "d-dead");
    let text = ends(&["events", "--sqlite", &file], 0);
    for part in [
        "WARN  worker d-dead: stalled: no progress for 6 s, 5 s allowed\n",
        "ERROR worker d-dead: died: failed: no disk\n",
        "  at src/jobs.rs:42, run run-7, type indexer, group local\n",
        "    0: shop::stock::reserve\n",
        "    1: shop::evil\\u{1b}[2J\n",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("c-stopped"), "{text}");
    let all = ends(&["events", "--sqlite", &file, "--level", "debug"], 0);
    assert!(
        all.contains("DEBUG worker c-stopped: stopped: by stop()"),
        "{all}"
    );
    let last = ends(&["events", "--sqlite", &file, "--json", "--limit", "1"], 0);
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["kind"], "died");
    assert_eq!(last["worker"]["id"], "d-dead");
    assert_eq!(last["text"], "died: failed: no disk");
    let other = ends(&["events", "--sqlite", &file, "--worker", "nobody"], 0);
    assert_eq!(other, "");
}

#[test]
fn events_that_are_followed_come_once_and_in_order() {
    let folder = Folder::new("follow");
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    die(&store, "w-0");
    let arguments = [
        "events", "--sqlite", &file, "--follow", "--json", "--level", "error",
    ];
    let mut follower = monitor(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next().expect("it goes on").unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        event["worker"]["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(next(), "w-0");
    for n in 1..=3 {
        die(&store, &format!("w-{n}"));
        if n == 2 {
            // It reads on after what it has seen.
            assert_eq!([next(), next()], ["w-1", "w-2"]);
        }
    }
    assert_eq!(next(), "w-3");
    follower.kill().unwrap();
    follower.wait().unwrap();
}
