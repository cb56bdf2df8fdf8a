//! All workers of a process.

pub(crate) mod at_exit;
pub(crate) mod core;
#[cfg(feature = "prometheus")]
pub(crate) mod figures;
mod index;
mod membership;
mod pacemaker;
mod probe;
mod scan;
mod summary;
mod tombstones;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;

use crate::cell::CellKey;
use crate::clock::{Clock, Patience};
use crate::error::Error;
use crate::health::evidence::SHORTEST_WINDOW;
use crate::health::{Ending, Health, StallCause, Stalled, StopCause};
use crate::registry::core::events::{EventKind, Subscription};
use crate::registry::core::profile::ProfileKey;
use crate::registry::core::record::Record;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::{WorkerRef, settle};
use crate::registry::core::{Core, Expectation, PendingNotices};
use crate::registry::pacemaker::Pacemaker;
use crate::sync::printable::prefix;
use crate::sync::wakers::wake;
use at_exit::{AtExit, Witness};
use index::{ById, Index};
pub(crate) use membership::Membership;
pub use probe::{Probe, Snapshot};
use scan::ConsistentScan;
use tombstones::Tombstones;

/// How long a reader waits for a pacemaker that is overdue.
const READER_PATIENCE: Duration = Duration::from_millis(100);
/// How many events a subscriber may leave unread before the oldest are dropped.
const SUBSCRIPTION_CAPACITY: usize = 1_024;

/// All workers of a process: the [global](Self::global) one by default, a private one in tests.
///
/// A cheap clone. Its background thread, the pacemaker, starts with the first worker and is joined
/// with the last; once workers are [expected](Self::expect_workers), with the registry itself.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<RegistryInner>,
    _witness: Witness,
}

struct RegistryInner {
    core: Arc<Core>,
    pacemaker: Pacemaker,
    index: Index,
    tombstones: Tombstones,
    scan: ConsistentScan,
    /// Everybody was asked to stop, and by whom.
    stopping: Mutex<Option<StopCause>>,
    /// Set once workers are expected: somebody has to miss them, even if none ever comes.
    missing: OnceCell<()>,
    at_exit: AtExit,
}

impl Drop for RegistryInner {
    fn drop(&mut self) {
        if self.missing.get().is_some() {
            let _ = self.pacemaker.leave();
        }
        if let Some(store_hook) = self.core.store_hook() {
            store_hook.close();
        }
    }
}

/// What a worker is registered with. Checked by the builder.
#[derive(Debug)]
pub(crate) struct Spec {
    /// `None`: one is made.
    pub id: Option<String>,
    pub profile: ProfileKey,
    pub metadata: Vec<(String, String)>,
}

impl Registry {
    /// A registry of its own, on the system's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// A registry of its own, on this clock.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        Self {
            _witness: Witness::held(),
            ..Self::make(clock)
        }
    }

    fn make(clock: Clock) -> Self {
        Self {
            inner: Arc::new(RegistryInner {
                core: Arc::new(Core::new(clock)),
                pacemaker: Pacemaker::default(),
                index: Index::default(),
                tombstones: Tombstones::default(),
                scan: ConsistentScan::default(),
                stopping: Mutex::new(None),
                missing: OnceCell::new(),
                at_exit: AtExit::default(),
            }),
            _witness: Witness::default(),
        }
    }

    /// The registry that workers belong to if they are not told otherwise.
    #[must_use]
    pub fn global() -> &'static Self {
        static GLOBAL: Lazy<Registry> = Lazy::new(|| Registry::make(Clock::system()));
        &GLOBAL
    }

    /// All workers: the living in the order of their cells, then the ended that are remembered.
    #[must_use]
    pub fn workers(&self) -> Vec<Probe> {
        self.worker_refs()
            .into_iter()
            .map(|worker| Probe::new(self.clone(), worker))
            .collect()
    }

    /// The worker with this id, alive or remembered.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Probe> {
        let worker = match self.inner.index.get(id) {
            Some(record) => self.inner.core.worker_ref(record),
            // By the id that a store assigned.
            None => {
                self.inner.core.store_hook()?;
                let mut workers = self.worker_refs().into_iter();
                workers.find(|worker| worker.record.id() == id)?
            }
        };
        Some(Probe::new(self.clone(), worker))
    }

    /// TaskReport how many workers of a type have to live; 0: any number. If fewer do, the summary says so
    /// and is not healthy, and at its next look the pacemaker tells subscribers and the log.
    ///
    /// A registry in which workers are expected keeps its pacemaker even while it has none, so that
    /// workers that never come are missed too. Call this when they are about to come: they have one
    /// [resolution](Self::resolution) to do so before they are missed.
    pub fn expect_workers(&self, worker_type: impl Into<String>, count: usize) {
        let core = &self.inner.core;
        let worker_type = worker_type.into();
        if count == 0 {
            core.expected.lock().remove(&worker_type);
        } else {
            core.expected
                .lock()
                .entry(worker_type)
                .or_insert(Expectation {
                    count,
                    missing_reported: false,
                })
                .count = count;
            let schedule = || self.inner.pacemaker.join(core);
            // Without a thread to be had, the first worker that comes is told so.
            let _ = self.inner.missing.get_or_try_init(schedule);
        }
        core.changed.store(true, Ordering::Release);
    }

    /// Subscribes to what happens to workers. If more than 1024 events are left unread, the oldest
    /// are dropped and counted; nobody ever waits for a subscriber.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.subscribe_with_capacity(SUBSCRIPTION_CAPACITY)
    }

    /// As [`subscribe`](Self::subscribe), with room for this many unread events, 1 to 65,536.
    #[must_use]
    pub fn subscribe_with_capacity(&self, capacity: usize) -> Subscription {
        self.inner.core.subscribers.subscribe(capacity)
    }

    /// Forgets the workers that ended at least `age` ago and whose handles are gone. Returns how
    /// many.
    pub fn purge(&self, age: Duration) -> usize {
        let now = self.inner.core.clock.now();
        let gone = self.inner.tombstones.purge(now, age);
        for record in &gone {
            self.inner.index.remove(record);
        }
        gone.len()
    }

    /// The clock that the registry lives by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.core.clock
    }

    /// How often the pacemaker looks at present: a tenth of the shortest threshold, between 10 ms
    /// and 1 s.
    #[must_use]
    pub fn resolution(&self) -> Duration {
        self.inner.core.resolution()
    }

    // --- for those above ------------------------------------------------------------------------

    pub(crate) fn downgrade(&self) -> WeakRegistry {
        WeakRegistry(Arc::downgrade(&self.inner))
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    pub(crate) fn register(&self, spec: Spec) -> Result<Membership, Error> {
        let core = &self.inner.core;
        self.inner.pacemaker.join(core)?;
        let worker = match self.admit(spec) {
            Ok(worker) => worker,
            Err(error) => {
                let _ = self.inner.pacemaker.leave();
                return Err(error);
            }
        };
        if core.refine_resolution(worker.record.profile.thresholds.shortest()) {
            // Nobody is to be judged by the coarser look any more once this returns.
            self.inner.pacemaker.await_tick(READER_PATIENCE);
        }
        core.changed.store(true, Ordering::Release);
        core.emit(Some(&worker.record), EventKind::Registered);
        at_exit::arm();
        self.stop_if_stopping(&worker);
        Ok(Membership::new(self.clone(), worker))
    }

    /// Finds a cell for a new worker, under an id that no living worker has.
    fn admit(&self, spec: Spec) -> Result<WorkerRef, Error> {
        let core = &self.inner.core;
        let profile = core.profiles.intern(spec.profile);
        let explicit = spec.id.is_some();
        let mut id = spec
            .id
            .unwrap_or_else(|| generated_id(&profile.worker_type));
        loop {
            let mut shard = self.inner.index.lock(&id);
            let previous = shard.get(id.as_str()).map(|found| Arc::clone(&found.0));
            if previous.as_ref().is_some_and(|record| !record.is_free()) {
                if explicit {
                    return Err(Error::DuplicateId { id });
                }
                drop(shard);
                id = generated_id(&profile.worker_type);
                continue;
            }
            let slot = core.slab.take();
            let chunk = core.slab.chunk(slot);
            let offset = slot.offset as usize;
            let tag = chunk.cell(offset).state().next_tag();
            let place = CellKey::new(slot, tag);
            let record = Arc::new(Record::new(&id, !explicit, Arc::clone(&profile), place));
            if !spec.metadata.is_empty() {
                record.detail().metadata = spec.metadata;
            }
            profile.enter();
            let now = core.observed_now().now;
            let mut enter = || {
                chunk.enter(offset, &record, |cell| {
                    // The beats of the cell's last occupant were counted when it left.
                    settle(cell, &record, tag, now);
                    true
                });
                shard.replace(ById(Arc::clone(&record)));
            };
            match &previous {
                Some(previous) => self.inner.scan.move_with(|| {
                    succeed(&record, previous);
                    self.inner.tombstones.exhume(previous);
                    enter();
                }),
                None => enter(),
            }
            drop(shard);
            return Ok(WorkerRef {
                chunk,
                offset,
                record,
            });
        }
    }

    /// Begins a worker's next life. It gets another cell if others still hold that of the last one.
    /// `None` if the worker was asked to stop meanwhile.
    fn next_life(&self, last: &Membership) -> Option<Membership> {
        let core = &self.inner.core;
        let (observed, worker) = (self.observed_now(), last.worker_ref());
        let elsewhere = (!worker.chunk.has_one_holder(worker.offset)).then(|| {
            let slot = core.slab.take();
            WorkerRef {
                chunk: core.slab.chunk(slot),
                offset: slot.offset as usize,
                record: Arc::clone(&worker.record),
            }
        });
        // Its beats move from the cell to those of lives that are over.
        let begin = || worker.begin_next_life(elsewhere.as_ref(), &observed);
        let wakers = {
            let _events = core.lock_events(&worker.record);
            self.inner.scan.move_with(begin)
        };
        let Some(wakers) = wakers else {
            if let Some(unused) = elsewhere {
                core.slab.give_back(unused.chunk.slot(unused.offset));
            }
            return None;
        };
        wakers.into_iter().for_each(|(_, waker)| wake(waker));
        let next = match elsewhere {
            Some(next) => Membership::new(self.clone(), next),
            None => last.clone(),
        };
        self.stop_if_stopping(next.worker_ref());
        Some(next)
    }

    /// Asks a worker to stop that was not there when all others were asked.
    fn stop_if_stopping(&self, worker: &WorkerRef) {
        self.end_if_ending(std::slice::from_ref(worker));
        let stopping = self.inner.stopping.lock().clone();
        if let Some(cause) = stopping {
            let core = &self.inner.core;
            core.request_stop(std::slice::from_ref(worker), &cause)
                .deliver();
        }
    }

    /// The last handle of a life is gone. If it was the worker's last life, its cell becomes free, and
    /// its record stays.
    fn retire(&self, worker: &WorkerRef) {
        let core = &self.inner.core;
        let slot = worker.chunk.slot(worker.offset);
        if !worker.is_current() {
            self.inner.scan.move_with(|| worker.forget_former());
            core.slab.give_back(slot);
            return;
        }
        let tombstones = &self.inner.tombstones;
        let (forgotten, wakers) = self.inner.scan.move_with(|| {
            let record = &worker.record;
            let forgotten = (!record.is_superseded()).then(|| tombstones.bury(Arc::clone(record)));
            if record.is_superseded() {
                // Its successor came in between.
                tombstones.exhume(record);
            }
            (forgotten.flatten(), worker.vacate())
        });
        if let Some(forgotten) = forgotten {
            // Not above: a shard is locked by who waits to move, too.
            self.inner.index.remove(&forgotten);
        }
        worker.record.profile.leave();
        core.slab.give_back(slot);
        core.changed.store(true, Ordering::Release);
        let left = self.inner.pacemaker.leave();
        drop(wakers);
        // Who misses expected workers holds the pacemaker, and is no worker.
        if left == usize::from(self.inner.missing.get().is_some()) {
            self.flush_store(&Patience::new(Duration::MAX));
        }
    }

    /// Asks every worker to stop, those to come included. When this returns, all of them know.
    pub(crate) fn request_stop(&self, cause: &StopCause) -> PendingNotices<'_> {
        self.inner
            .stopping
            .lock()
            .get_or_insert_with(|| cause.clone());
        let core = &self.inner.core;
        core.stopping.store(true, Ordering::Release);
        let workers = self.inner.scan.count(|| core.worker_refs());
        core.request_stop(&workers, cause)
    }

    /// Whether everybody was asked to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.inner.stopping.lock().is_some()
    }

    /// Every worker that counts: those with a cell, then those in the tombstones. Nobody twice, and
    /// none whose id has been taken over.
    pub(crate) fn worker_refs(&self) -> Vec<WorkerRef> {
        let core = &self.inner.core;
        self.inner.scan.count(|| {
            let mut workers = core.worker_refs();
            workers.retain(|worker| !worker.record.is_superseded());
            let graves = self.inner.tombstones.all();
            workers.extend(graves.into_iter().map(|record| core.worker_ref(record)));
            workers
        })
    }

    /// Makes the pacemaker look now.
    pub(crate) fn ring(&self) {
        self.inner.pacemaker.ring();
    }

    /// How long ago the pacemaker looked; `None` if there is none, for want of workers.
    pub(crate) fn tick_age(&self, observed: &ObservedNow) -> Option<Duration> {
        self.inner
            .pacemaker
            .is_running()
            .then(|| observed.tick_age())
    }

    /// The registry's time now. A pacemaker that is overdue is woken and waited for.
    #[inline]
    pub(crate) fn observed_now(&self) -> ObservedNow {
        let observed = self.inner.core.observed_now();
        if observed.overdue {
            self.fresh_observed_now()
        } else {
            observed
        }
    }

    /// The registry's time just after a tick, if one can be had.
    #[cold]
    pub(crate) fn fresh_observed_now(&self) -> ObservedNow {
        let ticked = self.inner.pacemaker.await_tick(READER_PATIENCE);
        let mut observed = self.inner.core.observed_now();
        if !ticked && observed.overdue {
            observed.unwatched = Some(observed.tick_age());
        }
        observed
    }

    #[inline]
    pub(crate) fn is_recent(&self, worker: &WorkerRef) -> bool {
        let observed = self.inner.core.observed_now();
        match worker.plain_state(&observed) {
            Some(state) if !observed.overdue => state.is_recent(),
            _ => self.is_recent_after_all(worker),
        }
    }

    /// Whether it is, with a fresh observed if the pacemaker is overdue, and by its record if need be.
    #[cold]
    fn is_recent_after_all(&self, worker: &WorkerRef) -> bool {
        worker.health(&self.observed_now()).is_recent()
    }

    pub(crate) fn health(&self, worker: &WorkerRef) -> Health {
        let observed = self.observed_now();
        let health = worker.health(&observed);
        if self.look_closer(worker, &health) {
            return worker.health(&observed);
        }
        health
    }

    pub(crate) fn snapshot(&self, worker: &WorkerRef) -> Snapshot {
        let mut snapshot = self.snapshot_as_it_is(worker);
        if self.look_closer(worker, &snapshot.health) {
            snapshot = self.snapshot_as_it_is(worker);
        }
        snapshot.store = self.core().store_hook().map(|store| store.status());
        snapshot
    }

    /// Without another look at a worker that stalls, and without the store's.
    fn snapshot_as_it_is(&self, worker: &WorkerRef) -> Snapshot {
        self.snapshot_at(worker, &self.observed_now())
    }

    pub(crate) fn snapshot_at(&self, worker: &WorkerRef, observed: &ObservedNow) -> Snapshot {
        Snapshot::take(worker, observed, self.inner.core.clock.wall())
    }

    pub(crate) fn last_heartbeat(&self, worker: &WorkerRef) -> Option<SystemTime> {
        let observed = self.observed_now();
        let heartbeat_at = worker.facts(&observed).heartbeat_at()?;
        self.inner
            .core
            .clock
            .wall()
            .checked_sub(observed.now.since(heartbeat_at))
    }

    /// Looks at the thread of a worker that has just stalled. Returns whether it did.
    fn look_closer(&self, worker: &WorkerRef, health: &Health) -> bool {
        let Health::Stalled(Stalled {
            cause: StallCause::Unknown,
            ..
        }) = health
        else {
            return false;
        };
        if worker.gather_evidence(false).is_some() {
            std::thread::sleep(SHORTEST_WINDOW);
            worker.gather_evidence(false);
        }
        true
    }

    /// Waits until every worker has ended, but no longer than this. Returns whether all have.
    pub(crate) fn drain(&self, patience: &Patience) -> bool {
        let core = &self.inner.core;
        core.wait_for_ends(patience, || self.unended().is_empty())
    }

    /// Waits until supervised work has returned, but no longer than this, nor for longer than `log`
    /// for work whose thread is in the log.
    pub(crate) fn wait_for_work(&self, patience: &Patience, log: Duration) {
        let core = &self.inner.core;
        core.wait_for_ends(patience, || !core.unreturned.is_awaited(log));
    }

    /// The ids of the workers that have ended, and whose supervised work has not returned.
    pub(crate) fn unreturned(&self, log: Duration) -> Vec<String> {
        let mut awaited = self.inner.core.unreturned.awaited(log);
        awaited.retain(|record| record.is_over());
        let ids = awaited.iter().map(|record| record.id().to_owned());
        ids.collect()
    }

    /// Waits until the log has been told of every end, but no longer than this.
    pub(crate) fn wait_for_log(&self, patience: &Patience) {
        let core = &self.inner.core;
        core.wait_for_ends(patience, || core.all_logged());
    }

    /// Waits until the store that the registry is attached to knows what is so now, but no longer
    /// than this, nor than it is configured.
    pub(crate) fn flush_store(&self, patience: &Patience) {
        if let Some(store_hook) = self.inner.core.store_hook() {
            store_hook.farewell(patience);
        }
    }

    /// Whether both are the same registry.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The workers that have not ended.
    pub(crate) fn living(&self) -> Vec<WorkerRef> {
        let core = &self.inner.core;
        let mut workers = self.inner.scan.count(|| core.worker_refs());
        workers.retain(|worker| !worker.record.is_over());
        workers
    }

    /// The living workers that a shutdown waits for: without those that wait for it themselves.
    pub(crate) fn unended(&self) -> Vec<WorkerRef> {
        let blocked = self.inner.core.unreturned.blocked();
        let mut workers = self.living();
        let waits = |worker: &WorkerRef| {
            blocked
                .iter()
                .any(|record| Arc::ptr_eq(record, &worker.record))
        };
        workers.retain(|worker| !waits(worker));
        workers
    }
}

/// `{type}-{pid}-{n}`, where `n` is never used again in this process. A long type is cut, so that the
/// id is one that is allowed.
fn generated_id(worker_type: &str) -> String {
    /// Room for the host's name, which a store puts in, and for the numbers.
    const LONGEST_TYPE: usize = 100;
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let worker_type = prefix(worker_type, LONGEST_TYPE);
    format!("{worker_type}-{}-{n}", std::process::id())
}

/// A new worker takes over the id, and with it the history, of one that has ended.
fn succeed(record: &Record, previous: &Record) {
    record.set_incarnation(previous.incarnation().saturating_add(1));
    let mut old = previous.detail();
    old.superseded = true;
    let death = match old.ended.as_ref().map(|ended| &ended.ending) {
        Some(Ending::Dead(death)) => Some(Arc::clone(death)),
        _ => old.last_death.clone(),
    };
    let restarts = old.restarts.saturating_add(1);
    drop(old);
    record.profile.counts.restarts.add(1);
    let mut detail = record.detail();
    detail.restarts = restarts;
    detail.last_death = death;
}

/// Does not keep a registry alive.
#[derive(Clone, Debug)]
pub(crate) struct WeakRegistry(Weak<RegistryInner>);

impl WeakRegistry {
    pub(crate) fn upgrade(&self) -> Option<Registry> {
        self.0.upgrade().map(|inner| Registry {
            inner,
            _witness: Witness::default(),
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    pub(crate) fn is(&self, registry: &Registry) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&registry.inner))
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("resolution", &self.resolution())
            .finish_non_exhaustive()
    }
}
