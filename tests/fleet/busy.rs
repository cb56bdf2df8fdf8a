//! A store that is busy with one worker: it is asked again after pauses that grow, and others are not
//! affected.

use crate::support::store::{Mode, TestStore};
use crate::support::{PATIENCE, SECOND, World, eventually};
use worker_heartbeat::fleet::WorkerFilter;
use worker_heartbeat::{Activity, FleetConfig, HeartbeatStore, MemoryStore, State};

#[test]
fn a_worker_whose_record_is_locked_is_sent_again_alone_and_its_end_is_not_lost() {
    let world = World::new();
    let memory = MemoryStore::with_clock(world.time.clock());
    let store = TestStore::new(memory.clone());
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let start = |id: &str| {
        let hb = world
            .worker("poller")
            .id(id)
            .interval(8 * SECOND)
            .start()
            .unwrap();
        hb.beat();
        hb
    };
    let (a, b) = (start("a"), start("b"));
    assert!(attachment.flush(PATIENCE));
    let row = |id: &str| {
        let rows = memory.list(&WorkerFilter::new()).unwrap();
        rows.into_iter().find(|row| row.key.id == id).expect(id)
    };
    let task = |id: &str| row(id).status.task;

    store.set(Mode::Locked("a".into()));
    drop(store.take_beats());
    for hb in [&a, &b] {
        hb.update_task("run-1", "Researching", Activity::Processing);
    }
    world.seconds(1);
    eventually("the other one's task", || task("b").is_some());
    // Its pauses: 200 ms, 400 ms, 800 ms, 1.6 s, and then a quarter of its interval.
    for _ in 0..100 {
        world.millis(100);
    }
    assert_eq!(task("a"), None);
    let sent = store.take_beats();
    let alone = sent.iter().filter(|beats| **beats == 1).count();
    assert!((4..=12).contains(&alone), "{sent:?}");
    assert!(sent.len() < 16, "{sent:?}");
    assert!(
        !attachment.flush(SECOND / 100),
        "the store lacks a heartbeat"
    );
    assert_eq!(attachment.status().failures, 0);

    a.fail("no disk");
    b.fail("no disk");
    world.seconds(4);
    eventually("the other one's end", || {
        row("b").health().state() == State::Dead
    });
    assert_eq!(row("a").ending, None);
    store.recover();
    world.seconds(4);
    eventually("its end", || row("a").health().state() == State::Dead);
    assert!(attachment.flush(PATIENCE));
}
