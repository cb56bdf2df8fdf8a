//! The location and the call stack of a panic belong to the payload that ended the work, or are
//! unknown.

use std::any::Any;
use std::borrow::Cow;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, Location, UnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::thread;

use crate::support::executor::{block_on, poll_once};
use crate::support::{SECOND, World};
use worker_heartbeat::{Death, DeathCause, Error, Health, Probe, Supervisor, WorkerHeartbeat};

/// A supervisor's report of a panic.
#[derive(Debug)]
struct Report {
    message: String,
    /// The line in this file.
    line: Option<u32>,
    thread: String,
    stack: Option<String>,
}

fn death(probe: &Probe) -> Death {
    match probe.health() {
        Health::Dead { death, .. } => (*death).clone(),
        other => panic!("{other:?}"),
    }
}

fn report_of(probe: &Probe) -> Report {
    let DeathCause::Panicked {
        message,
        location,
        thread,
        backtrace,
    } = death(probe).cause
    else {
        panic!("{:?}", probe.health());
    };
    let line = location.map(|place| {
        let place = place
            .split_once("panics.rs:")
            .expect("a location in this file")
            .1;
        place.split(':').next().unwrap().parse().unwrap()
    });
    assert!(
        line.is_some() || backtrace.is_none(),
        "a stack without a location"
    );
    Report {
        message,
        line,
        thread,
        stack: backtrace.map(|stack| stack.to_string()),
    }
}

/// Runs work on a supervised thread, in supervised futures and on this thread, until it panics.
fn each_way(work: impl Fn() + Send + Clone + UnwindSafe + 'static, check: impl Fn(Report)) {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let on_thread = work.clone();
    let worker = supervisor
        .spawn(world.worker("thread").id("thread"), move |_| {
            on_thread();
            Ok(())
        })
        .unwrap();
    worker.join();
    check(report_of(&worker.probe()));

    let in_future = work.clone();
    let run = supervisor.supervise(world.worker("lives").id("lives"), move |_| {
        let work = in_future.clone();
        async move { work() }
    });
    block_on(run.unwrap());
    check(report_of(&world.registry.get("lives").unwrap()));

    let hb = world.worker("here").start().unwrap();
    assert!(matches!(hb.run(&work), Err(Error::Panicked { .. })));
    check(report_of(&hb.probe()));

    let hb = world.worker("future").start().unwrap();
    let result = block_on(hb.supervise(async move { work() }));
    assert!(matches!(result, Err(Error::Panicked { .. })));
    check(report_of(&hb.probe()));
}

#[track_caller]
fn assert_is_from(report: &Report, line: u32, function: &str) {
    assert_eq!(report.line, Some(line), "{}: {report:?}", report.message);
    let stack = report.stack.as_ref().expect("a stack");
    assert!(stack.contains(function), "{function} is not in {stack}");
}

/// The line of the call, if `more` lines are added.
#[track_caller]
fn line(more: u32) -> u32 {
    Location::caller().line() + more
}

/// Catches a panic, as a loop does that survives its jobs.
fn handled(job: impl FnOnce()) -> Box<dyn Any + Send> {
    catch_unwind(AssertUnwindSafe(job)).expect_err("the job panics")
}

/// A number that the compiler does not know, so that the message is formatted at run time.
fn seven() -> u8 {
    black_box(7)
}

fn nothing() -> Option<String> {
    black_box(None)
}

/// Catches a panic of its own when it is dropped.
struct Cleanup(fn());

impl Drop for Cleanup {
    fn drop(&mut self) {
        let payload = handled(self.0);
        drop(payload);
    }
}

// --- which of several panics ----------------------------------------------------------------

#[inline(never)]
fn fails_and_cleans_up(cleanup: fn()) {
    let _cleanup = Cleanup(cleanup);
    panic!("the disk is full"); // fails_and_cleans_up
}

#[inline(never)]
fn fails_and_cleans_up_with_a_number(cleanup: fn()) {
    let _cleanup = Cleanup(cleanup);
    panic!("disk {} is full", seven()); // with_a_number
}

fn line_of(mark: &str) -> u32 {
    let mark = format!("// {mark}");
    let lines = include_str!("panics.rs").lines();
    u32::try_from(lines.take_while(|line| !line.ends_with(&mark)).count() + 1).unwrap()
}

#[test]
fn a_panic_that_a_destructor_catches_does_not_change_the_report() {
    // With another text, the same constant, an equal text that is formatted at run time, and a
    // payload that has no text.
    let cleanups: [fn(); 4] = [
        || panic!("the log is gone"),
        || panic!("the disk is full"),
        || panic!("{}", String::from("the disk is full")),
        || panic_any(seven()),
    ];
    for cleanup in cleanups {
        each_way(
            move || fails_and_cleans_up(cleanup),
            |report| {
                assert_eq!(report.message, "the disk is full");
                assert_is_from(
                    &report,
                    line_of("fails_and_cleans_up"),
                    "fails_and_cleans_up",
                );
            },
        );
    }
    let cleanups: [fn(); 2] = [
        || panic!("disk {} is full", seven()),
        || {
            let _twice = Cleanup(|| panic!("disk {} is full", seven()));
            panic!("disk {} is full", seven());
        },
    ];
    for cleanup in cleanups {
        each_way(
            move || fails_and_cleans_up_with_a_number(cleanup),
            |report| {
                assert_eq!(report.message, "disk 7 is full");
                assert_is_from(&report, line_of("with_a_number"), "with_a_number");
            },
        );
    }
}

#[test]
fn an_earlier_caught_panic_does_not_change_the_report() {
    let jobs: [fn(); 3] = [
        || panic!("the disk is full"),
        || drop(nothing().unwrap()),
        || panic!("disk {} is full", seven()),
    ];
    // Each of these panics last, and directly.
    let ends: [(fn(), u32); 3] = [
        (|| panic!("the disk is full"), line(0)),
        (|| drop(nothing().unwrap()), line(0)),
        (|| panic!("disk {} is full", seven()), line(0)),
    ];
    for (job, (end, line)) in jobs.into_iter().zip(ends) {
        each_way(
            move || {
                for _ in 0..3 {
                    drop(handled(job));
                }
                end();
            },
            move |report| {
                assert_is_from(
                    &report,
                    line,
                    "an_earlier_caught_panic_does_not_change_the_report",
                );
            },
        );
    }
}

#[test]
fn a_job_that_panics_over_and_over_has_its_last_stack() {
    #[inline(never)]
    fn job(last: bool) {
        fn fail() {
            panic!("the disk is full"); // over and over
        }
        #[inline(never)]
        fn on_the_last_way() {
            fail();
            black_box(());
        }
        if last {
            on_the_last_way();
        }
        fail();
    }
    each_way(
        || {
            for _ in 0..100 {
                drop(handled(|| job(false)));
            }
            job(true);
        },
        |report| assert_is_from(&report, line_of("over and over"), "on_the_last_way"),
    );
}

#[test]
fn a_panic_that_the_hook_did_not_see_has_no_location() {
    each_way(
        || {
            drop(handled(|| panic!("unseen {}", seven())));
            // It could have the location of the other panic by chance; its text still differs.
            resume_unwind(Box::new(format!("unseen {}", seven() + 1)))
        },
        |report| {
            assert_eq!(report.message, "unseen 8");
            assert_eq!(report.line, None, "{report:?}");
        },
    );
    each_way(
        || {
            drop(handled(|| panic!("unseen")));
            resume_unwind(Box::new(String::from("unseen")))
        },
        |report| assert_eq!(report.line, None, "{report:?}"),
    );
    struct OfThisTest(#[expect(dead_code, reason = "it has a size")] u64);
    each_way(
        || resume_unwind(Box::new(OfThisTest(7))),
        |report| assert_eq!(report.line, None, "{report:?}"),
    );
}

// --- panics that are passed on ----------------------------------------------------------------

#[inline(never)]
fn the_helper(text: bool) {
    if text {
        panic!("the helper fell"); // the helper
    }
    panic!("helper {} fell", seven()); // the numbered helper
}

fn helper(text: bool) -> thread::JoinHandle<()> {
    let thread = thread::Builder::new().name("helper-1".to_owned());
    thread.spawn(move || the_helper(text)).unwrap()
}

#[test]
fn a_panic_of_a_thread_that_is_joined_keeps_location_stack_and_thread() {
    for (text, mark) in [(true, "the helper"), (false, "the numbered helper")] {
        each_way(
            move || {
                // An earlier panic with the same text was caught.
                drop(handled(|| panic!("the helper fell")));
                drop(handled(|| panic!("helper {} fell", seven())));
                resume_unwind(helper(text).join().unwrap_err())
            },
            |report| {
                assert_is_from(&report, line_of(mark), "the_helper");
                assert_eq!(report.thread, "helper-1");
            },
        );
    }
}

#[test]
fn a_panic_that_is_resumed_later_keeps_its_location() {
    let jobs: [fn(); 4] = [
        || the_helper(true),
        || the_helper(false),
        || panic_any(seven()),                // of no text
        || panic_any(String::from("a text")), // of a text
    ];
    let marks = [
        "the helper",
        "the numbered helper",
        "of no text",
        "of a text",
    ];
    for (job, mark) in jobs.into_iter().zip(marks) {
        each_way(
            move || {
                let kept = handled(job);
                // Other panics are caught meanwhile.
                drop(handled(|| panic!("the helper fell")));
                drop(handled(|| panic!("helper {} fell", seven())));
                drop(handled(|| panic_any(seven())));
                drop(handled(|| panic_any(String::from("a text"))));
                resume_unwind(kept)
            },
            |report| assert_eq!(report.line, Some(line_of(mark)), "{report:?}"),
        );
    }
}

#[test]
fn a_panic_of_one_worker_that_ends_another_keeps_its_location() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let (send, receive) = mpsc::channel();
    let first = supervisor
        .spawn(world.worker("w").id("first").finite(), move |hb| {
            let _task = hb.begin_task("run-1", "of the first");
            send.send(handled(|| the_helper(false))).unwrap();
            Ok(())
        })
        .unwrap();
    first.join();
    let second = supervisor
        .spawn(world.worker("w").id("second"), move |hb| {
            let _task = hb.begin_task("run-2", "of the second");
            resume_unwind(receive.recv()?)
        })
        .unwrap();
    second.join();
    let report = report_of(&second.probe());
    assert_is_from(&report, line_of("the numbered helper"), "the_helper");
    assert_eq!(report.thread, "first");
    let run = death(&second.probe()).run_id;
    assert_eq!(
        run.as_deref(),
        Some("run-2"),
        "the run of the second worker"
    );
}

#[test]
fn a_panic_that_is_resumed_between_two_polls_keeps_its_location() {
    let world = World::new();
    let hb = world.worker("w").start().unwrap();
    let mut running = None;
    let mut future = Box::pin(hb.supervise(std::future::poll_fn(move |_| {
        let helper = running.get_or_insert_with(|| helper(false));
        if helper.is_finished() {
            resume_unwind(running.take().unwrap().join().unwrap_err());
        }
        Poll::<()>::Pending
    })));
    crate::support::eventually("the end", || poll_once(&mut future).is_ready());
    assert_is_from(
        &report_of(&hb.probe()),
        line_of("the numbered helper"),
        "the_helper",
    );
}

// --- the task that it happened in -----------------------------------------------------------

#[test]
fn a_death_names_the_task_that_was_open_when_the_panic_arose() {
    let world = World::new();
    let supervisor = Supervisor::new(&world.registry);
    let died_in = |work: fn(&WorkerHeartbeat, &dyn Fn())| {
        let time = world.time.clone();
        let worker = supervisor
            .spawn(world.worker("w"), move |hb| {
                let time = time.clone();
                work(hb, &move || time.advance(3_600 * SECOND));
                Ok(())
            })
            .unwrap();
        worker.join();
        death(&worker.probe()).run_id
    };
    let run = Some("run-1".to_owned());
    // Unwinding takes a long time.
    assert_eq!(
        died_in(|hb, an_hour| {
            let _later = Later(an_hour);
            let _task = hb.begin_task("run-1", "");
            panic!("in it")
        }),
        run
    );
    // The panic follows at once after the task.
    assert_eq!(
        died_in(|hb, _| {
            drop(hb.begin_task("run-1", ""));
            panic!("after it")
        }),
        None
    );
    // The panic arises in the task, and is resumed much later, within another task.
    assert_eq!(
        died_in(|hb, an_hour| {
            let kept = handled(|| {
                let _task = hb.begin_task("run-1", "");
                panic!("in it")
            });
            an_hour();
            let _task = hb.begin_task("run-2", "");
            resume_unwind(kept)
        }),
        run
    );
    // A job's panic was caught; the loop panicked later.
    assert_eq!(
        died_in(|hb, an_hour| {
            drop(handled(|| {
                let _task = hb.begin_task("run-1", "");
                panic!("in it")
            }));
            an_hour();
            panic!("the loop")
        }),
        None
    );
}

/// Runs a closure late, when it is dropped.
struct Later<'a>(&'a dyn Fn());

impl Drop for Later<'_> {
    fn drop(&mut self) {
        (self.0)();
    }
}

// --- payloads -----------------------------------------------------------------------------------

#[derive(Debug)]
struct Lost(std::io::Error);

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection lost")
    }
}

impl std::error::Error for Lost {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[test]
fn a_payload_with_a_text_or_an_error_is_reported_with_it() {
    type Boxed = Box<dyn Any + Send>;
    let lost = || Lost(std::io::Error::other("reset"));
    type Make = fn() -> Boxed;
    let payloads: Vec<(&str, Make)> = vec![
        ("cow", || Box::new(Cow::Borrowed("cow"))),
        ("cow 1", || {
            Box::new(Cow::<str>::Owned(format!("cow {}", 1)))
        }),
        ("box", || Box::new(Box::<str>::from("box"))),
        ("arc", || Box::new(Arc::<str>::from("arc"))),
    ];
    for (message, payload) in payloads {
        // The payload is the trait object itself, in one more box, or two.
        for depth in 0..3 {
            let raise = move || {
                let payload = (0..depth).fold(payload(), |inner, _| Box::new(inner) as Boxed);
                panic_any(payload)
            };
            each_way(raise, |report| assert_eq!(report.message, message));
        }
    }
    let all = "connection lost: reset";
    let raise = move || panic_any(Box::new(lost()) as Box<dyn std::error::Error + Send + Sync>);
    each_way(raise, |report| assert_eq!(report.message, all));
    let raise = move || panic_any(Box::new(lost()) as Box<dyn std::error::Error + Send>);
    each_way(raise, |report| assert_eq!(report.message, all));
    let raise = move || panic_any(std::io::Error::other(lost()));
    each_way(raise, |report| {
        assert!(report.message.contains("connection lost"))
    });
}

#[test]
fn a_panic_that_is_raised_again_in_a_second_box_keeps_its_message() {
    let raise = || {
        let helper = thread::spawn(|| panic!("the disk is on {}", "fire"));
        panic_any(helper.join().unwrap_err())
    };
    each_way(raise, |report| {
        assert_eq!(report.message, "the disk is on fire")
    });
}

#[test]
fn an_error_in_a_payload_that_cannot_be_written_is_contained() {
    #[derive(Debug)]
    struct Broken;
    impl std::fmt::Display for Broken {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("stopped at ")?;
            panic!("no such time")
        }
    }
    impl std::error::Error for Broken {}
    let raise = || panic_any(Box::new(Broken) as Box<dyn std::error::Error + Send + Sync>);
    each_way(raise, |report| {
        assert!(
            report.message.starts_with("stopped at ["),
            "{}",
            report.message
        );
        assert!(report.line.is_some());
    });
}
