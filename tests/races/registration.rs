//! Workers that register and end.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use worker_heartbeat::{Activity, Error, Probe, Registry, State, WorkerHeartbeat};

use crate::fixtures::{SetOnDrop, Slot, assert_reads, busy_registry, ending, slot, take, worker};
use crate::rounds::{ROUNDS, alone, chance, dawdle, race, rounds, settle_on, stagger};
use crate::support::{PATIENCE, eventually, name, pacemakers};

/// A worker that registers while another one ends gets a cell of its own: it is found, well and
/// with its own beats only, and the other one has ended; each event is reported once.
#[test]
fn register_versus_exit() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let events = registry.subscribe();
        let coming = Mutex::new(None);
        race(
            ROUNDS,
            |_| {
                let leaving = worker(&registry).start().unwrap();
                leaving.update_task("run", "of the leaving worker", Activity::Processing);
                (leaving.probe(), slot(leaving))
            },
            &[
                &|(_, leaving): &(Probe, Slot<WorkerHeartbeat>)| drop(take(leaving)),
                &|_| {
                    let hb = worker(&registry).start().unwrap();
                    hb.beat();
                    *coming.lock().unwrap() = Some(hb);
                },
            ],
            |_, (left, _)| {
                let hb = take(&coming);
                let snapshot = hb.snapshot();
                assert_reads(&snapshot, State::Active);
                assert_eq!((snapshot.beats, snapshot.run_id), (1, None));
                assert_eq!(left.snapshot().id, left.id());
                assert_eq!(ending(&left), "drop");
                assert_eq!(left.snapshot().beats, 1);
                let reported: Vec<_> = events.try_iter().collect();
                let count = |id: &str, wanted: &str| {
                    let of = reported.iter().filter(|event| event.id() == id);
                    of.filter(|event| name(event) == wanted).count()
                };
                assert_eq!(count(left.id(), "registered"), 1);
                assert_eq!(count(left.id(), "stopped"), 1);
                assert_eq!(count(hb.id(), "registered"), 1);
                assert_eq!(count(hb.id(), "stopped"), 0);
                assert!(registry.get(left.id()).is_some() && registry.get(hb.id()).is_some());
                drop(hb);
                assert_eq!(registry.purge(Duration::ZERO), 2);
                let _ = events.try_iter().count();
            },
        );
    });
}

/// When the last handle is dropped while a new worker registers, there is exactly one pacemaker
/// afterwards, and it observes the new worker; when that worker ends as well, there is none.
#[test]
fn last_drop_versus_register() {
    alone(|| {
        let registry = Registry::new();
        let events = registry.subscribe();
        let others = pacemakers().len();
        let coming = Mutex::new(None);
        race(
            ROUNDS / 2,
            |_| slot(worker(&registry).start().unwrap()),
            &[&|last: &Slot<WorkerHeartbeat>| drop(take(last)), &|_| {
                *coming.lock().unwrap() = Some(worker(&registry).start().unwrap())
            }],
            |_, _| {
                let hb = take(&coming);
                // Only a pacemaker reports that a worker started.
                hb.beat();
                let _ = registry.sweep();
                loop {
                    let event = events
                        .recv_timeout(PATIENCE)
                        .expect("the worker was not observed");
                    if event.id() == hb.id() && name(&event) == "started" {
                        break;
                    }
                }
                eventually("the worker is well", || hb.is_recent());
                assert_eq!(pacemakers().len(), others + 1);
                drop(hb);
                // The kernel lists a thread for a moment after it was joined.
                eventually("no pacemaker is left", || pacemakers().len() == others);
                registry.purge(Duration::ZERO);
            },
        );
    });
}

/// Of two threads that register the same id exactly one succeeds, and the other one gets an error,
/// whether the id is free or becomes free just then. The registered worker is found, once, with its
/// own beats, as the next incarnation.
#[test]
fn one_id_from_two_threads() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let start = || worker(&registry).id("one").start();
        type Entrants = [Slot<Result<WorkerHeartbeat, Error>>; 2];
        let entrants: Entrants = Default::default();
        let firsts = Cell::new(0);
        race(
            ROUNDS,
            |round| Mutex::new((round % 2 == 1).then(|| start().unwrap())),
            &[
                &|previous: &Slot<WorkerHeartbeat>| {
                    drop(previous.lock().unwrap().take());
                    *entrants[0].lock().unwrap() = Some(start());
                },
                &|_| *entrants[1].lock().unwrap() = Some(start()),
            ],
            |round, _| {
                let results = [take(&entrants[0]), take(&entrants[1])];
                firsts.set(firsts.get() + usize::from(results[0].is_ok()));
                let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
                assert_eq!((won.len(), lost.len()), (1, 1), "in round {round}");
                assert!(matches!(&lost[0], Err(Error::DuplicateId { id, .. }) if id == "one"));
                let hb = won.into_iter().next().unwrap().unwrap();
                hb.beat();
                hb.beat();
                let found = registry.get("one").unwrap().snapshot();
                assert_eq!(found.beats, 2);
                assert_eq!(found.incarnation as usize, 1 + round % 2);
                let listed = registry.workers();
                assert_eq!(listed.iter().filter(|one| one.id() == "one").count(), 1);
                drop(hb);
                registry.purge(Duration::ZERO);
            },
        );
        println!(
            "the first one got it in {} rounds of {ROUNDS}",
            firsts.get()
        );
    });
}

/// An id that is registered again and again is always found, listed exactly once, and never has an
/// earlier incarnation again: a worker does not become healthy by vanishing.
#[test]
fn the_same_id_again_versus_readers() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let first = worker(&registry).id("one").start().unwrap();
        drop(first);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                settle_on(1);
                let _over = SetOnDrop(&over);
                for round in rounds(ROUNDS) {
                    let one = worker(&registry).id("one").start().unwrap();
                    stagger(round, 0);
                    drop(one);
                    stagger(round, 1);
                }
            });
            settle_on(0);
            let (mut last, mut turns) = (0, 0);
            while !over.load(Ordering::Acquire) {
                let found = registry.get("one").expect("get() finds it").snapshot();
                assert!(found.incarnation >= last, "{} < {last}", found.incarnation);
                last = found.incarnation;
                let all = registry.workers();
                let listed = all.iter().filter(|probe| probe.id() == "one").count();
                assert_eq!(listed, 1, "times in workers()");
                turns += 1;
            }
            println!("{turns} turns of the reader, {last} lives of {ROUNDS}");
        });
    });
}

/// A purge removes ended workers only: one that registers while its predecessor is purged is found,
/// alive, and listed once.
#[test]
fn purge_versus_the_same_id_again() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let coming = Mutex::new(None);
        race(
            ROUNDS,
            |round| {
                let previous = worker(&registry).id("one").start().unwrap();
                // A tombstone already, or becoming one just now.
                Mutex::new((round % 2 == 0).then_some(previous))
            },
            &[
                &|previous: &Slot<WorkerHeartbeat>| {
                    drop(previous.lock().unwrap().take());
                    let hb = worker(&registry).id("one").start().unwrap();
                    hb.beat();
                    *coming.lock().unwrap() = Some(hb);
                },
                &|_| {
                    registry.purge(Duration::ZERO);
                },
            ],
            |_, _| {
                let hb = take(&coming);
                let found = registry.get("one").expect("the worker lives").snapshot();
                assert_eq!(found.beats, 1);
                assert_reads(&found, State::Active);
                assert!((1..=2).contains(&found.incarnation));
                registry.purge(Duration::ZERO);
                let listed = registry.workers();
                assert_eq!(listed.iter().filter(|one| one.id() == "one").count(), 1);
                assert_eq!(registry.summary().total, 2);
                drop(hb);
                assert_eq!(registry.purge(Duration::ZERO), 1);
                assert!(registry.get("one").is_none());
            },
        );
    });
}

/// Once `start()` has returned, the pacemaker ticks as often as the new worker needs, whatever it
/// is counting just then. At too coarse a resolution, a healthy worker would be convicted.
#[test]
fn the_resolution_versus_workers_with_other_needs() {
    alone(|| {
        let registry = Registry::new();
        // Several worker types, so that counting them takes the pacemaker a moment.
        let _others: Vec<_> = (0..100)
            .map(|n| {
                let other = WorkerHeartbeat::builder(format!("type-{n}"));
                other.registry(&registry).start().unwrap()
            })
            .collect();
        let fine = Duration::from_millis(10);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                settle_on(1);
                while !over.load(Ordering::Acquire) {
                    // Something has changed, so the next tick counts all types; later ticks do not.
                    registry.expect_workers("unknown", 0);
                    for _ in 0..3 {
                        let _ = registry.sweep();
                    }
                }
            });
            settle_on(0);
            let _over = SetOnDrop(&over);
            let mut wrong = 0;
            for round in rounds(4 * ROUNDS) {
                let hb = worker(&registry).interval(fine).stale_after(10 * fine);
                dawdle(chance(round) % 10_000);
                let hb = hb.start().unwrap();
                wrong += usize::from(registry.resolution() != fine);
                hb.beat();
                assert_reads(&hb.snapshot(), State::Active);
                drop(hb);
                if round % 64 == 0 {
                    registry.purge(Duration::ZERO);
                }
            }
            assert_eq!(
                wrong,
                0,
                "rounds of {} with too coarse a resolution",
                4 * ROUNDS
            );
        });
    });
}
