//! A program that panics where its argument selects. It is built with `panic = "abort"`, and
//! without.

use std::env;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};
use std::thread;

use log::{LevelFilter, Log, Metadata, Record};
use worker_heartbeat::{
    Activity, Builder, FleetConfig, MemoryStore, Registry, Supervisor, WorkerHeartbeat,
};

struct StderrLog;

impl Log for StderrLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        eprintln!("@log {} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

fn main() {
    log::set_logger(&StderrLog).unwrap();
    log::set_max_level(LevelFilter::Info);
    std::panic::set_hook(Box::new(|info| {
        eprintln!("@hook {}", info.payload_as_str().unwrap());
    }));
    match env::args().nth(1).as_deref() {
        Some("thread") => on_a_thread(),
        Some("future") => in_a_future(),
        Some("elsewhere") => elsewhere(),
        Some("alone") => alone(),
        Some("attached") => attached(true),
        Some("attached-elsewhere") => attached(false),
        Some("attached-extern") => attached_in_a_foreign_function(),
        Some("twice") => twice(Way::Thread, 0),
        Some("twice-in-a-future") => twice(Way::Future, 0),
        Some("twice-after-others") => twice(Way::Thread, 2),
        Some("extern") => through_a_foreign_function(Way::Thread, 0),
        Some("extern-in-a-future") => through_a_foreign_function(Way::Future, 0),
        Some("extern-after-others") => through_a_foreign_function(Way::Thread, 2),
        Some("extern-elsewhere") => elsewhere_in_a_foreign_function(),
        Some("handled") => handled_while_unwinding(),
        other => panic!("there is no {other:?}"),
    }
    eprintln!("@survived");
}

fn worker(id: &str) -> Builder {
    WorkerHeartbeat::builder("worker").id(id)
}

fn die() -> ! {
    panic!("no module named {}", "server") // here
}

/// A supervised worker panics during its task.
fn on_a_thread() {
    let doomed = Supervisor::new(Registry::global()).spawn(worker("doomed"), |hb| {
        hb.beat();
        let _task = hb.begin_task("run-123", "looking for a server");
        die()
    });
    doomed.unwrap().join();
}

/// A supervised future panics during its task.
fn in_a_future() {
    let hb = worker("doomed").start().unwrap();
    let mut work = pin!(hb.supervise(async {
        hb.update_task("run-123", "looking for a server", Activity::Processing);
        die()
    }));
    let _ = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// A thread panics that belongs to no worker, in a process that has supervised ones.
fn elsewhere() {
    let (begun, has_begun) = std::sync::mpsc::channel();
    let well = Supervisor::new(Registry::global()).spawn(worker("well"), move |hb| {
        let _task = hb.begin_task("run-124", "working");
        begun.send(()).unwrap();
        loop {
            thread::park();
        }
    });
    has_begun.recv().unwrap();
    thread::spawn(|| die()).join().unwrap();
    drop(well);
}

/// A worker panics that is not supervised.
fn alone() {
    let hb = worker("alone").start().unwrap();
    let _task = hb.begin_task("run-125", "working alone");
    die()
}

/// The main thread or another one panics; a store is attached, and a worker on a third thread lives.
fn attached(main: bool) {
    let _attachment = Registry::global().attach(MemoryStore::new(), FleetConfig::new());
    bystander();
    if main {
        die();
    }
    let died = thread::Builder::new().name("doomed".into()).spawn(|| die());
    died.unwrap().join().unwrap();
}

fn bystander() {
    let (begun, has_begun) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let hb = worker("bystander").start().unwrap();
        let _task = hb.begin_task("run-126", "working");
        begun.send(()).unwrap();
        loop {
            thread::park();
        }
    });
    has_begun.recv().unwrap();
}

// --- panics that end a process which unwinds ------------------------------------------------

/// How the doomed worker runs.
#[derive(Clone, Copy)]
enum Way {
    Thread,
    Future,
}

/// A job that panics while its worker survives.
fn job() {
    let _ = std::panic::catch_unwind(|| panic!("a job"));
}

fn run(way: Way, jobs: u32, work: fn()) {
    match way {
        Way::Thread => {
            let doomed = Supervisor::new(Registry::global()).spawn(worker("doomed"), move |hb| {
                (0..jobs).for_each(|_| job());
                let _task = hb.begin_task("run-123", "looking for a server");
                work();
                Ok(())
            });
            doomed.unwrap().join();
        }
        Way::Future => {
            let hb = worker("doomed").start().unwrap();
            let mut future = pin!(hb.supervise(async {
                (0..jobs).for_each(|_| job());
                let _task = hb.begin_task("run-123", "looking for a server");
                work();
            }));
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("nor a disk") // second
    }
}

/// A worker's destructor panics while its thread unwinds.
fn twice(way: Way, jobs: u32) {
    run(way, jobs, || {
        let _dropped = PanicsWhenDropped;
        die()
    });
}

/// No panic unwinds out of it.
extern "C" fn foreign() {
    die()
}

/// A worker panics in a function that cannot unwind.
fn through_a_foreign_function(way: Way, jobs: u32) {
    run(way, jobs, || foreign());
}

/// The same in a thread that is no worker, in a process that has supervised ones.
fn elsewhere_in_a_foreign_function() {
    let (begun, has_begun) = std::sync::mpsc::channel();
    let well = Supervisor::new(Registry::global()).spawn(worker("well"), move |_| {
        begun.send(()).unwrap();
        loop {
            thread::park();
        }
    });
    has_begun.recv().unwrap();
    thread::spawn(|| foreign()).join().unwrap();
    drop(well);
}

/// As `attached`, in a function that cannot unwind.
fn attached_in_a_foreign_function() {
    let _attachment = Registry::global().attach(MemoryStore::new(), FleetConfig::new());
    bystander();
    thread::spawn(|| foreign()).join().unwrap();
}

struct HandlesWhenDropped;

impl Drop for HandlesWhenDropped {
    fn drop(&mut self) {
        job();
    }
}

/// A worker's destructor handles a panic of its own while its thread unwinds.
fn handled_while_unwinding() {
    run(Way::Thread, 0, || {
        let _dropped = HandlesWhenDropped;
        die()
    });
}
