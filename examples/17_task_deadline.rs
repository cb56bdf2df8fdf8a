//! Tasks that beat and get nowhere: one takes longer than its deadline, another one's progress stands
//! still. The mock clock makes hours of it pass in an instant.
//!
//! ```text
//! cargo run --example 17_task_deadline
//! ```

use std::time::Duration;

use worker_heartbeat::{BoxError, EventKind, MockClock, Registry, WorkerHeartbeat};

const MINUTE: Duration = Duration::from_secs(60);

fn main() -> Result<(), BoxError> {
    let time = MockClock::new();
    let registry = Registry::with_clock(time.clock());
    let events = registry.subscribe();
    let hb = WorkerHeartbeat::builder("importer")
        .id("importer-1")
        .stall_after(5 * MINUTE)
        .task_deadline(60 * MINUTE)
        .progress_after(30 * MINUTE)
        .registry(&registry)
        .start()?;

    // It reads row after row, and never ends: without a deadline, it would look well for ever.
    let task = hb.begin_task("run-123", "importing");
    for row in 0..90 {
        task.progress(row, 1_000_000);
        time.advance(MINUTE);
    }
    println!("after 90 min: {}", hb.snapshot());
    drop(task);
    println!("after its end: {}", hb.health());

    // It tries the same row again and again. Each attempt is a beat.
    let task = hb.begin_task("run-124", "importing");
    task.progress(3, 10);
    for _attempt in 0..40 {
        hb.beat();
        time.advance(MINUTE);
    }
    println!("after 40 min: {}", hb.snapshot());
    drop(task);

    // A task may have its own deadline, and so may one within it.
    let batch = hb.begin_task("batch-7", "sending");
    batch.deadline(180 * MINUTE);
    for mail in 0..70 {
        let mail = hb.begin_task(format_args!("mail-{mail}"), "rendering");
        mail.deadline(10 * MINUTE);
        time.advance(MINUTE);
    }
    println!("the batch after 70 min: {}", hb.health());
    {
        let mail = hb.begin_task("mail-70", "rendering");
        mail.deadline(Duration::MAX); // no limit
        for _ in 0..110 {
            hb.beat();
            time.advance(MINUTE);
        }
        time.advance(MINUTE);
        println!("the batch after 181 min: {}", hb.health());
    }
    drop(batch);

    // A suspended host is charged to no task.
    let _task = hb.begin_task("run-125", "importing");
    time.suspend(12 * 60 * MINUTE);
    time.advance(Duration::ZERO);
    println!("twelve hours suspended: {}", hb.health());

    println!("\nWhat was told:");
    for event in events.try_iter() {
        if matches!(
            event.kind,
            EventKind::Became(_) | EventKind::Recovered { .. }
        ) {
            println!("  {event}");
        }
    }
    Ok(())
}
