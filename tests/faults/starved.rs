//! Processes and pacemakers that get no processor time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use worker_heartbeat::{Activity, Probe, Registry, State};

use crate::fixtures::{
    ALL_EVENTS, Crew, MILLISECOND, READER_PATIENCE, Reader, SLACK, beat,
    forgiven_and_none_convicted, worker,
};
use crate::support::process::{in_child, with_child};
use crate::support::{SECOND, eventually, pacemakers};

/// A process is stopped for three times `stale_after` and continued, three times. No worker is
/// convicted, neither by a reader that polls every 10 ms nor in the events: workers that only their
/// own beats keep well, ones that would stall, vouched ones, idle ones, and one that has not
/// started yet. The time is reported as forgiven.
///
/// The time in which workers are unobserved is bounded. When the process continues, the pacemaker's
/// sleep has ended long ago, so it ticks as soon as it gets a processor; a reader that finds it
/// overdue waits 100 ms for that. A worker is unobserved only if the pacemaker gets no processor
/// for that long, and only until it does. So the bound is the scheduler's, `SLACK`; mostly the time
/// is zero.
#[test]
fn a_stopped_process_convicts_no_worker() {
    const LIMIT: Duration = Duration::from_secs(1);
    const STOPPED: Duration = Duration::from_secs(3);
    const TIMES: usize = 3;
    let play = || {
        let registry = Registry::new();
        let events = registry.subscribe_with_capacity(ALL_EVENTS);
        let mut crew = Crew::default();
        let pace = 20 * MILLISECOND;
        let start = |id: &str| worker(&registry, id).startup_grace(60 * SECOND);
        crew.add(
            start("beats-only").stale_after(LIMIT).beats_only(),
            pace,
            beat,
        );
        crew.add(
            start("stalling").stale_after(LIMIT).stall_after(LIMIT),
            pace,
            beat,
        );
        crew.add(start("at-a-task").stall_after(LIMIT), pace, |hb| {
            hb.update_task("run", "task", Activity::Processing);
        });
        // These two report progress now and then; in between the pacemaker vouches for them.
        crew.add(start("vouched").stale_after(LIMIT / 2), 20 * SECOND, beat);
        crew.add(start("idle").stall_after(LIMIT), 20 * SECOND, |hb| {
            hb.mark_idle()
        });
        let mut reader = Reader::default();
        for _ in 0..TIMES {
            println!("\n@stopping");
            // Its grace is shorter than the stop. Of the grace it needs only the time that a thread
            // takes to stop the process, however busy the machine is, and the time after it.
            let late = worker(&registry, "late")
                .startup_grace(9 * STOPPED / 10)
                .start()
                .unwrap();
            // Read before, and once in each round: wherever the stop falls, it lies between two
            // readings.
            let mut last = Instant::now();
            let stopping = thread::spawn(|| kill(Pid::this(), Signal::SIGSTOP).unwrap());
            let mut look = || {
                reader.look(&crew.probes);
                assert_ne!(late.health().state(), State::NeverStarted);
                // The interval of the poll, as the test's description has it.
                thread::sleep(10 * MILLISECOND);
            };
            loop {
                let now = Instant::now();
                if now - std::mem::replace(&mut last, now) >= STOPPED / 2 {
                    break;
                }
                look();
            }
            let went_on = Instant::now();
            while went_on.elapsed() < LIMIT / 2 {
                look();
            }
            stopping.join().unwrap();
            late.beat();
            assert!(late.is_recent() || late.health().state() == State::Unobserved);
        }
        reader.report("stopped and continued");
        let forgiven = forgiven_and_none_convicted(&events);
        let two_ticks = 2 * registry.resolution();
        let gaps = forgiven
            .iter()
            .filter(|gap| **gap + two_ticks >= STOPPED)
            .count();
        println!("@measured {TIMES} stops of {STOPPED:?}, of which was forgiven: {forgiven:?}");
        assert_eq!(gaps, TIMES);
        assert!(reader.unobserved <= SLACK * TIMES as u32);
        assert!(reader.longest_call <= STOPPED + READER_PATIENCE + SLACK);
        crew.over.store(true, Ordering::Relaxed);
    };
    with_child(play, |process| {
        for _ in 0..TIMES {
            process.expect("@stopping");
            process.stays_stopped(STOPPED);
        }
    });
}

/// Two hundred threads spin for 20 s on this machine's few processors. Workers that beat every 50
/// ms as well as they can, with limits of a few seconds, and vouched ones with the shortest limits
/// there are, are never convicted; nor are workers that register and end meanwhile.
#[test]
fn two_hundred_spinning_threads_convict_no_worker() {
    const TIME: Duration = Duration::from_secs(20);
    let play = || {
        let registry = Registry::new();
        let events = registry.subscribe_with_capacity(ALL_EVENTS);
        let mut crew = Crew::default();
        let pace = 50 * MILLISECOND;
        let start = |id: &str| worker(&registry, id).startup_grace(60 * SECOND);
        crew.add(
            start("beats-only-5s").stale_after(5 * SECOND).beats_only(),
            pace,
            beat,
        );
        crew.add(start("stalling-5s").stall_after(5 * SECOND), pace, beat);
        crew.add(start("stalling-4s").stall_after(4 * SECOND), pace, |hb| {
            hb.update_task("run", "task", Activity::Processing);
        });
        crew.add(start("changing").stall_after(5 * SECOND), pace, |hb| {
            drop(hb.begin_task("run", "task"));
        });
        for limit in [20, 50, 200] {
            let id = format!("vouched-{limit}ms");
            crew.add(start(&id).stale_after(limit * MILLISECOND), pace, beat);
        }
        let over = Arc::clone(&crew.over);
        let spinning: Vec<_> = (0..200)
            .map(|_| {
                let over = Arc::clone(&over);
                thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        let (mut reader, mut passing) = (Reader::default(), 0);
        let begun = Instant::now();
        while begun.elapsed() < TIME {
            reader.look(&crew.probes);
            let short = start("passing")
                .stale_after(20 * MILLISECOND)
                .start()
                .unwrap();
            short.beat();
            let state = short.health().state();
            assert!(
                [State::Active, State::Unobserved].contains(&state),
                "{state}"
            );
            passing += 1;
            assert_eq!(registry.summary().total_dead, 0);
            // Every 10 ms, if it gets a processor.
            thread::sleep(10 * MILLISECOND);
        }
        crew.dismiss();
        for thread in spinning {
            thread.join().unwrap();
        }
        let forgiven = forgiven_and_none_convicted(&events);
        reader.report("200 spinning threads");
        println!(
            "@measured 200 spinning threads: {passing} workers came and went; {} gaps, {:?} in all, \
             {:?} at most, were forgiven",
            forgiven.len(),
            forgiven.iter().sum::<Duration>(),
            forgiven.iter().max(),
        );
        assert!(
            reader.readings > 100,
            "{} readings are too few",
            reader.readings
        );
    };
    in_child(play);
}

/// A pacemaker that the kernel runs only on an idle processor, on a machine that has none. The
/// workers beat, so none is convicted, however rarely the pacemaker runs; a reader waits no longer
/// than its patience, and answers with the true state or with unobserved. When the load ends, it
/// answers with the true state.
#[test]
fn a_pacemaker_that_cannot_be_scheduled() {
    const TIME: Duration = Duration::from_secs(4);
    let play = || {
        let registry = Registry::new();
        let events = registry.subscribe_with_capacity(ALL_EVENTS);
        let mut crew = Crew::default();
        let pace = 10 * MILLISECOND;
        let start = |id: &str| worker(&registry, id).startup_grace(60 * SECOND);
        crew.add(start("vouched").stale_after(20 * MILLISECOND), pace, beat);
        crew.add(
            start("beats-only").stale_after(SECOND).beats_only(),
            pace,
            beat,
        );
        crew.add(start("stalling").stall_after(SECOND), pace, |hb| {
            hb.update_task("run", "task", Activity::Processing);
        });
        let mut thread = None;
        eventually("the pacemaker has its name", || {
            thread = pacemakers().first().copied();
            thread.is_some()
        });
        let lowest = libc::sched_param { sched_priority: 0 };
        // SAFETY: it only reads the structure that it is given.
        let set = unsafe { libc::sched_setscheduler(thread.unwrap(), libc::SCHED_IDLE, &lowest) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        let over = Arc::new(AtomicBool::new(false));
        let processors = thread::available_parallelism().unwrap().get();
        let spinning: Vec<_> = (0..2 * processors)
            .map(|_| {
                let over = Arc::clone(&over);
                thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect();
        let mut reader = Reader::default();
        let begun = Instant::now();
        while begun.elapsed() < TIME {
            reader.look(&crew.probes);
            // As often as a busy health endpoint is queried.
            thread::sleep(10 * MILLISECOND);
        }
        over.store(true, Ordering::Relaxed);
        for thread in spinning {
            thread.join().unwrap();
        }
        eventually("all workers are recent", || {
            crew.probes.iter().all(Probe::is_recent)
        });
        let forgiven = forgiven_and_none_convicted(&events);
        reader.report("a pacemaker of the lowest priority");
        println!(
            "@measured a pacemaker of the lowest priority: {} gaps, {:?} in all, were forgiven",
            forgiven.len(),
            forgiven.iter().sum::<Duration>(),
        );
        assert!(reader.longest_call <= READER_PATIENCE + SLACK);
        crew.dismiss();
    };
    in_child(play);
}
