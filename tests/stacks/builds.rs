//! The program of `program/`, built in other ways than the tests: optimized, optimized as a whole, without
//! symbols, and static.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The calls of a scenario: names and offsets in the program, from the innermost one on.
type Calls<'a> = Vec<(&'a str, u64)>;

fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    // Tests may be built with flags of their own.
    command.env_remove("RUSTFLAGS");
    output(&mut command, arguments)
}

fn output(command: &mut Command, arguments: &[&str]) -> String {
    let ended = command.args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{command:?}: {error}");
    String::from_utf8(ended.stdout).unwrap()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("hangs")
}

/// Builds the program, and returns its path. For a target, it is static.
fn build(profile: &str, target: Option<&str>) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/stacks/program");
    // The versions that are there.
    fs::copy(root.join("Cargo.lock"), source.join("Cargo.lock")).unwrap();
    let (manifest, built) = (source.join("Cargo.toml"), folder());
    let mut arguments = vec!["build", "--quiet", "--profile", profile, "--manifest-path"];
    arguments.push(manifest.to_str().unwrap());
    arguments.extend(["--target-dir", built.to_str().unwrap()]);
    let mut path = built.clone();
    if let Some(target) = target {
        arguments.extend(["--target", target]);
        path.push(target);
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    let flags = target.map_or("", |_| "-C target-feature=+crt-static");
    output(cargo.env("RUSTFLAGS", flags), &arguments);
    path.join(profile).join("hangs")
}

/// The scenarios of a run, with their stacks. Each is whole.
fn scenarios(output: &str) -> Vec<(&str, Calls<'_>)> {
    let mut scenarios = Vec::new();
    for line in output.lines() {
        let mut fields = line.split('\t');
        let name = fields.next().unwrap();
        let cut = fields.next().unwrap();
        if name == "changing" {
            assert!(
                cut.starts_with("Changing { known: ") && !cut.contains("known: 0,"),
                "{cut}"
            );
            continue;
        }
        assert_eq!(cut, "", "{line}");
        let calls = fields.map(|call| {
            let (function, offset) = call.rsplit_once(' ').unwrap();
            (function, offset.parse().unwrap())
        });
        scenarios.push((name, calls.collect()));
    }
    assert_eq!(scenarios.len(), 18, "{output}");
    scenarios
}

/// Each stack has the function that waits, the one that called it, and the bottom.
fn check_names(output: &str) {
    for (name, calls) in scenarios(output) {
        let place = |wanted: &str| {
            calls
                .iter()
                .position(|(function, _)| function.contains(wanted))
        };
        let places = [name, "outer", "__rust_begin_short_backtrace"].map(place);
        assert!(
            places.is_sorted() && places[0].is_some(),
            "{name}: {calls:?}"
        );
    }
}

#[test]
fn optimized_and_stripped_programs_show_where_they_hang() {
    let program = build("lto", None);
    let whole = run(&program, &[]);
    check_names(&whole);
    let stripped = program.with_extension("stripped");
    let [from, to] = [&program, &stripped].map(|path| path.to_str().unwrap());
    run("strip", &["-o", to, from]);
    // The same calls, without their names. Inlined ones are known from debug information only.
    let bare = run(&stripped, &["bare"]);
    for ((name, calls), (_, bare)) in scenarios(&whole).iter().zip(scenarios(&bare)) {
        let offsets = |calls: &Calls<'_>| {
            let mut offsets: Vec<u64> = calls.iter().map(|(_, offset)| *offset).collect();
            offsets.dedup();
            offsets
        };
        assert_eq!(
            offsets(calls),
            offsets(&bare),
            "{name}: {calls:?}, {bare:?}"
        );
    }
    replaced(&program);
}

/// An update replaces the program while it runs.
fn replaced(program: &Path) {
    let copy = program.with_extension("replaced");
    fs::copy(program, &copy).unwrap();
    check_names(&run(&copy, &["replace"]));
}

/// With the C library in the program itself. That of musl has no call frame information.
#[test]
fn a_static_program_shows_where_it_hangs() {
    let program = build("release", Some("x86_64-unknown-linux-gnu"));
    check_names(&run(&program, &[]));
}
