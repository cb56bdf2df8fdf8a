//! When a worker is given up.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::executor::block_on;
use crate::support::{SECOND, World, eventually, wait_for};
use worker_heartbeat::{BoxError, EventKind, Exit, Restart, State, Supervisor, WorkerHeartbeat};

/// Backoffs that are longer than the default period in which restarts are counted.
fn slow() -> Restart {
    Restart::on_failure()
        .max(5)
        .within(60 * SECOND)
        .backoff(5 * SECOND, 300 * SECOND)
        .jitter(0.0)
}

/// What a life does before it fails.
#[derive(Clone, Copy, Debug)]
enum Life {
    /// It fails at once.
    Short,
    /// It is well for this many seconds.
    Well(u32),
    /// It is at work, without any progress, for this many seconds.
    Stalled(u32),
    /// It waits in its first task for this many seconds.
    NeverStarted(u32),
    /// It is well, but its process is stopped for this many seconds.
    Suspended(u32),
}

/// Runs a worker through these lives. Returns the backoffs after them, and how the worker ended, if
/// it did.
fn waits(restart: Restart, in_future: bool, lives: &[Life]) -> (Vec<u64>, Option<Exit>) {
    let world = World::new();
    let events = world.registry.subscribe();
    let supervisor = Supervisor::new(&world.registry).restart(restart);
    let begun = Arc::new(AtomicU32::new(0));
    let (go_on, gate) = mpsc::channel::<()>();
    let (counted, gate) = (Arc::clone(&begun), Mutex::new(gate));
    let planned = lives.to_vec();
    let live = move |hb: &WorkerHeartbeat| {
        let number = counted.load(Ordering::SeqCst) as usize;
        match planned.get(number) {
            Some(Life::NeverStarted(_)) => {}
            Some(Life::Stalled(_)) => {
                let _task = std::mem::ManuallyDrop::new(hb.begin_task("run-1", "stalled"));
            }
            _ => hb.mark_idle(),
        }
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = gate.lock().unwrap().recv();
    };
    let builder = world
        .worker("w")
        .id("w")
        .stall_after(9 * SECOND)
        .startup_grace(9 * SECOND);
    let mut exit: Box<dyn FnMut() -> Option<Exit>> = if in_future {
        let run = supervisor.supervise(builder, move |hb| {
            live(&hb);
            async { Err::<(), _>("again") }
        });
        let run = run.unwrap();
        let thread = Mutex::new(Some(thread::spawn(move || block_on(run))));
        Box::new(move || {
            let thread = thread
                .lock()
                .unwrap()
                .take_if(|thread| thread.is_finished());
            thread.map(|thread| thread.join().unwrap())
        })
    } else {
        let work = move |hb: &WorkerHeartbeat| -> Result<(), BoxError> {
            live(hb);
            Err("again".into())
        };
        let worker = supervisor.spawn(builder, work).unwrap();
        Box::new(move || worker.exit())
    };
    let probe = world.registry.get("w").unwrap();
    let mut waits = Vec::new();
    for (number, life) in (1..).zip(lives) {
        eventually("the next life", || begun.load(Ordering::SeqCst) == number);
        match *life {
            Life::Short => {}
            Life::Well(seconds) => world.seconds(seconds),
            Life::Stalled(seconds) => {
                world.seconds(seconds);
                assert_eq!(probe.health().state(), State::Stalled);
            }
            Life::NeverStarted(seconds) => {
                world.seconds(seconds);
                let state = probe.health().state();
                // The first poll is a future's first progress.
                let stalled = in_future && state == State::Stalled;
                assert!(stalled || state == State::NeverStarted, "{state}");
            }
            Life::Suspended(seconds) => world.time.suspend(SECOND * seconds),
        }
        go_on.send(()).unwrap();
        let over = loop {
            let event = events.recv_timeout(crate::support::PATIENCE).unwrap();
            match event.kind {
                EventKind::Restarting { attempt, delay, .. } => {
                    assert!(attempt >= 1);
                    waits.push(delay.as_secs());
                    break false;
                }
                EventKind::GaveUp { .. } => break true,
                _ => {}
            }
        };
        if over {
            let mut ended = None;
            eventually("the end", || {
                ended = exit();
                ended.is_some()
            });
            return (waits, ended);
        }
        // A future sets its timer a moment after the event.
        let wait = Duration::from_secs(*waits.last().unwrap());
        let due = world.time.now().after(wait);
        world.time.advance(wait);
        while in_future && begun.load(Ordering::SeqCst) == number && number < lives.len() as u32 {
            world.millis(1);
        }
        assert!(world.time.now() >= due);
    }
    (waits, None)
}

#[test]
fn a_worker_that_keeps_failing_is_given_up_however_long_its_waits_are() {
    for in_future in [false, true] {
        let restart = slow().reset_after(600 * SECOND);
        let (waits, exit) = waits(restart, in_future, &[Life::Short; 20]);
        assert_eq!(waits, [5, 10, 20, 40, 80]);
        assert!(matches!(exit, Some(Exit::GaveUp { restarts: 5, .. })));
    }
}

#[test]
fn a_life_that_was_well_for_long_enough_begins_a_new_count() {
    use Life::{Short, Well};
    for in_future in [false, true] {
        let restart = slow().reset_after(600 * SECOND);
        let lives = [
            Short,
            Well(599),
            Short,
            Well(600),
            Short,
            Well(10_000),
            Well(599),
        ];
        let (waits, exit) = waits(restart, in_future, &lives);
        assert_eq!(waits, [5, 10, 20, 5, 10, 5, 10]);
        assert!(exit.is_none());
    }
}

#[test]
fn time_in_which_it_was_not_well_does_not_count() {
    use Life::{NeverStarted, Short, Stalled, Suspended};
    for in_future in [false, true] {
        let restart = slow().reset_after(600 * SECOND);
        let lives = [
            Short,
            Stalled(700),
            NeverStarted(700),
            Suspended(7_000),
            Short,
        ];
        let (waits, exit) = waits(restart, in_future, &lives);
        assert_eq!(waits, [5, 10, 20, 40, 80]);
        assert!(exit.is_none());
    }
}

#[test]
fn the_count_is_part_of_the_death() {
    let world = World::new();
    let events = world.registry.subscribe();
    let restart = slow().max(1).reset_after(600 * SECOND);
    let worker = Supervisor::new(&world.registry)
        .restart(restart)
        .spawn(world.worker("w"), |_| Err("no".into()))
        .unwrap();
    wait_for(&events, "restart 1");
    world.seconds(5);
    worker.join();
    let words = worker.probe().health().to_string();
    assert!(words.ends_with("gave up after 1 restarts"), "{words}");
}
