//! Sends a registry's heartbeats to a store: one thread, one batch a round, the newest state.
//!
//! Nothing is queued. What to send is the difference between the workers' state and what the store
//! has accepted; after a failure, the next round sends the state of then.

mod config;
mod leases;
mod report;
mod resolve;
pub(super) mod session;
mod sync_state;
mod thread;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::numbers::HighestNumbers;
use super::store::HeartbeatStore;
use crate::clock::{Alarm, Clock, Moment, Patience, Sleeper};
use crate::error::Error;
use crate::health::{LeaseLoss, StoreStatus};
use crate::registry::at_exit::Witness;
use crate::registry::core::record::Record;
use crate::registry::core::store_hook::StoreHook;
use crate::registry::{Registry, WeakRegistry};
use crate::sync::background::Background;
use crate::sync::thread_pool::ThreadPool;
pub use config::{FleetConfig, OnDuplicate, OnOffline};
use session::{ClockReading, Deadline};
use sync_state::{SyncState, SyncedWorker, address};

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-uploader";
/// Threads that call the store for async tasks.
const CLAIM_THREAD_NAME: &str = "wh-claim";
/// Claims beyond that wait their turn, so that a store that hangs does not get a thread for each
/// claim that was given up.
const MOST_CLAIM_THREADS: usize = 64;
/// The shortest wait for the thread at the end of an attachment.
const LEAST_FAREWELL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Uploader {
    store: Box<dyn HeartbeatStore>,
    config: FleetConfig,
    registry: WeakRegistry,
    clock: Clock,
    alarm: Alarm,
    /// A change is to be sent at once.
    urgent: AtomicBool,
    /// A new task is to be sent soon.
    task: AtomicBool,
    closing: AtomicBool,
    /// The connection to the store broke: another server may have taken over, without the latest
    /// leases. All are renewed at once.
    doubted: AtomicBool,
    sync_state: Mutex<SyncState>,
    /// When the next lease is lost if nothing happens, or earlier.
    next_loss: Mutex<Option<Deadline>>,
    numbers: HighestNumbers,
    /// A call about claims is done: see [`resolve`].
    claims_changed: Condvar,
    rounds: Mutex<Rounds>,
    round_done: Condvar,
    thread: Mutex<Option<Background>>,
    thread_id: Mutex<Option<ThreadId>>,
    /// Claims for async tasks.
    claims: ThreadPool,
}

/// The rounds of calls to the store, and what came of them.
#[derive(Debug, Default)]
struct Rounds {
    begun: u64,
    done: u64,
    status: StoreStatus,
    /// When the store last had everything.
    succeeded_at: Option<Moment>,
    /// The round in which a farewell timed out.
    given_up: Option<u64>,
    /// The log names a worker whose record is locked.
    told_busy: bool,
}

impl Registry {
    /// Attaches this registry to a store. From now on, all its workers are registered there, later
    /// ones included. A background thread sends their heartbeats, in one batch for all of them at
    /// each `interval`, up to a tenth earlier. It sends a start, a stop, a death, a change of state
    /// and a new task at once.
    ///
    /// A store that fails does not stop or slow any worker. The failure is counted, and an event
    /// reports it once an episode. The thread retries with growing pauses of at most 10 s, and sends
    /// the newest state then; it keeps no older one.
    ///
    /// The attachment ends with [`Attachment::detach`], or with the registry. The end of the last
    /// worker waits until the store has it: see [`FleetConfig::farewell`].
    ///
    /// If the [process ends](crate::guide::shutdown#the-end-of-the-process) by itself, its living
    /// workers end, and the store receives that too. For this, the library detects the end of the main thread, and
    /// installs a panic hook that always calls the previous one.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, HeartbeatStore, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// let store = MemoryStore::new();
    /// let registry = Registry::new();
    /// let attachment = registry.attach(store.clone(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    ///
    /// assert!(attachment.flush(Duration::from_secs(10)));
    /// assert_eq!(store.summary()?.total, 1);
    /// # drop(hb);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AlreadyAttached`]; [`Error::Thread`] if the thread cannot be started.
    pub fn attach(
        &self,
        store: impl HeartbeatStore + 'static,
        config: FleetConfig,
    ) -> Result<Attachment, Error> {
        let sleeper = Sleeper::new(self.clock());
        let uploader = Arc::new(Uploader {
            store: Box::new(store),
            config,
            registry: self.downgrade(),
            clock: self.clock().clone(),
            alarm: sleeper.alarm(),
            urgent: AtomicBool::new(true),
            task: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            sync_state: Mutex::default(),
            next_loss: Mutex::new(None),
            numbers: HighestNumbers::default(),
            claims_changed: Condvar::new(),
            rounds: Mutex::default(),
            round_done: Condvar::new(),
            thread: Mutex::new(None),
            thread_id: Mutex::new(None),
            claims: ThreadPool::new(CLAIM_THREAD_NAME, MOST_CLAIM_THREADS),
        });
        if !self.store_hook().set(uploader.clone()) {
            return Err(Error::AlreadyAttached);
        }
        let running = Arc::clone(&uploader);
        match Background::start(THREAD_NAME, move || running.run(&sleeper)) {
            Ok(thread) => {
                *uploader.thread_id.lock() = Some(thread.id());
                *uploader.thread.lock() = Some(thread);
            }
            Err(error) => {
                self.store_hook().remove(Arc::as_ptr(&uploader).cast());
                return Err(error);
            }
        }
        self.watch_exit();
        Ok(Attachment {
            uploader,
            _witness: Witness::held(),
        })
    }
}

/// A registry's attachment to a store; made by [`Registry::attach`]. A clone is cheap, and dropping
/// it changes nothing.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{FleetConfig, HeartbeatStore, MemoryStore, Registry, WorkerHeartbeat};
///
/// let (registry, store) = (Registry::new(), MemoryStore::new());
/// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
/// let attachment = registry.attach(store.clone(), FleetConfig::new())?;
/// hb.beat();
/// attachment.flush(Duration::from_secs(10));
/// assert_eq!(store.summary()?.total_active, 1);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Attachment {
    uploader: Arc<Uploader>,
    _witness: Witness,
}

impl Attachment {
    /// The state of the attachment: registered workers, failures, the last success.
    ///
    /// ```
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry};
    ///
    /// let attachment = Registry::new().attach(MemoryStore::new(), FleetConfig::new())?;
    /// let status = attachment.status();
    /// if let (1.., Some(error)) = (status.failures_in_a_row, &status.last_error) {
    ///     eprintln!("the store fails: {error}");
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        self.uploader.status()
    }

    /// Blocks until the store has everything up to now, for at most `timeout` of real time; it does
    /// not wait for a store that fails. Returns whether the store has everything.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{FleetConfig, HeartbeatStore, MemoryStore, Registry, WorkerHeartbeat};
    ///
    /// let (registry, store) = (Registry::new(), MemoryStore::new());
    /// let attachment = registry.attach(store.clone(), FleetConfig::new())?;
    /// let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
    /// hb.fail("disk full");
    /// assert!(attachment.flush(Duration::from_secs(10)));
    /// assert_eq!(store.summary()?.total_dead, 1);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn flush(&self, timeout: Duration) -> bool {
        self.uploader.flush(&Patience::new(timeout))
    }

    /// Sends the newest state, and ends the attachment. The workers stay as they are, in the process
    /// and in the store: a sweep will find the living ones stale. Their leases are lost, and released
    /// there.
    ///
    /// ```
    /// use worker_heartbeat::{FleetConfig, MemoryStore, Registry};
    ///
    /// let registry = Registry::new();
    /// let attachment = registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// attachment.detach();
    /// registry.attach(MemoryStore::new(), FleetConfig::new())?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn detach(self) {
        let uploader = &self.uploader;
        uploader.lose_all(&LeaseLoss::Detached);
        uploader.flush(&Patience::new(uploader.config.farewell));
        // Its thread ends first, so that another attachment can't send the same workers meanwhile.
        uploader.close();
        if let Some(registry) = uploader.registry.upgrade() {
            registry.store_hook().remove(Arc::as_ptr(uploader).cast());
        }
    }
}

impl StoreHook for Uploader {
    fn worker_changed(&self) {
        if !self.urgent.swap(true, Ordering::AcqRel) {
            self.alarm.ring();
        }
    }

    fn task_changed(&self) {
        if !self.task.swap(true, Ordering::AcqRel) {
            self.alarm.ring();
        }
    }

    fn farewell(&self, patience: &Patience) {
        let patience = patience.at_most(self.patience());
        if !self.flush(&patience) && patience.left().is_zero() {
            let mut rounds = self.rounds.lock();
            rounds.given_up = (rounds.begun > rounds.done).then_some(rounds.begun);
        }
    }

    fn patience(&self) -> Duration {
        let rounds = self.rounds.lock();
        // The store still hangs: there is no point in another long wait.
        let hangs = rounds.begun > rounds.done && rounds.given_up == Some(rounds.begun);
        let longest = if hangs { LEAST_FAREWELL } else { Duration::MAX };
        self.config.farewell.min(longest)
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.alarm.ring();
        self.lose_all(&LeaseLoss::Detached);
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        // A store that hangs is left behind, with the thread that waits for it.
        thread.join_within(&Patience::new(self.config.farewell.max(LEAST_FAREWELL)));
    }

    fn status(&self) -> StoreStatus {
        let rounds = self.rounds.lock();
        StoreStatus {
            replaced_texts: self.store.replaced_texts(),
            last_success_age: rounds.succeeded_at.map(|at| self.clock.now().since(at)),
            ..rounds.status.clone()
        }
    }

    fn leases_held(&self) -> usize {
        let now = ClockReading::of(&self.clock);
        let sync_state = self.sync_state.lock();
        let held = sync_state.leases.iter();
        held.filter(|lease| !lease.remaining(&now).is_zero())
            .count()
    }

    fn worker_ended(&self, record: &Arc<Record>) {
        self.lose_leases_of(address(record));
    }

    fn lose_expired_leases(&self) -> Moment {
        self.lose_expired()
    }

    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Uploader {
    pub(in crate::fleet) fn of(registry: &Registry) -> Option<Arc<Self>> {
        registry.store_hook().get()?.as_any().downcast().ok()
    }

    pub(in crate::fleet) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The latest error of the store, if it fails.
    fn latest_error(&self) -> Option<String> {
        let rounds = self.rounds.lock();
        let error = rounds.status.last_error.clone();
        error.filter(|_| rounds.status.failures_in_a_row > 0)
    }

    fn flush(&self, patience: &Patience) -> bool {
        let any = |is: fn(&SyncedWorker) -> bool| self.sync_state.lock().unfinished().any(is);
        self.settle(patience, || !any(SyncedWorker::is_busy)) && !any(SyncedWorker::is_refused)
    }

    /// Waits for a round that has seen everything up to now, and for later ones until this is settled.
    /// Returns whether that came about.
    fn settle(&self, patience: &Patience, settled: impl Fn() -> bool) -> bool {
        if *self.thread_id.lock() == Some(std::thread::current().id()) {
            return false;
        }
        // A round in progress may have read the workers before a change.
        let wanted = self.rounds.lock().begun + 1;
        self.urgent.store(true, Ordering::Release);
        self.alarm.ring();
        let sent = self.wait(patience, |rounds| {
            let gives_up =
                rounds.status.failures_in_a_row > 0 || self.closing.load(Ordering::Acquire);
            let done = rounds.done >= wanted && settled();
            (done || gives_up).then_some(done)
        });
        sent.unwrap_or(false)
    }

    /// Waits for an answer for as long as the patience lasts.
    fn wait<T>(&self, patience: &Patience, answer: impl Fn(&Rounds) -> Option<T>) -> Option<T> {
        let mut rounds = self.rounds.lock();
        loop {
            let answer = answer(&rounds);
            if answer.is_some() {
                return answer;
            }
            self.round_done.wait_for(&mut rounds, patience.slice()?);
        }
    }
}
