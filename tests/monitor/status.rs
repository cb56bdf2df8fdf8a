//! `heartbeat-monitor status`: which workers it shows, in which width, and with which colours.

use std::process::Stdio;

use crate::fixtures::{Folder, ends, filled_with_many, monitor, stdout};
use serde_json::Value;
use worker_heartbeat::fleet::{Beat, Registration};
use worker_heartbeat::{HeartbeatStore, SqliteStore, State};

/// Two types in two groups, each with one worker that is stalled.
fn parts(folder: &Folder) -> String {
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    let mut workers = Vec::new();
    for worker_type in ["indexer", "mailer"] {
        for group in ["east", "west"] {
            for n in 0..3 {
                let id = format!("{worker_type}-{group}-{n}");
                let mut registration = Registration::new(worker_type, id);
                registration.info.group = group.to_owned();
                workers.push(registration);
            }
        }
    }
    let keys = store.register(&workers).unwrap();
    let beats: Vec<Beat> = keys
        .into_iter()
        .map(|key| {
            let state = if key.id.ends_with("-2") {
                State::Stalled
            } else {
                State::Idle
            };
            Beat::new(key, state)
        })
        .collect();
    store.beat(&beats).unwrap();
    file
}

#[test]
fn a_status_may_be_about_types_groups_and_states() {
    let folder = Folder::new("status-scope");
    let file = parts(&folder);
    let status = |options: &[&str]| {
        let table = ends(&[&["status", "--sqlite", &file], options].concat(), 0);
        let ids = table.lines().skip(1);
        let ids: Vec<String> = ids
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        let (_, ids) = ids.split_last().unwrap();
        (ids.to_vec(), table.lines().last().unwrap().to_owned())
    };
    let (ids, totals) = status(&[]);
    assert_eq!(ids.len(), 12);
    assert!(
        ids[..4].iter().all(|id| id.ends_with("-2")),
        "the unwell first: {ids:?}"
    );
    assert_eq!(totals, "12 workers: 8 idle, 4 stalled");
    for (options, first, totals) in [
        (
            &["--type", "mailer"][..],
            "mailer-east-2",
            "6 workers: 4 idle, 2 stalled",
        ),
        (
            &["--type", "mailer", "--type", "indexer"],
            "indexer-east-2",
            "12 workers: 8 idle, 4 stalled",
        ),
        (
            &["--group", "west"],
            "indexer-west-2",
            "6 workers: 4 idle, 2 stalled",
        ),
        (
            &["--group", "west", "--type", "mailer"],
            "mailer-west-2",
            "3 workers: 2 idle, 1 stalled",
        ),
        (&["--state", "idle"], "indexer-east-0", "8 workers: 8 idle"),
        (
            &["--state", "idle", "--state", "stalled", "--type", "mailer"],
            "mailer-east-2",
            "6 workers: 4 idle, 2 stalled",
        ),
        (&["--state", "dead"], "", "0 workers"),
        (&["--group", "nowhere"], "", "0 workers"),
    ] {
        for all in [&[][..], &["--all"]] {
            let (ids, said) = status(&[options, all].concat());
            assert_eq!(said, totals, "{options:?}");
            let count: usize = totals.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(ids.len(), count, "{options:?}");
            if all.is_empty() {
                assert_eq!(ids.first().map_or("", String::as_str), first, "{options:?}");
            }
        }
        let json = [&["status", "--sqlite", &file, "--json"][..], options].concat();
        let json: Value = serde_json::from_str(&ends(&json, 0)).unwrap();
        let count = json["workers"].as_array().unwrap().len();
        assert!(totals.starts_with(&format!("{count} worker")), "{json}");
    }
    let json = [
        "status", "--sqlite", &file, "--json", "--group", "west", "--type", "mailer",
    ];
    let json: Value = serde_json::from_str(&ends(&json, 0)).unwrap();
    assert_eq!(json["summary"]["total"], 3);
    assert_eq!(json["summary"]["stalled_workers"][0]["id"], "mailer-west-2");
    let odd = ends(&["status", "--sqlite", &file, "--state", "sick"], 2);
    assert!(odd.contains("must be one of dead, never_started"), "{odd}");
}

#[test]
fn without_a_terminal_there_are_no_colours_and_only_a_stated_width() {
    let folder = Folder::new("status-width");
    let file = filled_with_many(&folder);
    let status = |environment: &[(&str, &str)], options: &[&str]| {
        let mut command = monitor(&[&["status", "--sqlite", &file], options].concat());
        command
            .env_remove("COLUMNS")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm");
        let output = command.envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        stdout(&output)
    };
    let free = status(&[], &[]);
    assert!(!free.contains('\u{1b}'));
    let narrow = status(&[("COLUMNS", "40")], &[]);
    assert!(narrow.lines().next().unwrap().chars().count() <= 40);
    let rows = narrow.lines().take(1_001);
    assert!(
        rows.clone().all(|line| line.chars().count() <= 40),
        "{narrow}"
    );
    assert!(!narrow.contains('\u{1b}'), "a width is no terminal");
    // Ages get longer meanwhile, and their column wider.
    let columns = |status: &str| {
        let head = status.lines().next().unwrap();
        head.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for absurd in ["", "0", "-5", "wide", "1e3"] {
        let status = status(&[("COLUMNS", absurd)], &[]);
        assert_eq!(columns(&status), columns(&free));
    }
    let colored = status(&[("NO_COLOR", "1")], &["--color", "always"]);
    assert!(colored.contains("\u{1b}[31mstalled\u{1b}[0m"));
}

#[test]
fn help_and_errors_survive_closed_outputs() {
    for arguments in [
        &["--help"][..],
        &["status", "--help"],
        &["man"],
        &["completions", "bash"],
    ] {
        let mut child = monitor(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}
