//! Every example, run as a real process.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::examples::{Example, binary, poll, run, sources};
use crate::support::text_http::{connect, exchange, get, read_answer};
use nix::sys::signal::Signal;

// --- the folder --------------------------------------------------------------------------------------

/// Each example's name and main source file.
fn examples() -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(sources()).unwrap();
    let files = entries.map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            (name, path.join("main.rs"))
        } else {
            (name, path)
        }
    });
    // Configuration of other programs has tests of its own.
    let examples: BTreeMap<_, _> = files
        .filter(|(_, file)| file.extension().is_some_and(|end| end == "rs") && file.exists())
        .collect();
    assert!(examples.len() >= 9, "{examples:?}");
    examples
}

#[test]
fn every_example_names_its_command_and_has_a_test() {
    let tests = concat!(
        include_str!("examples.rs"),
        include_str!("pages.rs"),
        include_str!("escalation.rs")
    );
    for (name, source) in examples() {
        let source = fs::read_to_string(source).unwrap();
        assert!(
            source.starts_with("//! "),
            "{name} does not begin with its idea"
        );
        let command = format!("//! cargo run --example {name}");
        assert!(
            source.contains(&command),
            "{name} does not say how to run it"
        );
        assert!(tests.contains(&format!("\"{name}\"")), "{name} has no test");
    }
}

#[test]
fn the_list_of_examples_is_complete_and_its_commands_are_right() {
    let list = fs::read_to_string(sources().join("README.md")).unwrap();
    let manifest = include_str!("../../Cargo.toml");
    let mut listed = Vec::new();
    for row in list.lines().filter(|line| line.starts_with("| [")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [example, command, description] = cells[..] else {
            panic!("not three columns: {row}");
        };
        let (name, link) = example.split_once("`](").unwrap();
        let name = name.trim_start_matches("[`").to_owned();
        let link = sources().join(link.split_once(')').unwrap().0);
        assert!(!description.is_empty(), "{row}");

        // Cargo refuses an example without its features, so the command has to name them.
        let entry = format!("[[example]]\nname = \"{name}\"\nrequired-features = [");
        let features = manifest.split_once(&entry).map(|(_, after)| {
            let features = after.split_once(']').unwrap().0;
            features.replace(['"', ' '], "")
        });
        let mut expected = format!("`cargo run --example {name}");
        if let Some(features) = features {
            expected += &format!(" --features {features}");
        }
        assert!(command.starts_with(&expected), "{row}\n{expected}");
        // The source has the same command.
        let source = fs::read_to_string(&link).unwrap();
        let command = format!("//! {}", command.trim_matches('`'));
        assert!(source.contains(&command), "{name} has not {command}");

        let waits = source.contains("Ctrl-C");
        let marked = example.ends_with('∞') || description.contains("Ctrl-C");
        assert_eq!(waits, marked, "{row}");
        listed.push(name);
    }
    listed.sort();
    assert_eq!(listed, examples().into_keys().collect::<Vec<_>>());
}

#[test]
#[allow(clippy::single_element_loop, reason = "most examples need a feature")]
fn an_example_that_waits_says_how_to_end_it_and_prints_its_address_last() {
    for (name, arguments) in [
        ("02_health_handler", &["127.0.0.1:0"][..]),
        #[cfg(feature = "http")]
        ("09_axum", &[]),
        #[cfg(feature = "http")]
        ("coordinator", &["--listen", "127.0.0.1:0"]),
        #[cfg(feature = "http")]
        ("dashboard", &[]),
        #[cfg(all(
            feature = "beacon",
            feature = "http",
            feature = "prometheus",
            feature = "systemd"
        ))]
        ("service", &[]),
    ] {
        let example = Example::start(name, arguments);
        let said = example.wait_for("its address", |said| {
            let (before, address) = said.split_once("http://")?;
            address.contains('\n').then(|| before.to_owned())
        });
        assert_has(&said, "Press Ctrl-C to stop.");
        let said = example.wait_for("its address", |said| Some(said.to_owned()));
        assert!(said.lines().last().unwrap().contains("http://"), "{said}");
    }
}

// --- the fleet ---------------------------------------------------------------------------------------

#[cfg(feature = "sqlite")]
#[test]
fn the_fleet_records_the_death_of_a_killed_process_and_frees_its_run() {
    let ended = run("fleet", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "three processes start",
        "holds run-",
        "kill -9",
        "dead: its process was killed",
        "the record is true after",
        "goes on after",
        "1 dead",
    ]);
}

#[cfg(feature = "http")]
#[test]
fn a_job_is_cancelled_at_once_when_another_process_has_its_run() {
    let ended = run("16_lost_lease", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "worker-1 has run-17, fence ",
        "kill -STOP worker-1",
        "worker-2 has run-17, fence ",
        "kill -CONT worker-1",
        "worker-1 closes its connection",
        "worker-1 has stopped working on run-17: not renewed for ",
        "that took ",
    ]);
}

// --- the service: see tests/monitor/service.rs -------------------------------------------------------

#[cfg(all(feature = "beacon", feature = "http", feature = "systemd"))]
#[test]
fn the_service_prints_its_addresses() {
    let service = Example::start("service", &[]);
    let address = service.wait_for("its address", |said| {
        let (_, after) = said.split_once("http://")?;
        Some(after.split_once("/livez")?.0.to_owned())
    });
    poll("all to be ready", || {
        (get(&address, "/readyz").status == 200).then_some(())
    });
    service.send(Signal::SIGINT);
    service.end().assert_success();
}

#[test]
fn the_fleet_prints_its_usage() {
    let ended = run("fleet", &["--help"]);
    assert!(ended.stderr.contains("usage: fleet"), "{ended:#?}");
}

// --- the tour ----------------------------------------------------------------------------------------

/// A folder with a few files, removed when it is dropped.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("wh-{name}-{}", std::process::id()));
        fs::create_dir_all(folder.join("below")).unwrap();
        fs::create_dir_all(folder.join("target")).unwrap();
        fs::create_dir_all(folder.join(".git")).unwrap();
        fs::write(folder.join("target/skipped"), "x").unwrap();
        fs::write(folder.join(".git/skipped"), "x").unwrap();
        for number in 0..5 {
            fs::write(folder.join(format!("text-{number}")), "text").unwrap();
            fs::write(
                folder.join(format!("below/large-{number}")),
                vec![7; 200_000],
            )
            .unwrap();
        }
        // Names that would clear a terminal, break a line or change the direction of writing.
        fs::write(folder.join("evil\u{1b}[2J\n.txt"), "").unwrap();
        fs::write(folder.join("evil\u{202e}txt.exe"), "").unwrap();
        Self(folder)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A worker's row on a page, and the reason below it.
fn row<'a>(page: &'a str, id: &str) -> (&'a str, &'a str) {
    let mut lines = page.lines().skip_while(|line| !line.starts_with(id));
    let row = lines
        .next()
        .unwrap_or_else(|| panic!("{id} is missing in:\n{page}"));
    let why = lines.next().and_then(|line| line.trim().strip_prefix("└ "));
    (row, why.unwrap_or(""))
}

/// The same, after checking the state.
#[track_caller]
fn row_of_state<'a>(page: &'a str, id: &str, state: &str) -> (&'a str, &'a str) {
    let (row, why) = row(page, id);
    assert!(
        row.contains(&format!(" {state} ")),
        "{id} is not {state} in:\n{page}"
    );
    (row, why)
}

#[track_caller]
fn assert_has(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in {text:?}");
}

#[test]
fn the_tour_shows_every_kind_of_worker_and_why_it_is_as_it_is() {
    let files = Files::new("kinds");
    let ended = Example::start_in(&files.0, "tour", &["--seconds", "7"]).end();
    ended.assert_success();
    let stdout = &ended.stdout;
    assert!(
        !stdout.contains('\u{1b}'),
        "escape sequences without a terminal:\n{stdout}"
    );
    assert!(
        !stdout.contains('\u{202e}'),
        "direction of writing changed:\n{stdout}"
    );
    assert!(!stdout.contains("skipped"), "{stdout}");

    let (pages, end) = stdout.split_once("The end of the tour").unwrap();
    let pages: Vec<_> = pages.split("worker-heartbeat, after ").skip(1).collect();
    assert!(pages.len() >= 4, "{stdout}");
    let last = pages[pages.len() - 1];

    // Healthy, with its task and progress. Between two passes it briefly has neither.
    for id in ["checksum-1", "checksum-2"] {
        let at_work = |page: &&&str| row(page, id).0.contains(" processing ");
        let (row, _) = row(pages.iter().find(at_work).unwrap(), id);
        assert_has(row, "pass-");
        assert_has(row, " of 6");
    }
    assert!(
        pages.iter().any(|page| page.contains("below/large-")),
        "{stdout}"
    );
    let (collector, _) = row_of_state(last, "collector", "processing");
    assert_has(collector, "checksums, 12 files");
    row_of_state(last, "mailer", "idle");
    let (_, why) = row_of_state(last, "importer", "dead");
    assert_is_the_place(why);
    let (payments, why) = row_of_state(last, "payments", "stalled");
    assert_has(payments, "order-17, waiting for the bank's answer");
    assert_has(why, "2 s allowed; blocked");
    let (_, why) = row_of_state(last, "search", "stalled");
    // On a busy machine, a spinning thread may wait for a processor longer than it gets one.
    let spins = why.contains("2 s allowed; busy") || why.contains("2 s allowed; starved");
    assert!(spins, "{why}");
    let (uploader, why) = row_of_state(last, "uploader", "dead");
    assert_has(uploader, " 3 ");
    assert_has(why, "failed: cannot connect to 127.0.0.1:1");
    assert_has(why, "gave up after 3 restarts");
    assert_has(last, "worker uploader: given up after 3 restarts");
    assert_has(last, "8 workers: ");

    assert_has(end, "8 workers: 6 stopped, 2 dead");
    assert_is_the_place(row_of_state(end, "importer", "dead").1);
    row_of_state(end, "payments", "stopped");
    assert_has(end, "Shut down by the application");
    assert_has(end, "every worker ended in time");
    // Without a table on a terminal, the default panic hook prints.
    assert_has(&ended.stderr, "IMPORT_PORT must be a number");
}

/// Asserts that the reason names the line of the panic.
#[track_caller]
fn assert_is_the_place(why: &str) {
    let place = why.strip_prefix("panicked at examples/tour/farm.rs:");
    let (line, message) = place.and_then(|place| place.split_once(": ")).unwrap();
    let line: usize = line.parse().unwrap();
    let source = fs::read_to_string(sources().join("tour/farm.rs")).unwrap();
    let source = source.lines().nth(line - 1).unwrap();
    assert_has(source, "IMPORT_PORT must be a number");
    assert_has(message, "IMPORT_PORT must be a number");
}

#[test]
fn ctrl_c_ends_the_tour_in_good_order() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let end = end_of_the_tour_by(signal);
        assert_has(&end, "every worker ended in time");
        for id in ["checksum-1", "checksum-2", "collector", "search"] {
            let (row, _) = row_of_state(&end, id, "stopped");
            assert_has(row, &format!("by {}", signal.as_str()));
        }
    }
}

#[test]
fn no_worker_of_the_tour_dies_of_a_shutdown() {
    // Both return because the tour ends their blocking calls when a shutdown begins.
    for _ in 0..10 {
        let end = end_of_the_tour_by(Signal::SIGINT);
        for id in ["mailer", "payments"] {
            let (row, _) = row_of_state(&end, id, "stopped");
            assert_has(row, "by SIGINT");
        }
    }
}

fn end_of_the_tour_by(signal: Signal) -> String {
    let tour = Example::start("tour", &[]);
    // By then one worker is dead, and the others work, wait, hang and spin.
    tour.wait_for("a death", |out| out.contains("└ panicked").then_some(()));
    tour.send(signal);
    let ended = tour.end();
    ended.assert_success();
    let (_, end) = ended.stdout.split_once("The end of the tour").unwrap();
    assert_has(end, &format!("Shut down by {}", signal.as_str()));
    end.to_owned()
}

#[test]
fn the_tour_ends_when_its_output_is_closed() {
    let mut tour = Command::new(binary("tour"))
        .current_dir(sources())
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(tour.stdout.take());
    let status = poll("the end of the tour", || tour.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn wrong_arguments_are_refused_with_a_usage_message() {
    for (name, arguments, complaint) in [
        (
            "tour",
            &["--second", "5"][..],
            "unknown argument \"--second\"",
        ),
        ("tour", &["--seconds"], "--seconds needs a number"),
        ("tour", &["--seconds", "soon"], "1 to 86400, not \"soon\""),
        ("tour", &["--seconds=-1"], "1 to 86400, not \"-1\""),
        ("tour", &["--seconds", "0"], "1 to 86400, not \"0\""),
        ("02_health_handler", &["--die-after"], "invalid arguments"),
        (
            "02_health_handler",
            &["127.0.0.1:0", "--die-after", "x"],
            "--die-after",
        ),
        ("05_graceful_shutdown", &["--seconds", "x"], "Usage"),
    ] {
        let ended = run(name, arguments);
        assert_eq!(ended.status.code(), Some(2), "{ended:#?}");
        assert_has(&ended.stderr, "Usage: ");
        assert_has(&ended.stderr, complaint);
        assert_eq!(ended.stdout, "");
    }
    let ended = run("tour", &["--help"]);
    ended.assert_success();
    ended.assert_prints(&["Usage: cargo run --example tour", "--seconds N"]);
}

// --- one idea each -----------------------------------------------------------------------------------

#[test]
fn quick_start_goes_through_the_states() {
    let ended = run("01_quick_start", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "is_recent: true   resizer-1: processing cat.jpg (resizing), for ",
        "is_recent: true   resizer-1: processing mammoth.jpg (resizing), for ",
        "is_recent: false  resizer-1: stalled: no progress for ",
        "400 ms allowed; ",
        "during mammoth.jpg (resizing)",
        "is_recent: true   resizer-1: idle",
        "is_recent: false  resizer-1: stopped: its handle was dropped",
    ]);
}

#[test]
fn supervisor_restarts_and_gives_up() {
    let ended = run("03_supervisor", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "import: Completed",
        "import: stopped: completed",
        "indexer: given up after 3 restarts",
        "panicked at examples/03_supervisor.rs:",
        ": the index is damaged",
        "restart 1 in ",
        "failed: the index cannot be opened: no such file",
        "restart 2 in ",
        "restart 3 in ",
        "worker indexer: given up after 3 restarts",
        "0 active, 1 dead, 1 stopped; indexer: dead: failed: ",
        "during attempt-4 (reading the index); gave up after 3 restarts",
    ]);
}

#[test]
fn futures_end_in_four_ways() {
    let ended = run("04_futures", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "completes: stopped: completed",
        "fails: dead: failed: no route to host",
        "waits: active",
        "waits: stopped: its future was cancelled",
        "supervise() returned: worker \"panics\" panicked: the cache is poisoned",
        "panics: dead: panicked at examples/04_futures.rs:",
        ": the cache is poisoned",
    ]);
}

#[test]
fn graceful_shutdown_cleans_up_after_the_work() {
    let by_itself = run("05_graceful_shutdown", &["--seconds", "1"]);
    by_itself.assert_prints(&[
        "ended by the application: 0 hung",
        "copier-",
        "stopped: by shutdown",
    ]);
    let terminated = Example::start("05_graceful_shutdown", &[]);
    terminated.wait_for("work", |out| out.contains("copied page 1").then_some(()));
    terminated.send(Signal::SIGTERM);
    let terminated = terminated.end();
    terminated.assert_prints(&["ended by SIGTERM: 0 hung", "copier-", "stopped: by SIGTERM"]);

    for ended in [by_itself, terminated] {
        ended.assert_success();
        ended.assert_prints(&["shutting down", "writing the cache", "closing the database"]);
        let (_, after_cleanup) = ended.stdout.split_once("writing the cache").unwrap();
        assert!(!after_cleanup.contains("copied page"), "{}", ended.stdout);
    }
}

#[test]
fn mock_clock_takes_hours_in_an_instant() {
    let begun = Instant::now();
    let ended = run("06_mock_clock", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "six hours without work: no alert",
        "no alert",
        "billing-1: stalled: no progress for 5 min 1 s, 5 min allowed",
        "one beat: no alert",
        "twelve hours suspended: no alert",
    ]);
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_limit_is_learned_and_a_loop_that_fails_at_once_is_racing() {
    let ended = run("19_learned_limits", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "Before: learning: 0 silences, 1 min allowed",
        "After a thousand pages: usually 1 s, allowed ",
        "stalled: no progress for ",
        "recovered from stalled after 30 s",
        "The next worker: usually 992 ms, allowed ",
        "At a new pace: usually 2 s, allowed 1 min",
        "worker indexer-2: racing: ",
        ", at most 100 in 1 s allowed",
        "no longer racing after ",
    ]);
    assert_eq!(ended.stdout.matches(": racing: ").count(), 1);
    let stalls = ended.stdout.matches(": stalled: ").count();
    assert_eq!(stalls, 1 + 2, "{}", ended.stdout);
}

#[test]
fn an_announced_silence_is_not_a_stall() {
    let ended = run("07_expect_silence", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "unannounced: stalled: no progress for ",
        "announced: processing",
        "Afterwards:",
        "unannounced: stopped: completed",
        "announced: stopped: completed",
    ]);
}

#[test]
fn tasks_that_beat_and_get_nowhere_are_told_once() {
    let ended = run("17_task_deadline", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "after 90 min: importer-1: overdue: at its task for 1 h 30 min, 1 h allowed, last seen at ",
        ", during run-123 (importing), 89 of 1000000",
        "after its end: idle",
        "after 40 min: importer-1: stalled: no progress for 40 min, 30 min allowed; it beats, and \
         stays at 3 of 10, last seen at ",
        ", during run-124 (importing)",
        "the batch after 70 min: processing",
        "the batch after 181 min: overdue: at its task for 3 h 1 min, 3 h allowed, last seen at ",
        ", during batch-7 (sending)",
        "twelve hours suspended: processing",
        "What was told:",
        "worker importer-1: overdue: at its task for 1 h, 1 h allowed",
        "worker importer-1: recovered from overdue after 1 h 30 min",
        "worker importer-1: stalled: no progress for 30 min, 30 min allowed",
        "worker importer-1: recovered from stalled after 40 min",
        "worker importer-1: overdue: at its task for 3 h, 3 h allowed",
    ]);
}

#[cfg(feature = "http")]
#[test]
fn a_web_service_serves_probes_and_ends_with_its_worker() {
    let service = Example::start("09_axum", &[]);
    let address = service.wait_for("its address", |said| {
        let (_, after) = said.split_once("http://")?;
        Some(after.split_once("/readyz")?.0.to_owned())
    });
    let order = |company: &str| {
        let request = format!(
            "POST /research HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{company}",
            company.len()
        );
        assert_eq!(exchange(&address, request.as_bytes()).status, 202);
    };
    poll("all to be ready", || {
        (get(&address, "/readyz").status == 200).then_some(())
    });
    order("panic");
    poll("the worker's second life", || {
        let health = get(&address, "/v1/worker/health?worker=research-1").body;
        (health.contains(r#""restarts":1"#) && health.contains("nothing is known of panic"))
            .then_some(())
    });
    order("example.com");
    service.wait_for("the work", |said| {
        said.contains("example.com is researched").then_some(())
    });
    service.send(Signal::SIGTERM);
    let ended = service.end();
    ended.assert_success();
    ended.assert_prints(&["ended by SIGTERM: 0 active, 0 dead, 1 stopped"]);
}

#[test]
fn a_pool_of_threads_survives_its_jobs() {
    let ended = run("10_thread_pool", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        ": dead: panicked at examples/10_thread_pool.rs:",
        "division by zero",
    ]);
    ended.assert_prints(&[": restart 1 in "]);
    ended.assert_prints(&[
        ": stalled: no progress for ",
        "blocked",
        "during hung",
        ": recovered from stalled",
    ]);
    ended.assert_prints(&["3 active, 0 dead"]);
    assert!(!ended.stdout.contains("during slow"), "{}", ended.stdout);
}

#[test]
fn tokio_tasks_restart_after_an_error() {
    let ended = run("11_tokio_tasks", &[]);
    ended.assert_success();
    ended.assert_prints(&["fetcher-3: Completed", "restarts: 1"]);
    for page in (1..=12).filter(|page| *page != 5) {
        assert_has(&ended.stdout, &format!("fetched page {page}\n"));
    }
    assert!(!ended.stdout.contains("fetched page 5\n"));
}

#[test]
fn a_wedged_runtime_is_reported_within_its_threshold() {
    let ended = run("12_runtime_watch", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "main-runtime: active",
        "worker main-runtime: stalled: no progress for 5",
        "500 ms allowed",
        "reported after ",
        "worker main-runtime: recovered from stalled after ",
        "main-runtime: stopped: its future was cancelled",
    ]);
}

#[test]
fn an_episode_has_one_event_at_its_beginning_and_one_at_its_end() {
    let ended = run("08_events", &[]);
    ended.assert_success();
    ended.assert_prints(&[
        "!!PAGE  1 of 2 expected workers of type mail live",
        "all ok  all expected workers of type mail live",
        "!!PAGE  worker mail-2: stalled: ",
        "all ok  worker mail-2: recovered from stalled after ",
        "!!PAGE  worker mail-2: dead: failed: the mailbox is full",
        "!!PAGE  1 of 2 expected workers of type mail live",
        "  note  worker mail-1: stopped: by stop()",
        "dropped events: 0",
    ]);
    assert_eq!(
        ended.stdout.matches(": stalled: ").count(),
        1,
        "one event for one episode"
    );
}

// --- the health handler ------------------------------------------------------------------------------

const PATH: &str = "/v1/worker/health";

/// Starts it on a free port. Returns its address, too.
fn health_handler(arguments: &[&str]) -> (Example, String) {
    let handler = Example::start("02_health_handler", &[&["127.0.0.1:0"], arguments].concat());
    let address = handler.wait_for("the address", |out| {
        let (_, url) = out.split_once("listening on http://")?;
        Some(url.split_once(PATH)?.0.to_owned())
    });
    (handler, address)
}

#[test]
fn health_handler_answers_whether_the_worker_lives_and_why_not() {
    let (_handler, address) = health_handler(&["--die-after", "2"]);
    let well = poll("a healthy worker", || {
        Some(get(&address, PATH)).filter(|answer| answer.status == 200)
    });
    assert_has(&well.head, "Content-Type: application/json");
    let json = well.json();
    assert_eq!(json["alive"], "true");
    assert!(
        ["active", "idle", "processing"].contains(&&*json["state"]),
        "{json:?}"
    );
    assert!(
        json["last_heartbeat"].parse::<f64>().unwrap() > 1.7e9,
        "{json:?}"
    );

    let dead = poll("a dead worker", || {
        Some(get(&address, PATH)).filter(|answer| answer.status == 503)
    });
    let json = dead.json();
    assert_eq!(json["alive"], "false");
    assert_eq!(json["state"], "dead");
    assert_has(
        &json["reason"],
        "panicked at examples/02_health_handler.rs:",
    );
    assert_has(&json["reason"], ": no module named \"server\", ");
    assert_has(&json["reason"], "during job-");
    // It stays dead, and its heartbeat stays where it was.
    let later = get(&address, &format!("{PATH}?again=1"));
    assert_eq!(later.status, 503);
    let difference = later.json()["last_heartbeat"].parse::<f64>().unwrap()
        - json["last_heartbeat"].parse::<f64>().unwrap();
    assert!(difference.abs() < 0.5, "{difference}");
}

#[test]
fn health_handler_refuses_what_it_does_not_understand() {
    let (_handler, address) = health_handler(&[]);
    assert_eq!(get(&address, "/").status, 404);
    assert_eq!(get(&address, "/v1/worker/health/more").status, 404);
    for method in ["HEAD", "POST", "DELETE", "get"] {
        let request = format!("{method} {PATH} HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody");
        let answer = exchange(&address, request.as_bytes());
        assert_eq!(answer.status, 405, "{method}");
        assert_has(&answer.head, "Allow: GET");
    }
    for garbage in [
        &b"\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
        b"GET /v1/worker/health\r\n\r\n",
        b"GET /v1/worker/health HTTP/9.9\r\n\r\n",
        b"GET /v1/worker/health HTTP/1.1 HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(exchange(&address, garbage).status, 400, "{garbage:?}");
    }
    let endless = format!("GET {PATH} HTTP/1.1\r\nX: {}", "x".repeat(9_000));
    assert_eq!(exchange(&address, endless.as_bytes()).status, 431);
    // A client that closes without a request.
    drop(connect(&address));
    let well = poll("an answer", || {
        Some(get(&address, PATH)).filter(|answer| answer.status == 200)
    });
    assert_eq!(well.json()["alive"], "true");
}

#[test]
fn slow_clients_do_not_block_the_health_handler() {
    let (_handler, address) = health_handler(&[]);
    let silent: Vec<_> = (0..20).map(|_| connect(&address)).collect();
    let mut trickling = connect(&address);
    let trickle = thread::spawn(move || {
        let begun = Instant::now();
        trickling
            .write_all(format!("GET {PATH} HTTP/1.1\r\nX: ").as_bytes())
            .unwrap();
        // Until the handler closes the connection.
        while begun.elapsed() < Duration::from_secs(20) && trickling.write_all(b"x").is_ok() {
            // The pause between two bytes makes the client slow.
            thread::sleep(Duration::from_millis(100));
        }
        begun.elapsed()
    });
    let begun = Instant::now();
    poll("an answer", || {
        Some(get(&address, PATH)).filter(|answer| answer.status == 200)
    });
    assert!(
        begun.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        begun.elapsed()
    );
    for client in silent {
        assert_eq!(read_answer(client).status, 408);
    }
    assert!(trickle.join().unwrap() < Duration::from_secs(15));
}

// --- the coordinator ---------------------------------------------------------------------------------

#[cfg(feature = "http")]
#[test]
fn coordinator_shows_the_life_of_a_worker_that_falls_silent() {
    let ended = Example::start("coordinator", &[]).end();
    ended.assert_success();
    ended.assert_prints(&[
        "The coordinator listens on http://127.0.0.1:",
        "/register -d",
        "200 {",
        "\"worker_id\":\"gpu-7\"",
        "/heartbeat -d",
        "\"accepted\":true",
        "\"granted\":true",
        "404 {\"code\":\"unknown\"",
        "register it with POST /api/worker/register",
        "400 {\"error\":\"incarnation has to be a whole number\"}",
        "The store: 0 active, 1 dead; gpu-7: dead: lost",
        "409 {\"code\":\"ended\"",
    ]);
}

/// The `curl` requests in the text, for a worker at a coordinator: URL, headers, body.
#[cfg(feature = "http")]
fn shown_requests(text: &str) -> Vec<(String, Vec<String>, String)> {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().map(|line| line.trim_start_matches("//! "));
    let commands = lines.filter(|line| line.starts_with("curl ") && line.contains("/api/worker/"));
    commands
        .map(|command| {
            // Quotes enclose one argument; outside of them, spaces separate.
            let arguments: Vec<String> = command
                .split('\'')
                .enumerate()
                .flat_map(|(part, text)| match part % 2 {
                    1 => vec![text.to_owned()],
                    _ => text.split_whitespace().map(str::to_owned).collect(),
                })
                .collect();
            let (mut url, mut headers, mut body) = (String::new(), Vec::new(), String::new());
            let mut arguments = arguments.into_iter().skip(1);
            while let Some(argument) = arguments.next() {
                match &*argument {
                    "-H" => headers.push(arguments.next().unwrap()),
                    "-d" => body = arguments.next().unwrap(),
                    address => url = address.to_owned(),
                }
            }
            (url, headers, body)
        })
        .collect()
}

#[cfg(feature = "http")]
#[test]
fn the_requests_that_the_documents_show_work_with_the_coordinator() {
    // The requests of the guide are sent and compared in pages.rs.
    let mut requests = 0;
    for document in [
        sources().join("README.md"),
        sources().join("coordinator.rs"),
    ] {
        let coordinator = Example::start("coordinator", &["--listen", "127.0.0.1:0"]);
        let address = coordinator.wait_for("its address", |said| {
            let (_, after) = said.split_once("http://")?;
            Some(after.split_once("/api/worker")?.0.to_owned())
        });
        let text = fs::read_to_string(&document).unwrap();
        for (url, headers, body) in shown_requests(&text) {
            // The address of the coordinator's command in the same documents.
            let path = url.strip_prefix("localhost:7717").unwrap_or_else(|| {
                panic!("{document:?} shows another address: {url}");
            });
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost:7717\r\nConnection: close\r\n{}\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                headers.join("\r\n"),
                body.len()
            );
            let answer = exchange(&address, request.as_bytes());
            assert_eq!(answer.status, 200, "{document:?} {url} {body} {answer:?}");
            requests += 1;
        }
    }
    assert!(requests >= 3, "only {requests} requests were found");
}

#[cfg(not(feature = "http"))]
#[test]
fn an_example_that_needs_a_feature_says_so() {
    let source = fs::read_to_string(sources().join("coordinator.rs")).unwrap();
    assert!(source.contains("--example coordinator --features http"));
}

// --- the dashboard -----------------------------------------------------------------------------------

#[cfg(feature = "http")]
#[test]
fn dashboard_shows_the_workers_and_ends_in_good_order() {
    let example = Example::start("dashboard", &["--seconds", "30"]);
    let address = example.wait_for("its address", |output| {
        let (_, url) = output.split_once("http://")?;
        Some(url.split_once("/\n")?.0.to_owned())
    });
    let mut client = connect(&address);
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    let page = std::io::read_to_string(client).unwrap();
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("<title>Workers</title>"), "{page}");
    example.send(Signal::SIGINT);
    example.end().assert_success();
}
