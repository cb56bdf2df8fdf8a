//! Policies: what makes a process unwell, and how the verdict says so.

use std::time::Duration;

use crate::support::{SECOND, World, eventually};
use worker_heartbeat::{BoxError, Policy, Restart, State, Summary, Supervisor, WorkerHeartbeat};

fn verdict(summary: &Summary, policy: &Policy) -> String {
    summary.verdict(policy).to_string()
}

#[test]
fn a_verdict_names_the_rule_and_the_workers_and_shows_what_is_tolerated() {
    let world = World::new();
    let well = world.worker("indexer").id("i-1").start().unwrap();
    well.beat();
    let starting = world.worker("indexer").id("i-2").start().unwrap();
    let batch = world.worker("batch").id("b-1").start().unwrap();
    batch.fail("no input");
    world.registry.expect_workers("mailer", 2);
    let summary = world.registry.summary();

    let policy = Policy::readiness();
    assert_eq!(
        verdict(&summary, &policy),
        "unwell (readiness): workers: 1 dead; b-1: dead: failed: no input; started: 1 starting; \
         expected: 0 of 2 expected workers of type mailer live"
    );
    let policy = Policy::readiness()
        .ignore_type("batch")
        .ignore_type("mailer");
    assert_eq!(
        verdict(&summary, &policy),
        "unwell (readiness): started: 1 starting; tolerated: 1 dead; b-1: dead: failed: no input; \
         0 of 2 expected workers of type mailer live"
    );
    starting.beat();
    let summary = world.registry.summary();
    assert!(summary.verdict(&policy).is_well());
    assert!(!summary.is_healthy(), "by its own policy");
    let rules = |policy: &Policy| -> Vec<_> {
        let rules = summary.verdict(policy).rules.into_iter();
        rules.map(|result| result.rule).collect()
    };
    assert_eq!(rules(&Policy::liveness()), ["pacemaker", "workers"]);
    assert_eq!(
        rules(&Policy::strict()),
        [
            "pacemaker",
            "workers",
            "started",
            "expected",
            "living",
            "shutdown"
        ]
    );
}

#[test]
fn so_many_may_be_dead_in_all_types_together_or_in_one() {
    let world = World::new();
    let workers: Vec<_> = [("a", 2), ("b", 2)]
        .into_iter()
        .flat_map(|(kind, count)| (0..count).map(move |n| (kind, n)))
        .map(|(kind, n)| {
            world
                .worker(kind)
                .id(format!("{kind}-{n}"))
                .start()
                .unwrap()
        })
        .collect();
    workers.iter().for_each(WorkerHeartbeat::beat);
    let is_well = |policy: Policy| world.registry.summary().verdict(&policy).is_well();
    workers[0].fail("x");
    workers[2].fail("x");
    assert!(!is_well(Policy::liveness()));
    assert!(
        !is_well(Policy::liveness().tolerate_dead(1)),
        "in all together"
    );
    assert!(is_well(Policy::liveness().tolerate_dead(2)));
    assert!(!is_well(Policy::liveness().tolerate_dead_in("a", 1)));
    let both = Policy::liveness().tolerate_dead_in("a", 1).tolerate_dead(1);
    assert!(is_well(both.clone()), "each has its number");
    workers[1].fail("x");
    assert!(!is_well(both));
    assert!(is_well(Policy::liveness().tolerate_dead(3)));
    let text = verdict(
        &world.registry.summary(),
        &Policy::liveness().tolerate_dead(2),
    );
    assert!(
        text.starts_with(
            "unwell (liveness): workers: 3 dead (2 dead tolerated); a-0: dead: failed: x"
        ),
        "{text}"
    );
}

#[test]
fn dead_workers_that_are_tolerated_are_not_missing_and_others_are() {
    let world = World::new();
    world.registry.expect_workers("a", 3);
    let policy = Policy::readiness().tolerate_dead(2);
    let is_well = || world.registry.summary().verdict(&policy).is_well();
    assert!(!is_well(), "none ever came");
    let workers: Vec<_> = (0..3).map(|_| world.worker("a").start().unwrap()).collect();
    workers.iter().for_each(WorkerHeartbeat::beat);
    assert!(is_well());
    workers[0].fail("x");
    workers[1].fail("x");
    assert!(is_well(), "two are dead, and that is tolerated");
    workers[2].stop();
    assert!(!is_well(), "and another one is missing");
}

#[test]
fn states_of_all_types_or_of_one_can_be_tolerated_or_added() {
    let world = World::new();
    let batch = world
        .worker("batch")
        .stall_after(5 * SECOND)
        .start()
        .unwrap();
    let other = world
        .worker("other")
        .stall_after(60 * SECOND)
        .start()
        .unwrap();
    batch.beat();
    other.beat();
    world.seconds(6);
    let is_well = |policy: Policy| world.registry.summary().verdict(&policy).is_well();
    assert!(!is_well(Policy::liveness()));
    assert!(is_well(Policy::liveness().tolerate(State::Stalled)));
    assert!(is_well(
        Policy::liveness().tolerate_in("batch", State::Stalled)
    ));
    assert!(!is_well(
        Policy::liveness().tolerate_in("other", State::Stalled)
    ));
    let policy = Policy::liveness()
        .tolerate(State::Stalled)
        .fail_on(State::Stopped);
    assert!(is_well(policy.clone()));
    other.stop();
    let text = verdict(&world.registry.summary(), &policy);
    assert!(
        text.starts_with("unwell (liveness): workers: 1 stopped; tolerated: 1 stalled; "),
        "{text}"
    );
}

#[test]
fn a_type_that_no_worker_has_is_told() {
    let world = World::new();
    let hb = world.worker("batch").start().unwrap();
    hb.fail("x");
    let policy = Policy::liveness().ignore_type("btach");
    let verdict = world.registry.summary().verdict(&policy);
    assert_eq!(verdict.unknown_types, ["btach"]);
    assert!(!verdict.is_well());
    let text = verdict.to_string();
    assert!(text.ends_with("; no worker has the type btach"), "{text}");
}

#[test]
fn a_process_without_workers_is_well_unless_some_are_needed_or_expected() {
    let world = World::new();
    let is_well = |policy: Policy| world.registry.summary().verdict(&policy).is_well();
    for policy in [
        Policy::liveness(),
        Policy::startup(),
        Policy::readiness(),
        Policy::health(),
    ] {
        assert!(is_well(policy.clone()), "{policy}");
        assert!(!is_well(policy.clone().needs_workers()), "{policy}");
    }
    assert!(!is_well(Policy::strict()));
    world.registry.expect_workers("a", 1);
    assert!(!is_well(Policy::health()));
    assert!(
        !is_well(Policy::health().tolerate_dead(9)),
        "none ever came"
    );
    assert!(is_well(Policy::health().ignore_type("a")));
}

#[test]
fn a_worker_that_its_supervisor_restarts_can_be_tolerated_until_it_is_given_up() {
    let world = World::new();
    let restart = Restart::on_failure()
        .max(1)
        .backoff(10 * SECOND, 10 * SECOND);
    let supervisor = Supervisor::new(&world.registry).restart(restart);
    let worker = supervisor
        .spawn(
            WorkerHeartbeat::builder("a"),
            |_: &WorkerHeartbeat| -> Result<(), BoxError> { Err("no luck".into()) },
        )
        .unwrap();
    let policy = Policy::liveness().tolerate_restarting();
    eventually("it waits for its restart", || {
        worker.probe().health().state() == State::Dead
    });
    let summary = world.registry.summary();
    assert!(!summary.verdict(&Policy::liveness()).is_well());
    assert!(
        summary.verdict(&policy).is_well(),
        "{}",
        verdict(&summary, &policy)
    );
    assert!(summary.dead_workers[0].restarting);
    world.seconds(60);
    worker.join();
    let summary = world.registry.summary();
    assert!(!summary.verdict(&policy).is_well());
    supervisor.shutdown(Duration::from_secs(30));
}

#[test]
fn a_shutdown_fails_readiness_and_not_liveness() {
    let world = World::new();
    let hb = world.worker("a").start().unwrap();
    let _task = hb.begin_task("run-1", "working");
    let shutdown = worker_heartbeat::Shutdown::builder()
        .registry(&world.registry)
        .install()
        .unwrap();
    let summary = || world.registry.summary();
    assert!(summary().verdict(&Policy::readiness()).is_well());
    shutdown.trigger();
    assert!(summary().stopping);
    assert_eq!(
        verdict(&summary(), &Policy::readiness()),
        "unwell (readiness): shutdown: it is shutting down"
    );
    assert!(summary().verdict(&Policy::liveness()).is_well());
}

#[test]
fn an_overdue_worker_fails_readiness_and_not_liveness() {
    let world = World::new();
    let builder = world.worker("a").id("a-1").task_deadline(60 * SECOND);
    let hb = builder.start().unwrap();
    let _task = hb.begin_task("run-1", "working");
    world.seconds(61);
    let summary = world.registry.summary();
    assert_eq!(summary.states.get(State::Overdue), 1);
    assert!(summary.verdict(&Policy::liveness()).is_well());
    let text = verdict(&summary, &Policy::readiness());
    assert!(
        text.starts_with("unwell (readiness): workers: 1 overdue; a-1: overdue: "),
        "{text}"
    );
    let tolerant = Policy::readiness().tolerate_in("a", State::Overdue);
    assert!(summary.verdict(&tolerant).is_well());
}
