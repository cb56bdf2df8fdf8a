//! Where a worker was last seen, and where it was started.

use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::thread;

use crate::support::{SECOND, World};
use worker_heartbeat::{
    Activity, Builder, Health, Restart, SourceLocation, State, Supervisor, WorkerHeartbeat,
};

/// The line that calls this.
#[track_caller]
fn here() -> u32 {
    Location::caller().line()
}

fn line(location: Option<SourceLocation>) -> u32 {
    let location = location.expect("the worker has reported");
    assert_eq!(location.file, file!());
    location.line
}

fn last_line(hb: &WorkerHeartbeat) -> u32 {
    line(hb.snapshot().last_location)
}

/// Makes the call and checks that its line is that of the last report.
macro_rules! seen {
    ($hb:expr, $call:expr) => {{
        let result = $call;
        assert_eq!(last_line(&$hb), line!());
        result
    }};
}

#[test]
fn each_report_but_a_beat_has_its_place() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    assert_eq!(hb.snapshot().last_location, None);
    hb.beat();
    assert_eq!(hb.snapshot().last_location, None, "a beat says nothing");
    seen!(hb, hb.update_task("run-1", "", Activity::Processing));
    hb.beat();
    let task = seen!(hb, hb.begin_task("run-2", ""));
    seen!(hb, task.progress(1, 2));
    seen!(hb, task.step("a step"));
    seen!(hb, task.fail("no"));
    let silence = seen!(hb, hb.expect_silence(SECOND));
    let silent_at = here() - 1;
    drop(silence);
    drop(task);
    assert_eq!(last_line(&hb), silent_at, "the end of a guard has no place");
    seen!(hb, hb.mark_idle());
}

#[test]
fn a_worker_that_only_goes_idle_has_its_place_too() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    for _ in 0..2 {
        seen!(hb, hb.mark_idle());
        seen!(hb, hb.mark_idle());
    }
}

#[test]
fn a_stall_says_where_the_worker_was_last_seen() {
    let world = World::new();
    let hb = world.worker("w").stall_after(5 * SECOND).start().unwrap();
    hb.update_task("run-1", "indexing", Activity::Processing);
    let seen_at = here() - 1;
    hb.beat();
    world.seconds(6);
    let Health::Stalled(stalled) = hb.health() else {
        panic!("{}", hb.health());
    };
    assert_eq!(line(stalled.last_location), seen_at);
    let said = hb.health().to_string();
    let end = format!(
        ", last seen at {}:{seen_at}, during run-1 (indexing)",
        file!()
    );
    assert!(said.ends_with(&end), "{said}");
    hb.mark_idle();
    assert_eq!(hb.health().to_string(), "idle");
}

#[test]
fn a_death_keeps_the_place_and_the_next_life_does_not() {
    let world = World::new();
    let restart = Restart::on_failure()
        .max(1)
        .backoff(SECOND, SECOND)
        .jitter(0.0);
    let supervisor = Supervisor::new(&world.registry).restart(restart);
    let seen_at = here() + 7;
    let mut lives = 0;
    let mut work = pin!(
        supervisor
            .supervise(world.worker("w").id("w"), move |hb| {
                lives += 1;
                if lives == 1 {
                    hb.update_task("run-1", "", Activity::Processing);
                }
                let first = lives == 1;
                async move {
                    if first {
                        Err("no disk")
                    } else {
                        hb.wait_for_stop().await;
                        Ok(())
                    }
                }
            })
            .unwrap()
    );
    let mut context = Context::from_waker(Waker::noop());
    assert!(work.as_mut().poll(&mut context).is_pending());
    let probe = world.registry.get("w").unwrap();
    let Health::Dead { death, .. } = probe.health() else {
        panic!("{}", probe.health());
    };
    assert_eq!(line(death.last_location.clone()), seen_at);
    assert_eq!(line(probe.snapshot().last_location), seen_at);
    world.seconds(2);
    assert!(work.as_mut().poll(&mut context).is_pending());
    let snapshot = probe.snapshot();
    assert_eq!((snapshot.restarts, snapshot.last_location), (1, None));
    assert_eq!(
        line(snapshot.last_death.unwrap().last_location.clone()),
        seen_at
    );
}

#[test]
fn a_death_without_a_text_of_its_own_says_it_too() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let worker = supervisor
        .spawn(world.worker("w"), |hb| {
            hb.update_task("run-1", "", Activity::Processing);
            Ok(())
        })
        .unwrap();
    let seen_at = here() - 4;
    worker.join();
    let end = format!(", last seen at {}:{seen_at}, during run-1", file!());
    let said = worker.probe().health().to_string();
    assert!(said.ends_with(&end), "{said}");

    let hb = world.worker("w").start().unwrap();
    hb.update_task("run-1", "", Activity::Processing);
    seen!(hb, hb.fail("no disk"));
    assert_eq!(
        hb.health().to_string(),
        "dead: failed: no disk, during run-1"
    );
}

#[test]
fn a_call_through_a_pointer_has_no_place() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let idle: fn(&WorkerHeartbeat) = WorkerHeartbeat::mark_idle;
    idle(&hb);
    assert_eq!(hb.snapshot().last_location, None);
    // Not the place of an earlier report, which is not the last one.
    hb.update_task("run-1", "", Activity::Processing);
    [&hb].into_iter().for_each(WorkerHeartbeat::mark_idle);
    assert_eq!(hb.snapshot().last_location, None);
    // A closure has its own place.
    [&hb].into_iter().for_each(|hb| seen!(hb, hb.mark_idle()));
    let start: fn(Builder) -> _ = Builder::start;
    let hb = start(world.worker("w")).unwrap();
    assert_eq!(hb.snapshot().spawn_location, None);
}

#[test]
fn a_wrapper_that_passes_its_caller_on_is_not_the_place() {
    #[track_caller]
    fn report(hb: &WorkerHeartbeat) {
        hb.update_task("run-1", "", Activity::Processing);
    }
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    seen!(hb, report(&hb));
}

#[test]
fn what_comes_after_the_end_has_no_place() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.mark_idle();
    let idle_at = here() - 1;
    hb.stop();
    hb.update_task("run-1", "", Activity::Processing);
    hb.mark_idle();
    hb.fail("too late");
    assert_eq!(last_line(&hb), idle_at);
}

#[test]
fn threads_that_report_at_once_leave_one_of_their_places() {
    let world = World::new();
    let hb = Arc::new(world.worker("w").start().unwrap());
    let first = here() + 6;
    let threads = [0, 1].map(|n| {
        let hb = Arc::clone(&hb);
        thread::spawn(move || {
            for _ in 0..10_000 {
                match n {
                    0 => hb.mark_idle(),
                    _ => hb.update_task("r", "", Activity::Active),
                }
            }
        })
    });
    while threads.iter().any(|thread| !thread.is_finished()) {
        if let Some(location) = hb.snapshot().last_location {
            assert!((first..=first + 1).contains(&location.line));
        }
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert!((first..=first + 1).contains(&last_line(&hb)));
}

#[test]
fn a_worker_knows_where_it_was_started() {
    let world = World::new();
    let started = |hb: &WorkerHeartbeat| line(hb.snapshot().spawn_location);
    let hb = world.worker("w").start().unwrap();
    assert_eq!(started(&hb), here() - 1);
    let other = world.worker("w").start().unwrap();
    assert_eq!(started(&other), here() - 1);
    assert_eq!(world.registry.summary().stats_by_type["w"].total, 2);

    let supervisor = Supervisor::new(&world.registry);
    let builder = world.worker("w").finite();
    let worker = supervisor.spawn(builder, |_| Ok(())).unwrap();
    assert_eq!(line(worker.probe().snapshot().spawn_location), here() - 1);
    worker.join();
    let builder = world.worker("w");
    let future = supervisor.supervise(builder, |_| async {}).unwrap();
    assert_eq!(line(future.probe().snapshot().spawn_location), here() - 1);
    assert_eq!(hb.health().state(), State::Starting);
}
