//! Scenes of a shutdown that check themselves: they end with status 0 if all is well.

use std::fs::File;
use std::future::Future;
use std::process::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    Error, Event, EventKind, Exit, Registry, Restart, Shutdown, ShutdownCause, Signal, State,
    Supervisor, WorkerHeartbeat,
};

use super::service::{exit_with, ready};
use crate::support::executor::block_on;
use crate::support::process::PATIENCE;

const HOUR: Duration = Duration::from_secs(3600);

/// Plays this scene, if it is one of these, and ends the process.
pub(crate) fn play(scene: &str) {
    match scene {
        "install" => install(),
        "refused-install" => refused_install(),
        "failed-install" => failed_install(),
        "no-shutdown" => no_shutdown(),
        "user-signal-only" => user_signal_only(),
        "trigger" => trigger(),
        "main-loop" => main_loop(),
        "latecomers" => latecomers(),
        "supervised" => supervised(),
        "error-on-the-way-out" => error_on_the_way_out(),
        "registries" => registries(),
        "accepted-tasks" => accepted_tasks(),
        "blocking-waker" => blocking_waker(),
        "polling-waker" => polling_waker(),
        _ => {}
    }
}

fn worker(registry: &Registry, id: &str) -> WorkerHeartbeat {
    let builder = WorkerHeartbeat::builder("worker").id(id);
    builder.registry(registry).start().unwrap()
}

/// Waits for a condition that is about to hold.
#[track_caller]
fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "not {what}");
        // Between two checks.
        thread::sleep(Duration::from_millis(1));
    }
}

fn rest() -> ! {
    loop {
        thread::park();
    }
}

// --- installation -------------------------------------------------------------------------------

fn bad_timeouts() {
    for timeout in [
        Duration::ZERO,
        Duration::from_nanos(999_999),
        24 * HOUR + Duration::from_nanos(1),
        Duration::MAX,
    ] {
        let refused = Shutdown::builder().timeout(timeout).install();
        let Err(Error::Invalid {
            field,
            value,
            allowed,
            ..
        }) = refused
        else {
            panic!("{timeout:?}: {refused:?}");
        };
        assert_eq!(field, "timeout");
        assert_eq!(value, format!("{timeout:?}"));
        assert_eq!(allowed, "1ms to 1 day");
    }
}

fn install() -> ! {
    ready();
    bad_timeouts();
    let shutdown = Shutdown::builder()
        .registry(&Registry::new())
        .timeout(24 * HOUR)
        .install()
        .unwrap();
    let again = Shutdown::builder().install();
    let clash = again.unwrap_err();
    assert!(matches!(clash, Error::AlreadyInstalled { .. }), "{clash:?}");
    assert!(
        clash
            .to_string()
            .contains("SIGINT, SIGTERM, SIGQUIT, SIGHUP:"),
        "{clash}"
    );
    // Only the signals are exclusive.
    let registry = Registry::new();
    let other = || Shutdown::builder().registry(&registry);
    let reload = other().signals([Signal::User1]).install().unwrap();
    let clash = other().signals([Signal::User1, Signal::User2, Signal::Interrupt]);
    let clash = clash.install().unwrap_err().to_string();
    assert!(clash.contains("SIGUSR1, SIGINT:"), "{clash}");
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR1).unwrap();
    assert_eq!(reload.wait().cause.to_string(), "SIGUSR1");
    assert!(!shutdown.requested(), "it has other signals");
    let by_hand = other().signals([]).install().unwrap();
    by_hand.trigger();
    assert!(by_hand.wait().is_clean());
    assert!(!shutdown.requested());
    // An invalid timeout is reported first, even if a shutdown is installed already.
    bad_timeouts();
    shutdown.trigger();
    exit_with(&shutdown.wait())
}

fn refused_install() -> ! {
    bad_timeouts();
    ready();
    rest()
}

/// There are file descriptors for the pipe, and for some of the signals, but not for all.
fn failed_install() -> ! {
    let mut files: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    files.truncate(files.len() - 4);
    let failed = Shutdown::builder().install();
    assert!(matches!(failed, Err(Error::Signal { .. })), "{failed:?}");
    ready();
    rest()
}

/// An application that has workers, and a library in it that has more.
fn no_shutdown() -> ! {
    let idle = worker(Registry::global(), "idle");
    idle.mark_idle();
    let working = worker(Registry::global(), "working");
    let _task = working.begin_task("run-1", "working");
    let supervisor = Supervisor::new(Registry::global()).restart(Restart::always());
    let _third = supervisor.spawn(WorkerHeartbeat::builder("third"), |_| rest());
    drop(Shutdown::builder());
    ready();
    rest()
}

fn user_signal_only() -> ! {
    let shutdown = Shutdown::builder()
        .signals([Signal::User1, Signal::User1])
        .install()
        .unwrap();
    let begun = shutdown.receiver();
    ready();
    println!("@begun {}", begun.recv().unwrap());
    assert_eq!(shutdown.signal(), Some(Signal::User1));
    exit_with(&shutdown.wait())
}

// --- ways to use it -----------------------------------------------------------------------------

fn trigger() -> ! {
    ready();
    let registry = Registry::new();
    let order = Arc::new(Mutex::new(Vec::new()));
    let [first, second] = ["first", "second"].map(|name| {
        let order = Arc::clone(&order);
        move || order.lock().unwrap().push(name)
    });
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .cleanup("first", first)
        .cleanup("second", second)
        .install()
        .unwrap();
    let idle = worker(&registry, "idle");
    idle.mark_idle();
    let working = worker(&registry, "working");
    let task = working.begin_task("run-1", "working");
    let received_before = shutdown.receiver();
    assert!(!shutdown.requested() && received_before.is_empty());

    let waiting = [(); 2].map(|()| {
        let shutdown = shutdown.clone();
        thread::spawn(move || shutdown.wait())
    });
    shutdown.trigger();
    shutdown.trigger();
    assert!(shutdown.requested());
    assert_eq!(shutdown.signal(), None);
    assert_eq!(received_before.recv().unwrap(), ShutdownCause::Triggered);
    let received_after = shutdown.receiver().try_recv();
    assert_eq!(received_after, Ok(ShutdownCause::Triggered));
    let health = idle.health().to_string();
    assert!(health.starts_with("stopped: by shutdown"), "{health}");
    assert_eq!(working.health().state(), State::Stopping);
    assert!(working.stop_requested());
    assert!(order.lock().unwrap().is_empty());
    drop(task);

    let [one, two] = waiting.map(|waiting| waiting.join().unwrap());
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
    assert_eq!(format!("{one:?}"), format!("{:?}", shutdown.wait()));
    assert!(one.is_clean());
    assert_eq!(one.cause, ShutdownCause::Triggered);
    assert_eq!(*order.lock().unwrap(), ["second", "first"]);
    let health = working.health().to_string();
    assert!(health.starts_with("stopped: by shutdown"), "{health}");
    exit_with(&one)
}

fn main_loop() -> ! {
    let shutdown = Shutdown::builder().install().unwrap();
    let hb = WorkerHeartbeat::builder("main_loop").start().unwrap();
    let probe = hb.probe();
    ready();
    while !shutdown.requested() {
        hb.beat();
        // The work of such a loop between two beats.
        thread::sleep(Duration::from_millis(1));
    }
    drop(hb);
    let report = shutdown.wait();
    // By the signal or by the drop: whichever was seen first.
    let health = probe.health();
    assert_eq!(health.state(), State::Stopped, "{health}");
    exit_with(&report)
}

fn registries() -> ! {
    ready();
    let mine = [Registry::new(), Registry::new()];
    let builder = Shutdown::builder().signals([]);
    let builder = mine
        .iter()
        .fold(builder, |builder, mine| builder.registry(mine));
    let shutdown = builder.install().unwrap();
    let workers = [worker(&mine[0], "same"), worker(&mine[1], "same")];
    for worker in &workers {
        worker.mark_idle();
    }
    let other = worker(Registry::global(), "other");
    other.mark_idle();
    shutdown.trigger();
    let report = shutdown.wait();
    for worker in &workers {
        assert!(worker.is_over());
    }
    assert!(!other.is_over() && !other.stop_requested());
    exit_with(&report)
}

fn latecomers() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .install()
        .unwrap();
    let first = worker(&registry, "first");
    let task = first.begin_task("run-1", "working");
    shutdown.trigger();
    let waiting = shutdown.clone();
    let waiting = thread::spawn(move || waiting.wait());

    let late = worker(&registry, "late");
    assert!(late.stop_requested());
    late.beat();
    assert_eq!(late.health().state(), State::Stopping);
    let supervised = Supervisor::new(&registry)
        .spawn(WorkerHeartbeat::builder("late"), |hb| {
            soon("asked", || hb.stop_requested());
            Ok(())
        })
        .unwrap();
    assert!(supervised.join().is_completed());
    let health = supervised.probe().health().to_string();
    assert!(health.starts_with("stopped: by shutdown"), "{health}");

    drop(task);
    assert!(first.is_over());
    assert!(!waiting.is_finished(), "the late worker has not ended");
    late.mark_idle();
    let health = late.health().to_string();
    assert!(health.starts_with("stopped: by shutdown"), "{health}");
    exit_with(&waiting.join().unwrap())
}

// --- supervised workers -------------------------------------------------------------------------

fn supervised() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .timeout(HOUR)
        .install()
        .unwrap();
    let restart = Restart::always().max(u32::MAX);
    let busy =
        Supervisor::new(&registry).restart(restart.clone().backoff(Duration::ZERO, Duration::ZERO));
    let slow = Supervisor::new(&registry).restart(restart.backoff(HOUR, HOUR));

    let lives = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lives);
    let restless = busy
        .spawn(WorkerHeartbeat::builder("w").id("restless"), move |hb| {
            hb.beat();
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
    let obedient = busy
        .spawn(WorkerHeartbeat::builder("w").id("obedient"), |hb| {
            while !hb.stop_requested() {
                hb.beat();
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
        .unwrap();
    let late_to_fail = busy
        .spawn(WorkerHeartbeat::builder("w").id("late-to-fail"), |hb| {
            hb.beat();
            soon("asked", || hb.stop_requested());
            Err("it could not stop in good order".into())
        })
        .unwrap();
    let fallen = slow
        .spawn(WorkerHeartbeat::builder("w").id("fallen"), |_| {
            Err("at once, and then not for an hour".into())
        })
        .unwrap();
    let builder = WorkerHeartbeat::builder("w").id("future");
    let future = slow
        .supervise(builder, |_| async { Err::<(), _>("likewise") })
        .unwrap();
    let future = thread::spawn(move || block_on(future));

    soon("restarted", || lives.load(Ordering::Relaxed) > 3);
    for id in ["fallen", "future"] {
        soon("fallen", || {
            registry.get(id).unwrap().health().state() == State::Dead
        });
    }
    let events = registry.subscribe_with_capacity(100_000);
    let begun = Instant::now();
    shutdown.trigger();
    let events_before: Vec<_> = events.try_iter().collect();
    let report = shutdown.wait();
    assert!(
        begun.elapsed() < PATIENCE,
        "the shutdown waited for a backoff"
    );
    assert!(report.is_clean());

    assert!(!matches!(fallen.join(), Exit::Completed));
    assert!(!matches!(future.join().unwrap(), Exit::Completed));
    assert!(restless.join().is_completed());
    assert!(obedient.join().is_completed());
    assert!(matches!(late_to_fail.join(), Exit::Failed { .. }));
    let lived = lives.load(Ordering::Relaxed);
    let events: Vec<_> = events.try_iter().collect();
    assert_eq!(
        events_before
            .iter()
            .filter(|event| restarts(event, "fallen"))
            .count(),
        0
    );
    assert_eq!(
        events.iter().filter(|event| event.id() == "fallen").count(),
        0
    );
    let again: Vec<_> = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Registered))
        .collect();
    assert!(again.is_empty(), "{again:?}");
    for (id, state) in [
        ("restless", None),
        ("obedient", Some(State::Stopped)),
        ("late-to-fail", Some(State::Dead)),
        ("fallen", Some(State::Dead)),
        ("future", Some(State::Dead)),
    ] {
        let health = registry.get(id).unwrap().health();
        assert!(health.state().is_terminal(), "{id}: {health}");
        assert!(
            state.is_none_or(|state| state == health.state()),
            "{id}: {health}"
        );
    }
    assert_eq!(lives.load(Ordering::Relaxed), lived);
    exit_with(&report)
}

/// The guard of the task is dropped first, which stops the worker; then the error is returned.
fn error_on_the_way_out() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .install()
        .unwrap();
    let events = registry.subscribe();
    let failing = Supervisor::new(&registry)
        .spawn(WorkerHeartbeat::builder("w").id("failing"), |hb| {
            let _task = hb.begin_task("run-1", "writing what is left");
            soon("asked", || hb.stop_requested());
            Err("the disk is full".into())
        })
        .unwrap();
    soon("at work", || failing.probe().is_recent());
    shutdown.trigger();
    assert!(matches!(failing.join(), Exit::Failed { .. }));
    let health = failing.probe().health().to_string();
    let mut reported: Vec<_> = events.try_iter().map(|event| event.to_string()).collect();
    reported.push(health);
    let said = reported
        .iter()
        .any(|words| words.contains("the disk is full"));
    assert!(said, "the error is lost: {reported:#?}");
    exit_with(&shutdown.wait())
}

fn restarts(event: &Event, id: &str) -> bool {
    event.id() == id
        && matches!(
            event.kind,
            EventKind::Registered | EventKind::Restarting { .. }
        )
}

// --- unusual executors --------------------------------------------------------------------------

/// Runs a closure when the worker is asked to stop, as long as the returned future is kept.
fn on_stop_request(
    hb: &WorkerHeartbeat,
    call: impl Fn() + Send + Sync + 'static,
) -> impl Future<Output = ()> {
    struct Call<F>(F);
    impl<F: Fn() + Send + Sync + 'static> Wake for Call<F> {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }
    let waker = Waker::from(Arc::new(Call(call)));
    let mut asked = Box::pin(hb.wait_for_stop());
    let polled = asked.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    asked
}

/// Idle workers begin a task at the very moment in which they are asked to stop. Either they are
/// stopped, and the task comes too late, or the task counts, and they are stopped when it ends.
fn accepted_tasks() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .install()
        .unwrap();
    let start = |n| worker(&registry, &format!("worker-{n}"));
    let workers: Vec<_> = (0..40_000).map(start).collect();
    for hb in &workers {
        hb.mark_idle();
    }
    let asking = shutdown.clone();
    let asking = thread::spawn(move || asking.trigger());
    // The shutdown asks in this order: the next ones are about to be asked.
    for hb in workers.iter().step_by(20) {
        while !hb.is_over() {
            let task = hb.begin_task("run-1", "just in time");
            // The task itself.
            (0..10).for_each(|_| std::hint::spin_loop());
            let cut_short = hb.is_over() && hb.snapshot().late_updates == 0;
            assert!(!cut_short, "{} was stopped during its task", hb.id());
            drop(task);
        }
    }
    asking.join().unwrap();
    exit_with(&shutdown.wait())
}

fn blocking_waker() -> ! {
    let registry = Registry::new();
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .timeout(Duration::from_millis(500))
        .install()
        .unwrap();
    let waiting = shutdown.clone();
    thread::spawn(move || exit_with(&waiting.wait()));
    let hb = worker(&registry, "stuck");
    let _task = hb.begin_task("run-1", "waiting to be asked");
    let _asked = on_stop_request(&hb, || rest());
    ready();
    shutdown.trigger();
    // The timeout ends the process.
    rest()
}

/// Some executors poll a task inside the wake.
fn polling_waker() -> ! {
    let registry = Registry::new();
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .timeout(HOUR)
        .install()
        .unwrap();
    ready();
    let (looked, has_looked) = mpsc::channel();
    let looked = Mutex::new(looked);
    let seen = registry.clone();
    let hb = worker(&registry, "stuck");
    let _task = hb.begin_task("run-1", "waiting to be asked");
    let _asked = on_stop_request(&hb, move || {
        let snapshot = seen.get("stuck").unwrap().snapshot();
        let _ = looked.lock().unwrap().send(snapshot.health.state());
    });
    thread::spawn(move || shutdown.trigger());
    assert_eq!(has_looked.recv_timeout(PATIENCE / 3), Ok(State::Stopping));
    exit(0)
}
