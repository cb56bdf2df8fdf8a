//! When the panic hook is installed: before the call returns that requests supervision, so that a
//! hook which the application sets later does not race with it. Each case runs in a process of its
//! own.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::World;
use crate::support::executor::block_on;
use crate::support::process::in_child;
use worker_heartbeat::{DeathCause, Error, Health, Probe, Supervisor};

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Sets a hook that does not call the previous one, and so hides it.
fn set_hook_of_the_application() {
    panic::set_hook(Box::new(|_| {
        CALLS.fetch_add(1, Ordering::SeqCst);
    }));
}

/// The later hook is the only one: none was installed in front of it since.
fn assert_that_only_the_later_hook_was_called(probe: &Probe) {
    assert_eq!(CALLS.load(Ordering::SeqCst), 1);
    let Health::Dead { death, .. } = probe.health() else {
        panic!("{}", probe.health());
    };
    assert!(
        matches!(&death.cause, DeathCause::Panicked { message, location: None, .. } if message == "boom"),
        "{death:?}"
    );
}

#[test]
fn a_new_supervisor_installs_the_hook() {
    in_child(|| {
        let world = World::new();
        let supervisor = Supervisor::new(&world.registry);
        set_hook_of_the_application();
        let worker = supervisor
            .spawn(world.worker("w"), |_| panic!("boom"))
            .unwrap();
        worker.join();
        assert_that_only_the_later_hook_was_called(&worker.probe());
    });
}

#[test]
fn supervise_installs_the_hook_before_the_first_poll() {
    in_child(|| {
        let world = World::new();
        let hb = world.worker("w").start().unwrap();
        let run = hb.supervise(async { panic!("boom") });
        set_hook_of_the_application();
        let result: Result<(), Error> = block_on(run);
        assert!(result.is_err());
        assert_that_only_the_later_hook_was_called(&hb.probe());
    });
}

#[test]
fn a_spawn_installs_the_hook_that_its_supervisor_could_not() {
    in_child(|| {
        struct Makes(World, Option<Supervisor>);
        impl Drop for Makes {
            fn drop(&mut self) {
                self.1 = Some(Supervisor::new(&self.0.registry));
                SUPERVISOR.lock().unwrap().clone_from(&self.1);
            }
        }
        static SUPERVISOR: std::sync::Mutex<Option<Supervisor>> = std::sync::Mutex::new(None);
        let world = World::new();
        let registry = world.registry.clone();
        let unwinds = std::thread::spawn(move || {
            let _makes = Makes(
                World {
                    registry,
                    ..World::new()
                },
                None,
            );
            panic!("no hook can be set");
        });
        assert!(unwinds.join().is_err());
        let supervisor = SUPERVISOR.lock().unwrap().take().unwrap();
        let (go, held) = std::sync::mpsc::channel::<()>();
        let worker = supervisor
            .spawn(world.worker("w"), move |_| {
                let _ = held.recv();
                panic!("boom")
            })
            .unwrap();
        set_hook_of_the_application();
        drop(go);
        worker.join();
        assert_that_only_the_later_hook_was_called(&worker.probe());
    });
}
