//! The end of a worker, requested by several threads at once.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use worker_heartbeat::{Activity, Error, Exit, Restart, State, Supervisor, WorkerHeartbeat};

use crate::fixtures::{
    ALL_EVENTS, Ward, busy_registry, ending, events_of, is_ending, names, worker,
};
use crate::rounds::{Meeting, ROUNDS, alone, chance, dawdle, race, rounds, settle_on, stagger};
use crate::support::{PATIENCE, name};

/// Each beat and each update counts once: before the end, or as late. After `stop()` has returned
/// the worker is stopped and stays stopped, whatever its thread still reports. Exactly one ending
/// is reported.
#[test]
fn stop_versus_beat() {
    const STEPS: u64 = 8;
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let events = registry.subscribe();
        let late = Cell::new(0);
        race(
            ROUNDS,
            |_| worker(&registry).start().unwrap(),
            &[
                &|hb: &WorkerHeartbeat| {
                    hb.stop();
                    assert_eq!(hb.health().state(), State::Stopped);
                    assert!(!hb.is_recent());
                },
                &|hb| {
                    for step in 0..STEPS {
                        match step % 4 {
                            0 | 2 => hb.beat(),
                            1 => hb.update_task("run", "task", Activity::Processing),
                            _ => hb.mark_idle(),
                        }
                    }
                },
            ],
            |_, hb| {
                let snapshot = hb.snapshot();
                let counted = snapshot.beats + snapshot.late_beats + snapshot.late_updates;
                assert_eq!(counted, STEPS, "{snapshot:?}");
                late.set(late.get() + snapshot.late_beats + snapshot.late_updates);
                assert_eq!(ending(&hb.probe()), "stop");
                let probe = hb.probe();
                drop(hb);
                assert_eq!(ending(&probe), "stop");
                assert_eq!(probe.snapshot().beats, snapshot.beats);
                let reported = events_of(&events, probe.id());
                assert_eq!(reported.iter().filter(|event| is_ending(event)).count(), 1);
                registry.purge(Duration::ZERO);
            },
        );
        println!(
            "{} of {} steps came late",
            late.get(),
            ROUNDS as u64 * STEPS
        );
    });
}

/// A worker that is stopped while its work panics is dead of the panic, whichever came first: a
/// stop hides no panic. At most one stop is reported and exactly one death, which comes last.
#[test]
fn stop_versus_panic() {
    type Fall = Mutex<Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>>;
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let events = registry.subscribe();
        let (first, wrong) = (Cell::new(0), Cell::new(0));
        race(
            ROUNDS,
            |round| {
                let hb = worker(&registry).start().unwrap();
                // Without the hook, which would write twenty thousand messages.
                let fall: Fall = Mutex::new(Box::pin(
                    hb.supervise(async { resume_unwind(Box::new("simulated panic")) }),
                ));
                (round, hb, fall)
            },
            &[
                &|(round, hb, _): &(usize, WorkerHeartbeat, Fall)| {
                    // Unwinding takes a while.
                    dawdle(chance(*round) % 30_000);
                    hb.stop();
                },
                &|(_, _, fall)| {
                    let mut context = Context::from_waker(Waker::noop());
                    let polled = fall.lock().unwrap().as_mut().poll(&mut context);
                    assert!(matches!(polled, Poll::Ready(Err(Error::Panicked { .. }))));
                },
            ],
            |_, (_, hb, _)| {
                assert_eq!(ending(&hb.probe()), "panic");
                let reported = names(&events_of(&events, hb.id()));
                let count = |wanted| reported.iter().filter(|name| *name == wanted).count();
                assert!(count("dead") == 1 && count("stopped") <= 1, "{reported:?}");
                wrong.set(wrong.get() + usize::from(reported.last().unwrap() != "dead"));
                first.set(first.get() + 1 - count("stopped"));
                let probe = hb.probe();
                drop(hb);
                assert_eq!(ending(&probe), "panic");
                registry.purge(Duration::ZERO);
                let _ = events.try_iter().count();
            },
        );
        println!("the panic came first in {} rounds of {ROUNDS}", first.get());
        assert_eq!(
            wrong.get(),
            0,
            "rounds of {ROUNDS} in which the stop was reported last"
        );
    });
}

/// A worker that is asked to stop while it panics is dead of the panic, with the run that it was
/// processing, even if it was idle, and so stopped at once, before the panic. Exactly one death is
/// reported, and comes last; the work never runs again; `join()` returns the panic.
#[test]
fn signal_versus_panic() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let events = registry.subscribe();
        let (mut stopped, mut wrong) = (0, 0);
        settle_on(0);
        for round in rounds(ROUNDS) {
            let meeting = Arc::new(Meeting::of(2));
            let idle = round % 2 == 0;
            let supervisor = Supervisor::new(&registry);
            let worker = {
                let meeting = Arc::clone(&meeting);
                let work = move |hb: &WorkerHeartbeat| {
                    settle_on(1);
                    if idle {
                        hb.mark_idle();
                    } else {
                        hb.update_task("run-7", "falling", Activity::Processing);
                    }
                    meeting.wait();
                    stagger(round, 1);
                    if round % 1_024 == 1 {
                        panic!("simulated panic");
                    }
                    // Without the hook, which writes a message and takes the call stack.
                    resume_unwind(Box::new("simulated panic"));
                };
                supervisor.spawn(worker(&registry), work).unwrap()
            };
            meeting.wait();
            dawdle(chance(round) % 4_000);
            if round % 4 < 2 {
                worker.stop();
            } else {
                assert!(supervisor.shutdown(PATIENCE).is_clean());
            }
            let exit = worker.join();
            assert!(
                matches!(&exit, Exit::Panicked { message, .. } if message == "simulated panic"),
                "{exit:?}"
            );
            let probe = worker.probe();
            assert_eq!(ending(&probe), "panic");
            let run = (!idle).then(|| "run-7".to_owned());
            assert_eq!(probe.snapshot().run_id, run);
            let reported = names(&events_of(&events, probe.id()));
            let count = |wanted| reported.iter().filter(|name| *name == wanted).count();
            assert_eq!((count("registered"), count("dead")), (1, 1), "{reported:?}");
            assert!(count("stopped") <= usize::from(idle), "{reported:?}");
            assert!(count("stopping") <= usize::from(!idle), "{reported:?}");
            stopped += count("stopped");
            wrong += usize::from(reported.last().unwrap() != "dead");
            registry.purge(Duration::ZERO);
        }
        println!(
            "stopped before the panic in {stopped} rounds of {}",
            ROUNDS / 2
        );
        assert_eq!(
            wrong, 0,
            "rounds of {ROUNDS} in which the death was not reported last"
        );
    });
}

/// Once `stop()` has returned, no further life begins. Every life that began has ended, with
/// exactly one ending reported, and every restart that was announced happened, except the last one.
#[test]
fn restart_versus_stop() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let events = registry.subscribe_with_capacity(ALL_EVENTS);
        let restart = Restart::always()
            .max(u32::MAX)
            .backoff(Duration::from_nanos(1), Duration::from_micros(20));
        let mut lives = 0;
        settle_on(0);
        for round in rounds(ROUNDS / 2) {
            let supervisor = Supervisor::new(&registry).restart(restart.clone());
            let meeting = Arc::new(Meeting::of(2));
            let worker = {
                let meeting = Arc::clone(&meeting);
                let mut first = true;
                let work = move |hb: &WorkerHeartbeat| {
                    if std::mem::take(&mut first) {
                        settle_on(1);
                        meeting.wait();
                    }
                    hb.beat();
                    stagger(round, 1);
                    match round % 3 {
                        0 => Err("simulated failure".into()),
                        1 => Ok(()),
                        _ => resume_unwind(Box::new("simulated panic")),
                    }
                };
                supervisor.spawn(worker(&registry), work).unwrap()
            };
            meeting.wait();
            for _ in 0..round % 7 {
                stagger(round, 0);
            }
            worker.stop();
            let incarnation = worker.probe().snapshot().incarnation;
            worker.join();
            let last = worker.probe().snapshot();
            assert_eq!(last.incarnation, incarnation, "a life began after stop()");
            assert!(last.health.state().is_terminal(), "{last:?}");
            assert_eq!(last.restarts + 1, incarnation);
            let reported = events_of(&events, worker.id());
            let mut by_life = HashMap::<u32, (usize, usize)>::new();
            for event in &reported {
                let life = event.worker.as_ref().unwrap().incarnation;
                let (begun, ended) = by_life.entry(life).or_default();
                *begun += usize::from(name(event) == "registered");
                *ended += usize::from(is_ending(event));
            }
            assert_eq!(by_life.len(), incarnation as usize);
            assert!(
                by_life.values().all(|counts| *counts == (1, 1)),
                "{:?}",
                names(&reported)
            );
            let announced = names(&reported)
                .iter()
                .filter(|name| name.starts_with("restart "))
                .count();
            let announced = u32::try_from(announced).unwrap();
            assert!((incarnation - 1..=incarnation).contains(&announced));
            lives += incarnation;
            registry.purge(Duration::ZERO);
        }
        println!("{lives} lives");
    });
}

/// When a worker becomes idle while another thread asks it to stop, at least one of the two sees
/// the other: the worker is stopped, and the stop is reported once.
#[test]
fn a_request_to_stop_versus_going_idle() {
    alone(|| {
        let (registry, _anchor) = busy_registry();
        let events = registry.subscribe();
        race(
            ROUNDS,
            |round| {
                let ward = Ward::new(&registry);
                if round % 2 == 0 {
                    ward.hb.update_task("run", "task", Activity::Processing);
                }
                ward
            },
            &[&|ward: &Ward| ward.ask_to_stop(), &|ward| {
                if ward.hb.snapshot().run_id.is_some() {
                    ward.hb.update_task("", "", Activity::Idle);
                } else {
                    ward.hb.mark_idle();
                }
            }],
            |_, ward| {
                let probe = ward.hb.probe();
                assert!(ward.hb.stop_requested());
                assert_eq!(ending(&probe), "supervisor");
                drop(ward);
                assert_eq!(ending(&probe), "supervisor");
                let reported = events_of(&events, probe.id());
                assert_eq!(reported.iter().filter(|event| is_ending(event)).count(), 1);
                registry.purge(Duration::ZERO);
            },
        );
    });
}
