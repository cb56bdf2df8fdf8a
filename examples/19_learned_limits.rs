//! A limit that is learned from the work, and a loop that is too fast. On the mock clock: a day passes
//! at once.
//!
//! ```text
//! cargo run --example 19_learned_limits
//! ```

use std::time::Duration;

use worker_heartbeat::{BoxError, Learn, MockClock, Rate, Registry, WorkerHeartbeat};

const SECOND: Duration = Duration::from_secs(1);

fn main() -> Result<(), BoxError> {
    let time = MockClock::new();
    let registry = Registry::with_clock(time.clock());
    let events = registry.subscribe();
    let indexer = || {
        WorkerHeartbeat::builder("indexer")
            .learn_stall_after(Learn::new().floor(SECOND).ceiling(60 * SECOND))
            // A loop that fails at once, over and over, makes progress, too.
            .at_most(Rate::per_second(100))
            .registry(&registry)
    };
    let report = |when: &str, hb: &WorkerHeartbeat| {
        if let Some(learned) = hb.snapshot().learned {
            println!("{when}: {learned}");
        }
        for event in events.try_iter() {
            println!("  {event}");
        }
    };

    let hb = indexer().id("indexer-1").start()?;
    hb.beat();
    report("Before", &hb);
    for page in 0..1_000 {
        // Every tenth page takes longer.
        time.advance(if page % 10 == 0 { 3 * SECOND } else { SECOND });
        hb.beat();
    }
    report("After a thousand pages", &hb);

    // A database hangs, and comes back. One long silence is no habit.
    time.advance(30 * SECOND);
    hb.beat();
    time.advance(SECOND);
    report("After a silence of 30 s", &hb);

    // The next worker of the type begins with what was learned.
    drop(hb);
    let hb = indexer().id("indexer-2").start()?;
    hb.beat();
    report("The next worker", &hb);

    // From now on, each page takes longer: told twice, and then usual, as the third
    // long silence.
    for _ in 0..50 {
        time.advance(20 * SECOND);
        hb.beat();
    }
    report("At a new pace", &hb);

    // The connection is refused, and the loop tries again at once.
    for _ in 0..50 {
        for attempt in 0..500 {
            let task = hb.begin_task(attempt, "connecting");
            task.step("refused");
        }
        time.advance(Duration::from_millis(100));
    }
    time.advance(5 * SECOND);
    report("A loop that fails at once", &hb);
    Ok(())
}
