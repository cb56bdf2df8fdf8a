//! A program that is built with `panic = "abort"`, and panics where its argument says.

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

/// A supervised worker panics at its task.
fn on_a_thread() {
    let doomed = Supervisor::new(Registry::global()).spawn(worker("doomed"), |hb| {
        hb.beat();
        let _task = hb.begin_task("run-123", "looking for a server");
        die()
    });
    doomed.unwrap().join();
}

/// A supervised future panics at its task.
fn in_a_future() {
    let hb = worker("doomed").start().unwrap();
    let mut work = pin!(hb.supervise(async {
        hb.update_task("run-123", "looking for a server", Activity::Processing);
        die()
    }));
    let _ = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// A thread panics that is nobody's worker, in a process that has supervised ones.
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

/// A worker panics that nobody supervises.
fn alone() {
    let hb = worker("alone").start().unwrap();
    let _task = hb.begin_task("run-125", "working alone");
    die()
}

/// The main thread or another one panics; a store is attached, and a worker on a third thread lives.
fn attached(main: bool) {
    let _attachment = Registry::global().attach(MemoryStore::new(), FleetConfig::new());
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
    if main {
        die();
    }
    let died = thread::Builder::new().name("doomed".into()).spawn(|| die());
    died.unwrap().join().unwrap();
}
