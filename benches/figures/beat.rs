//! `beat()`: alone, inside work, and while another thread reads.

use std::hint::black_box;
use std::time::{Duration, Instant};

use beatwise::Monitor;
use worker_heartbeat::{Registry, WorkerHeartbeat};

use crate::allocations::requests_of;
use crate::background::{Pace, Reads, while_reading};
use crate::contest::{Contest, Plan, Spread, timed};
use crate::layouts;
use crate::rivals::{HandRolled, beatwise_task};
use crate::stopwatch::{Lap, Stopwatch};
use crate::table::{Table, Target, Unit};

pub(crate) fn measure(table: &mut Table) {
    let registry = Registry::new();
    let worker = WorkerHeartbeat::builder("worker")
        .registry(&registry)
        .start()
        .expect("a worker starts");
    alone(table, &worker);
    layouts::measure(table, &worker);
    while_others_read(table, &worker);
}

fn alone(table: &mut Table, worker: &WorkerHeartbeat) {
    let monitor = Monitor::new();
    let theirs = beatwise_task(&monitor, "worker".to_owned());
    let by_hand = HandRolled::default();

    let mut contest = Contest::new(Plan::SHORT);
    let ours = contest.enter(timed(|| black_box(worker).beat()));
    let beatwise = contest.enter(timed(|| black_box(&theirs).beat()));
    let hand_rolled = contest.enter(timed(|| black_box(&by_hand).beat()));
    let outcome = contest.run();

    table.add(
        "`beat()`, back to back",
        outcome.nanos(ours),
        Unit::Nanoseconds,
        Target::AtMost(2.5),
    );
    table.add(
        "beatwise's `beat()`",
        outcome.nanos(beatwise),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "hand-rolled beat (`SystemTime` into an `Arc<AtomicU64>`)",
        outcome.nanos(hand_rolled),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "`beat()` is faster than beatwise's",
        outcome.ratio(beatwise, ours),
        Unit::Times,
        Target::AtLeast(15.0),
    );
    table.add(
        "`beat()` is faster than hand-rolled",
        outcome.ratio(hand_rolled, ours),
        Unit::Times,
        Target::None,
    );
    let allocations = requests_of(|| (0..1_000_000).for_each(|_| black_box(worker).beat()));
    table.add(
        "allocations in 1 M `beat()`s",
        Spread::exactly(allocations as f64),
        Unit::Allocations,
        Target::Exactly(0.0),
    );
}

fn while_others_read(table: &mut Table, worker: &WorkerHeartbeat) {
    let probe = worker.probe();
    let is_recent = || black_box(&probe).is_recent();
    let each_millisecond = Pace::Each(Duration::from_millis(1));
    let mut contest = Contest::new(Plan::LONG);
    let alone = contest.enter(Box::new(|times| beats(worker, times).own));
    let tight = contest.enter(Box::new(|times| {
        while_reading(Pace::TightLoop, is_recent, |reads| {
            beats_while_read(worker, reads, times)
        })
    }));
    let now_and_then = contest.enter(Box::new(|times| {
        while_reading(each_millisecond, is_recent, |_| beats(worker, times).own)
    }));
    let outcome = contest.run();
    table.add(
        "`beat()` while another thread reads `is_recent()` in a tight loop",
        outcome.nanos(tight),
        Unit::Nanoseconds,
        Target::None,
    );
    table.add(
        "`beat()` with that reader, compared with alone",
        outcome.ratio(tight, alone),
        Unit::Times,
        Target::AtMost(2.0),
    );
    table.add(
        "`beat()` with a reader each 1 ms, compared with alone",
        outcome.ratio(now_and_then, alone),
        Unit::Times,
        Target::AtMost(1.05),
    );
}

#[inline(never)]
fn beats(worker: &WorkerHeartbeat, times: u64) -> Lap {
    let watch = Stopwatch::start();
    for _ in 0..times {
        black_box(worker).beat();
    }
    watch.lap()
}

/// Beats so many times while the reader really reads: on a machine that is busy it often waits for
/// a processor instead. In slices of some microseconds; what counts is the middle one.
fn beats_while_read(worker: &WorkerHeartbeat, reads: &Reads, times: u64) -> Duration {
    const SLICE: u64 = 20_000;
    const PATIENCE: Duration = Duration::from_millis(50);
    let (mut slices, begun) = (Vec::new(), Instant::now());
    while slices.is_empty()
        || (slices.len() as u64) < times.div_ceil(SLICE) && begun.elapsed() < PATIENCE
    {
        let before = reads.count();
        let Lap { whole, own } = beats(worker, SLICE);
        let read = u128::from(reads.count() - before);
        if whole == own && read * 500 >= whole.as_nanos() {
            slices.push(whole.as_nanos() as f64);
        }
    }
    let nanos = Spread::of(slices).median / SLICE as f64 * times as f64;
    Duration::from_nanos(nanos as u64)
}
