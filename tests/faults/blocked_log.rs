//! A log implementation that blocks the pacemaker, or another thread that logs.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{Activity, EventKind, Probe, Registry, State, WorkerHeartbeat};

use crate::fixtures::{
    ALL_EVENTS, Crew, Gate, MILLISECOND, READER_PATIENCE, Reader, SLACK, beat, log_with,
    on_pacemaker, promptly, worker,
};
use crate::support::process::in_child;
use crate::support::{SECOND, eventually, name, names, pacemakers};

/// A process whose log implementation blocks the pacemaker when it logs a conviction, for as long
/// as the gate is closed.
struct HeldUp {
    gate: Arc<Gate>,
    registry: Registry,
}

impl HeldUp {
    fn new() -> Self {
        let gate = Arc::new(Gate::default());
        let at_gate = Arc::clone(&gate);
        log_with(move |record| {
            if on_pacemaker() && record.args().to_string().contains("never started") {
                at_gate.pass();
            }
        });
        Self {
            gate,
            registry: Registry::new(),
        }
    }

    /// Blocks the pacemaker. Returns the worker that it has convicted.
    fn strike(&self) -> WorkerHeartbeat {
        self.gate.close();
        let convict = worker(&self.registry, "convict").startup_grace(20 * MILLISECOND);
        let convict = convict.start().unwrap();
        eventually("the pacemaker is blocked", || self.gate.waiting() == 1);
        convict
    }
}

/// While a log implementation blocks the pacemaker, a reader answers `Unobserved` after 100 ms, and
/// no worker is convicted. Workers continue, whatever they report. Threads that register, drop,
/// subscribe or read are not blocked either. When the log implementation returns, all readers get
/// the true state again, and the time is forgiven.
#[test]
fn a_log_that_holds_up_the_pacemaker() {
    let play = || {
        let held_up = HeldUp::new();
        let registry = held_up.registry.clone();
        let events = registry.subscribe_with_capacity(ALL_EVENTS);
        let mut crew = Crew::default();
        let start = |id: &str| worker(&registry, id).startup_grace(60 * SECOND);
        crew.add(
            start("vouched").stale_after(100 * MILLISECOND),
            SECOND,
            beat,
        );
        crew.add(start("stalling").stall_after(SECOND), 5 * MILLISECOND, beat);
        crew.add(
            start("beats-only").stale_after(SECOND).beats_only(),
            5 * MILLISECOND,
            beat,
        );
        let steps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&steps);
        crew.add(
            start("talkative").stall_after(SECOND),
            MILLISECOND,
            move |hb| {
                for _ in 0..100 {
                    hb.beat();
                    hb.update_task("run", "task", Activity::Processing);
                    hb.begin_task("another", "task").progress(1, 2);
                    hb.bind_thread();
                    hb.mark_idle();
                    assert!(!hb.stop_requested() && !hb.is_over());
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            },
        );
        let silences = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&silences);
        crew.add(start("quiet").stall_after(SECOND), MILLISECOND, move |hb| {
            for _ in 0..100 {
                drop(hb.expect_silence(SECOND));
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let second = start("second").start().unwrap();
        let convict = held_up.strike();

        let blocked = Instant::now();
        let mut reader = Reader::default();
        let is_unobserved = |probe: &Probe| probe.health().state() == State::Unobserved;
        eventually("unobserved", || is_unobserved(&crew.probes[0]));
        println!(
            "@measured a blocked pacemaker: unobserved after {:?}",
            blocked.elapsed()
        );
        for _ in 0..2 {
            assert!(crew.probes.iter().all(is_unobserved));
            assert!(!crew.probes.iter().any(Probe::is_recent));
            reader.look(&crew.probes);
        }
        assert!(
            reader.longest_call <= READER_PATIENCE + SLACK,
            "{:?}",
            reader.longest_call
        );
        let before = steps.load(Ordering::Relaxed);
        eventually("workers continue", || {
            steps.load(Ordering::Relaxed) > before + 10_000
        });
        let before = silences.load(Ordering::Relaxed);
        eventually("workers announce silences", || {
            silences.load(Ordering::Relaxed) > before + 10_000
        });

        let others = registry.clone();
        promptly("registering and dropping", move || {
            let other = worker(&others, "other")
                .stale_after(50 * MILLISECOND)
                .start()
                .unwrap();
            let mine = others.subscribe();
            other.beat();
            other.stop();
            assert_eq!(names(&mine), ["stopped"]);
            assert_eq!(
                other.health().state(),
                State::Stopped,
                "a worker that has ended needs no observer"
            );
            drop((other, second));
        });
        let others = registry.clone();
        promptly("a summary", move || {
            let summary = others.summary();
            assert!(!summary.is_healthy());
            assert_eq!(summary.total_active, 0);
            assert!(summary.tick_age > Duration::ZERO);
        });
        let others = registry.clone();
        assert!(!promptly("a sweep", move || others.sweep().success));
        let others = registry.clone();
        assert_eq!(
            promptly("a list", move || others.workers().len()),
            crew.probes.len() + 3
        );
        assert_eq!(registry.purge(Duration::ZERO), 2);
        assert_eq!(held_up.gate.waiting(), 1, "the pacemaker is still blocked");

        let hidden = blocked.elapsed();
        held_up.gate.open();
        eventually("all workers are recent", || {
            reader.look(&crew.probes);
            crew.probes.iter().all(Probe::is_recent)
        });
        eventually("the conviction is visible", || {
            convict.health().state() == State::NeverStarted
        });
        reader.report("a blocked pacemaker");
        let mut reported = Vec::new();
        eventually("the gap is reported", || {
            reported.extend(events.try_iter());
            let gap = |event: &worker_heartbeat::Event| match event.kind {
                EventKind::Unobserved { forgiven, .. } => forgiven,
                _ => Duration::ZERO,
            };
            reported.iter().map(gap).sum::<Duration>() + 200 * MILLISECOND > hidden
        });
        for event in &reported {
            let convicted = ["stalled", "stale", "never_started"].contains(&&*name(event));
            assert!(!convicted || event.id() == "convict", "{event}");
        }
        crew.dismiss();
    };
    in_child(play);
}

/// All workers are dropped while the pacemaker is blocked, and another one registers: neither waits
/// for the log implementation, and the new worker is never convicted. Once the gate opens, there is
/// one pacemaker, and it observes the new worker.
#[test]
fn a_pacemaker_that_is_held_up_and_its_successor() {
    let play = || {
        let held_up = HeldUp::new();
        let convict = held_up.strike();
        let HeldUp { gate, registry } = held_up;
        promptly("dropping the last worker", move || drop(convict));
        let others = registry.clone();
        let next = promptly("registering", move || {
            let next = worker(&others, "next")
                .stale_after(50 * MILLISECOND)
                .start()
                .unwrap();
            next.beat();
            next
        });
        let probe = next.probe();
        for _ in 0..10 {
            let probe = probe.clone();
            let state = promptly("reading", move || probe.health().state());
            assert!(
                [State::Active, State::Unobserved].contains(&state),
                "{state}"
            );
        }
        assert_eq!(gate.waiting(), 1, "the pacemaker is still blocked");
        gate.open();
        eventually("the new worker is recent", || probe.is_recent());
        eventually("one pacemaker", || pacemakers().len() == 1);
        drop(next);
        eventually("no pacemaker", || pacemakers().is_empty());
    };
    in_child(play);
}

/// A log implementation that receives a conviction, on the pacemaker's thread, and replaces the
/// convicted worker, which was the only one: the pacemaker does not wait for itself.
#[test]
fn a_log_that_replaces_the_last_worker() {
    let play = || {
        let registry = Registry::new();
        let last = Arc::new(Mutex::new(None::<WorkerHeartbeat>));
        let (at_hand, there) = (Arc::clone(&last), registry.clone());
        log_with(move |record| {
            if on_pacemaker() && record.args().to_string().contains("never started") {
                drop(at_hand.lock().unwrap().take());
                let next = worker(&there, "next").start().unwrap();
                next.beat();
                *at_hand.lock().unwrap() = Some(next);
            }
        });
        let convict = worker(&registry, "convict").startup_grace(50 * MILLISECOND);
        // The lock is held, so that the worker is in its place when it is convicted, however slow
        // this thread is.
        let mut place = last.lock().unwrap();
        *place = Some(convict.start().unwrap());
        drop(place);
        eventually("it is replaced", || registry.get("next").is_some());
        let probe = registry.get("next").unwrap();
        eventually("its successor is well", || {
            let probe = probe.clone();
            promptly("reading", move || probe.is_recent())
        });
        eventually("one pacemaker", || pacemakers().len() == 1);
        let last = promptly("taking it", move || last.lock().unwrap().take());
        drop(last);
        eventually("no pacemaker", || pacemakers().is_empty());
    };
    in_child(play);
}

/// A log implementation that blocks a thread that registers, and one that stops a worker: the
/// pacemaker and all other threads continue, and the verdict is visible before the log line is.
#[test]
fn a_log_that_holds_up_its_caller() {
    let play = || {
        let gate = Arc::new(Gate::default());
        let at_gate = Arc::clone(&gate);
        log_with(move |record| {
            if record.args().to_string().contains("blocked-at-") {
                at_gate.pass();
            }
        });
        let registry = Registry::new();
        let mut crew = Crew::default();
        crew.add(
            worker(&registry, "vouched").stale_after(50 * MILLISECOND),
            SECOND,
            beat,
        );
        crew.add(
            worker(&registry, "stalling").stall_after(SECOND),
            5 * MILLISECOND,
            beat,
        );
        let patient = move |registry: &Registry, id: &str| {
            let worker = worker(registry, id).startup_grace(60 * SECOND);
            worker.start().unwrap()
        };
        let stops = patient(&registry, "blocked-at-stop");
        let panics = patient(&registry, "blocked-at-panic");
        let (stopped, panicked) = (stops.probe(), panics.probe());
        gate.close();
        let registers = registry.clone();
        let threads = [
            thread::spawn(move || stops.stop()),
            thread::spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    let _hb = panics;
                    resume_unwind(Box::new("simulated panic"))
                }));
                assert!(result.is_err());
            }),
            thread::spawn(move || drop(patient(&registers, "blocked-at-registration"))),
        ];
        eventually("all threads are blocked", || {
            gate.waiting() == threads.len()
        });
        assert_eq!(stopped.health().state(), State::Stopped);
        assert_eq!(panicked.health().state(), State::Dead);
        let registered = registry.get("blocked-at-registration").unwrap();
        eventually("starting", || {
            registered.health().state() == State::Starting
        });
        let others = registry.clone();
        promptly("registering and dropping", move || {
            let events = others.subscribe();
            let other = worker(&others, "other").start().unwrap();
            other.beat();
            eventually("well", || other.is_recent());
            eventually("it is observed", || {
                events.try_iter().any(|event| name(&event) == "started")
            });
        });
        let mut reader = Reader::default();
        for _ in 0..50 {
            reader.look(&crew.probes);
            // As often as a busy health endpoint is queried.
            thread::sleep(MILLISECOND);
        }
        assert_eq!(
            gate.waiting(),
            threads.len(),
            "all threads are still blocked"
        );
        gate.open();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(registered.health().state(), State::Stopped);
        crew.dismiss();
    };
    in_child(play);
}
