//! What the environment may tell a worker. Each case in a process of its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use worker_heartbeat::{Error, Registry, WorkerHeartbeat};

/// Runs the test `in_a_child` with these variables, and returns what it printed.
fn told(variables: &[(&str, &OsStr)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "environment::in_a_child", "--nocapture"])
        .env("IN_A_CHILD", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let line = text.lines().find_map(|line| line.split_once("TOLD: "));
    line.unwrap_or_else(|| panic!("{text}")).1.to_owned()
}

fn value(text: &str) -> &OsStr {
    OsStr::new(text)
}

#[test]
fn in_a_child() {
    if std::env::var_os("IN_A_CHILD").is_none() {
        return;
    }
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
            println!("\nTOLD: {id} {:?} {stale_after:?}", snapshot.interval);
        }
        Err(error @ (Error::Environment { .. } | Error::Invalid { .. })) => {
            println!("\nTOLD: {error}");
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_set_stays_as_it_is() {
    assert_eq!(told(&[]), "company-research-PID-1 30s 90s");
}

#[test]
fn interval_limit_and_id_are_taken_over() {
    assert_eq!(
        told(&[
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
        told(&[("WORKER_HEARTBEAT_INTERVAL", value("0.5"))]),
        "company-research-PID-1 500ms 1.5s"
    );
}

#[test]
fn what_is_not_allowed_is_named() {
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
        let message = told(&[(variable, value(text))]);
        let expected = format!("invalid environment variable {variable}");
        assert!(message.starts_with(&expected), "{message}");
        assert!(message.contains(named), "{message}");
    }
    let message = told(&[("COMPANY_RESEARCH_WORKER_ID", OsStr::from_bytes(b"a\xff"))]);
    assert!(message.contains("allowed: Unicode text"), "{message}");
    let message = told(&[("WORKER_HEARTBEAT_STALE_AFTER", value("40"))]);
    assert_eq!(
        message,
        "invalid stale_after: 40s; allowed: at least 2 x interval, which is 30s"
    );
}
