//! Claims whose answer is lost: nobody knows whether the run was granted, and it must be free again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, Sweep, WorkerFilter, WorkerKey,
};
use worker_heartbeat::{
    Attachment, Error, FleetConfig, HeartbeatStore, MemoryStore, Registry, StoredWorker,
    SweepReport, WorkerHeartbeat,
};

use crate::support::{PATIENCE, SECOND, World, eventually};

const TTL: Duration = Duration::from_secs(600);

/// A store that loses answers to claims.
#[derive(Clone, Debug)]
struct LosingStore {
    store: MemoryStore,
    /// Without it, as in a store of another crate, claims are withdrawn by the default.
    withdraws: bool,
    state: Arc<Losses>,
}

#[derive(Debug, Default)]
struct Losses {
    /// How many answers to claims are lost from now on.
    to_lose: AtomicUsize,
    /// Instead of an error, the caller panics.
    panics: AtomicBool,
    /// Claims whose answer was lost.
    lost: Mutex<Vec<Claim>>,
}

impl LosingStore {
    fn lose(&self, answers: usize) {
        self.state.to_lose.store(answers, Ordering::SeqCst);
    }

    fn is_lost(&self) -> bool {
        let to_lose = &self.state.to_lose;
        let less = |left: usize| left.checked_sub(1);
        to_lose
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok()
    }
}

impl HeartbeatStore for LosingStore {
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
        let answer = self.store.claim(claim)?;
        if !self.is_lost() {
            return Ok(answer);
        }
        self.state.lost.lock().push(claim.clone());
        if self.state.panics.load(Ordering::SeqCst) {
            // Without the panic hook: a call stack takes seconds on a busy machine.
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        Err(Error::store("claim", "no answer in time"))
    }
    fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        if self.withdraws {
            return self.store.withdraw(claims);
        }
        // The default of the trait, which a wrapper has that does not know this call.
        Passing(self).withdraw(claims)
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.store.renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.store.release(leases)
    }
}

/// Passes on the calls that every store has.
#[derive(Debug)]
struct Passing<'a>(&'a LosingStore);

impl HeartbeatStore for Passing<'_> {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.0.register(workers)
    }
    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.0.beat(beats)
    }
    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.0.stop(stops)
    }
    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.0.list(filter)
    }
    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        self.0.sweep(sweep)
    }
    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.0.purge(age)
    }
    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.0.claim(claim)
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.0.renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.0.release(leases)
    }
}

/// A worker whose answers are lost, and another one.
struct Rivals {
    world: World,
    store: LosingStore,
    attachment: Attachment,
    hb: WorkerHeartbeat,
    rival: WorkerHeartbeat,
}

impl Rivals {
    fn new(withdraws: bool) -> Self {
        let world = World::new();
        let store = LosingStore {
            store: MemoryStore::with_clock(world.time.clock()),
            withdraws,
            state: Arc::default(),
        };
        let attachment = world.registry.attach(store.clone(), FleetConfig::new());
        let other = Registry::with_clock(world.time.clock());
        other
            .attach(store.store.clone(), FleetConfig::new())
            .unwrap();
        Self {
            hb: world.worker("poller").id("a").start().unwrap(),
            rival: WorkerHeartbeat::builder("poller")
                .id("b")
                .registry(&other)
                .start()
                .unwrap(),
            attachment: attachment.unwrap(),
            world,
            store,
        }
    }

    fn loses_a_claim(&self, run: &str) {
        let error = self.hb.claim(run, TTL).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error}");
    }
}

#[test]
fn after_ten_lost_answers_each_run_is_free_for_others_within_a_round() {
    for withdraws in [true, false] {
        let rivals = Rivals::new(withdraws);
        for n in 0..10 {
            let run = format!("run-{n}");
            rivals.store.lose(1);
            rivals.loses_a_claim(&run);
            assert!(rivals.attachment.flush(PATIENCE));
            let lease = rivals.rival.claim(&run, TTL).unwrap();
            let lease = lease.unwrap_or_else(|| panic!("{run} is locked"));
            // The request arrives once more, while the run is held and afterwards.
            let late = rivals.store.state.lost.lock().pop().unwrap();
            assert_eq!(rivals.store.store.claim(&late).unwrap(), ClaimAnswer::Taken);
            assert!(lease.is_held() && lease.release().unwrap());
            if withdraws {
                assert_eq!(rivals.store.store.claim(&late).unwrap(), ClaimAnswer::Taken);
                assert!(rivals.rival.claim(&run, TTL).unwrap().is_some());
            }
        }
        assert_eq!(rivals.attachment.status().failures, 0);
    }
}

#[test]
fn ten_lost_answers_at_once_are_resolved_together() {
    let rivals = Rivals::new(true);
    rivals.store.lose(10);
    for n in 0..10 {
        rivals.loses_a_claim(&format!("run-{n}"));
    }
    assert!(rivals.attachment.flush(PATIENCE));
    for n in 0..10 {
        let lease = rivals.rival.claim(&format!("run-{n}"), TTL).unwrap();
        assert!(lease.is_some(), "run-{n} is locked");
    }
}

#[test]
fn a_worker_that_claims_again_after_a_lost_answer_keeps_its_lease() {
    for withdraws in [true, false] {
        let rivals = Rivals::new(withdraws);
        for n in 0..10 {
            let run = format!("run-{n}");
            rivals.store.lose(1);
            rivals.loses_a_claim(&run);
            let lease = rivals.hb.claim(&run, TTL).unwrap();
            let lease = lease.unwrap_or_else(|| panic!("{run} is locked"));
            assert!(rivals.attachment.flush(PATIENCE));
            // It is renewed.
            rivals.hb.beat();
            rivals.world.seconds(30);
            assert!(rivals.attachment.flush(PATIENCE));
            assert!(lease.is_held());
            assert!(rivals.rival.claim(&run, TTL).unwrap().is_none());
            let late = rivals.store.state.lost.lock().pop().unwrap();
            if withdraws {
                assert_eq!(rivals.store.store.claim(&late).unwrap(), ClaimAnswer::Taken);
                assert!(lease.release().unwrap(), "it is still the holder");
            }
        }
    }
}

/// As long as nobody knows whether the earlier claim holds the run, or will, no later one is made.
#[test]
fn a_claim_waits_until_the_earlier_one_is_withdrawn() {
    let rivals = Rivals::new(false);
    assert!(rivals.attachment.flush(PATIENCE));
    // The first claim, and withdrawals by the round and by the second claim.
    rivals.store.lose(1_000);
    rivals.loses_a_claim("run");
    rivals.loses_a_claim("run");
    let attempts = rivals.store.state.lost.lock().clone();
    assert!(attempts.len() >= 2, "{attempts:?}");
    for claim in &attempts {
        assert!(claim.attempt.is_some() && claim.attempt == attempts[0].attempt);
    }
    rivals.store.lose(0);
    // The round is repeated by the clock: it failed.
    let lease = rivals.hb.claim("run", TTL).unwrap().expect("it is free");
    rivals.world.seconds(30);
    assert!(lease.is_held());
}

#[test]
fn a_store_that_panics_locks_no_run() {
    let rivals = Rivals::new(true);
    rivals.store.state.panics.store(true, Ordering::SeqCst);
    rivals.store.lose(1);
    let claim = std::panic::AssertUnwindSafe(|| rivals.hb.claim("run", TTL));
    assert!(std::panic::catch_unwind(claim).is_err());
    assert!(rivals.attachment.flush(PATIENCE));
    assert!(rivals.rival.claim("run", TTL).unwrap().is_some());
}

#[test]
fn a_withdrawal_is_repeated_until_the_store_answers_or_the_lease_has_expired() {
    let rivals = Rivals::new(false);
    assert!(rivals.attachment.flush(PATIENCE));
    rivals.store.lose(1_000);
    rivals.loses_a_claim("run");
    eventually("the withdrawal fails", || {
        rivals.attachment.status().failures_in_a_row > 0
    });
    rivals.store.lose(0);
    eventually("it is withdrawn", || {
        rivals.world.millis(200);
        rivals.rival.claim("run", TTL).unwrap().is_some()
    });
    // One that never succeeds is given up.
    rivals.store.lose(1_000_000);
    let error = rivals.hb.claim("other", SECOND).unwrap_err();
    assert!(matches!(error, Error::Store { .. }), "{error}");
    eventually("the rounds succeed again", || {
        rivals.world.millis(200);
        let status = rivals.attachment.status();
        status.failures_in_a_row == 0 && rivals.store.state.lost.lock().len() > 2
    });
}
