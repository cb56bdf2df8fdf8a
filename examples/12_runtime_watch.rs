//! Watches an async runtime from outside: when blocking calls take all its threads, nothing on it can
//! tell so any more.
//!
//! ```text
//! cargo run --example 12_runtime_watch
//! ```

use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::time::{MissedTickBehavior, interval};
use worker_heartbeat::{BoxError, Error, EventKind, Probe, Registry, State, WorkerHeartbeat};

/// A runtime that gives a task no turn for so long is wedged.
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

    // Somebody forgot that these block. Two are enough.
    let wedged = Instant::now();
    for _ in 0..2 {
        runtime.spawn(async { thread::sleep(4 * THRESHOLD) });
    }
    for event in events.iter() {
        match &event.kind {
            EventKind::Became(health) if health.state() == State::Stalled => {
                println!("{event}");
                println!("told after {} ms", wedged.elapsed().as_millis());
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

/// A task that does nothing but take its turn, five times in the threshold. The pacemaker, which is
/// not on the runtime, notices when it gets none.
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
