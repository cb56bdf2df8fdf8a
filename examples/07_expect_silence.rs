//! A call that takes long is announced, so that it is not mistaken for a stall.
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
            // As long as it may take at worst. After that, it would be a stall all the same: an
            // announcement is no licence to hang for ever.
            let _quiet = hb.expect_silence(Duration::from_secs(5));
            pack();
            Ok(())
        })?,
    ];

    thread::sleep(3 * STALL_AFTER);
    println!("In the middle of the call:");
    for worker in &workers {
        println!("  {}: {}", worker.id(), worker.probe().health());
    }
    for worker in &workers {
        worker.join();
    }
    println!("In the end:");
    for worker in &workers {
        println!("  {}: {}", worker.id(), worker.probe().health());
    }
    Ok(())
}

/// A call into some library: it takes long, and cannot beat.
fn pack() {
    thread::sleep(8 * STALL_AFTER);
}
