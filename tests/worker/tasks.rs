//! Tasks: they nest, they end, and a death names the one that it happened in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::support::{PATIENCE, SECOND, World, eventually, state};
use worker_heartbeat::{
    Activity, BoxError, Health, State, StopCause, SupervisedWorker, Supervisor, WorkerHeartbeat,
};

fn stalling(world: &World) -> WorkerHeartbeat {
    let builder = world.worker("w").stall_after(60 * SECOND);
    builder.start().unwrap()
}

fn run(hb: &WorkerHeartbeat) -> Option<String> {
    hb.snapshot().run_id
}

#[test]
fn an_inner_task_that_ends_leaves_the_worker_at_the_outer_one() {
    let world = World::new();
    let hb = stalling(&world);
    let outer = hb.begin_task("batch", "sending");
    outer.progress(1, 10);
    world.seconds(30);
    {
        let inner = hb.begin_task("item", "rendering");
        inner.progress(7, 9);
        assert_eq!(run(&hb).as_deref(), Some("item"));
        world.seconds(20);
    }
    assert_eq!(state(&hb), State::Processing);
    let snapshot = hb.snapshot();
    assert_eq!(snapshot.run_id.as_deref(), Some("batch"));
    assert_eq!(snapshot.task.as_deref(), Some("sending"));
    assert_eq!(snapshot.progress, Some((1, 10)));
    let age = snapshot.task_age.unwrap();
    assert!(age > 49 * SECOND && age <= 50 * SECOND, "{age:?}");
    outer.progress(2, 10);
    world.seconds(500);
    let health = hb.health();
    let Health::Stalled(stalled) = &health else {
        panic!("{health:?}");
    };
    assert_eq!(stalled.run_id.as_deref(), Some("batch"));
    assert!(!hb.is_recent());
    drop(outer);
    assert_eq!(state(&hb), State::Idle);
    assert_eq!(run(&hb), None);
}

#[test]
fn the_age_of_an_outer_task_does_not_restart_with_many_short_inner_ones() {
    let world = World::new();
    let hb = stalling(&world);
    let outer = hb.begin_task("batch", "");
    for n in 0..100 {
        drop(hb.begin_task(&format!("item-{n}"), ""));
        world.millis(500);
    }
    drop(hb.begin_task("last", ""));
    let age = hb.snapshot().task_age.unwrap();
    assert!(age > 48 * SECOND && age <= 50 * SECOND, "{age:?}");
    drop(outer);
}

#[test]
fn tasks_nest_on_several_levels_and_an_update_replaces_the_innermost() {
    let world = World::new();
    let hb = stalling(&world);
    let one = hb.begin_task("one", "");
    hb.update_task("one", "waiting for the lock", Activity::Active);
    let two = hb.begin_task("two", "");
    let three = hb.begin_task("three", "");
    hb.update_task("drei", "", Activity::Active);
    assert_eq!(run(&hb).as_deref(), Some("drei"));
    drop(three);
    assert_eq!(run(&hb).as_deref(), Some("two"));
    drop(two);
    let snapshot = hb.snapshot();
    assert_eq!(snapshot.run_id.as_deref(), Some("one"));
    assert_eq!(snapshot.task.as_deref(), Some("waiting for the lock"));
    assert_eq!(snapshot.activity, Activity::Active, "as it was");
    drop(one);
    assert_eq!(state(&hb), State::Idle);
}

#[test]
fn guards_that_end_out_of_order_bring_nothing_back() {
    let world = World::new();
    let hb = stalling(&world);
    let outer = hb.begin_task("outer", "");
    let inner = hb.begin_task("inner", "");
    drop(outer);
    assert_eq!(run(&hb).as_deref(), Some("inner"));
    drop(inner);
    assert_eq!(state(&hb), State::Idle);

    let ended = hb.begin_task("ended", "");
    let within = hb.begin_task("within", "");
    hb.mark_idle();
    assert_eq!(state(&hb), State::Idle);
    hb.update_task("next", "", Activity::Processing);
    drop(within);
    ended.progress(1, 2);
    drop(ended);
    assert_eq!(state(&hb), State::Processing);
    let snapshot = hb.snapshot();
    assert_eq!(snapshot.run_id.as_deref(), Some("next"));
    assert_eq!(snapshot.progress, None);
}

#[test]
fn a_worker_at_an_outer_task_is_not_stopped_as_idle() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (finish, finished) = channel::<()>();
    let (at_it, is_at_it) = channel();
    let worker = supervisor
        .spawn(world.worker("w"), move |hb| {
            let _outer = hb.begin_task("batch", "");
            drop(hb.begin_task("item", ""));
            at_it.send(())?;
            finished.recv()?;
            Ok(())
        })
        .unwrap();
    is_at_it.recv_timeout(PATIENCE).unwrap();
    worker.stop();
    assert_eq!(worker.probe().health().state(), State::Stopping);
    finish.send(()).unwrap();
    assert!(worker.join().is_completed());
    assert!(matches!(
        worker.probe().health(),
        Health::Stopped {
            by: StopCause::Supervisor,
            ..
        }
    ));
}

#[test]
fn a_panic_that_the_worker_catches_ends_the_job_and_not_the_worker() {
    let world = World::new();
    let hb = stalling(&world);
    for _ in 0..2 {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _job = hb.begin_task("job-1", "");
            let _step = hb.begin_task("step-1", "");
            let _quiet = hb.expect_silence(10 * SECOND);
            panic!("the job fails");
        }));
        assert!(caught.is_err());
        assert_eq!(state(&hb), State::Idle);
        world.seconds(500);
        assert_eq!(state(&hb), State::Idle, "it waits for its next job");
    }
    let outer = hb.begin_task("batch", "");
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let _job = hb.begin_task("job-2", "");
        panic!("the job fails");
    }));
    assert_eq!(run(&hb).as_deref(), Some("batch"));
    drop(outer);
}

#[test]
fn a_handle_made_while_its_thread_unwinds_does_not_die_of_that_panic() {
    struct CleansUp<'a>(&'a World);
    impl Drop for CleansUp<'_> {
        fn drop(&mut self) {
            let hb = self.0.worker("cleaner").id("cleaner").start().unwrap();
            drop(hb.begin_task("cleaning", ""));
        }
    }
    let world = World::new();
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let _cleans_up = CleansUp(&world);
        panic!("something else");
    }));
    let health = world.registry.get("cleaner").unwrap().health();
    assert!(matches!(
        health,
        Health::Stopped {
            by: StopCause::Drop,
            ..
        }
    ));
}

// --- blame -------------------------------------------------------------------------------------

fn died_at(worker: &SupervisedWorker) -> Option<String> {
    worker.join();
    match worker.probe().health() {
        Health::Dead { death, .. } => death.run_id.clone(),
        other => panic!("{other:?}"),
    }
}

fn spawn(
    world: &World,
    work: impl FnMut(&WorkerHeartbeat) -> Result<(), BoxError> + Send + 'static,
) -> SupervisedWorker {
    let supervisor = Supervisor::new(&world.registry);
    supervisor.spawn(world.worker("mailer"), work).unwrap()
}

/// A worker that finishes a task, rests, and then ends.
fn rests_and_ends(
    world: &World,
    task: fn(&WorkerHeartbeat),
    end: fn() -> Result<(), BoxError>,
) -> Option<String> {
    let (go_on, goes_on) = channel::<()>();
    let worker = spawn(world, move |hb| {
        task(hb);
        goes_on.recv()?;
        end()
    });
    eventually("idle", || worker.probe().health().state() == State::Idle);
    world.seconds(3 * 3_600);
    go_on.send(()).unwrap();
    died_at(&worker)
}

#[test]
fn a_task_that_ended_long_ago_is_not_blamed() {
    let world = World::new();
    let ends: [fn() -> Result<(), BoxError>; 3] = [
        || Err("the queue is closed".into()),
        || panic!("the queue is closed"),
        || Ok(()),
    ];
    let tasks: [fn(&WorkerHeartbeat); 4] = [
        |hb| drop(hb.begin_task("mail-1", "sending")),
        |hb| {
            hb.update_task("mail-1", "sending", Activity::Processing);
            hb.mark_idle();
        },
        |hb| {
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let _task = hb.begin_task("mail-1", "sending");
                panic!("mail-1 is odd");
            }));
        },
        |hb| {
            let _batch = hb.begin_task("batch", "");
            drop(hb.begin_task("mail-1", "sending"));
        },
    ];
    for task in tasks {
        for end in ends {
            assert_eq!(rests_and_ends(&world, task, end), None);
        }
    }
}

#[test]
fn a_task_that_was_marked_as_ended_is_not_blamed_for_what_follows_at_once() {
    let world = World::new();
    let worker = spawn(&world, |hb| {
        let _task = hb.begin_task("mail-1", "sending");
        hb.mark_idle();
        Err("the queue is closed".into())
    });
    assert_eq!(died_at(&worker), None);
    let worker = spawn(&world, |hb| {
        drop(hb.begin_task("mail-1", "sending"));
        Ok(())
    });
    assert_eq!(died_at(&worker), None, "it returned after the task");
}

#[test]
fn the_innermost_open_task_is_blamed() {
    let world = World::new();
    let ends: [fn() -> Result<(), BoxError>; 2] =
        [|| Err("disk full".into()), || panic!("disk full")];
    for end in ends {
        let worker = spawn(&world, move |hb| {
            let _batch = hb.begin_task("batch", "");
            drop(hb.begin_task("mail-1", ""));
            let _mail = hb.begin_task("mail-2", "");
            end()
        });
        assert_eq!(died_at(&worker).as_deref(), Some("mail-2"));
        let worker = spawn(&world, move |hb| {
            hb.update_task("mail-3", "", Activity::Processing);
            end()
        });
        assert_eq!(died_at(&worker).as_deref(), Some("mail-3"));
    }
}

#[test]
fn a_failure_that_the_worker_reports_itself_names_the_open_task_only() {
    let world = World::new();
    let named = |task: fn(&WorkerHeartbeat)| {
        let hb = stalling(&world);
        task(&hb);
        world.seconds(1);
        hb.fail("disk full");
        hb.health().to_string()
    };
    let idle = named(|hb| drop(hb.begin_task("mail-1", "")));
    assert_eq!(idle, "dead: failed: disk full");
    let open = named(|hb| hb.update_task("mail-1", "", Activity::Processing));
    assert_eq!(open, "dead: failed: disk full, during mail-1");
}

#[test]
fn nested_tasks_are_counted_as_progress_and_told_to_no_one_after_the_end() {
    let world = World::new();
    let hb = stalling(&world);
    let before = hb.snapshot().beats;
    drop(hb.begin_task("a", ""));
    assert_eq!(hb.snapshot().beats, before + 2);
    let open = hb.begin_task("b", "");
    hb.stop();
    drop(open);
    assert_eq!(hb.snapshot().late_updates, 1);
    world.millis(Duration::from_secs(1).as_millis() as u64);
    assert_eq!(state(&hb), State::Stopped);
}

// --- long names ----------------------------------------------------------------------------------

#[test]
fn a_run_whose_id_is_cut_is_still_one_run() {
    let world = World::new();
    let hb = stalling(&world);
    let url = format!("https://example.org/{}", "x".repeat(300));
    let task = hb.begin_task(&url, "fetching");
    task.progress(3, 10);
    for _ in 0..60 {
        world.seconds(1);
        hb.update_task(&url, "fetching", Activity::Processing);
    }
    let snapshot = hb.snapshot();
    assert_eq!(snapshot.progress, Some((3, 10)));
    assert!(snapshot.task_age.unwrap() >= 59 * SECOND);
    hb.update_task(&format!("{url}y"), "fetching", Activity::Processing);
    assert_eq!(
        hb.snapshot().progress,
        None,
        "another run of the same beginning"
    );
}

#[test]
fn an_id_that_is_made_is_one_that_is_allowed() {
    let world = World::new();
    let hb = world.worker(&"ä".repeat(100)).start().unwrap();
    assert!(
        world
            .worker("w")
            .id(format!("{}-2", hb.id()))
            .start()
            .is_ok()
    );
}

#[test]
fn a_failure_on_the_way_out_of_a_worker_that_was_asked_to_stop_is_not_lost() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let worker = supervisor
        .spawn(world.worker("w"), |hb| {
            hb.mark_idle();
            hb.stop_receiver().recv()?;
            hb.fail("the buffer could not be written");
            Ok(())
        })
        .unwrap();
    eventually("idle", || worker.probe().health().state() == State::Idle);
    worker.stop();
    worker.join();
    let told = worker.probe().health().to_string();
    assert!(told.contains("the buffer could not be written"), "{told}");
    let hb = stalling(&world);
    hb.stop();
    hb.fail("too late");
    assert_eq!(state(&hb), State::Stopped, "it stopped by itself");
}
