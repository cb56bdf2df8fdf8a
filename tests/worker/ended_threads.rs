//! A worker whose thread has ended while its handle is still there.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use crate::support::{SECOND, World, names, state, wait_for};
use worker_heartbeat::{
    Activity, BoxError, Builder, Health, Probe, StallCause, State, Supervisor, WorkerHeartbeat,
};

/// A thread that works on behalf of the worker, and then ends. When this returns, the kernel no
/// longer lists the thread.
fn on_a_thread(hb: &Arc<WorkerHeartbeat>, work: impl FnOnce(&WorkerHeartbeat) + Send + 'static) {
    let hb = Arc::clone(hb);
    let (send_id, receive_id) = channel();
    let thread = thread::spawn(move || {
        let link = std::fs::read_link("/proc/thread-self").unwrap();
        send_id.send(link.file_name().unwrap().to_owned()).unwrap();
        work(&hb);
    });
    let id = receive_id.recv().unwrap();
    thread.join().unwrap();
    let task = std::path::Path::new("/proc/self/task").join(id);
    while task.exists() {
        thread::yield_now();
    }
}

fn worker(world: &World, set: impl FnOnce(Builder) -> Builder) -> Arc<WorkerHeartbeat> {
    let builder = set(world.worker("w").interval(SECOND).stale_after(30 * SECOND));
    Arc::new(builder.start().unwrap())
}

fn thread_ended(probe: &Probe) -> bool {
    match probe.health() {
        Health::Stalled(stalled) => stalled.cause == StallCause::ThreadEnded,
        _ => false,
    }
}

#[test]
fn a_worker_whose_thread_has_ended_is_convicted_at_the_next_look() {
    let limits: [fn(Builder) -> Builder; 4] = [
        |builder| builder,
        |builder| builder.stall_after(600 * SECOND),
        |builder| builder.beats_only(),
        |builder| {
            builder
                .stale_after(3_600 * SECOND)
                .startup_grace(9 * SECOND)
        },
    ];
    let works: [fn(&WorkerHeartbeat); 4] = [
        |hb| hb.update_task("run-1", "indexing", Activity::Processing),
        |hb| {
            hb.bind_thread();
            hb.beat();
        },
        |hb| std::mem::forget(hb.begin_task("run-1", "indexing")),
        |hb| {
            hb.update_task("run-1", "", Activity::Active);
            std::mem::forget(hb.expect_silence(9_000 * SECOND));
        },
    ];
    for set in limits {
        for work in works {
            let world = World::new();
            let hb = worker(&world, set);
            let probe = hb.probe();
            let events = world.registry.subscribe();
            on_a_thread(&hb, work);
            assert!(probe.is_recent(), "the worker has just beaten");
            world.seconds(1);
            assert!(thread_ended(&probe), "{}", probe.health());
            assert!(!probe.is_recent());
            assert_eq!(probe.snapshot().health.state(), State::Stalled);
            let summary = world.registry.summary();
            assert_eq!(summary.states.get(State::Stalled), 1);
            assert_eq!(summary.stalled_workers.len(), 1);
            assert!(!summary.is_healthy());
            world.seconds(100);
            assert!(thread_ended(&probe), "{}", probe.health());
            let heartbeat = probe.snapshot().heartbeat_age.unwrap();
            assert!(
                heartbeat >= 99 * SECOND,
                "the pacemaker does not vouch: {heartbeat:?}"
            );
            let reported = names(&events);
            assert_eq!(
                reported.iter().filter(|name| *name == "stalled").count(),
                1,
                "{reported:?}"
            );
        }
    }
}

#[test]
fn its_sentence_says_so() {
    let world = World::new();
    let hb = worker(&world, |builder| builder.stall_after(600 * SECOND));
    on_a_thread(&hb, |hb| {
        hb.update_task("run-1", "indexing", Activity::Processing)
    });
    world.seconds(5);
    let said = hb.health().to_string();
    let begin = "stalled: no progress for 5 s; its thread has ended, last seen at ";
    assert!(said.starts_with(begin), "{said}");
    assert!(said.ends_with(", during run-1 (indexing)"), "{said}");
}

#[test]
fn a_thread_that_ended_before_the_first_beat_is_not_waited_for() {
    let world = World::new();
    let hb = worker(&world, |builder| builder.startup_grace(900 * SECOND));
    world.seconds(5);
    on_a_thread(&hb, WorkerHeartbeat::bind_thread);
    world.seconds(1);
    assert!(thread_ended(&hb.probe()), "{}", hb.health());
    assert!(hb.snapshot().heartbeat_age.is_none());
}

#[test]
fn a_handle_that_a_thread_local_keeps_is_convicted_too() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<WorkerHeartbeat>> = const { std::cell::RefCell::new(None) };
    }
    let world = World::new();
    let hb = world.worker("w").id("w").start().unwrap();
    let probe = hb.probe();
    let (finish, finished): (Sender<()>, _) = channel();
    // The thread passes its handle to a thread that does nothing with it.
    let (hand_on, handed_on) = channel::<WorkerHeartbeat>();
    let keeper = thread::spawn(move || {
        let hb = handed_on.recv().unwrap();
        KEPT.set(Some(hb));
        let _ = finished.recv();
    });
    thread::spawn(move || {
        hb.update_task("run-1", "", Activity::Processing);
        hand_on.send(hb).unwrap();
    })
    .join()
    .unwrap();
    crate::support::eventually("its thread has ended", || {
        world.seconds(1);
        thread_ended(&probe)
    });
    drop(finish);
    keeper.join().unwrap();
    assert_eq!(
        probe.health().state(),
        State::Stopped,
        "the handle was dropped"
    );
}

#[test]
fn a_worker_that_goes_on_without_the_thread_recovers_and_stays_well() {
    let world = World::new();
    let hb = worker(&world, |builder| builder.stall_after(60 * SECOND));
    let events = world.registry.subscribe();
    on_a_thread(&hb, |hb| hb.update_task("run-1", "", Activity::Processing));
    world.seconds(2);
    assert!(thread_ended(&hb.probe()));
    hb.beat();
    assert!(hb.is_recent());
    world.seconds(1);
    wait_for(&events, "recovered from stalled");
    world.seconds(59);
    assert!(
        hb.is_recent(),
        "the worker is no longer bound to that thread"
    );
    world.seconds(1);
    assert!(matches!(
        hb.health(),
        Health::Stalled(stalled) if stalled.cause == StallCause::Unknown
    ));

    hb.update_task("run-2", "", Activity::Processing);
    world.seconds(10);
    assert!(hb.is_recent());
    on_a_thread(&hb, |hb| hb.bind_thread());
    world.seconds(2);
    assert!(thread_ended(&hb.probe()), "another thread, another end");
    hb.update_task("run-4", "", Activity::Processing);
    assert!(hb.is_recent());
}

#[test]
fn a_helper_that_reports_and_ends_is_not_the_end_of_the_worker() {
    let world = World::new();
    let hb = worker(&world, |builder| builder.stall_after(600 * SECOND));
    hb.update_task("run-1", "reading", Activity::Processing);
    on_a_thread(&hb, |hb| {
        hb.update_task("run-1", "first half", Activity::Processing)
    });
    world.seconds(500);
    assert!(hb.is_recent(), "its own thread lives: {}", hb.health());

    // All threads that ever reported have ended.
    let hb = worker(&world, |builder| builder.stall_after(600 * SECOND));
    for run in ["run-1", "run-2", "run-3"] {
        let run = run.to_owned();
        on_a_thread(&hb, move |hb| {
            hb.update_task(&run, "", Activity::Processing)
        });
    }
    world.seconds(2);
    assert!(thread_ended(&hb.probe()), "{}", hb.health());

    // More threads than the evidence keeps apart, and the first one lives.
    let hb = worker(&world, |builder| builder);
    hb.mark_idle();
    for n in 0..200 {
        on_a_thread(&hb, move |hb| {
            hb.update_task(n.to_string(), "", Activity::Processing)
        });
    }
    world.seconds(5);
    assert!(hb.is_recent(), "{}", hb.health());
}

#[test]
fn a_worker_that_beats_on_other_threads_is_not_convicted_for_one_of_them() {
    let world = World::new();
    let hb = worker(&world, |builder| builder.stall_after(60 * SECOND));
    let events = world.registry.subscribe();
    on_a_thread(&hb, |hb| hb.update_task("run-1", "", Activity::Processing));
    // Each tick finds that the worker continues.
    for _ in 0..100 {
        hb.beat();
        world.millis(400);
        assert!(hb.is_recent(), "{}", hb.health());
    }
    assert!(!names(&events).contains(&"stalled".to_owned()));
}

#[test]
fn a_worker_at_rest_may_take_up_its_next_task_on_another_thread() {
    let world = World::new();
    let hb = worker(&world, |builder| builder.stall_after(60 * SECOND));
    on_a_thread(&hb, |hb| drop(hb.begin_task("run-1", "")));
    world.seconds(900);
    assert_eq!(state(&hb), State::Idle);
    on_a_thread(&hb, |hb| drop(hb.begin_task("run-2", "")));
    world.seconds(900);
    assert_eq!(state(&hb), State::Idle);
}

#[test]
fn a_helper_that_does_an_inner_task_does_not_bind_the_outer_one() {
    let world = World::new();
    let hb = worker(&world, |builder| builder.stall_after(60 * SECOND));
    let outer = hb.begin_task("outer", "");
    on_a_thread(&hb, |hb| drop(hb.begin_task("inner", "")));
    world.seconds(50);
    assert_eq!(state(&hb), State::Processing);
    assert_eq!(hb.snapshot().run_id.as_deref(), Some("outer"));
    drop(outer);
}

#[test]
fn a_supervised_worker_is_watched_by_its_supervisor() {
    let world = World::new();
    let (finish, finished) = channel::<()>();
    let (report_start, started) = channel();
    let worker = Supervisor::new(&world.registry)
        .spawn(
            world.worker("w").finite(),
            move |hb: &WorkerHeartbeat| -> Result<(), BoxError> {
                thread::scope(|scope| {
                    scope.spawn(|| hb.update_task("run-1", "", Activity::Processing));
                });
                report_start.send(())?;
                finished.recv()?;
                Ok(())
            },
        )
        .unwrap();
    started.recv().unwrap();
    world.seconds(500);
    assert!(worker.probe().is_recent(), "{}", worker.probe().health());
    finish.send(()).unwrap();
    assert!(worker.join().is_completed());
}

/// Threads that start and end all the time, and thread ids that are used again.
#[test]
fn no_worker_is_mistaken_for_one_of_another_thread() {
    let world = World::new();
    let dead = worker(&world, |builder| builder);
    on_a_thread(&dead, |hb| hb.update_task("dead", "", Activity::Processing));
    let (finish, finished) = channel::<()>();
    let finished = Arc::new(std::sync::Mutex::new(finished));
    let living: Vec<_> = (0..20)
        .map(|_| {
            let hb = worker(&world, |builder| builder);
            let (busy, finished) = (Arc::clone(&hb), Arc::clone(&finished));
            let (report_start, started) = channel();
            let thread = thread::spawn(move || {
                busy.update_task("alive", "", Activity::Processing);
                report_start.send(()).unwrap();
                let _ = finished.lock().unwrap().recv();
            });
            started.recv().unwrap();
            (hb, thread)
        })
        .collect();
    for _ in 0..20 {
        on_a_thread(&worker(&world, |builder| builder), WorkerHeartbeat::beat);
        world.seconds(1);
        for (hb, _) in &living {
            assert!(hb.is_recent(), "{}", hb.health());
        }
    }
    assert!(thread_ended(&dead.probe()));
    drop(finish);
    for (_, thread) in living {
        thread.join().unwrap();
    }
}
