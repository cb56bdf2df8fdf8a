//! Scenes of a shutdown in which something fails. They end with status 0 if all is well, unless
//! their test expects another status.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::sys::signal::{SigSet, Signal as Number};
use worker_heartbeat::fleet::WorkerFilter;
use worker_heartbeat::{
    CleanupState, Error, FleetConfig, HeartbeatStore, Registry, Shutdown, ShutdownBuilder,
    ShutdownReport, Signal, State, WorkerHeartbeat,
};

use super::service::{exit_with, install_log, ready, rest};
use crate::support::executor::block_on;
use crate::support::process::PATIENCE;
use crate::support::store::TestStore;

const MILLISECOND: Duration = Duration::from_millis(1);
const TIMEOUT: Duration = Duration::from_millis(500);

/// Plays this scene, if it is one of these, and ends the process.
pub(crate) fn play(scene: &str) {
    let (scene, setting) = scene.split_once(' ').unwrap_or((scene, ""));
    match scene {
        "many-wait" => many_wait(),
        "waiting-cleanup" => waiting_cleanup(),
        "cleanup-that-waits-aside" => cleanup_that_waits_on_a_thread(),
        "calling-cleanup" => calling_cleanup(),
        "hanging-store" => hanging_store(),
        "blocking-trigger" => blocking_trigger(),
        "late-wait" => late_wait(),
        "late-wait-for-ever" => late_wait_for_ever(),
        "twice" => twice(),
        "main-returns" => exits_meanwhile(|exit| exit()),
        "another-thread-exits" => exits_meanwhile(|exit| {
            thread::scope(|scope| {
                scope.spawn(exit);
            });
        }),
        "close-race" => close_race(setting.parse().unwrap()),
        "unwinding" => unwinding(|| {}, install),
        "unwinding-install" => unwinding(|| {}, |_| {}),
        "unwinding-log" => unwinding(|| install_log("panic"), install),
        "panic-hook" => panic_hook(),
        "inherited-signals" => inherited_signals(),
        "inherited-job" => job(Shutdown::builder()),
        "inherited-job-hooks-all" => job(Shutdown::builder().hook_ignored_signals(true)),
        "inherited-blocked" => blocked(),
        "inherited-left-out" => left_out(),
        "blocked-here" => blocked_here(),
        "current-thread" => current_thread(),
        "block-on" => block_on_alone(),
        "async-hung-cleanup" => async_hung_cleanup(),
        "cancelled-waits" => cancelled_waits(),
        "async-signal" => async_signal(),
        _ => {}
    }
}

/// A shutdown that only the scene begins, and that returns a report.
fn quiet(registry: &Registry) -> ShutdownBuilder {
    let builder = Shutdown::builder().signals([]).registry(registry);
    builder.timeout(TIMEOUT).force_exit(false)
}

fn worker(registry: &Registry, id: &str) -> WorkerHeartbeat {
    let builder = WorkerHeartbeat::builder("worker").id(id);
    builder.registry(registry).start().unwrap()
}

fn states(report: &ShutdownReport) -> Vec<(&str, CleanupState)> {
    let cleanups = report.cleanups.iter();
    cleanups
        .map(|cleanup| (&*cleanup.name, cleanup.state))
        .collect()
}

/// Waits for a condition that is about to hold.
#[track_caller]
fn soon(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "not {what}");
        // Between two checks.
        thread::sleep(MILLISECOND);
    }
}

/// A scene that never ends by itself.
fn in_time(what: &'static str) {
    thread::spawn(move || {
        thread::sleep(PATIENCE / 2);
        println!("the scene hangs: {what}");
        exit(7);
    });
}

// --- waiting ------------------------------------------------------------------------------------

fn many_wait() -> ! {
    ready();
    in_time("one of the waiting threads");
    let registry = Registry::new();
    let shutdown = quiet(&registry)
        .cleanup("never", || panic!("the cleanup ran"))
        .cleanup("hung", || rest())
        .cleanup("fine", || {})
        .install()
        .unwrap();
    let blocking = [(); 3].map(|()| {
        let shutdown = shutdown.clone();
        thread::spawn(move || shutdown.wait())
    });
    let polling = [(); 3].map(|()| {
        let shutdown = shutdown.clone();
        thread::spawn(move || block_on(shutdown.wait_async()))
    });
    shutdown.trigger();
    let report = shutdown.wait();
    assert!(!report.is_clean());
    assert!(report.took >= TIMEOUT, "{report}");
    assert_eq!(
        states(&report),
        [
            ("fine", CleanupState::Completed),
            ("hung", CleanupState::Running),
            ("never", CleanupState::NotRun),
        ]
    );
    for other in blocking.into_iter().chain(polling) {
        let other = other.join().unwrap();
        assert_eq!(format!("{other:?}"), format!("{report:?}"));
    }
    let again = block_on(shutdown.wait_async());
    assert_eq!(format!("{again:?}"), format!("{report:?}"));
    exit(0)
}

fn waiting_cleanup() -> ! {
    ready();
    in_time("a cleanup that waits");
    let own = Arc::new(OnceLock::<Shutdown>::new());
    let [one, two] = [(); 2].map(|()| Arc::clone(&own));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let [first, second] = [(); 2].map(|()| Arc::clone(&seen));
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&Registry::new())
        .cleanup("last", || {})
        .cleanup("async", move || {
            let report = block_on(two.get().unwrap().wait_async());
            second.lock().unwrap().push(report);
        })
        .cleanup("blocking", move || {
            first.lock().unwrap().push(one.get().unwrap().wait());
        })
        .install()
        .unwrap();
    own.set(shutdown.clone()).unwrap();
    shutdown.trigger();
    let report = shutdown.wait();
    assert!(report.is_clean(), "{report}");
    let seen = seen.lock().unwrap();
    let [first, second] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert!(!first.is_clean() && !second.is_clean());
    let (completed, running, not_run) = (
        CleanupState::Completed,
        CleanupState::Running,
        CleanupState::NotRun,
    );
    assert_eq!(
        states(first),
        [("blocking", running), ("async", not_run), ("last", not_run)]
    );
    assert_eq!(
        states(second),
        [
            ("blocking", completed),
            ("async", running),
            ("last", not_run)
        ]
    );
    exit_with(&report)
}

fn cleanup_that_waits_on_a_thread() -> ! {
    ready();
    in_time("a cleanup that waits on another thread");
    let own = Arc::new(OnceLock::<Shutdown>::new());
    let one = Arc::clone(&own);
    let shutdown = quiet(&Registry::new())
        .cleanup("waits", move || {
            let shutdown = one.get().unwrap().clone();
            let report = thread::spawn(move || shutdown.wait()).join().unwrap();
            assert!(!report.is_clean());
        })
        .install()
        .unwrap();
    own.set(shutdown.clone()).unwrap();
    shutdown.trigger();
    let report = shutdown.wait();
    assert_eq!(states(&report), [("waits", CleanupState::Running)]);
    exit(0)
}

fn calling_cleanup() -> ! {
    ready();
    in_time("a cleanup that calls the shutdown");
    let registry = Registry::new();
    let own = Arc::new(OnceLock::<Shutdown>::new());
    let (one, late) = (Arc::clone(&own), registry.clone());
    let shutdown = quiet(&registry)
        .cleanup("calls", move || {
            let shutdown = one.get().unwrap();
            assert!(shutdown.requested());
            shutdown.trigger();
            assert!(shutdown.receiver().recv().is_ok());
            block_on(shutdown.requested_async());
            // A worker that belongs to the cleanup.
            let hb = worker(&late, "of-the-cleanup");
            assert!(hb.stop_requested());
            drop(hb);
            let name = thread::current().name().map(ToOwned::to_owned);
            assert_eq!(name.as_deref(), Some("wh-shutdown"));
        })
        .install()
        .unwrap();
    own.set(shutdown.clone()).unwrap();
    shutdown.trigger();
    let report = shutdown.wait();
    assert!(report.is_clean(), "{report}");
    exit_with(&report)
}

fn hanging_store() -> ! {
    ready();
    in_time("a store");
    let stores = [(); 3].map(|()| TestStore::default());
    let registries = [(); 3].map(|()| Registry::new());
    let builder = Shutdown::builder()
        .signals([])
        .timeout(2 * Duration::from_secs(1));
    let shutdown = registries
        .iter()
        .fold(builder, ShutdownBuilder::registry)
        // The store needs a quarter of the timeout.
        .cleanup("close", || thread::sleep(TIMEOUT))
        .install()
        .unwrap();
    let workers: Vec<_> = registries
        .iter()
        .zip(&stores)
        .map(|(registry, store)| {
            let config = FleetConfig::new().farewell(PATIENCE);
            let attachment = registry.attach(store.clone(), config).unwrap();
            let hb = worker(registry, "w");
            hb.mark_idle();
            assert!(attachment.flush(PATIENCE));
            hb
        })
        .collect();
    // All but the last.
    for store in &stores[..2] {
        store.hang();
    }
    shutdown.trigger();
    let report = shutdown.wait();
    assert!(report.is_clean(), "{report}");
    let stored = stores[2].list(&WorkerFilter::default()).unwrap();
    let state = stored[0].health().state();
    assert_eq!(state, State::Stopped, "{stored:?}");
    // Dropping the handles would wait for the stores too.
    std::mem::forget(workers);
    exit_with(&report)
}

fn blocking_trigger() -> ! {
    ready();
    in_time("a trigger");
    install_log("block");
    let registry = Registry::new();
    let ran = Arc::new(AtomicBool::new(false));
    let run = Arc::clone(&ran);
    let shutdown = quiet(&registry)
        .cleanup("close", move || run.store(true, Ordering::Release))
        .install()
        .unwrap();
    let hb = worker(&registry, "idle");
    hb.mark_idle();
    shutdown.trigger();
    assert!(shutdown.requested() && hb.is_over());
    let report = shutdown.wait();
    assert!(ran.load(Ordering::Acquire), "{report}");
    exit_with(&report)
}

fn late_wait() -> ! {
    ready();
    in_time("a late wait");
    let ran = Arc::new(AtomicBool::new(false));
    let run = Arc::clone(&ran);
    let shutdown = quiet(&Registry::new())
        .cleanup("close", move || run.store(true, Ordering::Release))
        .install()
        .unwrap();
    shutdown.trigger();
    // Other work that is done first.
    thread::sleep(2 * TIMEOUT);
    let report = shutdown.wait();
    assert!(report.is_clean() && ran.load(Ordering::Acquire), "{report}");
    exit_with(&report)
}

fn late_wait_for_ever() -> ! {
    ready();
    in_time("a late wait for a cleanup that hangs");
    let shutdown = quiet(&Registry::new())
        .cleanup("hung", || rest())
        .install()
        .unwrap();
    shutdown.trigger();
    // Other work that is done first.
    thread::sleep(2 * TIMEOUT);
    let report = shutdown.wait();
    assert_eq!(states(&report), [("hung", CleanupState::Running)]);
    exit(0)
}

fn twice() -> ! {
    ready();
    let (mine, other) = (Registry::new(), Registry::new());
    let clone = mine.clone();
    let shutdown = quiet(&mine)
        .registry(&mine)
        .registry(&other)
        .registry(&clone)
        .install()
        .unwrap();
    let workers = [(&mine, "hung-1"), (&mine, "hung-2"), (&other, "hung-3")]
        .map(|(registry, id)| worker(registry, id));
    let tasks = workers.each_ref().map(|hb| hb.begin_task("run-1", ""));
    shutdown.trigger();
    let report = shutdown.wait();
    let mut hung: Vec<_> = report.hung.iter().map(|worker| &*worker.id).collect();
    hung.sort_unstable();
    assert_eq!(hung, ["hung-1", "hung-2", "hung-3"]);
    drop(tasks);
    exit(0)
}

// --- two exits at once --------------------------------------------------------------------------

/// A log that is slow to write the last message, and sets a flag when it begins.
struct SlowLog(AtomicBool);

impl Log for SlowLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() == Level::Error {
            self.0.store(true, Ordering::Release);
            // A log on a slow disk.
            thread::sleep(100 * MILLISECOND);
        }
        println!("@log {} {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// The process exits with status 0 while it is forced to exit.
fn exits_meanwhile(end: impl FnOnce(Box<dyn FnOnce() + Send>)) -> ! {
    static LOG: SlowLog = SlowLog(AtomicBool::new(false));
    log::set_logger(&LOG).unwrap();
    log::set_max_level(LevelFilter::Info);
    let registry = Registry::new();
    let shutdown = quiet(&registry).force_exit(true).install().unwrap();
    let hb = worker(&registry, "hung");
    let task = hb.begin_task("run-1", "");
    ready();
    end(Box::new(move || {
        shutdown.trigger();
        soon("the log has begun", || LOG.0.load(Ordering::Acquire));
        exit(0)
    }));
    drop(task);
    unreachable!("the process has ended")
}

fn close_race(millis: u64) -> ! {
    let registry = Registry::new();
    let shutdown = quiet(&registry)
        .force_exit(true)
        .timeout(200 * MILLISECOND)
        .install()
        .unwrap();
    let hb = worker(&registry, "busy");
    let task = hb.begin_task("run-1", "");
    ready();
    shutdown.trigger();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Near the timeout.
            thread::sleep(Duration::from_millis(millis));
            drop(task);
        });
        let report = shutdown.wait();
        assert!(report.is_clean(), "{report}");
        println!("@returned");
        exit(0)
    })
}

// --- a thread that unwinds ----------------------------------------------------------------------

/// Shuts down when it is dropped.
struct Service {
    registry: Registry,
    shutdown: OnceLock<Shutdown>,
}

fn install(service: &Service) {
    let shutdown = quiet(&service.registry)
        .timeout(PATIENCE)
        .cleanup("clean up", || println!("@cleaned up"))
        .install()
        .unwrap();
    service.shutdown.set(shutdown).unwrap();
}

impl Drop for Service {
    fn drop(&mut self) {
        assert!(thread::panicking());
        if self.shutdown.get().is_none() {
            install(self);
        }
        let shutdown = self.shutdown.get().unwrap();
        assert!(!shutdown.requested());
        shutdown.trigger();
        block_on(shutdown.requested_async());
        let report = shutdown.wait();
        let again = block_on(shutdown.wait_async());
        println!("@report: {}", report.is_clean() && again.is_clean());
    }
}

fn unwinding(before: impl FnOnce(), installed: impl FnOnce(&Service)) -> ! {
    before();
    ready();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let service = Service {
            registry: Registry::new(),
            shutdown: OnceLock::new(),
        };
        installed(&service);
        let hb = worker(&service.registry, "idle");
        hb.mark_idle();
        panic!("the work failed");
    }));
    let payload = caught.unwrap_err();
    println!("@caught: {}", payload.downcast_ref::<&str>().unwrap());
    exit(0)
}

fn panic_hook() -> ! {
    ready();
    in_time("a panic hook");
    let service = Service {
        registry: Registry::new(),
        shutdown: OnceLock::new(),
    };
    install(&service);
    let shutdown = service.shutdown.get().unwrap().clone();
    std::mem::forget(service);
    std::panic::set_hook(Box::new(move |_| {
        shutdown.trigger();
        println!("@report: {}", shutdown.wait().is_clean());
        exit(0)
    }));
    panic!("the work failed")
}

// --- the state of signals -----------------------------------------------------------------------

fn inherited_signals() -> ! {
    let shutdown = Shutdown::builder().install().unwrap();
    println!("\n@signals {:?}", shutdown.signals().map_names());
    ready();
    exit(0)
}

trait MapNames {
    fn map_names(&self) -> Vec<&'static str>;
}

impl MapNames for Vec<Signal> {
    fn map_names(&self) -> Vec<&'static str> {
        self.iter().map(|signal| signal.name()).collect()
    }
}

fn job(builder: ShutdownBuilder) -> ! {
    let shutdown = builder.install().unwrap();
    ready();
    println!("@pid {}", std::process::id());
    println!("@begun {}", shutdown.receiver().recv().unwrap());
    exit_with(&shutdown.wait())
}

fn blocked() -> ! {
    ready();
    let refused = Shutdown::builder().install();
    let Err(error) = refused else {
        panic!("{refused:?}");
    };
    let Error::SignalBlocked { signals, .. } = &error else {
        panic!("{error}");
    };
    println!("@refused {signals}: {error}");
    // Nothing was hooked, and the next installation works.
    let shutdown = Shutdown::builder().signals([]).install().unwrap();
    shutdown.trigger();
    exit_with(&shutdown.wait())
}

fn left_out() -> ! {
    let signals = Signal::DEFAULT.into_iter();
    let shutdown = Shutdown::builder()
        .signals(signals.filter(|signal| *signal != Signal::Terminate))
        .install()
        .unwrap();
    ready();
    println!("@begun {}", shutdown.receiver().recv().unwrap());
    exit_with(&shutdown.wait())
}

fn blocked_here() -> ! {
    let installed = thread::spawn(|| {
        let mut mask = SigSet::empty();
        mask.add(Number::SIGTERM);
        mask.thread_block().unwrap();
        Shutdown::builder().install()
    });
    let shutdown = installed.join().unwrap().unwrap();
    ready();
    println!("@begun {}", shutdown.receiver().recv().unwrap());
    exit_with(&shutdown.wait())
}

// --- executors ----------------------------------------------------------------------------------

/// Workers that finish their task by themselves, a yield at a time, on the thread that waits.
fn current_thread() -> ! {
    ready();
    in_time("a current-thread runtime");
    let registry = Registry::new();
    let main = thread::current().id();
    let shutdown = Shutdown::builder()
        .signals([])
        .registry(&registry)
        .timeout(PATIENCE)
        .cleanup("aside", move || assert_ne!(thread::current().id(), main))
        .install()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let report = runtime.block_on(async {
        let workers: Vec<_> = (0..10)
            .map(|n| {
                let (registry, shutdown) = (registry.clone(), shutdown.clone());
                tokio::spawn(async move {
                    let hb = worker(&registry, &format!("worker-{n}"));
                    let task = hb.begin_task("run-1", "");
                    shutdown.requested_async().await;
                    assert!(hb.stop_requested());
                    for _ in 0..20 {
                        // The end of its task, for which it needs the thread again and again.
                        tokio::time::sleep(MILLISECOND).await;
                    }
                    drop(task);
                    hb.is_over()
                })
            })
            .collect();
        let asking = shutdown.clone();
        tokio::spawn(async move {
            tokio::time::sleep(10 * MILLISECOND).await;
            asking.trigger();
        });
        let report = shutdown.wait_async().await;
        for worker in workers {
            assert!(worker.await.unwrap());
        }
        report
    });
    assert!(report.is_clean(), "{report}");
    exit_with(&report)
}

/// Two futures take turns on an executor that polls nothing else.
fn block_on_alone() -> ! {
    ready();
    in_time("an executor");
    let registry = Registry::new();
    let shutdown = quiet(&registry).timeout(PATIENCE).install().unwrap();
    let hb = worker(&registry, "w");
    let mut turns = 0;
    let mut task = Some(hb.begin_task("run-1", ""));
    let mut waiting = pin!(shutdown.wait_async());
    let report = block_on(std::future::poll_fn(|context| {
        turns += 1;
        if turns == 3 {
            shutdown.trigger();
        }
        if turns == 100 {
            task = None;
        }
        if turns < 100 {
            context.waker().wake_by_ref();
        }
        waiting.as_mut().poll(context)
    }));
    assert!(turns >= 100 && report.is_clean(), "{turns} turns: {report}");
    exit_with(&report)
}

fn async_hung_cleanup() -> ! {
    ready();
    in_time("an executor that waits for a cleanup");
    let shutdown = quiet(&Registry::new())
        .cleanup("hung", || rest())
        .install()
        .unwrap();
    shutdown.trigger();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let ticks = AtomicUsize::new(0);
    let report = runtime.block_on(async {
        tokio::select! {
            biased;
            report = shutdown.wait_async() => report,
            () = async {
                loop {
                    tokio::time::sleep(MILLISECOND).await;
                    ticks.fetch_add(1, Ordering::Relaxed);
                }
            } => unreachable!(),
        }
    });
    assert_eq!(states(&report), [("hung", CleanupState::Running)]);
    assert!(ticks.into_inner() > 10);
    exit(0)
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn cancelled_waits() -> ! {
    ready();
    in_time("a future");
    let shutdown = quiet(&Registry::new())
        .timeout(PATIENCE)
        .cleanup("slow", || thread::sleep(50 * MILLISECOND))
        .install()
        .unwrap();
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    let without = Arc::strong_count(&count);
    for _ in 0..10_000 {
        let mut requested = pin!(shutdown.requested_async());
        let mut reported = pin!(shutdown.wait_async());
        for _ in 0..3 {
            assert!(requested.as_mut().poll(&mut context).is_pending());
            assert!(reported.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(Arc::strong_count(&count), without + 2, "one waker each");
    }
    assert_eq!(Arc::strong_count(&count), without, "nothing is left behind");

    let mut kept: Vec<_> = (0..1_000).map(|_| shutdown.requested_async()).collect();
    let mut report = shutdown.wait_async();
    for future in &mut kept {
        assert!(pin!(future).poll(&mut context).is_pending());
    }
    assert!(pin!(&mut report).poll(&mut context).is_pending());
    shutdown.trigger();
    soon("woken", || count.0.load(Ordering::Relaxed) == 1_001);
    for future in &mut kept {
        assert!(pin!(future).poll(&mut context).is_ready());
    }
    // The first poll after the request starts the end, which needs no further poll.
    assert!(pin!(&mut report).poll(&mut context).is_pending());
    drop(report);
    assert_eq!(Arc::strong_count(&count), without);
    let report = block_on(shutdown.wait_async());
    assert!(report.is_clean(), "{report}");
    // Futures that are made after the end, one of them polled again.
    let mut again = shutdown.wait_async();
    for _ in 0..2 {
        let Poll::Ready(late) = pin!(&mut again).poll(&mut context) else {
            panic!("the shutdown has ended");
        };
        assert_eq!(format!("{late:?}"), format!("{report:?}"));
    }
    exit_with(&report)
}

fn async_signal() -> ! {
    let shutdown = Shutdown::builder()
        .registry(&Registry::new())
        .install()
        .unwrap();
    let asked = shutdown.clone();
    let asking = thread::spawn(move || {
        block_on(asked.requested_async());
        println!("@begun {:?}", asked.signal());
    });
    ready();
    let report = block_on(shutdown.wait_async());
    asking.join().unwrap();
    exit_with(&report)
}
