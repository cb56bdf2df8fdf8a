//! Readers, while what they read changes.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::{
    Activity, EventKind, Health, Probe, Registry, Snapshot, State, WorkerHeartbeat,
};

use crate::fixtures::{SetOnDrop, Slot, assert_reads, busy_registry, worker};
use crate::rounds::{ROUNDS, alone, chance, dawdle, race, rounds, settle_on, stagger};
use crate::support::{PATIENCE, SECOND, World};

/// The properties of the worker with this number; whatever is read of it must match them.
struct Character {
    worker_type: String,
    stale_after: Duration,
    beats: u64,
}

impl Character {
    fn of(number: u64) -> Self {
        Self {
            worker_type: format!("type-{}", number % 3),
            stale_after: SECOND * (1_000 + number % 5) as u32,
            beats: number % 7 + 1,
        }
    }

    /// Lives the whole life of the worker, and hands out a probe of it during that life.
    fn live(&self, number: u64, registry: &Registry, hand_out: impl FnOnce(Probe)) {
        let hb = WorkerHeartbeat::builder(&*self.worker_type)
            .id(format!("w-{number}"))
            .stale_after(self.stale_after)
            .registry(registry)
            .start()
            .unwrap();
        hand_out(hb.probe());
        for _ in 1..self.beats {
            hb.beat();
        }
        let (run_id, task) = (format!("run-{number}"), format!("task-{number}"));
        hb.update_task(&run_id, &task, Activity::Processing);
    }

    /// Fails if anything that was read belongs to another worker.
    fn check(snapshot: &Snapshot) {
        let number: u64 = snapshot.id.strip_prefix("w-").unwrap().parse().unwrap();
        let character = Self::of(number);
        let is = |condition: bool| assert!(condition, "{snapshot:?}");
        is(snapshot.worker_type == character.worker_type);
        is(snapshot.thresholds.stale_after == character.stale_after);
        is(snapshot.incarnation == 1 && snapshot.restarts == 0);
        is(snapshot.late_beats == 0 && snapshot.late_updates == 0);
        is(snapshot.last_death.is_none());
        is(snapshot.beats <= character.beats);
        match snapshot.health.state() {
            State::Starting => is(snapshot.beats == 0 && snapshot.run_id.is_none()),
            State::Active => is(snapshot.beats > 0 && snapshot.run_id.is_none()),
            State::Processing => {
                is(snapshot.beats == character.beats);
                is(snapshot.run_id == Some(format!("run-{number}")));
                is(snapshot.task == Some(format!("task-{number}")));
            }
            State::Stopped => is(snapshot.beats == character.beats),
            State::Unobserved => {}
            _ => panic!("{snapshot:?}"),
        }
    }
}

/// What a reader sees of a worker belongs to that worker: its id, type, limits, run, task and beats
/// match in every snapshot, while its cell is used by one worker after the other. The count of
/// beats never decreases, and a worker that has ended stays ended.
#[test]
fn readers_versus_the_reuse_of_cells() {
    alone(|| {
        let (registry, anchor) = busy_registry();
        let newest = AtomicU64::new(0);
        let handed = Mutex::new(None::<Probe>);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                settle_on(1);
                let _over = SetOnDrop(&over);
                for number in rounds(2 * ROUNDS).map(|round| round as u64 + 1) {
                    let hand_out = |probe| *handed.lock().unwrap() = Some(probe);
                    Character::of(number).live(number, &registry, hand_out);
                    newest.store(number, Ordering::Relaxed);
                    if number % 16 == 0 {
                        registry.purge(Duration::ZERO);
                    }
                }
            });
            settle_on(0);
            // Probes of workers whose cells belong to other workers by now.
            let mut kept: Vec<(Probe, u64, bool)> = Vec::new();
            let mut turns = 0_usize;
            while !over.load(Ordering::Acquire) {
                turns += 1;
                if let Some(probe) = handed.lock().unwrap().take() {
                    kept.push((probe, 0, false));
                    if kept.len() > 8 {
                        kept.remove(turns % 8);
                    }
                }
                for (probe, beats, was_over) in &mut kept {
                    let snapshot = probe.snapshot();
                    assert_eq!(snapshot.id, probe.id());
                    Character::check(&snapshot);
                    assert!(snapshot.beats >= *beats, "{snapshot:?}");
                    let is_over = probe.health().state().is_terminal();
                    assert!(is_over || !*was_over, "{snapshot:?}");
                    (*beats, *was_over) = (snapshot.beats, is_over);
                }
                let id = format!("w-{}", newest.load(Ordering::Relaxed) + 1);
                if let Some(probe) = registry.get(&id) {
                    assert_eq!(probe.id(), id);
                    Character::check(&probe.snapshot());
                }
                if turns % 4 == 0 {
                    for probe in registry.workers() {
                        if probe.id() != anchor.id() {
                            Character::check(&probe.snapshot());
                        }
                    }
                    let summary = registry.summary();
                    assert_eq!(summary.total_dead, 0, "{summary:?}");
                    let known = |name: &String| name == "w" || name.starts_with("type-");
                    assert!(summary.stats_by_type.keys().all(known), "{summary:?}");
                }
            }
            println!("{turns} turns of the reader");
        });
    });
}

/// A summary counts each worker once: one that ends meanwhile counts as living or as ended, but not
/// as both.
#[test]
fn a_summary_versus_a_worker_that_ends() {
    summary_versus(|hb| (Some(hb), false));
}

/// A summary misses no worker: an id that is registered again meanwhile counts, as the former
/// worker or as the new one.
#[test]
fn a_summary_versus_a_worker_that_registers_again() {
    summary_versus(|hb| {
        drop(hb);
        (None, true)
    });
}

/// A summary of a thousand workers, while the one in the first cell ends or registers.
fn summary_versus(
    prepare: impl Fn(WorkerHeartbeat) -> (Option<WorkerHeartbeat>, bool) + Send + 'static,
) {
    const OTHERS: usize = 1_000;
    alone(move || {
        let registry = Registry::new();
        let wanderer = || worker(&registry).id("wanderer").start().unwrap();
        let first = wanderer();
        let _others: Vec<_> = (0..OTHERS)
            .map(|_| worker(&registry).start().unwrap())
            .collect();
        drop(first);
        let came = Mutex::new(None);
        let wrong = Mutex::new(HashMap::<usize, usize>::new());
        race(
            ROUNDS / 2,
            |round| {
                let (goes, comes) = prepare(wanderer());
                (round, Mutex::new(goes), comes)
            },
            &[
                &|(round, goes, comes): &(usize, Slot<WorkerHeartbeat>, bool)| {
                    // At any moment of the scan of the cells.
                    dawdle(chance(*round) % 20_000);
                    drop(goes.lock().unwrap().take());
                    if *comes {
                        *came.lock().unwrap() = Some(wanderer());
                    }
                },
                &|_| {
                    for _ in 0..3 {
                        let total = registry.summary().total;
                        if total != OTHERS + 1 {
                            *wrong.lock().unwrap().entry(total).or_default() += 1;
                        }
                    }
                },
            ],
            |_, _| {
                came.lock().unwrap().take();
                registry.purge(Duration::ZERO);
            },
        );
        let wrong = wrong.into_inner().unwrap();
        assert!(
            wrong.is_empty(),
            "totals other than {}, and how often: {wrong:?}",
            OTHERS + 1
        );
    });
}

/// A snapshot is of one moment: run, task, activity, progress and the number of beats match,
/// whatever the worker reports meanwhile.
#[test]
fn update_task_versus_snapshot() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let hb = worker(&registry).start().unwrap();
        // From here on the worker always has a task, except when it is idle.
        hb.mark_idle();
        let probe = hb.probe();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                settle_on(1);
                let activity = [Activity::Active, Activity::Processing];
                // Each step is one beat, and names its number.
                for step in 2_usize.. {
                    match step % 3 {
                        0 => hb.mark_idle(),
                        rest => {
                            let (run, task) = (format!("run-{step}"), format!("task-{step}"));
                            hb.update_task(&run, &task, activity[rest - 1]);
                        }
                    }
                    stagger(step, 1);
                    if over.load(Ordering::Acquire) {
                        break;
                    }
                }
            });
            settle_on(0);
            let _over = SetOnDrop(&over);
            let (mut seen, mut last) = (0, 0);
            let activity = [Activity::Active, Activity::Processing];
            let states = [State::Active, State::Processing];
            let begun = Instant::now();
            while seen < ROUNDS && begun.elapsed() < PATIENCE {
                let snapshot = probe.snapshot();
                let step = snapshot.beats;
                let is = |condition: bool| assert!(condition, "{snapshot:?}");
                is(step >= last);
                if step == 1 || step % 3 == 0 {
                    is(snapshot.activity == Activity::Idle);
                    is(snapshot.run_id.is_none() && snapshot.task.is_none());
                    assert_reads(&snapshot, State::Idle);
                } else {
                    let rest = step as usize % 3 - 1;
                    is(snapshot.run_id == Some(format!("run-{step}")));
                    is(snapshot.task == Some(format!("task-{step}")));
                    is(snapshot.activity == activity[rest]);
                    assert_reads(&snapshot, states[rest]);
                }
                seen += usize::from(step != last);
                last = step;
            }
            println!("{seen} different moments were seen, of {last}");
            assert!(seen > 100, "{seen}");
        });
    });
}

/// The same holds for the first task of a life: a worker that is seen processing is seen with its
/// task.
#[test]
fn the_first_task_versus_snapshot() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        race(
            2 * ROUNDS,
            |_| worker(&registry).start().unwrap(),
            &[
                &|hb: &WorkerHeartbeat| hb.update_task("run", "task", Activity::Processing),
                &|hb| {
                    for _ in 0..8 {
                        let snapshot = hb.snapshot();
                        let at_work = snapshot.activity == Activity::Processing;
                        assert_eq!(snapshot.run_id.is_some(), at_work, "{snapshot:?}");
                        assert_eq!(snapshot.task.is_some(), at_work, "{snapshot:?}");
                        assert_eq!(snapshot.beats, u64::from(at_work), "{snapshot:?}");
                    }
                },
            ],
            |_, hb| {
                drop(hb);
                registry.purge(Duration::ZERO);
            },
        );
    });
}

/// A stall is reported with the run that stalled, not with the one that the worker begins just
/// then.
#[test]
fn a_stall_versus_the_next_task() {
    alone(|| {
        let world = World::new();
        let hb = world.worker("w").stall_after(SECOND / 10).start().unwrap();
        let events = world.registry.subscribe();
        let stalls = Cell::new(0);
        race(
            ROUNDS,
            |round| {
                hb.update_task(format!("old-{round}"), "stalls", Activity::Processing);
                world.millis(95);
                round
            },
            &[&|_: &usize| world.millis(10), &|round| {
                dawdle(chance(*round) % 30_000);
                hb.update_task(format!("new-{round}"), "goes on", Activity::Processing);
            }],
            |round, _| {
                for event in events.try_iter() {
                    if let EventKind::Became(Health::Stalled(stalled)) = &event.kind {
                        assert_eq!(stalled.run_id, Some(format!("old-{round}")), "{event}");
                        assert_eq!(stalled.task.as_deref(), Some("stalls"), "{event}");
                        stalls.set(stalls.get() + 1);
                    }
                }
            },
        );
        println!("a stall in {} rounds of {ROUNDS}", stalls.get());
    });
}
