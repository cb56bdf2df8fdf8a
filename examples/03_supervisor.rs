//! A supervisor records why a worker ended, restarts it, and gives up after too many failures.
//!
//! ```text
//! cargo run --example 03_supervisor
//! ```

use std::time::Duration;

use worker_heartbeat::{BoxError, EventKind, Exit, Registry, Restart, Supervisor, WorkerHeartbeat};

fn main() -> Result<(), BoxError> {
    let registry = Registry::global();
    let events = registry.subscribe();
    let supervisor = Supervisor::new(registry).restart(
        Restart::on_failure()
            .max(3)
            .within(Duration::from_secs(60))
            .backoff(Duration::from_millis(50), Duration::from_secs(1)),
    );

    // A finite worker may return. Any other that returns without a stop request is dead.
    let import = WorkerHeartbeat::builder("import").id("import").finite();
    let import = supervisor.spawn(import, |hb| {
        hb.beat();
        Ok(())
    })?;
    println!("import: {:?}", import.join());
    println!("import: {}\n", import.probe().health());

    // This one always fails. The closure runs again with each restart, and keeps its state.
    let mut attempt = 0;
    let indexer = WorkerHeartbeat::builder("indexer").id("indexer");
    let indexer = supervisor.spawn(indexer, move |hb| {
        attempt += 1;
        let _task = hb.begin_task(format_args!("attempt-{attempt}"), "reading the index");
        match attempt {
            1 => panic!("the index is damaged"),
            _ => Err("the index cannot be opened: no such file".into()),
        }
    })?;
    if let Exit::GaveUp { restarts, .. } = indexer.join() {
        println!("indexer: given up after {restarts} restarts; its events:");
    }
    for event in events.try_iter().filter(|event| event.id() == "indexer") {
        if !matches!(event.kind, EventKind::Registered | EventKind::Started) {
            println!("  {event}");
        }
    }

    // Dead workers stay visible, with the cause of death.
    println!("\n{}", registry.summary());
    Ok(())
}
