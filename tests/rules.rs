//! Every rule of the design, by name, on the mock clock.

use std::time::Duration;

use worker_heartbeat::{
    Activity, Builder, EventKind, Health, MockClock, Registry, StallCause, State, WorkerHeartbeat,
};

const SECOND: Duration = Duration::from_secs(1);

struct World {
    time: MockClock,
    registry: Registry,
}

impl World {
    fn new() -> Self {
        let time = MockClock::new();
        let registry = Registry::with_clock(time.clock());
        Self { time, registry }
    }

    fn worker(&self, worker_type: &str) -> Builder {
        WorkerHeartbeat::builder(worker_type).registry(&self.registry)
    }
}

#[test]
fn smoke() {
    let world = World::new();
    let hb = world
        .worker("w")
        .stall_after(100 * SECOND)
        .start()
        .unwrap();
    assert_eq!(hb.health().state(), State::Starting);
    let events = world.registry.subscribe();
    hb.beat();
    assert_eq!(hb.health().state(), State::Active);
    hb.update_task("run-1", "x", Activity::Processing);
    assert!(hb.is_recent());
    world.time.advance(100 * SECOND);
    assert!(hb.is_recent());
    world.time.advance(SECOND);
    println!("{}", hb.health());
    println!("{}", hb.snapshot());
    assert!(!hb.is_recent());
    world.time.suspend(3600 * SECOND);
    hb.beat();
    assert!(hb.is_recent());
    world.time.advance(SECOND);
    for e in events.try_iter() {
        println!("{e}");
    }
    let started = std::time::Instant::now();
    for _ in 0..10_000 {
        world.time.advance(SECOND);
    }
    println!("{:?}", started.elapsed());
    let started = std::time::Instant::now();
    world.time.advance(SECOND * 86400 * 100);
    println!("{:?}", started.elapsed());
    drop(hb);
    println!("{}", world.registry.summary());
    let _ = (EventKind::Registered, StallCause::Unknown, Health::Idle);
}
