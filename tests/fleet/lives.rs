//! What a store keeps of a worker through its lives, and what happens to two processes with one id.

use worker_heartbeat::StopCause;
use worker_heartbeat::fleet::{ProcessIdentity, Registration, Stop, StoredEnding, WorkerFilter};
use worker_heartbeat::{
    BoxError, FleetConfig, HeartbeatStore, MemoryStore, OnDuplicate, Registry, Restart, State,
    Supervisor, WorkerHeartbeat,
};

use crate::support::{PATIENCE, SECOND, World, duties, eventually, names};

#[test]
fn last_deaths_are_kept_in_memory() {
    duties::last_deaths_are_kept(&MemoryStore::new());
}

#[test]
fn duplicates_are_refused_on_request_in_memory() {
    duties::duplicates_are_refused_on_request(&MemoryStore::new());
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_does_the_same() {
    let folder = crate::support::folder::Folder::new("lives");
    for (name, duty) in [
        (
            "deaths",
            duties::last_deaths_are_kept as fn(&dyn HeartbeatStore),
        ),
        ("duplicates", duties::duplicates_are_refused_on_request),
    ] {
        duty(&worker_heartbeat::SqliteStore::open(folder.join(name)).unwrap());
    }
}

/// Deaths between two rounds never reach the store as ends.
#[test]
fn the_reason_of_a_worker_that_crashes_in_a_loop_reaches_the_store() {
    let store = MemoryStore::new();
    let registry = Registry::new();
    let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let supervisor = Supervisor::new(&registry).restart(Restart::on_failure().max(1_000));
    let builder = WorkerHeartbeat::builder("poller").id("a");
    let mut lives = 0;
    let worker = supervisor
        .spawn(
            builder,
            move |hb: &WorkerHeartbeat| -> Result<(), BoxError> {
                lives += 1;
                if lives <= 3 {
                    return Err("no module named server".into());
                }
                while !hb.stop_requested() {
                    hb.beat();
                    std::thread::yield_now();
                }
                Ok(())
            },
        )
        .unwrap();
    eventually("its last death is stored", || {
        attachment.flush(PATIENCE);
        let row = store.list(&WorkerFilter::new()).unwrap().remove(0);
        row.ending.is_none()
            && row
                .last_death
                .is_some_and(|death| death.cause().to_string().contains("no module named server"))
    });
    worker.stop();
    worker.join();
    supervisor.shutdown(10 * SECOND);
}

#[test]
fn restarting_processes_with_one_id_do_not_fence_each_other() {
    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    // Another process has the id.
    let mut holder = Registration::new("poller", "a");
    let mut process = ProcessIdentity::default();
    process.pid = 7;
    process.hostname = "pod-1".into();
    holder.info.process = Some(process);
    let key = store.register(&[holder]).unwrap().remove(0);
    let config = FleetConfig::new().on_duplicate(OnDuplicate::Refuse);
    let attachment = world.registry.attach(store.clone(), config).unwrap();
    let events = world.registry.subscribe();
    let hb = world.worker("poller").id("a").start().unwrap();
    let other = world.worker("poller").id("b").start().unwrap();
    hb.beat();
    other.beat();
    assert!(!attachment.flush(PATIENCE), "one is refused");
    assert_eq!(attachment.status().refused, 1);
    let error = attachment.status().last_error.unwrap();
    assert!(error.contains("process 7 on pod-1"), "{error}");
    assert!(names(&events).contains(&"refused".to_owned()));
    let claim = hb.claim("run", 60 * SECOND).unwrap_err().to_string();
    assert!(claim.contains("process 7 on pod-1"), "{claim}");
    assert!(other.claim("run", 60 * SECOND).unwrap().is_some());
    let rows = store.list(&WorkerFilter::new()).unwrap();
    assert_eq!(rows[0].key, key, "it is not superseded");
    assert!(hb.health().is_recent(), "it works on without the store");
    let ending = StoredEnding::stopped(&StopCause::Stop);
    store.stop(&[Stop::new(key.clone(), ending)]).unwrap();
    eventually("it gets the id", || {
        hb.beat();
        world.seconds(1);
        let row = store.list(&WorkerFilter::new()).unwrap().remove(0);
        row.key != key && row.health().state() == State::Active
    });
    assert!(hb.claim("run-2", 60 * SECOND).unwrap().is_some());
}
