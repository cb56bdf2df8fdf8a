//! Evidence about a thread that cannot be read, or that is not the one that reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use worker_heartbeat::{Activity, Health, Probe, Registry, StallCause, State, Supervisor};

use crate::fixtures::{MILLISECOND, worker};
use crate::support::eventually;
use crate::support::process::in_child;

/// The cause of a stall, once there was time to read the thread twice.
fn settled_cause(probe: &Probe) -> Option<StallCause> {
    match probe.health() {
        Health::Stalled(stalled) if stalled.cause != StallCause::Unknown => Some(stalled.cause),
        _ => None,
    }
}

fn spin(over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// A thread that spins, and a process that can open no more files.
#[test]
fn a_thread_that_cannot_be_looked_at_for_want_of_files_has_not_ended() {
    in_child(|| {
        let registry = Registry::new();
        let builder = worker(&registry, "w").stall_after(100 * MILLISECOND);
        let hb = builder.start().unwrap();
        let probe = hb.probe();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                hb.update_task("run-1", "at work", Activity::Processing);
                spin(&over);
            });
            eventually("at work", || probe.is_recent());
            let (_, most) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 0, most).unwrap();
            eventually("it stalls", || probe.health().state() == State::Stalled);
            // One reading of its thread each resolution, for longer than a wrong answer would need.
            for _ in 0..20 {
                let health = probe.health();
                assert!(!health.to_string().contains("ended"), "{health}");
                thread::sleep(10 * MILLISECOND);
            }
            over.store(true, Ordering::Relaxed);
        });
    });
}

/// The thread that forks is the child's only one, with another id than before.
#[test]
fn evidence_in_a_forked_child_is_of_its_own_thread() {
    fn in_fork() -> bool {
        let registry = Registry::new();
        let builder = worker(&registry, "child").stall_after(100 * MILLISECOND);
        let hb = builder.start().unwrap();
        let (probe, over) = (hb.probe(), Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&over);
        let looking = thread::spawn(move || {
            let mut cause = None;
            eventually("it stalls", || {
                cause = settled_cause(&probe);
                cause.is_some()
            });
            until.store(true, Ordering::Relaxed);
            matches!(cause, Some(StallCause::Busy { .. }))
        });
        hb.update_task("run-2", "after the fork", Activity::Processing);
        spin(&over);
        looking.join().unwrap()
    }
    in_child(|| {
        let parents = Registry::new();
        let hb = worker(&parents, "parent").start().unwrap();
        hb.update_task("run-1", "before the fork", Activity::Processing);
        drop(hb);
        // SAFETY: the parent has no other thread of this crate any more: its pacemaker was joined
        // with its last worker. The child leaves by `_exit`.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let busy = in_fork();
                // SAFETY: it ends this process, and runs nothing that the process has inherited.
                unsafe { libc::_exit(i32::from(!busy)) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
    });
}

/// A helper reports for a supervised worker and ends; the supervised thread spins.
#[test]
fn a_helper_that_reported_does_not_take_the_evidence_with_it() {
    in_child(|| {
        let registry = Registry::new();
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let supervised = Supervisor::new(&registry)
            .spawn(
                worker(&registry, "w").stall_after(100 * MILLISECOND),
                move |hb| {
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            hb.update_task("run-1", "first half", Activity::Processing);
                        });
                    });
                    spin(&until);
                    Ok(())
                },
            )
            .unwrap();
        let probe = supervised.probe();
        let mut cause = None;
        eventually("it stalls", || {
            cause = settled_cause(&probe);
            cause.is_some()
        });
        over.store(true, Ordering::Relaxed);
        assert!(matches!(cause, Some(StallCause::Busy { .. })), "{cause:?}");
    });
}

/// A supervised future waits for a thread that reports for it and spins.
#[test]
fn work_on_another_thread_is_not_described_as_a_future_that_is_not_polled() {
    in_child(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let registry = Registry::new();
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let builder = worker(&registry, "w")
            .id("w")
            .stall_after(100 * MILLISECOND);
        let supervised = Supervisor::new(&registry).supervise(builder, move |hb| {
            let until = Arc::clone(&until);
            async move {
                let work = tokio::task::spawn_blocking(move || {
                    hb.update_task("run-1", "hashing", Activity::Processing);
                    spin(&until);
                });
                let _ = work.await;
            }
        });
        let supervised = supervised.unwrap();
        let probe = registry.get("w").unwrap();
        let running = thread::spawn(move || runtime.block_on(supervised));
        let mut cause = None;
        eventually("it stalls", || {
            cause = settled_cause(&probe);
            cause.is_some()
        });
        over.store(true, Ordering::Relaxed);
        running.join().unwrap();
        assert!(matches!(cause, Some(StallCause::Busy { .. })), "{cause:?}");
    });
}
