//! `is_recent()`: what a health handler asks.

use std::hint::black_box;
use std::time::{Duration, Instant};

use beatwise::Monitor;
use worker_heartbeat::{Registry, WorkerHeartbeat};

use crate::allocations::requests_of;
use crate::contest::{Contest, Plan, Spread, timed};
use crate::population::{self, Dice};
use crate::rivals::{HandRolled, beatwise_task};
use crate::table::{Table, Target, Unit};

pub(crate) fn measure(table: &mut Table) {
    let registry = Registry::new();
    let worker = WorkerHeartbeat::builder("worker")
        .registry(&registry)
        .start()
        .expect("a worker starts");
    worker.beat();
    let monitor = Monitor::new();
    let theirs = beatwise_task(&monitor, "worker".to_owned());
    theirs.beat().expect("it has not stopped");
    let by_hand = HandRolled::default();
    by_hand.beat();
    let stale_after = Duration::from_secs(90);

    let mut contest = Contest::new(Plan::SHORT);
    let ours = contest.enter(timed(|| black_box(&worker).is_recent()));
    let clock = contest.enter(timed(Instant::now));
    let beatwise = contest.enter(timed(|| black_box(&monitor).status(theirs.id())));
    let hand_rolled = contest.enter(timed(|| black_box(&by_hand).is_recent(stale_after)));
    let outcome = contest.run();

    table.add(
        "`is_recent()`",
        outcome.nanos(ours),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "`Instant::now()`",
        outcome.nanos(clock),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "`is_recent()`, compared with `Instant::now()`",
        outcome.ratio(ours, clock),
        Unit::Times,
        Target::AtMost(1.5),
    );
    table.add(
        "beatwise's `status()`, with one task",
        outcome.nanos(beatwise),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "hand-rolled check of the age",
        outcome.nanos(hand_rolled),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "`is_recent()` is faster than beatwise's `status()`",
        outcome.ratio(beatwise, ours),
        Unit::Times,
        Target::None,
    );
    of_many(table);
    let allocations = requests_of(|| {
        for _ in 0..1_000_000 {
            black_box(black_box(&worker).is_recent());
        }
    });
    table.add(
        "allocations in 1 M `is_recent()`s",
        Spread::exactly(allocations as f64),
        Unit::Allocations,
        Target::Exactly(0.0),
    );
}

/// As a health handler does that asks for one of many: what it needs is in no near cache.
fn of_many(table: &mut Table) {
    const WORKERS: usize = 100_000;
    let (registry, monitor) = (Registry::new(), Monitor::new());
    let workers = population::mixed(&registry, WORKERS);
    let tasks = population::of_beatwise(&monitor, WORKERS);
    let mut dice = (Dice::new(1), Dice::new(1));

    let mut contest = Contest::new(Plan::SHORT);
    let ours = contest.enter(timed(|| workers[dice.0.roll(WORKERS)].is_recent()));
    let beatwise = contest.enter(timed(|| monitor.status(tasks[dice.1.roll(WORKERS)].id())));
    let outcome = contest.run();
    table.add(
        "`is_recent()` of any of 100 k workers",
        outcome.nanos(ours),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "beatwise's `status()` of any of 100 k tasks",
        outcome.nanos(beatwise),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "`is_recent()` is faster than beatwise's `status()`, any of 100 k",
        outcome.ratio(beatwise, ours),
        Unit::Times,
        Target::None,
    );
}
