//! What probes, files and coordinators say of sweeps.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::coordinator::{exchange, request};
use crate::support::folder::Folder;
use crate::support::store::{Mode, TestStore};
use crate::support::{SECOND, World, eventually, retention};
use worker_heartbeat::fleet::{ProcessIdentity, Registration};
use worker_heartbeat::{
    Beacon, Coordinator, HealthEndpoint, HeartbeatStore, HttpStore, MemoryStore, Sweeper,
};

fn ready(address: SocketAddr) -> (u16, String) {
    // The endpoint caches a reading for 50 ms of real time.
    std::thread::sleep(Duration::from_millis(60));
    let reply = exchange(address, &request("GET", "/readyz", "", b"")).unwrap();
    (reply.status, reply.body)
}

#[test]
fn sweeps_that_are_skipped_for_too_long_fail_the_probe_and_the_beacon() {
    let world = World::new();
    let store = TestStore::new(MemoryStore::with_clock(world.time.clock()));
    let sweeper = Sweeper::new(store.clone())
        .clock(world.time.clock())
        .interval(10 * SECOND);
    let endpoint = HealthEndpoint::new(&world.registry).sweeper(&sweeper);
    let server = endpoint.serve("127.0.0.1:0").unwrap();
    let hb = world.worker("poller").id("a").start().unwrap();
    hb.beat();
    let folder = Folder::new("sweepers");
    let file = folder.join("beacon.json");
    let write = || {
        // The first write is at the start.
        let beacon = Beacon::new(&world.registry, &file).sweeper(&sweeper);
        let running = beacon.start().unwrap();
        let checked = Beacon::check(&file, 60 * SECOND);
        drop(running);
        checked
    };
    let (status, body) = ready(server.local_addr());
    assert_eq!(status, 503);
    assert!(body.contains("the store was not swept yet"), "{body}");
    sweeper.sweep().unwrap();
    assert_eq!(ready(server.local_addr()), (200, "ok".to_owned()));
    assert_eq!(write(), Ok("1 active, 0 dead".to_owned()));

    store.set(Mode::SweptElsewhere);
    for _ in 0..11 {
        world.seconds(10);
        sweeper.sweep().unwrap();
    }
    let reason =
        "the store was not swept for 1 min 50 s, allowed: 1 min 30 s: another sweep is running";
    let (status, body) = ready(server.local_addr());
    assert_eq!(status, 503);
    assert!(body.contains(reason), "{body}");
    hb.beat();
    let failure = write().unwrap_err();
    assert!(failure.starts_with(reason), "{failure}");
    store.recover();
    sweeper.sweep().unwrap();
    eventually("it is ready", || ready(server.local_addr()).0 == 200);
    assert!(write().is_ok());
}

#[test]
fn sweeps_through_a_coordinator_forget_share_and_charge_pieces() {
    for check in [
        retention::check,
        retention::check_unneeded,
        retention::check_pieces,
    ] {
        let coordinator = Coordinator::new(MemoryStore::new())
            .serve("127.0.0.1:0")
            .unwrap();
        let url = format!("http://{}", coordinator.local_addr());
        check(&HttpStore::new(url).unwrap());
    }
}

#[test]
fn a_coordinator_lists_the_processes_of_a_host() {
    let coordinator = Coordinator::new(MemoryStore::new())
        .serve("127.0.0.1:0")
        .unwrap();
    let store = HttpStore::new(format!("http://{}", coordinator.local_addr())).unwrap();
    let here = ProcessIdentity::current();
    let workers = ["a", "b"].map(|id| {
        let mut worker = Registration::new("poller", id);
        worker.info.process = Some(here.clone());
        worker
    });
    store.register(&workers).unwrap();
    assert_eq!(store.processes(&here).unwrap(), [here]);
}
