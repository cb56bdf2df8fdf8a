//! `update_task()` with buffers that are large enough.

use std::hint::black_box;
use std::time::Duration;

use worker_heartbeat::{Activity, Registry, WorkerHeartbeat};

use crate::allocations::requests_of;
use crate::background::{Pace, while_reading};
use crate::contest::{Contest, Plan, Spread};
use crate::stopwatch::Stopwatch;
use crate::table::{Table, Target, Unit};

pub(crate) fn measure(table: &mut Table) {
    let registry = Registry::new();
    let worker = WorkerHeartbeat::builder("worker")
        .registry(&registry)
        .start()
        .expect("a worker starts");
    let probe = worker.probe();
    update(&worker, 2);

    let timed = |times| {
        let watch = Stopwatch::start();
        update(&worker, times);
        watch.lap().own
    };
    let mut contest = Contest::new(Plan::LONG);
    let alone = contest.enter(Box::new(timed));
    let while_read = contest.enter(Box::new(|times| {
        let each = Pace::Each(Duration::from_millis(1));
        while_reading(each, || black_box(&probe).snapshot(), |_| timed(times))
    }));
    let same_run = contest.enter(Box::new(|times| {
        let watch = Stopwatch::start();
        update_within_a_run(&worker, times);
        watch.lap().own
    }));
    let outcome = contest.run();

    table.add(
        "`update_task()`, another run and text each time",
        outcome.nanos(alone),
        Unit::Nanoseconds,
        Target::AtMost(40.0),
    );
    table.add(
        "`update_task()` while another thread reads `snapshot()` each 1 ms",
        outcome.nanos(while_read),
        Unit::Nanoseconds,
        Target::AtMost(40.0),
    );
    table.add(
        "`update_task()`, the same run and text",
        outcome.nanos(same_run),
        Unit::Nanoseconds,
        Target::AtMost(40.0),
    );
    let allocations = requests_of(|| update(&worker, 1_000_000));
    table.add(
        "allocations in 1 M `update_task()`s",
        Spread::exactly(allocations as f64),
        Unit::Allocations,
        Target::Exactly(0.0),
    );
}

fn update(worker: &WorkerHeartbeat, times: u64) {
    const TASKS: [(&str, &str); 2] = [
        ("run-123", "Researching example.com"),
        ("run-124", "Researching example.org"),
    ];
    for turn in 0..times {
        let (run_id, task) = TASKS[turn as usize % 2];
        black_box(worker).update_task(black_box(run_id), black_box(task), Activity::Processing);
    }
}

fn update_within_a_run(worker: &WorkerHeartbeat, times: u64) {
    for _ in 0..times {
        let (run_id, task) = black_box(("run-123", "Researching example.com"));
        black_box(worker).update_task(run_id, task, Activity::Processing);
    }
}
