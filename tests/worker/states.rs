//! Every state, with its reason.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::{SECOND, World, eventually, names, state};
use worker_heartbeat::{
    Activity, DeathCause, Health, Registry, StallCause, State, StopCause, WorkerHeartbeat,
};

fn debug(hb: &WorkerHeartbeat) -> String {
    format!("{:?}", hb.health())
}

#[test]
fn a_life_goes_through_its_states() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    assert_eq!(state(&hb), State::Starting);
    hb.beat();
    assert_eq!(state(&hb), State::Active);
    hb.mark_idle();
    assert_eq!(state(&hb), State::Idle);
    hb.beat();
    assert_eq!(state(&hb), State::Idle, "an idle worker may beat");
    hb.update_task("run-123", "Researching example.com", Activity::Processing);
    assert_eq!(state(&hb), State::Processing);
    {
        let task = hb.begin_task("run-124", "Researching example.org");
        task.progress(3, 10);
        world.seconds(12);
        assert_eq!(state(&hb), State::Processing);
        assert_eq!(
            hb.snapshot().to_string(),
            format!(
                "{}: processing run-124 (Researching example.org), 3 of 10, for 12 s",
                hb.id()
            )
        );
    }
    assert_eq!(state(&hb), State::Idle, "the task ended with its guard");
    assert_eq!(hb.snapshot().run_id, None);
    hb.stop();
    assert_eq!(state(&hb), State::Stopped);
}

#[test]
fn six_ends_are_six_different_answers() {
    let world = World::new();
    let never_started = world.worker("never").startup_grace(SECOND).start().unwrap();
    let stalled = world.worker("stalled").stall_after(SECOND).start().unwrap();
    stalled.beat();
    let stopped = world.worker("stopped").start().unwrap();
    stopped.stop();
    let failed = world.worker("failed").start().unwrap();
    failed.fail("disk full");
    let panicked = world.worker("panicked").start().unwrap();
    let panicked_probe = panicked.probe();
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let _its_life = panicked;
        panic!("reported by the thread itself");
    }));
    let supervisor = worker_heartbeat::Supervisor::new(&world.registry);
    let exited = supervisor
        .spawn(world.worker("exited"), |_| Ok(()))
        .unwrap();
    assert!(exited.join().is_completed());
    world.seconds(2);

    for (health, names) in [
        (never_started.health(), vec!["NeverStarted"]),
        (stalled.health(), vec!["Stalled"]),
        (stopped.health(), vec!["Stopped", "Stop"]),
        (
            failed.health(),
            vec!["Dead", "Failed", "error: \"disk full\""],
        ),
        (panicked_probe.health(), vec!["Dead", "Panicked"]),
        (exited.probe().health(), vec!["Dead", "Exited"]),
    ] {
        let text = format!("{health:?}");
        for name in names {
            assert!(text.contains(name), "{name} in {text}");
        }
        assert!(!health.is_recent());
        assert!(health.to_string().len() > 10);
    }
}

#[test]
fn the_end_is_final_and_late_signs_are_counted() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    hb.beat();
    hb.stop();
    for _ in 0..3 {
        hb.beat();
    }
    hb.update_task("late", "late", Activity::Processing);
    hb.mark_idle();
    hb.begin_task("late", "late").progress(1, 2);
    drop(hb.expect_silence(SECOND));
    hb.fail("too late");
    hb.stop();
    world.seconds(10);
    assert!(debug(&hb).contains("Stopped"));
    assert!(hb.is_over());
    let snapshot = hb.snapshot();
    assert_eq!(snapshot.beats, 2);
    assert_eq!(snapshot.late_beats, 3);
    assert_eq!(snapshot.late_updates, 5);
    assert_eq!(snapshot.run_id, None);
    let probe = hb.probe();
    drop(hb);
    assert_eq!(probe.snapshot().late_beats, 3, "and they stay counted");
}

#[test]
fn a_dropped_handle_is_stopped_and_an_unwinding_one_is_dead() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    let probe = hb.probe();
    drop(hb);
    assert!(matches!(
        probe.health(),
        Health::Stopped {
            by: StopCause::Drop,
            ..
        }
    ));
    struct Odd;
    let hb = world.worker("w").start().unwrap();
    let probe = hb.probe();
    let panicking = thread::Builder::new().name("the-thread".into());
    let joined = panicking
        .spawn(move || {
            let _task = hb.begin_task("run-9", "doomed");
            panic_any(Odd);
        })
        .unwrap()
        .join();
    assert!(joined.is_err());
    let Health::Dead { death, .. } = probe.health() else {
        panic!("{:?}", probe.health());
    };
    assert_eq!(death.run_id.as_deref(), Some("run-9"));
    let DeathCause::Panicked { thread, .. } = &death.cause else {
        panic!("{death:?}");
    };
    assert_eq!(thread, "the-thread");
}

#[test]
fn a_sentence_for_the_operator() {
    let world = World::new();
    let hb = world.worker("w").stall_after(60 * SECOND).start().unwrap();
    hb.update_task("run-123", "Researching", Activity::Processing);
    world.seconds(75);
    let sentence = hb.health().to_string();
    assert!(
        sentence.starts_with("stalled: no progress for 1 min 15 s, 1 min allowed; "),
        "{sentence}"
    );
    assert!(
        sentence.ends_with(", during run-123 (Researching)"),
        "{sentence}"
    );
    hb.fail("no route to host");
    world.seconds(3);
    assert_eq!(
        hb.health().to_string(),
        "dead: failed: no route to host, 3 s ago, during run-123 (Researching)"
    );
}

// --- silences ----------------------------------------------------------------------------------

#[test]
fn an_announced_silence_is_allowed_for_as_long_as_announced() {
    let world = World::new();
    let hb = world.worker("w").stall_after(60 * SECOND).start().unwrap();
    hb.beat();
    {
        let _quiet = hb.expect_silence(600 * SECOND);
        world.seconds(600);
        assert!(hb.is_recent());
        world.seconds(1);
        assert_eq!(state(&hb), State::Stalled, "it expires by itself");
    }
    assert!(hb.is_recent(), "its end is a sign of life");
    world.seconds(60);
    assert!(hb.is_recent());
    world.seconds(1);
    assert_eq!(state(&hb), State::Stalled, "the old allowance is back");
}

#[test]
fn silences_nest_and_are_taken_back_in_any_order() {
    let world = World::new();
    let hb = world.worker("w").stall_after(60 * SECOND).start().unwrap();
    hb.beat();
    let outer = hb.expect_silence(1_000 * SECOND);
    {
        let _inner = hb.expect_silence(100 * SECOND);
        world.seconds(200);
        assert!(hb.is_recent(), "the longer one counts");
    }
    world.seconds(700);
    assert!(hb.is_recent(), "the outer one is back");
    let other = hb.expect_silence(200 * SECOND);
    drop(outer);
    world.seconds(190);
    assert!(hb.is_recent(), "the other one still counts");
    drop(other);
    world.seconds(61);
    assert_eq!(state(&hb), State::Stalled);
}

#[test]
fn a_silence_extends_a_beats_only_heartbeat_too() {
    let world = World::new();
    let hb = world.worker("w").beats_only().start().unwrap();
    hb.beat();
    let _quiet = hb.expect_silence(600 * SECOND);
    world.seconds(600);
    assert!(hb.is_recent());
    world.seconds(1);
    assert_eq!(state(&hb), State::Stale);
}

// --- episodes ------------------------------------------------------------------------------------

#[test]
fn states_are_episodes_and_not_floods() {
    let world = World::new();
    let events = world.registry.subscribe();
    let hb = world.worker("w").stall_after(60 * SECOND).start().unwrap();
    hb.beat();
    world.seconds(100_000);
    hb.beat();
    world.seconds(1);
    assert_eq!(
        names(&events),
        [
            "registered",
            "started",
            "late",
            "stalled",
            "recovered from stalled"
        ]
    );
    world.seconds(46);
    hb.beat();
    world.seconds(1);
    hb.stop();
    hb.stop();
    drop(hb);
    assert_eq!(
        names(&events),
        ["late", "stopped"],
        "a warning needs no recovery"
    );
}

#[test]
fn a_warning_comes_before_the_conviction_however_short_the_allowance() {
    for allowance in 20..60 {
        let world = World::new();
        let events = world.registry.subscribe();
        let worker = world.worker("w");
        let hb = worker
            .stall_after(Duration::from_millis(allowance))
            .start()
            .unwrap();
        hb.beat();
        world.millis(200);
        let reported = names(&events);
        let expected = ["registered", "started", "late", "stalled"];
        assert_eq!(reported, expected, "with {allowance} ms");
    }
}

#[test]
fn a_stall_after_an_idle_time_is_reported() {
    let world = World::new();
    let hb = world.worker("w").stall_after(60 * SECOND).start().unwrap();
    hb.mark_idle();
    world.seconds(1_000);
    let events = world.registry.subscribe();
    hb.update_task("run", "task", Activity::Processing);
    world.seconds(60);
    assert_eq!(names(&events), ["late"]);
    world.seconds(1);
    assert_eq!(names(&events), ["stalled"]);
}

#[test]
fn a_beats_only_worker_that_stalls_after_an_idle_time_is_reported_in_time() {
    let world = World::new();
    let worker = world.worker("w").stale_after(900 * SECOND).beats_only();
    let hb = worker.stall_after(60 * SECOND).start().unwrap();
    hb.mark_idle();
    world.seconds(100);
    hb.update_task("run", "task", Activity::Processing);
    let events = world.registry.subscribe();
    world.seconds(61);
    assert_eq!(names(&events), ["late", "stalled"]);
}

// --- evidence: real threads, real time -----------------------------------------------------------

#[cfg(target_os = "linux")]
mod evidence {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn worker(registry: &Registry) -> WorkerHeartbeat {
        WorkerHeartbeat::builder("w")
            .stall_after(Duration::from_millis(300))
            .registry(registry)
            .start()
            .unwrap()
    }

    fn cause(hb: &worker_heartbeat::Probe) -> Option<StallCause> {
        match hb.health() {
            Health::Stalled(stalled) => Some(stalled.cause),
            _ => None,
        }
    }

    #[test]
    fn a_worker_that_spins_is_busy() {
        let registry = Registry::new();
        let hb = worker(&registry);
        let probe = hb.probe();
        let over = Arc::new(AtomicBool::new(false));
        let ordered = Arc::clone(&over);
        let spinning = thread::spawn(move || {
            hb.update_task("run", "spin", Activity::Processing);
            while !ordered.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        // On a crowded machine it may be starved for a while first.
        eventually("busy", || {
            matches!(cause(&probe), Some(StallCause::Busy { .. }))
                || matches!(cause(&probe), Some(StallCause::Starved { .. }))
        });
        assert!(probe.health().to_string().contains(" % of "));
        over.store(true, Ordering::Relaxed);
        spinning.join().unwrap();
    }

    #[test]
    fn a_worker_that_waits_is_blocked() {
        let registry = Registry::new();
        let hb = worker(&registry);
        let probe = hb.probe();
        let (over, wait) = mpsc::channel::<()>();
        let blocked = thread::spawn(move || {
            let _task = hb.begin_task("run", "wait");
            let _ = wait.recv();
        });
        eventually("blocked", || {
            matches!(cause(&probe), Some(StallCause::Blocked { .. }))
        });
        drop(over);
        blocked.join().unwrap();
    }

    #[test]
    fn a_future_that_is_not_polled_is_reported_as_blocked() {
        let world = World::new();
        let hb = world.worker("w").stall_after(SECOND).start().unwrap();
        let mut future = Box::pin(hb.supervise(std::future::pending::<()>()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        world.seconds(2);
        let sentence = hb.health().to_string();
        assert!(sentence.contains("blocked in its future"), "{sentence}");
    }

    #[test]
    fn evidence_of_an_earlier_silence_is_not_reported_for_a_later_one() {
        let world = World::new();
        let hb = world.worker("w").stall_after(100 * SECOND).start().unwrap();
        let (mut found, mut polls) = (None, 0);
        {
            let mut future = Box::pin(hb.supervise(std::future::poll_fn(|_| {
                polls += 1;
                if polls == 1 {
                    return std::task::Poll::Pending;
                }
                // It stalls in its poll.
                world.seconds(101);
                found = Some(hb.health().to_string());
                std::task::Poll::Ready(())
            })));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(future.as_mut().poll(&mut context).is_pending());
            // Long enough for a warning, and for evidence.
            world.seconds(80);
            assert!(future.as_mut().poll(&mut context).is_ready());
        }
        let found = found.unwrap();
        assert!(found.starts_with("stalled"), "{found}");
        assert!(!found.contains("its future"), "{found}");
    }

    #[test]
    fn a_worker_that_only_beats_can_bind_its_thread() {
        let registry = Registry::new();
        let hb = worker(&registry);
        hb.bind_thread();
        assert_eq!(state(&hb), State::Starting, "which is no beat");
        hb.beat();
        let probe = hb.probe();
        let unbound = worker(&registry);
        unbound.beat();
        eventually("known", || {
            cause(&probe).is_some_and(|cause| cause != StallCause::Unknown)
        });
        eventually("stalled", || cause(&unbound.probe()).is_some());
        assert_eq!(cause(&unbound.probe()), Some(StallCause::Unknown));
    }
}
