//! The settings of a worker from the environment. Each case runs in a process of its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use worker_heartbeat::{Error, Registry, WorkerHeartbeat};

use crate::support::process::Process;

/// Starts a worker in a process with these variables, and returns its settings, or why it was
/// refused.
fn settings(variables: &[(&str, &OsStr)]) -> String {
    let mut command = Process::command();
    command.envs(variables.iter().copied());
    let mut process = Process::start_as(command, "environment");
    let line = process.expect("@settings ").text;
    process.wait().assert_code(0);
    line.split_once("@settings ").unwrap().1.to_owned()
}

fn value(text: &str) -> &OsStr {
    OsStr::new(text)
}

/// The role of that process.
pub(crate) fn play() {
    println!("\n@ready");
    let registry = Registry::new();
    let started = WorkerHeartbeat::builder("company-research")
        .registry(&registry)
        .from_env()
        .and_then(|builder| builder.start());
    match started {
        Ok(hb) => {
            let snapshot = hb.snapshot();
            let stale_after = snapshot.thresholds.stale_after;
            let id = snapshot.id.replace(&std::process::id().to_string(), "PID");
            println!("@settings {id} {:?} {stale_after:?}", snapshot.interval);
        }
        Err(error @ (Error::Environment { .. } | Error::Invalid { .. })) => {
            println!("@settings {error}");
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn unset_variables_change_nothing() {
    assert_eq!(settings(&[]), "company-research-PID-1 30s 90s");
}

#[test]
fn interval_limit_and_id_are_taken_over() {
    assert_eq!(
        settings(&[
            ("WORKER_HEARTBEAT_INTERVAL", value("5")),
            ("WORKER_HEARTBEAT_STALE_AFTER", value("12.5")),
            (
                "COMPANY_RESEARCH_WORKER_ID",
                value("company-research-prod-1")
            ),
        ]),
        "company-research-prod-1 5s 12.5s"
    );
    assert_eq!(
        settings(&[("WORKER_HEARTBEAT_INTERVAL", value("0.5"))]),
        "company-research-PID-1 500ms 1.5s"
    );
}

#[test]
fn invalid_variables_are_refused_by_name() {
    for (variable, text, named) in [
        (
            "WORKER_HEARTBEAT_INTERVAL",
            "soon",
            "=\"soon\"; allowed: a number of seconds",
        ),
        (
            "WORKER_HEARTBEAT_INTERVAL",
            "",
            "=\"\"; allowed: a number of seconds",
        ),
        (
            "WORKER_HEARTBEAT_INTERVAL",
            "-3",
            "=\"-3\"; allowed: a number of seconds",
        ),
        (
            "WORKER_HEARTBEAT_STALE_AFTER",
            "NaN",
            "=\"NaN\"; allowed: a number of seconds",
        ),
        (
            "COMPANY_RESEARCH_WORKER_ID",
            "",
            "=\"\" (it is empty); allowed: 1 to 200 bytes",
        ),
        (
            "COMPANY_RESEARCH_WORKER_ID",
            "a\nb",
            "(it has control characters)",
        ),
    ] {
        let message = settings(&[(variable, value(text))]);
        let expected = format!("invalid environment variable {variable}");
        assert!(message.starts_with(&expected), "{message}");
        assert!(message.contains(named), "{message}");
    }
    let message = settings(&[("COMPANY_RESEARCH_WORKER_ID", OsStr::from_bytes(b"a\xff"))]);
    assert!(message.contains("allowed: Unicode text"), "{message}");
    let message = settings(&[("WORKER_HEARTBEAT_STALE_AFTER", value("40"))]);
    assert_eq!(
        message,
        "invalid stale_after: 40s; allowed: at least 2 x interval, which is 30s"
    );
}
