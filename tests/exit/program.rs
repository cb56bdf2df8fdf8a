//! The processes that the tests of a process's end start. Each has a `main` of its own: it is not a
//! test in a test harness, which would have the main thread for itself.

use std::collections::HashMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process::{self, ExitCode, Termination};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use worker_heartbeat::{
    Attachment, Error, FleetConfig, MemoryStore, Registry, Restart, Shutdown, SqliteStore,
    Supervisor, WorkerHeartbeat,
};

use crate::support::store::TestStore;

/// The message of the panics in these programs.
pub(crate) const PANIC: &str = "no module named server";
const MINUTE: Duration = Duration::from_secs(60);

/// The settings of a program, such as `end=return store=sqlite:/tmp/fleet.db`.
pub(crate) struct Settings(HashMap<String, String>);

impl Settings {
    pub(crate) fn read(text: &str) -> Self {
        let words = text.split_whitespace().map(|word| {
            let (name, value) = word.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        });
        Self(words.collect())
    }

    fn get<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.0.get(name).map_or(default, String::as_str)
    }
}

/// | setting | values |
/// | --- | --- |
/// | `end` | how the process ends: see [`end`] |
/// | `store` | `none`, `memory`, `sqlite:<file>`, `http:<url>`, `postgres:<schema>,<url>`, `hung`, `slow` |
/// | `shutdown` | `yes`, `no`: whether a `Shutdown` is installed |
/// | `held` | `yes`, `no`: whether `main` holds a handle of the library |
/// | `by` | `main`, `other`: which thread sets everything up |
/// | `log` | `none`, `print`, `block`, `exit` |
/// | `farewell`, `timeout` | milliseconds |
/// | `workers` | `idle`, `working`, or both |
pub(crate) fn play(settings: &Settings) -> Outcome {
    let log = match settings.get("log", "none") {
        "none" => None,
        "print" => Some(Way::Print),
        "block" => Some(Way::Block),
        "exit" => Some(Way::Exit),
        other => panic!("there is no {other} log"),
    };
    if let Some(way) = log {
        log::set_logger(Box::leak(Box::new(TestLog(way)))).unwrap();
        log::set_max_level(LevelFilter::Info);
    }
    if settings.get("held", "yes") == "no" {
        crew(Registry::global(), settings);
        return end(Registry::global(), None, settings);
    }
    if settings.get("by", "main") == "other" {
        thread::scope(|scope| {
            scope.spawn(|| crew(Registry::global(), settings));
        });
        return end(Registry::global(), None, settings);
    }
    let registry = Registry::new();
    let (_attachment, shutdown) = crew(&registry, settings);
    end(&registry, shutdown.as_ref(), settings)
}

/// Sets up the workers, an idle and a working one on threads of their own.
fn crew(registry: &Registry, settings: &Settings) -> (Option<Attachment>, Option<Shutdown>) {
    let attachment = attach(registry, settings);
    let shutdown = (settings.get("shutdown", "no") == "yes").then(|| {
        Shutdown::builder()
            .registry(registry)
            .timeout(Duration::from_millis(
                settings.get("timeout", "60000").parse().unwrap(),
            ))
            .force_exit(settings.get("force", "no") == "yes")
            .cleanup("close the database", || say("@cleanup"))
            .install()
            .unwrap()
    });
    for id in settings.get("workers", "idle,working").split(',') {
        let (begun, has_begun) = channel();
        let (registry, attached) = (registry.clone(), attachment.is_some());
        let id = id.to_owned();
        thread::spawn(move || work(&registry, &id, attached, &begun));
        has_begun.recv().unwrap();
    }
    let answers = settings.get("store", "none") != "hung";
    if let Some(attachment) = attachment.as_ref().filter(|_| answers) {
        assert!(attachment.flush(MINUTE), "{:?}", attachment.status());
    }
    (attachment, shutdown)
}

fn work(registry: &Registry, id: &str, attached: bool, begun: &Sender<()>) {
    let hb = WorkerHeartbeat::builder("poller")
        .id(id)
        .registry(registry)
        .start()
        .unwrap();
    hb.mark_idle();
    let _task = (id == "working").then(|| hb.begin_task("run-1", "looking for a server"));
    let _lease = (id == "working" && attached).then(|| hb.claim("run-1", 10 * MINUTE).unwrap());
    begun.send(()).unwrap();
    rest()
}

/// Sleeps for ever.
pub(crate) fn rest() -> ! {
    loop {
        thread::park();
    }
}

fn attach(registry: &Registry, settings: &Settings) -> Option<Attachment> {
    let farewell: u64 = settings.get("farewell", "10000").parse().unwrap();
    let config = FleetConfig::new().farewell(Duration::from_millis(farewell));
    let (kind, target) = settings
        .get("store", "none")
        .split_once(':')
        .unwrap_or((settings.get("store", "none"), ""));
    let attached = match kind {
        "none" => return None,
        "memory" => registry.attach(MemoryStore::new(), config),
        "sqlite" => registry.attach(SqliteStore::open(target).unwrap(), config),
        "slow" => registry.attach(
            TestStore::before_stop(SqliteStore::open(target).unwrap(), || {
                thread::sleep(Duration::from_millis(300))
            }),
            config,
        ),
        "hung" => registry.attach(
            TestStore::before_stop(MemoryStore::new(), || {
                say("@hangs");
                rest()
            }),
            config,
        ),
        #[cfg(feature = "http")]
        "http" => {
            let store = worker_heartbeat::HttpStore::new(target).unwrap();
            registry.attach(store, config)
        }
        #[cfg(feature = "postgres")]
        "postgres" => {
            let (schema, url) = target.split_once(',').unwrap();
            let options = worker_heartbeat::PostgresOptions::new().schema(schema);
            registry.attach(options.connect(url).unwrap(), config)
        }
        other => panic!("there is no {other} store"),
    };
    Some(attached.unwrap())
}

// --- ends ---------------------------------------------------------------------------------------

/// What `main` returns.
pub(crate) enum Outcome {
    Success,
    Report(worker_heartbeat::ShutdownReport),
}

impl Termination for Outcome {
    fn report(self) -> ExitCode {
        match self {
            Self::Success => ExitCode::SUCCESS,
            Self::Report(report) => report.report(),
        }
    }
}

fn elsewhere(act: impl FnOnce() + Send) -> ! {
    thread::scope(|scope| {
        scope.spawn(act);
        rest()
    })
}

fn caught(work: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
}

fn end(registry: &Registry, shutdown: Option<&Shutdown>, settings: &Settings) -> Outcome {
    println!("@ready");
    let what = settings.get("end", "return");
    match what {
        "return" => {}
        "exit" => process::exit(3),
        "exit-elsewhere" => elsewhere(|| process::exit(4)),
        "registry-exit" => registry.exit(5),
        "registry-exit-elsewhere" => elsewhere(|| registry.exit(5)),
        "panic" => panic!("{PANIC}"),
        "abort" => process::abort(),
        "exec" => {
            use std::os::unix::process::CommandExt;
            let error = process::Command::new("sleep").arg("1000").exec();
            panic!("{error}");
        }
        // This panic is not the reason.
        "caught-return" => caught(|| panic!("{PANIC}")),
        "caught-exit" => {
            caught(|| panic!("{PANIC}"));
            process::exit(3)
        }
        "caught-then-panic" => {
            caught(|| panic!("of a job"));
            drop(registry.clone());
            panic!("{PANIC}")
        }
        "supervised" => {
            let hb = WorkerHeartbeat::builder("poller")
                .registry(registry)
                .start()
                .unwrap();
            let own = registry.clone();
            let mut work = pin!(hb.supervise(async move {
                let _own = own;
                panic!("of supervised work")
            }));
            let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_ready());
            process::exit(3)
        }
        // Panics of destructors, caught, while `main` unwinds.
        "panic-in-panic" => {
            struct Careless;
            impl Drop for Careless {
                fn drop(&mut self) {
                    caught(|| panic!("in a destructor"));
                }
            }
            let _careless = Careless;
            panic!("{PANIC}")
        }
        // Panics that end the process, as an application may intend.
        "hook-exit" => {
            std::panic::set_hook(Box::new(|_| process::exit(8)));
            panic!("{PANIC}")
        }
        "found-hook-exit" | "found-hook-exit-elsewhere" => {
            let found = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                found(info);
                process::exit(8)
            }));
            if what == "found-hook-exit" {
                panic!("{PANIC}");
            }
            elsewhere(|| panic!("{PANIC}"))
        }
        "destructor-exit" => {
            struct Hasty;
            impl Drop for Hasty {
                fn drop(&mut self) {
                    process::exit(8);
                }
            }
            let _hasty = Hasty;
            panic!("{PANIC}")
        }
        "own-worker-panic" => {
            let hb = WorkerHeartbeat::builder("poller")
                .id("own")
                .registry(registry)
                .start()
                .unwrap();
            hb.beat();
            let _task = hb.begin_task("run-2", "in main");
            panic!("{PANIC}")
        }
        "report" => {
            let shutdown = shutdown.unwrap();
            shutdown.trigger();
            return Outcome::Report(shutdown.wait());
        }
        "runtime-return" | "runtime-exit" | "runtime-panic" => in_a_runtime(registry, what),
        // Another thread waits for the workers, and would run a cleanup.
        "return-during-wait" => {
            let shutdown = shutdown.unwrap().clone();
            shutdown.trigger();
            let (begun, has_begun) = channel();
            thread::spawn(move || {
                begun.send(()).unwrap();
                let report = shutdown.wait();
                say(&format!("@waited {report:?}"));
            });
            has_begun.recv().unwrap();
        }
        "restarting" => restarting(registry),
        "newcomers" => newcomers(registry),
        "fork" => fork_and_return(),
        "two-registries" => {
            let other = Registry::new();
            crew(&other, settings);
            process::exit(3)
        }
        "logged" => {
            // The log ends the process, on this thread.
            let hb = WorkerHeartbeat::builder("poller")
                .id("failing")
                .registry(registry)
                .start()
                .unwrap();
            hb.fail("no disk");
        }
        #[cfg(feature = "beacon")]
        "beacon" | "beacon-panic" | "beacon-held" => {
            let beacon = worker_heartbeat::Beacon::new(registry, settings.get("beacon", ""))
                .start()
                .unwrap();
            if what == "beacon-panic" {
                panic!("{PANIC}");
            }
            std::mem::forget(beacon);
            if what == "beacon-held" {
                panic!("{PANIC}");
            }
            process::exit(3)
        }
        #[cfg(feature = "systemd")]
        "systemd" => {
            let notifier = worker_heartbeat::SystemdNotifier::start(registry).unwrap();
            assert!(notifier.is_active());
            std::mem::forget(notifier);
            process::exit(3)
        }
        other => panic!("there is no {other} end"),
    }
    Outcome::Success
}

/// An asynchronous `main`, with a worker that is a future.
fn in_a_runtime(registry: &Registry, what: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let hb = WorkerHeartbeat::builder("poller")
        .id("future")
        .registry(registry)
        .start()
        .unwrap();
    runtime.block_on(async move {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let work = hb.supervise(async {
                hb.beat();
                begun.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            let _ = work.await;
        });
        has_begun.await.unwrap();
        match what {
            "runtime-exit" => process::exit(3),
            "runtime-panic" => panic!("{PANIC}"),
            _ => {}
        }
    });
}

/// Workers that are restarted again and again, however they end.
fn restarting(registry: &Registry) -> ! {
    let supervisor = Supervisor::new(registry)
        .restart(Restart::always().backoff(Duration::from_millis(1), Duration::from_millis(1)));
    let supervised: Vec<_> = (0..8)
        .map(|n| {
            let builder = WorkerHeartbeat::builder("restarting").id(format!("restarting-{n}"));
            let work = |hb: &WorkerHeartbeat| {
                hb.beat();
                // Short lives, so that some workers are between two when the process ends.
                thread::sleep(Duration::from_millis(1));
                Err(Error::AlreadyAttached.into())
            };
            supervisor.spawn(builder, work).unwrap()
        })
        .collect();
    while supervised
        .iter()
        .any(|worker| worker.probe().snapshot().restarts < 3)
    {
        thread::yield_now();
    }
    process::exit(3)
}

/// Workers that keep registering while the process ends.
fn newcomers(registry: &Registry) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    let registry = registry.clone();
    thread::spawn(move || {
        for n in 0.. {
            let id = format!("newcomer-{n}");
            let builder = WorkerHeartbeat::builder("newcomer").id(id);
            let Ok(hb) = builder.registry(&registry).start() else {
                continue;
            };
            if ENDING.load(Ordering::Acquire) && hb.is_over() {
                say(&format!("@newcomer {}", hb.health()));
                std::mem::forget(hb);
                rest();
            }
            // So that there are not very many.
            thread::sleep(Duration::from_millis(1));
        }
    });
    ENDING.store(true, Ordering::Release);
    process::exit(3)
}

fn fork_and_return() {
    // SAFETY: the child only exits.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => process::exit(7),
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            say(&format!("@child {status:?}"));
            // Until the test has read the store.
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
        }
    }
}

fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

// --- a log ----------------------------------------------------------------------------------------

enum Way {
    Print,
    Block,
    Exit,
}

struct TestLog(Way);

impl Log for TestLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        match self.0 {
            Way::Print => say(&format!("@log {} {text}", record.level())),
            Way::Block => rest(),
            Way::Exit if text.contains("no disk") => process::exit(6),
            Way::Exit => {}
        }
    }

    fn flush(&self) {
        if matches!(self.0, Way::Print) {
            say("@flushed");
        }
    }
}
