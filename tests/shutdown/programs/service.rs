//! A service with workers, cleanups and a log as its settings say, which answers queries on its
//! standard input.

use std::collections::HashMap;
use std::io::BufRead;
use std::panic::panic_any;
use std::process::{ExitCode, exit};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use nix::sys::signal::{SigHandler, Signal, signal};
use worker_heartbeat::{
    Probe, Registry, Shutdown, ShutdownBuilder, ShutdownReport, WorkerHeartbeat,
};

/// A worker of the service is stale after this time.
pub(crate) const STALE_AFTER: Duration = Duration::from_millis(200);

/// Restores the signals' default actions, as an interactive shell does, however the tests were
/// started.
pub(crate) fn reset_signals() {
    for number in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGQUIT,
        Signal::SIGHUP,
    ] {
        // SAFETY: nothing in this process has hooked a signal yet.
        unsafe { signal(number, SigHandler::SigDfl) }.unwrap();
    }
}

pub(crate) fn ready() {
    // The test harness has left its line unfinished.
    println!("\n@ready");
}

/// Ends the process as a `main` that returns this report.
pub(crate) fn exit_with(report: &ShutdownReport) -> ! {
    for hung in &report.hung {
        println!("@report: {} hung: {}", hung.id, hung.health);
    }
    for cleanup in &report.cleanups {
        println!("@report: cleanup {}: {:?}", cleanup.name, cleanup.panic);
        println!("@state: cleanup {}: {}", cleanup.name, cleanup.state);
    }
    println!("@summary: {report}");
    let clean = report.is_clean();
    let code = format!("{:?}", report.exit_code());
    assert_eq!(code == format!("{:?}", ExitCode::SUCCESS), clean);
    exit(i32::from(!clean))
}

/// The settings of a role, such as `log=print workers=idle,hung`.
pub(crate) struct Settings<'a>(HashMap<&'a str, &'a str>);

impl<'a> Settings<'a> {
    pub(crate) fn read(text: &'a str) -> Self {
        let words = text.split_whitespace();
        Self(words.map(|word| word.split_once('=').unwrap()).collect())
    }

    fn get(&self, name: &str, default: &'a str) -> &'a str {
        self.0.get(name).unwrap_or(&default)
    }

    fn yes(&self, name: &str) -> bool {
        self.get(name, "yes") == "yes"
    }
}

// --- a service ----------------------------------------------------------------------------------

/// A service with workers, cleanups and a shutdown, as the settings say:
///
/// | setting | values |
/// | --- | --- |
/// | `log` | `none`, `off`, `filter`, `print`, `slow`, `block`, `block-locked`, `block-flush`, `panic`, `panic-flush` |
/// | `workers` | names of workers, idle, draining (until sent `finish`) or hung |
/// | `cleanup` | of three, the middle one is `fine`, `slow`, `hung`, or it panics: `text`, `bomb` |
/// | `timeout` | milliseconds |
/// | `force`, `wait` | `yes`, `no` |
///
/// It answers `shutdown`, `health <worker>` and `living`.
pub(crate) fn service(settings: &Settings<'_>) -> ! {
    install_log(settings.get("log", "none"));
    let registry = Registry::new();
    let shutdown = cleanups(Shutdown::builder(), &registry, settings)
        .registry(&registry)
        .timeout(Duration::from_millis(
            settings.get("timeout", "60000").parse().unwrap(),
        ))
        .force_exit(settings.yes("force"))
        .install()
        .unwrap();
    let names = settings.get("workers", "").split(',');
    let workers: Vec<_> = names
        .filter(|name| !name.is_empty())
        .map(|name| Worker::start(&registry, name))
        .collect();
    follow(&registry, &shutdown);
    obey(registry, shutdown.clone(), workers);
    ready();
    if settings.yes("wait") {
        exit_with(&shutdown.wait())
    }
    rest()
}

/// A worker on a thread of its own.
struct Worker {
    probe: Probe,
    finish: std::sync::mpsc::Sender<()>,
}

impl Worker {
    /// The name selects what the worker does when it is asked to stop.
    fn start(registry: &Registry, name: &str) -> Self {
        let hb = WorkerHeartbeat::builder("worker")
            .id(name)
            .interval(STALE_AFTER / 4)
            .stale_after(STALE_AFTER)
            .registry(registry)
            .start()
            .unwrap();
        let probe = hb.probe();
        let (finish, finished) = channel();
        let (begun, has_begun) = channel();
        let kind = name.split('-').next().unwrap().to_owned();
        thread::spawn(move || {
            work(&kind, &hb, &begun, &finished);
            rest()
        });
        has_begun.recv().unwrap();
        Self { probe, finish }
    }
}

fn work(
    kind: &str,
    hb: &WorkerHeartbeat,
    begun: &std::sync::mpsc::Sender<()>,
    done: &Receiver<()>,
) {
    match kind {
        // Idle, and blocked, so that it cannot even end by itself.
        "idle" => {
            hb.mark_idle();
            begun.send(()).unwrap();
            rest()
        }
        "draining" => {
            let task = hb.begin_task("run-1", "finishing");
            begun.send(()).unwrap();
            done.recv().unwrap();
            drop(task);
        }
        "hung" => {
            let _task = hb.begin_task("run-2", "hanging");
            begun.send(()).unwrap();
            rest()
        }
        other => panic!("there is no {other} worker"),
    }
}

/// Sleeps for ever.
pub(crate) fn rest() -> ! {
    loop {
        thread::park();
    }
}

fn cleanups(
    builder: ShutdownBuilder,
    registry: &Registry,
    settings: &Settings<'_>,
) -> ShutdownBuilder {
    let middle = settings.get("cleanup", "fine").to_owned();
    let [one, two, three] = [(); 3].map(|()| registry.clone());
    builder
        .cleanup("one", move || {
            println!("@cleanup one, {} living", living(&one));
        })
        .cleanup("two", move || {
            println!("@cleanup two, {} living", living(&two));
            match middle.as_str() {
                "fine" => {}
                // The time that it takes to close a database.
                "slow" => thread::sleep(Duration::from_secs(1)),
                "hung" => rest(),
                "text" => panic!("the disk is full"),
                "bomb" => panic_any(Bomb),
                other => panic!("there is no {other} cleanup"),
            }
        })
        .cleanup("three", move || {
            println!("@cleanup three, {} living", living(&three));
            for worker in three.workers() {
                println!("@ended {}: {}", worker.id(), worker.health());
            }
        })
}

/// A panic payload that panics again when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a bomb");
    }
}

fn living(registry: &Registry) -> usize {
    let states = registry.summary().states;
    let over = states.iter().filter(|(state, _)| state.is_terminal());
    states.total() - over.map(|(_, count)| count).sum::<usize>()
}

/// Prints the events, as a monitor would.
fn follow(registry: &Registry, shutdown: &Shutdown) {
    let events = registry.subscribe();
    thread::spawn(move || {
        for event in events.iter() {
            println!("@event {event}");
        }
    });
    let (shutdown, begun) = (shutdown.clone(), shutdown.receiver());
    thread::spawn(move || {
        let cause = begun.recv().unwrap();
        println!("@begun {cause}, {}", say_shutdown(&shutdown));
    });
}

fn say_shutdown(shutdown: &Shutdown) -> String {
    let received = shutdown.receiver().try_recv().is_ok();
    let (requested, signal) = (shutdown.requested(), shutdown.signal());
    format!("requested {requested}, signal {signal:?}, received {received}")
}

/// Executes the commands of the test until the test ends.
fn obey(registry: Registry, shutdown: Shutdown, workers: Vec<Worker>) {
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("finish", _) => {
                    for worker in &workers {
                        // Some workers do not receive.
                        let _ = worker.finish.send(());
                    }
                }
                ("trigger", _) => shutdown.trigger(),
                ("shutdown", _) => println!("@shutdown: {}", say_shutdown(&shutdown)),
                ("living", _) => println!("@living: {}", living(&registry)),
                ("health", name) => {
                    let mut probes = workers.iter().map(|worker| &worker.probe);
                    let probe = probes.find(|probe| probe.id() == name).unwrap();
                    println!("@{line}: {}", probe.health());
                }
                (other, _) => panic!("there is no command {other}"),
            }
        }
        // The test has ended.
        exit(3)
    });
}

// --- logs ---------------------------------------------------------------------------------------

/// Prints, unless its kind says otherwise.
struct TestLog(String);

pub(crate) fn install_log(kind: &str) {
    if kind == "none" {
        return;
    }
    log::set_logger(Box::leak(Box::new(TestLog(kind.to_owned())))).unwrap();
    log::set_max_level(match kind {
        "off" => LevelFilter::Off,
        _ => LevelFilter::Info,
    });
}

impl Log for TestLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // As `RUST_LOG=myapp=info` has it.
        self.0 != "filter" || metadata.target().starts_with("myapp")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match self.0.as_str() {
            "print" | "block-flush" | "panic-flush" | "filter" | "off" => {}
            // It stands for a log on a slow disk or behind a slow network.
            "slow" => thread::sleep(Duration::from_millis(100)),
            "block" => rest(),
            // A log that writes to a pipe that is not read.
            "block-locked" => {
                let _lock = std::io::stderr().lock();
                rest()
            }
            "panic" => panic!("the log is broken"),
            other => panic!("there is no {other} log"),
        }
        println!("@log {} {}", record.level(), record.args());
    }

    fn flush(&self) {
        match self.0.as_str() {
            "block-flush" => rest(),
            "panic-flush" => panic!("the log is broken"),
            _ => {}
        }
    }
}
