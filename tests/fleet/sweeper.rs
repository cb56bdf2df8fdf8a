//! Sweepers: what they charge, what they leave to each other, and what they say of themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::store::{Mode, TestStore};
use crate::support::{SECOND, World, retention};
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, ProcessIdentity, Registration, Stop, Sweep,
    WorkerFilter, WorkerKey,
};
use worker_heartbeat::{
    Error, HeartbeatStore, MemoryStore, MockClock, StoredWorker, SweepReport, Sweeper,
};

/// Each call takes this long.
#[derive(Debug)]
struct SlowStore {
    store: MemoryStore,
    time: MockClock,
    takes: Duration,
}

impl HeartbeatStore for SlowStore {
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
        self.time.advance(self.takes);
        self.store.list(filter)
    }
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        self.time.advance(self.takes);
        self.store.sweep(sweep)
    }
    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.store.purge(age)
    }
    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.store.claim(claim)
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.store.renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.store.release(leases)
    }
}

fn silent(store: &dyn HeartbeatStore, id: &str) {
    let keys = store.register(&[Registration::new("poller", id)]).unwrap();
    store
        .beat(&[Beat::new(keys[0].clone(), worker_heartbeat::State::Active)])
        .unwrap();
}

/// Sweeps each `interval` until a worker is marked. Returns the time that it took.
fn until_marked(time: &MockClock, sweeper: &Sweeper, interval: Duration) -> Duration {
    let begun = time.now();
    for _ in 0..10_000 {
        if let Ok(report) = sweeper.sweep() {
            if !report.marked_offline.is_empty() {
                return time.now().since(begun);
            }
        }
        time.advance(interval);
    }
    panic!("never marked");
}

#[test]
fn a_slow_sweeper_convicts_and_says_that_it_is_slow() {
    for takes in [800, 2_000, 20_000].map(Duration::from_millis) {
        let time = MockClock::new();
        let memory = MemoryStore::with_clock(time.clock());
        silent(&memory, "a");
        let store = SlowStore {
            store: memory,
            time: time.clone(),
            takes,
        };
        let sweeper = Sweeper::new(store).clock(time.clock()).interval(SECOND);
        let took = until_marked(&time, &sweeper, SECOND);
        let rounds = 2 * takes + SECOND;
        assert!(took <= 91 * SECOND + 2 * rounds, "{takes:?}: {took:?}");
        let totals = sweeper.totals();
        assert_eq!(totals.last_duration, Some(2 * takes));
        // A second and a quarter of the interval are quick.
        assert_eq!(totals.slow, totals.successes);
    }
}

#[test]
fn failures_that_come_again_and_again_only_delay_a_conviction() {
    let world = World::new();
    let memory = MemoryStore::with_clock(world.time.clock());
    silent(&memory, "a");
    let store = TestStore::new(memory.clone());
    let sweeper = Sweeper::new(store.clone())
        .clock(world.time.clock())
        .interval(10 * SECOND);
    let begun = world.time.now();
    for round in 0.. {
        store.recover();
        if !sweeper.sweep().unwrap().marked_offline.is_empty() {
            break;
        }
        world.seconds(10);
        store.fail("on purpose");
        assert!(sweeper.sweep().is_err());
        world.seconds(10);
        assert!(round < 100, "detection is off");
    }
    // Half of the time is watched, and pieces count a quarter.
    let took = world.time.now().since(begun);
    assert!(took > 90 * SECOND && took <= 800 * SECOND, "{took:?}");
    // An outage, however long, convicts nobody who beats again.
    silent(&memory, "b");
    store.fail("on purpose");
    for _ in 0..1_000 {
        assert!(sweeper.sweep().is_err());
        world.seconds(10);
    }
    store.recover();
    assert_eq!(sweeper.sweep().unwrap().marked_offline, [""; 0]);
}

#[test]
fn sweeps_that_are_skipped_for_too_long_are_a_failure() {
    let world = World::new();
    let store = TestStore::new(MemoryStore::with_clock(world.time.clock()));
    let sweeper = Sweeper::new(store.clone())
        .clock(world.time.clock())
        .interval(10 * SECOND);
    assert_eq!(sweeper.check().unwrap_err(), "the store was not swept yet");
    sweeper.sweep().unwrap();
    store.set(Mode::SweptElsewhere);
    let tens = |n: u32| {
        for _ in 0..n {
            world.seconds(10);
            assert!(!sweeper.sweep().unwrap().success);
        }
    };
    tens(9);
    assert_eq!((sweeper.check(), sweeper.totals().overdue), (Ok(()), false));
    tens(1);
    assert!(sweeper.totals().overdue);
    assert_eq!(sweeper.totals().skipped, 10);
    assert_eq!(
        sweeper.check().unwrap_err(),
        "the store was not swept for 1 min 40 s, allowed: 1 min 30 s: another sweep is running"
    );
    store.fail("no route");
    assert!(sweeper.sweep().is_err());
    let reason = sweeper.check().unwrap_err();
    assert!(reason.contains("no route"), "{reason}");
    store.recover();
    sweeper.sweep().unwrap();
    assert_eq!((sweeper.check(), sweeper.totals().overdue), (Ok(()), false));

    // One that never had a success.
    let skipped = Sweeper::new(store.clone()).clock(world.time.clock());
    store.set(Mode::SweptElsewhere);
    skipped.sweep().unwrap();
    world.seconds(300);
    assert!(skipped.check().is_err() && skipped.totals().overdue);
}

/// Counts the sweeps that judged workers.
#[derive(Clone, Debug)]
struct CountedStore {
    store: MemoryStore,
    sweeps: Arc<AtomicUsize>,
    lists: Arc<AtomicUsize>,
}

impl HeartbeatStore for CountedStore {
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
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.store.list(filter)
    }
    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        self.store.processes(host)
    }
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        let report = self.store.sweep(sweep)?;
        self.sweeps
            .fetch_add(usize::from(report.success), Ordering::SeqCst);
        Ok(report)
    }
    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.store.purge(age)
    }
    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.store.claim(claim)
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.store.renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.store.release(leases)
    }
}

impl CountedStore {
    fn new(time: &MockClock) -> Self {
        Self {
            store: MemoryStore::with_clock(time.clock()),
            sweeps: Arc::default(),
            lists: Arc::default(),
        }
    }
}

#[test]
fn of_many_sweepers_few_do_the_work_and_all_are_well() {
    const SWEEPERS: u32 = 20;
    const INTERVAL: Duration = Duration::from_secs(100);
    let world = World::new();
    let store = CountedStore::new(&world.time);
    let (mut sweepers, mut running) = (Vec::new(), Vec::new());
    for _ in 0..SWEEPERS {
        let sweeper = Sweeper::new(store.clone())
            .clock(world.time.clock())
            .interval(INTERVAL);
        sweepers.push(sweeper.clone());
        running.push(sweeper.start().unwrap());
        world.seconds(7);
    }
    world.time.advance(5 * INTERVAL);
    store.sweeps.store(0, Ordering::SeqCst);
    world.time.advance(20 * INTERVAL);
    let sweeps = store.sweeps.load(Ordering::SeqCst);
    // The one that has watched for longest sweeps each interval, and some others half an interval later.
    assert!(
        (20..=120).contains(&sweeps),
        "{sweeps} sweeps in 20 intervals"
    );
    for sweeper in &sweepers {
        assert_eq!(sweeper.check(), Ok(()));
        let age = sweeper.totals().last_success_age.unwrap();
        assert!(age <= INTERVAL * 3 / 2, "{age:?}");
    }
    let unneeded: u64 = sweepers.iter().map(|one| one.totals().unneeded).sum();
    assert!(unneeded > 20 * 15, "{unneeded}");
    // An operator's sweep is done.
    assert!(sweepers[7].sweep().unwrap().success);
    // The leader ends: another one takes over, and convicts in time.
    drop(running.remove(0));
    silent(&store, "a");
    world.time.advance(90 * SECOND + 2 * INTERVAL);
    let row = store.list(&WorkerFilter::new()).unwrap().remove(0);
    assert!(row.ending.is_some(), "{}", row.health());
}

#[test]
fn a_sweep_lists_no_workers_of_processes_that_live() {
    let time = MockClock::new();
    let store = CountedStore::new(&time);
    let here = ProcessIdentity::current();
    let mut gone = here.clone();
    // The pid is of a younger process.
    gone.started += 1;
    let workers: Vec<_> = (0..3_000)
        .map(|n| {
            let mut worker = Registration::new("poller", format!("w-{n:04}"));
            worker.info.process = Some(if n == 1_234 { &gone } else { &here }.clone());
            worker
        })
        .collect();
    store.register(&workers).unwrap();
    let sweeper = Sweeper::new(store.clone()).clock(time.clock());
    let report = sweeper.sweep().unwrap();
    if here.is_local() {
        assert_eq!(report.marked_offline, ["w-1234"]);
        // A page, and the empty one after it.
        assert_eq!(store.lists.swap(0, Ordering::SeqCst), 2);
    }
    sweeper.sweep().unwrap();
    assert_eq!(store.lists.load(Ordering::SeqCst), 0);
}

#[test]
fn the_store_in_memory_forgets_shares_sweeps_and_charges_pieces() {
    retention::check(&MemoryStore::new());
    retention::check_unneeded(&MemoryStore::new());
    retention::check_pieces(&MemoryStore::new());
}

#[cfg(all(feature = "sqlite", feature = "test-util"))]
#[test]
fn the_store_in_a_file_forgets_shares_sweeps_and_charges_pieces() {
    use crate::support::folder::Folder;
    use worker_heartbeat::SqliteStore;

    for check in [
        retention::check,
        retention::check_unneeded,
        retention::check_pieces,
    ] {
        let folder = Folder::new("sweeps");
        check(&SqliteStore::open(folder.join("fleet.db")).unwrap());
    }
}

#[test]
fn a_sweeper_forgets_by_default_and_counts_it() {
    use worker_heartbeat::fleet::Retention;

    let world = World::new();
    let store = MemoryStore::with_clock(world.time.clock());
    let hb = world.worker("poller").id("a").start().unwrap();
    let attachment = world
        .registry
        .attach(store.clone(), worker_heartbeat::FleetConfig::new())
        .unwrap();
    hb.stop();
    attachment.detach();
    world.seconds(3_700);
    let sweeper = |retention| {
        Sweeper::new(store.clone())
            .clock(world.time.clock())
            .retention(retention)
    };
    assert_eq!(sweeper(Retention::none()).sweep().unwrap().forgotten, 0);
    let by_default = Sweeper::new(store.clone()).clock(world.time.clock());
    let tried = by_default.clone().dry_run(true).sweep().unwrap();
    assert_eq!(tried.to_string(), "forgotten: 1");
    assert_eq!(by_default.totals().forgotten, 0);
    assert_eq!(by_default.sweep().unwrap().forgotten, 1);
    assert_eq!(by_default.totals().forgotten, 1);
    assert_eq!(store.summary().unwrap().total, 0);
}
