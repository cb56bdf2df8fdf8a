//! Nothing is left of workers that have ended: no memory, no thread, no open file.
//!
//! One test, alone in its program: it counts the usage of the whole process. Memory is counted in
//! live allocations: a reused buffer and a growing table remain one allocation, while records that
//! are kept for each worker make thousands. Bytes are counted for what has no allocation of its
//! own, such as an entry in a table.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt;
use std::fs;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    Activity, Builder, Health, MockClock, Registry, Restart, Shutdown, State, Summary, Supervisor,
    WorkerHeartbeat,
};

/// How many workers register and end in each round.
const WORKERS: usize = 5_000;
/// Rounds that fill tables and reused buffers.
const WARM_UP: usize = 2;
/// Rounds that must add nothing.
const MEASURED: usize = 3;
/// How many more allocations there may be: one for each 150 workers. What the process itself keeps
/// for the highest number of concurrent threads depends on the scheduler.
const MORE_ALLOCATIONS: isize = (MEASURED * WORKERS / 150) as isize;
/// By how many bytes tables may grow. One with a pointer for each worker has room for 16,384 after
/// the warm-up rounds, and for 32,768 at the end: 128 KiB more. `parking_lot` doubles its own table
/// with the highest number of concurrent threads, by some 20 KiB.
const MORE_BYTES: isize = 96 * 1024;
/// How long anything may take, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);

// --- the usage of the process

struct Counting;

static LIVE_ALLOCATIONS: AtomicIsize = AtomicIsize::new(0);
static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

fn count(allocations: isize, bytes: isize) {
    LIVE_ALLOCATIONS.fetch_add(allocations, Ordering::Relaxed);
    LIVE_BYTES.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: every call is passed to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-1, -(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(0, size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The usage of the process at one moment.
#[derive(Clone, Copy, Debug)]
struct Usage {
    threads: usize,
    files: usize,
    allocations: isize,
    bytes: isize,
}

impl Usage {
    fn now() -> Self {
        let entries = |folder: &str| fs::read_dir(folder).unwrap().count();
        Self {
            threads: entries("/proc/self/task"),
            files: entries("/proc/self/fd"),
            allocations: LIVE_ALLOCATIONS.load(Ordering::Relaxed),
            bytes: LIVE_BYTES.load(Ordering::Relaxed),
        }
    }

    /// The growth since that moment, once all threads that are ending have ended.
    fn growth_since(before: Self) -> Growth {
        let deadline = Instant::now() + PATIENCE / 3;
        loop {
            let now = Self::now();
            let growth = Growth {
                threads: now.threads as isize - before.threads as isize,
                files: now.files as isize - before.files as isize,
                allocations: now.allocations - before.allocations,
                bytes: now.bytes - before.bytes,
            };
            if growth.is_none() || Instant::now() >= deadline {
                return growth;
            }
            // The kernel takes a moment to remove a thread that was joined.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Growth {
    threads: isize,
    files: isize,
    allocations: isize,
    bytes: isize,
}

impl Growth {
    fn is_none(self) -> bool {
        self.threads <= 0
            && self.files <= 0
            && self.allocations <= MORE_ALLOCATIONS
            && self.bytes <= MORE_BYTES
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            threads,
            files,
            allocations,
            bytes,
        } = self;
        write!(
            f,
            "{allocations:+} allocations, {bytes:+} bytes, {threads:+} threads, {files:+} files"
        )
    }
}

/// The growth that was found.
#[derive(Default)]
struct Leaks(Vec<String>);

impl Leaks {
    /// Repeats the same work, and records the growth over the last rounds.
    fn hunt(&mut self, what: &str, mut round: impl FnMut(usize)) {
        let started = Instant::now();
        (0..WARM_UP).for_each(&mut round);
        let before = Usage::now();
        (WARM_UP..WARM_UP + MEASURED).for_each(&mut round);
        let growth = Usage::growth_since(before);
        println!("{what}: {growth}, in {:.1?}", started.elapsed());
        if !growth.is_none() {
            self.0.push(format!("{what}: {growth}"));
        }
    }
}

// --- workers ------------------------------------------------------------------------------------

#[test]
fn nothing_is_left_of_workers_that_ended() {
    // Supervised work panics here on purpose, and thousands of call stacks would only take time.
    std::panic::set_hook(Box::new(|_| {}));
    // The names of calls that were once shown in a call stack are kept, up to a limit.
    stalls(&mut Leaks::default());
    let mut leaks = Leaks::default();
    let before = Usage::now();

    handles(&mut leaks);
    successors(&mut leaks);
    tombstones(&mut leaks);
    supervised_threads(&mut leaks);
    supervised_futures(&mut leaks);
    cancelled_backoffs(&mut leaks);
    waits_for_stop(&mut leaks);
    stalls(&mut leaks);
    registries(&mut leaks);

    // All registries are dropped, and with them all that they knew.
    let growth = Usage::growth_since(before);
    println!("all in all: {growth}");
    if !growth.is_none() {
        leaks.0.push(format!("all in all: {growth}"));
    }
    shutdown_receivers(&mut leaks);

    // The panic of this test reports the growth, and must be printed.
    drop(std::panic::take_hook());
    assert!(leaks.0.is_empty(), "{:#?}", leaks.0);
}

fn worker(registry: &Registry) -> Builder {
    WorkerHeartbeat::builder("worker").registry(registry)
}

/// Keeps a registry's pacemaker running.
fn keeper(registry: &Registry) -> WorkerHeartbeat {
    let keeper = worker(registry).id("keeper").start().unwrap();
    keeper.mark_idle();
    keeper
}

fn purge(registry: &Registry) {
    registry.purge(Duration::ZERO);
}

/// Handles with every feature of a worker, under names that were never used before.
fn handles(leaks: &mut Leaks) {
    let registry = Registry::new();
    let keeper = keeper(&registry);
    leaks.hunt("handles", |round| {
        for n in 0..WORKERS {
            let hb = WorkerHeartbeat::builder(format!("type-{round}-{n}"))
                .id(format!("id-{round}-{n}"))
                .group(format!("group-{round}-{n}"))
                .metadata("version", "1.4.2")
                .stale_after(HOUR + Duration::from_nanos(n as u64))
                .registry(&registry)
                .start()
                .unwrap();
            let probe = hb.probe();
            hb.update_task("run-1", "Researching example.com", Activity::Processing);
            hb.begin_task("run-2", "Researching example.org")
                .progress(3, 10);
            let quiet = hb.expect_silence(HOUR);
            drop(hb.expect_silence(2 * HOUR));
            drop(quiet);
            match n % 4 {
                0 => hb.stop(),
                1 => hb.fail("no route to host"),
                _ => {}
            }
            hb.mark_idle();
            assert!(hb.snapshot().health.state() != State::Starting);
            drop(hb);
            assert!(probe.health().state().is_terminal());
            if n % 1_000 == 999 {
                assert!(registry.sweep().success);
                purge(&registry);
                assert_eq!(registry.workers().len(), 1);
            }
        }
    });
    drop(keeper);
}

/// Each worker takes the id of the one before, sometimes while that one still has its handle.
fn successors(leaks: &mut Leaks) {
    let registry = Registry::new();
    let _keeper = keeper(&registry);
    leaks.hunt("successors", |_| {
        let mut last = None;
        for n in 0..WORKERS {
            let id = format!("id-{}", n % 7);
            let hb = worker(&registry).id(id).start().unwrap();
            drop(hb.begin_task("run-1", "inheriting"));
            if n % 2 == 0 {
                hb.fail("no heir");
            } else {
                hb.stop();
            }
            last = Some(hb);
        }
        drop(last);
        assert_eq!(registry.workers().len(), 8);
    });
}

/// Nothing is purged. Dead and stopped workers stay visible, up to their limits.
fn tombstones(leaks: &mut Leaks) {
    const MOST_DEAD: usize = 1_024;
    const MOST_STOPPED: usize = 256;
    let registry = Registry::new();
    let keeper = keeper(&registry);
    let dead = |summary: &Summary| summary.states.get(State::Dead);
    let stopped = |summary: &Summary| summary.states.get(State::Stopped);

    for n in 0..MOST_DEAD {
        worker(&registry)
            .id(format!("early-{n}"))
            .start()
            .unwrap()
            .fail("early");
    }
    for _ in 0..WORKERS {
        worker(&registry).start().unwrap().stop();
    }
    let summary = registry.summary();
    assert_eq!(dead(&summary), MOST_DEAD, "the stopped displace no dead");
    assert_eq!(stopped(&summary), MOST_STOPPED);
    assert_eq!(summary.total, MOST_DEAD + MOST_STOPPED + 1);
    assert_eq!(summary.forgotten, (WORKERS - MOST_STOPPED) as u64);
    assert_eq!(registry.workers().len(), summary.total);
    assert!(registry.get("early-0").is_some());
    worker(&registry).start().unwrap().fail("one too many");
    assert!(
        registry.get("early-0").is_none(),
        "the oldest is removed first"
    );
    assert!(registry.get("early-1").is_some());

    leaks.hunt("tombstones", |_| {
        for n in 0..WORKERS {
            let hb = worker(&registry).start().unwrap();
            hb.update_task("run-1", "dying", Activity::Processing);
            if n % 2 == 0 {
                hb.fail("no route to host");
            }
        }
    });
    let summary = registry.summary();
    assert_eq!(dead(&summary), MOST_DEAD);
    assert_eq!(stopped(&summary), MOST_STOPPED);
    let ended = MOST_DEAD + 1 + WORKERS + (WARM_UP + MEASURED) * WORKERS;
    assert_eq!(summary.forgotten, (ended - MOST_DEAD - MOST_STOPPED) as u64);
    assert_eq!(registry.purge(HOUR), 0);
    assert_eq!(registry.purge(Duration::ZERO), MOST_DEAD + MOST_STOPPED);
    assert_eq!(registry.summary().total, 1);
    assert!(keeper.is_recent());
}

/// Threads that complete, fail, panic and are started again.
fn supervised_threads(leaks: &mut Leaks) {
    const BATCH: usize = 50;
    let registry = Registry::new();
    let _keeper = keeper(&registry);
    let restart = Restart::on_failure()
        .max(1)
        .backoff(Duration::ZERO, Duration::ZERO);
    let supervisor = Supervisor::new(&registry).restart(restart);
    leaks.hunt("supervised threads", |_| {
        for batch in 0..WORKERS / BATCH {
            let spawn = |n| {
                let work = move |hb: &WorkerHeartbeat| {
                    let _task = hb.begin_task("run-1", "ending");
                    match (batch + n) % 10 {
                        0 => panic!("no module named server"),
                        1 => Err("no route to host".into()),
                        _ => Ok(()),
                    }
                };
                supervisor.spawn(worker(&registry).finite(), work).unwrap()
            };
            let workers: Vec<_> = (0..BATCH).map(spawn).collect();
            for worker in workers {
                worker.join();
            }
            purge(&registry);
        }
        // With each worker that it starts, a supervisor forgets those that have ended. How many of
        // the last batch had ended by then is chance.
        let last = supervisor.spawn(worker(&registry).finite(), |_| Ok(()));
        last.unwrap().join();
        purge(&registry);
        assert_eq!(registry.workers().len(), 1);
    });
    assert!(supervisor.shutdown(Duration::ZERO).is_clean());
}

/// A waker of its own for each task, as executors have it. It takes some memory.
fn new_waker() -> Waker {
    struct Task([u8; 64]);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            std::hint::black_box(self.0);
        }
    }
    Waker::from(Arc::new(Task([0; 64])))
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&new_waker()))
}

/// Futures that complete, fail, panic, and are dropped before, during and between their polls.
fn supervised_futures(leaks: &mut Leaks) {
    let registry = Registry::new();
    let _keeper = keeper(&registry);
    let supervisor = Supervisor::new(&registry);
    leaks.hunt("supervised futures", |_| {
        for n in 0..WORKERS {
            let hb = worker(&registry).start().unwrap();
            let kind = n % 5;
            let supervised = hb.supervise(async move {
                match kind {
                    0 => panic!("no module named server"),
                    1 => Err("no route to host"),
                    2 => std::future::pending().await,
                    _ => Ok(()),
                }
            });
            drop(hb);
            let mut supervised = pin!(supervised);
            if kind < 4 {
                let polled = poll_once(supervised.as_mut());
                assert_eq!(polled.is_pending(), kind == 2);
            }
            // The same with restarts, which never happen.
            let again = supervisor.supervise(worker(&registry), move |hb| async move {
                hb.beat();
                match kind {
                    0 => panic!("no module named server"),
                    2 => hb.wait_for_stop().await,
                    _ => {}
                }
            });
            let polled = poll_once(pin!(again.unwrap()));
            assert_eq!(polled.is_pending(), kind == 2);
            if n % 100 == 99 {
                purge(&registry);
            }
        }
        purge(&registry);
    });
}

/// Futures that are dropped while they wait for their restart.
fn cancelled_backoffs(leaks: &mut Leaks) {
    let registry = Registry::new();
    let _keeper = keeper(&registry);
    let restart = Restart::always().max(u32::MAX).backoff(HOUR, HOUR);
    let supervisor = Supervisor::new(&registry).restart(restart);
    leaks.hunt("cancelled backoffs", |_| {
        for n in 0..WORKERS {
            let failing = supervisor.supervise(worker(&registry), |_| async { Err::<(), _>("no") });
            assert!(poll_once(pin!(failing.unwrap())).is_pending());
            if n % 1_000 == 999 {
                purge(&registry);
            }
        }
    });
}

/// Many tasks, one after another, that would end if one long-lived worker were asked to stop.
fn waits_for_stop(leaks: &mut Leaks) {
    let registry = Registry::new();
    let keeper = keeper(&registry);
    leaks.hunt("waits for stop", |_| {
        for _ in 0..WORKERS {
            assert!(poll_once(pin!(keeper.wait_for_stop())).is_pending());
        }
    });
    leaks.hunt("stop receivers", |_| {
        for _ in 0..WORKERS {
            assert!(keeper.stop_receiver().is_empty());
        }
    });
}

/// Evidence about stalled workers is read from files.
fn stalls(leaks: &mut Leaks) {
    const STALLED: usize = 20;
    let registry = Registry::new();
    leaks.hunt("stalls", |_| {
        let stalled: Vec<_> = (0..STALLED)
            .map(|_| {
                let stall_after = Duration::from_millis(10);
                let hb = worker(&registry).stall_after(stall_after).start().unwrap();
                hb.update_task("run-1", "hanging", Activity::Processing);
                hb
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while !stalled
            .iter()
            .all(|hb| matches!(hb.health(), Health::Stalled(_)))
        {
            assert!(Instant::now() < deadline, "{}", registry.summary());
        }
        drop(stalled);
        purge(&registry);
    });
}

/// Registries, each with its pacemaker, some on a clock of their own.
fn registries(leaks: &mut Leaks) {
    const EACH: usize = 50;
    leaks.hunt("registries", |_| {
        let started = Instant::now();
        for n in 0..WORKERS / EACH {
            let time = MockClock::new();
            let registry = if n % 2 == 0 {
                Registry::new()
            } else {
                Registry::with_clock(time.clock())
            };
            registry.expect_workers("worker", EACH);
            let events = registry.subscribe();
            let start = |_| worker(&registry).start().unwrap();
            let workers: Vec<_> = (0..EACH).map(start).collect();
            let probe = workers[0].probe();
            workers[1].fail("no route to host");
            time.advance(HOUR);
            drop(workers);
            assert_eq!(registry.summary().states.get(State::Dead), 1);
            drop(registry);
            assert_eq!(
                probe.health().state(),
                State::Stopped,
                "it keeps what it shows"
            );
            assert!(events.try_recv().is_ok());
            let took = started.elapsed();
            assert!(took < PATIENCE, "{n} pacemakers ended in {took:.1?}");
        }
    });
}

/// Channels for a shutdown that never happens.
fn shutdown_receivers(leaks: &mut Leaks) {
    let shutdown = Shutdown::builder().signals([]).install().unwrap();
    leaks.hunt("shutdown receivers", |_| {
        for _ in 0..WORKERS {
            assert!(shutdown.receiver().is_empty());
        }
    });
}
