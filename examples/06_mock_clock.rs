//! Your own alerting, tested over hours in an instant: the mock clock needs no sleep.
//!
//! ```text
//! cargo run --example 06_mock_clock
//! ```

use std::time::Duration;

use worker_heartbeat::{Activity, BoxError, MockClock, Registry, WorkerHeartbeat};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// What you want to test: whom to get out of bed, and with what words.
fn alert(registry: &Registry) -> Option<String> {
    let summary = registry.summary();
    (!summary.is_healthy()).then(|| {
        let troubled = registry.workers().into_iter().filter(|w| !w.is_recent());
        let lines: Vec<_> = troubled
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
    println!("five minutes at a task, which is what it may take: no alert");

    time.advance(SECOND);
    let words = alert(&registry).ok_or("there ought to be an alert")?;
    assert!(
        words.contains("no progress for 5 min 1 s, 5 min allowed"),
        "{words}"
    );
    println!("one second more: {words}");

    hb.beat();
    assert_eq!(alert(&registry), None);
    println!("one beat: no alert");

    // The laptop is closed, the virtual machine paused, the host overloaded: nobody could have
    // beaten in that time, and nobody is charged for it.
    time.suspend(12 * HOUR);
    assert_eq!(alert(&registry), None);
    println!("twelve hours suspended: no alert");
    Ok(())
}
