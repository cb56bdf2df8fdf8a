//! The first supervised work of a process runs in a destructor while its thread unwinds: no call of the
//! library panics because its caller unwinds.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::executor::{block_on, poll_once};
use crate::support::process::in_child;
use worker_heartbeat::{Health, Registry, State, StopCause, Supervisor, WorkerHeartbeat};

/// Runs a closure when it is dropped.
struct Runs<F: FnMut()>(F);

impl<F: FnMut()> Drop for Runs<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn supervised_work_in_a_destructor_of_an_unwinding_thread_is_reported_as_usual() {
    in_child(|| {
        let registry = Registry::new();
        let (send, receive) = mpsc::channel();
        let of_thread = registry.clone();
        let thread = thread::spawn(move || {
            let _runs = Runs(move || {
                let hb = WorkerHeartbeat::builder("w")
                    .registry(&of_thread)
                    .start()
                    .unwrap();
                let well = block_on(hb.supervise(async { "well" }));
                let supervisor = Supervisor::new(&of_thread);
                let worker = WorkerHeartbeat::builder("w").finite();
                let worker = supervisor.spawn(worker, |_| Ok(())).unwrap();
                let stopped = [hb.probe(), worker.probe()];
                assert!(worker.join().is_completed());
                let fallen = WorkerHeartbeat::builder("w")
                    .registry(&of_thread)
                    .start()
                    .unwrap();
                let fell = block_on(fallen.supervise(async { panic!("in the future") }));
                assert!(supervisor.shutdown(Duration::from_secs(30)).is_clean());
                let dropped = WorkerHeartbeat::builder("w")
                    .registry(&of_thread)
                    .start()
                    .unwrap();
                let mut future = Box::pin(dropped.supervise(std::future::pending::<()>()));
                assert!(poll_once(&mut future).is_pending());
                drop(future);
                send.send((well, stopped, fell, fallen.probe(), dropped.probe()))
                    .unwrap();
            });
            panic!("the thread itself")
        });
        let payload = thread.join().unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"the thread itself"));
        let (well, stopped, fell, fallen, dropped) = receive.recv().unwrap();
        assert_eq!(well.unwrap(), "well");
        for probe in stopped {
            assert_eq!(probe.health().state(), State::Stopped);
        }
        let error: Result<(), _> = fell;
        assert!(error.unwrap_err().to_string().contains("in the future"));
        let words = fallen.health().to_string();
        assert!(words.contains("in the future"), "{words}");
        assert!(matches!(
            dropped.health(),
            Health::Stopped {
                by: StopCause::Cancelled,
                ..
            }
        ));
    });
}
