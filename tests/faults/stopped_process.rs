//! A process that is stopped during the shutdown of a supervisor.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use worker_heartbeat::{Registry, StopReport, Supervisor, WorkerHeartbeat};

use crate::fixtures::MILLISECOND;
use crate::support::executor::block_on;
use crate::support::process::with_child;

/// Time in which the process did not run is not charged to workers that are stopping: one that
/// needs 300 ms has a second, and the process is stopped for three seconds in between. The same
/// holds for the children of a life.
#[test]
fn a_stopped_process_charges_no_child_with_it() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const STOPPED: Duration = Duration::from_secs(3);
    type ShutDown = fn(&Supervisor) -> StopReport;
    let ways: [ShutDown; 3] = [
        |supervisor| supervisor.shutdown(TIMEOUT),
        |supervisor| block_on(supervisor.shutdown_async(TIMEOUT)),
        |supervisor| supervisor.shutdown(Duration::MAX),
    ];
    let play = || {
        for (number, shut_down) in ways.into_iter().enumerate() {
            let registry = Registry::new();
            let events = registry.subscribe();
            let supervisor = Supervisor::new(&registry);
            let worker = WorkerHeartbeat::builder("w").id("parent");
            let as_child = number == 2;
            let slow = |hb: &WorkerHeartbeat| {
                hb.stop_receiver().recv()?;
                println!("\n@stopping");
                kill(Pid::this(), Signal::SIGSTOP)?;
                // The time that it takes to end.
                thread::sleep(300 * MILLISECOND);
                Ok(())
            };
            supervisor
                .spawn(worker, move |hb| {
                    if !as_child {
                        return slow(hb);
                    }
                    let children = Supervisor::linked_to(hb).stop_children_within(TIMEOUT);
                    children.spawn(WorkerHeartbeat::builder("w"), slow)?;
                    hb.stop_receiver().recv()?;
                    Ok(())
                })
                .unwrap();
            let report = shut_down(&supervisor);
            assert!(report.is_clean(), "{report:?}");
            assert!(report.took >= STOPPED);
            let events: Vec<_> = events.try_iter().map(|event| event.to_string()).collect();
            let hung = events.iter().any(|event| event.contains("did not end"));
            assert!(!hung, "{events:?}");
        }
    };
    with_child(play, |process| {
        for _ in ways {
            process.expect("@stopping");
            process.stays_stopped(STOPPED);
        }
    });
}
