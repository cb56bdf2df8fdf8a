//! Shared by the tests: a registry on a mock clock, and waits for conditions and events.
#![allow(dead_code, reason = "each test program uses its part")]

#[cfg(feature = "http")]
pub mod browser;
#[cfg(feature = "http")]
pub mod coordinator;
pub mod duties;
pub mod examples;
pub mod executor;
#[cfg(feature = "http")]
pub mod farm;
pub mod folder;
pub mod losing_proxy;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod process;
#[cfg(feature = "http")]
pub mod proxy;
pub mod retention;
pub mod store;
pub mod text_http;

use std::time::Duration;

use worker_heartbeat::{
    Builder, Event, EventKind, MockClock, Registry, State, Subscription, WorkerHeartbeat,
};

pub const SECOND: Duration = Duration::from_secs(1);
/// How long a test waits for something that real threads do, before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct World {
    pub time: MockClock,
    pub registry: Registry,
}

impl World {
    pub fn new() -> Self {
        let time = MockClock::new();
        let registry = Registry::with_clock(time.clock());
        Self { time, registry }
    }

    pub fn worker(&self, worker_type: &str) -> Builder {
        WorkerHeartbeat::builder(worker_type).registry(&self.registry)
    }

    pub fn seconds(&self, seconds: u32) {
        self.time.advance(SECOND * seconds);
    }

    pub fn millis(&self, millis: u64) {
        self.time.advance(Duration::from_millis(millis));
    }
}

/// A short name for an event, to compare sequences with.
pub fn name(event: &Event) -> String {
    match &event.kind {
        EventKind::Became(health) => health.state().to_string(),
        EventKind::Recovered { from, .. } => format!("recovered from {from}"),
        EventKind::Restarting { attempt, .. } => format!("restart {attempt}"),
        other => format!("{other:?}")
            .split([' ', '(', '{'])
            .next()
            .unwrap()
            .to_lowercase(),
    }
}

/// The names of the events received so far.
pub fn names(events: &Subscription) -> Vec<String> {
    events.try_iter().map(|event| name(&event)).collect()
}

/// Waits for an event with this name.
pub fn wait_for(events: &Subscription, wanted: &str) -> Event {
    loop {
        let event = events.recv_timeout(PATIENCE).expect(wanted);
        if name(&event) == wanted {
            return event;
        }
    }
}

/// Waits until a condition holds that real threads bring about.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "never so: {what}");
        // Real threads need real time; a millisecond keeps this loop off the processor.
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn state(hb: &WorkerHeartbeat) -> State {
    hb.health().state()
}

/// The threads of this process that are pacemakers.
pub fn pacemakers() -> Vec<i32> {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| {
            let task = task.ok()?;
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let is_one = name.trim() == "wh-pacemaker";
            is_one.then(|| task.file_name().to_str().unwrap().parse().unwrap())
        })
        .collect()
}
