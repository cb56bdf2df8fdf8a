//! A shutdown waits for supervised work to return.

use crate::support::process::{Ended, Process};
use nix::sys::signal::Signal;

/// Runs a scene that checks itself.
fn play(scene: &str) -> Ended {
    let ended = Process::start(scene).wait();
    ended.assert_code(0);
    ended
}

#[test]
fn work_of_a_thread_that_was_idle_has_returned_before_the_cleanups_run() {
    play("thread");
    play("thread-async");
}

#[test]
fn work_of_a_future_that_was_idle_has_returned_before_the_cleanups_run() {
    play("future");
    play("plain-future");
}

#[test]
fn what_the_work_owns_is_dropped_before_the_shutdown_ends() {
    play("destructor");
}

#[test]
fn a_log_that_blocks_keeps_no_work_from_its_stop_and_no_process_from_its_end() {
    play("log-blocks");
}

#[test]
fn work_of_an_idle_worker_that_does_not_return_is_named_and_delays_the_end_briefly() {
    let ended = play("thread-hangs");
    let said = &ended.transcript;
    assert!(said.has("clean, took"), "{said}");
    assert!(said.has("not returned: deaf"), "{said}");
    play("future-hangs");
}

#[test]
fn a_future_that_is_dropped_has_returned() {
    play("future-dropped");
}

#[test]
fn futures_that_have_not_started_or_have_ended_are_not_waited_for() {
    play("futures-not-polled");
    play("restarting");
}

#[test]
fn work_that_waits_for_the_shutdown_is_not_waited_for() {
    play("thread-waits");
    play("future-blocks");
    play("future-waits");
    play("future-gives-up-waiting");
}

/// The thread that ends the process writes the messages; neither the log nor a full pipe can block
/// it.
#[test]
fn without_a_thread_the_last_messages_are_still_written() {
    for (scene, heard) in [("no-threads", true), ("no-threads-stuffed", false)] {
        let mut process = Process::start(scene);
        process.expect("@no threads");
        process.signal(Signal::SIGTERM);
        let ended = process.wait();
        ended.assert_code(1);
        let words = "worker-heartbeat: exit with status 1: the shutdown took too long; still at \
                     work: stuck (stopping: finishing its task, during run-1 (hangs))";
        assert_eq!(ended.transcript.has(words), heard, "{}", ended.transcript);
    }
}

#[test]
fn a_process_that_does_not_end_after_its_shutdown_is_ended_if_a_limit_is_set() {
    for scene in ["exit", "exit-async"] {
        let ended = Process::start(scene).wait();
        ended.assert_code(1);
        let words = "worker-heartbeat: exit with status 1: the process took too long to end after \
                     its shutdown; all workers and cleanups ended, but the process did not";
        let said = &ended.transcript;
        said.assert_order(&["@summary: shutdown by the application, clean"]);
        assert!(said.has(words), "{said}");
    }
    play("exit-in-time");
    play("no-exit-timeout");
    play("exit-timeout-range");
}

#[test]
fn with_a_worker_that_was_given_up_the_exit_status_is_no_success() {
    Process::start("gave-up").wait().assert_code(7);
}

#[test]
fn workers_that_died_while_they_stopped_are_in_the_report() {
    play("dies");
}
