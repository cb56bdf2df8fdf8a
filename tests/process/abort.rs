//! Panics that end the process: all of them under `panic = "abort"`, and otherwise those that
//! cannot unwind. Only the panic hook runs between such a panic and the end, so it logs a worker's
//! death.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;

use nix::sys::signal::Signal;

const MANIFEST: &str = r#"
[package]
name = "abort"
version = "0.0.0"
edition = "2024"

[dependencies]
log = "0.4"
worker-heartbeat = { path = '{crate}' }

[profile.dev]
panic = "abort"
debug = "line-tables-only"
incremental = false

[profile.unwinds]
inherits = "dev"
panic = "unwind"

[workspace]
"#;
const SOURCE: &str = include_str!("abort_program.rs");

/// The program in a package of its own, built once, with the versions in the crate's lock file.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abort");
        fs::create_dir_all(package.join("src")).unwrap();
        let manifest = MANIFEST.replace("{crate}", here.to_str().unwrap());
        fs::write(package.join("Cargo.toml"), manifest).unwrap();
        fs::copy(here.join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
        fs::write(package.join("src/main.rs"), SOURCE).unwrap();
        for profile in ["dev", "unwinds"] {
            let built = cargo("build", &package)
                .args(["--profile", profile])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success(), "{said}");
        }
        package
    })
}

fn cargo(command: &str, package: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([command, "--offline", "--quiet", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", package.join("target"))
        // Cores are dumped where they do no harm.
        .current_dir(package);
    cargo
}

/// Runs the program. Returns how it ended, and its own output.
fn run(profile: &str, place: &str) -> (ExitStatus, Vec<String>) {
    let mut run = cargo("run", package());
    let run = run.args(["--profile", profile, "--", place]);
    let output = run.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let lines = said.lines().filter(|line| line.starts_with('@'));
    (output.status, lines.map(ToOwned::to_owned).collect())
}

/// Runs the program until it is aborted. Returns its own output.
fn aborts_in(profile: &str, place: &str) -> Vec<String> {
    let (status, said) = run(profile, place);
    assert_eq!(
        status.signal(),
        Some(Signal::SIGABRT as i32),
        "{status}: {said:?}"
    );
    said
}

fn aborts(place: &str) -> Vec<String> {
    aborts_in("dev", place)
}

/// The location of this mark in the program.
fn place_of(mark: &str) -> String {
    let mark = format!("// {mark}");
    let line = SOURCE.lines().position(|line| line.ends_with(&mark));
    format!("src/main.rs:{}", line.unwrap() + 1)
}

/// The one line of the log.
fn the_log(said: &[String]) -> &str {
    let mut logs = said.iter().filter(|line| line.starts_with("@log "));
    let death = logs.next().expect("a line of the log");
    assert!(logs.next().is_none(), "{said:?}");
    death
}

/// The previous hook must report the panic, and the log the death, with its location and its
/// worker.
fn assert_reported(said: &[String]) {
    let hooks = said.iter().filter(|line| line.starts_with("@hook "));
    assert!(hooks.eq(&["@hook no module named server"]));
    let death = the_log(said);
    let place = place_of("here") + ": no module named server";
    for part in [
        "ERROR",
        "doomed: dead: panicked",
        &place,
        "run-123",
        "looking for a server",
    ] {
        assert!(death.contains(part), "{part:?} is not in {death:?}");
    }
}

#[test]
fn the_death_of_a_worker_on_a_thread_is_logged_before_the_abort() {
    assert_reported(&aborts("thread"));
}

#[test]
fn the_death_of_a_worker_in_a_future_is_logged_before_the_abort() {
    assert_reported(&aborts("future"));
}

/// With a store attached, the end of the process is the end of its workers.
#[test]
fn a_panic_that_aborts_ends_the_workers_of_other_threads() {
    for place in ["attached", "attached-elsewhere"] {
        let said = aborts(place);
        let [hook, death] = &said[..] else {
            panic!("{place}: {said:?}");
        };
        assert_eq!(hook, "@hook no module named server");
        for part in [
            "ERROR",
            "bystander: dead: panicked at src/main.rs:",
            "run-126",
        ] {
            assert!(
                death.contains(part),
                "{place}: {part:?} is not in {death:?}"
            );
        }
    }
}

#[test]
fn a_panic_outside_supervised_work_goes_to_the_previous_hook() {
    for place in ["elsewhere", "alone"] {
        assert_eq!(aborts(place), ["@hook no module named server"], "{place}");
    }
}

// --- a process that unwinds -----------------------------------------------------------------

fn assert_named(death: &str, parts: &[&str]) {
    for part in ["ERROR", "doomed: dead: panicked"].iter().chain(parts) {
        assert!(death.contains(part), "{part:?} is not in {death:?}");
    }
}

#[test]
fn a_panic_in_a_destructor_while_unwinding_is_logged_before_the_abort() {
    let [first, second] = ["here", "second"].map(place_of);
    let first = format!("dead: panicked at {first}:");
    let second = format!("a panic at {second}:");
    for place in ["twice", "twice-in-a-future"] {
        let said = aborts_in("unwinds", place);
        assert_named(
            the_log(&said),
            &[
                &first,
                "no module named server",
                &second,
                "nor a disk",
                "panic in a destructor during cleanup",
                "run-123",
            ],
        );
    }
}

#[test]
fn a_panic_in_a_function_that_cannot_unwind_is_logged_before_the_abort() {
    let place = format!("dead: panicked at {}:", place_of("here"));
    for way in ["extern", "extern-in-a-future"] {
        let said = aborts_in("unwinds", way);
        assert_named(
            the_log(&said),
            &[
                &place,
                "no module named server",
                "panic in a function that cannot unwind",
                "run-123",
                "looking for a server",
            ],
        );
    }
}

#[test]
fn after_jobs_that_were_handled_what_led_to_the_abort_is_listed_without_a_verdict() {
    let [first, second] = ["here", "second"].map(|mark| format!("a panic at {}:", place_of(mark)));
    let said = aborts_in("unwinds", "extern-after-others");
    let death = the_log(&said);
    assert_named(
        death,
        &["dead: panicked: ", &first, "no module named server"],
    );
    let said = aborts_in("unwinds", "twice-after-others");
    let death = the_log(&said);
    assert_named(death, &["dead: panicked: ", &first, &second, "nor a disk"]);
}

#[test]
fn a_panic_that_a_destructor_handles_while_unwinding_is_no_abort() {
    let (status, said) = run("unwinds", "handled");
    assert!(status.success(), "{status}: {said:?}");
    let place = format!("dead: panicked at {}:", place_of("here"));
    assert_named(
        the_log(&said),
        &[&place, "no module named server", "run-123"],
    );
    assert_eq!(said.last().map(String::as_str), Some("@survived"));
}

#[test]
fn an_abort_outside_supervised_work_goes_to_the_previous_hook() {
    let said = aborts_in("unwinds", "extern-elsewhere");
    assert!(
        said.iter().all(|line| line.starts_with("@hook ")),
        "{said:?}"
    );
}

/// With a store attached, the end of the process is the end of its workers, here too.
#[test]
fn an_abort_while_unwinding_ends_the_workers_of_other_threads() {
    let said = aborts_in("unwinds", "attached-extern");
    let death = the_log(&said);
    for part in ["ERROR", "bystander: dead: panicked", "run-126"] {
        assert!(death.contains(part), "{part:?} is not in {death:?}");
    }
}
