//! Under `panic = "abort"` nothing unwinds: the panic hook is all that runs between a panic and the
//! end of the process, so a worker's death is told there.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
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

[workspace]
"#;
const SOURCE: &str = include_str!("programs/abort.rs");

/// The program in a package of its own, built once, with the versions that the crate has chosen.
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
        let built = cargo("build", &package).output().unwrap();
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{said}");
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

/// Runs the program until it is aborted. Returns what it said of its own accord.
fn aborts(place: &str) -> Vec<String> {
    let mut run = cargo("run", package());
    let output = run.args(["--", place]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let status = output.status;
    assert_eq!(
        status.signal(),
        Some(Signal::SIGABRT as i32),
        "{status}: {said}"
    );
    let lines = said.lines().filter(|line| line.starts_with('@'));
    lines.map(ToOwned::to_owned).collect()
}

/// The found hook has to tell of the panic, and the log of the death: where, and of whom.
fn assert_told(said: &[String]) {
    let [hooks, logs] = ["@hook ", "@log "].map(|mark| {
        let lines = said.iter().filter(|line| line.starts_with(mark));
        lines.map(String::as_str).collect::<Vec<_>>()
    });
    assert_eq!(hooks, ["@hook no module named server"]);
    let [death] = logs[..] else {
        panic!("not one line: {logs:?}");
    };
    let line = SOURCE.lines().position(|line| line.ends_with("// here"));
    let place = format!("src/main.rs:{}: no module named server", line.unwrap() + 1);
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
    assert_told(&aborts("thread"));
}

#[test]
fn the_death_of_a_worker_in_a_future_is_logged_before_the_abort() {
    assert_told(&aborts("future"));
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
fn a_panic_of_somebody_else_is_left_to_the_hook_that_was_found() {
    for place in ["elsewhere", "alone"] {
        assert_eq!(aborts(place), ["@hook no module named server"], "{place}");
    }
}
