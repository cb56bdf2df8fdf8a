//! What happens to a worker ends the process in good order, with status 1 and the reason.
//!
//! ```text
//! cargo run --example 18_escalation -- stall
//! cargo run --example 18_escalation -- give-up
//! cargo run --example 18_escalation -- die
//! cargo run --example 18_escalation -- panic
//! cargo run --example 18_escalation -- miss
//! cargo run --example 18_escalation -- well /tmp/drain /dev/termination-log
//! ```
//!
//! `well` works until Ctrl-C. With a first file, it also ends when that file is touched, as a
//! pre-stop hook does. A second file, if it exists, gets the reason, as Kubernetes expects it.

use std::thread;
use std::time::Duration;

use worker_heartbeat::{
    BoxError, Registry, Restart, Shutdown, ShutdownReport, Supervisor, Trigger, WorkerHeartbeat,
};

/// Minutes, in a real service.
const STALLED: Duration = Duration::from_millis(500);
const MISSING: Duration = Duration::from_secs(1);

fn main() -> Result<ShutdownReport, BoxError> {
    let mut arguments = std::env::args().skip(1);
    let scene = arguments.next().unwrap_or_default();
    let mut builder = Shutdown::builder()
        .timeout(Duration::from_secs(5))
        // The first that applies counts.
        .on(Trigger::GaveUp)
        .on(Trigger::StalledFor(STALLED))
        .on(Trigger::MissingFor(MISSING))
        .on(Trigger::DeadType("cache"))
        .on(Trigger::UncaughtPanic)
        .cleanup("close the index", || println!("closing the index"));
    if let Some(path) = arguments.next() {
        builder = builder.on_file(path);
    }
    if let Some(path) = arguments.next() {
        builder = builder.termination_message(path);
    }
    let shutdown = builder.install()?;

    let registry = Registry::global();
    let restart = Restart::on_failure().max(2);
    let restart = restart.backoff(Duration::from_millis(10), Duration::from_millis(10));
    let supervisor = Supervisor::new(registry).restart(restart);
    let indexer = WorkerHeartbeat::builder("indexer").id("indexer-1");
    let of_indexer = scene.clone();
    supervisor.spawn(indexer.stall_after(Duration::from_millis(500)), move |hb| {
        index(hb, &of_indexer)
    })?;
    match &*scene {
        "die" => {
            let cache = WorkerHeartbeat::builder("cache").id("cache-1").start()?;
            cache.fail("no memory");
        }
        "panic" => drop(thread::spawn(|| {
            // No worker, and nobody joins it.
            let rates: Vec<u32> = Vec::new();
            println!("{}", rates[3]);
        })),
        "miss" => registry.expect_workers("mailer", 2),
        _ => {}
    }
    println!("working");
    let report = shutdown.wait();
    println!("{report}");
    Ok(report)
}

fn index(hb: &WorkerHeartbeat, scene: &str) -> Result<(), BoxError> {
    let stop = hb.stop_receiver();
    for page in 1.. {
        let _task = hb.begin_task(format_args!("page-{page}"), "indexing");
        match scene {
            // Waits for an answer that does not come.
            "stall" => return Ok(stop.recv()?),
            "give-up" => return Err("disk full".into()),
            _ => {}
        }
        if stop.recv_timeout(Duration::from_millis(50)).is_ok() {
            break;
        }
        println!("indexed page {page}");
    }
    Ok(())
}
