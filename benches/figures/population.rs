//! Many workers.

use std::time::Duration;

use beatwise::{Heartbeat, Monitor};
use worker_heartbeat::{Activity, Registry, WorkerHeartbeat};

use crate::rivals::beatwise_task;

const TYPES: [&str; 5] = [
    "indexer",
    "crawler",
    "mailer",
    "billing",
    "company_research",
];

/// Workers of five types, three of them with an allowance for stalls; a third each at work, idle
/// and at a task. Who is what is random, so that nothing is gained by guessing it.
pub(crate) fn mixed(registry: &Registry, count: usize) -> Vec<WorkerHeartbeat> {
    let mut dice = Dice::new(count as u64);
    (0..count)
        .map(|_| {
            let kind = dice.roll(TYPES.len());
            let mut builder = WorkerHeartbeat::builder(TYPES[kind]).registry(registry);
            if kind >= TYPES.len() / 2 {
                builder = builder.stall_after(Duration::from_secs(300));
            }
            let worker = builder.start().expect("a worker starts");
            match dice.roll(3) {
                0 => worker.beat(),
                1 => worker.mark_idle(),
                _ => worker.update_task("run-123", "Indexing", Activity::Processing),
            }
            worker
        })
        .collect()
}

/// As many tasks of beatwise, each with a name of its own, all healthy.
pub(crate) fn of_beatwise(monitor: &Monitor, count: usize) -> Vec<Heartbeat> {
    (0..count)
        .map(|number| {
            let kind = TYPES[number % TYPES.len()];
            let task = beatwise_task(monitor, format!("{kind}-12345-{number}"));
            task.beat().expect("it has not stopped");
            task
        })
        .collect()
}

/// A xorshift generator.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }
}
