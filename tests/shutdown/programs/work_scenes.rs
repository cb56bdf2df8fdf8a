//! Scenes of supervised work and the end of a shutdown. They end with status 0 if all is well,
//! unless their test expects another status.

use std::future::pending;
use std::io::Write;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{dup2_stderr, pipe};
use worker_heartbeat::{
    CleanupState, Registry, Restart, Shutdown, ShutdownBuilder, State, Supervisor, WorkerHeartbeat,
};

use super::service::{exit_with, install_log, ready, rest};
use crate::support::executor::{block_on, poll_once};
use crate::support::process::PATIENCE;

const MILLISECOND: Duration = Duration::from_millis(1);
/// How long the work needs to write its buffer: many times the time of a shutdown that does not
/// wait.
const FLUSH: Duration = Duration::from_millis(200);

/// Plays this scene, if it is one of these, and ends the process.
pub(crate) fn play(scene: &str) {
    match scene {
        "thread" => idle_thread(|shutdown| shutdown.wait()),
        "thread-async" => idle_thread(|shutdown| block_on(shutdown.wait_async())),
        "future" => idle_future(false),
        "plain-future" => idle_future(true),
        "destructor" => destructor(),
        "thread-hangs" => thread_hangs(),
        "future-hangs" => future_hangs(),
        "future-dropped" => future_dropped(),
        "futures-not-polled" => futures_not_polled(),
        "restarting" => restarting(),
        "thread-waits" => thread_waits(),
        "future-blocks" => future_blocks(),
        "future-waits" => future_waits(),
        "future-gives-up-waiting" => future_gives_up_waiting(),
        "log-blocks" => log_blocks(),
        "dies" => dies(),
        "gave-up" => gave_up(),
        "exit" => exit_timeout(false),
        "exit-async" => exit_timeout(true),
        "exit-in-time" => exit_in_time(),
        "no-exit-timeout" => no_exit_timeout(),
        "exit-timeout-range" => exit_timeout_range(),
        "no-threads" => no_threads(|| {}),
        "no-threads-stuffed" => no_threads(stuff_stderr),
        _ => {}
    }
}

fn shutdown(registry: &Registry) -> ShutdownBuilder {
    let builder = Shutdown::builder().signals([]).registry(registry);
    builder.timeout(PATIENCE)
}

fn worker(id: &str) -> worker_heartbeat::Builder {
    WorkerHeartbeat::builder("worker").id(id)
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

#[track_caller]
fn soon_idle(registry: &Registry, id: &str) {
    soon("idle", || state(registry, id) == State::Idle);
}

fn state(registry: &Registry, id: &str) -> State {
    registry.get(id).unwrap().health().state()
}

// --- work that was idle -------------------------------------------------------------------------

/// What the work saw when it wrote its buffer: whether the cleanup had run.
type Found = Arc<Mutex<Option<bool>>>;

fn flush(closed: &AtomicBool, found: &Found) {
    // It stands for the work.
    thread::sleep(FLUSH);
    *found.lock().unwrap() = Some(closed.load(Ordering::SeqCst));
}

fn idle_thread(wait: fn(&Shutdown) -> worker_heartbeat::ShutdownReport) -> ! {
    ready();
    let registry = Registry::new();
    let (closed, found) = (Arc::new(AtomicBool::new(false)), Found::default());
    let close = Arc::clone(&closed);
    let shutdown = shutdown(&registry)
        .cleanup("close", move || close.store(true, Ordering::SeqCst))
        .install()
        .unwrap();
    let finds = Arc::clone(&found);
    let writer = Supervisor::new(&registry)
        .spawn(worker("writer"), move |hb| {
            let stop = hb.stop_receiver();
            hb.mark_idle();
            let _ = stop.recv();
            flush(&closed, &finds);
            Ok(())
        })
        .unwrap();
    soon_idle(&registry, "writer");
    shutdown.trigger();
    assert_eq!(state(&registry, "writer"), State::Stopped, "at once");
    let report = wait(&shutdown);
    assert_eq!(*found.lock().unwrap(), Some(false));
    assert!(writer.exit().is_some(), "its exit is known");
    exit_with(&report)
}

fn idle_future(plain: bool) -> ! {
    ready();
    let registry = Registry::new();
    let (closed, found) = (Arc::new(AtomicBool::new(false)), Found::default());
    let close = Arc::clone(&closed);
    let shutdown = shutdown(&registry)
        .cleanup("close", move || close.store(true, Ordering::SeqCst))
        .install()
        .unwrap();
    let finds = Arc::clone(&found);
    let work = async move |hb: &WorkerHeartbeat| {
        hb.mark_idle();
        hb.wait_for_stop().await;
        flush(&closed, &finds);
    };
    if plain {
        let hb = worker("writer").registry(&registry).start().unwrap();
        thread::spawn(move || block_on(hb.supervise(work(&hb))));
    } else {
        let work = Arc::new(work);
        let supervised = Supervisor::new(&registry)
            .supervise(worker("writer"), move |hb| {
                let work = Arc::clone(&work);
                async move { work(&hb).await }
            })
            .unwrap();
        thread::spawn(move || block_on(supervised));
    }
    soon_idle(&registry, "writer");
    shutdown.trigger();
    assert_eq!(state(&registry, "writer"), State::Stopped, "at once");
    let report = shutdown.wait();
    assert_eq!(*found.lock().unwrap(), Some(false));
    exit_with(&report)
}

/// What the work owns is part of it.
fn destructor() -> ! {
    struct Buffer(Found, Arc<AtomicBool>);
    impl Drop for Buffer {
        fn drop(&mut self) {
            flush(&self.1, &self.0);
        }
    }
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let found = Found::default();
    let buffer = Buffer(Arc::clone(&found), Arc::default());
    Supervisor::new(&registry)
        .spawn(worker("writer"), move |hb| {
            let _held = &buffer;
            let stop = hb.stop_receiver();
            hb.mark_idle();
            let _ = stop.recv();
            Ok(())
        })
        .unwrap();
    soon_idle(&registry, "writer");
    shutdown.trigger();
    let report = shutdown.wait();
    assert_eq!(*found.lock().unwrap(), Some(false));
    exit_with(&report)
}

/// No waker waits for the log, and the end of the work waits only for a moment.
fn log_blocks() -> ! {
    ready();
    let registries = [Registry::new(), Registry::new()];
    let [one, two] = &registries;
    let shutdown = shutdown(one).registry(two).install().unwrap();
    install_log("block");
    let (ended, ends) = channel();
    for registry in &registries {
        let said = ended.clone();
        Supervisor::new(registry)
            .spawn(worker("thread"), move |hb| {
                let _task = hb.begin_task("run-1", "writing");
                let _ = hb.stop_receiver().recv();
                said.send("thread")?;
                Ok(())
            })
            .unwrap();
        let said = ended.clone();
        let hb = worker("future").registry(registry).start().unwrap();
        thread::spawn(move || {
            block_on(hb.supervise(async {
                let _task = hb.begin_task("run-2", "writing");
                hb.wait_for_stop().await;
                said.send("future").unwrap();
            }))
        });
        for id in ["thread", "future"] {
            soon("at work", || state(registry, id) == State::Processing);
        }
    }
    shutdown.trigger();
    let mut ended: Vec<_> = ends.iter().take(4).collect();
    ended.sort_unstable();
    assert_eq!(ended, ["future", "future", "thread", "thread"]);
    exit_with(&shutdown.wait())
}

// --- work that does not return ------------------------------------------------------------------

fn thread_hangs() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry)
        .cleanup("close", || {})
        .install()
        .unwrap();
    Supervisor::new(&registry)
        .spawn(worker("deaf"), |hb| {
            hb.mark_idle();
            rest()
        })
        .unwrap();
    soon_idle(&registry, "deaf");
    shutdown.trigger();
    let report = shutdown.wait();
    println!("@summary: {report}");
    assert!(report.is_clean());
    assert_eq!(report.unreturned, ["deaf"]);
    assert_eq!(state(&registry, "deaf"), State::Stopped);
    assert_eq!(report.cleanups[0].state, CleanupState::Completed);
    assert!(
        report.took < PATIENCE / 2,
        "a quarter of the timeout at most"
    );
    exit_with(&report)
}

fn future_hangs() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry)
        .timeout(Duration::from_millis(500))
        .install()
        .unwrap();
    let hb = worker("deaf").registry(&registry).start().unwrap();
    let mut held = Box::pin(hb.supervise(async {
        hb.mark_idle();
        pending::<()>().await;
    }));
    assert!(!poll_once(&mut held.as_mut()).is_ready());
    shutdown.trigger();
    let report = shutdown.wait();
    assert_eq!(report.unreturned, ["deaf"]);
    drop(held);
    exit_with(&report)
}

/// A runtime that is shut down drops its tasks.
fn future_dropped() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let supervised = Supervisor::new(&registry)
        .supervise(worker("deaf"), |hb| async move {
            hb.mark_idle();
            pending::<()>().await;
        })
        .unwrap();
    let mut supervised = Box::pin(supervised);
    assert!(!poll_once(&mut supervised.as_mut()).is_ready());
    soon_idle(&registry, "deaf");
    let waits = shutdown.clone();
    let waiting = thread::spawn(move || waits.wait());
    shutdown.trigger();
    // As long as a shutdown takes that does not wait.
    thread::sleep(FLUSH);
    assert!(!waiting.is_finished(), "the future still exists");
    drop(supervised);
    exit_with(&waiting.join().unwrap())
}

/// A future that was never polled has not started; one that has ended has returned, whether it is
/// kept or not.
fn futures_not_polled() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let [one, two] = ["one", "two"].map(|id| worker(id).registry(&registry).start().unwrap());
    one.mark_idle();
    let never = one.supervise(pending::<()>());
    let mut over = Box::pin(two.supervise(async {}));
    assert!(poll_once(&mut over.as_mut()).is_ready());
    shutdown.trigger();
    let report = shutdown.wait();
    drop((never, over));
    exit_with(&report)
}

/// Between two lives no work runs: the shutdown does not wait for a restart.
fn restarting() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let hour = Duration::from_secs(3600);
    let restart = worker_heartbeat::Restart::on_failure().backoff(hour, hour);
    let supervised = Supervisor::new(&registry)
        .restart(restart)
        .supervise(worker("failing"), |_| async { Err::<(), _>("at once") })
        .unwrap();
    let mut supervised = Box::pin(supervised);
    assert!(!poll_once(&mut supervised.as_mut()).is_ready());
    shutdown.trigger();
    let report = shutdown.wait();
    drop(supervised);
    exit_with(&report)
}

// --- work that waits for the shutdown itself ----------------------------------------------------

/// A worker that ends the process, because it lost its lock, say. The main thread waits as well.
fn thread_waits() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry)
        .cleanup("close", || println!("@cleaned up"))
        .install()
        .unwrap();
    let waits = shutdown.clone();
    let (idle, at_task) = (worker("idle"), worker("at-task"));
    let supervisor = Supervisor::new(&registry);
    let (said, says): (Sender<bool>, Receiver<bool>) = channel();
    let says_too = said.clone();
    let other = shutdown.clone();
    supervisor
        .spawn(idle, move |hb| {
            hb.mark_idle();
            said.send(other.wait().is_clean())?;
            Ok(())
        })
        .unwrap();
    supervisor
        .spawn(at_task, move |hb| {
            let _task = hb.begin_task("run-1", "its last one");
            waits.trigger();
            says_too.send(waits.wait().is_clean())?;
            Ok(())
        })
        .unwrap();
    let report = shutdown.wait();
    for _ in 0..2 {
        assert!(says.recv_timeout(PATIENCE).unwrap());
    }
    exit_with(&report)
}

/// A future blocks its executor's thread with the wait.
fn future_blocks() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let hb = worker("blocks").registry(&registry).start().unwrap();
    let report = block_on(hb.supervise(async {
        let _task = hb.begin_task("run-1", "its last one");
        shutdown.trigger();
        shutdown.wait().is_clean()
    }));
    assert!(report.unwrap());
    exit_with(&shutdown.wait())
}

fn future_waits() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let waits = shutdown.clone();
    let supervised = Supervisor::new(&registry)
        .supervise(worker("waits"), move |hb| {
            let waits = waits.clone();
            async move {
                hb.mark_idle();
                assert!(waits.wait_async().await.is_clean());
            }
        })
        .unwrap();
    let running = thread::spawn(move || block_on(supervised));
    soon_idle(&registry, "waits");
    shutdown.trigger();
    let report = shutdown.wait();
    assert!(running.join().unwrap().is_completed());
    exit_with(&report)
}

/// It stopped waiting for the shutdown: now the shutdown waits for it again.
fn future_gives_up_waiting() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let hb = worker("writer").registry(&registry).start().unwrap();
    let (waits, found) = (shutdown.clone(), Found::default());
    let finds = Arc::clone(&found);
    thread::spawn(move || {
        block_on(hb.supervise(async {
            {
                let mut waiting = pin!(waits.wait_async());
                assert!(!poll_once(&mut waiting.as_mut()).is_ready());
            }
            hb.mark_idle();
            hb.wait_for_stop().await;
            flush(&AtomicBool::new(false), &finds);
        }))
    });
    soon_idle(&registry, "writer");
    shutdown.trigger();
    let report = shutdown.wait();
    assert_eq!(*found.lock().unwrap(), Some(false));
    exit_with(&report)
}

// --- no more threads ----------------------------------------------------------------------------

/// A worker hangs, and no thread can be started: two that a shutdown would start are missing.
fn no_threads(before: impl FnOnce()) -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = Shutdown::builder()
        .registry(&registry)
        .timeout(Duration::from_millis(500))
        .install()
        .unwrap();
    let hb = worker("stuck").registry(&registry).start().unwrap();
    let _task = hb.begin_task("run-1", "hangs");
    install_log("block");
    before();
    // No room for the stack of another thread.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let size = size.unwrap().trim().trim_end_matches(" kB");
    let limit = (size.parse::<u64>().unwrap() + 256) * 1024;
    setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();
    while thread::Builder::new().spawn(|| rest()).is_ok() {}
    println!("@no threads {}", shutdown.signals().len());
    rest()
}

/// Makes stderr a pipe that is full and not read.
fn stuff_stderr() {
    const CAPACITY: usize = 65_536;
    let (reader, writer) = pipe().unwrap();
    dup2_stderr(writer).unwrap();
    std::mem::forget(reader);
    std::io::stderr().write_all(&[b'.'; CAPACITY]).unwrap();
}

// --- after the report ---------------------------------------------------------------------------

const MOMENT: Duration = Duration::from_millis(300);

/// The process stays, since a blocking task of its runtime does.
fn exit_timeout(wait_async: bool) -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).exit_timeout(MOMENT).install().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.spawn_blocking(|| rest());
    shutdown.trigger();
    let report = if wait_async {
        runtime.block_on(shutdown.wait_async())
    } else {
        shutdown.wait()
    };
    println!("@summary: {report}");
    drop(runtime);
    std::process::exit(0)
}

fn exit_in_time() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry)
        .exit_timeout(PATIENCE)
        .install()
        .unwrap();
    shutdown.trigger();
    exit_with(&shutdown.wait())
}

/// `main` has a report to write.
fn no_exit_timeout() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).timeout(MOMENT).install().unwrap();
    shutdown.trigger();
    let report = shutdown.wait();
    // It stands for the writing, and takes longer than all timeouts.
    thread::sleep(3 * MOMENT);
    exit_with(&report)
}

fn exit_timeout_range() -> ! {
    ready();
    for timeout in [Duration::ZERO, Duration::MAX] {
        let refused = Shutdown::builder().exit_timeout(timeout).install();
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("exit_timeout"), "{error}");
    }
    std::process::exit(0)
}

// --- workers that die while they stop -----------------------------------------------------------

fn dies() -> ! {
    ready();
    let registry = Registry::new();
    let shutdown = shutdown(&registry).install().unwrap();
    let supervisor = Supervisor::new(&registry);
    // It died before: the shutdown does not report it.
    supervisor
        .spawn(worker("earlier"), |_| Err("at once".into()))
        .unwrap()
        .join();
    supervisor
        .spawn(worker("panics"), |hb| {
            let _task = hb.begin_task("run-1", "writing what is left");
            let _ = hb.stop_receiver().recv();
            panic!("the disk is full")
        })
        .unwrap();
    // It is shown as stopped at once, and fails after that.
    supervisor
        .spawn(worker("fails"), |hb| {
            hb.mark_idle();
            let _ = hb.stop_receiver().recv();
            thread::sleep(FLUSH);
            Err("no route to host".into())
        })
        .unwrap();
    let hb = worker("gives-up").registry(&registry).start().unwrap();
    hb.beat();
    let idle = worker("well").registry(&registry).start().unwrap();
    idle.mark_idle();
    soon("at work", || {
        state(&registry, "panics") == State::Processing
    });
    soon_idle(&registry, "fails");
    shutdown.trigger();
    hb.fail("no answer");
    let report = shutdown.wait();
    let mut died: Vec<_> = report.died.iter().map(ToString::to_string).collect();
    died.sort_unstable();
    let [fails, gives_up, panics] = &died[..] else {
        panic!("{died:?}")
    };
    assert_eq!(fails, "fails (failed: no route to host)");
    assert_eq!(gives_up, "gives-up (failed: no answer)");
    assert!(panics.contains("the disk is full, during run-1 (writing what is left))"));
    let words = report.to_string();
    assert!(words.starts_with("shutdown by the application, clean, took "));
    assert!(died.iter().all(|died| words.contains(died)), "{words}");

    let stopped = supervisor.shutdown(PATIENCE);
    let mut died: Vec<_> = stopped.died.iter().map(|died| &*died.id).collect();
    died.sort_unstable();
    assert_eq!(died, ["fails", "panics"], "{stopped:?}");
    exit_with(&report)
}

/// A worker was given up before the shutdown: the service did not do its work, however clean its end.
fn gave_up() -> ! {
    let registry = Registry::new();
    let shutdown = Shutdown::builder().registry(&registry).timeout(PATIENCE);
    let shutdown = shutdown.install().unwrap();
    let supervisor = Supervisor::new(&registry).restart(Restart::on_failure().max(0));
    let worker = |id: &str| WorkerHeartbeat::builder("worker").id(id);
    let well = supervisor
        .spawn(worker("well").finite(), |_| Ok(()))
        .unwrap();
    assert!(well.join().is_completed());
    let failing = supervisor.spawn(worker("failing"), |_| Err("no route to host".into()));
    assert!(!failing.unwrap().join().is_completed());
    ready();
    shutdown.trigger();
    let report = shutdown.wait();
    assert!(report.is_clean(), "{report}");
    let given_up: Vec<_> = report.gave_up.iter().map(|worker| &*worker.id).collect();
    assert_eq!(given_up, ["failing"]);
    let words = "given up before: failing (failed: no route to host)";
    assert!(report.to_string().contains(words), "{report}");
    let code = format!("{:?}", report.exit_code());
    assert_eq!(code, format!("{:?}", std::process::ExitCode::FAILURE));
    std::process::exit(7)
}
