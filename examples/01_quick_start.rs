//! A worker reports its progress; a probe reads its health from outside.
//!
//! ```text
//! cargo run --example 01_quick_start
//! ```

use std::thread;
use std::time::Duration;

use worker_heartbeat::{Activity, BoxError, WorkerHeartbeat};

/// How long one step of the work takes.
const STEP: Duration = Duration::from_millis(100);

fn main() -> Result<(), BoxError> {
    let hb = WorkerHeartbeat::builder("resizer")
        .id("resizer-1")
        // Without this limit, a worker that hangs counts as well for as long as its thread lives.
        // Choose a multiple of the longest time between two beats, so that a slow step is not
        // reported as a stall.
        .stall_after(4 * STEP)
        .start()?;
    // The work owns the handle: the worker lives as long as it does. All other code uses a probe.
    let probe = hb.probe();
    let worker = thread::spawn(move || resize_pictures(&hb));

    while !worker.is_finished() {
        println!("is_recent: {:5}  {}", probe.is_recent(), probe.snapshot());
        thread::sleep(2 * STEP);
    }
    worker.join().map_err(|_| "the worker panicked")?;
    println!("is_recent: {:5}  {}", probe.is_recent(), probe.snapshot());
    Ok(())
}

fn resize_pictures(hb: &WorkerHeartbeat) {
    for picture in ["cat.jpg", "dog.jpg"] {
        hb.update_task(picture, "resizing", Activity::Processing);
        for _ in 0..4 {
            // The real work goes here.
            thread::sleep(STEP);
            hb.beat();
        }
    }
    // This one takes too long without a beat: the worker is stalled until it makes progress again.
    hb.update_task("mammoth.jpg", "resizing", Activity::Processing);
    thread::sleep(9 * STEP);
    hb.mark_idle();
    thread::sleep(3 * STEP);
}
