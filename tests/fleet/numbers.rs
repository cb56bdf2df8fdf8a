//! A store whose numbers go back: it has lost its data, or another one took its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::store::TestStore;
use crate::support::{PATIENCE, SECOND, World, eventually, names};
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, Sweep, WorkerFilter, WorkerKey,
};
use worker_heartbeat::{
    Error, EventKind, FleetConfig, HeartbeatStore, MemoryStore, MockClock, StoreErrorKind,
    StoredWorker, SweepReport,
};

const HOUR: Duration = Duration::from_secs(3_600);

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(refused: Result<T, Error>, what: &str) {
    let error = refused.unwrap_err();
    let kind = StoreErrorKind::Incompatible;
    assert!(
        matches!(error, Error::Store { kind: is, .. } if is == kind),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains(what) && text.contains("lost data"), "{text}");
}

/// A store without data, whose clock is an hour behind.
#[test]
fn a_lower_incarnation_is_refused_and_ends_all_leases() {
    let ahead = MockClock::new();
    ahead.advance(HOUR);
    let world = World::new();
    let store = TestStore::new(MemoryStore::with_clock(ahead.clock()));
    let attachment = world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let events = world.registry.subscribe();
    let hb = world.worker("poller").id("a").start().unwrap();
    let lease = hb.claim("run", 60 * SECOND).unwrap().unwrap();
    assert!(attachment.flush(PATIENCE) && lease.is_held());
    let behind = MemoryStore::with_clock(MockClock::new().clock());
    store.replace(behind.clone());
    hb.beat();
    assert!(!attachment.flush(PATIENCE));
    let error = attachment.status().last_error.unwrap();
    assert!(
        error.contains("it gave the incarnation") && error.contains("lost data"),
        "{error}"
    );
    assert!(!lease.is_held());
    assert!(hb.claim("run", SECOND).is_err());
    // Each of several attempts is refused; one event tells it.
    eventually("another attempt fails", || {
        world.time.advance(10 * SECOND);
        attachment.status().failures_in_a_row > 2
    });
    let failures: Vec<_> = events
        .try_iter()
        .filter(|event| matches!(event.kind, EventKind::StoreFailing { .. }))
        .collect();
    assert_eq!(failures.len(), 1, "{failures:?}");
    // A store with higher numbers is accepted, whatever it knows.
    let later = MockClock::new();
    later.advance(2 * HOUR);
    store.replace(MemoryStore::with_clock(later.clock()));
    eventually("the worker is registered", || {
        world.time.advance(10 * SECOND);
        attachment.status().failures_in_a_row == 0 && attachment.status().registered == 1
    });
    assert!(hb.claim("run", 60 * SECOND).unwrap().unwrap().is_held());
}

/// Its fences are lower by a number.
#[derive(Clone, Debug, Default)]
struct Lowered {
    store: MemoryStore,
    by: Arc<AtomicU64>,
}

impl HeartbeatStore for Lowered {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.store.register(workers)
    }
    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.store.beat(beats)
    }
    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.store.stop(stops)
    }
    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.store.list(filter)
    }
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        self.store.sweep(sweep)
    }
    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.store.purge(age)
    }
    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        Ok(match self.store.claim(claim)? {
            ClaimAnswer::Granted(fence) => {
                ClaimAnswer::Granted(fence - self.by.load(Ordering::SeqCst))
            }
            answer => answer,
        })
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.store.renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.store.release(leases)
    }
}

#[test]
fn a_lower_fence_is_refused_and_ends_all_leases() {
    let world = World::new();
    let store = Lowered::default();
    world
        .registry
        .attach(store.clone(), FleetConfig::new())
        .unwrap();
    let events = world.registry.subscribe();
    let hb = world.worker("poller").id("a").start().unwrap();
    let first = hb.claim("run-1", 60 * SECOND).unwrap().unwrap();
    store.by.store(1_000, Ordering::SeqCst);
    assert_refused(hb.claim("run-2", 60 * SECOND), "it gave the fence");
    assert!(!first.is_held());
    assert_eq!(names(&events).last().map(String::as_str), Some("leaselost"));
    store.by.store(0, Ordering::SeqCst);
    assert!(hb.claim("run-3", 60 * SECOND).unwrap().unwrap().is_held());
}

#[test]
fn numbers_of_a_store_in_memory_grow_from_the_clock() {
    let time = MockClock::new();
    let micros = time
        .clock()
        .wall()
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_micros();
    let store = MemoryStore::with_clock(time.clock());
    let keys = store.register(&[Registration::new("poller", "a")]).unwrap();
    assert_eq!(u128::from(keys[0].incarnation), micros + 1);
}
