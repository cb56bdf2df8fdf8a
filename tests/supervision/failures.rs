//! A failure is described in one way, however the work ran and however it ended.

use std::error::Error as StdError;
use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;

use crate::support::executor::{block_on, poll_once};
use crate::support::{PATIENCE, World, names};
use worker_heartbeat::{
    BoxError, DeathCause, Error, Exit, Health, Outcome, Restart, State, StopCause, Supervisor,
    WorkerHeartbeat,
};

#[derive(Debug)]
struct Outer(Inner);

#[derive(Debug)]
struct Inner(io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot send the mail")
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot read the queue")
    }
}

impl StdError for Outer {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl StdError for Inner {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

fn outer() -> Outer {
    Outer(Inner(io::Error::other("disk full")))
}

const ALL: &str = "cannot send the mail: cannot read the queue: disk full";

/// An error that shows its causes in its alternate form, as `anyhow::Error` does.
struct Anyhow;

impl fmt::Display for Anyhow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot send the mail")?;
        if f.alternate() {
            f.write_str(": cannot read the queue: disk full")?;
        }
        Ok(())
    }
}

fn failure(health: &Health) -> String {
    match health {
        Health::Dead { death, .. } => match &death.cause {
            DeathCause::Failed { error } => error.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// How a future that returns this error has failed, in both ways.
fn of_future<E>(error: impl Fn() -> E + Clone + 'static) -> [String; 2]
where
    Result<(), E>: Outcome,
{
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let once = error.clone();
    drop(block_on(hb.supervise(async move { Err::<(), E>(once()) })));
    let lives = Supervisor::new(&world.registry)
        .supervise(world.worker("w").id("lives"), move |_| {
            let error = error();
            async move { Err::<(), E>(error) }
        })
        .unwrap();
    let exit = block_on(lives);
    let words = failure(&world.registry.get("lives").unwrap().health());
    assert!(matches!(exit, Exit::Failed { error, .. } if error == words));
    [failure(&hb.health()), words]
}

#[test]
fn the_causes_of_an_error_are_included_by_every_way() {
    let world = World::new();
    let worker = Supervisor::new(&world.registry)
        .spawn(world.worker("w"), |_| Err(outer().into()))
        .unwrap();
    assert!(matches!(worker.join(), Exit::Failed { error, .. } if error == ALL));
    assert_eq!(failure(&worker.probe().health()), ALL);

    let hb = world.worker("w").start().unwrap();
    hb.fail_with(&outer());
    assert_eq!(failure(&hb.health()), ALL);
    let hb = world.worker("w").start().unwrap();
    hb.fail(Anyhow);
    assert_eq!(failure(&hb.health()), ALL);

    assert_eq!(of_future(|| BoxError::from(outer())), [ALL; 2]);
    assert_eq!(
        of_future(|| Box::new(outer()) as Box<dyn StdError>),
        [ALL; 2]
    );
    assert_eq!(
        of_future(|| Box::new(outer()) as Box<dyn StdError + Send>),
        [ALL; 2]
    );
    assert_eq!(
        of_future(|| Arc::new(outer()) as Arc<dyn StdError + Send + Sync>),
        [ALL; 2]
    );
    assert_eq!(of_future(|| io::Error::other(outer())), [ALL; 2]);
    assert_eq!(of_future(|| Anyhow), [ALL; 2]);
}

#[test]
fn an_error_with_only_a_text_is_described_by_it() {
    assert_eq!(of_future(|| "no route"), ["no route"; 2]);
    assert_eq!(of_future(|| String::from("no route")), ["no route"; 2]);
    assert_eq!(of_future(|| 7), ["7"; 2]);
    assert_eq!(
        of_future(|| Error::ShuttingDown),
        [
            Error::ShuttingDown.to_string(),
            Error::ShuttingDown.to_string()
        ]
    );
}

/// An error that is its own cause.
#[derive(Debug)]
struct Circle(&'static str);

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for Circle {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        static OTHER: Circle = Circle("around");
        Some(&OTHER)
    }
}

#[test]
fn an_error_that_is_its_own_cause_is_described_all_the_same() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.fail_with(&Circle("around and"));
    assert_eq!(failure(&hb.health()), "around and");
}

/// An error whose `Display` fails midway.
#[derive(Clone, Copy, Debug)]
enum Broken {
    /// Its `Display` returns an error, as that of chrono's formats does.
    ReturnsAnError,
    Panics,
}

const BROKEN: [Broken; 2] = [Broken::ReturnsAnError, Broken::Panics];

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped at ")?;
        match self {
            Self::ReturnsAnError => Err(fmt::Error),
            Self::Panics => panic!("no such time"),
        }
    }
}

impl StdError for Broken {}

/// An error with a cause whose `Display` fails midway.
#[derive(Debug)]
struct Full(Broken);

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk is full")
    }
}

impl StdError for Full {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

#[test]
fn an_error_that_cannot_be_written_is_a_failure_with_what_was_written() {
    for broken in BROKEN {
        let world = World::new();
        let hb = world.worker("w").start().unwrap();
        hb.fail(format_args!("import: {broken}, then left"));
        let reported = failure(&hb.health());
        assert!(
            reported.starts_with("import: stopped at [incomplete"),
            "{reported}"
        );

        let reported = of_future(move || broken);
        assert!(
            reported[0].starts_with("stopped at [incomplete"),
            "{reported:?}"
        );
        assert_eq!(reported[0], reported[1]);
        let error = Error::store("beat", broken).to_string();
        assert!(error.contains("stopped at [incomplete"), "{error}");
    }
}

#[test]
fn a_cause_that_cannot_be_written_takes_nothing_from_the_error() {
    for broken in BROKEN {
        let world = World::new();
        let hb = world.worker("w").start().unwrap();
        hb.fail_with(&Full(broken));
        let all = failure(&hb.health());
        let start = "the disk is full: stopped at [incomplete";
        assert!(all.starts_with(start), "{all}");

        let worker = Supervisor::new(&world.registry)
            .spawn(world.worker("w"), move |_| Err(Full(broken).into()))
            .unwrap();
        let exit = worker.join();
        assert!(
            matches!(&exit, Exit::Failed { error, .. } if *error == all),
            "{exit:?}"
        );
        let reported = of_future(move || BoxError::from(Full(broken)));
        assert_eq!(reported, [all.clone(), all]);
    }
}

/// How a worker ends whose future has this output, with and without a supervisor.
fn ends_with<T: Outcome + Clone + 'static>(output: T) -> [Health; 2] {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let once = output.clone();
    drop(block_on(hb.supervise(async move { once })));
    let lives = Supervisor::new(&world.registry)
        .supervise(world.worker("w").id("lives"), move |_| {
            let output = output.clone();
            async move { output }
        })
        .unwrap();
    block_on(lives);
    [hb.health(), world.registry.get("lives").unwrap().health()]
}

#[test]
fn an_exit_code_of_failure_is_a_failure() {
    for code in [1, 3, 255] {
        let ends = ends_with(ExitCode::from(code));
        let words = format!("exit code {code}");
        assert_eq!(ends.each_ref().map(failure), [words.clone(), words]);
    }
    let ends = ends_with(ExitCode::FAILURE);
    assert_eq!(ends.each_ref().map(failure), ["exit code 1"; 2]);
    for health in ends_with(ExitCode::SUCCESS) {
        assert_eq!(health.state(), State::Stopped, "{health}");
    }
}

#[test]
fn the_exit_of_supervised_work_is_a_failure_if_that_failed() {
    let exit_of = |restart: Restart, panics: bool| {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry).restart(restart);
        let worker = supervisor.spawn(world.worker("inner"), move |_| {
            assert!(!panics, "boom");
            Err("no route".into())
        });
        worker.unwrap().join()
    };
    let failed = exit_of(Restart::never(), false);
    for health in ends_with(failed) {
        assert_eq!(failure(&health), "no route");
    }
    let panicked = exit_of(Restart::never(), true);
    for health in ends_with(panicked) {
        let reported = failure(&health);
        assert!(
            reported.starts_with("panicked at tests/supervision/failures.rs:"),
            "{reported}"
        );
        assert!(reported.ends_with(": boom"), "{reported}");
    }
    let gave_up = exit_of(Restart::on_failure().max(0), false);
    for health in ends_with(gave_up) {
        let reported = failure(&health);
        assert_eq!(reported, "gave up after 0 restarts: failed: no route");
    }
    for exit in [Exit::Completed, Exit::Cancelled] {
        for health in ends_with(exit) {
            assert_eq!(health.state(), State::Stopped, "{health}");
        }
    }
}

// --- futures that are dropped -----------------------------------------------------------------

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("when it was dropped");
    }
}

/// A future that never ends, and owns a value.
fn holding<T: Send + 'static>(held: T) -> impl Future<Output = ()> + Send {
    poll_fn(move |_| {
        let _held = &held;
        Poll::Pending
    })
}

/// Both ways to run a future, under the id "w".
type Run = Box<dyn Future<Output = ()> + Send>;
type Way = fn(&Supervisor, Pin<Box<dyn Future<Output = ()> + Send>>) -> Pin<Run>;

fn ways() -> [Way; 2] {
    [
        |supervisor, work| {
            let hb = WorkerHeartbeat::builder("w").id("w");
            let hb = hb.registry(supervisor.registry()).start().unwrap();
            let run = hb.supervise(work);
            Box::pin(async move { drop(run.await) })
        },
        |supervisor, work| {
            let mut work = Some(work);
            let run = supervisor.supervise(WorkerHeartbeat::builder("w").id("w"), move |_| {
                work.take().expect("one life")
            });
            let run = run.unwrap();
            Box::pin(async move { drop(run.await) })
        },
    ]
}

/// How a future ends that is dropped. Returns the sentence.
fn dropped(way: Way, held: impl Send + 'static, polls: u32, drops: fn(Pin<Run>)) -> Health {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let mut run = way(&supervisor, Box::pin(holding(held)));
    for _ in 0..polls {
        assert!(poll_once(&mut run).is_pending());
    }
    drops(run);
    assert!(supervisor.shutdown(PATIENCE).is_clean());
    world.registry.get("w").unwrap().health()
}

#[test]
fn a_future_that_panics_as_it_is_cancelled_is_dead_with_its_message() {
    for way in ways() {
        for polls in [0, 1] {
            let health = dropped(way, Bomb, polls, drop);
            let words = health.to_string();
            // A supervisor makes the future at the first poll.
            let made = polls == 1 || words.contains("dead");
            if made {
                assert!(
                    words.starts_with("dead: panicked at tests/supervision/failures.rs:"),
                    "{words}"
                );
                assert!(words.contains("when it was dropped"), "{words}");
            } else {
                assert!(words.starts_with("stopped"), "{words}");
            }
        }
    }
}

#[test]
fn a_future_that_is_cancelled_is_stopped() {
    for way in ways() {
        for polls in [0, 1, 2] {
            let health = dropped(way, (), polls, drop);
            assert!(
                matches!(
                    health,
                    Health::Stopped {
                        by: StopCause::Cancelled,
                        ..
                    }
                ),
                "{health:?}"
            );
        }
    }
}

#[test]
fn a_future_that_is_dropped_unpolled_does_nothing_while_the_handle_is_there() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    hb.beat();
    let before = hb.health();
    // As `select!` does with a branch that is disabled.
    drop(hb.supervise(pending::<()>()));
    assert_eq!(hb.health().to_string(), before.to_string());
    let unwinding = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _unpolled = hb.supervise(pending::<()>());
        panic!("in the caller")
    }));
    assert!(unwinding.is_err());
    assert_eq!(hb.health().to_string(), before.to_string());
    // Children of the life are not stopped.
    let children = Supervisor::linked_to(&hb);
    drop(hb.supervise(pending::<()>()));
    let child = children.spawn(world.worker("child").finite(), |_| Ok(()));
    assert!(child.unwrap().join().is_completed());

    let two = [hb.supervise(pending::<()>()), hb.supervise(pending())];
    let probe = hb.probe();
    drop(hb);
    let [first, last] = two;
    drop(first);
    assert_eq!(probe.health().to_string(), before.to_string());
    drop(last);
    assert!(
        matches!(
            probe.health(),
            Health::Stopped {
                by: StopCause::Cancelled,
                ..
            }
        ),
        "{}",
        probe.health()
    );
}

#[test]
fn a_panic_in_the_drop_of_an_unpolled_future_is_reported() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    drop(hb.supervise(holding(Bomb)));
    assert!(hb.health().to_string().contains("when it was dropped"));
}

#[test]
fn a_future_whose_thread_unwinds_is_dead_by_the_panic_of_the_thread() {
    fn drops(run: Pin<Run>) {
        let thread = thread::spawn(move || {
            let _run = run;
            panic!("the executor panicked")
        });
        assert!(thread.join().is_err());
    }
    // The panic is known for certain only if no other panic of the process came after it: other
    // tests of this program panic as well, so more than one attempt may be needed.
    let sentence = |way, bomb: bool| {
        let attempt = || {
            if bomb {
                dropped(way, Bomb, 1, drops).to_string()
            } else {
                dropped(way, (), 1, drops).to_string()
            }
        };
        let mut attempts = std::iter::repeat_with(attempt).take(1_000);
        attempts.find(|words| !words.contains("was not seen"))
    };
    for way in ways() {
        let words = sentence(way, false).expect("the panic is seen");
        assert!(
            words.starts_with("dead: panicked at tests/supervision/failures.rs:"),
            "{words}"
        );
        assert!(words.contains("the executor panicked"), "{words}");
        // A panic of the future's destructor is not what ended the worker.
        let words = sentence(way, true).expect("the panic is seen");
        assert!(words.contains("the executor panicked"), "{words}");
    }
}

#[test]
fn a_supervisor_knows_how_a_dropped_future_ended() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (send, receive) = mpsc::channel();
    let parent = supervisor.spawn(world.worker("parent").finite(), move |hb| {
        let children = Supervisor::linked_to(hb);
        let run = children.supervise(WorkerHeartbeat::builder("w").id("w"), |_| pending::<()>());
        let mut run = Box::pin(run?);
        assert!(poll_once(&mut run).is_pending());
        send.send(())?;
        // The child ends with the parent's work.
        Ok(())
    });
    receive.recv().unwrap();
    assert!(parent.unwrap().join().is_completed());
    let words = world.registry.get("w").unwrap().health().to_string();
    assert!(words.starts_with("stopped"), "{words}");
}

// --- what the work holds ------------------------------------------------------------------------

const WHEN_DROPPED: &str = "when it was dropped";

fn panicked_when_dropped(exit: &Exit, health: &Health) -> bool {
    let by_health = health.to_string().contains(WHEN_DROPPED);
    by_health
        && matches!(exit, Exit::Panicked { message, location: Some(_), .. } if message == WHEN_DROPPED)
}

#[test]
fn a_panic_of_what_the_work_holds_is_the_end_of_the_work() {
    let policies = [Restart::never(), Restart::on_failure(), Restart::always()];
    for (policy, finite) in policies.iter().flat_map(|p| [(p, false), (p, true)]) {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry).restart(policy.clone());
        let builder = |id: &str| {
            let builder = world.worker("w").id(id);
            if finite { builder.finite() } else { builder }
        };
        let bomb = Bomb;
        let on_thread = supervisor.spawn(builder("thread"), move |hb| {
            let _held = &bomb;
            hb.beat();
            // Ends the worker whatever the policy is.
            hb.stop();
            Ok(())
        });
        let on_thread = on_thread.unwrap();
        let exit = on_thread.join();
        let health = on_thread.probe().health();
        assert!(panicked_when_dropped(&exit, &health), "{exit:?}, {health}");

        let bomb = Bomb;
        let lives = supervisor.supervise(builder("lives"), move |hb| {
            let _held = &bomb;
            async move { hb.stop() }
        });
        let exit = block_on(lives.unwrap());
        let health = world.registry.get("lives").unwrap().health();
        assert!(panicked_when_dropped(&exit, &health), "{exit:?}, {health}");
    }
}

#[test]
fn a_return_and_a_panic_of_what_the_work_held_are_one_death() {
    for policy in [Restart::never(), Restart::on_failure()] {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry).restart(policy);
        let events = world.registry.subscribe();
        let bomb = Bomb;
        let worker = supervisor.spawn(world.worker("w"), move |_| {
            let _held = &bomb;
            Ok(())
        });
        let worker = worker.unwrap();
        let exit = worker.join();
        let health = worker.probe().health();
        assert!(panicked_when_dropped(&exit, &health), "{exit:?}, {health}");
        assert_eq!(names(&events), ["registered", "dead"]);
    }
}

#[test]
fn a_failure_comes_before_the_panic_of_what_the_work_holds() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let bomb = Bomb;
    let worker = supervisor.spawn(world.worker("w"), move |_| {
        let _held = &bomb;
        Err("disk full".into())
    });
    let worker = worker.unwrap();
    assert!(matches!(worker.join(), Exit::Failed { error, .. } if error == "disk full"));
    assert_eq!(failure(&worker.probe().health()), "disk full");
}

#[test]
fn a_panic_in_the_drop_of_a_future_factory_is_reported_on_cancellation() {
    for polls in [0, 1] {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry);
        let bomb = Bomb;
        let run = supervisor.supervise(world.worker("w").id("w"), move |_| {
            let _held = &bomb;
            pending::<()>()
        });
        let mut run = Box::pin(run.unwrap());
        for _ in 0..polls {
            assert!(poll_once(&mut run).is_pending());
        }
        drop(run);
        let reported = world.registry.get("w").unwrap().health().to_string();
        assert!(reported.contains(WHEN_DROPPED), "{reported}");
    }
}

#[test]
fn a_panic_that_nested_work_contained_is_the_exit_of_its_worker() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let thread = supervisor.spawn(world.worker("w").id("thread"), |hb| {
        let contained = hb.run(|| panic!("no such table"));
        assert!(matches!(contained, Err(Error::Panicked { .. })));
        Ok(())
    });
    let future = supervisor.supervise(world.worker("w").id("future"), |hb| async move {
        let contained = hb.supervise(async { panic!("no such table") }).await;
        assert!(matches!(contained, Err(Error::Panicked { .. })));
    });
    for (exit, id) in [
        (thread.unwrap().join(), "thread"),
        (block_on(future.unwrap()), "future"),
    ] {
        let health = world.registry.get(id).unwrap().health().to_string();
        assert!(health.starts_with("dead: panicked at "), "{health}");
        let Exit::Panicked {
            message,
            location: Some(location),
            ..
        } = &exit
        else {
            panic!("{exit:?}, but {health}");
        };
        assert_eq!(message, "no such table");
        assert!(location.starts_with(file!()), "{location}");
    }
}

#[test]
fn a_panic_after_nested_work_completed_is_the_end_of_its_worker() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let worker = supervisor.spawn(world.worker("w").id("w"), |hb| {
        assert_eq!(hb.run(|| 7)?, 7);
        panic!("no such table")
    });
    let exit = worker.unwrap().join();
    assert!(matches!(exit, Exit::Panicked { .. }), "{exit:?}");
    let health = world.registry.get("w").unwrap().health().to_string();
    assert!(health.contains("no such table"), "{health}");
}
