//! `heartbeat-monitor check` of a part of a fleet, and of dead workers that were replaced.

use crate::fixtures::{Folder, ends};
use worker_heartbeat::fleet::{Beat, Registration, Stop, StoredEnding, WorkerFilter};
use worker_heartbeat::{DeathCause, HeartbeatStore, SqliteStore, State};

fn registration(id: &str, worker_type: &str, group: &str) -> Registration {
    let mut registration = Registration::new(worker_type, id);
    registration.info.group = group.to_owned();
    registration
}

/// `check` with these options.
#[track_caller]
fn check(file: &str, options: &[&str], status: i32) -> String {
    ends(&[&["check", "--sqlite", file], options].concat(), status)
}

#[test]
fn a_check_may_be_about_types_and_groups() {
    let folder = Folder::new("check-scope");
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    let workers = [
        registration("a", "indexer", "east"),
        registration("b", "indexer", "west"),
        registration("c", "mailer", "east"),
        registration("d", "mailer", "west"),
    ];
    let keys = store.register(&workers).unwrap();
    let states = [State::Idle, State::Stalled, State::Idle, State::Idle];
    let beats = keys.into_iter().zip(states);
    let beats: Vec<Beat> = beats.map(|(key, state)| Beat::new(key, state)).collect();
    store.beat(&beats).unwrap();

    let all = check(&file, &[], 1);
    assert!(
        all.starts_with("3 active, 0 dead, 1 stalled; b: stalled"),
        "{all}"
    );
    for (options, status, begins) in [
        (&["--type", "mailer"][..], 0, "2 active, 0 dead\n"),
        (
            &["--type", "indexer"],
            1,
            "1 active, 0 dead, 1 stalled; b: stalled",
        ),
        (
            &["--type", "mailer", "--type", "indexer", "--type", "mailer"],
            1,
            "3 active",
        ),
        (&["--group", "east"], 0, "2 active, 0 dead\n"),
        (
            &["--group", "west"],
            1,
            "1 active, 0 dead, 1 stalled; b: stalled",
        ),
        (
            &["--group", "west", "--type", "mailer"],
            0,
            "1 active, 0 dead\n",
        ),
        (
            &["--group", "west", "--type", "indexer"],
            1,
            "0 active, 0 dead, 1 stalled; b: ",
        ),
        (
            &["--group", "west", "--ignore-type", "indexer"],
            0,
            "1 active, 0 dead, 1 stalled; b: ",
        ),
        (
            &["--group", "east", "--expect", "indexer=1"],
            0,
            "2 active, 0 dead\n",
        ),
        (&["--group", "nowhere"], 0, "0 active, 0 dead\n"),
    ] {
        let said = check(&file, options, status);
        assert!(said.starts_with(begins), "{options:?}: {said}");
    }
    let few = check(&file, &["--group", "east", "--expect", "indexer=2"], 1);
    assert_eq!(
        few,
        "2 active, 0 dead; 1 of 2 expected workers of type indexer live\n"
    );
    let none = check(&file, &["--group", "nowhere", "--expect", "indexer=1"], 1);
    assert!(
        none.ends_with("0 of 1 expected workers of type indexer live\n"),
        "{none}"
    );
    check(&file, &["--type", "mailer", "--policy", "strict"], 0);
    check(&file, &["--type", "none", "--policy", "strict"], 1);
}

#[test]
fn dead_workers_that_were_replaced_long_ago_do_not_count() {
    let folder = Folder::new("check-replaced");
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    // More than one page.
    let dead: Vec<_> = (0..1_300)
        .map(|n| registration(&format!("dead-{n:04}"), "indexer", "east"))
        .chain([
            registration("other-group", "indexer", "west"),
            registration("other-type", "mailer", "east"),
        ])
        .collect();
    let keys = store.register(&dead).unwrap();
    let ending = StoredEnding::dead(&DeathCause::Failed {
        error: "no disk".into(),
    });
    let stops: Vec<_> = keys
        .into_iter()
        .map(|key| Stop::new(key, ending.clone()))
        .collect();
    store.stop(&stops).unwrap();
    let successor = store
        .register(&[registration("z-new", "indexer", "east")])
        .unwrap();
    store
        .beat(&[Beat::new(successor[0].clone(), State::Idle)])
        .unwrap();

    // They ended a moment ago.
    let recent = check(&file, &[], 1);
    assert!(
        recent.starts_with("1 active, 1302 dead; dead-0000: dead"),
        "{recent}"
    );
    let over = ["--keep-replaced", "1ns"];
    let said = check(&file, &over, 1);
    assert!(
        said.starts_with("1 active, 2 dead; other-group: dead"),
        "{said}"
    );
    assert!(said.contains("; other-type: dead"), "{said}");
    assert!(
        said.ends_with("; 1300 dead were replaced and don't count\n"),
        "{said}"
    );
    for (scope, dead) in [(&["--type", "indexer"], 1), (&["--group", "east"], 1)] {
        let said = check(&file, &[&over[..], scope].concat(), 1);
        assert!(
            said.starts_with(&format!("1 active, {dead} dead; other-")),
            "{said}"
        );
    }
    let east = ["--type", "indexer", "--group", "east"];
    let said = check(&file, &[&over[..], &east].concat(), 0);
    assert_eq!(
        said,
        "1 active, 0 dead; 1300 dead were replaced and don't count\n"
    );
    check(
        &file,
        &[&["--keep-replaced", "never"][..], &east].concat(),
        1,
    );

    // Nobody takes their place any longer.
    let successor = store
        .list(&WorkerFilter::new().after("other-type"))
        .unwrap()
        .remove(0);
    let stop = Stop::new(successor.key, StoredEnding::dead(&DeathCause::Exited));
    store.stop(&[stop]).unwrap();
    check(&file, &[&over[..], &east].concat(), 1);
}
