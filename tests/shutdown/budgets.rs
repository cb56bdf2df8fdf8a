//! Budgets of single workers in a drain, on a mock clock, in this process.

use std::time::Duration;

use worker_heartbeat::{
    Error, EventKind, MockClock, Registry, Shutdown, Supervisor, WorkerHeartbeat,
};

const SECOND: Duration = Duration::from_secs(1);

fn registry() -> (MockClock, Registry) {
    let time = MockClock::new();
    let registry = Registry::with_clock(time.clock());
    (time, registry)
}

fn install(registry: &Registry) -> Shutdown {
    let builder = Shutdown::builder().signals([]).registry(registry);
    builder.install().unwrap()
}

fn worker(registry: &Registry, id: &str, budget: Option<Duration>) -> WorkerHeartbeat {
    let builder = WorkerHeartbeat::builder("mailer").id(id).registry(registry);
    let builder = match budget {
        Some(budget) => builder.drain_within(budget),
        None => builder,
    };
    let hb = builder.start().unwrap();
    hb.beat();
    hb
}

#[test]
fn a_worker_over_its_budget_is_told_of_once_and_waited_for() {
    let (time, registry) = registry();
    let shutdown = install(&registry);
    let slow = worker(&registry, "slow", Some(5 * SECOND));
    let quick = worker(&registry, "quick", Some(5 * SECOND));
    let patient = worker(&registry, "patient", None);
    let idle = worker(&registry, "idle", Some(5 * SECOND));
    idle.mark_idle();
    let events = registry.subscribe();
    let over = || {
        let events = events
            .try_iter()
            .filter(|event| matches!(event.kind, EventKind::OverBudget { .. }));
        events.map(|event| event.to_string()).collect::<Vec<_>>()
    };
    shutdown.trigger();
    time.advance(2 * SECOND);
    drop(quick);
    time.advance(3 * SECOND);
    assert!(over().is_empty(), "never early");
    time.advance(SECOND);
    let told = "worker slow: over its budget: draining for 5 s, 5 s allowed";
    assert_eq!(over(), [told]);
    time.advance(60 * SECOND);
    assert!(over().is_empty(), "once");
    drop(slow);
    time.advance(SECOND);
    drop(patient);
    let report = shutdown.wait();
    assert!(report.is_clean(), "it ended in time");
    let drained: Vec<_> = report.drained.iter().map(ToString::to_string).collect();
    assert_eq!(
        drained,
        [
            "slow (1 min 6 s, 5 s allowed)",
            "patient (1 min 7 s)",
            "quick (2 s, 5 s allowed)",
            "idle (0 s, 5 s allowed)",
        ]
    );
    let text = report.to_string();
    assert!(
        text.ends_with(": over budget: slow (1 min 6 s, 5 s allowed)"),
        "{text}"
    );
    let drains = &registry.counters().by_type["mailer"].drains;
    assert_eq!((drains.count, drains.over_budget), (4, 1));
    assert!(
        drains.sum >= 135 * SECOND && drains.sum < 136 * SECOND,
        "{drains:?}"
    );
    let up_to = |bound: Duration| {
        let buckets = drains.buckets.iter();
        buckets
            .filter(|(at, _)| *at == bound)
            .map(|(_, count)| *count)
            .next()
    };
    let counted = [10, 1_000, 2_500, 60_000, 300_000].map(|ms| up_to(Duration::from_millis(ms)));
    assert_eq!(counted, [1, 1, 2, 2, 4].map(Some));
}

#[test]
fn unobserved_time_does_not_count() {
    let (time, registry) = registry();
    let shutdown = install(&registry);
    let hb = worker(&registry, "slow", Some(60 * SECOND));
    let events = registry.subscribe();
    shutdown.trigger();
    for _ in 0..10 {
        time.suspend(3600 * SECOND);
        time.advance(SECOND);
    }
    drop(hb);
    let report = shutdown.wait();
    let drained = &report.drained[0];
    assert!(
        !drained.is_over_budget() && drained.took < 60 * SECOND,
        "{report}"
    );
    let over = |kind: &EventKind| matches!(kind, EventKind::OverBudget { .. });
    assert!(!events.try_iter().any(|event| over(&event.kind)));
}

#[test]
fn the_report_of_a_supervisor_has_them_too() {
    let registry = Registry::new();
    let supervisor = Supervisor::new(&registry);
    let builder = WorkerHeartbeat::builder("mailer").drain_within(Duration::from_millis(1));
    let worker = supervisor.spawn(builder.id("slow"), |hb| {
        hb.stop_receiver().recv()?;
        // Longer than its budget: the time that is measured.
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    });
    worker.unwrap();
    let report = supervisor.shutdown(60 * SECOND);
    assert!(
        report.is_clean() && report.drained[0].is_over_budget(),
        "{report}"
    );
    assert!(
        report.to_string().contains("; over budget: slow ("),
        "{report}"
    );
}

#[test]
fn a_worker_that_ended_before_the_request_did_not_drain() {
    let (_, registry) = registry();
    worker(&registry, "early", Some(SECOND)).stop();
    let shutdown = install(&registry);
    shutdown.trigger();
    assert!(shutdown.wait().drained.is_empty());
    assert_eq!(registry.counters().by_type["mailer"].drains.count, 0);
}

#[test]
fn a_budget_that_makes_no_sense_is_refused() {
    for budget in [Duration::ZERO, Duration::MAX] {
        let builder = WorkerHeartbeat::builder("mailer").drain_within(budget);
        let refused = builder.registry(&Registry::new()).start();
        assert!(
            matches!(
                refused,
                Err(Error::Invalid {
                    field: "drain_within",
                    ..
                })
            ),
            "{budget:?}"
        );
    }
}
