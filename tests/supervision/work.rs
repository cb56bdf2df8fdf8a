//! Supervised threads and futures: every end is reported.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe, panic_any};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use crate::support::executor::{block_on, poll_once};
use crate::support::{PATIENCE, SECOND, World, eventually, names, wait_for};
use worker_heartbeat::{
    Activity, BoxError, DeathCause, Error, Exit, Health, Probe, Restart, State, StopCause,
    Supervised, SupervisedFuture, Supervisor, WorkerHeartbeat,
};

fn cause(probe: &Probe) -> DeathCause {
    match probe.health() {
        Health::Dead { death, .. } => death.cause.clone(),
        other => panic!("{other:?}"),
    }
}

/// The first line of this file with this text in it.
fn line_of(text: &str) -> usize {
    let lines = include_str!("work.rs").lines();
    lines.take_while(|line| !line.contains(text)).count() + 1
}

fn until_stopped(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
    while !hb.stop_requested() {
        hb.beat();
        // The pace of the work; no test depends on it.
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

// --- threads ---------------------------------------------------------------------------------

#[test]
fn a_panic_during_set_up_is_reported_with_message_location_thread_and_backtrace() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let events = world.registry.subscribe();
    let worker = supervisor
        .spawn(world.worker("jobs").id("jobs-1"), |_| {
            panic!("no module named {}", "server")
        })
        .unwrap();
    assert!(matches!(
        worker.join(),
        Exit::Panicked { message, location: Some(location), .. }
            if message == "no module named server" && location.contains("work.rs:")
    ));
    let DeathCause::Panicked {
        message,
        location,
        thread,
        backtrace,
    } = cause(&worker.probe())
    else {
        panic!("{:?}", worker.probe().health());
    };
    assert_eq!(message, "no module named server");
    assert!(location.unwrap().contains("tests/supervision/work.rs:"));
    assert_eq!(thread, "jobs-1");
    assert!(backtrace.unwrap().to_string().contains("supervision"));
    let sentence = worker.probe().health().to_string();
    assert!(
        sentence.starts_with("dead: panicked at tests/supervision/work.rs:"),
        "{sentence}"
    );
    assert!(sentence.ends_with(": no module named server"), "{sentence}");
    assert_eq!(names(&events), ["registered", "dead"]);
    assert!(
        !world.registry.summary().is_healthy(),
        "the worker does not vanish"
    );
}

#[test]
fn a_death_names_its_run() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let died_in = |work: fn(&WorkerHeartbeat) -> Result<(), BoxError>| {
        let worker = supervisor.spawn(world.worker("w"), work).unwrap();
        worker.join();
        match worker.probe().health() {
            Health::Dead { death, .. } => death.run_id.clone(),
            other => panic!("{other:?}"),
        }
    };
    let run = Some("run-7".to_owned());
    assert_eq!(
        died_in(|hb| {
            let _task = hb.begin_task("run-7", "x");
            panic!("inside")
        }),
        run
    );
    assert_eq!(
        died_in(|hb| {
            let _task = hb.begin_task("run-7", "x");
            Err("the guard is dropped before the error is returned".into())
        }),
        run
    );
    assert_eq!(
        died_in(|hb| {
            drop(hb.begin_task("run-7", "x"));
            hb.beat();
            Err("something else".into())
        }),
        None
    );
}

#[derive(Debug)]
struct CannotRead(io::Error);

impl std::fmt::Display for CannotRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cannot read the queue")
    }
}

impl std::error::Error for CannotRead {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[test]
fn an_error_is_reported_with_its_causes() {
    let world = World::new();
    let worker = Supervisor::new(&world.registry)
        .spawn(world.worker("w"), |_| {
            Err(CannotRead(io::Error::other("disk full")).into())
        })
        .unwrap();
    assert!(matches!(
        worker.join(),
        Exit::Failed { error, .. } if error == "cannot read the queue: disk full"
    ));
    assert!(matches!(cause(&worker.probe()), DeathCause::Failed { .. }));
}

#[test]
fn an_unrequested_return_is_a_death_unless_the_work_is_finite() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let early = supervisor.spawn(world.worker("w"), |_| Ok(())).unwrap();
    assert!(early.join().is_completed());
    assert!(matches!(cause(&early.probe()), DeathCause::Exited));
    let finite = supervisor
        .spawn(world.worker("w").finite(), |_| Ok(()))
        .unwrap();
    assert!(finite.join().is_completed());
    assert!(matches!(
        finite.probe().health(),
        Health::Stopped {
            by: StopCause::Completed,
            ..
        }
    ));
    let own = supervisor
        .spawn(world.worker("w"), |hb| {
            hb.stop();
            Ok(())
        })
        .unwrap();
    own.join();
    assert!(matches!(
        own.probe().health(),
        Health::Stopped {
            by: StopCause::Stop,
            ..
        }
    ));
}

#[test]
fn a_worker_may_say_itself_that_it_failed() {
    let world = World::new();
    let worker = Supervisor::new(&world.registry)
        .spawn(world.worker("w"), |hb| {
            hb.fail("x".repeat(100_000));
            Ok(())
        })
        .unwrap();
    assert!(matches!(worker.join(), Exit::Failed { error, .. } if error.len() <= 8_192));
    assert!(matches!(cause(&worker.probe()), DeathCause::Failed { .. }));
}

#[test]
fn a_failure_on_the_way_to_a_stop_is_not_hidden_by_the_stop() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    for panics in [false, true] {
        let worker = supervisor
            .spawn(world.worker("w"), move |hb| {
                let task = hb.begin_task("run-1", "invoice");
                let stop = hb.stop_receiver();
                stop.recv()?;
                // The guard makes the worker idle, which ends a worker that was asked to stop.
                drop(task);
                assert!(!panics, "disk full");
                Err("disk full: invoice lost".into())
            })
            .unwrap();
        eventually("at work", || worker.probe().is_recent());
        worker.stop();
        assert!(!worker.join().is_completed());
        assert!(worker.probe().health().to_string().contains("disk full"));
    }
    assert_eq!(world.registry.summary().total_dead, 2);
}

// --- the calling thread ------------------------------------------------------------------------

#[inline(never)]
fn imports(files: &[&str]) -> usize {
    files
        .iter()
        .map(|file| file.parse::<usize>().unwrap())
        .sum()
}

#[test]
fn a_panic_of_work_on_the_calling_thread_keeps_message_location_thread_and_stack() {
    let world = World::new();
    let files = ["1", "two"];
    let probe = thread::scope(|scope| {
        let hb = world.worker("import").id("import-1").start().unwrap();
        let probe = hb.probe();
        let thread = thread::Builder::new().name("share-1".into());
        let share = thread.spawn_scoped(scope, move || {
            let error = hb.run(|| imports(&files)).unwrap_err();
            let Error::Panicked {
                id,
                message,
                location,
                ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_eq!(id, "import-1");
            assert!(message.contains("ParseIntError"), "{message}");
            let line = line_of("parse::<usize>().unwrap()");
            let place = format!("work.rs:{line}:");
            assert!(location.as_ref().unwrap().contains(&place), "{location:?}");
        });
        share.unwrap().join().unwrap();
        probe
    });
    let DeathCause::Panicked {
        message,
        location: Some(location),
        thread,
        backtrace: Some(stack),
        ..
    } = cause(&probe)
    else {
        panic!("{:?}", probe.health());
    };
    assert!(message.contains("ParseIntError"), "{message}");
    assert!(location.contains("work.rs:"), "{location}");
    assert_eq!(thread, "share-1");
    assert!(stack.to_string().contains("imports"), "{stack}");
}

#[test]
fn work_on_the_calling_thread_returns_what_it_returns_and_ends_its_worker() {
    let world = World::new();
    let start = |id| world.worker("w").id(id).start().unwrap();
    let health = |id: &str| world.registry.get(id).unwrap().health();

    let hb = start("completed");
    assert_eq!(hb.run(|| 7).unwrap(), 7);
    assert!(matches!(
        health("completed"),
        Health::Stopped {
            by: StopCause::Completed,
            ..
        }
    ));

    let hb = start("failed");
    let work =
        || -> Result<(), BoxError> { Err(Box::new(CannotRead(io::Error::other("disk full")))) };
    let returned = hb.run(work).unwrap();
    assert_eq!(returned.unwrap_err().to_string(), "cannot read the queue");
    let death = health("failed").to_string();
    assert!(
        death.contains("failed: cannot read the queue: disk full"),
        "{death}"
    );

    let hb = start("asked");
    let asked = hb.run(|| {
        let _task = hb.begin_task("run-1", "until asked");
        hb.supervise(pending::<()>()).stop();
        hb.wait_for_stop_timeout(PATIENCE)
    });
    assert!(asked.unwrap());
    assert!(matches!(
        health("asked"),
        Health::Stopped {
            by: StopCause::Supervisor,
            ..
        }
    ));

    // A failure replaces a clean end, as always; nothing replaces a failure.
    let hb = start("over");
    hb.stop();
    assert!(hb.run(|| panic!("after its end")).is_err());
    assert!(health("over").to_string().contains("after its end"));
    assert_eq!(hb.run(|| 7).unwrap(), 7);
    assert!(health("over").to_string().contains("after its end"));
}

#[test]
fn children_of_work_on_the_calling_thread_end_before_it_returns() {
    let world = World::new();
    for panics in [false, true] {
        let hb = world.worker("parent").start().unwrap();
        let children = Supervisor::linked_to(&hb);
        let result = hb.run(|| {
            children
                .spawn(world.worker("child").id("child-1"), until_stopped)
                .unwrap();
            assert!(!panics, "disk full");
        });
        assert_eq!(result.is_err(), panics);
        let child = world.registry.get("child-1").unwrap();
        assert!(child.health().state().is_terminal());
    }
}

#[test]
fn a_handle_of_a_former_life_runs_work_without_ending_what_the_present_life_started() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry).restart(patient());
    let former = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&former);
    let running = supervisor.supervise(world.worker("parent").id("parent"), move |hb| {
        let first = kept
            .lock()
            .unwrap()
            .get_or_insert_with(|| Arc::clone(&hb))
            .id()
            == "parent"
            && hb.snapshot().incarnation == 1;
        async move {
            if first {
                return Err("once");
            }
            let children = Supervisor::linked_to(&hb);
            let child = WorkerHeartbeat::builder("child").id("child");
            children.spawn(child, until_stopped).unwrap();
            hb.wait_for_stop().await;
            Ok(())
        }
    });
    let running = running.unwrap();
    let thread = thread::spawn(move || block_on(running));
    eventually("the second life", || {
        world.seconds(1);
        world
            .registry
            .get("child")
            .is_some_and(|child| child.is_recent())
    });
    let former = former.lock().unwrap().take().unwrap();
    assert_eq!(former.run(|| 7).unwrap(), 7);
    assert!(former.run(|| panic!("long over")).is_err());
    assert!(world.registry.get("child").unwrap().is_recent());
    assert!(world.registry.get("parent").unwrap().is_recent());
    drop(former);
    assert!(supervisor.shutdown(PATIENCE).is_clean());
    assert!(thread.join().unwrap().is_completed());
}

// --- what work may return ------------------------------------------------------------------------

/// As `anyhow::Error`: not an error itself, but it becomes one.
struct Anyhow(&'static str);

impl From<Anyhow> for BoxError {
    fn from(error: Anyhow) -> Self {
        error.0.into()
    }
}

fn work_with_another_error(hb: &WorkerHeartbeat) -> Result<(), Anyhow> {
    hb.beat();
    Err(Anyhow("disk full"))
}

#[test]
fn work_that_returns_another_error_is_spawned_by_a_closure() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let worker = supervisor.spawn(world.worker("w"), |hb| Ok(work_with_another_error(hb)?));
    assert_eq!(worker.unwrap().join().to_string(), "failed: disk full");
}

#[test]
fn a_type_of_the_application_decides_whether_it_is_a_failure() {
    #[derive(Debug, PartialEq)]
    enum Import {
        Done,
        Rejected(usize),
    }
    impl worker_heartbeat::Outcome for Import {
        fn failure(&self) -> Option<String> {
            match self {
                Self::Done => None,
                Self::Rejected(files) => Some(format!("{files} files rejected")),
            }
        }
    }
    let world = World::new();
    let start = || world.worker("w").start().unwrap();
    let hb = start();
    assert_eq!(hb.run(|| Import::Done).unwrap(), Import::Done);
    assert_eq!(hb.health().state(), State::Stopped);
    let hb = start();
    assert_eq!(hb.run(|| Import::Rejected(3)).unwrap(), Import::Rejected(3));
    assert!(hb.health().to_string().contains("failed: 3 files rejected"));
    let hb = start();
    let output = block_on(hb.supervise(async { Import::Rejected(4) }));
    assert_eq!(output.unwrap(), Import::Rejected(4));
    assert!(hb.health().to_string().contains("failed: 4 files rejected"));
}

#[test]
fn an_exit_reads_as_words_and_becomes_a_result() {
    let world = World::new();
    let give_up = Supervisor::new(&world.registry).restart(Restart::on_failure().max(0));
    let supervisor = Supervisor::new(&world.registry);
    let finite = || world.worker("w").finite();
    let completed = supervisor.spawn(finite(), |_| Ok(())).unwrap().join();
    assert_eq!(completed.to_string(), "completed");
    assert!(completed.into_result().is_ok());
    let line = line_of("panic!(\"no\\nmore\")");
    let panicked = supervisor
        .spawn(finite(), |_| panic!("no\nmore"))
        .unwrap()
        .join();
    let words = panicked.to_string();
    assert!(words.starts_with("panicked at "), "{words}");
    assert!(words.contains(&format!("work.rs:{line}:")), "{words}");
    assert!(words.ends_with(": no\\nmore"), "on one line: {words}");
    let given_up = give_up
        .spawn(finite(), |_| Err("disk full".into()))
        .unwrap()
        .join();
    let words = "given up after 0 restarts: failed: disk full";
    assert_eq!(given_up.to_string(), words);
    let error = given_up.into_result().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("supervised work did not complete: {words}")
    );
    assert!(matches!(
        error,
        Error::NotCompleted {
            exit: Exit::GaveUp { restarts: 0, .. },
            ..
        }
    ));
    let never_polled = supervisor.supervise(finite(), |_| pending::<()>()).unwrap();
    let stopped = supervisor.shutdown(Duration::ZERO);
    assert_eq!(stopped.hung.len(), 1);
    let words = stopped.to_string();
    assert!(words.starts_with("0 of 1 workers ended, took "), "{words}");
    assert!(words.contains("; still at work: w-"), "{words}");
    drop(never_polled);
    assert_eq!(Exit::Cancelled.to_string(), "cancelled");
    assert!(
        Exit::Cancelled.into_result().is_err(),
        "it was not completed"
    );
}

#[test]
fn a_worker_waits_for_its_stop_or_for_the_next_time() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (turn, turns) = mpsc::channel();
    let worker = supervisor
        .spawn(world.worker("janitor"), move |hb| {
            loop {
                hb.mark_idle();
                let asked = hb.wait_for_stop_timeout(60 * SECOND);
                turn.send(asked)?;
                if asked {
                    return Ok(());
                }
            }
        })
        .unwrap();
    assert!(turns.try_recv().is_err());
    let mut waited = 0;
    for turn in 1..=3 {
        eventually("a turn", || {
            world.seconds(1);
            waited += 1;
            turns.try_recv() == Ok(false)
        });
        assert!(waited >= 60 * turn, "{waited} s by the registry's clock");
    }
    worker.stop();
    assert!(turns.recv_timeout(PATIENCE).unwrap());
    assert!(worker.join().is_completed());
}

#[test]
fn supervised_futures_have_names_and_can_be_asked_to_stop() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let lives: SupervisedFuture<_> = supervisor
        .supervise(world.worker("w").id("lives"), |hb| async move {
            hb.wait_for_stop().await
        })
        .unwrap();
    let hb = world.worker("w").id("once").start().unwrap();
    let once: Supervised<_> = hb.supervise(hb.wait_for_stop());
    assert_eq!((lives.id(), once.id()), ("lives", "once"));
    let probes = [lives.probe(), once.probe()];
    lives.stop();
    once.stop();
    assert!(block_on(lives).is_completed());
    block_on(once).unwrap();
    for probe in probes {
        let health = probe.health();
        let by_supervisor = matches!(
            &health,
            Health::Stopped {
                by: StopCause::Supervisor,
                ..
            }
        );
        assert!(by_supervisor, "{}: {health}", probe.id());
    }
}

/// In code that catches panics, handles are used without `AssertUnwindSafe`.
#[test]
fn handles_are_unwind_safe() {
    fn safe<T: UnwindSafe + RefUnwindSafe>() {}
    safe::<WorkerHeartbeat>();
    safe::<worker_heartbeat::TaskGuard<'_>>();
    safe::<worker_heartbeat::SilenceGuard<'_>>();
    safe::<worker_heartbeat::Builder>();
    safe::<Probe>();
    safe::<worker_heartbeat::Snapshot>();
    safe::<worker_heartbeat::Summary>();
    safe::<worker_heartbeat::Registry>();
    safe::<worker_heartbeat::Subscription>();
    safe::<worker_heartbeat::Event>();
    safe::<worker_heartbeat::Clock>();
    safe::<worker_heartbeat::MockClock>();
    safe::<Supervisor>();
    safe::<Restart>();
    safe::<worker_heartbeat::SupervisedWorker>();
    safe::<Exit>();
    safe::<worker_heartbeat::StopReport>();
    safe::<worker_heartbeat::Shutdown>();
    safe::<worker_heartbeat::ShutdownReport>();
    safe::<worker_heartbeat::Lease>();
    safe::<worker_heartbeat::MemoryStore>();
    safe::<worker_heartbeat::Attachment>();
    safe::<worker_heartbeat::Sweeper>();
    safe::<worker_heartbeat::FleetConfig>();
    #[cfg(feature = "sqlite")]
    safe::<worker_heartbeat::SqliteStore>();
    #[cfg(feature = "postgres")]
    safe::<worker_heartbeat::PostgresStore>();
    #[cfg(feature = "http")]
    safe::<worker_heartbeat::HttpStore>();
    #[cfg(feature = "http")]
    safe::<worker_heartbeat::RunningHealthEndpoint>();
    #[cfg(feature = "beacon")]
    safe::<worker_heartbeat::Beacon>();
    #[cfg(feature = "prometheus")]
    safe::<worker_heartbeat::Metrics>();
    #[cfg(feature = "systemd")]
    safe::<worker_heartbeat::SystemdNotifier>();
}

#[test]
fn handles_and_probes_can_go_anywhere() {
    fn anywhere<T: Send + Sync + 'static>() {}
    anywhere::<WorkerHeartbeat>();
    anywhere::<Probe>();
    anywhere::<Supervisor>();
    anywhere::<worker_heartbeat::Registry>();
    anywhere::<worker_heartbeat::Shutdown>();
    anywhere::<worker_heartbeat::MockClock>();
    anywhere::<worker_heartbeat::Health>();
    anywhere::<Error>();
}

#[test]
fn a_worker_that_is_asked_to_stop_is_stopped_by_its_supervisor() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry).restart(Restart::always());
    let worker = supervisor.spawn(world.worker("w"), until_stopped).unwrap();
    eventually("active", || worker.probe().is_recent());
    worker.stop();
    assert!(worker.join().is_completed());
    assert!(worker.exit().unwrap().is_completed());
    assert!(matches!(
        worker.probe().health(),
        Health::Stopped {
            by: StopCause::Supervisor,
            ..
        }
    ));
}

#[test]
fn odd_panic_payloads_and_odd_work_are_contained() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("even dropping it panics");
        }
    }
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let payload = supervisor
        .spawn(world.worker("w"), |_| panic_any(Bomb))
        .unwrap();
    assert!(matches!(payload.join(), Exit::Panicked { .. }));
    let held = Bomb;
    let work = supervisor
        .spawn(world.worker("w"), move |_| {
            let _held = &held;
            Ok(())
        })
        .unwrap();
    assert!(matches!(work.join(), Exit::Panicked { .. }));
}

#[test]
fn a_resumed_panic_is_reported_with_its_own_message() {
    let world = World::new();
    let worker = Supervisor::new(&world.registry)
        .spawn(world.worker("w"), |_| {
            // One job panics, and the panic is caught.
            let _ = std::panic::catch_unwind(|| panic!("a small thing, long ago"));
            // Later another thread panics for another reason, and its panic is resumed here.
            let name = thread::Builder::new().name("disk-3".to_owned());
            let died = name.spawn(|| panic!("the disk is gone"))?.join();
            std::panic::resume_unwind(died.unwrap_err())
        })
        .unwrap();
    worker.join();
    let DeathCause::Panicked {
        message,
        location,
        thread,
        backtrace,
    } = cause(&worker.probe())
    else {
        panic!("{:?}", worker.probe().health());
    };
    assert_eq!(message, "the disk is gone");
    let location = location.unwrap();
    let place = format!("work.rs:{}:", line_of("\"the disk is gone\""));
    assert!(location.contains(&place), "{location}");
    assert_eq!(thread, "disk-3");
    assert!(backtrace.is_some());
}

#[test]
fn a_panic_that_the_work_catches_itself_is_no_death() {
    let world = World::new();
    let worker = Supervisor::new(&world.registry)
        .spawn(world.worker("w").finite(), |hb| {
            let _ = std::panic::catch_unwind(|| panic!("caught"));
            hb.beat();
            Ok(())
        })
        .unwrap();
    assert!(worker.join().is_completed());
    assert_eq!(worker.probe().health().state(), State::Stopped);
}

#[test]
fn time_does_not_wait_for_what_the_work_drops() {
    struct Waits(mpsc::Receiver<()>);
    impl Drop for Waits {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }
    let world = World::new();
    let events = world.registry.subscribe();
    let (let_go, held) = mpsc::channel();
    let waits = Waits(held);
    let worker = Supervisor::new(&world.registry)
        .spawn(world.worker("w").finite(), move |_| {
            let _held = &waits;
            Ok(())
        })
        .unwrap();
    wait_for(&events, "stopped");
    let (time, (moved, has_moved)) = (world.time.clone(), mpsc::channel());
    let moving = thread::spawn(move || {
        time.advance(SECOND);
        moved.send(()).unwrap();
    });
    let waited = has_moved.recv_timeout(PATIENCE);
    drop(let_go);
    moving.join().unwrap();
    assert!(waited.is_ok(), "time waits for a drop");
    assert!(worker.join().is_completed());
}

// --- restarts --------------------------------------------------------------------------------

fn patient() -> Restart {
    Restart::on_failure()
        .max(3)
        .within(60 * SECOND)
        .backoff(SECOND, 4 * SECOND)
        .jitter(0.0)
}

#[test]
fn a_failing_worker_is_started_again_with_backoff_and_then_given_up() {
    let world = World::new();
    let events = world.registry.subscribe();
    let supervisor = Supervisor::new(&world.registry).restart(patient());
    let lives = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&lives);
    let worker = supervisor
        .spawn(world.worker("w"), move |hb| {
            hb.beat();
            let life = counted.fetch_add(1, Ordering::SeqCst) + 1;
            Err(format!("life {life}").into())
        })
        .unwrap();
    for (attempt, wait) in [(1, 1), (2, 2), (3, 4)] {
        wait_for(&events, &format!("restart {attempt}"));
        let life = lives.load(Ordering::SeqCst);
        assert_eq!(life, attempt);
        // While the worker waits it is dead, with the reason.
        assert!(matches!(cause(&worker.probe()), DeathCause::Failed { .. }));
        world.millis(wait * 1_000 - 1);
        assert_eq!(lives.load(Ordering::SeqCst), life, "not before its time");
        world.millis(1);
    }
    let Exit::GaveUp {
        restarts: 3, death, ..
    } = worker.join()
    else {
        panic!("{:?}", worker.join());
    };
    assert_eq!(death.unwrap().cause.to_string(), "failed: life 4");
    assert_eq!(lives.load(Ordering::SeqCst), 4);
    let snapshot = worker.probe().snapshot();
    assert_eq!((snapshot.incarnation, snapshot.restarts), (4, 3));
    let last = snapshot.last_death.unwrap();
    assert_eq!(last.cause.to_string(), "failed: life 3");
    let sentence = worker.probe().health().to_string();
    assert!(
        sentence.ends_with("; gave up after 3 restarts"),
        "{sentence}"
    );
    assert_eq!(wait_for(&events, "gaveup").id(), worker.id());
}

#[test]
fn a_panicking_worker_is_started_again_and_recovers() {
    let world = World::new();
    let events = world.registry.subscribe();
    let supervisor = Supervisor::new(&world.registry).restart(patient());
    let mut lives = 0;
    let worker = supervisor
        .spawn(world.worker("w"), move |hb| {
            lives += 1;
            assert!(lives > 1, "the first life ends early");
            until_stopped(hb)
        })
        .unwrap();
    wait_for(&events, "restart 1");
    world.seconds(1);
    eventually("well again", || worker.probe().is_recent());
    let snapshot = worker.probe().snapshot();
    assert_eq!((snapshot.incarnation, snapshot.restarts), (2, 1));
    assert!(
        snapshot
            .last_death
            .unwrap()
            .cause
            .to_string()
            .contains("the first life")
    );
    assert!(supervisor.shutdown(PATIENCE).is_clean());
}

#[test]
fn always_restarts_what_returns_and_on_failure_does_not() {
    let world = World::new();
    let events = world.registry.subscribe();
    let always = Supervisor::new(&world.registry).restart(Restart::always().max(1).jitter(0.0));
    let worker = always.spawn(world.worker("w"), |_| Ok(())).unwrap();
    wait_for(&events, "restart 1");
    world.seconds(1);
    assert!(matches!(worker.join(), Exit::GaveUp { restarts: 1, .. }));
    let on_failure = Supervisor::new(&world.registry).restart(Restart::on_failure());
    let worker = on_failure.spawn(world.worker("w"), |_| Ok(())).unwrap();
    assert!(worker.join().is_completed());
}

#[test]
fn a_worker_that_waits_to_be_started_again_keeps_its_id() {
    let world = World::new();
    let events = world.registry.subscribe();
    let supervisor = Supervisor::new(&world.registry).restart(patient());
    let worker = supervisor
        .spawn(world.worker("w").id("one"), |_| Err("no".into()))
        .unwrap();
    wait_for(&events, "restart 1");
    assert!(world.worker("w").id("one").start().is_err());
    worker.stop();
    worker.join();
    assert!(world.worker("w").id("one").start().is_ok());
}

#[test]
fn a_stop_ends_the_wait_for_a_restart() {
    let world = World::new();
    let events = world.registry.subscribe();
    let restart = Restart::on_failure().backoff(1_000 * SECOND, 1_000 * SECOND);
    let supervisor = Supervisor::new(&world.registry).restart(restart);
    let failing = |_: &WorkerHeartbeat| Err("no".into());
    let one = supervisor.spawn(world.worker("w"), failing).unwrap();
    wait_for(&events, "restart 1");
    one.stop();
    assert!(matches!(one.join(), Exit::Failed { .. }));
    supervisor.spawn(world.worker("w"), failing).unwrap();
    wait_for(&events, "restart 1");
    let report = supervisor.shutdown(PATIENCE);
    assert!(report.is_clean());
    assert!(report.took < PATIENCE);
}

// --- shutdown of a supervisor ----------------------------------------------------------------

#[test]
fn shutdown_stops_the_last_started_first_and_names_who_hangs() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let events = world.registry.subscribe();
    let (let_go, held) = mpsc::channel::<()>();
    let first = supervisor
        .spawn(world.worker("w").id("first"), until_stopped)
        .unwrap();
    let hanging = supervisor
        .spawn(world.worker("w").id("hanging"), move |hb| {
            let _task = hb.begin_task("run-1", "hanging");
            let _ = held.recv();
            Ok(())
        })
        .unwrap();
    let last = supervisor
        .spawn(world.worker("w").id("last"), until_stopped)
        .unwrap();
    for worker in [&first, &last] {
        eventually("active", || worker.probe().is_recent());
    }
    let report = supervisor.shutdown(Duration::from_millis(300));
    assert!(!report.is_clean());
    assert_eq!(report.ended, ["first", "last"]);
    assert_eq!(report.hung.len(), 1);
    assert_eq!(report.hung[0].id, "hanging");
    let stopped: Vec<_> = events
        .try_iter()
        .filter(|event| crate::support::name(event) == "stopped")
        .map(|event| event.id().to_owned())
        .collect();
    assert_eq!(stopped, ["last", "first"]);
    drop(let_go);
    hanging.join();
    let report = supervisor.shutdown(PATIENCE);
    assert_eq!(report.ended, ["hanging"], "a later shutdown waits again");
}

#[test]
fn concurrent_shutdowns_both_wait_and_get_a_true_report() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, held) = mpsc::channel::<()>();
    let worker = supervisor
        .spawn(world.worker("w").id("slow"), move |hb| {
            let _task = hb.begin_task("run-1", "slow");
            let _ = held.recv();
            Ok(())
        })
        .unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| supervisor.shutdown(PATIENCE));
        eventually("asked", || {
            worker.probe().health().state() == State::Stopping
        });
        let second = supervisor.shutdown(Duration::ZERO);
        assert!(!second.is_clean());
        assert_eq!(second.hung[0].id, "slow");
        let third = scope.spawn(|| supervisor.shutdown(PATIENCE));
        drop(let_go);
        assert_eq!(first.join().unwrap().ended, ["slow"]);
        assert!(third.join().unwrap().is_clean());
    });
    assert!(
        supervisor.shutdown(PATIENCE).ended.is_empty(),
        "reported once"
    );
}

// --- futures ---------------------------------------------------------------------------------

#[test]
fn each_poll_of_a_future_is_a_beat() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let mut polls = 0;
    let output = block_on(hb.supervise(poll_fn(|context| {
        polls += 1;
        context.waker().wake_by_ref();
        if polls < 5 {
            Poll::Pending
        } else {
            Poll::Ready("done".to_owned())
        }
    })));
    assert_eq!(output.unwrap(), "done");
    assert_eq!(hb.snapshot().beats, 5);
    assert!(matches!(
        hb.health(),
        Health::Stopped {
            by: StopCause::Completed,
            ..
        }
    ));
}

#[test]
fn completed_cancelled_failed_and_panicked_futures_are_distinguished() {
    let world = World::new();
    let ended = |run: &dyn Fn(&WorkerHeartbeat)| {
        let hb = world.worker("w").start().unwrap();
        run(&hb);
        format!("{:?}", hb.health())
    };
    assert!(ended(&|hb| block_on(hb.supervise(async {})).unwrap()).contains("Completed"));
    let cancelled = ended(&|hb| {
        let mut future = Box::pin(hb.supervise(pending::<()>()));
        assert!(poll_once(&mut future).is_pending());
        drop(future);
    });
    assert!(cancelled.contains("Stopped") && cancelled.contains("Cancelled"));
    // As `select!` does with a branch that is disabled.
    let unpolled = ended(&|hb| drop(hb.supervise(pending::<()>())));
    assert!(unpolled.contains("Starting"), "{unpolled}");
    let failed = ended(&|hb| {
        let output = block_on(hb.supervise(async { Err::<(), _>("no route") }));
        assert_eq!(output.unwrap(), Err("no route"));
    });
    assert!(failed.contains("Failed") && failed.contains("no route"));
    let panicked = ended(&|hb| {
        let output = block_on(hb.supervise(async { panic!("in a future") }));
        let error = output.unwrap_err();
        assert!(matches!(&error, Error::Panicked { message, .. } if message == "in a future"));
    });
    assert!(panicked.contains("Panicked") && panicked.contains("work.rs:"));
}

#[test]
fn a_supervised_future_keeps_its_worker_alive_without_the_handle() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let probe = hb.probe();
    let (send, receive) = mpsc::channel();
    let spawned = thread::spawn({
        let future = hb.supervise(async move { receive.recv().unwrap() });
        move || block_on(future)
    });
    drop(hb);
    eventually("active", || probe.is_recent());
    send.send(7).unwrap();
    assert_eq!(spawned.join().unwrap().unwrap(), 7);
    assert_eq!(probe.health().state(), State::Stopped);
}

#[test]
fn a_future_dropped_while_its_thread_unwinds_is_dead() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let mut future = Box::pin(hb.supervise(pending::<()>()));
    assert!(poll_once(&mut future).is_pending());
    let unwound = thread::spawn(move || {
        let _future = future;
        panic!("the executor itself")
    });
    assert!(unwound.join().is_err());
    assert!(matches!(cause(&hb.probe()), DeathCause::Panicked { .. }));
}

#[test]
fn a_future_whose_drop_panics_is_contained() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("when it was dropped");
        }
    }
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let bomb = Bomb;
    let future = poll_fn(move |_| {
        let _held = &bomb;
        Poll::Ready(())
    });
    assert!(block_on(hb.supervise(future)).is_err());
    assert!(
        cause(&hb.probe())
            .to_string()
            .contains("when it was dropped")
    );
}

#[test]
fn an_asynchronous_worker_waits_for_its_stop() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let probe = hb.probe();
    let supervisor = Supervisor::new(&world.registry);
    let running = supervisor
        .supervise(world.worker("waits").id("waits"), |hb| async move {
            hb.wait_for_stop().await;
        })
        .unwrap();
    let thread = thread::spawn(move || block_on(running));
    let waiting = world.registry.get("waits").unwrap();
    eventually("active", || waiting.is_recent());
    assert!(supervisor.shutdown(PATIENCE).is_clean());
    assert!(thread.join().unwrap().is_completed());
    assert!(matches!(
        waiting.health(),
        Health::Stopped {
            by: StopCause::Supervisor,
            ..
        }
    ));
    drop(hb);
    assert_eq!(probe.health().state(), State::Stopped);
}

#[test]
fn a_waker_may_look_at_the_worker_as_it_goes() {
    struct Nosy(Probe);
    impl Wake for Nosy {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for Nosy {
        fn drop(&mut self) {
            let _ = self.0.snapshot();
        }
    }
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let world = World::new();
        let hb = world.worker("w").start().unwrap();
        let mut waits = Box::pin(hb.wait_for_stop());
        let nosy = || Waker::from(Arc::new(Nosy(hb.probe())));
        // Each waker replaces the one before; the last one is left behind.
        for _ in 0..3 {
            let polled = waits.as_mut().poll(&mut Context::from_waker(&nosy()));
            assert!(polled.is_pending());
        }
        std::mem::forget(waits);
        drop(hb);
        done.send(()).unwrap();
    });
    is_done
        .recv_timeout(PATIENCE)
        .expect("nothing is dropped under a lock");
}

#[test]
fn a_failing_future_is_started_again_by_the_pacemaker_and_then_given_up() {
    let world = World::new();
    let events = world.registry.subscribe();
    let supervisor = Supervisor::new(&world.registry).restart(patient().max(2));
    let lives = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&lives);
    let running = supervisor
        .supervise(world.worker("w"), move |hb| {
            let life = counted.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                hb.update_task("run", "trying", Activity::Processing);
                if life == 2 {
                    panic!("life {life}");
                }
                Err::<(), _>(format!("life {life}"))
            }
        })
        .unwrap();
    let thread = thread::spawn(move || block_on(running));
    for wait in [1, 2] {
        wait_for(&events, &format!("restart {wait}"));
        let life = lives.load(Ordering::SeqCst);
        // The timer is set a moment after the event; the clock advances until it has fired.
        eventually("the next life", || {
            world.seconds(1);
            lives.load(Ordering::SeqCst) > life
        });
    }
    let exit = thread.join().unwrap();
    assert!(matches!(exit, Exit::GaveUp { restarts: 2, .. }), "{exit:?}");
    assert_eq!(lives.load(Ordering::SeqCst), 3);
}

#[test]
fn a_cancelled_supervised_future_is_reported() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let running = supervisor
        .supervise(world.worker("w").id("cancelled"), |_| pending::<()>())
        .unwrap();
    let mut running = Box::pin(running);
    assert!(poll_once(&mut running).is_pending());
    drop(running);
    assert!(matches!(
        world.registry.get("cancelled").unwrap().health(),
        Health::Stopped {
            by: StopCause::Cancelled,
            ..
        }
    ));
    assert!(supervisor.shutdown(PATIENCE).is_clean());
}

#[test]
fn work_that_never_starts_is_reported_during_set_up() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (let_go, held) = mpsc::channel::<()>();
    let worker = supervisor
        .spawn(world.worker("w").startup_grace(5 * SECOND), move |_| {
            let _ = held.recv();
            Ok(())
        })
        .unwrap();
    world.seconds(6);
    assert_eq!(worker.probe().health().state(), State::NeverStarted);
    drop(let_go);
    worker.join();
}

// --- polls -----------------------------------------------------------------------------------

/// A future of which one part is blocked for ever, while another part is woken all the time.
async fn wedged_beside_a_ticker() {
    let mut wedged = pin!(pending::<()>());
    poll_fn(|context| wedged.as_mut().poll(context)).await;
}

#[test]
fn a_poll_is_no_progress_of_a_worker_that_has_to_beat_by_itself() {
    let world = World::new();
    let limits: [fn(worker_heartbeat::Builder) -> worker_heartbeat::Builder; 2] = [
        |builder| builder,
        |builder| builder.stall_after(30 * SECOND),
    ];
    for (set, unwell) in limits.into_iter().zip([State::Stale, State::Stalled]) {
        let builder = world.worker("w").interval(SECOND).stale_after(60 * SECOND);
        let hb = set(builder).beats_only().start().unwrap();
        let mut future = Box::pin(hb.supervise(wedged_beside_a_ticker()));
        assert!(poll_once(&mut future).is_pending());
        assert_eq!(
            hb.health().state(),
            State::Starting,
            "a poll is no first beat"
        );
        hb.beat();
        for _ in 0..70 {
            assert!(poll_once(&mut future).is_pending());
            world.seconds(1);
        }
        assert_eq!(hb.health().state(), unwell, "{}", hb.health());
        assert_eq!(hb.snapshot().beats, 1);
        hb.beat();
        assert!(hb.is_recent());
    }

    let hb = world.worker("w").stall_after(30 * SECOND).start().unwrap();
    let mut future = Box::pin(hb.supervise(wedged_beside_a_ticker()));
    for _ in 0..70 {
        assert!(poll_once(&mut future).is_pending());
        world.seconds(1);
    }
    assert!(hb.is_recent(), "of others, a poll is a beat");
}

#[test]
fn a_restarted_future_that_has_to_beat_by_itself_is_convicted_in_each_life() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry).restart(patient());
    let builder = world.worker("w").id("w").interval(SECOND).beats_only();
    let mut lives = 0;
    let mut worker = Box::pin(
        supervisor
            .supervise(builder.startup_grace(9 * SECOND), move |_hb| {
                lives += 1;
                let fails = lives == 1;
                async move {
                    if fails {
                        return Err("the first life ends");
                    }
                    wedged_beside_a_ticker().await;
                    Ok(())
                }
            })
            .unwrap(),
    );
    assert!(poll_once(&mut worker).is_pending());
    world.seconds(1);
    for _ in 0..11 {
        assert!(poll_once(&mut worker).is_pending());
        world.seconds(1);
    }
    let probe = world.registry.get("w").unwrap();
    assert_eq!(probe.snapshot().incarnation, 2);
    assert_eq!(probe.health().state(), State::NeverStarted);
}
