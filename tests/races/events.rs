//! Which events subscribers receive, in which order, and clocks that several threads move.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use worker_heartbeat::{Event, Moment, State, WorkerHeartbeat};

use crate::fixtures::{
    ALL_EVENTS, SetOnDrop, Ward, assert_reads, busy_registry, events_of, is_ending, names,
};
use crate::rounds::{ROUNDS, alone, chance, dawdle, race, settle_on};
use crate::support::{SECOND, World, name};

/// The last event of a worker is its end: a request to stop that comes just then is not reported
/// after the end, whether the worker saw the request or stopped by itself.
#[test]
fn a_request_to_stop_versus_the_end_is_reported_in_order() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let events = registry.subscribe();
        let (wrong, asked) = (Cell::new([0, 0]), Cell::new(0));
        race(
            ROUNDS,
            |round| (round, Ward::new(&registry)),
            &[
                &|(_, ward): &(usize, Ward)| ward.ask_to_stop(),
                &|(round, ward)| {
                    if round % 2 == 0 {
                        while !ward.hb.stop_requested() {
                            std::hint::spin_loop();
                        }
                    } else {
                        dawdle(chance(*round) % 2_000);
                    }
                    ward.hb.stop();
                },
            ],
            |round, (_, ward)| {
                let reported = events_of(&events, ward.hb.id());
                let mut wrongs = wrong.get();
                wrongs[round % 2] += usize::from(!is_ending(reported.last().unwrap()));
                wrong.set(wrongs);
                let was = names(&reported).iter().any(|name| name == "stopping");
                asked.set(asked.get() + usize::from(was && round % 2 == 1));
                drop(ward);
                registry.purge(Duration::ZERO);
                let _ = events.try_iter().count();
            },
        );
        println!(
            "asked before it stopped by itself in {} of {}",
            asked.get(),
            ROUNDS / 2
        );
        let [seen, unseen] = wrong.get();
        assert_eq!(
            (seen, unseen),
            (0, 0),
            "rounds of {ROUNDS} that do not end with the worker's end"
        );
    });
}

/// The last event of a worker is its end: if it stops while the pacemaker convicts it, no stall is
/// reported afterwards.
#[test]
fn a_conviction_versus_the_end_is_reported_in_order() {
    alone(|| {
        let world = World::new();
        let _anchor = world.worker("anchor").start().unwrap();
        let events = world.registry.subscribe();
        let wrong = Cell::new(0);
        let convicted = Cell::new(0);
        race(
            ROUNDS,
            |round| {
                let hb = world.worker("w").stall_after(SECOND / 10).start().unwrap();
                hb.beat();
                world.millis(95);
                (round, hb)
            },
            &[
                &|_: &(usize, WorkerHeartbeat)| world.millis(10),
                &|(round, hb)| {
                    dawdle(chance(*round) % 30_000);
                    hb.stop();
                },
            ],
            |_, (_, hb)| {
                let reported = events_of(&events, hb.id());
                wrong.set(wrong.get() + usize::from(!is_ending(reported.last().unwrap())));
                let was = names(&reported).iter().any(|name| name == "stalled");
                convicted.set(convicted.get() + usize::from(was));
                drop(hb);
                world.registry.purge(Duration::ZERO);
                let _ = events.try_iter().count();
            },
        );
        println!("convicted in {} rounds of {ROUNDS}", convicted.get());
        assert_eq!(
            wrong.get(),
            0,
            "rounds of {ROUNDS} that do not end with the worker's end"
        );
    });
}

/// A subscriber receives each event that happens after it subscribed, once and in order, while
/// others subscribe and unsubscribe; the events that a slow one receives and those that it lost add
/// up to all that happened.
#[test]
fn subscribing_versus_events() {
    const EMITTERS: usize = 2;
    const WORKERS: usize = ROUNDS / 2;
    alone(|| {
        // On a clock that stands still, nothing happens except what this test does.
        let world = World::new();
        let _anchor = world.worker("anchor").start().unwrap();
        let everything = world.registry.subscribe_with_capacity(ALL_EVENTS);
        let slow = world.registry.subscribe_with_capacity(3);
        let never_read = world.registry.subscribe_with_capacity(1);
        let over = AtomicBool::new(false);
        let read = AtomicU64::new(0);
        thread::scope(|scope| {
            let (world, over, slow, read) = (&world, &over, &slow, &read);
            scope.spawn(move || {
                settle_on(1);
                let mut turn = 0;
                while !over.load(Ordering::Acquire) {
                    turn += 1;
                    let short = world.registry.subscribe_with_capacity(turn % 4 + 1);
                    for _ in 0..turn % 3 {
                        let _ = short.try_recv();
                    }
                    read.fetch_add(u64::from(slow.try_recv().is_ok()), Ordering::Relaxed);
                }
            });
            let emitters: Vec<_> = (0..EMITTERS)
                .map(|side| {
                    scope.spawn(move || {
                        settle_on(side);
                        for round in 0..WORKERS {
                            let mine = (round % 16 == 0)
                                .then(|| world.registry.subscribe_with_capacity(ALL_EVENTS));
                            let hb = world.worker("w").start().unwrap();
                            let id = hb.id().to_owned();
                            drop(hb);
                            if let Some(mine) = mine {
                                let received = events_of(&mine, &id);
                                assert_eq!(names(&received), ["registered", "stopped"]);
                            }
                            if round % 64 == 0 {
                                world.registry.purge(Duration::ZERO);
                            }
                        }
                    })
                })
                .collect();
            let _over = SetOnDrop(over);
            for emitter in emitters {
                emitter.join().unwrap();
            }
        });
        let mut by_worker = HashMap::<String, Vec<String>>::new();
        for event in everything.try_iter() {
            by_worker
                .entry(event.id().to_owned())
                .or_default()
                .push(name(&event));
        }
        assert_eq!(everything.dropped(), 0);
        assert_eq!(by_worker.len(), EMITTERS * WORKERS);
        assert!(
            by_worker
                .values()
                .all(|names| *names == ["registered", "stopped"])
        );
        let all = 2 * (EMITTERS * WORKERS) as u64;
        let left = slow.try_iter().count() as u64;
        assert_eq!(read.into_inner() + left + slow.dropped(), all);
        assert_eq!(never_read.dropped(), all - 1);
        assert_eq!(never_read.try_iter().count(), 1);
    });
}

/// Several threads may move one mock clock while workers register and end: time moves by the sum of
/// the advances, no thread waits for ever, no worker is convicted that reported progress, and one
/// that never reported any is convicted by the time that `advance` returns, once.
#[test]
fn advance_versus_coming_and_going() {
    // As many as the capacity allows, at three events each.
    const COMINGS: usize = 2 * ROUNDS / 5;
    alone(|| {
        let world = World::new();
        let events = world.registry.subscribe_with_capacity(ALL_EVENTS);
        let (comings, moved) = (AtomicUsize::new(0), AtomicU64::new(0));
        let silent = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let (world, comings, moved, silent) = (&world, &comings, &moved, &silent);
            for side in 0..2 {
                scope.spawn(move || {
                    settle_on(side);
                    let mut kept = Vec::new();
                    for round in 0..COMINGS {
                        let turn = comings.fetch_add(1, Ordering::Relaxed);
                        let worker = world.worker("w").startup_grace(1_000_000 * SECOND);
                        let worker = match chance(round) % 16 {
                            0 => worker.stall_after(1_000_000 * SECOND),
                            // This worker needs a finer resolution.
                            1 => worker.stale_after(SECOND).interval(SECOND / 10),
                            _ => worker,
                        };
                        let hb = worker.start().unwrap();
                        hb.beat();
                        assert_reads(&hb.snapshot(), State::Active);
                        kept.push(hb);
                        if kept.len() > turn % 4 {
                            // Now and then the last worker ends, and the pacemaker with it.
                            kept.clear();
                        }
                    }
                    let late = world.worker("late").startup_grace(SECOND);
                    silent.lock().unwrap().push(late.start().unwrap());
                });
                scope.spawn(move || {
                    settle_on(side + 1);
                    let mut steps = 0_u64;
                    while comings.load(Ordering::Relaxed) < 2 * COMINGS {
                        steps += 1;
                        let step = Duration::from_millis(100 + chance(steps as usize) as u64 % 400);
                        if steps % 50 == 0 {
                            world.time.suspend(step);
                        } else {
                            world.time.advance(step);
                        }
                        moved.fetch_add(step.as_millis() as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        let now = world.time.now().since(Moment::ZERO);
        assert_eq!(now, Duration::from_millis(moved.into_inner()));
        world.millis(1_100);
        let reported: Vec<_> = events.try_iter().collect();
        for hb in &*silent.lock().unwrap() {
            assert_eq!(hb.health().state(), State::NeverStarted);
            let of = reported.iter().filter(|event| event.id() == hb.id());
            assert_eq!(of.filter(|event| name(event) == "never_started").count(), 1);
        }
        let convicted =
            |event: &&Event| ["stalled", "stale", "never_started"].contains(&&*name(event));
        assert_eq!(reported.iter().filter(convicted).count(), 2);
        assert_eq!(events.dropped(), 0);
        println!("{now:?} of mock time");
    });
}
