//! Call stacks of threads that hang: in many ways, in several kinds of builds, and in verdicts.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod builds;
mod scenarios;
mod stores;
mod verdicts;

use worker_heartbeat::{CallStack, Error, Registry, WorkerHeartbeat};

fn names(stack: &CallStack) -> impl Iterator<Item = &str> {
    stack
        .frames
        .iter()
        .filter_map(|frame| frame.function.as_deref())
}

#[test]
fn a_thread_that_hangs_shows_where() {
    let stacks = scenarios::all();
    for (function, stack) in &stacks {
        let place = stack.place().unwrap();
        let name = place.function.as_deref().unwrap();
        assert!(name.ends_with(*function), "{function}: {stack:#}");
        // Without debug information, as in a release build, there are no lines.
        if let Some(file) = &place.file {
            // As in the message of a panic.
            assert_eq!(file, "tests/stacks/scenarios.rs", "{stack:#}");
            assert!(place.line.is_some());
        }
        assert_eq!(stack.cut, None, "{stack:#}");
        for outer in ["::outer", "__rust_begin_short_backtrace"] {
            assert!(names(stack).any(|name| name.contains(outer)), "{stack:#}");
        }
    }
    // Calls through pointers and of futures are followed.
    let all: Vec<&str> = stacks.iter().flat_map(|(_, stack)| names(stack)).collect();
    assert!(
        all.iter()
            .any(|name| name.contains("Sleeper as") && name.ends_with("Job>::run"))
    );
    assert!(all.iter().any(|name| name.starts_with("tokio::")));
    assert!(all.iter().any(|name| name.ends_with("waits_for_once")));
}

fn reason(stack: Result<CallStack, Error>) -> String {
    match stack {
        Err(Error::CallStack { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn where_there_is_no_stack_the_reason_is_given() {
    let registry = Registry::new();
    let start = || {
        WorkerHeartbeat::builder("a")
            .registry(&registry)
            .start()
            .unwrap()
    };
    let hb = start();
    let probe = hb.probe();
    assert_eq!(
        reason(probe.capture_stack()),
        "no thread has reported for it yet"
    );
    hb.update_task("run", "task", worker_heartbeat::Activity::Processing);
    assert_eq!(reason(probe.capture_stack()), "it is the thread that asks");
    drop(hb);
    assert_eq!(reason(probe.capture_stack()), "it is over");
    let error = probe.capture_stack().unwrap_err().to_string();
    assert_eq!(
        error,
        format!("no call stack of worker {:?}: it is over", probe.id())
    );
}

/// A thread that changes all the time: each stack that is returned is one that it had.
#[test]
fn a_stack_that_changes_meanwhile_is_never_mixed_up() {
    let counts = scenarios::changing(1_000);
    assert!(counts.known > 0, "{counts:?}");
}
