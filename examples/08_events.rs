//! Who must know at once subscribes: one event when a trouble begins, and one when it is over.
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
    // A worker that is not there cannot be unwell. This says that it has to be there.
    registry.expect_workers("mail", 2);

    // Nobody ever waits for a subscriber: one that is too slow loses the oldest events, which are
    // counted. It ends with the registry.
    let pager = thread::spawn(move || {
        for event in events.iter() {
            let call = match &event.kind {
                // Stopped in good order is no reason to wake anybody.
                EventKind::Became(health) if health.state() == State::Stopped => "  note",
                EventKind::Became(_) | EventKind::Missing(_) => "!!PAGE",
                EventKind::Recovered { .. } | EventKind::Complete { .. } => "all ok",
                _ => "  note",
            };
            println!("{call}  {event}");
        }
        println!("events that were lost: {}", events.dropped());
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
    // It hangs for a while, and comes back.
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
