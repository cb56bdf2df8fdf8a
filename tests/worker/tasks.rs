//! Tasks: they nest, they end, and a death names the one that it happened in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::support::{PATIENCE, SECOND, World, eventually, names, state};
use worker_heartbeat::{
    Activity, BoxError, EventKind, Health, State, StopCause, SupervisedWorker, Supervisor, Text,
    WorkerHeartbeat,
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
        drop(hb.begin_task(format!("item-{n}"), ""));
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
fn nested_tasks_count_as_progress_and_are_not_shown_after_the_end() {
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
    hb.update_task(format!("{url}y"), "fetching", Activity::Processing);
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
    let sentence = worker.probe().health().to_string();
    assert!(
        sentence.contains("the buffer could not be written"),
        "{sentence}"
    );
    let hb = stalling(&world);
    hb.stop();
    hb.fail("too late");
    assert_eq!(state(&hb), State::Stopped, "it stopped by itself");
}

#[test]
fn a_step_is_shown_with_the_progress_of_its_task_and_ends_with_it() {
    let world = World::new();
    let hb = world.worker("backup").id("backup-1").start().unwrap();
    let step = || hb.snapshot().step;
    let outer = hb.begin_task("run-7", "nightly");
    assert_eq!(step(), None);
    outer.step("uploading");
    outer.progress(3, 10);
    assert_eq!(
        hb.snapshot().to_string(),
        "backup-1: processing run-7 (nightly), uploading, 3 of 10, for 0 s"
    );
    let inner = hb.begin_task("part-1", "");
    assert_eq!(step(), None, "the outer task has none");
    inner.step(format_args!("chunk {}", 12));
    assert_eq!(step().as_deref(), Some("chunk 12"));
    drop(inner);
    assert_eq!(step().as_deref(), Some("uploading"));
    hb.update_task("run-7", "still nightly", Activity::Processing);
    assert_eq!(
        step().as_deref(),
        Some("uploading"),
        "the same run continues"
    );
    hb.update_task("run-8", "nightly", Activity::Processing);
    assert_eq!(step(), None, "another run");
    drop(outer);
    let task = hb.begin_task("run-9", "");
    assert_eq!(step(), None, "buffers are used again, and empty");
    task.step("ä".repeat(200));
    let cut = step().unwrap();
    assert!(cut.len() <= 200 && cut.ends_with('…'), "{cut}");
    task.step("");
    assert_eq!(step(), None);
    let beats = hb.snapshot().beats;
    task.step("uploading");
    assert_eq!(hb.snapshot().beats, beats + 1);
    hb.stop();
    task.step("too late");
    assert_eq!(hb.snapshot().late_updates, 1);
}

#[test]
fn a_task_that_fails_is_an_event_and_a_count_and_its_worker_goes_on() {
    let world = World::new();
    let events = world.registry.subscribe();
    let hb = world.worker("mailer").id("mailer-1").start().unwrap();
    let batch = hb.begin_task("batch-7", "sending");
    let mail = hb.begin_task("mail-1", "");
    assert_eq!(names(&events), ["registered"]);
    mail.fail("no such\nmailbox");
    let event = events.try_recv().unwrap();
    assert_eq!(
        event.to_string(),
        "worker mailer-1: task failed: no such\\nmailbox, during mail-1"
    );
    assert!(matches!(
        &event.kind,
        EventKind::TaskFailed { run_id: Some(run_id), task: None, error, .. }
            if run_id == "mail-1" && error == "no such\nmailbox"
    ));
    mail.fail("again");
    assert!(events.try_recv().is_err(), "a task fails once");
    assert_eq!(state(&hb), State::Processing);
    drop(mail);
    assert_eq!(run(&hb).as_deref(), Some("batch-7"));
    let mail = hb.begin_task("mail-1", "the same run again is another task");
    mail.fail_with(&std::fmt::Error);
    drop(mail);
    batch.fail("one of two");
    drop(batch);
    let failed = |hb: &WorkerHeartbeat| hb.snapshot().failed_tasks;
    assert_eq!(failed(&hb), 3);
    let other = world.worker("other").start().unwrap();
    other.begin_task("run-1", "").fail("too");
    assert_eq!((failed(&hb), failed(&other)), (3, 1));
    assert_eq!(world.registry.summary().failed_tasks, 4);
    assert!(world.registry.summary().is_healthy());
    let ended = other.begin_task("run-2", "");
    other.stop();
    ended.fail("after the end of its worker");
    assert_eq!((failed(&other), other.snapshot().late_updates), (1, 1));
    drop(ended);
    drop(other);
    assert_eq!(world.registry.summary().failed_tasks, 4, "it stays counted");
}

/// A value whose `Display` calls the registry as well.
struct Chatty<'a>(&'a WorkerHeartbeat);

impl std::fmt::Display for Chatty<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let task = self.0.begin_task(format_args!("{} {}", "within", 1), "");
        let named = run(self.0);
        drop(task);
        write!(f, "said {}", named.unwrap_or_default())
    }
}

struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("half")?;
        Err(std::fmt::Error)
    }
}

struct Id(u32);

impl Text for Id {
    fn with_str<R>(&self, read: impl FnOnce(&str) -> R) -> R {
        format_args!("run-{:03}", self.0).with_str(read)
    }
}

#[test]
fn runs_and_tasks_are_named_by_what_can_be_shown() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let named = || {
        let snapshot = hb.snapshot();
        (snapshot.run_id.unwrap(), snapshot.task.unwrap())
    };
    let same = |named: (String, String), run: &str, task: &str| {
        assert_eq!((&*named.0, &*named.1), (run, task));
    };
    hb.update_task(String::from("run-1"), 'x', Activity::Processing);
    same(named(), "run-1", "x");
    hb.update_task(String::from("run-2"), -7, Activity::Processing);
    same(named(), "run-2", "-7");
    let shared: std::sync::Arc<str> = "shared".into();
    hb.update_task(Id(7), &shared, Activity::Processing);
    same(named(), "run-007", "shared");
    let (a, b) = ("two", "texts");
    let _task = hb.begin_task(format_args!("{a}"), format_args!("{a} {b}"));
    same(named(), "two", "two texts");
    hb.update_task(
        format_args!("{}", Chatty(&hb)),
        format_args!("{Broken}"),
        Activity::Active,
    );
    same(
        named(),
        "said within 1",
        "half[incomplete: its Display returned an error]",
    );
    hb.update_task(9_u64, format_args!("a constant"), Activity::Active);
    same(named(), "9", "a constant");
}

#[test]
fn tasks_can_be_named_in_a_destructor_at_the_end_of_a_thread() {
    struct LastTask(std::sync::Arc<WorkerHeartbeat>);
    impl Drop for LastTask {
        fn drop(&mut self) {
            let (run, task) = (7, "flushing");
            self.0
                .update_task(run, format_args!("{task} {run}"), Activity::Processing);
        }
    }
    thread_local! {
        static LAST: std::cell::RefCell<Option<LastTask>> = const { std::cell::RefCell::new(None) };
    }
    let world = World::new();
    let hb = std::sync::Arc::new(world.worker("w").start().unwrap());
    let last = LastTask(std::sync::Arc::clone(&hb));
    let thread = std::thread::spawn(move || {
        LAST.set(Some(last));
        // Its buffers are made after the destructor is registered, and dropped before it runs.
        let hb = LAST.with_borrow(|last| last.as_ref().map(|last| std::sync::Arc::clone(&last.0)));
        hb.unwrap().update_task(1, 2, Activity::Active);
    });
    thread.join().unwrap();
    let snapshot = hb.snapshot();
    assert_eq!(snapshot.run_id.as_deref(), Some("7"));
    assert_eq!(snapshot.task.as_deref(), Some("flushing 7"));
}
