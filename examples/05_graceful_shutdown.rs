//! On a signal, workers finish their current task; then the cleanups run in reverse order.
//!
//! ```text
//! cargo run --example 05_graceful_shutdown
//! cargo run --example 05_graceful_shutdown -- --seconds 2
//! ```
//!
//! Ctrl-C ends it; `--seconds N` ends it after N seconds.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use worker_heartbeat::{BoxError, Registry, Shutdown, Supervisor, WorkerHeartbeat};

fn main() -> Result<ExitCode, BoxError> {
    let Some(time_limit) = time_limit() else {
        eprintln!("Usage: 05_graceful_shutdown [--seconds N]");
        return Ok(ExitCode::from(2));
    };
    let shutdown = Shutdown::builder()
        // After that, the process exits with status 1, and names the workers that hung.
        .timeout(Duration::from_secs(5))
        // In the order of set-up: the first one runs last.
        .cleanup("close the database", || println!("closing the database"))
        .cleanup("write the cache", || println!("writing the cache"))
        .install()?;
    let supervisor = Supervisor::new(Registry::global());
    for id in ["copier-1", "copier-2"] {
        supervisor.spawn(WorkerHeartbeat::builder("copier").id(id), copy_books)?;
    }

    println!("copying; press Ctrl-C to stop");
    // Returns when a signal begins the shutdown, or after the time limit.
    if shutdown.receiver().recv_timeout(time_limit).is_err() {
        shutdown.trigger();
    }
    println!("shutting down; each copier finishes its page");
    let report = shutdown.wait();
    println!("ended by {}: {} hung", report.cause, report.hung.len());
    for worker in Registry::global().workers() {
        println!("{}: {}", worker.id(), worker.health());
    }
    Ok(report.exit_code())
}

/// `None` if the arguments are invalid.
fn time_limit() -> Option<Duration> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => Some(Duration::MAX),
        [option, seconds] if option == "--seconds" => {
            Some(Duration::from_secs(seconds.parse().ok()?))
        }
        _ => None,
    }
}

fn copy_books(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    for page in 1.. {
        if hb.stop_requested() {
            break;
        }
        let _task = hb.begin_task(format_args!("page-{page}"), "copying");
        thread::sleep(Duration::from_millis(300));
        println!("{} copied page {page}", hb.id());
    }
    Ok(())
}
