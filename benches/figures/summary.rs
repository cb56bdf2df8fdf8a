//! `summary()` of many workers, and what it does to those who register meanwhile.

use std::hint::black_box;
use std::time::Duration;

use beatwise::{HealthPolicy, Monitor};
use worker_heartbeat::{Registry, WorkerHeartbeat};

use crate::background::{Pace, Reads, while_reading};
use crate::contest::{Contest, Plan, Spread, percentile, timed};
use crate::population;
use crate::stopwatch::{Lap, Stopwatch};
use crate::table::{Table, Target, Unit};

/// At least so many in a repetition, in the time of at least so many summaries.
const REGISTRATIONS: usize = 20_000;
const SUMMARIES: u64 = 5;

pub(crate) fn measure(table: &mut Table) {
    let worlds = [(1_000, "1 k"), (100_000, "100 k"), (1_000_000, "1 M")].map(|(size, said)| {
        let (registry, monitor) = (Registry::new(), Monitor::new());
        let ours = population::mixed(&registry, size);
        let theirs = population::of_beatwise(&monitor, size);
        (said, registry, monitor, ours, theirs)
    });

    let mut contest = Contest::new(Plan::HEAVY);
    let pairs = worlds.each_ref().map(|(said, registry, monitor, ours, _)| {
        let size = ours.len() as f64;
        let ours = contest.enter(timed(move || black_box(registry).summary()));
        let liveness = HealthPolicy::liveness();
        let theirs = contest.enter(timed(move || black_box(monitor).summary(liveness)));
        (said, size, ours, theirs)
    });
    let outcome = contest.run();

    let [(_, small, few, _), .., (largest, large, many, _)] = pairs;
    for (said, size, ours, theirs) in pairs {
        let for_largest = |target| {
            if said == largest {
                target
            } else {
                Target::None
            }
        };
        let per_worker = |who| outcome.compare(|round| round[who] / size);
        table.add(
            format!("`summary()` of {said} workers, a worker"),
            per_worker(ours),
            Unit::Nanoseconds,
            for_largest(Target::AtMost(10.0)),
        );
        table.add(
            format!("beatwise's `summary()` of {said} tasks, a task"),
            per_worker(theirs),
            Unit::Nanoseconds,
            Target::None,
        );
        table.add(
            format!("`summary()` is faster than beatwise's, {said}"),
            outcome.ratio(theirs, ours),
            Unit::Times,
            for_largest(Target::AtLeast(30.0)),
        );
    }
    table.add(
        "`summary()` is linear: a worker of 1 M, compared with one of 1 k",
        outcome.compare(|round| (round[many] / large) / (round[few] / small)),
        Unit::Times,
        Target::AtMost(2.0),
    );

    let [.., (_, registry, _, _, theirs)] = worlds;
    drop(theirs);
    registering(table, &registry);
}

fn registering(table: &mut Table, registry: &Registry) {
    let repetitions: Vec<Vec<Lap>> = (0..5)
        .map(|_| {
            while_reading(
                Pace::TightLoop,
                || black_box(registry).summary(),
                |summaries| registrations(registry, summaries),
            )
        })
        .collect();
    let figure = |time: fn(&Lap) -> Duration, percent| {
        Spread::of(repetitions.iter().map(|laps| {
            let mut micros: Vec<f64> = laps
                .iter()
                .map(|lap| time(lap).as_secs_f64() * 1e6)
                .collect();
            micros.sort_by(f64::total_cmp);
            percentile(&micros, percent)
        }))
    };
    let own = |lap: &Lap| lap.own;
    let whole = |lap: &Lap| lap.whole;
    table.add(
        "registering while a `summary()` of 1 M runs in a loop: p50",
        figure(own, 50.0),
        Unit::Microseconds,
        Target::None,
    );
    table.add(
        "registering meanwhile: p99",
        figure(own, 99.0),
        Unit::Microseconds,
        Target::AtMost(100.0),
    );
    let count: usize = repetitions.iter().map(Vec::len).sum();
    table.add(
        format!("registering meanwhile: the longest of {count}"),
        Spread::exactly(figure(own, 100.0).max),
        Unit::Microseconds,
        Target::AtMost(10_000.0),
    );
    table.add(
        "registering meanwhile: the longest, with what else the machine did in it",
        Spread::exactly(figure(whole, 100.0).max),
        Unit::Microseconds,
        Target::None,
    );
}

/// How long each of many registrations took. While the summary is not run, they do not end.
fn registrations(registry: &Registry, summaries: &Reads) -> Vec<Lap> {
    let enough = summaries.count() + SUMMARIES;
    let (mut workers, mut laps) = (Vec::new(), Vec::new());
    while laps.len() < REGISTRATIONS || summaries.count() < enough {
        let watch = Stopwatch::start();
        let worker = WorkerHeartbeat::builder("indexer")
            .registry(registry)
            .start();
        laps.push(watch.lap());
        workers.push(worker.expect("a worker starts"));
    }
    laps
}
