//! The work of a client, in a process of its own.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use worker_heartbeat::fleet::{Beat, HeartbeatStore, Registration, Sweep, WorkerFilter, WorkerKey};
use worker_heartbeat::{State, Thresholds};

use crate::measure::{own_cpu, peak_mb, report};
use crate::servers;

/// The workers in a call.
const BATCH: usize = 5_000;
const HOUR: Duration = Duration::from_secs(3_600);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Registers all workers, and sends their heartbeats.
    Fill,
    Summary,
    Counts,
    Worst,
    Page,
    Sweep,
}

impl Work {
    const ALL: [Self; 6] = [
        Self::Fill,
        Self::Summary,
        Self::Counts,
        Self::Worst,
        Self::Page,
        Self::Sweep,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Summary => "summary",
            Self::Counts => "counts",
            Self::Worst => "worst",
            Self::Page => "page",
            Self::Sweep => "sweep",
        }
    }
}

pub(crate) fn run(arguments: &[String]) {
    let [work, kind, location, schema, size, repeats] = arguments else {
        panic!("{arguments:?}");
    };
    let work = Work::ALL.into_iter().find(|one| one.name() == work);
    let store = servers::open(kind, location, schema);
    let size: usize = size.parse().expect("a number");
    let repeats: usize = repeats.parse().expect("a number");
    match work.expect("a work") {
        Work::Fill => fill(&*store, size, repeats),
        Work::Summary => read(repeats, || {
            drop(black_box(store.summary().expect("a summary")))
        }),
        Work::Counts => read(repeats, || {
            assert_eq!(store.counts().expect("counts").states.total(), size);
        }),
        Work::Worst => {
            let filter = WorkerFilter::new().limit(100);
            read(repeats, || {
                assert_eq!(store.worst_first(&filter).expect("a page").len(), 100);
            });
        }
        Work::Page => {
            let filter = WorkerFilter::new().after(id(size / 2)).limit(100);
            read(repeats, || {
                assert_eq!(store.list(&filter).expect("a page").len(), 100);
            });
        }
        Work::Sweep => sweep(&*store, size),
    }
    println!("memory {}", peak_mb("self"));
}

fn id(n: usize) -> String {
    format!("poller-{n:08}")
}

/// A worker; one with limits of its own is not judged by a sweep's threshold.
fn registration(n: usize, limits: bool) -> Registration {
    let mut registration = Registration::new(format!("poller-{}", n % 7), id(n));
    registration.info.group = format!("machine-{}", n / 1_000);
    registration.info.metadata = vec![("version".into(), "1.4.2".into())];
    if limits {
        registration.info.thresholds = Some(Thresholds::new(HOUR));
    }
    registration
}

fn beat(key: &WorkerKey, round: u64) -> Beat {
    let mut beat = Beat::new(key.clone(), State::Processing);
    beat.status.run_id = Some(format!("run-{round}"));
    beat.status.task = Some("Researching example.com".into());
    beat.status.progress = Some((round, 100));
    beat.status.beats = round;
    beat
}

fn beat_all(store: &dyn HeartbeatStore, keys: &[WorkerKey], round: u64) {
    for batch in keys.chunks(BATCH) {
        let beats: Vec<Beat> = batch.iter().map(|key| beat(key, round)).collect();
        drop(store.beat(&beats).expect("answers"));
    }
}

fn register(store: &dyn HeartbeatStore, numbers: &[usize], limits: bool) -> Vec<WorkerKey> {
    let batches = numbers.chunks(BATCH).flat_map(|batch| {
        let wanted: Vec<_> = batch.iter().map(|n| registration(*n, limits)).collect();
        store.register(&wanted).expect("keys")
    });
    batches.collect()
}

/// The parent notes what its servers have used so far.
fn mark(name: &str) {
    println!("{name}");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the parent");
}

fn fill(store: &dyn HeartbeatStore, size: usize, rounds: usize) {
    let numbers: Vec<usize> = (0..size).collect();
    let begun = Instant::now();
    let keys = register(store, &numbers, true);
    report(
        "registrations",
        &[size as f64 / begun.elapsed().as_secs_f64()],
    );
    // The first one fills what the rows have room for.
    beat_all(store, &keys, 0);
    mark("begin");
    let cpu = own_cpu();
    let rates = (1..=rounds as u64).map(|round| {
        let begun = Instant::now();
        beat_all(store, &keys, round);
        size as f64 / begun.elapsed().as_secs_f64()
    });
    let rates: Vec<f64> = rates.collect();
    report("cpu", &[own_cpu() - cpu]);
    mark("end");
    report("heartbeats", &rates);
    report("rows", &[(size * rounds) as f64]);
}

fn read(repeats: usize, mut once: impl FnMut()) {
    let begun = Instant::now();
    let mut millis = Vec::new();
    while millis.len() < repeats && begun.elapsed() < crate::PATIENCE {
        let started = Instant::now();
        once();
        millis.push(started.elapsed().as_secs_f64() * 1e3);
    }
    report("ms", &millis);
}

/// Sweeps that find no stale worker, one in a hundred, and thirty in a hundred.
fn sweep(store: &dyn HeartbeatStore, size: usize) {
    let timed = |stale: usize| {
        let mut sweep = Sweep::default();
        // Workers with limits of their own are not concerned.
        sweep.threshold = Duration::from_millis(10);
        let begun = Instant::now();
        let report = store.sweep(&sweep).expect("a report");
        let millis = begun.elapsed().as_secs_f64() * 1e3;
        assert!(report.success);
        assert_eq!(report.marked_offline.len(), stale);
        millis
    };
    let none: Vec<f64> = (0..3).map(|_| timed(0)).collect();
    report("none", &none);
    // Registered again without limits, so that the threshold judges them.
    let silence = |numbers: Vec<usize>| {
        let keys = register(store, &numbers, false);
        beat_all(store, &keys, 1);
        std::thread::sleep(Duration::from_millis(100));
        keys.len()
    };
    let one_percent = silence((0..size).filter(|n| n % 100 == 0).collect());
    report("hundredth", &[timed(one_percent)]);
    let third = silence((0..size).filter(|n| (1..31).contains(&(n % 100))).collect());
    let others: Vec<usize> = (0..size).filter(|n| n % 100 == 99).take(100).collect();
    let others = register(store, &others, true);
    let over = AtomicBool::new(false);
    let (millis, longest) = std::thread::scope(|scope| {
        let beating = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            let mut round = 0;
            while !over.load(Ordering::Acquire) {
                round += 1;
                let begun = Instant::now();
                beat_all(store, &others, round);
                longest = longest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            longest
        });
        let millis = timed(third);
        over.store(true, Ordering::Release);
        (millis, beating.join().expect("heartbeats"))
    });
    report("third", &[millis]);
    report("meanwhile", &[longest.as_secs_f64() * 1e3]);
}
