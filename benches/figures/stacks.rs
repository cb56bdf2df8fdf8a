//! The call stack of a thread that hangs.

use std::backtrace::Backtrace;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{Activity, Probe, Registry, WorkerHeartbeat};

use crate::allocations::bytes_in_use;
use crate::contest::{Contest, Plan, Spread, timed};
use crate::table::{Table, Target, Unit};

pub(crate) fn measure(table: &mut Table) {
    let registry = Registry::new();
    let worker = WorkerHeartbeat::builder("shop")
        .registry(&registry)
        .start()
        .expect("a worker starts");
    let probe = worker.probe();
    let (release, wait) = mpsc::channel::<()>();
    let (reported, ready) = mpsc::channel();
    let hangs = thread::spawn(move || {
        worker.update_task("order-7", "reserving", Activity::Processing);
        let _ = reported.send(());
        let _ = wait.recv();
    });
    ready.recv().expect("the worker reports");
    // Until it is blocked: there is no event to wait for.
    thread::sleep(Duration::from_millis(100));
    let bytes_before = bytes_in_use();
    let begun = Instant::now();
    let frames = capture(&probe);
    let first = begun.elapsed();
    table.add(
        format!("first `capture_stack()`, {frames} frames, names read from this program"),
        Spread::exactly(first.as_secs_f64() * 1e6),
        Unit::Microseconds,
        Target::None,
    );
    table.add(
        "heap kept by it",
        Spread::exactly(bytes_in_use().saturating_sub(bytes_before) as f64),
        Unit::Bytes,
        Target::AtMost(1_048_576.0),
    );
    let mut contest = Contest::new(Plan::HEAVY);
    let ours = contest.enter(timed(|| capture(&probe)));
    // What a panic costs that is shown: names are looked up once in a process, too.
    let own = contest.enter(timed(|| Backtrace::force_capture().to_string().len()));
    let outcome = contest.run();
    let in_micros = |spread: Spread| {
        Spread::of([spread.min, spread.median, spread.max].map(|nanos| nanos / 1e3))
    };
    table.add(
        "`capture_stack()`, later",
        in_micros(outcome.nanos(ours)),
        Unit::Microseconds,
        Target::AtMost(2_000.0),
    );
    table.add(
        "the standard library's backtrace of the calling thread, as a text",
        in_micros(outcome.nanos(own)),
        Unit::Microseconds,
        Target::None,
    );
    table.add(
        "`capture_stack()`, compared with it",
        outcome.ratio(ours, own),
        Unit::Times,
        Target::None,
    );
    drop(release);
    hangs.join().expect("the worker ends");
}

/// The number of frames.
fn capture(probe: &Probe) -> usize {
    let stack = probe.capture_stack().expect("the thread is blocked");
    stack.frames.len()
}
