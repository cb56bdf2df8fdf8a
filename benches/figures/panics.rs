//! From a panic to the subscriber who hears of it.

use std::panic;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use worker_heartbeat::{BoxError, EventKind, Registry, State, Supervisor, WorkerHeartbeat};

use crate::contest::{Spread, percentile};
use crate::table::{Table, Target, Unit};

pub(crate) fn measure(table: &mut Table) {
    // The default hook would write each panic to stderr, and that would be measured.
    panic::set_hook(Box::new(|_| {}));
    let repetitions: Vec<Vec<f64>> = (0..5).map(|_| panic_to_event_micros(200)).collect();
    drop(panic::take_hook());
    let figures = |percent| {
        repetitions
            .iter()
            .map(move |sorted| percentile(sorted, percent))
    };
    for (percent, target) in [(50.0, Target::None), (99.0, Target::AtMost(2_000.0))] {
        table.add(
            format!("panic to event received, the panic hook silent: p{percent}"),
            Spread::of(figures(percent)),
            Unit::Microseconds,
            target,
        );
    }
}

/// Times of so many panics, in order of size.
fn panic_to_event_micros(count: usize) -> Vec<f64> {
    let registry = Registry::new();
    let supervisor = Supervisor::new(&registry);
    let events = registry.subscribe();
    let mut micros: Vec<f64> = (0..count)
        .map(|_| {
            let panicked_at = Arc::new(Mutex::new(Instant::now()));
            let noted = Arc::clone(&panicked_at);
            let work = move |worker: &WorkerHeartbeat| -> Result<(), BoxError> {
                worker.beat();
                *noted.lock().expect("the lock is never poisoned") = Instant::now();
                panic!("the disk is full");
            };
            let worker = supervisor
                .spawn(WorkerHeartbeat::builder("indexer"), work)
                .expect("a worker starts");
            loop {
                let event = events
                    .recv_timeout(Duration::from_secs(10))
                    .expect("the panic is reported");
                let received_at = Instant::now();
                if matches!(&event.kind, EventKind::Became(health) if health.state() == State::Dead)
                {
                    worker.join();
                    let panicked_at = *panicked_at.lock().expect("the lock is never poisoned");
                    break received_at.duration_since(panicked_at).as_secs_f64() * 1e6;
                }
            }
        })
        .collect();
    micros.sort_by(f64::total_cmp);
    micros
}
