//! A subscriber gets one event when an episode begins, and one when it ends.
//!
//! ```text
//! cargo run --example 08_events
//! ```

use std::thread;
use std::time::Duration;

use worker_heartbeat::{Activity, BoxError, EventKind, Registry, State, WorkerHeartbeat};

const STALL_AFTER: Duration = Duration::from_millis(200);

fn main() -> Result<(), BoxError> {
    let registry = Registry::new();
    let events = registry.subscribe();
    // A worker that was never started cannot be unwell; it can be missing.
    registry.expect_workers("mail", 2);

    // A subscriber that is too slow blocks no worker: it loses the oldest events, which are counted.
    // The channel closes with the registry.
    let pager = thread::spawn(move || {
        for event in events.iter() {
            let call = match &event.kind {
                // An orderly stop needs no page.
                EventKind::Became(health) if health.state() == State::Stopped => "  note",
                EventKind::Became(_) | EventKind::Missing(_) => "!!PAGE",
                EventKind::Recovered { .. } | EventKind::Complete { .. } => "all ok",
                _ => "  note",
            };
            println!("{call}  {event}");
        }
        println!("dropped events: {}", events.dropped());
    });

    let worker = |id| {
        WorkerHeartbeat::builder("mail")
            .id(id)
            .stall_after(STALL_AFTER)
            .registry(&registry)
            .start()
    };
    let first = worker("mail-1")?;
    first.mark_idle();
    thread::sleep(STALL_AFTER);

    let second = worker("mail-2")?;
    second.update_task("letter-1", "Writing", Activity::Processing);
    // It hangs for a while, then recovers.
    thread::sleep(2 * STALL_AFTER);
    second.beat();
    thread::sleep(STALL_AFTER / 2);

    second.fail("the mailbox is full");
    thread::sleep(STALL_AFTER / 2);
    first.stop();
    drop((first, second, registry));
    pager.join().map_err(|_| "the pager panicked")?;
    Ok(())
}
