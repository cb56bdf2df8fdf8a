//! Log implementations, subscribers and wakers that misbehave.

use std::cell::Cell;
use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use worker_heartbeat::{Activity, BoxError, Registry, Restart, State, Supervisor, WorkerHeartbeat};

use crate::fixtures::{ALL_EVENTS, Gate, log_with, on_pacemaker, promptly, worker};
use crate::support::process::in_child;
use crate::support::{SECOND, World, eventually, names, pacemakers};

/// Produces every kind of event, and asserts that subscribers receive each of them.
fn produce_every_event(world: &World) {
    let events = world.registry.subscribe_with_capacity(ALL_EVENTS);
    let mut received = Vec::new();
    let mut expect = |world: &World, wanted: &str| {
        eventually(wanted, || {
            world.millis(100);
            received.extend(names(&events));
            let found = received.iter().position(|name| name == wanted);
            // Earlier events are discarded.
            found.is_some_and(|at| received.drain(..=at).count() > 0)
        });
    };
    world.registry.expect_workers("w", 2);
    let hb = world.worker("w").stall_after(10 * SECOND).start().unwrap();
    expect(world, "registered");
    expect(world, "missing");
    hb.update_task("run", "task", Activity::Processing);
    expect(world, "started");
    expect(world, "late");
    expect(world, "stalled");
    hb.beat();
    expect(world, "recovered from stalled");
    let silent = world.worker("w").startup_grace(SECOND).start().unwrap();
    expect(world, "complete");
    expect(world, "never_started");
    silent.beat();
    expect(world, "recovered from never_started");
    let alone = world
        .worker("x")
        .stale_after(60 * SECOND)
        .beats_only()
        .start()
        .unwrap();
    alone.beat();
    expect(world, "stale");
    world.time.suspend(3_600 * SECOND);
    expect(world, "unobserved");
    let fell = catch_unwind(AssertUnwindSafe(|| {
        let _hb = silent;
        resume_unwind(Box::new("simulated panic"))
    }));
    assert!(fell.is_err());
    expect(world, "dead");
    hb.stop();
    expect(world, "stopped");

    let supervisor = Supervisor::new(&world.registry).restart(Restart::on_failure().max(1));
    let failing = |_: &WorkerHeartbeat| -> Result<(), BoxError> { Err("simulated failure".into()) };
    let failing = supervisor.spawn(world.worker("w"), failing).unwrap();
    expect(world, "restart 1");
    expect(world, "gaveup");
    failing.join();
    let obedient = supervisor.spawn(world.worker("w"), |hb| {
        while !hb.stop_requested() {
            thread::yield_now();
        }
        Ok(())
    });
    let obedient = obedient.unwrap();
    obedient.stop();
    expect(world, "stopping");
    obedient.join();
    assert_eq!(obedient.probe().health().state(), State::Stopped);
    drop((hb, alone));
    world.registry.expect_workers("w", 0);
}

/// A payload that panics when it is dropped, and again when that payload is.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 && !thread::panicking() {
            resume_unwind(Box::new(Bomb(self.0 - 1)));
        }
    }
}

/// A log implementation that panics at every line, with payloads that panic when they are dropped:
/// no thread dies of it, and subscribers miss no event.
#[test]
fn a_log_that_panics() {
    let play = || {
        let lines = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let counted = Arc::clone(&lines);
        log_with(move |_| {
            let (by_pacemaker, by_others) = &*counted;
            let counter = if on_pacemaker() {
                by_pacemaker
            } else {
                by_others
            };
            counter.fetch_add(1, Ordering::Relaxed);
            // Without the hook, which would write to the log that panics.
            resume_unwind(Box::new(Bomb(2)));
        });
        let world = World::new();
        for _ in 0..3 {
            produce_every_event(&world);
        }
        let (by_pacemaker, by_others) = &*lines;
        assert!(by_pacemaker.load(Ordering::Relaxed) > 20, "{lines:?}");
        assert!(by_others.load(Ordering::Relaxed) > 20, "{lines:?}");
        // The registry expected workers, so its pacemaker stays as long as it does.
        drop(world);
        eventually("no pacemaker", || pacemakers().is_empty());
    };
    in_child(play);
}

/// A log implementation that calls back into the registry in every way, on each thread that logs:
/// it reads, beats, registers, stops, drops, subscribes, sweeps. No thread waits for itself.
#[test]
fn a_log_that_calls_back() {
    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }
    let play = || {
        let world = Arc::new(World::new());
        let scribe = Arc::new(world.worker("scribe").start().unwrap());
        let (lines, spare) = (Arc::new(AtomicUsize::new(0)), Mutex::new(Vec::new()));
        let (there, counted) = (Arc::clone(&world), Arc::clone(&lines));
        log_with(move |_| {
            if INSIDE.replace(true) {
                return;
            }
            let registry = &there.registry;
            let turn = counted.fetch_add(1, Ordering::Relaxed);
            scribe.beat();
            scribe.update_task("run", "log", Activity::Processing);
            drop(scribe.begin_task("another", "log"));
            drop(scribe.expect_silence(SECOND));
            let _ = (scribe.health(), scribe.is_recent(), scribe.last_heartbeat());
            for probe in registry.workers() {
                let _ = probe.snapshot().to_string();
                let _ = registry.get(probe.id()).map(|probe| probe.health());
            }
            let _ = registry.summary().to_string();
            let _ = registry.group("local");
            if turn % 8 == 0 {
                let _ = registry.sweep();
                registry.purge(3_600 * SECOND);
                registry.expect_workers("unknown", turn % 3);
            }
            let events = registry.subscribe();
            let mut spare = spare.lock().unwrap();
            let hb = there.worker("spare").stall_after(SECOND).start().unwrap();
            hb.beat();
            if turn % 2 == 0 {
                hb.stop();
            }
            spare.push((hb, events));
            if spare.len() > 3 {
                spare.clear();
            }
            drop(spare);
            INSIDE.set(false);
        });
        for _ in 0..3 {
            produce_every_event(&world);
        }
        assert!(lines.load(Ordering::Relaxed) > 50, "{lines:?}");
        assert!(pacemakers().len() == 1);
    };
    in_child(play);
}

/// Subscribers that never read, ones that are dropped in the middle, one that keeps only the
/// channel, and one on a thread that hangs: no publisher waits for any of them, each keeps what it
/// has room for, and the one that reads receives every event.
#[test]
fn subscribers_that_do_not_read() {
    let play = || {
        const WORKERS: usize = 5_000;
        let world = World::new();
        let _anchor = world.worker("anchor").start().unwrap();
        let all = world.registry.subscribe_with_capacity(4 * WORKERS);
        let never: Vec<_> = (1..=50)
            .map(|capacity| (capacity, world.registry.subscribe_with_capacity(capacity)))
            .collect();
        let channel = world.registry.subscribe().receiver().clone();
        let gate = Arc::new(Gate::default());
        gate.close();
        let (hangs, at_gate) = (world.registry.subscribe(), Arc::clone(&gate));
        let hanging = thread::spawn(move || {
            let first = hangs.recv();
            at_gate.pass();
            (first.is_ok(), hangs.dropped())
        });
        let over = Arc::new(AtomicBool::new(false));
        let (fickle, registry) = (Arc::clone(&over), world.registry.clone());
        let fickle = thread::spawn(move || {
            while !fickle.load(Ordering::Relaxed) {
                let some: Vec<_> = (0..10)
                    .map(|_| registry.subscribe_with_capacity(2))
                    .collect();
                let _ = some[3].try_recv();
                drop(some);
            }
        });
        for _ in 0..WORKERS {
            let hb = world.worker("w").start().unwrap();
            hb.beat();
            drop(hb);
        }
        over.store(true, Ordering::Relaxed);
        fickle.join().unwrap();
        let received = names(&all);
        assert_eq!(all.dropped(), 0);
        for wanted in ["registered", "stopped"] {
            assert_eq!(
                received.iter().filter(|name| *name == wanted).count(),
                WORKERS
            );
        }
        for (capacity, never) in never {
            assert_eq!(never.dropped(), (received.len() - capacity) as u64);
            assert_eq!(names(&never), received[received.len() - capacity..]);
        }
        assert!(
            channel.try_iter().count() <= 1_024,
            "a dropped subscription receives no more events"
        );
        gate.open();
        let (received_any, dropped) = hanging.join().unwrap();
        assert!(received_any && dropped > 0);
    };
    in_child(play);
}

/// Runs a closure when it is woken.
struct OnWake<F>(F);

impl<F: Fn() + Send + Sync> Wake for OnWake<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Runs a closure when it is dropped.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn waker(act: impl Fn() + Send + Sync + 'static) -> Waker {
    Waker::from(Arc::new(OnWake(act)))
}

/// A future that waits for its stop is woken by the thread that requests the stop. An executor that
/// polls inside the wake, or whose waker reads the worker, waits for no lock; one that hangs blocks
/// only the requesting thread; one that panics harms no other thread. The same holds for a waker
/// that reads the worker when it is dropped, whether another waker replaces it or none.
#[test]
fn wakers_that_misbehave() {
    let play = || {
        let registry = Registry::new();
        let gate = Arc::new(Gate::default());
        let supervise = |id: &str| {
            let supervisor = Supervisor::new(&registry);
            let (give, given) = mpsc::channel::<Arc<WorkerHeartbeat>>();
            let work = move |hb| {
                give.send(hb).unwrap();
                pending::<()>()
            };
            let future = supervisor.supervise(worker(&registry, id), work).unwrap();
            let mut future = Box::pin(future);
            let mut context = Context::from_waker(Waker::noop());
            assert!(future.as_mut().poll(&mut context).is_pending());
            (supervisor, future, given.recv().unwrap())
        };
        // A future that waits, polled once; it waits as long as it is kept.
        let wait_for_stop = |hb: &Arc<WorkerHeartbeat>, waker: &Waker| {
            let hb = Arc::clone(hb);
            let mut waiting = Box::pin(async move { hb.wait_for_stop().await });
            let polled = waiting.as_mut().poll(&mut Context::from_waker(waker));
            assert!(polled.is_pending());
            waiting
        };

        let (supervisor, _curious_future, hb) = supervise("curious");
        let looked = Arc::new(AtomicUsize::new(0));
        let (looks, at) = (Arc::clone(&looked), Arc::clone(&hb));
        let curious = waker(move || {
            at.update_task("run", "asked to stop", Activity::Processing);
            let _ = at.snapshot().to_string();
            assert!(
                pin!(at.wait_for_stop())
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_ready()
            );
            looks.fetch_add(1, Ordering::Relaxed);
            resume_unwind(Box::new(Bomb(1)));
        });
        let _waiting = wait_for_stop(&hb, &curious);
        promptly("asking", move || drop(supervisor.shutdown(Duration::ZERO)));
        assert_eq!(looked.load(Ordering::Relaxed), 1);
        eventually("stopping", || hb.health().state() == State::Stopping);

        let (supervisor, _hanging_future, hb) = supervise("hanging");
        let at_gate = Arc::clone(&gate);
        let _waiting = wait_for_stop(&hb, &waker(move || at_gate.pass()));
        gate.close();
        let asking = thread::spawn(move || drop(supervisor.shutdown(Duration::ZERO)));
        eventually("the requesting thread is blocked", || gate.waiting() == 1);
        let probe = hb.probe();
        let seen = promptly("the worker itself", move || {
            hb.update_task("run", "finishing", Activity::Processing);
            hb.beat();
            (hb.stop_requested(), hb.snapshot().run_id)
        });
        assert_eq!(seen, (true, Some("run".to_owned())));
        let looking = probe.clone();
        let state = promptly("reading", move || looking.health().state());
        assert!(
            [State::Stopping, State::Unobserved].contains(&state),
            "{state}"
        );
        let others = registry.clone();
        assert_eq!(promptly("a summary", move || others.summary().total), 2);
        assert_eq!(gate.waiting(), 1, "the requesting thread is still blocked");
        gate.open();
        asking.join().unwrap();

        let hb = Arc::new(worker(&registry, "left").start().unwrap());
        let looking = |hb: &WorkerHeartbeat| {
            let (probe, looks) = (hb.probe(), Arc::clone(&looked));
            let looking = OnDrop(move || {
                let _ = probe.snapshot().to_string();
                looks.fetch_add(1, Ordering::Relaxed);
            });
            waker(move || _ = &looking)
        };
        let mut replaced = wait_for_stop(&hb, &looking(&hb));
        let left = wait_for_stop(&hb, &looking(&hb));
        promptly("polling with another waker", move || {
            let mut context = Context::from_waker(Waker::noop());
            assert!(replaced.as_mut().poll(&mut context).is_pending());
        });
        promptly("leaving", move || drop(left));
        drop(hb);
        assert_eq!(looked.load(Ordering::Relaxed), 3);
    };
    in_child(play);
}
