//! The registry: which workers it has, which are missing, and its events.

mod policies;
#[path = "../support/mod.rs"]
mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use support::executor::block_on;
use support::{SECOND, World, names, state};
use worker_heartbeat::{
    Activity, Error, EventKind, GroupState, Registry, State, StopCause, Supervisor, WorkerHeartbeat,
};

#[test]
fn workers_are_found_by_id_and_listed_in_order() {
    let world = World::new();
    let one = world.worker("w").id("one").start().unwrap();
    let two = world.worker("w").id("two").start().unwrap();
    let ids = || -> Vec<_> {
        let workers = world.registry.workers();
        workers.iter().map(|probe| probe.id().to_owned()).collect()
    };
    assert_eq!(ids(), ["one", "two"]);
    assert_eq!(world.registry.get("two").unwrap().worker_type(), "w");
    assert!(world.registry.get("three").is_none());
    one.fail("x");
    drop(one);
    assert_eq!(ids(), ["two", "one"], "the dead stay visible");
    assert!(world.registry.get("one").is_some());
    drop(two);
}

#[test]
fn a_duplicate_id_of_a_living_worker_is_refused() {
    let world = World::new();
    let one = world.worker("w").id("one").start().unwrap();
    let error = world.worker("w").id("one").start().unwrap_err();
    assert!(matches!(&error, Error::DuplicateId { id, .. } if id == "one"));
    assert!(
        error
            .to_string()
            .contains("\"one\" belongs to a living worker")
    );
    let elsewhere = WorkerHeartbeat::builder("w").id("one");
    assert!(elsewhere.registry(&Registry::new()).start().is_ok());
    drop(one);
}

#[test]
fn an_id_that_is_free_again_is_a_new_incarnation_with_its_history() {
    let world = World::new();
    let first = world.worker("w").id("one").start().unwrap();
    first.beat();
    first.fail("disk full");
    // The old handle may still exist: its worker has ended.
    let second = world.worker("w").id("one").start().unwrap();
    first.beat();
    let snapshot = second.snapshot();
    assert_eq!(snapshot.incarnation, 2);
    assert_eq!(snapshot.restarts, 1);
    assert_eq!(
        snapshot.beats, 0,
        "late beats of the first do not count for the second"
    );
    let death = snapshot.last_death.unwrap();
    assert_eq!(death.cause.to_string(), "failed: disk full");
    assert_eq!(state(&second), State::Starting);
    assert_eq!(world.registry.summary().total, 1, "one id, one worker");
    drop(first);
    assert_eq!(world.registry.summary().total, 1);
    second.stop();
    drop(second);
    let third = world.worker("w").id("one").start().unwrap();
    let snapshot = third.snapshot();
    assert_eq!((snapshot.incarnation, snapshot.restarts), (3, 2));
    assert!(
        snapshot.last_death.is_some(),
        "its last death is remembered"
    );
    assert_eq!(world.registry.summary().total, 1);
}

#[test]
fn a_cell_is_used_again_without_a_trace_of_its_last_occupant() {
    let world = World::new();
    let mut ids = std::collections::HashSet::new();
    for round in 0..1_000 {
        let hb = world.worker("w").start().unwrap();
        assert!(ids.insert(hb.id().to_owned()), "an id is never used again");
        let snapshot = hb.snapshot();
        assert_eq!(snapshot.health.state(), State::Starting, "round {round}");
        assert_eq!((snapshot.beats, snapshot.run_id), (0, None));
        hb.update_task("run", "task", Activity::Processing);
        if round % 7 == 0 {
            world.seconds(1);
        }
        let probe = hb.probe();
        drop(hb);
        let next = world.worker("w").start().unwrap();
        next.beat();
        assert_eq!(
            probe.health().state(),
            State::Stopped,
            "an old probe does not see the new occupant"
        );
        assert_eq!(probe.snapshot().beats, 1);
    }
}

#[test]
fn the_summary_counts_by_state_type_and_group() {
    let world = World::new();
    let indexer = |id: &str| world.worker("indexer").id(id).group("m1").start().unwrap();
    let (idle, busy, dead) = (indexer("idle"), indexer("busy"), indexer("dead"));
    idle.mark_idle();
    busy.update_task("run", "task", Activity::Processing);
    dead.fail("disk full");
    let fetcher = world.worker("fetcher").group("m2").start().unwrap();
    drop(fetcher);
    let starting = world.worker("fetcher").group("m3").start().unwrap();

    let summary = world.registry.summary();
    assert_eq!(
        (summary.total, summary.total_active, summary.total_dead),
        (5, 2, 1)
    );
    assert_eq!(summary.dead_workers.len(), 1);
    assert_eq!(summary.dead_workers[0].id, "dead");
    assert!(
        summary.dead_workers[0]
            .health
            .to_string()
            .contains("disk full")
    );
    let stats = summary.stats_by_type["indexer"];
    assert_eq!((stats.total, stats.active, stats.dead), (3, 2, 1));
    assert_eq!(stats.states.get(State::Processing), 1);
    assert_eq!(summary.stats_by_type["fetcher"].total, 2);
    assert_eq!(summary.groups["m1"].state, GroupState::Online);
    assert_eq!(summary.groups["m2"].state, GroupState::Stopped);
    assert_eq!(summary.groups["m3"].state, GroupState::Online);
    assert!(!summary.is_healthy());
    assert!(
        summary
            .to_string()
            .starts_with("2 active, 1 dead, 1 starting, 1 stopped; dead: dead: failed: disk full")
    );
    drop(starting);
}

#[test]
fn a_group_is_offline_when_all_its_workers_that_were_not_stopped_are() {
    let world = World::new();
    let group = || world.registry.group("m");
    assert_eq!(group(), GroupState::Unknown);
    let one = world.worker("w").group("m").start().unwrap();
    let two = world.worker("w").group("m").start().unwrap();
    let three = world.worker("w").group("m").start().unwrap();
    one.fail("x");
    assert_eq!(group(), GroupState::Online);
    two.stop();
    assert_eq!(group(), GroupState::Online);
    three.fail("y");
    assert_eq!(group(), GroupState::Offline);
    drop((one, three));
    assert_eq!(
        group(),
        GroupState::Offline,
        "no worker gets healthy by vanishing"
    );
    world.registry.purge(Duration::ZERO);
    assert_eq!(group(), GroupState::Stopped);
    drop(two);
}

#[test]
fn a_missing_worker_is_unhealthy_too() {
    let world = World::new();
    world.registry.expect_workers("indexer", 2);
    let summary = world.registry.summary();
    assert!(!summary.is_healthy());
    assert_eq!(summary.missing[0].living, 0);
    assert_eq!(
        summary.to_string(),
        "0 active, 0 dead; 0 of 2 expected workers of type indexer live"
    );
    let events = world.registry.subscribe();
    let one = world.worker("indexer").start().unwrap();
    let two = world.worker("indexer").start().unwrap();
    world.seconds(1);
    assert!(world.registry.summary().is_healthy());
    drop(two);
    world.seconds(1);
    assert!(!world.registry.summary().is_healthy());
    let again = world.worker("indexer").start().unwrap();
    world.seconds(1);
    assert!(world.registry.summary().is_healthy());
    let reported: Vec<_> = names(&events)
        .into_iter()
        .filter(|name| name == "missing" || name == "complete")
        .collect();
    assert_eq!(reported, ["missing", "complete"], "each once");
    world.registry.expect_workers("indexer", 0);
    drop((one, again));
    assert!(world.registry.summary().missing.is_empty());
}

#[test]
fn workers_that_never_came_are_missed() {
    let world = World::new();
    let events = world.registry.subscribe();
    world.registry.expect_workers("indexer", 3);
    assert!(events.try_recv().is_err(), "they may be about to come");
    world.seconds(1);
    let event = events.try_recv().unwrap();
    assert_eq!(
        event.to_string(),
        "0 of 3 expected workers of type indexer live"
    );
    world.seconds(100);
    assert!(events.try_recv().is_err(), "reported once");
    let _come: Vec<_> = (0..3)
        .map(|_| world.worker("indexer").start().unwrap())
        .collect();
    world.seconds(1);
    assert!(names(&events).contains(&"complete".to_owned()));
}

#[test]
fn the_last_worker_that_ends_is_missed() {
    let world = World::new();
    world.registry.expect_workers("w", 1);
    let hb = world.worker("w").start().unwrap();
    world.seconds(1);
    let events = world.registry.subscribe();
    drop(hb);
    world.seconds(1);
    assert_eq!(names(&events), ["stopped", "missing"]);
}

#[test]
fn a_sweep_reports_each_offline_worker_once() {
    let world = World::new();
    let worker = |id: &str, group: &str| {
        let worker = world.worker("w").id(id).group(group).beats_only();
        worker.start().unwrap()
    };
    let (stale, well) = (worker("stale", "m1"), worker("well", "m2"));
    let (dead, _never) = (worker("dead", "m2"), worker("never", "m3"));
    stale.beat();
    well.beat();
    dead.fail("x");
    let report = world.registry.sweep();
    assert!(report.success);
    assert_eq!(report.marked_offline, ["dead"]);
    assert!(report.affected_groups.is_empty(), "m2 has a well worker");
    world.seconds(91);
    well.beat();
    let report = world.registry.sweep();
    assert_eq!(report.marked_offline, ["stale", "never"]);
    assert_eq!(report.affected_groups, ["m1", "m3"]);
    assert!(report.released_leases.is_empty());
    assert!(world.registry.sweep().marked_offline.is_empty());
    stale.beat();
    world.seconds(1);
    assert!(world.registry.sweep().marked_offline.is_empty());
    world.seconds(91);
    well.beat();
    let report = world.registry.sweep();
    assert_eq!(
        report.marked_offline,
        ["stale"],
        "a new episode is reported again"
    );
}

#[test]
fn tombstones_are_bounded_and_can_be_purged() {
    let world = World::new();
    for n in 0..2_000 {
        let hb = world.worker("w").start().unwrap();
        if n < 1_500 {
            hb.fail(n);
        }
    }
    let summary = world.registry.summary();
    assert_eq!(summary.states.get(State::Dead), 1_024);
    assert_eq!(summary.states.get(State::Stopped), 256);
    assert_eq!(summary.forgotten, 2_000 - 1_024 - 256);
    world.seconds(60);
    let held = world.worker("w").start().unwrap();
    held.fail("its handle is still there");
    assert_eq!(world.registry.purge(120 * SECOND), 0);
    assert_eq!(world.registry.purge(60 * SECOND), 1_280);
    assert_eq!(world.registry.workers().len(), 1);
    assert_eq!(world.registry.purge(Duration::ZERO), 0);
    drop(held);
    assert_eq!(world.registry.purge(Duration::ZERO), 1);
    assert!(world.registry.workers().is_empty());
}

#[test]
fn a_slow_subscriber_loses_the_oldest_events_and_learns_how_many() {
    let world = World::new();
    let slow = world.registry.subscribe_with_capacity(3);
    let hb = world.worker("w").stall_after(10 * SECOND).start().unwrap();
    for _ in 0..5 {
        hb.beat();
        world.seconds(11);
    }
    drop(hb);
    let total = 1 + 1 + 5 * 2 + 4 + 1;
    assert_eq!(slow.dropped(), total - 3);
    assert_eq!(names(&slow), ["late", "stalled", "stopped"]);
}

/// Counts how often it is woken.
#[derive(Default)]
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn events_are_awaited_on_any_executor() {
    let world = World::new();
    let events = world.registry.subscribe();
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let context = &mut Context::from_waker(&waker);
    let woken = || alarm.0.swap(0, Ordering::SeqCst);

    let mut waits = events.recv_async();
    assert!(Pin::new(&mut waits).poll(context).is_pending());
    assert_eq!(woken(), 0);
    let hb = world.worker("w").id("w-1").start().unwrap();
    assert_eq!(woken(), 1);
    let Poll::Ready(Ok(event)) = Pin::new(&mut waits).poll(context) else {
        panic!("woken for nothing");
    };
    assert_eq!(event.to_string(), "worker w-1: registered");
    drop(waits);

    // A future that is dropped before it is ready takes no event, and leaves no waker behind.
    let mut cancelled = events.recv_async();
    assert!(Pin::new(&mut cancelled).poll(context).is_pending());
    hb.fail("disk full");
    assert_eq!(woken(), 1);
    drop(cancelled);
    let event = block_on(events.recv_async()).unwrap();
    assert_eq!(event.to_string(), "worker w-1: dead: failed: disk full");
    let mut cancelled = events.recv_async();
    assert!(Pin::new(&mut cancelled).poll(context).is_pending());
    drop(cancelled);
    drop(world.worker("w").start().unwrap());
    assert_eq!(woken(), 0);
    assert_eq!(names(&events), ["registered", "stopped"]);

    let mut waits = events.recv_async();
    assert!(Pin::new(&mut waits).poll(context).is_pending());
    drop((hb, world));
    assert_eq!(woken(), 1, "the registry was dropped");
    assert!(matches!(
        Pin::new(&mut waits).poll(context),
        Poll::Ready(Err(_))
    ));
}

#[test]
fn a_task_that_is_woken_and_given_up_leaves_its_event_to_the_others() {
    let registry = Registry::new();
    let events = registry.subscribe();
    let [first, second] = [(); 2].map(|()| Arc::new(Alarm::default()));
    let [first_waker, second_waker] = [&first, &second].map(|one| Waker::from(Arc::clone(one)));
    let woken = |alarm: &Alarm| alarm.0.swap(0, Ordering::SeqCst);
    let mut given_up = events.recv_async();
    let mut waits = events.recv_async();
    let context = &mut Context::from_waker(&first_waker);
    assert!(Pin::new(&mut given_up).poll(context).is_pending());
    let context = &mut Context::from_waker(&second_waker);
    assert!(Pin::new(&mut waits).poll(context).is_pending());
    let hb = WorkerHeartbeat::builder("w").registry(&registry).start();
    assert_eq!(woken(&first), 1);
    drop(given_up);
    assert_eq!(woken(&second), 1);
    assert!(Pin::new(&mut waits).poll(context).is_ready());

    // A future that moves to another task wakes that one only.
    let mut moved = events.recv_async();
    for waker in [&first_waker, &second_waker] {
        let context = &mut Context::from_waker(waker);
        assert!(Pin::new(&mut moved).poll(context).is_pending());
    }
    drop(hb);
    assert_eq!((woken(&first), woken(&second)), (0, 1));
}

#[test]
fn several_tasks_at_one_subscription_share_its_events() {
    const EVENTS: usize = 400;
    let registry = Registry::new();
    let events = registry.subscribe();
    let received = thread::scope(|scope| {
        let receivers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut received = 0;
                    while block_on(events.recv_async()).is_ok() {
                        received += 1;
                    }
                    received
                })
            })
            .collect();
        for _ in 0..EVENTS / 2 {
            let hb = WorkerHeartbeat::builder("w").registry(&registry);
            drop(hb.start().unwrap());
        }
        drop(registry);
        let received = receivers.into_iter().map(|one| one.join().unwrap());
        received.sum::<usize>()
    });
    assert_eq!(received, EVENTS);
    assert_eq!(events.dropped(), 0);
}

/// A waker may run any code: it may query the registry for the event that woke it.
#[test]
fn a_waker_may_ask_the_registry_about_the_event() {
    struct Nosy(Registry);
    impl Wake for Nosy {
        fn wake(self: Arc<Self>) {
            for worker in self.0.workers() {
                let _ = worker.snapshot();
            }
            let hb = WorkerHeartbeat::builder("nosy").registry(&self.0);
            drop(hb.start().unwrap());
        }
    }
    let world = World::new();
    let events = world.registry.subscribe();
    let waker = Waker::from(Arc::new(Nosy(world.registry.clone())));
    let supervisor = Supervisor::new(&world.registry);
    let hb = world.worker("w").start().unwrap();
    let _task = hb.begin_task("run-1", "until asked");
    while events.try_recv().is_ok() {}
    for happens in [
        &|| hb.supervise(std::future::ready(())).stop(),
        &|| hb.fail("disk full"),
        &|| drop(supervisor.shutdown(SECOND)),
    ] as [&dyn Fn(); 3]
    {
        let mut waits = events.recv_async();
        let context = &mut Context::from_waker(&waker);
        assert!(Pin::new(&mut waits).poll(context).is_pending());
        happens();
        while events.try_recv().is_ok() {}
    }
    assert!(world.registry.workers().len() >= 3, "it was woken twice");
}

#[test]
fn a_subscription_is_read_by_a_loop() {
    let world = World::new();
    let events = world.registry.subscribe();
    drop(world.worker("w").id("w-1").start().unwrap());
    drop(world);
    let mut read = Vec::new();
    for event in &events {
        read.push(event.kind.to_string());
    }
    assert_eq!(read, ["registered", "stopped: its handle was dropped"]);
}

#[test]
fn counters_include_workers_that_were_purged() {
    let world = World::new();
    let slow = world.registry.subscribe_with_capacity(1);
    let start = |id: &str| {
        let builder = world.worker("w").id(id).stall_after(10 * SECOND);
        builder.start().unwrap()
    };
    let hb = start("a");
    hb.beat();
    hb.begin_task("run-1", "").fail("no");
    hb.update_task("run-2", "", Activity::Processing);
    world.seconds(11);
    hb.fail("disk full");
    drop(hb);
    start("a").stop();
    drop(start("b"));
    world.registry.purge(Duration::ZERO);
    assert!(world.registry.sweep().success);

    let counters = world.registry.counters();
    let of_type = &counters.by_type["w"];
    assert_eq!((of_type.registrations, of_type.restarts), (3, 1));
    assert_eq!((of_type.stalls, of_type.late_warnings), (1, 1));
    assert_eq!((of_type.stale_episodes, of_type.never_started), (0, 0));
    assert_eq!((of_type.failed_tasks, of_type.give_ups), (1, 0));
    assert_eq!(of_type.deaths["failed"], 1);
    assert_eq!(of_type.deaths.values().sum::<u64>(), 1);
    assert!(of_type.beats >= 4, "{}", of_type.beats);
    assert_eq!(counters.dropped_events, slow.dropped());
    assert!(counters.dropped_events > 0);
    assert!(counters.pacemaker_ticks > 0);
    assert_eq!(counters.sweeps.successes, 1);
    drop(slow);
    assert!(world.registry.counters().dropped_events >= counters.dropped_events);

    let mut all = std::collections::BTreeMap::new();
    counters.each(|name, labels, value| {
        let before = all.insert(format!("{name} {labels:?}"), value);
        assert!(before.is_none(), "{name} {labels:?} is exported twice");
    });
    let deaths = r#"deaths [("worker_type", "w"), ("cause", "failed")]"#;
    assert_eq!(all[deaths], 1);
    assert_eq!(all[r#"sweeps [("result", "success")]"#], 1);
}

#[test]
fn a_sweep_reads_as_a_sentence() {
    let world = World::new();
    let start = |n| world.worker("w").id(format!("w-{n}")).group("g").start();
    let workers: Vec<_> = (1..=18).map(|n| start(n).unwrap()).collect();
    assert_eq!(
        world.registry.sweep().to_string(),
        "nothing to mark offline"
    );
    workers.iter().for_each(|hb| hb.fail("disk full"));
    let names: Vec<_> = (1..=16).map(|n| format!("w-{n}")).collect();
    assert_eq!(
        world.registry.sweep().to_string(),
        format!(
            "marked offline: {} and 2 more; groups offline: g",
            names.join(", ")
        )
    );
}

#[test]
fn events_name_their_worker() {
    let world = World::new();
    let events = world.registry.subscribe();
    let hb = world.worker("w").id("one").group("m").start().unwrap();
    let event = events.try_recv().unwrap();
    assert!(matches!(event.kind, EventKind::Registered));
    assert_eq!(event.id(), "one");
    let worker = event.worker.as_ref().unwrap();
    assert_eq!((&*worker.worker_type, &*worker.group), ("w", "m"));
    assert_eq!(worker.incarnation, 1);
    assert_eq!(event.to_string(), "worker one: registered");
    assert!(events.try_recv().is_err());
    drop(hb);
}

#[test]
fn registering_and_the_summary_do_not_disturb_each_other() {
    let registry = Registry::new();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..3_000 {
                    let hb = WorkerHeartbeat::builder("w").registry(&registry).start();
                    let hb = hb.unwrap();
                    hb.beat();
                    assert!(hb.is_recent());
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..300 {
                let summary = registry.summary();
                assert_eq!(summary.total_dead, 0);
                assert!(
                    summary.states.get(State::Active) + summary.states.get(State::Starting) <= 3
                );
                assert!(registry.workers().len() <= 3 + 3 + 256);
            }
        });
    });
}

#[test]
fn one_id_is_one_worker_while_it_is_taken_over() {
    let registry = Registry::new();
    // This worker keeps the pacemaker, so that the other one registers and ends as fast as
    // possible.
    let keeper = WorkerHeartbeat::builder("keeper").registry(&registry);
    let _keeper = keeper.start().unwrap();
    let again = || {
        let hb = WorkerHeartbeat::builder("w").id("x").registry(&registry);
        hb.start().unwrap().fail("x");
    };
    again();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                again();
            }
        });
        let mut seen = [[0; 3]; 2];
        for _ in 0..100_000 {
            let summary = registry.summary().total - 1;
            let listed = registry.workers().len() - 1;
            seen[0][summary] += 1;
            seen[1][listed] += 1;
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(seen, [[0, 100_000, 0]; 2], "not at all, once, twice");
    });
}

#[test]
fn the_pacemaker_is_one_thread_and_ends_with_the_last_handle() {
    // Other tests of this program have pacemakers too.
    support::process::in_child(|| {
        let pacemakers = || {
            std::fs::read_dir("/proc/self/task")
                .unwrap()
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
                .filter(|name| name.starts_with("wh-"))
                .count()
        };
        let registry = Registry::new();
        assert_eq!(pacemakers(), 0);
        for _ in 0..100 {
            let many: Vec<_> = (0..50)
                .map(|_| {
                    WorkerHeartbeat::builder("w")
                        .registry(&registry)
                        .start()
                        .unwrap()
                })
                .collect();
            support::eventually("one", || pacemakers() == 1);
            drop(many);
            assert_eq!(pacemakers(), 0, "joined when the drop returns");
        }
        registry.expect_workers("w", 0);
        assert_eq!(pacemakers(), 0, "no worker is expected");
        registry.expect_workers("w", 2);
        registry.expect_workers("v", 2);
        support::eventually("one", || pacemakers() == 1);
        let hb = WorkerHeartbeat::builder("w").registry(&registry).start();
        drop(hb.unwrap());
        assert_eq!(
            pacemakers(),
            1,
            "a pacemaker must notice that the worker is missing"
        );
        drop(registry);
        assert_eq!(pacemakers(), 0, "ended with the registry");
    });
}

#[test]
fn a_worker_may_outlive_its_registry_variable() {
    let hb = {
        let registry = Registry::new();
        WorkerHeartbeat::builder("w")
            .registry(&registry)
            .start()
            .unwrap()
    };
    hb.beat();
    assert!(hb.is_recent());
    assert_eq!(hb.registry().workers().len(), 1);
}

#[test]
fn long_and_odd_task_texts_do_no_harm() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.update_task("r".repeat(5_000), "ü".repeat(5_000), Activity::Processing);
    let snapshot = hb.snapshot();
    let (run_id, task) = (snapshot.run_id.unwrap(), snapshot.task.unwrap());
    assert!(run_id.len() <= 200 && run_id.ends_with('…'));
    assert!(task.len() <= 1_024 && task.ends_with('…'));
    hb.update_task("a\u{0}b\n", "\u{1b}[31mred", Activity::Processing);
    let line = hb.snapshot().to_string();
    assert!(!line.chars().any(char::is_control), "{line:?}");
    hb.update_task("", "", Activity::Active);
    assert_eq!(hb.snapshot().run_id, None);
    hb.update_task("x", "", Activity::Idle);
    assert_eq!(state(&hb), State::Idle);
    let _ = hb.expect_silence(Duration::MAX);
}

#[test]
fn absurd_arguments_do_no_harm() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    assert_eq!(world.registry.purge(Duration::MAX), 0);
    world.registry.expect_workers("", usize::MAX);
    assert!(!world.registry.summary().is_healthy());
    drop(world.registry.subscribe_with_capacity(0));
    let supervisor = Supervisor::new(&world.registry);
    assert!(supervisor.shutdown(Duration::MAX).is_clean());
    let probe = hb.probe();
    drop(hb);
    assert!(matches!(
        probe.health(),
        worker_heartbeat::Health::Stopped {
            by: StopCause::Drop,
            ..
        }
    ));
    world.time.advance(Duration::ZERO);
    world
        .time
        .suspend(Duration::from_secs(u64::MAX / 4_000_000_000));
    assert!(!probe.is_recent());
}
