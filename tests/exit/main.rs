//! Processes that end by themselves, and what their record says afterwards.
//!
//! This test program has a `main` of its own, without the test harness: started again in a role, it
//! is a program whose main thread returns, panics or exits. Each of these processes has an idle and
//! a working worker, on threads of their own; the working one holds a lease.

mod program;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use program::{Outcome, PANIC};
#[cfg(feature = "postgres")]
use support::folder::Folder;
use support::postgres;
use support::process::{self, Ended, Process};
use worker_heartbeat::fleet::{Claim, ClaimAnswer, Registration, WorkerFilter};
use worker_heartbeat::{HeartbeatStore, SqliteStore, Sweeper};

/// How long an end may take on a busy machine where nothing hangs. The farewells are longer.
const SOON: Duration = Duration::from_secs(20);
const SHUTDOWNS: [&str; 2] = ["shutdown=no", "shutdown=yes"];
const ENDED: &str = "stopped: its process ended";

fn main() -> Result<Outcome, String> {
    match process::role() {
        Some(role) => Ok(program::play(&program::Settings::read(&role))),
        None => check_all().map(|()| Outcome::Success),
    }
}

macro_rules! checks {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        const CHECKS: &[(&str, fn())] = &[$($(#[$meta])* (stringify!($name), $name)),*];
    };
}

checks! {
    main_returns,
    main_exits,
    main_panics,
    the_exit_of_a_registry_names_its_status_on_any_thread,
    a_report_of_a_shutdown_is_the_status,
    a_shutdown_that_is_forced_is_an_end_with_a_status,
    a_shutdown_does_not_clean_up_after_workers_that_are_cut_off,
    a_panic_that_main_caught_is_not_the_reason,
    a_panic_of_a_main_that_holds_nothing_is_seen,
    of_two_panics_neither_is_blamed_without_evidence,
    a_worker_of_main_dies_of_the_panic_that_it_unwinds_from,
    a_panic_that_makes_a_hook_or_a_destructor_exit,
    an_asynchronous_main,
    an_attachment_of_another_thread,
    without_a_store_the_end_is_logged,
    a_registry_without_store_or_shutdown_is_left_alone,
    a_store_that_hangs_delays_the_end_by_the_farewell,
    a_store_that_hangs_is_not_waited_for_twice,
    a_log_that_hangs_keeps_no_store_waiting,
    a_log_may_end_the_process,
    workers_are_not_started_again,
    workers_that_register_late_are_ended,
    a_forked_child_ends_no_worker_of_its_parent,
    each_registry_is_ended,
    an_end_without_a_report_is_found_by_the_sweep,
    #[cfg(feature = "exit-hook")]
    any_thread_may_exit,
    #[cfg(feature = "beacon")]
    a_beacon_has_the_reason,
    #[cfg(feature = "systemd")]
    the_end_is_reported_to_systemd,
    #[cfg(feature = "postgres")]
    a_store_in_postgres,
    #[cfg(feature = "http")]
    a_store_behind_a_coordinator,
}

/// As in the test harness: arguments are parts of names.
fn check_all() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (flags, filters): (Vec<_>, Vec<_>) = arguments
        .into_iter()
        .partition(|argument| argument.starts_with('-'));
    if flags.iter().any(|flag| flag == "--list") {
        CHECKS.iter().for_each(|(name, _)| println!("{name}: test"));
        return Ok(());
    }
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(part));
    let begun = Instant::now();
    let checks = CHECKS.iter().filter(|(name, _)| wanted(name));
    let (queue, results) = (Mutex::new(checks), Mutex::new((0, Vec::new())));
    let next = || queue.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, NonZero::get) {
            scope.spawn(|| {
                while let Some((name, check)) = next() {
                    let passed = std::panic::catch_unwind(check).is_ok();
                    println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
                    let mut results = results.lock().unwrap();
                    results.0 += usize::from(passed);
                    if !passed {
                        results.1.push(*name);
                    }
                }
            });
        }
    });
    let (passed, failed) = results.into_inner().unwrap();
    let outcome = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {outcome}. {passed} passed; {} failed; finished in {:.2?}\n",
        failed.len(),
        begun.elapsed()
    );
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("failed: {}", failed.join(", ")))
    }
}

// --- the record in a store

/// A store in a file that is removed when the test ends.
struct Place(Folder);

impl Place {
    fn new() -> Self {
        Self(Folder::new("exit"))
    }

    fn file(&self) -> PathBuf {
        self.0.join("fleet.db")
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(self.file()).unwrap()
    }

    /// Starts a process that keeps its record in this file.
    fn start(&self, settings: &str) -> Process {
        start(&format!(
            "{settings} store=sqlite:{}",
            self.file().display()
        ))
    }
}

fn start(settings: &str) -> Process {
    Process::start(settings)
}

/// Runs a process to its end, which must come soon and with this status.
fn run(process: Process, status: i32) -> Ended {
    let begun = Instant::now();
    let ended = process.wait();
    let took = ended.at - begun;
    ended.assert_code(status);
    assert!(took < SOON, "{took:?}; {}", ended.transcript);
    ended
}

fn health(store: &dyn HeartbeatStore) -> BTreeMap<String, String> {
    let rows = store.list(&WorkerFilter::default()).unwrap();
    rows.into_iter()
        .map(|row| (row.key.id.clone(), row.health().to_string()))
        .collect()
}

/// Asserts that the record was true before any sweep, with these states, and that the run is free.
#[track_caller]
fn assert_reported(store: impl HeartbeatStore + Clone + 'static, idle: &str, working: &str) {
    let found = health(&store);
    for (id, said) in [("idle", idle), ("working", working)] {
        let health = found.get(id).map_or("nothing", String::as_str);
        assert!(health.starts_with(said), "{id}: {health}, not {said}");
    }
    let swept = Sweeper::new(store.clone()).sweep().unwrap();
    assert!(swept.marked_offline.is_empty(), "{swept:?}");
    assert!(swept.released_leases.is_empty(), "{swept:?}");
    assert_free(&store);
}

#[track_caller]
fn assert_free(store: &dyn HeartbeatStore) {
    let worker = store.register(&[Registration::new("poller", "other")]);
    let claim = Claim::new(worker.unwrap().remove(0), "run-1", Duration::from_secs(1));
    let answer = store.claim(&claim).unwrap();
    assert!(matches!(answer, ClaimAnswer::Granted(_)), "{answer:?}");
}

/// The location of the panic at this end: file and line.
fn place_of_panic(end: &str) -> String {
    let mark = format!("\"{end}\" => panic!");
    let line = include_str!("program.rs")
        .lines()
        .position(|line| line.contains(&mark));
    format!("tests/exit/program.rs:{}", line.unwrap() + 1)
}

/// The health in a store of a worker that such a panic ended.
fn panicked(end: &str) -> String {
    format!("dead: panicked at {}: {PANIC}", place_of_panic(end))
}

/// Asserts the message of the panic, whatever its location.
#[track_caller]
fn assert_died_of(place: &Place, words: &str) {
    for (id, health) in health(&place.store()) {
        let said = health.starts_with("dead: panicked") && health.contains(words);
        assert!(said, "{id}: {health}");
    }
}

// --- ends -------------------------------------------------------------------------------------------

fn main_returns() {
    for shutdown in SHUTDOWNS {
        let place = Place::new();
        run(place.start(&format!("end=return {shutdown}")), 0);
        assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
    }
}

fn main_exits() {
    for shutdown in SHUTDOWNS {
        let place = Place::new();
        run(place.start(&format!("end=exit {shutdown}")), 3);
        assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
    }
}

fn main_panics() {
    for shutdown in SHUTDOWNS {
        let place = Place::new();
        run(place.start(&format!("end=panic {shutdown}")), 101);
        let panicked = panicked("panic");
        assert_reported(std::sync::Arc::new(place.store()), &panicked, &panicked);
        let working = &health(&place.store())["working"];
        assert!(
            working.ends_with("during run-1 (looking for a server)"),
            "{working}"
        );
    }
}

fn the_exit_of_a_registry_names_its_status_on_any_thread() {
    for end in ["registry-exit", "registry-exit-elsewhere"] {
        let place = Place::new();
        run(place.start(&format!("end={end}")), 5);
        let said = format!("{ENDED} with status 5");
        assert_reported(std::sync::Arc::new(place.store()), &said, &said);
    }
}

fn a_report_of_a_shutdown_is_the_status() {
    let place = Place::new();
    let settings = "end=report shutdown=yes timeout=200";
    run(place.start(settings), 1);
    let working = format!("{ENDED} with status 1");
    assert_reported(
        std::sync::Arc::new(place.store()),
        "stopped: by shutdown",
        &working,
    );
}

fn a_shutdown_that_is_forced_is_an_end_with_a_status() {
    let place = Place::new();
    let settings = "end=report shutdown=yes timeout=200 force=yes";
    run(place.start(settings), 1);
    let working = format!("{ENDED} with status 1");
    assert_reported(
        std::sync::Arc::new(place.store()),
        "stopped: by shutdown",
        &working,
    );
}

fn a_shutdown_does_not_clean_up_after_workers_that_are_cut_off() {
    let place = Place::new();
    // The store is slow, so that the other thread could go on meanwhile.
    let settings = format!(
        "end=return-during-wait shutdown=yes store=slow:{}",
        place.file().display()
    );
    let ended = run(start(&settings), 0);
    ended.assert_not("@cleanup");
    ended.assert_not("@waited");
    let stopped = "stopped: by shutdown";
    assert_reported(std::sync::Arc::new(place.store()), stopped, ENDED);
    // A forced exit: the workers hang.
    let ended = run(start("end=report shutdown=yes timeout=200 force=yes"), 1);
    ended.assert_not("@cleanup");
}

fn a_panic_that_main_caught_is_not_the_reason() {
    for (end, status) in [("caught-return", 0), ("caught-exit", 3), ("supervised", 3)] {
        for shutdown in SHUTDOWNS {
            let place = Place::new();
            run(place.start(&format!("end={end} {shutdown}")), status);
            assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
        }
    }
    let place = Place::new();
    run(place.start("end=caught-then-panic"), 101);
    assert_died_of(&place, PANIC);
}

fn a_panic_of_a_main_that_holds_nothing_is_seen() {
    let place = Place::new();
    run(place.start("end=panic held=no"), 101);
    assert_died_of(&place, PANIC);
    let place = Place::new();
    run(place.start("end=exit held=no"), 3);
    assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
}

fn of_two_panics_neither_is_blamed_without_evidence() {
    let place = Place::new();
    run(place.start("end=panic-in-panic"), 101);
    assert_died_of(&place, "more than once");
    for health in health(&place.store()).values() {
        assert!(!health.contains("in a destructor"), "{health}");
    }
}

fn a_worker_of_main_dies_of_the_panic_that_it_unwinds_from() {
    let place = Place::new();
    run(place.start("end=own-worker-panic"), 101);
    assert_died_of(&place, PANIC);
    assert!(health(&place.store()).contains_key("own"));
}

fn a_panic_that_makes_a_hook_or_a_destructor_exit() {
    let place = Place::new();
    run(place.start("end=hook-exit"), 8);
    // The application's hook replaced the library's.
    assert_died_of(&place, "its message was not seen");
    for end in ["found-hook-exit", "destructor-exit"] {
        let place = Place::new();
        run(place.start(&format!("end={end}")), 8);
        assert_died_of(&place, PANIC);
    }
    #[cfg(feature = "exit-hook")]
    {
        let place = Place::new();
        run(place.start("end=found-hook-exit-elsewhere"), 8);
        assert_died_of(&place, PANIC);
    }
}

fn an_asynchronous_main() {
    let panicked = panicked("runtime-panic");
    for (end, status, others, future) in [
        (
            "runtime-return",
            0,
            ENDED,
            "stopped: its future was cancelled",
        ),
        ("runtime-exit", 3, ENDED, ENDED),
        ("runtime-panic", 101, &*panicked, ""),
    ] {
        let place = Place::new();
        run(place.start(&format!("end={end}")), status);
        let found = health(&place.store());
        let over = found["future"].starts_with("stopped:") || found["future"].starts_with("dead:");
        assert!(over && found["future"].starts_with(future), "{found:?}");
        assert_reported(std::sync::Arc::new(place.store()), others, others);
    }
}

/// The main thread does not use the library, and panics.
fn an_attachment_of_another_thread() {
    let place = Place::new();
    run(place.start("end=panic by=other"), 101);
    assert_died_of(&place, PANIC);
}

// --- where the end is reported

fn without_a_store_the_end_is_logged() {
    let ended = run(start("end=exit shutdown=yes log=print"), 3);
    let said = &ended.transcript;
    for id in ["idle", "working"] {
        said.position(&format!("@log INFO worker {id}: {ENDED}"));
    }
    assert!(said.has("@flushed"), "{said}");
    let ended = run(start("end=panic shutdown=yes log=print"), 101);
    let said = &ended.transcript;
    for id in ["idle", "working"] {
        said.position(&format!(
            "@log ERROR worker {id}: dead: panicked at {}: {PANIC}",
            place_of_panic("panic")
        ));
    }
}

/// The library does not act on its own.
fn a_registry_without_store_or_shutdown_is_left_alone() {
    for (end, status) in [("return", 0), ("exit", 3), ("panic", 101)] {
        let ended = run(start(&format!("end={end} log=print")), status);
        ended.assert_not("@log");
        ended.assert_not("@flushed");
    }
}

fn a_store_that_hangs_delays_the_end_by_the_farewell() {
    for (end, status) in [
        ("return", 0),
        ("exit", 3),
        ("panic", 101),
        ("registry-exit", 5),
    ] {
        let farewell = Duration::from_millis(500);
        let mut process = start(&format!("end={end} store=hung farewell=500"));
        let hangs = process.expect("@hangs").at;
        let ended = process.wait();
        ended.assert_code(status);
        let took = ended.at - hangs;
        // The process began to wait a moment before the store hung.
        assert!(took > farewell / 5 && took < SOON, "{took:?}");
    }
}

/// The shutdown has waited for the store already, and its timeout bounds everything.
fn a_store_that_hangs_is_not_waited_for_twice() {
    let settings = "end=report store=hung farewell=20000 workers=idle shutdown=yes timeout=400";
    let ended = run(start(settings), 0);
    assert!(ended.transcript.has("@hangs"), "{}", ended.transcript);
}

fn a_log_that_hangs_keeps_no_store_waiting() {
    let place = Place::new();
    let process = place.start("end=exit log=block farewell=2000");
    run(process, 3);
    assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
}

/// The log exits inside a call of the library: no lock that the library holds may keep the process
/// from ending.
fn a_log_may_end_the_process() {
    let place = Place::new();
    run(place.start("end=logged log=exit"), 6);
    assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
    let failing = &health(&place.store())["failing"];
    assert!(failing.starts_with("dead: failed: no disk"), "{failing}");
}

fn workers_are_not_started_again() {
    for _ in 0..5 {
        let place = Place::new();
        run(place.start("end=restarting"), 3);
        for (id, health) in health(&place.store()) {
            let over = health.starts_with("stopped:") || health.starts_with("dead: failed");
            assert!(over, "{id}: {health}");
        }
        let swept = Sweeper::new(place.store()).sweep().unwrap();
        assert!(swept.marked_offline.is_empty(), "{swept:?}");
    }
}

fn workers_that_register_late_are_ended() {
    let place = Place::new();
    let file = place.file();
    let settings = format!("end=newcomers store=slow:{}", file.display());
    let ended = run(start(&settings), 3);
    let said = ended.transcript.all("@newcomer");
    let [line] = &said[..] else {
        panic!("{}", ended.transcript);
    };
    assert!(line.text.contains(ENDED), "{}", line.text);
}

fn a_forked_child_ends_no_worker_of_its_parent() {
    let place = Place::new();
    let mut process = place.start("end=fork");
    process.expect("@child Exited");
    let before = health(&place.store());
    assert_eq!(before["idle"], "idle");
    assert_eq!(before["working"], "processing");
    process.send_line("return");
    run(process, 0);
    assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
}

fn each_registry_is_ended() {
    let place = Place::new();
    run(place.start("end=two-registries"), 3);
    let found = health(&place.store());
    // The second registry's workers have the same ids as the first one's.
    assert_eq!(found.len(), 2, "{found:?}");
    assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
}

/// Where no code of the library can run, the sweep reports what the kernel can prove, and no more.
fn an_end_without_a_report_is_found_by_the_sweep() {
    for (end, kill, collected, said) in [
        ("abort", None, false, "dead: its process was killed"),
        ("abort", None, true, "dead: its process is gone"),
        (
            "exec",
            Some(Signal::SIGKILL),
            true,
            "dead: its process is gone",
        ),
        (
            "exec",
            Some(Signal::SIGKILL),
            false,
            "dead: its process was killed",
        ),
    ] {
        let place = Place::new();
        let mut process = place.start(&format!("end={end}"));
        if let Some(signal) = kill {
            process.signal(signal);
        }
        // Its streams are closed just before it can be waited for.
        let process = if collected {
            process.wait();
            None
        } else {
            process.drain();
            Some(process)
        };
        let sweeper = Sweeper::new(place.store());
        let deadline = Instant::now() + SOON;
        while sweeper.sweep().unwrap().marked_offline.is_empty() {
            assert!(Instant::now() < deadline, "{end}");
            std::thread::yield_now();
        }
        for (id, health) in health(&place.store()) {
            assert!(health.starts_with(said), "{end}, {id}: {health}");
        }
        assert_free(&place.store());
        drop(process);
    }
}

#[cfg(feature = "exit-hook")]
fn any_thread_may_exit() {
    for shutdown in SHUTDOWNS {
        let place = Place::new();
        run(place.start(&format!("end=exit-elsewhere {shutdown}")), 4);
        assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
    }
    // No code of the library has run on the main thread.
    for (end, status) in [("return", 0), ("exit", 3)] {
        let place = Place::new();
        run(place.start(&format!("end={end} by=other")), status);
        assert_reported(std::sync::Arc::new(place.store()), ENDED, ENDED);
    }
}

#[cfg(feature = "beacon")]
fn a_beacon_has_the_reason() {
    use worker_heartbeat::Beacon;
    let died = format!(
        "{}: {PANIC}",
        "the process ended: thread main panicked at tests/exit/program.rs"
    );
    for (end, status, said) in [
        ("beacon", 3, "the process ended"),
        ("beacon-panic", 101, &*died),
        ("beacon-held", 101, &*died),
    ] {
        let place = Place::new();
        let file = place.0.join("beacon.json");
        run(
            start(&format!("end={end} beacon={}", file.display())),
            status,
        );
        let why = Beacon::check(&file, Duration::from_secs(3600)).unwrap_err();
        // Without that line.
        let (start, rest) = said.split_once(": no module").unwrap_or((said, ""));
        assert!(why.starts_with(start), "{end}: {why}");
        assert!(rest.is_empty() || why.ends_with(PANIC), "{end}: {why}");
        assert!(!why.contains("gone"), "{end}: {why}");
    }
}

#[cfg(feature = "systemd")]
fn the_end_is_reported_to_systemd() {
    let place = Place::new();
    let path = place.0.join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut command = Process::command();
    command.env("NOTIFY_SOCKET", &path);
    run(Process::start_as(command, "end=systemd"), 3);
    let mut said = String::new();
    let mut buffer = [0; 4096];
    socket.set_nonblocking(true).unwrap();
    while let Ok(length) = socket.recv(&mut buffer) {
        said.push_str(&String::from_utf8_lossy(&buffer[..length]));
        said.push('\n');
    }
    assert!(said.contains("STOPPING=1"), "{said}");
    assert!(said.contains("STATUS=the process ended"), "{said}");
}

#[cfg(feature = "postgres")]
fn a_store_in_postgres() {
    use worker_heartbeat::PostgresOptions;
    let panicked = panicked("panic");
    for (end, status, said) in [("return", 0, ENDED), ("panic", 101, &*panicked)] {
        let schema = postgres::schema("exit");
        let url = postgres::url();
        run(
            start(&format!("end={end} store=postgres:{schema},{url}")),
            status,
        );
        let store = PostgresOptions::new().schema(&schema).connect(url).unwrap();
        assert_reported(store, said, said);
    }
}

#[cfg(feature = "http")]
fn a_store_behind_a_coordinator() {
    use worker_heartbeat::{Coordinator, MemoryStore};
    let panicked = panicked("panic");
    let with_status = format!("{ENDED} with status 5");
    for (end, status, said) in [
        ("return", 0, ENDED),
        ("registry-exit", 5, &*with_status),
        ("panic", 101, &*panicked),
    ] {
        let store = MemoryStore::new();
        let coordinator = Coordinator::new(store.clone());
        let coordinator = coordinator.serve("127.0.0.1:0").unwrap();
        let url = format!("http://{}", coordinator.local_addr());
        run(start(&format!("end={end} store=http:{url}")), status);
        assert_reported(store, said, said);
    }
}
