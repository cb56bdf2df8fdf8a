//! The dashboard: the health of all workers of a process, with reasons, on one page.
//!
//! ```text
//! cargo run --example dashboard --features http
//! ```
//!
//! Open the address that it prints. Some workers work or wait, one fails and is restarted, one hangs.
//! Ctrl-C ends the example; `-- --seconds N` ends it after N seconds. A button of the page switches to
//! the fleet: the workers of all processes in a store, here those of one process.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    BoxError, FleetConfig, HealthEndpoint, MemoryStore, Registry, Restart, Shutdown, Supervisor,
    WorkerHeartbeat,
};

/// Short, so that the stall shows soon.
const STALL_AFTER: Duration = Duration::from_secs(5);

fn main() -> Result<ExitCode, BoxError> {
    let time_limit = time_limit(std::env::args().skip(1))?;
    let registry = Registry::global();
    let shutdown = Shutdown::builder().registry(registry).install()?;
    let store = MemoryStore::new();
    let _attachment = registry.attach(store.clone(), FleetConfig::new())?;
    let server = HealthEndpoint::new(registry)
        .shutdown(&shutdown)
        .fleet(store)
        .serve("127.0.0.1:0")?;

    let supervisor = Supervisor::new(registry).restart(
        Restart::on_failure()
            .max(20)
            .within(Duration::from_secs(60))
            .backoff(Duration::from_secs(2), Duration::from_secs(5)),
    );
    registry.expect_workers("indexer", 2);
    for n in 1..=3 {
        let builder = worker("crawler").id(format!("crawler-{n}"));
        supervisor.spawn(builder, move |hb| crawl(hb, n))?;
    }
    for n in 1..=2 {
        supervisor.spawn(worker("indexer").id(format!("indexer-{n}")), index)?;
    }
    supervisor.spawn(worker("mailer").id("mailer"), rest)?;
    supervisor.spawn(worker("payments").id("payments"), hang)?;
    println!("Press Ctrl-C to stop.");
    println!("http://{}/", server.local_addr());

    let begun = Instant::now();
    let asked = shutdown.receiver();
    let left = time_limit.map_or(Duration::MAX, |limit| limit.saturating_sub(begun.elapsed()));
    let _ = asked.recv_timeout(left);
    shutdown.trigger();
    Ok(shutdown.wait().exit_code())
}

fn time_limit(mut arguments: impl Iterator<Item = String>) -> Result<Option<Duration>, BoxError> {
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => Ok(None),
        (Some("--seconds"), Some(seconds)) => Ok(Some(Duration::from_secs(seconds.parse()?))),
        _ => Err("usage: dashboard [--seconds N]".into()),
    }
}

fn worker(worker_type: &str) -> worker_heartbeat::Builder {
    WorkerHeartbeat::builder(worker_type).stall_after(STALL_AFTER)
}

/// Works page by page.
fn crawl(hb: &WorkerHeartbeat, n: u64) -> Result<(), BoxError> {
    for run in 1_u64.. {
        let task = hb.begin_task(
            format_args!("run-{run}"),
            format_args!("reading example-{n}.com"),
        );
        for page in 0..=40 {
            task.progress(page, 40);
            if stops_within(hb, Duration::from_millis(200 + 50 * n)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Works for a while, and panics: its supervisor restarts it.
fn index(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    let task = hb.begin_task("segment-7", "merging segments");
    for step in 0..8 {
        task.progress(step, 12);
        if stops_within(hb, Duration::from_secs(1)) {
            return Ok(());
        }
    }
    let segments: Vec<u8> = Vec::new();
    let first = segments.first().expect("segment 7 is empty");
    println!("{first}");
    Ok(())
}

/// Waits for work, which is well.
fn rest(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    hb.mark_idle();
    while !stops_within(hb, Duration::from_secs(60)) {}
    Ok(())
}

/// Makes no progress. It checks for the stop request only so that the example can end.
fn hang(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    let _task = hb.begin_task("order-17", "waiting for the bank's answer");
    while !stops_within(hb, Duration::from_secs(60)) {}
    Ok(())
}

/// Sleeps until the pause is over or the worker is asked to stop. Returns whether it is.
fn stops_within(hb: &WorkerHeartbeat, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    while !hb.stop_requested() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    hb.stop_requested()
}
