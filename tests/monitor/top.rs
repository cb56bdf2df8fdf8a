//! `heartbeat-monitor top` and the colours of `status`, in a real pseudo-terminal.

use std::process::Command;

use crate::fixtures::{Folder, ends, filled_with_many, monitor};
use crate::pty::InTerminal;
use crate::support::examples::poll;
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use worker_heartbeat::fleet::{Beat, Registration, Stop, StoredEnding, WorkerKey};
use worker_heartbeat::{DeathCause, HeartbeatStore, SqliteStore, State};

/// Two workers that are well, and one that is stalled.
fn small(folder: &Folder) -> (String, SqliteStore, Vec<WorkerKey>) {
    let file = folder.file("fleet.db");
    let store = SqliteStore::open(&file).unwrap();
    let workers = [
        Registration::new("indexer", "fleet-a-indexer-1"),
        Registration::new("mailer", "mailer-1"),
        Registration::new("mailer", "mailer-2"),
    ];
    let keys = store.register(&workers).unwrap();
    let states = [State::Idle, State::Processing, State::Stalled];
    let beats = keys.iter().zip(states);
    let mut beats: Vec<_> = beats
        .map(|(key, state)| Beat::new(key.clone(), state))
        .collect();
    beats[2].status.reason = Some("no progress for 6 s, 5 s allowed".to_owned());
    beats[2].status.stack = Some("    0: syscall\n>   1: shop::reserve".to_owned());
    store.beat(&beats).unwrap();
    (file, store, keys)
}

fn top(file: &str, options: &[&str]) -> Command {
    let arguments = ["top", "--sqlite", file, "--interval", "100ms"];
    let mut command = monitor(&[&arguments[..], options].concat());
    command
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS");
    command
}

#[track_caller]
fn quit(mut terminal: InTerminal) {
    // A key that comes together with another size may be read only with the next key.
    let status = poll("its end", || {
        terminal.try_press("q");
        terminal.child.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(0));
    poll("the terminal as it was", || {
        terminal.is_restored().then_some(())
    });
}

#[test]
fn the_unwell_are_on_top_and_what_happens_is_seen() {
    let folder = Folder::new("top");
    let (file, store, keys) = small(&folder);
    let mut terminal = InTerminal::start(&top(&file, &[]), 24, 80);
    let screen = terminal.shows("3 workers");
    let screen = if screen.contains("? help") {
        screen
    } else {
        terminal.shows("? help")
    };
    let lines: Vec<&str> = screen.lines().collect();
    assert!(
        lines[1].starts_with("3 workers  1 stalled  1 processing  1 idle"),
        "{screen}"
    );
    assert!(lines[2].starts_with("WORKER"), "{screen}");
    assert!(
        lines[3].starts_with("mailer-2") && lines[3].contains("stalled"),
        "{screen}"
    );
    assert!(screen.contains("no progress for 6 s"), "{screen}");
    assert!(screen.contains("3 listed, worst first"), "{screen}");
    assert!(terminal.has_colour());

    // A worker dies, and the stalled one recovers.
    let ending = StoredEnding::dead(&DeathCause::Failed {
        error: "no disk".into(),
    });
    store.stop(&[Stop::new(keys[0].clone(), ending)]).unwrap();
    store
        .beat(&[Beat::new(keys[2].clone(), State::Idle)])
        .unwrap();
    let screen = terminal.shows("1 dead");
    let first = screen.lines().nth(3).unwrap();
    assert!(
        first.starts_with("fleet-a-indexer-1") && first.contains("no disk"),
        "{screen}"
    );
    terminal.press("e");
    let events = terminal.shows("idle -> dead, failed: no disk");
    assert!(events.contains("mailer-2: stalled -> idle"), "{events}");
    terminal.press("?");
    terminal.shows("only the unwell");
    quit(terminal);
}

#[test]
fn details_follow_the_cursor_and_show_the_whole_reason() {
    let folder = Folder::new("top-details");
    let (file, _store, _keys) = small(&folder);
    let mut terminal = InTerminal::start(&top(&file, &[]), 40, 100);
    terminal.shows("mailer-2");
    terminal.press("\r");
    let screen = terminal.shows("shop::reserve");
    assert!(
        screen.contains("reason        no progress for 6 s, 5 s allowed"),
        "{screen}"
    );
    terminal.press("j");
    terminal.until("the details of another worker", |screen| {
        !screen.contains("shop::reserve") && screen.contains("id            fleet-a-indexer-1")
    });
    // Escape closes the details, and does not quit.
    terminal.press("\u{1b}");
    terminal.until("the list alone", |screen| !screen.contains("Details"));
    quit(terminal);
}

#[test]
fn search_sort_and_filter_are_the_store_s() {
    let folder = Folder::new("top-many");
    let file = filled_with_many(&folder);
    let mut terminal = InTerminal::start(&top(&file, &[]), 24, 100);
    let screen = terminal.shows("500 of 2500 listed, worst first");
    assert!(
        screen.lines().nth(3).unwrap().starts_with("worker-0004"),
        "{screen}"
    );
    terminal.press("sss");
    // Behind the worst 500.
    terminal.press("/WORKER-2");
    terminal.shows("search: WORKER-2_");
    terminal.press("41\r");
    let screen = terminal.shows("with \"WORKER-241\"");
    assert!(
        screen.contains("10 listed") || !screen.contains("worker-2411"),
        "{screen}"
    );
    terminal.shows("worker-2411");
    terminal.press("u");
    terminal.until("only the unwell", |screen| {
        screen.contains("worker-2414") && !screen.contains("worker-2411")
    });
    terminal.press("\u{1b}");
    terminal.until("all of the unwell", |screen| {
        screen.contains("500 listed") && screen.contains("only the unwell")
    });
    terminal.press("u");
    terminal.shows("500 of 2500 listed");
    // By type, group, heartbeat, the worst, id.
    terminal.press("s");
    terminal.shows("oldest heartbeat");
    terminal.press("ss");
    terminal.until("the order of ids", |screen| {
        screen.contains("listed, id") && screen.contains("worker-0000")
    });
    terminal.press("G");
    terminal.shows("worker-0499");
    quit(terminal);
}

#[test]
fn it_fits_every_size_and_says_what_it_must() {
    let folder = Folder::new("top-sizes");
    let (file, _store, _keys) = small(&folder);
    let mut terminal = InTerminal::start(&top(&file, &["--type", "mailer"]), 100, 300);
    terminal.shows("2 workers");
    terminal.press("\r");
    terminal.shows("Details");
    for (rows, columns) in [
        (1, 1),
        (2, 80),
        (5, 5),
        (24, 1),
        (3, 200),
        (100, 300),
        (10, 40),
    ] {
        terminal.resize(rows, columns);
    }
    terminal.until("the state in 40 columns", |screen| {
        screen.lines().any(|line| line.contains("stalled")) && screen.contains("mailer-2")
    });
    quit(terminal);
}

#[test]
fn no_color_is_respected() {
    let folder = Folder::new("top-plain");
    let (file, _store, _keys) = small(&folder);
    let terminal = InTerminal::start(top(&file, &[]).env("NO_COLOR", "1"), 24, 80);
    terminal.shows("mailer-2");
    assert!(!terminal.has_colour());
    quit(terminal);

    for (variable, value, has_colour) in [
        ("NO_COLOR", "", true),
        ("NO_COLOR", "1", false),
        ("TERM", "dumb", false),
    ] {
        let mut command = monitor(&["status", "--sqlite", &file]);
        command
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env_remove("COLUMNS");
        let mut terminal = InTerminal::start(command.env(variable, value), 24, 60);
        let screen = terminal.shows("3 workers");
        assert_eq!(terminal.end().code(), Some(0));
        assert_eq!(
            terminal.has_colour(),
            has_colour,
            "{variable}={value}: {screen}"
        );
        // A line that did not fit would go on in the next one.
        assert_eq!(screen.trim_end().lines().count(), 5, "{screen}");
    }
}

#[test]
fn a_signal_restores_the_terminal_and_ends_it() {
    let folder = Folder::new("top-signals");
    let (file, _store, _keys) = small(&folder);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = InTerminal::start(&top(&file, &[]), 24, 80);
        terminal.shows("mailer-2");
        assert!(!terminal.is_restored());
        terminal.send(signal);
        assert_eq!(terminal.end().signal(), Some(signal as i32));
        poll("the terminal as it was", || {
            terminal.is_restored().then_some(())
        });
    }
    let mut terminal = InTerminal::start(&top(&file, &[]), 24, 80);
    terminal.shows("mailer-2");
    terminal.press("\u{3}");
    assert_eq!(terminal.end().code(), Some(0), "Ctrl-C is a key");
}

/// Ctrl-S, or a window that is not read from.
#[test]
fn a_terminal_that_stands_still_does_not_keep_it_from_ending() {
    let folder = Folder::new("top-stopped");
    let (file, _store, _keys) = small(&folder);
    let mut terminal = InTerminal::start(&top(&file, &[]), 50, 200);
    terminal.shows("mailer-2");
    terminal.stop_reading();
    // More than the terminal holds.
    for _ in 0..200 {
        terminal.resize(49, 199);
        terminal.resize(50, 200);
        terminal.press("?");
    }
    terminal.send(Signal::SIGTERM);
    assert_eq!(terminal.end().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn it_ends_when_its_terminal_is_closed() {
    let folder = Folder::new("top-closed");
    let (file, _store, _keys) = small(&folder);
    // Also where the end of the session is ignored, as under nohup.
    for begin in ["", "trap '' HUP; "] {
        let top = top(&file, &[]);
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{begin}exec \"$0\" \"$@\""))
            .arg(top.get_program())
            .args(top.get_args());
        command.env("TERM", "xterm").env_remove("POSTGRES_URL");
        let mut terminal = InTerminal::start(&command, 24, 80);
        terminal.shows("mailer-2");
        terminal.hang_up();
        assert!(!terminal.end().success());
    }
}

#[test]
fn a_store_that_fails_is_told_and_keys_still_work() {
    let folder = Folder::new("top-failing");
    let (file, store, _keys) = small(&folder);
    let terminal = InTerminal::start(&top(&file, &[]), 24, 100);
    terminal.shows("mailer-2");
    drop(store);
    std::fs::write(
        &file,
        "this is no database, but longer than its header would be",
    )
    .unwrap();
    let _ = std::fs::remove_file(format!("{file}-wal"));
    let screen = terminal.shows("cannot read, last read ");
    assert!(
        screen.contains("mailer-2"),
        "what was read last stays: {screen}"
    );
    quit(terminal);

    let url = "postgres://app:hunter2-secret@127.0.0.1:1/app";
    let mut command = monitor(&["top", "--interval", "100ms"]);
    command.env("POSTGRES_URL", url).env("TERM", "xterm");
    let terminal = InTerminal::start(&command, 24, 100);
    terminal.shows("cannot read");
    assert!(!terminal.output().contains("hunter2"));
    quit(terminal);
}

#[test]
fn without_a_terminal_it_says_so() {
    let folder = Folder::new("top-none");
    let (file, _store, _keys) = small(&folder);
    let said = ends(&["top", "--sqlite", &file], 2);
    assert!(said.contains("top needs a terminal"), "{said}");
}

/// Set where the next test has a terminal.
const IN_TERMINAL: &str = "HEARTBEAT_MONITOR_TEST_IN_TERMINAL";

/// Draws on its terminal, and panics; for the test below.
#[test]
#[ignore = "it is run in a terminal by another test"]
fn panics_in_its_terminal() {
    if std::env::var_os(IN_TERMINAL).is_none() {
        return;
    }
    let mut screen = screen::Screen::open().unwrap();
    screen
        .terminal
        .draw(|_| panic!("the message of a panic"))
        .unwrap();
}

#[test]
fn a_panic_restores_the_terminal_before_its_message() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "top::panics_in_its_terminal",
        "--ignored",
        "--nocapture",
    ]);
    command.env("TERM", "xterm").env(IN_TERMINAL, "1");
    // The message has to fit the screen.
    command.env("RUST_BACKTRACE", "0");
    let mut terminal = InTerminal::start(&command, 24, 80);
    assert!(!terminal.end().success());
    poll("the message on the usual screen", || {
        let screen = terminal.screen();
        (screen.contains("the message of a panic") && terminal.is_restored()).then_some(())
    });
    let output = terminal.output();
    let (_, after) = output
        .split_once("\u{1b}[?1049l")
        .expect("it leaves the other screen");
    assert!(after.contains("the message of a panic"), "{output}");
}

#[path = "../../src/bin/heartbeat-monitor/top/terminal.rs"]
mod screen;
