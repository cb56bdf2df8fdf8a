//! Deadlines of tasks, and progress that stands still: a worker that beats and gets nowhere.

use std::time::Duration;

use crate::support::{SECOND, World, state};
use worker_heartbeat::{
    Activity, EventKind, GroupState, Health, Moment, Reading, Restart, StallCause, State,
    Subscription, Supervisor, Thresholds, WorkerHeartbeat, judge,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn limited(world: &World, task_deadline: Duration) -> WorkerHeartbeat {
    let builder = world.worker("w").task_deadline(task_deadline);
    builder.start().unwrap()
}

/// The worker beats each second for this time.
fn work(world: &World, hb: &WorkerHeartbeat, time: Duration) {
    for _ in 0..time.as_secs() {
        hb.beat();
        world.seconds(1);
    }
}

/// What was reported of the state, without registrations.
fn told(events: &Subscription) -> Vec<String> {
    let events = events.try_iter();
    let kinds = events.filter_map(|event| match event.kind {
        EventKind::Became(health) => Some(health.state().to_string()),
        EventKind::Recovered { from, after, .. } => {
            Some(format!("recovered from {from} after {} s", after.as_secs()))
        }
        EventKind::Late { .. } => Some("late".to_owned()),
        _ => None,
    });
    kinds.collect()
}

#[test]
fn a_task_that_beats_and_never_ends_is_overdue() {
    let world = World::new();
    let hb = limited(&world, HOUR);
    let events = world.registry.subscribe();
    let task = hb.begin_task("run-123", "importing");
    for line in 0..300 {
        task.progress(3, 10);
        world.time.advance(MINUTE);
        assert_eq!(hb.is_recent(), line < 60, "minute {line}");
    }
    let health = hb.health();
    let Health::Overdue {
        task_age,
        allowance,
        run_id,
        task: name,
        ..
    } = &health
    else {
        panic!("{health:?}");
    };
    assert_eq!((*task_age, *allowance), (5 * HOUR, HOUR));
    assert_eq!(run_id.as_deref(), Some("run-123"));
    assert_eq!(name.as_deref(), Some("importing"));
    let text = hb.snapshot().to_string();
    let begins = format!(
        "{}: overdue: at its task for 5 h, 1 h allowed, last seen at tests/worker/deadlines.rs:",
        hb.id()
    );
    assert!(text.starts_with(&begins), "{text}");
    assert!(
        text.ends_with(", during run-123 (importing), 3 of 10"),
        "{text}"
    );
    assert_eq!(told(&events), ["overdue"], "once");
    drop(task);
    world.seconds(1);
    assert_eq!(state(&hb), State::Idle);
    assert!(hb.is_recent());
    assert_eq!(told(&events), ["recovered from overdue after 18000 s"]);
}

#[test]
fn the_deadline_is_inclusive_and_kept_to_the_nanosecond() {
    let world = World::new();
    let hb = limited(&world, 10 * SECOND);
    let events = world.registry.subscribe();
    let _task = hb.begin_task("run", "");
    world.time.advance(10 * SECOND);
    assert_eq!(state(&hb), State::Processing);
    assert!(told(&events).is_empty());
    world.time.advance(Duration::from_nanos(1));
    assert_eq!(state(&hb), State::Overdue);
    assert_eq!(told(&events), ["overdue"]);
}

#[test]
fn a_run_that_is_named_without_a_guard_has_the_deadline_too() {
    let world = World::new();
    let hb = limited(&world, MINUTE);
    let update = |run: &str, text: &str, activity| {
        for _ in 0..50 {
            hb.update_task(run, text, activity);
            world.seconds(1);
        }
    };
    update("run-1", "a", Activity::Processing);
    update("run-1", "b", Activity::Active);
    assert_eq!(state(&hb), State::Overdue, "one run, whatever its text");
    update("run-2", "b", Activity::Processing);
    assert_eq!(state(&hb), State::Processing, "another run");
    update("run-2", "", Activity::Idle);
    assert_eq!(
        state(&hb),
        State::Idle,
        "no deadline applies while it is idle"
    );
    hb.update_task("run-2", "", Activity::Active);
    assert_eq!(state(&hb), State::Overdue, "the run goes on");
    hb.mark_idle();
    hb.update_task("run-2", "", Activity::Active);
    assert_eq!(state(&hb), State::Active, "it was over");
    update("", "each is a new task", Activity::Processing);
    update("", "each is a new task", Activity::Processing);
    assert_eq!(state(&hb), State::Processing);
    hb.mark_idle();
    update("", "", Activity::Active);
    work(&world, &hb, 2 * MINUTE);
    assert_eq!(state(&hb), State::Active, "no task is named");
}

#[test]
fn a_worker_that_names_no_task_has_no_deadline() {
    let world = World::new();
    let hb = limited(&world, MINUTE);
    work(&world, &hb, 5 * MINUTE);
    assert_eq!(state(&hb), State::Active);
    hb.mark_idle();
    world.seconds(300);
    assert_eq!(state(&hb), State::Idle);
}

#[test]
fn nested_tasks_each_have_theirs() {
    let world = World::new();
    let hb = limited(&world, HOUR);
    let events = world.registry.subscribe();
    let batch = hb.begin_task("batch", "");
    batch.deadline(10 * MINUTE);
    {
        let item = hb.begin_task("item-1", "");
        item.deadline(MINUTE);
        work(&world, &hb, 61 * SECOND);
        let Health::Overdue { run_id, .. } = hb.health() else {
            panic!("{}", hb.health());
        };
        assert_eq!(run_id.as_deref(), Some("item-1"));
    }
    assert_eq!(state(&hb), State::Processing, "it is at the outer one");
    world.seconds(1);
    assert_eq!(
        told(&events),
        ["overdue", "recovered from overdue after 61 s"]
    );
    // The outer one's time goes on while an inner one runs.
    let item = hb.begin_task("item-2", "");
    work(&world, &hb, 10 * MINUTE);
    let Health::Overdue {
        run_id, allowance, ..
    } = hb.health()
    else {
        panic!("{}", hb.health());
    };
    assert_eq!(run_id.as_deref(), Some("batch"));
    assert_eq!(allowance, 10 * MINUTE);
    drop(item);
    assert_eq!(state(&hb), State::Overdue);
    drop(batch);
    assert_eq!(state(&hb), State::Idle);
    world.seconds(1);
    assert_eq!(
        told(&events),
        ["overdue", "recovered from overdue after 662 s"]
    );
}

#[test]
fn an_outer_task_is_dated_although_it_was_never_observed_as_the_innermost() {
    let world = World::new();
    let hb = limited(&world, MINUTE);
    let _outer = hb.begin_task("outer", "");
    for n in 0..60 {
        let _inner = hb.begin_task(format!("inner-{n}"), "");
        world.seconds(1);
    }
    assert_eq!(state(&hb), State::Processing);
    world.seconds(1);
    assert!(
        hb.health().to_string().contains("during outer"),
        "{}",
        hb.health()
    );
}

#[test]
fn an_outer_guard_that_is_dropped_first_does_not_restart_the_time_of_the_inner_one() {
    let world = World::new();
    let hb = limited(&world, MINUTE);
    let outer = hb.begin_task("outer", "");
    let _inner = hb.begin_task("inner", "");
    world.seconds(61);
    assert_eq!(state(&hb), State::Overdue);
    drop(outer);
    assert_eq!(state(&hb), State::Overdue);
    assert_eq!(hb.snapshot().task_age, Some(61 * SECOND));
}

#[test]
fn a_deadline_can_be_extended_lifted_and_used_up_at_once() {
    let world = World::new();
    let hb = limited(&world, MINUTE);
    let task = hb.begin_task("run", "");
    work(&world, &hb, 50 * SECOND);
    task.deadline(2 * MINUTE);
    work(&world, &hb, 70 * SECOND);
    assert_eq!(
        state(&hb),
        State::Processing,
        "from the beginning of the task"
    );
    world.seconds(1);
    assert_eq!(state(&hb), State::Overdue);
    task.deadline(3 * MINUTE);
    assert_eq!(state(&hb), State::Processing);
    task.deadline(Duration::MAX);
    work(&world, &hb, HOUR);
    assert_eq!(state(&hb), State::Processing);
    task.deadline(Duration::ZERO);
    world.seconds(1);
    assert_eq!(state(&hb), State::Overdue);
    drop(task);
    let next = hb.begin_task("run", "");
    work(&world, &hb, MINUTE);
    assert_eq!(state(&hb), State::Processing, "the builder's again");
    world.seconds(1);
    assert_eq!(state(&hb), State::Overdue);
    drop(next);
}

#[test]
fn a_worker_without_limits_may_set_one_for_a_single_task() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let events = world.registry.subscribe();
    let task = hb.begin_task("run", "");
    world.seconds(30);
    task.deadline(MINUTE);
    world.seconds(30);
    assert_eq!(state(&hb), State::Processing);
    world.time.advance(Duration::from_nanos(1));
    assert_eq!(told(&events), ["overdue"]);
    drop(task);
    let _next = hb.begin_task("next", "");
    world.seconds(3600);
    assert_eq!(state(&hb), State::Processing);
}

#[test]
fn an_update_within_a_guard_does_not_escape_its_deadline() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let task = hb.begin_task("job", "");
    task.deadline(MINUTE);
    for n in 0..61 {
        hb.update_task(format!("part-{n}"), "", Activity::Processing);
        world.seconds(1);
    }
    assert_eq!(state(&hb), State::Overdue);
    drop(task);
    assert_eq!(state(&hb), State::Idle);
}

#[test]
fn time_that_was_not_observed_is_not_charged() {
    let world = World::new();
    let hb = limited(&world, MINUTE);
    let events = world.registry.subscribe();
    let task = hb.begin_task("run", "");
    task.progress(1, 2);
    world.seconds(30);
    world.time.suspend(100 * HOUR);
    world.time.advance(Duration::ZERO);
    assert_eq!(state(&hb), State::Processing);
    let age = hb.snapshot().task_age.unwrap();
    assert!(age <= 33 * SECOND, "{age:?}");
    world.seconds(27);
    assert_eq!(state(&hb), State::Processing);
    world.seconds(4);
    assert_eq!(state(&hb), State::Overdue);
    assert_eq!(told(&events), ["overdue"]);
}

#[test]
fn a_stall_and_silence_say_more_than_a_deadline() {
    let world = World::new();
    let builder = world.worker("w").stall_after(5 * MINUTE);
    let hb = builder.task_deadline(MINUTE).start().unwrap();
    let events = world.registry.subscribe();
    let task = hb.begin_task("run", "");
    world.seconds(61);
    assert_eq!(state(&hb), State::Overdue);
    world.seconds(240);
    assert_eq!(state(&hb), State::Stalled);
    hb.beat();
    world.seconds(1);
    assert_eq!(
        state(&hb),
        State::Overdue,
        "it goes on, and still takes too long"
    );
    drop(task);
    world.seconds(1);
    assert_eq!(
        told(&events),
        [
            "overdue",
            "stalled",
            "overdue",
            "recovered from overdue after 302 s"
        ]
    );

    let alone = world.worker("w").beats_only().task_deadline(MINUTE);
    let alone = alone.start().unwrap();
    let _task = alone.begin_task("run", "");
    world.seconds(61);
    assert_eq!(state(&alone), State::Overdue);
    world.seconds(60);
    assert_eq!(state(&alone), State::Stale, "it is silent");
    alone.beat();
    assert_eq!(state(&alone), State::Overdue);
}

#[test]
fn an_announced_silence_extends_the_allowance_for_silence_and_not_the_deadline() {
    let world = World::new();
    let builder = world
        .worker("w")
        .stall_after(MINUTE)
        .task_deadline(10 * MINUTE);
    let hb = builder.progress_after(2 * MINUTE).start().unwrap();
    let task = hb.begin_task("run", "");
    task.progress(1, 2);
    let quiet = hb.expect_silence(HOUR);
    world.seconds(600);
    assert_eq!(state(&hb), State::Processing);
    world.seconds(1);
    assert_eq!(state(&hb), State::Overdue);
    drop(quiet);
    drop(task);
    assert_eq!(state(&hb), State::Idle);
}

#[test]
fn an_overdue_worker_is_vouched_for() {
    let world = World::new();
    let hb = limited(&world, MINUTE);
    let _task = hb.begin_task("run", "");
    world.seconds(3600);
    let snapshot = hb.snapshot();
    assert_eq!(snapshot.health.state(), State::Overdue);
    assert!(snapshot.heartbeat_age.unwrap() <= SECOND);
    assert!(!hb.is_recent());
    let report = world.registry.sweep();
    assert!(report.marked_offline.is_empty(), "it is not offline");
    assert_eq!(world.registry.group("local"), GroupState::Online);
    let summary = world.registry.summary();
    assert!(!summary.is_healthy());
    assert_eq!((summary.total_active, summary.total_dead), (0, 0));
    assert_eq!(summary.overdue_workers.len(), 1);
    let text = summary.to_string();
    assert!(text.starts_with("0 active, 0 dead, 1 overdue; "), "{text}");
    assert!(text.contains(": overdue: at its task for 1 h"), "{text}");
    let counters = world.registry.counters();
    assert_eq!(counters.by_type["w"].overdue_tasks, 1);
}

#[test]
fn a_worker_that_is_asked_to_stop_stays_overdue_until_its_task_ends() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (sender, commands) = std::sync::mpsc::channel::<()>();
    let (acknowledge, begun) = std::sync::mpsc::channel();
    let builder = world.worker("w").task_deadline(MINUTE);
    let worker = supervisor.spawn(builder, move |hb: &WorkerHeartbeat| {
        let _task = hb.begin_task("run", "");
        acknowledge.send(())?;
        commands.recv()?;
        Ok(())
    });
    let worker = worker.unwrap();
    begun.recv().unwrap();
    world.seconds(61);
    let probe = worker.probe();
    assert_eq!(probe.health().state(), State::Overdue);
    worker.stop();
    assert_eq!(probe.health().state(), State::Overdue, "not only stopping");
    let report = supervisor.shutdown(Duration::ZERO);
    assert_eq!(report.hung.len(), 1);
    let hung = report.hung[0].to_string();
    assert!(hung.contains("overdue"), "{hung}");
    assert_eq!(hung.matches("during").count(), 1, "{hung}");
    sender.send(()).unwrap();
    worker.join();
    assert_eq!(probe.health().state(), State::Stopped);
}

#[test]
fn the_next_life_has_the_deadline_and_no_task() {
    let world = World::new();
    let restart = Restart::on_failure().backoff(SECOND, SECOND).jitter(0.0);
    let supervisor = Supervisor::new(&world.registry).restart(restart);
    let (sender, commands) = std::sync::mpsc::channel::<bool>();
    let (acknowledge, begun) = std::sync::mpsc::channel();
    let builder = world.worker("w").task_deadline(MINUTE);
    let worker = supervisor.spawn(builder, move |hb: &WorkerHeartbeat| {
        let _task = hb.begin_task("run", "");
        acknowledge.send(())?;
        match commands.recv()? {
            true => Err("by command".into()),
            false => Ok(()),
        }
    });
    let (worker, probe) = {
        let worker = worker.unwrap();
        let probe = worker.probe();
        (worker, probe)
    };
    begun.recv().unwrap();
    world.seconds(61);
    assert_eq!(probe.health().state(), State::Overdue);
    sender.send(true).unwrap();
    crate::support::eventually("dead", || probe.health().state() == State::Dead);
    world.seconds(2);
    begun.recv().unwrap();
    assert_eq!(probe.health().state(), State::Processing);
    world.seconds(62);
    assert_eq!(probe.health().state(), State::Overdue);
    worker.stop();
    sender.send(false).unwrap();
    worker.join();
}

#[test]
fn after_the_end_a_deadline_changes_nothing() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let task = hb.begin_task("run", "");
    hb.stop();
    task.deadline(Duration::ZERO);
    world.seconds(1);
    assert_eq!(state(&hb), State::Stopped);
    assert_eq!(hb.snapshot().late_updates, 1);
}

#[test]
fn progress_that_stands_still_is_a_stall() {
    let world = World::new();
    let hb = world
        .worker("w")
        .progress_after(5 * MINUTE)
        .start()
        .unwrap();
    let events = world.registry.subscribe();
    let task = hb.begin_task("run-123", "importing");
    work(&world, &hb, 10 * MINUTE);
    assert_eq!(state(&hb), State::Processing, "it has reported no progress");
    for done in 1..=3 {
        task.progress(done, 10);
        work(&world, &hb, 4 * MINUTE);
    }
    work(&world, &hb, MINUTE);
    assert_eq!(state(&hb), State::Processing);
    for _ in 0..60 {
        // The same numbers are no movement, and a step is none either.
        task.progress(3, 10);
        task.step("trying again");
        world.seconds(1);
    }
    let health = hb.health();
    let Health::Stalled(stalled) = &health else {
        panic!("{health:?}");
    };
    assert!(
        matches!(
            stalled.cause,
            StallCause::Standstill {
                done: 3,
                total: 10,
                ..
            }
        ),
        "{stalled:?}"
    );
    assert_eq!(stalled.cause.name(), "standstill");
    assert_eq!(
        (stalled.silent, stalled.allowance),
        (6 * MINUTE, 5 * MINUTE)
    );
    let text = health.to_string();
    assert!(
        text.starts_with(
            "stalled: no progress for 6 min, 5 min allowed; it beats, and stays at 3 of 10, last \
             seen at tests/worker/deadlines.rs:"
        ),
        "{text}"
    );
    assert!(text.ends_with(", during run-123 (importing)"), "{text}");
    assert!(!hb.is_recent());
    assert_eq!(told(&events), ["stalled"]);
    assert_eq!(world.registry.summary().stalled_workers.len(), 1);
    task.progress(4, 10);
    assert!(hb.is_recent());
    world.seconds(1);
    assert_eq!(told(&events), ["recovered from stalled after 360 s"]);
}

#[test]
fn a_standstill_that_becomes_silent_is_told_with_the_evidence() {
    let world = World::new();
    let builder = world
        .worker("w")
        .progress_after(MINUTE)
        .stall_after(5 * MINUTE);
    let hb = builder.start().unwrap();
    let task = hb.begin_task("run", "");
    task.progress(1, 2);
    work(&world, &hb, 2 * MINUTE);
    assert_eq!(state(&hb), State::Stalled);
    world.seconds(302);
    let Health::Stalled(stalled) = hb.health() else {
        panic!("{}", hb.health());
    };
    assert!(
        !matches!(stalled.cause, StallCause::Standstill { .. }),
        "{stalled}"
    );
    assert_eq!(stalled.allowance, 5 * MINUTE);
}

#[test]
fn the_progress_of_any_open_task_and_each_new_one_is_movement() {
    let world = World::new();
    let hb = world.worker("w").progress_after(MINUTE).start().unwrap();
    let batch = hb.begin_task("batch", "");
    batch.progress(1, 3);
    {
        let item = hb.begin_task("item", "");
        for done in 0..5 {
            item.progress(done, 5);
            work(&world, &hb, 50 * SECOND);
        }
    }
    work(&world, &hb, 50 * SECOND);
    assert_eq!(state(&hb), State::Processing);
    batch.progress(2, 3);
    let _item = hb.begin_task("item-2", "");
    work(&world, &hb, 61 * SECOND);
    let health = hb.health().to_string();
    assert!(health.contains("stays at 2 of 3"), "{health}");
    assert!(health.ends_with("during item-2"), "{health}");
    hb.mark_idle();
    world.seconds(600);
    assert_eq!(state(&hb), State::Idle, "no progress is expected");
    drop(batch);
}

#[test]
fn movement_keeps_the_age_of_the_task() {
    let world = World::new();
    let builder = world.worker("w").progress_after(MINUTE);
    let hb = builder.task_deadline(5 * MINUTE).start().unwrap();
    let task = hb.begin_task("run", "");
    for done in 0..300 {
        task.progress(done, 1_000);
        world.seconds(1);
    }
    assert_eq!(hb.snapshot().task_age, Some(300 * SECOND));
    assert_eq!(state(&hb), State::Processing);
    world.seconds(1);
    assert_eq!(state(&hb), State::Overdue);
}

#[test]
fn the_public_judge_gives_the_same_verdicts() {
    let mut thresholds = Thresholds::new(90 * SECOND);
    thresholds.stall_after = Some(60 * SECOND);
    thresholds.task_deadline = Some(100 * SECOND);
    thresholds.progress_after = Some(30 * SECOND);
    let at = |seconds: u32| Moment::ZERO.after(SECOND * seconds);
    let mut reading = Reading::new(Moment::ZERO);
    reading.progress_at = Some(at(100));
    reading.heartbeat_at = Some(at(100));
    reading.task_at = Some(Moment::ZERO);
    let mut judged = |change: &dyn Fn(&mut Reading), now| {
        change(&mut reading);
        judge(&reading, &thresholds, now).state()
    };
    let just_after = |moment: Moment| moment.after(Duration::from_nanos(1));
    assert_eq!(judged(&|_| (), at(100)), State::Active);
    assert_eq!(judged(&|_| (), just_after(at(100))), State::Overdue);
    assert_eq!(
        judged(&|reading| reading.stop_requested = true, at(101)),
        State::Overdue
    );
    assert_eq!(
        judged(&|reading| reading.activity = Activity::Idle, at(101)),
        State::Stopping
    );
    let at_work = |reading: &mut Reading| reading.activity = Activity::Processing;
    assert_eq!(judged(&at_work, at(161)), State::Stalled);
    let own = |reading: &mut Reading| reading.task_deadline = Some(Duration::MAX);
    assert_eq!(judged(&own, at(101)), State::Stopping);
    let moved = |reading: &mut Reading| reading.moved_at = Some(at(70));
    assert_eq!(
        judged(&moved, at(101)),
        State::Stopping,
        "no progress is known"
    );
    let steps = |reading: &mut Reading| reading.progress = Some((99, 100));
    assert_eq!(judged(&steps, at(100)), State::Stopping);
    assert_eq!(judged(&steps, at(101)), State::Stalled);
    let health = judge(&reading, &thresholds, at(101)).to_string();
    assert!(
        health.ends_with("it beats, and stays at 99 of 100"),
        "{health}"
    );
    reading.unwatched = Some(SECOND);
    assert_eq!(
        judge(&reading, &thresholds, at(101)).state(),
        State::Unobserved
    );
}
