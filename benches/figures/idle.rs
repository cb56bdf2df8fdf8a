//! What 100 k workers cost that do nothing.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{Registry, WorkerHeartbeat};

use crate::allocations::bytes_in_use;
use crate::contest::Spread;
use crate::table::{Table, Target, Unit};

const WORKERS: usize = 100_000;

pub(crate) fn measure(table: &mut Table) {
    let mut workers = Vec::with_capacity(WORKERS);
    let threads_before = threads().len();
    let bytes_before = bytes_in_use();
    let registry = Registry::new();
    for _ in 0..WORKERS {
        let worker = WorkerHeartbeat::builder("indexer")
            .registry(&registry)
            .start()
            .expect("a worker starts");
        worker.beat();
        worker.mark_idle();
        workers.push(worker);
    }
    let bytes = bytes_in_use() - bytes_before;
    table.add(
        "heap for an idle worker of 100 k, names included, its handle not",
        Spread::exactly(bytes as f64 / WORKERS as f64),
        Unit::Bytes,
        Target::AtMost(192.0),
    );
    table.add(
        "background threads for 100 k workers",
        Spread::exactly((threads().len() - threads_before) as f64),
        Unit::Threads,
        Target::Exactly(1.0),
    );
    // The first look at so many new workers is not what they cost from then on.
    thread::sleep(Duration::from_secs(3));
    table.add(
        "100 k idle workers: share of one core, whole process",
        Spread::of((0..4).map(|_| processor_share(Duration::from_secs(2)))),
        Unit::Percent,
        Target::AtMost(0.5),
    );
}

/// The kernel's ids of this process's threads.
fn threads() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/task").expect("/proc is mounted: this runs on Linux");
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Share of one core that the process uses while this thread sleeps, in percent.
fn processor_share(window: Duration) -> f64 {
    let (begun, before) = (Instant::now(), processor_nanos());
    thread::sleep(window);
    let used = processor_nanos() - before;
    used as f64 / begun.elapsed().as_nanos() as f64 * 100.0
}

/// Time that all threads of the process have run.
fn processor_nanos() -> u64 {
    let of_thread = |thread: &String| {
        let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    threads().iter().filter_map(of_thread).sum()
}
