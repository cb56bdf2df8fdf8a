//! The workers of a process: the registry, its handles' memberships, and what readers ask of it.

mod admission;

pub(crate) mod at_exit;
pub(crate) mod core;
mod counters;
pub(crate) mod figures;
mod index;
mod membership;
mod pacemaker;
mod probe;
mod scan;
mod stopping;
mod summary;
mod tombstones;
mod verdicts;

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;

use crate::clock::{Clock, Moment};
use crate::health::StopCause;
use crate::registry::core::counts::Counts;
use crate::registry::core::events::EventKind;
use crate::registry::core::store_hook::StoreHookSlot;
use crate::registry::core::subscribers::Subscription;
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::core::{Core, Expectation};
use crate::registry::pacemaker::Pacemaker;
pub(crate) use admission::Spec;
use at_exit::{AtExit, Witness};
pub use counters::{Counters, TypeCounters};
use index::Index;
pub(crate) use membership::Membership;
pub use probe::{Probe, Snapshot};
use scan::ConsistentScan;
use tombstones::Tombstones;

/// How long a reader waits for an overdue pacemaker.
const READER_PATIENCE: Duration = Duration::from_millis(100);
/// Unread events of a subscriber, beyond which the oldest are dropped.
const SUBSCRIPTION_CAPACITY: usize = 1_024;

/// All workers of a process: the [global](Self::global) one by default, a private one in tests.
///
/// A cheap clone. Its background thread, the pacemaker, starts with the first worker and is joined
/// with the last; once workers are [expected](Self::expect_workers), with the registry itself.
///
/// ```
/// use worker_heartbeat::{Registry, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let mailer = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
/// let indexer = WorkerHeartbeat::builder("indexer").id("indexer-1").registry(&registry).start()?;
/// mailer.beat();
/// indexer.fail("disk full");
/// println!("{}", registry.summary());
/// assert!(registry.get("mailer-1").is_some_and(|mailer| mailer.is_recent()));
/// assert!(registry.get("indexer-1").is_some_and(|indexer| !indexer.is_recent()));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
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
    /// Set once all workers were asked to stop.
    stopping: Mutex<Option<StopCause>>,
    /// Set once workers are expected: the registry owns the pacemaker then, even without workers.
    expects: OnceCell<()>,
    at_exit: AtExit,
}

impl Drop for RegistryInner {
    fn drop(&mut self) {
        if self.expects.get().is_some() {
            let _ = self.pacemaker.leave();
        }
        #[cfg(feature = "stacks")]
        self.core.end_reading_stacks();
        if let Some(store_hook) = self.core.store_hook.get() {
            store_hook.close();
        }
    }
}

impl Registry {
    /// A private registry on the system's clock.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// // Tests that run at the same time do not see each other's workers.
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
    /// assert!(registry.get("mailer-1").is_some());
    /// assert!(Registry::global().get("mailer-1").is_none());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// A private registry on this clock.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, State, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// let hb = WorkerHeartbeat::builder("mailer").registry(&registry).start()?;
    /// time.advance(Duration::from_secs(91));
    /// assert_eq!(hb.health().state(), State::NeverStarted);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
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
                expects: OnceCell::new(),
                at_exit: AtExit::default(),
            }),
            _witness: Witness::default(),
        }
    }

    /// The registry that workers belong to by default.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// assert!(Registry::global().get("mailer-1").is_some());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn global() -> &'static Self {
        static GLOBAL: Lazy<Registry> = Lazy::new(|| Registry::make(Clock::system()));
        &GLOBAL
    }

    /// All workers: the living, then the ended that are kept.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// for worker in Registry::global().workers() {
    ///     println!("{}: {}", worker.id(), worker.health()); // mailer-1: starting: ...
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn workers(&self) -> Vec<Probe> {
        self.worker_refs()
            .into_iter()
            .map(|worker| Probe::new(self.clone(), worker))
            .collect()
    }

    /// The worker with this id, alive or ended.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// hb.beat();
    /// let mailer = Registry::global().get("mailer-1");
    /// assert!(mailer.is_some_and(|mailer| mailer.is_recent()));
    /// assert!(Registry::global().get("mailer-2").is_none());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Probe> {
        let worker = match self.inner.index.get(id) {
            Some(record) => self.inner.core.worker_ref(record),
            // By an id that a store assigned.
            None => {
                self.inner.core.store_hook.get()?;
                let mut workers = self.worker_refs().into_iter();
                workers.find(|worker| worker.record.id() == id)?
            }
        };
        Some(Probe::new(self.clone(), worker))
    }

    /// Sets how many workers of a type have to live; 0: any number. If fewer live, the summary names the
    /// type and is not healthy, and the pacemaker reports it to subscribers and the log at its next tick.
    ///
    /// A registry that expects workers keeps its pacemaker even while it has none, so that workers that
    /// never come are reported too. Call this when they are about to come: they are reported missing
    /// one [resolution](Self::resolution) later.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// registry.expect_workers("indexer", 2);
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// let summary = registry.summary();
    /// assert!(!summary.is_healthy());
    /// assert_eq!(summary.missing[0].to_string(), "1 of 2 expected workers of type indexer live");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
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
                    missing_since: None,
                })
                .count = count;
            let watch = || self.inner.pacemaker.join(core);
            // If no thread can be started, the first worker that comes gets the error.
            let _ = self.inner.expects.get_or_try_init(watch);
        }
        core.changed.store(true, Ordering::Release);
    }

    /// Forgets what was [learned](crate::Builder::learn_stall_after) of the workers of a type: their
    /// limit is the ceiling until it is learned again. Returns whether such workers are known.
    ///
    /// ```
    /// use worker_heartbeat::{Learn, Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let builder = WorkerHeartbeat::builder("mailer").learn_stall_after(Learn::new());
    /// let hb = builder.registry(&registry).start()?;
    /// // After a release that is much faster:
    /// assert!(registry.forget_learned("mailer"));
    /// assert!(hb.snapshot().learned.is_some_and(|learned| learned.is_learning));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn forget_learned(&self, worker_type: &str) -> bool {
        self.inner.core.profiles.forget_learned(worker_type)
    }

    /// Subscribes to what happens to workers. If more than 1024 events are unread, the oldest are
    /// dropped and counted: no worker ever waits for a subscriber.
    ///
    /// ```
    /// use worker_heartbeat::{EventKind, Registry, WorkerHeartbeat};
    ///
    /// let events = Registry::global().subscribe();
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").start()?;
    /// hb.fail("disk full");
    /// for event in events.try_iter() {
    ///     if let EventKind::Became(health) = &event.kind {
    ///         println!("{} became {health}", event.id()); // mailer-1 became dead: failed: disk full
    ///     }
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.subscribe_with_capacity(SUBSCRIPTION_CAPACITY)
    }

    /// As [`subscribe`](Self::subscribe), with room for this many unread events, 1 to 65,536.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let events = registry.subscribe_with_capacity(1);
    /// let hb = WorkerHeartbeat::builder("mailer").id("mailer-1").registry(&registry).start()?;
    /// hb.fail("disk full");
    /// assert_eq!(events.recv()?.to_string(), "worker mailer-1: dead: failed: disk full");
    /// assert_eq!(events.dropped(), 1); // its registration
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn subscribe_with_capacity(&self, capacity: usize) -> Subscription {
        self.inner.core.subscribers.subscribe(capacity)
    }

    /// Whether the call stack of a worker's thread is read when the worker stalls, goes stale or never
    /// starts: once an episode, in the background. On by default, except on a mock clock. The stack is in the worker's
    /// [`Health`](crate::Health) and [`Snapshot`] a moment later, and is reported as an event of its
    /// own, [`EventKind::StackCaptured`].
    ///
    /// The feature `stacks` alone switches it on, and any crate of a program may enable a feature: a
    /// program that does not want it switches it off.
    ///
    /// ```
    /// use worker_heartbeat::Registry;
    ///
    /// Registry::global().capture_stacks(false);
    /// ```
    #[cfg(feature = "stacks")]
    pub fn capture_stacks(&self, on: bool) {
        self.inner.core.read_stacks_of_convicted(on);
    }

    /// Forgets the workers that ended at least `age` ago and whose handles are gone. Returns their
    /// number.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MockClock, Registry, WorkerHeartbeat};
    ///
    /// let time = MockClock::new();
    /// let registry = Registry::with_clock(time.clock());
    /// drop(WorkerHeartbeat::builder("mailer").registry(&registry).start()?);
    /// let day = Duration::from_secs(24 * 3600);
    /// assert_eq!(registry.purge(day), 0);
    /// time.advance(day);
    /// assert_eq!(registry.purge(day), 1);
    /// assert!(registry.workers().is_empty());
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn purge(&self, age: Duration) -> usize {
        let now = self.inner.core.clock.now();
        let gone = self.inner.tombstones.purge(now, age);
        for record in &gone {
            self.inner.index.remove(record);
        }
        gone.len()
    }

    /// The registry's clock.
    ///
    /// ```
    /// use worker_heartbeat::{MockClock, Moment, Registry};
    ///
    /// let registry = Registry::with_clock(MockClock::new().clock());
    /// assert_eq!(registry.clock().now(), Moment::ZERO);
    /// ```
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.core.clock
    }

    /// The time between two ticks of the pacemaker at present: a tenth of the shortest threshold,
    /// between 10 ms and 1 s.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Registry, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let hb = WorkerHeartbeat::builder("mailer")
    ///     .stall_after(Duration::from_secs(2))
    ///     .registry(&registry)
    ///     .start()?;
    /// assert_eq!(registry.resolution(), Duration::from_millis(200));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn resolution(&self) -> Duration {
        self.inner.core.resolution()
    }

    // --- for the rest of the crate ----------------------------------------------------------------

    pub(crate) fn downgrade(&self) -> WeakRegistry {
        WeakRegistry(Arc::downgrade(&self.inner))
    }

    /// The registry's time now. Wakes no pacemaker that is overdue.
    pub(crate) fn peek_observed_now(&self) -> ObservedNow {
        self.inner.core.observed_now()
    }

    /// See [`Timeline::not_before_now`](core::timeline::Timeline::not_before_now).
    #[inline]
    pub(crate) fn not_before_now(&self) -> Moment {
        self.inner.core.timeline.not_before_now()
    }

    /// Sends an event to subscribers and logs it. Never under a lock.
    pub(crate) fn emit(&self, worker: Option<&WorkerRef>, kind: EventKind) {
        self.inner
            .core
            .emit(worker.map(|worker| &*worker.record), kind);
    }

    /// As [`emit`](Self::emit), but another thread writes the log.
    pub(crate) fn emit_in_background(&self, worker: &WorkerRef, kind: EventKind) {
        self.inner.core.emit_in_background(&worker.record, kind);
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.inner.core.counts
    }

    #[inline]
    pub(crate) fn store_hook(&self) -> &StoreHookSlot {
        &self.inner.core.store_hook
    }

    /// Has the pacemaker wake a task once the clock shows `at`. Returns the number by which the timer is
    /// replaced or forgotten.
    pub(crate) fn set_timer(&self, known: Option<u64>, at: Moment, waker: &Waker) -> u64 {
        let number = self.inner.core.set_timer(known, at, waker);
        self.ring();
        number
    }

    pub(crate) fn forget_timer(&self, number: u64) {
        self.inner.core.forget_timer(number);
    }

    /// Every worker once: those with a cell, then the tombstones, without those whose ids have been
    /// taken over.
    pub(crate) fn worker_refs(&self) -> Vec<WorkerRef> {
        let core = &self.inner.core;
        self.inner.scan.count(|| {
            let mut workers = core.worker_refs();
            workers.retain(|worker| !worker.record.is_superseded());
            let ended = self.inner.tombstones.all();
            workers.extend(ended.into_iter().map(|record| core.worker_ref(record)));
            workers
        })
    }

    /// Makes the pacemaker tick now.
    pub(crate) fn ring(&self) {
        self.inner.pacemaker.ring();
    }

    /// Whether both are the same registry.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

/// A reference that does not keep the registry alive.
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
