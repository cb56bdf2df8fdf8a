//! The call stack of a stalled worker in a store.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, Sweep, WorkerFilter, WorkerKey,
};
use worker_heartbeat::{
    Error, FleetConfig, HeartbeatStore, MemoryStore, Registry, State, StoredWorker, SweepReport,
};

use crate::verdicts::{LONG, SOON, Shop};

type Sent = (State, Option<String>);

/// A store that keeps the states and stacks of all heartbeats.
#[derive(Clone, Debug, Default)]
struct Recording {
    store: MemoryStore,
    beats: Arc<Mutex<Vec<Sent>>>,
}

impl HeartbeatStore for Recording {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.store.register(workers)
    }
    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        let sent = beats.iter().map(|beat| &beat.status);
        let sent = sent.map(|status| (status.state, status.stack.clone()));
        self.beats.lock().unwrap().extend(sent);
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
        self.store.claim(claim)
    }
    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.store.renew(leases, ttl)
    }
    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.store.release(leases)
    }
}

fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < deadline);
        // Heartbeats are sent by another thread.
        thread::sleep(SOON);
    }
}

#[test]
fn a_store_gets_the_stack_once_an_episode_and_keeps_it_until_the_worker_is_well() {
    let registry = Registry::new();
    let store = Recording::default();
    let attachment = registry.attach(store.clone(), FleetConfig::new()).unwrap();
    let shop = Shop::open(&registry);
    let row = || store.list(&WorkerFilter::new()).unwrap().pop();
    for episode in 1..=2 {
        let hung = wait_for(|| row().filter(|row| row.call_stack().is_some()));
        assert_eq!(hung.health().state(), State::Stalled);
        let stack = hung.call_stack().unwrap();
        let own = stack.lines().find(|line| line.starts_with('>')).unwrap();
        assert!(own.contains("verdicts::reserve"), "{stack}");
        let reason = wait_for(|| row()?.reason().filter(|reason| reason.contains(", at ")));
        assert!(reason.contains("verdicts::reserve"), "{reason}");
        // Some more heartbeats.
        let before = store.beats.lock().unwrap().len();
        wait_for(|| (store.beats.lock().unwrap().len() > before + 3).then_some(()));
        assert_eq!(row().unwrap().call_stack(), Some(stack));
        let with_stack =
            |(_, stack): &&Sent| stack.as_ref().is_some_and(|stack| stack.contains('>'));
        let sent = store
            .beats
            .lock()
            .unwrap()
            .iter()
            .filter(with_stack)
            .count();
        // Twice if it was read between the choice of what is due and the sending.
        assert!((episode..=2 * episode).contains(&sent), "{sent}");
        shop.go_on();
        // It may hang again by then.
        wait_for(|| {
            let beats = store.beats.lock().unwrap();
            let (state, stack) = beats.last().unwrap();
            (state.is_recent() || stack.is_some()).then_some(())
        });
    }
    shop.close();
    attachment.detach();
}
