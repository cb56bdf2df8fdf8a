//! A worker announces a long call, so that the call is not reported as a stall.
//!
//! ```text
//! cargo run --example 07_expect_silence
//! ```

use std::thread;
use std::time::Duration;

use worker_heartbeat::{Activity, BoxError, Registry, Supervisor, WorkerHeartbeat};

const STALL_AFTER: Duration = Duration::from_millis(200);

fn main() -> Result<(), BoxError> {
    let supervisor = Supervisor::new(Registry::global());
    let worker = |id| {
        WorkerHeartbeat::builder("backup")
            .id(id)
            .stall_after(STALL_AFTER)
            .finite()
    };
    let workers = [
        supervisor.spawn(worker("unannounced"), |hb| {
            hb.update_task("monday", "Packing", Activity::Processing);
            pack();
            Ok(())
        })?,
        supervisor.spawn(worker("announced"), |hb| {
            hb.update_task("monday", "Packing", Activity::Processing);
            // The longest that the call may take. After that the worker is stalled, announced or
            // not.
            let _quiet = hb.expect_silence(Duration::from_secs(5));
            pack();
            Ok(())
        })?,
    ];

    thread::sleep(3 * STALL_AFTER);
    println!("During the call:");
    for worker in &workers {
        println!("  {}: {}", worker.id(), worker.probe().health());
    }
    for worker in &workers {
        worker.join();
    }
    println!("Afterwards:");
    for worker in &workers {
        println!("  {}: {}", worker.id(), worker.probe().health());
    }
    Ok(())
}

/// Stands for a call into a library: it takes long, and cannot beat.
fn pack() {
    thread::sleep(8 * STALL_AFTER);
}
