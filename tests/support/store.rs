//! A store whose behaviour a test sets.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use worker_heartbeat::fleet::{
    Answer, Beat, Claim, ClaimAnswer, FleetCounts, LeaseKey, ProcessIdentity, Registration, Stop,
    Sweep, WorkerFilter, WorkerKey,
};
use worker_heartbeat::{Error, HeartbeatStore, MemoryStore, StoredWorker, Summary, SweepReport};

/// Workers of this group are refused.
pub const REFUSED: &str = "refused";

/// A store in front of another one. Calls pass, fail, panic or hang, as its [`Mode`] says.
#[derive(Clone)]
pub struct TestStore(Arc<Shared>);

struct Shared {
    store: Mutex<Arc<dyn HeartbeatStore>>,
    mode: Mutex<Mode>,
    changed: Condvar,
    calls: AtomicUsize,
    lists: AtomicUsize,
    beats: Mutex<Vec<usize>>,
    before_stop: Option<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Normal,
    /// Each call fails with this error.
    Failing(String),
    Panicking,
    Hanging,
    /// Another sweeper is sweeping; everything else works.
    SweptElsewhere,
    /// Lists ignore [`WorkerFilter::after`]; all else is normal.
    FirstPageOnly,
    /// Lists have no more workers than this, whatever is asked for; all else is normal.
    ShortPages(usize),
    /// Another client locks the record of this worker; all else is normal.
    Locked(String),
}

impl TestStore {
    pub fn new(store: impl HeartbeatStore + 'static) -> Self {
        Self::with(store, None)
    }

    /// Runs a closure before each call of `stop`.
    pub fn before_stop(
        store: impl HeartbeatStore + 'static,
        act: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self::with(store, Some(Box::new(act)))
    }

    fn with(
        store: impl HeartbeatStore + 'static,
        before_stop: Option<Box<dyn Fn() + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Shared {
            store: Mutex::new(Arc::new(store)),
            mode: Mutex::default(),
            changed: Condvar::new(),
            calls: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
            beats: Mutex::default(),
            before_stop,
        }))
    }

    pub fn set(&self, mode: Mode) {
        *self.0.mode.lock().unwrap() = mode;
        self.0.changed.notify_all();
    }

    /// From now on, each call fails with this error.
    pub fn fail(&self, error: &str) {
        self.set(Mode::Failing(error.to_owned()));
    }

    /// Calls hang until [`recover`](Self::recover).
    pub fn hang(&self) {
        self.set(Mode::Hanging);
    }

    pub fn recover(&self) {
        self.set(Mode::Normal);
    }

    /// Calls hang as long as the result is kept.
    #[must_use]
    pub fn hold(&self) -> Held<'_> {
        self.hang();
        Held(self)
    }

    /// Later calls go to this store.
    pub fn replace(&self, store: impl HeartbeatStore + 'static) {
        *self.0.store.lock().unwrap() = Arc::new(store);
    }

    /// How many calls there were, those that failed or hung included.
    pub fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// How many calls of `list` there were.
    pub fn lists(&self) -> usize {
        self.0.lists.load(Ordering::SeqCst)
    }

    /// The number of heartbeats in each call since the last query.
    pub fn take_beats(&self) -> Vec<usize> {
        std::mem::take(&mut *self.0.beats.lock().unwrap())
    }

    /// Asks about all but the worker whose record is locked.
    fn unlocked<T: Clone>(
        &self,
        items: &[T],
        key: impl Fn(&T) -> &WorkerKey,
        ask: impl FnOnce(&[T]) -> Result<Vec<Answer>, Error>,
    ) -> Result<Vec<Answer>, Error> {
        let mode = self.0.mode.lock().unwrap().clone();
        let is_locked = |item: &&T| matches!(&mode, Mode::Locked(id) if *id == key(item).id);
        let others: Vec<T> = items
            .iter()
            .filter(|item| !is_locked(item))
            .cloned()
            .collect();
        let mut answers = ask(&others)?.into_iter();
        let answer = |item: &T| match is_locked(&item) {
            true => Some(Answer::Busy),
            false => answers.next(),
        };
        Ok(items.iter().map_while(answer).collect())
    }

    fn call(&self) -> Result<Arc<dyn HeartbeatStore>, Error> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        let mode = self.0.mode.lock().unwrap_or_else(PoisonError::into_inner);
        let mode = self
            .0
            .changed
            .wait_while(mode, |mode| *mode == Mode::Hanging)
            .unwrap()
            .clone();
        match mode {
            Mode::Failing(error) => Err(Error::store("be reached", error)),
            // Without the panic hook: a call stack takes seconds on a busy machine.
            Mode::Panicking => std::panic::resume_unwind(Box::new("on purpose")),
            _ => Ok(Arc::clone(&self.0.store.lock().unwrap())),
        }
    }
}

impl Default for TestStore {
    fn default() -> Self {
        Self::new(MemoryStore::new())
    }
}

/// See [`TestStore::hold`].
pub struct Held<'a>(&'a TestStore);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.recover();
    }
}

impl fmt::Debug for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestStore")
    }
}

impl HeartbeatStore for TestStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        let store = self.call()?;
        match workers.iter().find(|worker| worker.info.group == REFUSED) {
            Some(worker) => Err(Error::invalid("group", &worker.info.group, "any other")),
            None => store.register(workers),
        }
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        if !beats.is_empty() {
            self.0.beats.lock().unwrap().push(beats.len());
        }
        let store = self.call()?;
        self.unlocked(beats, |beat| &beat.key, |beats| store.beat(beats))
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        if let Some(act) = &self.0.before_stop {
            act();
        }
        let store = self.call()?;
        self.unlocked(stops, |stop| &stop.key, |stops| store.stop(stops))
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.0.lists.fetch_add(1, Ordering::SeqCst);
        let store = self.call()?;
        let mode = self.0.mode.lock().unwrap().clone();
        match mode {
            Mode::FirstPageOnly => store.list(&WorkerFilter::new().limit(filter.limit)),
            Mode::ShortPages(most) => store.list(&filter.clone().limit(filter.limit.min(most))),
            _ => store.list(filter),
        }
    }

    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        self.call()?.processes(host)
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        let store = self.call()?;
        if *self.0.mode.lock().unwrap() == Mode::SweptElsewhere {
            return Ok(SweepReport::default());
        }
        store.sweep(sweep)
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.call()?.purge(age)
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.call()?.claim(claim)
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.call()?.renew(leases, ttl)
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.call()?.release(leases)
    }
}

/// A store that counts which reads it is asked for, and passes everything on.
#[derive(Clone, Debug)]
pub struct ReadCounter {
    pub store: MemoryStore,
    pub lists: Arc<AtomicUsize>,
}

impl ReadCounter {
    pub fn new(store: &MemoryStore) -> Self {
        Self {
            store: store.clone(),
            lists: Arc::default(),
        }
    }

    /// How many workers `list` has returned.
    pub fn listed(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }
}

impl HeartbeatStore for ReadCounter {
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
        let listed = self.store.list(filter)?;
        self.lists.fetch_add(listed.len(), Ordering::SeqCst);
        Ok(listed)
    }
    fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.store.worst_first(filter)
    }
    fn counts(&self) -> Result<FleetCounts, Error> {
        self.store.counts()
    }
    fn summary(&self) -> Result<Summary, Error> {
        self.store.summary()
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
