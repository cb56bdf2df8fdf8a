//! A fleet under faults: fifty workers in five processes, on PostgreSQL with a primary and a standby,
//! while processes are killed and stopped, rows are locked, connections are cut, and servers fail over.
//!
//! ```text
//! cargo bench --bench soak --features cli -- fleet
//! cargo bench --bench soak --features cli -- fleet --minutes 5 --seed 7
//! cargo bench --bench soak --features cli -- fleet --asynchronous
//! ```
//!
//! The standby is synchronous, so that no commit is lost in a failover; `--asynchronous` is the other
//! case. The faults come from a random sequence, whose seed is printed and can be given.

mod audit;
mod faults;
mod proxy;
#[path = "../../../tests/support/postgres.rs"]
mod server;
mod servers;
mod worker;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use worker_heartbeat::fleet::WorkerFilter;
use worker_heartbeat::{HeartbeatStore, PostgresOptions, PostgresStore, Sweeper};

use audit::Audit;
use faults::Faults;
use servers::Servers;
pub(crate) use worker::play;

pub(crate) const PROCESSES: usize = 5;
pub(crate) const WORKERS: usize = 10;
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// Longer than two calls to a store that time out.
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(15);
pub(crate) const TTL: Duration = Duration::from_secs(10);
pub(crate) const RUNS: u64 = 20;
const SCHEMA: &str = "soak";
/// The time without faults at the end, in which everything must become well.
const SETTLE: Duration = Duration::from_secs(30);

/// Microseconds, on one clock for all processes of the host.
pub(crate) fn micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// A sequence that depends on its seed only.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        // Never zero, which xorshift would keep.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

pub(crate) fn open(url: &str) -> PostgresStore {
    let options = PostgresOptions::new().schema(SCHEMA);
    options.connect_lazy(url).expect("a valid URL")
}

/// Runs for this time, and returns the table.
pub(crate) fn soak(time: Duration, seed: u64, synchronous: bool) -> String {
    println!("seed {seed}");
    let servers = Servers::start(synchronous);
    drop(
        PostgresOptions::new()
            .schema(SCHEMA)
            .connect(&servers.url())
            .expect("a server"),
    );
    let audit = Audit::start();
    let sweepers: Vec<_> = (0..2)
        .map(|_| {
            let audit = Arc::clone(&audit);
            let store = open(&servers.url());
            Sweeper::new(store.clone())
                .interval(INTERVAL)
                .on_report(move |swept| audit.swept(swept, &store))
                .start()
                .expect("a thread")
        })
        .collect();
    let mut faults = Faults::new(seed, servers, Arc::clone(&audit));
    faults.start_processes();
    let begun = Instant::now();
    let reader = open(&faults.url());
    // All workers are registered before the first fault.
    while well(&reader) < PROCESSES * WORKERS {
        assert!(begun.elapsed() < Duration::from_secs(120), "no start");
        thread::sleep(INTERVAL);
    }
    let begun = Instant::now();
    while begun.elapsed() < time {
        faults.next();
        if let Ok(workers) = reader.list(&WorkerFilter::new()) {
            audit.listed(&workers);
        }
    }
    faults.end();
    let settled = Instant::now();
    let all = PROCESSES * WORKERS;
    while well(&reader) < all && settled.elapsed() < SETTLE {
        thread::sleep(INTERVAL / 5);
    }
    let at_end = (well(&reader), settled.elapsed());
    faults.end_processes();
    drop(sweepers);
    let found = audit.found();
    table(time, seed, synchronous, &faults, &found, at_end)
}

fn well(store: &PostgresStore) -> usize {
    let workers = store.list(&WorkerFilter::new()).unwrap_or_default();
    let well = workers.iter().filter(|worker| worker.health().is_recent());
    well.count()
}

fn table(
    time: Duration,
    seed: u64,
    synchronous: bool,
    faults: &Faults,
    found: &audit::Found,
    (well, after): (usize, Duration),
) -> String {
    let mut rows = vec![
        "| work | measured | must reach | reached |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
    ];
    let mut row = |work: &str, measured: String, must: &str, reached: Option<bool>| {
        let reached = reached.map_or("-", |reached| if reached { "yes" } else { "**no**" });
        rows.push(format!("| {work} | {measured} | {must} | {reached} |"));
    };
    let minutes = time.as_secs_f64() / 60.0;
    let standby = if synchronous {
        "synchronous"
    } else {
        "asynchronous"
    };
    row(
        &format!(
            "{} workers in {PROCESSES} processes, a {standby} standby",
            PROCESSES * WORKERS
        ),
        format!("{minutes:.0} min, seed {seed}"),
        "-",
        None,
    );
    row("faults", faults.summary(), "-", None);
    row(
        "claims granted; writes of holders accepted, refused because of their fence",
        format!("{}; {}, {}", found.granted, found.accepted, found.refused),
        "-",
        None,
    );
    row(
        "sweeps; failed; workers marked offline while their process was killed or stopped",
        format!(
            "{}; {}; {}",
            found.sweeps, found.sweep_failures, found.true_deaths
        ),
        "-",
        None,
    );
    let mut zero = |work: &str, count: usize| row(work, count.to_string(), "0", Some(count == 0));
    zero(
        "workers marked offline while their process ran",
        found.false_deaths.len(),
    );
    zero(
        "runs with two holders that both believed in their lease",
        found.double_holders.len(),
    );
    zero(
        "fences that were granted twice, or are lower than one granted before",
        found.repeated_fences.len(),
    );
    zero(
        "incarnations of a worker that went back",
        found.lower_incarnations.len(),
    );
    let all = PROCESSES * WORKERS;
    row(
        "workers well after the last fault",
        format!("{well} of {all}, after {:.1} s", after.as_secs_f64()),
        &format!("{all} within {} s", SETTLE.as_secs()),
        Some(well == all),
    );
    for line in found.lines() {
        eprintln!("{line}");
    }
    rows.join("\n")
}
