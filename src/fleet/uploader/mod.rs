//! What carries a registry's heartbeats to a store: one thread, one batch a tick, the newest state.
//!
//! Nothing is queued. What the store has to be told is found by comparing what is with what it was
//! told last; if it can't be told, that is done again later, with the state of then.

mod leases;
mod report;
mod sync_state;
mod thread;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::config::FleetConfig;
#[cfg(feature = "prometheus")]
use super::session::Now;
use super::store::HeartbeatStore;
use crate::clock::{Alarm, Clock, Moment, Patience, Sleeper};
use crate::error::Error;
use crate::health::StoreStatus;
use crate::registry::at_exit::Witness;
use crate::registry::core::store_hook::StoreHook;
use crate::registry::{Registry, WeakRegistry};
use crate::sync::background::Background;
use sync_state::{Known, SyncState};

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-uploader";
/// How long the end of an attachment waits for its thread at least.
const LEAST_FAREWELL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Uploader {
    store: Box<dyn HeartbeatStore>,
    config: FleetConfig,
    registry: WeakRegistry,
    clock: Clock,
    alarm: Alarm,
    /// Something is to be told at once.
    urgent: AtomicBool,
    /// A new task is to be told soon.
    task: AtomicBool,
    closing: AtomicBool,
    sync_state: Mutex<SyncState>,
    progress: Mutex<Progress>,
    progressed: Condvar,
    thread: Mutex<Option<Background>>,
    thread_id: Mutex<Option<ThreadId>>,
}

#[derive(Debug, Default)]
struct Progress {
    begun: u64,
    done: u64,
    status: StoreStatus,
    /// When the store was last told everything.
    succeeded_at: Option<Moment>,
    /// The round in which a farewell ran out of time.
    given_up: Option<u64>,
}

impl Registry {
    /// Attaches this registry to a store: from now on, all its workers are registered there, those
    /// to come included, and their heartbeats are carried there by a thread of its own, in one
    /// batch for all of them at each `interval`, up to a tenth earlier. A start, a stop, a death, a
    /// change of state and a new task are told at once.
    ///
    /// A store that fails stops and slows nobody. That is counted, told once an episode, and tried
    /// again, with longer and longer breaks of at most 10 s; what was to be told then is not kept,
    /// the newest state is told.
    ///
    /// It ends with [`Attachment::detach`], or with the registry. The end of the last worker waits
    /// for the store to be told of it: see [`FleetConfig::farewell`].
    ///
    /// If the [process ends](crate::guide::shutdown#the-end-of-the-process) by itself, the workers that still live are
    /// ended, and the store hears of it too. For that, the end of the main thread is noticed, and a
    /// hook is put before the process's panic hook, which it always calls.
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
            sync_state: Mutex::default(),
            progress: Mutex::default(),
            progressed: Condvar::new(),
            thread: Mutex::new(None),
            thread_id: Mutex::new(None),
        });
        if !self.store_hook().set(uploader.clone()) {
            return Err(Error::AlreadyAttached);
        }
        let carried = Arc::clone(&uploader);
        match Background::start(THREAD_NAME, move || carried.run(&sleeper)) {
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

/// A registry's attachment to a store. A cheap clone; dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Attachment {
    uploader: Arc<Uploader>,
    _witness: Witness,
}

impl Attachment {
    /// How the registry gets on with the store.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        self.uploader.status()
    }

    /// Waits until the store has been told everything that is so now, but no longer than `timeout`
    /// of real time, and not for a store that fails. Returns whether it has.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.uploader.flush(&Patience::new(timeout))
    }

    /// Tells the store once more, and ends the attachment. The workers stay as they are, there and
    /// here: those that live are found stale by a sweep.
    pub fn detach(self) {
        let uploader = &self.uploader;
        uploader.flush(&Patience::new(uploader.config.farewell));
        // Its thread first: nobody else is to tell the same store of the same workers meanwhile.
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
            let mut progress = self.progress.lock();
            progress.given_up = (progress.begun > progress.done).then_some(progress.begun);
        }
    }

    fn patience(&self) -> Duration {
        let progress = self.progress.lock();
        // The store has not answered since: it hangs, and is not waited for that long again.
        let hangs = progress.begun > progress.done && progress.given_up == Some(progress.begun);
        let longest = if hangs { LEAST_FAREWELL } else { Duration::MAX };
        self.config.farewell.min(longest)
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.alarm.ring();
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        // A store that hangs is left behind, with the thread that waits for it.
        thread.join_within(&Patience::new(self.config.farewell.max(LEAST_FAREWELL)));
    }

    fn status(&self) -> StoreStatus {
        let progress = self.progress.lock();
        StoreStatus {
            last_success_age: progress.succeeded_at.map(|at| self.clock.now().since(at)),
            ..progress.status.clone()
        }
    }

    #[cfg(feature = "prometheus")]
    fn leases_held(&self) -> usize {
        let now = Now::of(&self.clock);
        let sync_state = self.sync_state.lock();
        let held = sync_state.leases.iter();
        held.filter(|lease| !lease.remaining(&now).is_zero())
            .count()
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

    fn flush(&self, patience: &Patience) -> bool {
        if *self.thread_id.lock() == Some(std::thread::current().id()) {
            return false;
        }
        // A round that has begun may have looked before the news.
        let wanted = self.progress.lock().begun + 1;
        self.urgent.store(true, Ordering::Release);
        self.alarm.ring();
        let told = self.wait(patience, |progress| {
            let gives_up =
                progress.status.failures_in_a_row > 0 || self.closing.load(Ordering::Acquire);
            (progress.done >= wanted || gives_up).then_some(progress.done >= wanted)
        });
        told.unwrap_or(false) && !self.sync_state.lock().known.values().any(Known::is_refused)
    }

    /// Waits until there is an answer, for so long at most.
    fn wait<T>(&self, patience: &Patience, answer: impl Fn(&Progress) -> Option<T>) -> Option<T> {
        let mut progress = self.progress.lock();
        loop {
            let answer = answer(&progress);
            if answer.is_some() {
                return answer;
            }
            self.progressed.wait_for(&mut progress, patience.slice()?);
        }
    }
}
