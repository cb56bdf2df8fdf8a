//! A test of alerts over hours that takes an instant: the mock clock replaces sleeping.
//!
//! ```text
//! cargo run --example 06_mock_clock
//! ```

use std::time::Duration;

use worker_heartbeat::{Activity, BoxError, MockClock, Registry, WorkerHeartbeat};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// The code under test: whether to page, and the text of the page.
fn alert(registry: &Registry) -> Option<String> {
    let summary = registry.summary();
    (!summary.is_healthy()).then(|| {
        let unwell = registry.workers().into_iter().filter(|w| !w.is_recent());
        let lines: Vec<_> = unwell
            .map(|w| format!("{}: {}", w.id(), w.health()))
            .collect();
        lines.join("\n")
    })
}

fn main() -> Result<(), BoxError> {
    let time = MockClock::new();
    let registry = Registry::with_clock(time.clock());
    let hb = WorkerHeartbeat::builder("billing")
        .id("billing-1")
        .stall_after(300 * SECOND)
        .registry(&registry)
        .start()?;

    hb.mark_idle();
    time.advance(6 * HOUR);
    assert_eq!(alert(&registry), None);
    println!("six hours without work: no alert");

    hb.update_task("invoice-7", "Sending an invoice", Activity::Processing);
    time.advance(300 * SECOND);
    assert_eq!(alert(&registry), None);
    println!("five minutes at a task, as long as allowed: no alert");

    time.advance(SECOND);
    let text = alert(&registry).ok_or("no alert")?;
    assert!(
        text.contains("no progress for 5 min 1 s, 5 min allowed"),
        "{text}"
    );
    println!("one second more: {text}");

    hb.beat();
    assert_eq!(alert(&registry), None);
    println!("one beat: no alert");

    // A closed laptop, a paused virtual machine, an overloaded host: the worker could not beat in
    // that time, so it is not charged for it.
    time.suspend(12 * HOUR);
    assert_eq!(alert(&registry), None);
    println!("twelve hours suspended: no alert");
    Ok(())
}
