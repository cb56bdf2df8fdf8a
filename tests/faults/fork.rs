//! Forked processes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use worker_heartbeat::{
    Activity, EventKind, Registry, Restart, State, Supervisor, WorkerHeartbeat,
};

use crate::fixtures::{MILLISECOND, worker};
use crate::support::process::in_child;
use crate::support::{PATIENCE, eventually, pacemakers};

/// How a forked child reports to its parent what went wrong: by its exit status.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Fork {
    AsExpected,
    NeverUnobserved,
    Recent,
    NewcomerRecent,
    Convicted,
    Panicked,
}

/// A forked child does not beat as its parent: it has no pacemaker, so its copy of the worker soon
/// is unobserved and never recent again, whatever it beats, and so is one that it registers; it can
/// end both. The parent stays well, and counts its own beats only.
#[test]
fn a_fork_does_not_beat_as_its_parent() {
    let play = || {
        let registry = Registry::new();
        let hb = worker(&registry, "parent")
            .stale_after(100 * MILLISECOND)
            .start()
            .unwrap();
        for _ in 0..3 {
            hb.beat();
        }
        eventually("it is observed", || hb.is_recent());
        // SAFETY: the child only reads the worker, and leaves by `_exit`. The locks that it needs
        // are free: only the pacemaker uses the registry, once in 10 ms; if it does so during the
        // fork, the parent sees the child hang, and tries again.
        let forked = || unsafe { fork() }.unwrap();
        for attempt in 1.. {
            let child = match forked() {
                ForkResult::Parent { child } => child,
                ForkResult::Child => {
                    let result = catch_unwind(AssertUnwindSafe(|| in_fork(hb, &registry)));
                    // SAFETY: it ends this process, and runs nothing that the process has
                    // inherited.
                    unsafe { libc::_exit(result.unwrap_or(Fork::Panicked) as i32) }
                }
            };
            let deadline = Instant::now() + PATIENCE / 3;
            let status = loop {
                let status = waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap();
                if status != WaitStatus::StillAlive {
                    break Some(status);
                }
                assert!(hb.is_recent() || hb.health().state() == State::Unobserved);
                assert_eq!(hb.snapshot().beats, 3);
                if Instant::now() > deadline {
                    kill(child, Signal::SIGKILL).unwrap();
                    waitpid(child, None).unwrap();
                    break None;
                }
                // Real processes need real time.
                thread::sleep(MILLISECOND);
            };
            let Some(status) = status else {
                assert!(attempt < 3, "the child hangs");
                continue;
            };
            assert_eq!(status, WaitStatus::Exited(child, Fork::AsExpected as i32));
            break;
        }
        eventually("the parent is well", || hb.is_recent());
        assert_eq!(hb.snapshot().beats, 3);
        assert_eq!(registry.workers().len(), 1);
        assert_eq!(pacemakers().len(), 1);
    };
    in_child(play);
}

fn in_fork(hb: WorkerHeartbeat, registry: &Registry) -> Fork {
    let forked = Instant::now();
    while hb.health().state() != State::Unobserved {
        hb.beat();
        if forked.elapsed() > PATIENCE / 6 {
            return Fork::NeverUnobserved;
        }
    }
    let newcomer = worker(registry, "newcomer")
        .stale_after(50 * MILLISECOND)
        .start();
    let newcomer = newcomer.unwrap();
    for _ in 0..3 {
        hb.beat();
        hb.update_task("run", "of the child", Activity::Processing);
        newcomer.beat();
        if hb.is_recent() {
            return Fork::Recent;
        }
        if newcomer.is_recent() {
            return Fork::NewcomerRecent;
        }
        if hb.health().state() != State::Unobserved {
            return Fork::Convicted;
        }
    }
    drop(newcomer);
    drop(hb);
    Fork::AsExpected
}

/// The wait, in seconds of at most 250, before a forked child would restart.
fn wait_in_fork() -> i32 {
    let registry = Registry::new();
    let events = registry.subscribe();
    let longest = Duration::from_secs(250);
    let policy = Restart::on_failure().backoff(longest, longest).jitter(1.0);
    let run = Supervisor::new(&registry)
        .restart(policy)
        .supervise(worker(&registry, "w"), |_| async {
            Err::<(), _>("no route")
        });
    let mut run = Box::pin(run.unwrap());
    let mut context = Context::from_waker(Waker::noop());
    assert!(run.as_mut().poll(&mut context).is_pending());
    let delay = events.try_iter().find_map(|event| match event.kind {
        EventKind::Restarting { delay, .. } => Some(delay.as_secs()),
        _ => None,
    });
    i32::try_from(delay.unwrap()).unwrap()
}

/// Forked workers that fail together do not restart together.
#[test]
fn forked_children_do_not_wait_equally_long_before_a_restart() {
    const PANICKED: i32 = 255;
    let play = || {
        // The thread has drawn its random keys, as that of every application has.
        drop(std::hash::RandomState::new());
        let waits = [(); 3].map(|()| {
            // SAFETY: no other thread of this process is in the library, and the child leaves by
            // `_exit`.
            match unsafe { fork() }.unwrap() {
                ForkResult::Parent { child } => waitpid(child, None).unwrap(),
                ForkResult::Child => {
                    let wait = catch_unwind(wait_in_fork);
                    // SAFETY: it ends this process, and runs nothing that the process has
                    // inherited.
                    unsafe { libc::_exit(wait.unwrap_or(PANICKED)) }
                }
            }
        });
        let waits = waits.map(|status| match status {
            WaitStatus::Exited(_, wait) if wait != PANICKED => wait,
            other => panic!("{other:?}"),
        });
        assert!(waits[0] != waits[1] || waits[1] != waits[2], "{waits:?}");
    };
    in_child(play);
}
