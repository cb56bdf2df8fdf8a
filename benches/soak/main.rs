//! Ten minutes of requests, scrapes and an open dashboard, while workers crash, hang and restart.
//!
//! ```text
//! cargo bench --bench soak --features http,prometheus
//! cargo bench --bench soak --features http,prometheus -- --minutes 1
//! cargo bench --bench soak --features http,prometheus -- --write docs/BENCHMARKS.md
//! ```
//!
//! With `fleet`, and the feature `cli`, an hour of a fleet on PostgreSQL, under faults: see `fleet/mod.rs`.
//!
//! The service is a process of its own, so that its memory is its own. What it says of each worker is
//! compared with what the worker really did.

mod client;
#[cfg(feature = "cli")]
mod fleet;
mod service;

#[path = "../figures/page.rs"]
mod page;

use std::time::Duration;

use client::Load;
use service::Service;

/// Longer than anything takes to fill its caches and its history.
const WARM_UP: Duration = Duration::from_secs(30);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "--serve") {
        return service::serve();
    }
    #[cfg(feature = "cli")]
    if arguments
        .first()
        .is_some_and(|word| word == "--fleet-process")
    {
        return fleet::play(&arguments[1..]);
    }
    // Cargo's own: `cargo bench` passes it, `cargo test --all-targets` does not.
    if !arguments.iter().any(|word| word == "--bench") {
        println!("run by `cargo bench`, this measures; otherwise it does nothing");
        return;
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|word| word == name)?;
        arguments.get(at + 1)
    };
    let is_fleet = arguments.iter().any(|word| word == "fleet");
    let (name, default) = if is_fleet {
        ("soak fleet", 60.0)
    } else {
        ("soak", 10.0)
    };
    let minutes: f64 = value("--minutes").map_or(default, |text| text.parse().expect("minutes"));
    let time = Duration::from_secs_f64(minutes * 60.0);
    let file = value("--write");
    if let Some(file) = file {
        page::check(file, name).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let table = if is_fleet {
        let seed = value("--seed").map(|text| text.parse().expect("a number"));
        let synchronous = !arguments.iter().any(|word| word == "--asynchronous");
        soak_fleet(time, seed, synchronous)
    } else {
        soak(time)
    };
    println!("{table}");
    if let Some(file) = file {
        page::rewrite(file, name, &table).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

#[cfg(feature = "cli")]
fn soak_fleet(time: Duration, seed: Option<u64>, synchronous: bool) -> String {
    let seed = seed.unwrap_or_else(|| fleet::micros() % 1_000_000);
    fleet::soak(time, seed, synchronous)
}

#[cfg(not(feature = "cli"))]
fn soak_fleet(_: Duration, _: Option<u64>, _: bool) -> String {
    panic!("`fleet` needs the feature cli");
}

fn soak(time: Duration) -> String {
    let service = Service::start();
    let dashboards: Vec<_> = (0..3).map(|_| client::dashboard(service.address)).collect();
    let scrapes = client::scrapes(service.address);
    // As much as later, so that memory has what it needs.
    Load::run(service.address, 2_000, WARM_UP);
    let before = service.resident_kb();
    let mut load = Load::run(service.address, 2_000, time / 2);
    let middle = service.resident_kb();
    load.join(Load::run(service.address, 2_000, time / 2));
    let after = service.resident_kb();
    let mut burst = Load::run(service.address, 10_000, Duration::from_secs(30).min(time));
    let messages: Vec<usize> = dashboards.into_iter().map(client::Reader::end).collect();
    let scraped = scrapes.end();
    let truth = service.end();

    let yes = |reached: bool| if reached { "yes" } else { "**no**" };
    let mut rows = vec![
        "| work | measured | must reach | reached |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
    ];
    let mut row = |work: &str, measured: String, must: &str, reached: Option<bool>| {
        let reached = reached.map_or("-", yes);
        rows.push(format!("| {work} | {measured} | {must} | {reached} |"));
    };
    let growth = |from: u64, to: u64| 100.0 * (to as f64 - from as f64) / from as f64;
    let (first, second) = (growth(before, middle), growth(middle, after));
    let minutes = time.as_secs_f64() / 60.0;
    row(
        &format!("requests in {minutes:.0} min, due at fixed times"),
        format!("{} ({:.0}/s)", load.answered(), load.rate()),
        "2000/s",
        Some(load.rate() >= 1_990.0),
    );
    row(
        "requests without an answer as it should be",
        load.failed.to_string(),
        "0",
        Some(load.failed == 0),
    );
    row(
        "`/livez` from when it was due: p50",
        millis(load.percentile(0.5)),
        "-",
        None,
    );
    let p99 = load.percentile(0.99);
    row(
        "`/livez`: p99",
        millis(p99),
        "<= 10 ms",
        Some(p99 <= 10_000),
    );
    row(
        "`/livez`: p99.9, longest",
        format!(
            "{}, {}",
            millis(load.percentile(0.999)),
            millis(load.percentile(1.0))
        ),
        "-",
        None,
    );
    row(
        "resident memory of the service: at the beginning, in the middle, at the end",
        format!("{before} kB, {middle} kB ({first:+.1} %), {after} kB ({second:+.1} %)"),
        "flat: second half within 3 %",
        Some(second <= 3.0),
    );
    row(
        "panics, errors and hangs of its workers meanwhile",
        truth.faults.to_string(),
        "-",
        None,
    );
    row(
        "states of workers compared with what they did: wrong",
        format!("{} of {}", truth.wrong, truth.compared),
        "0",
        Some(truth.wrong == 0),
    );
    row(
        "scrapes of `/metrics`; messages to three open dashboards",
        format!("{scraped}; {}", messages.iter().sum::<usize>()),
        "-",
        None,
    );
    row(
        "`/livez` at 10,000 requests/s: answered, p50, p99",
        format!(
            "{:.0}/s, {}, {}",
            burst.rate(),
            millis(burst.percentile(0.5)),
            millis(burst.percentile(0.99))
        ),
        "bounded",
        Some(burst.failed == 0),
    );
    assert!(
        scraped > 0 && messages.iter().all(|count| *count > 0),
        "{scraped} {messages:?}"
    );
    for wrong in truth.examples {
        eprintln!("wrong: {wrong}");
    }
    rows.join("\n")
}

fn millis(micros: u32) -> String {
    format!("{:.2} ms", f64::from(micros) / 1e3)
}
