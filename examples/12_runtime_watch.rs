//! Watches an async runtime from outside: when blocking calls occupy all its threads, no task on it
//! can report that.
//!
//! ```text
//! cargo run --example 12_runtime_watch
//! ```

use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::time::{MissedTickBehavior, interval};
use worker_heartbeat::{BoxError, Error, EventKind, Probe, Registry, State, WorkerHeartbeat};

/// A runtime that does not poll a ready task for this long is wedged.
const THRESHOLD: Duration = Duration::from_millis(500);

fn main() -> Result<(), BoxError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()?;
    let events = Registry::global().subscribe();
    let probe = watch("main-runtime", runtime.handle())?;
    while !probe.is_recent() {
        thread::yield_now();
    }
    println!("{}: {}", probe.id(), probe.health());

    // Two blocking calls occupy both threads of the runtime.
    let wedged = Instant::now();
    for _ in 0..2 {
        runtime.spawn(async { thread::sleep(4 * THRESHOLD) });
    }
    for event in events.iter() {
        match &event.kind {
            EventKind::Became(health) if health.state() == State::Stalled => {
                println!("{event}");
                println!("reported after {} ms", wedged.elapsed().as_millis());
            }
            EventKind::Recovered { .. } => {
                println!("{event}");
                break;
            }
            _ => {}
        }
    }
    drop(runtime);
    println!("{}: {}", probe.id(), probe.health());
    Ok(())
}

/// Spawns a task that only wakes up, five times per threshold. The pacemaker runs outside of the
/// runtime, and notices when the task is not polled.
fn watch(id: &str, runtime: &Handle) -> Result<Probe, Error> {
    let hb = WorkerHeartbeat::builder("runtime")
        .id(id)
        .stall_after(THRESHOLD)
        .start()?;
    let probe = hb.probe();
    let turns = async {
        let mut turns = interval(THRESHOLD / 5);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
        }
    };
    // Each poll is a beat.
    runtime.spawn(hb.supervise(turns));
    Ok(probe)
}
