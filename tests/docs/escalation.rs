//! The example of triggers, as real processes: they stall, die, panic, are stopped, and say why.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::examples::{Ended, Example, run};
use crate::support::folder::Folder;

const EXAMPLE: &str = "18_escalation";

/// Plays a scene that escalates. Checks its status and that all was in order.
#[track_caller]
fn escalates(scene: &str, cause: &str) -> Ended {
    let ended = run(EXAMPLE, &[scene]);
    assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
    let report = format!("shutdown by a trigger ({cause}");
    ended.assert_prints(&["working", "closing the index", &report, "), clean, took "]);
    ended
}

#[test]
fn a_worker_that_stalls_ends_its_process_with_status_1() {
    let begun = Instant::now();
    let ended = escalates("stall", "worker indexer-1: stalled: no progress for 1");
    ended.assert_prints(&[
        "500 ms allowed; blocked in futex_",
        "during page-1 (indexing), for 5",
    ]);
    let took = begun.elapsed();
    // 500 ms until it is stalled, and 500 ms more.
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_worker_that_is_given_up_ends_its_process() {
    let cause = "worker indexer-1: given up after 2 restarts: failed: disk full";
    let ended = escalates("give-up", cause);
    ended.assert_prints(&["given up before: indexer-1 (failed: disk full"]);
}

#[test]
fn a_dead_worker_of_a_type_and_missing_workers_end_their_process() {
    escalates("die", "worker cache-1: dead: failed: no memory");
    escalates("miss", "0 of 2 expected workers of type mailer live, for 1");
}

#[test]
fn a_panic_that_ends_its_thread_ends_the_process() {
    let ended = escalates("panic", "thread ThreadId(");
    ended.assert_prints(&[
        ") panicked at examples/18_escalation.rs:",
        ": index out of bounds",
    ]);
}

#[test]
fn a_stopped_process_does_not_escalate() {
    let example = Example::start(EXAMPLE, &["well"]);
    let pages = |out: &str| out.matches("indexed page").count();
    example.wait_for("work", |out| (pages(out) > 2).then_some(()));
    for _ in 0..2 {
        example.send(Signal::SIGSTOP);
        // Longer than the time to stall, and the time to escalate.
        std::thread::sleep(Duration::from_secs(2));
        let before = example.wait_for("the output so far", |out| Some(pages(out)));
        example.send(Signal::SIGCONT);
        example.wait_for("work again", |out| (pages(out) > before + 2).then_some(()));
    }
    example.send(Signal::SIGTERM);
    let ended = example.end();
    ended.assert_success();
    ended.assert_prints(&["closing the index", "shutdown by SIGTERM, clean"]);
}

#[test]
fn a_file_that_is_touched_ends_the_process_with_status_0() {
    let folder = Folder::new("drain");
    let (drain, log) = (folder.join("drain"), folder.join("termination-log"));
    // From an earlier life.
    std::fs::write(&drain, "").unwrap();
    std::fs::write(&log, "untouched").unwrap();
    let paths = [&drain, &log].map(|path| path.to_str().unwrap());
    let example = Example::start(EXAMPLE, &["well", paths[0], paths[1]]);
    example.wait_for("work", |out| out.contains("indexed page 10").then_some(()));
    std::fs::write(&drain, "now").unwrap();
    let ended = example.end();
    ended.assert_success();
    let report = format!("shutdown by file {}, clean", paths[0]);
    ended.assert_prints(&["closing the index", &report]);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "untouched");
}

#[test]
fn the_reason_is_the_termination_message_if_the_file_is_there() {
    let folder = Folder::new("termination");
    let log = folder.join("termination-log");
    let arguments = ["die", "/nonexistent/drain", log.to_str().unwrap()];
    let ended = run(EXAMPLE, &arguments);
    assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
    assert!(!log.exists(), "it is never created");
    std::fs::write(&log, "x".repeat(10_000)).unwrap();
    run(EXAMPLE, &arguments);
    let message = std::fs::read_to_string(&log).unwrap();
    let cause = "shutdown by a trigger (worker cache-1: dead: failed: no memory), clean, took ";
    assert!(message.starts_with(cause), "{message}");
    // A directory, and a file that can't be written, change nothing.
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let ended = run(EXAMPLE, &arguments);
    assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
}

#[test]
fn the_signal_that_follows_a_pre_stop_hook_changes_nothing() {
    let folder = Folder::new("hook");
    let drain = folder.join("drain");
    let example = Example::start(EXAMPLE, &["well", drain.to_str().unwrap()]);
    example.wait_for("work", |out| out.contains("indexed page 3").then_some(()));
    std::fs::write(&drain, "").unwrap();
    // The hook returns once the shutdown has begun, or just before.
    std::thread::sleep(Duration::from_millis(250));
    example.send(Signal::SIGTERM);
    let ended = example.end();
    ended.assert_success();
    ended.assert_prints(&["closing the index", ", clean, took "]);
}
