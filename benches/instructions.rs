//! Instructions a call takes, counted by valgrind: the same on a machine that is busy.
//!
//! `benches/instructions.sh` prints the table; `benches/instructions.sh --write docs/BENCHMARKS.md` also puts
//! it between `<!-- instructions: begin -->` and `<!-- instructions: end -->` in that file.
//!
//! For each kind of call this program runs itself under `valgrind --tool=callgrind`, and takes off
//! what the same loop takes without the call.

#[path = "figures/page.rs"]
mod page;

use std::env;
use std::future::{Future, pending};
use std::hint::black_box;
use std::io;
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::task::{Context, Waker};
use std::time::Instant;

use worker_heartbeat::{Activity, Registry, WorkerHeartbeat};

const CALLS: u64 = 200_000;

/// What is counted. The first one is what is taken off the others.
const KINDS: [&str; 9] = [
    "an empty loop",
    "beat()",
    "is_recent()",
    "update_task()",
    "progress()",
    "begin_task(), dropped",
    "mark_idle()",
    "a poll",
    "Instant::now()",
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--run", kind] => {
            run(kind);
            ExitCode::SUCCESS
        }
        ["--bench"] => report(None),
        ["--write", path, "--bench"] | ["--bench", "--write", path] => report(Some(path)),
        [] => {
            println!("run by `cargo bench`, this counts; otherwise it does nothing");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("unknown: {args:?}; known: --write <file>");
            ExitCode::FAILURE
        }
    }
}

fn report(path: Option<&str>) -> ExitCode {
    match print(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print(path: Option<&str>) -> Result<(), String> {
    let unchanged = |path, error| format!("{path} is unchanged: {error}");
    if let Some(path) = path {
        page::check(path, "instructions").map_err(|error| unchanged(path, error))?;
    }
    let text = table().map_err(|error| format!("the instructions cannot be counted: {error}"))?;
    print!("{text}");
    if let Some(path) = path {
        page::rewrite(path, "instructions", &text).map_err(|error| unchanged(path, error))?;
        println!("written to {path}");
    }
    Ok(())
}

fn table() -> io::Result<String> {
    let [empty, kinds @ ..] = KINDS;
    let empty = [count(empty)?, count(empty)?];
    let mut text = "| call | instructions | counted again |\n| --- | --- | --- |\n".to_owned();
    for kind in kinds {
        let a_call = |empty: u64| -> io::Result<f64> {
            let more = count(kind)?.saturating_sub(empty);
            Ok(more as f64 / CALLS as f64)
        };
        let [first, second] = [a_call(empty[0])?, a_call(empty[1])?];
        text += &format!("| `{kind}` | {first:.1} | {second:.1} |\n");
    }
    text += "\nCounted by `benches/instructions.sh`. Under valgrind the clock is read by a system call, \
             of which the kernel's part is not counted.\n";
    Ok(text)
}

/// Instructions of the whole program for one kind of call.
fn count(kind: &str) -> io::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--run", kind])
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::other("valgrind is not installed (apt-get install valgrind)")
            }
            _ => error,
        })?;
    let output_text = String::from_utf8_lossy(&output.stderr);
    let collected = output_text
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, count)| count.trim().parse().ok());
    collected.ok_or_else(|| io::Error::other(format!("valgrind printed no count:\n{output_text}")))
}

/// The loop that is counted.
fn run(kind: &str) {
    let registry = Registry::new();
    let worker = WorkerHeartbeat::builder("worker")
        .registry(&registry)
        .start()
        .expect("a worker starts");
    worker.update_task("run-123", "Researching example.com", Activity::Processing);
    match kind {
        "beat()" => repeat(|| black_box(&worker).beat()),
        "is_recent()" => repeat(|| black_box(&worker).is_recent()),
        "update_task()" => {
            let mut turn = 0_usize;
            repeat(|| {
                let run_id = ["run-123", "run-124"][turn % 2];
                turn += 1;
                let text = black_box("Researching example.com");
                black_box(&worker).update_task(black_box(run_id), text, Activity::Processing);
            });
        }
        "progress()" => {
            let task = worker.begin_task("run-123", "Researching example.com");
            let mut done = 0_usize;
            repeat(|| {
                done += 1;
                black_box(&task).progress(black_box(done), CALLS as usize);
            });
        }
        "begin_task(), dropped" => repeat(|| {
            let text = black_box("Researching example.com");
            drop(black_box(&worker).begin_task(black_box("run-123"), text));
        }),
        "mark_idle()" => repeat(|| black_box(&worker).mark_idle()),
        "a poll" => {
            let mut future = pin!(worker.supervise(pending::<()>()));
            let mut context = Context::from_waker(Waker::noop());
            repeat(|| {
                black_box(&mut future)
                    .as_mut()
                    .poll(&mut context)
                    .is_pending()
            });
        }
        "Instant::now()" => repeat(Instant::now),
        _ => repeat(|| {}),
    }
}

#[inline(never)]
fn repeat<T>(mut call: impl FnMut() -> T) {
    for _ in 0..CALLS {
        black_box(call());
    }
}
