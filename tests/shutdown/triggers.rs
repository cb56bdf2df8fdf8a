//! Triggers: a shutdown that begins because of what happens to the workers. On a mock clock, in this
//! process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use worker_heartbeat::{
    BoxError, Error, MockClock, Registry, Restart, Shutdown, ShutdownBuilder, ShutdownCause,
    Supervisor, Trigger, WorkerHeartbeat,
};

use crate::support::folder::Folder;
use crate::support::process::{PATIENCE, in_child};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A registry on a mock clock.
fn registry() -> (MockClock, Registry) {
    let time = MockClock::new();
    let registry = Registry::with_clock(time.clock());
    (time, registry)
}

fn builder(registry: &Registry) -> ShutdownBuilder {
    Shutdown::builder().signals([]).registry(registry)
}

/// Works, and stalls after 10 s without progress.
fn worker(registry: &Registry, id: &str) -> WorkerHeartbeat {
    let builder = WorkerHeartbeat::builder("indexer")
        .id(id)
        .registry(registry);
    let hb = builder.stall_after(10 * SECOND).start().unwrap();
    hb.beat();
    hb
}

/// What began it.
#[track_caller]
fn escalated(shutdown: &Shutdown) -> (Trigger, Option<String>, String) {
    assert!(shutdown.requested(), "it has not begun");
    let report = shutdown.wait();
    let ShutdownCause::Escalated(escalation) = report.cause else {
        panic!("{report}");
    };
    let code = format!("{:?}", report.exit_code());
    assert_eq!(code, format!("{:?}", std::process::ExitCode::FAILURE));
    assert!(
        report.to_string().contains(&escalation.to_string()),
        "{report}"
    );
    let worker = escalation.worker().map(ToOwned::to_owned);
    (escalation.trigger().clone(), worker, escalation.to_string())
}

#[test]
fn a_worker_that_stalls_for_too_long_begins_the_shutdown_and_not_before() {
    let (time, registry) = registry();
    let trigger = Trigger::StalledFor(5 * MINUTE);
    let shutdown = builder(&registry).on(trigger.clone()).install().unwrap();
    let hb = worker(&registry, "indexer-1");
    let _task = hb.begin_task("run-123", "indexing");
    time.advance(10 * SECOND + 5 * MINUTE);
    assert!(!shutdown.requested(), "never early");
    time.advance(registry.resolution());
    assert!(shutdown.requested(), "at most one resolution late");
    assert!(hb.stop_requested());
    drop(_task);
    drop(hb);
    let (applied, worker, what) = escalated(&shutdown);
    assert_eq!((applied, worker.as_deref()), (trigger, Some("indexer-1")));
    assert!(
        what.starts_with("worker indexer-1: stalled: no progress for 5 min"),
        "{what}"
    );
    assert!(
        what.contains("during run-123 (indexing), for 5 min"),
        "{what}"
    );
}

#[test]
fn a_worker_that_recovers_just_before_does_not() {
    let (time, registry) = registry();
    let trigger = Trigger::StalledFor(5 * MINUTE);
    let shutdown = builder(&registry).on(trigger).install().unwrap();
    let hb = worker(&registry, "indexer-1");
    for _ in 0..3 {
        time.advance(10 * SECOND + 5 * MINUTE);
        // Between the last tick and the one that would begin it.
        hb.beat();
    }
    time.advance(5 * MINUTE);
    assert!(!shutdown.requested());
}

#[test]
fn unobserved_time_never_begins_it() {
    let (time, registry) = registry();
    registry.expect_workers("loader", 1);
    let shutdown = builder(&registry)
        .on(Trigger::StalledFor(5 * MINUTE))
        .on(Trigger::MissingFor(5 * MINUTE))
        .install()
        .unwrap();
    let hb = worker(&registry, "indexer-1");
    // Convicted and missing, nearly for too long.
    time.advance(4 * MINUTE + 55 * SECOND);
    assert!(!shutdown.requested());
    let loader = WorkerHeartbeat::builder("loader")
        .registry(&registry)
        .start()
        .unwrap();
    time.advance(SECOND);
    for _ in 0..3 {
        time.suspend(3600 * SECOND);
        assert!(!shutdown.requested(), "asleep");
    }
    hb.beat();
    drop(loader);
    time.advance(SECOND);
    time.suspend(24 * 3600 * SECOND);
    assert!(!shutdown.requested());
    time.advance(4 * MINUTE);
    assert!(!shutdown.requested());
    time.advance(MINUTE);
    assert!(shutdown.requested(), "forgiveness does not switch it off");
}

#[test]
fn the_first_moment_after_a_gap_is_not_charged_either() {
    let (time, registry) = registry();
    let trigger = Trigger::StalledFor(5 * MINUTE);
    let shutdown = builder(&registry).on(trigger).install().unwrap();
    let hb = worker(&registry, "indexer-1");
    time.advance(10 * SECOND + 5 * MINUTE);
    // The first tick after it charges a little for the gap: that must not be decisive.
    time.suspend(3600 * SECOND);
    assert!(!shutdown.requested());
    hb.beat();
    time.advance(MINUTE);
    assert!(!shutdown.requested());
}

#[test]
fn each_state_has_its_trigger() {
    let (time, registry) = registry();
    let install = |trigger| builder(&registry).on(trigger).install().unwrap();
    let never_started = install(Trigger::NeverStartedFor(MINUTE));
    let stale = install(Trigger::StaleFor(MINUTE));
    let stalled = install(Trigger::StalledFor(MINUTE));
    let builder = || WorkerHeartbeat::builder("w").registry(&registry);
    let hangs = builder().startup_grace(10 * SECOND).start().unwrap();
    time.advance(71 * SECOND);
    let (.., what) = {
        assert!(!stale.requested() && !stalled.requested());
        assert!(never_started.requested());
        drop(hangs);
        escalated(&never_started)
    };
    assert!(
        what.contains("never started: no progress in 1 min 10 s"),
        "{what}"
    );
}

#[test]
fn a_stale_worker_begins_it_after_its_time() {
    let (time, registry) = registry();
    let stale = builder(&registry).on(Trigger::StaleFor(MINUTE)).install();
    let stale = stale.unwrap();
    let hb = WorkerHeartbeat::builder("w")
        .beats_only()
        .registry(&registry);
    let hb = hb.start().unwrap();
    hb.beat();
    time.advance(90 * SECOND + MINUTE);
    assert!(!stale.requested());
    time.advance(SECOND);
    drop(hb);
    assert!(escalated(&stale).2.contains("stale: no heartbeat for"));
}

#[test]
fn a_task_that_is_overdue_for_too_long_begins_it() {
    let (time, registry) = registry();
    let trigger = Trigger::OverdueFor(MINUTE);
    let shutdown = builder(&registry).on(trigger).install().unwrap();
    let hb = worker(&registry, "indexer-1");
    for run in 0..2 {
        let task = hb.begin_task(format!("run-{run}"), "indexing");
        task.deadline(30 * SECOND);
        for _ in 0..89 {
            time.advance(SECOND);
            hb.beat();
        }
        assert!(!shutdown.requested(), "not for so long");
        if run == 1 {
            time.advance(2 * SECOND);
        }
    }
    drop(hb);
    let what = escalated(&shutdown).2;
    assert!(
        what.starts_with("worker indexer-1: overdue: at its task for 1 min 30"),
        "{what}"
    );
}

#[test]
fn missing_workers_begin_it_once_they_have_been_missing_for_so_long() {
    let (time, registry) = registry();
    registry.expect_workers("indexer", 2);
    let trigger = Trigger::MissingFor(MINUTE);
    let shutdown = builder(&registry).on(trigger.clone()).install().unwrap();
    let one = worker(&registry, "indexer-1");
    for _ in 0..3 {
        time.advance(MINUTE - SECOND);
        let other = worker(&registry, "indexer-2");
        time.advance(SECOND);
        drop(other);
    }
    time.advance(MINUTE - SECOND);
    assert!(!shutdown.requested());
    time.advance(SECOND);
    drop(one);
    let (applied, worker, what) = escalated(&shutdown);
    assert_eq!((applied, worker), (trigger, None));
    let expected = "1 of 2 expected workers of type indexer live, for 1 min";
    assert_eq!(what, expected);
}

#[test]
fn a_dead_worker_of_the_type_begins_it_unless_it_is_restarted() {
    let registry = Registry::new();
    let trigger = Trigger::DeadType("indexer");
    let shutdown = builder(&registry).on(trigger.clone()).install().unwrap();
    let other = WorkerHeartbeat::builder("mailer")
        .registry(&registry)
        .start()
        .unwrap();
    other.fail("disk full");
    worker(&registry, "indexer-1").stop();
    drop(worker(&registry, "indexer-2"));
    assert!(!shutdown.requested(), "another type, and two that stopped");

    let restart = Restart::on_failure()
        .max(1)
        .backoff(Duration::ZERO, Duration::ZERO);
    let supervisor = Supervisor::new(&registry).restart(restart);
    let (mut lives, (lived, seen)) = (0, std::sync::mpsc::channel());
    let indexer = WorkerHeartbeat::builder("indexer").id("indexer-3");
    let indexer = supervisor.spawn(indexer, move |hb| -> Result<(), BoxError> {
        lives += 1;
        if lives == 2 {
            lived.send(())?;
            hb.stop_receiver().recv()?;
        }
        Err(format!("failure {lives}").into())
    });
    let indexer = indexer.unwrap();
    seen.recv().unwrap();
    assert!(!shutdown.requested(), "it was restarted");
    // It was asked to stop, so it is not restarted.
    indexer.stop();
    indexer.join();
    let (applied, worker, what) = escalated(&shutdown);
    assert_eq!((applied, worker.as_deref()), (trigger, Some("indexer-3")));
    assert_eq!(what, "worker indexer-3: dead: failed: failure 2");
}

#[test]
fn a_worker_that_is_given_up_begins_it() {
    let registry = Registry::new();
    let shutdown = builder(&registry).on(Trigger::GaveUp).install().unwrap();
    let restart = Restart::on_failure()
        .max(2)
        .backoff(Duration::ZERO, Duration::ZERO);
    let supervisor = Supervisor::new(&registry).restart(restart);
    let indexer = WorkerHeartbeat::builder("indexer").id("indexer-1");
    let indexer = supervisor
        .spawn(indexer, |_| Err("disk full".into()))
        .unwrap();
    indexer.join();
    let (applied, worker, what) = escalated(&shutdown);
    assert_eq!(
        (applied, worker.as_deref()),
        (Trigger::GaveUp, Some("indexer-1"))
    );
    assert_eq!(
        what,
        "worker indexer-1: given up after 2 restarts: failed: disk full"
    );
}

#[test]
fn what_applies_at_the_installation_begins_it_then() {
    let registry = Registry::new();
    let dead = worker(&registry, "indexer-1");
    dead.fail("disk full");
    drop(dead);
    let dead_type = || {
        builder(&registry)
            .on(Trigger::DeadType("indexer"))
            .install()
    };
    assert!(dead_type().unwrap().requested());

    let (time, registry) = self::registry();
    let hb = worker(&registry, "indexer-1");
    time.advance(10 * SECOND + 5 * MINUTE + SECOND);
    let shutdown = builder(&registry).on(Trigger::StalledFor(5 * MINUTE));
    let shutdown = shutdown.install().unwrap();
    time.advance(registry.resolution());
    assert!(shutdown.requested());
    drop(hb);
}

#[test]
fn a_dead_worker_that_was_replaced_before_the_installation_does_not_count() {
    let registry = Registry::new();
    worker(&registry, "indexer-1").fail("disk full");
    let _next = worker(&registry, "indexer-1");
    let shutdown = builder(&registry)
        .on(Trigger::DeadType("indexer"))
        .install();
    assert!(!shutdown.unwrap().requested());
}

#[test]
fn the_first_of_several_triggers_counts_and_each_shutdown_has_its_own() {
    let (time, registry) = registry();
    let (_, private) = self::registry();
    let first = builder(&registry)
        .on(Trigger::GaveUp)
        .on(Trigger::StalledFor(3600 * SECOND))
        .on(Trigger::DeadType("indexer"))
        .install()
        .unwrap();
    let second = builder(&registry).on(Trigger::StalledFor(MINUTE)).install();
    let second = second.unwrap();
    let foreign = worker(&private, "indexer-1");
    foreign.fail("of another registry");
    assert!(!first.requested() && !second.requested());
    let hangs = worker(&registry, "indexer-2");
    time.advance(10 * SECOND + MINUTE + SECOND);
    assert!(!first.requested() && second.requested());
    worker(&registry, "indexer-3").fail("disk full");
    worker(&registry, "indexer-4").fail("disk full, too");
    drop(hangs);
    assert_eq!(escalated(&first).1.as_deref(), Some("indexer-3"));
    assert_eq!(escalated(&second).1.as_deref(), Some("indexer-2"));
}

#[test]
fn a_trigger_changes_nothing_in_a_shutdown_that_has_begun() {
    let registry = Registry::new();
    let shutdown = builder(&registry)
        .on(Trigger::DeadType("indexer"))
        .install();
    let shutdown = shutdown.unwrap();
    let hb = worker(&registry, "indexer-1");
    let _task = hb.begin_task("run-123", "indexing");
    shutdown.trigger();
    hb.fail("disk full");
    let report = shutdown.wait();
    assert_eq!(report.cause, ShutdownCause::Triggered);
    assert_eq!(report.died.len(), 1);
}

#[test]
fn a_starved_or_well_worker_and_one_in_an_announced_silence_do_not_begin_it() {
    let (time, registry) = registry();
    let trigger = Trigger::StalledFor(SECOND);
    let shutdown = builder(&registry).on(trigger).install().unwrap();
    let hb = worker(&registry, "indexer-1");
    let quiet = hb.expect_silence(3600 * SECOND);
    time.advance(3600 * SECOND);
    drop(quiet);
    hb.mark_idle();
    time.advance(3600 * SECOND);
    assert!(!shutdown.requested());
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    let longest = Duration::from_secs(365 * 24 * 3600);
    for (trigger, field) in [
        (Trigger::StalledFor(Duration::ZERO), "StalledFor"),
        (Trigger::StalledFor(Duration::MAX), "StalledFor"),
        (Trigger::StaleFor(Duration::from_nanos(1)), "StaleFor"),
        (
            Trigger::NeverStartedFor(longest + SECOND),
            "NeverStartedFor",
        ),
        (Trigger::MissingFor(Duration::ZERO), "MissingFor"),
        (Trigger::OverdueFor(Duration::ZERO), "OverdueFor"),
        (Trigger::DeadType(""), "DeadType"),
        (Trigger::DeadType("a\nb"), "DeadType"),
        (Trigger::DeadType("x".repeat(201)), "DeadType"),
    ] {
        let refused = builder(&Registry::new()).on(trigger.clone()).install();
        let Err(Error::Invalid { field: named, .. }) = refused else {
            panic!("{trigger}: {refused:?}");
        };
        assert_eq!(named, field);
    }
    builder(&Registry::new())
        .on(Trigger::StalledFor(longest))
        .install()
        .unwrap();
}

#[test]
fn a_registry_that_its_owner_drops_is_watched_until_the_end() {
    let registry = Registry::new();
    let shutdown = builder(&registry)
        .on(Trigger::DeadType("indexer"))
        .install();
    let hb = worker(&registry, "indexer-1");
    drop(registry);
    hb.fail("disk full");
    assert!(shutdown.unwrap().requested());
}

#[test]
fn a_death_that_waits_for_its_restart_does_not_count() {
    let (time, registry) = registry();
    let shutdown = builder(&registry)
        .on(Trigger::DeadType("indexer"))
        .on(Trigger::GaveUp)
        .install()
        .unwrap();
    let hour = 3600 * SECOND;
    let restart = Restart::on_failure()
        .max(1)
        .within(24 * hour)
        .backoff(hour, hour)
        .jitter(0.0);
    let supervisor = Supervisor::new(&registry).restart(restart);
    let indexer = WorkerHeartbeat::builder("indexer").id("indexer-1");
    let events = registry.subscribe();
    let indexer = supervisor
        .spawn(indexer, |_| Err("disk full".into()))
        .unwrap();
    let next_restart = || {
        events
            .iter()
            .find(|event| event.to_string().contains(": restart "))
    };
    next_restart();
    time.advance(hour - SECOND);
    assert!(!shutdown.requested(), "it waits for its restart");
    time.advance(2 * SECOND);
    indexer.join();
    assert_eq!(escalated(&shutdown).0, Trigger::GaveUp);
}

// --- panics --------------------------------------------------------------------------------------

fn wait_for(shutdown: &Shutdown) {
    let begun = std::time::Instant::now();
    while !shutdown.requested() {
        assert!(begun.elapsed() < PATIENCE);
        // Between two checks.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Longer than a panic is watched.
fn settle() {
    // The time in which a panic that is not caught ends its thread.
    std::thread::sleep(Duration::from_millis(1_500));
}

#[test]
fn a_panic_that_ends_its_thread_begins_it_and_the_earlier_hook_runs() {
    in_child(|| {
        static HOOKED: AtomicUsize = AtomicUsize::new(0);
        std::panic::set_hook(Box::new(|_| {
            HOOKED.fetch_add(1, Ordering::SeqCst);
        }));
        let registry = Registry::new();
        let shutdown = builder(&registry)
            .on(Trigger::UncaughtPanic)
            .install()
            .unwrap();
        let thread = std::thread::Builder::new().name("loader".to_owned());
        let thread = thread.spawn(|| panic!("no rates of {}", "today")).unwrap();
        assert!(thread.join().is_err());
        wait_for(&shutdown);
        let (applied, worker, what) = escalated(&shutdown);
        assert_eq!((applied, worker), (Trigger::UncaughtPanic, None));
        assert!(
            what.starts_with("thread loader panicked at tests/shutdown/triggers.rs:"),
            "{what}"
        );
        assert!(what.ends_with(": no rates of today"), "{what}");
        assert_eq!(HOOKED.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_panic_that_is_caught_does_not_begin_it() {
    in_child(|| {
        let registry = Registry::new();
        let shutdown = builder(&registry)
            .on(Trigger::UncaughtPanic)
            .install()
            .unwrap();
        // The thread ends at once afterwards.
        let caught = || std::panic::catch_unwind(|| panic!("caught")).is_err();
        assert!(std::thread::spawn(caught).join().unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        runtime.block_on(async {
            assert!(tokio::spawn(async { panic!("in a task") }).await.is_err());
            let blocking = tokio::task::spawn_blocking(|| panic!("in a blocking task"));
            assert!(blocking.await.is_err());
        });
        // Its threads end at once, too.
        drop(runtime);
        let supervisor = Supervisor::new(&registry);
        let worker = WorkerHeartbeat::builder("supervised");
        supervisor
            .spawn(worker, |_| panic!("supervised"))
            .unwrap()
            .join();
        let hb = WorkerHeartbeat::builder("at-home")
            .registry(&registry)
            .start()
            .unwrap();
        assert!(
            std::thread::spawn(move || hb.run(|| panic!("run")).is_err())
                .join()
                .unwrap()
        );
        settle();
        assert!(!shutdown.requested());
    });
}

#[test]
fn without_the_trigger_no_panic_begins_it() {
    in_child(|| {
        let registry = Registry::new();
        let shutdown = builder(&registry).on(Trigger::GaveUp).install().unwrap();
        assert!(std::thread::spawn(|| panic!("alone")).join().is_err());
        settle();
        assert!(!shutdown.requested());
    });
}

// --- the termination message ---------------------------------------------------------------------

#[test]
fn the_message_is_there_before_the_drain_and_is_bounded() {
    let folder = Folder::new("message");
    let file = folder.join("termination-log");
    std::fs::write(&file, "").unwrap();
    let registry = Registry::new();
    let shutdown = builder(&registry)
        .on(Trigger::DeadType("indexer"))
        .termination_message(&file)
        .install()
        .unwrap();
    let slow = worker(&registry, "slow");
    let task = slow.begin_task("run-123", "indexing");
    let reason = "é".repeat(10_000);
    worker(&registry, "indexer-1").fail(reason);
    // As if the process were killed while it drains.
    let begun = std::time::Instant::now();
    let read = || std::fs::read_to_string(&file).unwrap();
    while read().is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        // Between two looks at the file.
        std::thread::sleep(Duration::from_millis(5));
    }
    let message = read();
    assert!(message.starts_with("shutdown begun by a trigger (worker indexer-1: dead: failed: éé"));
    assert!(
        message.len() <= 4_096 && message.len() > 4_000,
        "{}",
        message.len()
    );
    drop(task);
    drop(slow);
    let _ = shutdown.wait();
    assert!(read().starts_with("shutdown by a trigger (worker indexer-1: dead: failed: éé"));
}

#[test]
fn a_message_that_nobody_reads_or_that_cannot_be_written_holds_up_nothing() {
    let folder = Folder::new("fifo");
    let fifo = folder.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [
        &*fifo,
        &*folder,
        std::path::Path::new("/dev/full"),
        std::path::Path::new("/proc/version"),
    ] {
        let registry = Registry::new();
        let shutdown = builder(&registry)
            .on(Trigger::DeadType("indexer"))
            .termination_message(path)
            .install()
            .unwrap();
        worker(&registry, "indexer-1").fail("disk full");
        let begun = std::time::Instant::now();
        assert_eq!(escalated(&shutdown).1.as_deref(), Some("indexer-1"));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn paths_that_make_no_sense_are_refused_by_name() {
    for path in ["", "a\0b"] {
        let registry = Registry::new();
        let file = builder(&registry).on_file(path).install();
        assert!(
            matches!(
                file,
                Err(Error::Invalid {
                    field: "on_file",
                    ..
                })
            ),
            "{file:?}"
        );
        let message = builder(&registry).termination_message(path).install();
        let field = "termination_message";
        assert!(matches!(message, Err(Error::Invalid { field: named, .. }) if named == field));
    }
}

// --- random paths --------------------------------------------------------------------------------

/// Numbers that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// Three workers beat, hang and sleep at random. The shutdown begins neither early, nor late, nor for
/// time that nobody observed.
#[test]
fn on_random_paths_it_begins_in_time() {
    let mut begun = 0;
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let (time, registry) = registry();
        let shutdown = builder(&registry).on(Trigger::StalledFor(MINUTE)).install();
        let shutdown = shutdown.unwrap();
        let workers: Vec<_> = (0..3)
            .map(|n| worker(&registry, &format!("w-{n}")))
            .collect();
        let resolution = registry.resolution();
        // For each worker: its silence while the clock ran, and the gaps in it.
        let mut silences = [(Duration::ZERO, 0); 3];
        for _ in 0..60 {
            match dice.roll(8) {
                0 | 1 => {
                    let n = dice.roll(3) as usize;
                    workers[n].beat();
                    silences[n] = (Duration::ZERO, 0);
                }
                2 => {
                    time.suspend(SECOND * (1 + dice.roll(36_000) as u32));
                    silences.iter_mut().for_each(|(_, gaps)| *gaps += 1);
                }
                _ => {
                    let by = SECOND * (1 + dice.roll(15) as u32);
                    time.advance(by);
                    silences.iter_mut().for_each(|(silent, _)| *silent += by);
                }
            }
            let limit = 10 * SECOND + MINUTE;
            // A gap is charged with two resolutions at most, and defers by one tick.
            let may = |(silent, gaps): &(Duration, u32)| *silent + 2 * resolution * *gaps >= limit;
            let must = |(silent, _): &(Duration, u32)| *silent >= limit + 2 * resolution;
            let requested = shutdown.requested();
            assert!(
                !requested || silences.iter().any(may),
                "early: {seed}, {silences:?}"
            );
            assert!(
                requested || !silences.iter().any(must),
                "late: {seed}, {silences:?}"
            );
            if requested {
                begun += 1;
                break;
            }
        }
    }
    assert!((50..300).contains(&begun), "{begun} of 300 paths");
}
