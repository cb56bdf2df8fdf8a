//! All workers of a registry, and what happens to them. Everything above works on this.

pub(crate) mod counts;
pub(crate) mod events;
mod log_limiter;
mod log_thread;
pub(crate) mod profile;
pub(crate) mod record;
pub(crate) mod slab;
pub(crate) mod tasks;
pub(crate) mod timeline;
pub(crate) mod unreturned;
pub(crate) mod worker_ref;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::cell::{CellKey, Phase};
use crate::clock::{Clock, Moment, Patience, nanos};
use crate::health::{DeathCause, Health, State, StopCause, StoreStatus};
use crate::sync::wakers::wake;
use counts::Counts;
use events::{Event, EventKind, EventWorker, Subscribers};
use log_limiter::LogLimiter;
pub(crate) use log_limiter::say;
use log_thread::LogQueue;
use profile::Profiles;
use record::Record;
use slab::Slab;
use timeline::{LONGEST_RESOLUTION, ObservedNow, Timeline, resolution_for};
use unreturned::Unreturned;
use worker_ref::{Termination, WorkerRef};

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    pub clock: Clock,
    pub timeline: Timeline,
    pub slab: Slab<Record>,
    pub profiles: Profiles,
    pub subscribers: Subscribers,
    pub counts: Counts,
    /// See [`Core::lock_events`].
    event_locks: [Mutex<()>; EVENT_LOCKS],
    log_limiter: LogLimiter,
    /// How often the pacemaker looks, in nanoseconds.
    resolution: AtomicU64,
    /// Held while that changes: a worker that comes while the others are counted is not to be
    /// watched as seldom as they need, not for a moment.
    resolving: Mutex<()>,
    /// Workers came, went, ended or are expected since the pacemaker last counted them.
    pub changed: AtomicBool,
    pub expected: Mutex<BTreeMap<String, Expectation>>,
    /// All workers were asked to stop.
    pub stopping: AtomicBool,
    timers: Mutex<WakerTimers>,
    store_hook: RwLock<Option<Arc<dyn StoreHook>>>,
    /// There is a store_hook.
    hooked: AtomicBool,
    /// How many are about to tell the log of an end.
    telling: AtomicUsize,
    log_queue: LogQueue,
    pub unreturned: Unreturned,
    /// Counts ends and returns, for those who wait for one.
    ends: Mutex<u64>,
    ended: Condvar,
}

/// Who wants to hear at once what happens to workers: what carries their heartbeats to a store.
pub(crate) trait StoreHook: Send + Sync + std::fmt::Debug {
    /// A worker began, ended or changed its state.
    fn news(&self);
    /// A worker began another task.
    fn new_task(&self);
    /// The last worker is gone, or the process is about to end: waits until all has been told, but
    /// no longer than this.
    fn farewell(&self, patience: &Patience);
    /// How long a farewell may take.
    fn patience(&self) -> Duration;
    /// The registry is gone.
    fn close(&self);
    fn status(&self) -> StoreStatus;
    /// How many leases are held now.
    #[cfg(feature = "prometheus")]
    fn leases_held(&self) -> usize;
    fn as_any(self: Arc<Self>) -> Arc<dyn std::any::Any + Send + Sync>;
}

/// How many workers' changes of life can be told at the same time, at most.
const EVENT_LOCKS: usize = 64;

/// Tasks to be woken by the pacemaker.
#[derive(Debug, Default)]
struct WakerTimers {
    by_number: BTreeMap<u64, (Moment, Waker)>,
    next: u64,
}

/// How many workers of a type are expected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expectation {
    pub count: usize,
    /// Subscribers were told that some are missing.
    pub missing_reported: bool,
}

impl Core {
    pub(crate) fn new(clock: Clock) -> Self {
        let now = clock.now();
        Self {
            clock,
            timeline: Timeline::new(now),
            slab: Slab::default(),
            profiles: Profiles::default(),
            subscribers: Subscribers::default(),
            counts: Counts::default(),
            event_locks: [const { Mutex::new(()) }; EVENT_LOCKS],
            log_limiter: LogLimiter::default(),
            resolution: AtomicU64::new(nanos(LONGEST_RESOLUTION)),
            resolving: Mutex::new(()),
            changed: AtomicBool::new(false),
            expected: Mutex::default(),
            stopping: AtomicBool::new(false),
            timers: Mutex::default(),
            store_hook: RwLock::new(None),
            hooked: AtomicBool::new(false),
            telling: AtomicUsize::new(0),
            log_queue: LogQueue::default(),
            unreturned: Unreturned::default(),
            ends: Mutex::new(0),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn resolution(&self) -> Duration {
        Duration::from_nanos(self.resolution.load(Ordering::Relaxed))
    }

    /// Makes the pacemaker look as often as this limit needs. Returns whether that is oftener.
    pub(crate) fn refine_resolution(&self, threshold: Duration) -> bool {
        let needed = nanos(resolution_for(threshold));
        let _resolving = self.resolving.lock();
        self.resolution.fetch_min(needed, Ordering::Relaxed) > needed
    }

    /// Lets the pacemaker look only as often as the workers that are left need.
    pub(crate) fn coarsen_resolution(&self) {
        let _resolving = self.resolving.lock();
        let shortest = self.profiles.shortest_threshold();
        let needed = nanos(shortest.map_or(LONGEST_RESOLUTION, resolution_for));
        self.resolution.store(needed, Ordering::Relaxed);
    }

    /// The registry's time now, as it stands: nobody is woken.
    #[inline]
    pub(crate) fn observed_now(&self) -> ObservedNow {
        self.timeline.observed_now(self.clock.now())
    }

    pub(crate) fn worker_ref(&self, record: Arc<Record>) -> WorkerRef {
        let slot = record.cell_key().slot();
        WorkerRef {
            chunk: self.slab.chunk(slot),
            offset: slot.offset as usize,
            record,
        }
    }

    /// Tells subscribers and the log. Never under a lock.
    pub(crate) fn emit(&self, worker: Option<&Record>, kind: EventKind) {
        if let Some(event) = self.publish(worker, kind) {
            self.subscribers.wake();
            self.log(&event);
        }
    }

    /// Held while a worker's life changes and subscribers are told of it, so that they are told in
    /// the order in which it happened: what they hear last is what is true. Before the detail's
    /// lock; nothing of anybody else's is called under it.
    pub(crate) fn lock_events(&self, record: &Record) -> MutexGuard<'_, ()> {
        // By its address, of which the last bits are the same for all.
        let place = std::ptr::from_ref(record).addr() / size_of::<Record>();
        self.event_locks[place % EVENT_LOCKS].lock()
    }

    /// As [`publish`](Self::publish), of a worker that was found alive at this place. Nothing if that
    /// life is over: of its end has been told, and nothing is to be told after it.
    pub(crate) fn publish_alive(
        &self,
        record: &Record,
        place: CellKey,
        kind: EventKind,
    ) -> Option<Event> {
        let events = self.lock_events(record);
        if record.is_over() || record.cell_key() != place {
            return None;
        }
        let event = self.publish(Some(record), kind);
        drop(events);
        self.subscribers.wake();
        event
    }

    /// Counts, and sends it to subscribers, which takes no time. Returns what is left for the log,
    /// which may take its time, as [`Subscribers::wake`] may: the caller wakes and logs once no lock is held.
    fn publish(&self, worker: Option<&Record>, kind: EventKind) -> Option<Event> {
        self.counts
            .note(worker.map(|record| &*record.profile.counts), &kind);
        let mut event = Event {
            at: self.clock.wall(),
            worker: None,
            kind,
        };
        if let Some(store_hook) = worker.and_then(|_| self.store_hook()) {
            store_hook.news();
        }
        if self.subscribers.is_empty() && event.level() > log::max_level() {
            return None;
        }
        event.worker = worker.map(|record| EventWorker {
            id: record.id().to_owned(),
            worker_type: record.profile.worker_type.to_string(),
            group: record.profile.group.to_string(),
            incarnation: record.incarnation(),
        });
        self.subscribers.send(&event);
        Some(event)
    }

    pub(crate) fn log(&self, event: &Event) {
        self.log_limiter
            .write(self.clock.now(), event.level(), event);
    }

    /// As [`log`](Self::log), but that the end of a worker is the last that the log hears of it.
    fn log_unless_over(&self, record: &Record, event: &Event) {
        let stopping = matches!(event.kind, EventKind::Became(Health::Stopping));
        if !(stopping && record.is_over()) {
            self.log(event);
        }
    }

    /// Tells the log what was left out, if it is time; if this is the `last` time for now, before.
    pub(crate) fn flush_log_limiter(&self, last: bool) {
        self.log_limiter.tick(self.clock.now(), last);
    }

    // --- the store_hook --------------------------------------------------------------------------

    #[inline]
    pub(crate) fn store_hook(&self) -> Option<Arc<dyn StoreHook>> {
        if self.hooked.load(Ordering::Acquire) {
            self.store_hook.read().clone()
        } else {
            None
        }
    }

    /// Takes a store_hook, if there is none yet.
    pub(crate) fn set_store_hook(&self, store_hook: Arc<dyn StoreHook>) -> bool {
        let mut place = self.store_hook.write();
        if place.is_some() {
            return false;
        }
        *place = Some(store_hook);
        self.hooked.store(true, Ordering::Release);
        true
    }

    /// Lets this store_hook go; another one stays.
    pub(crate) fn remove_store_hook(&self, store_hook: *const ()) {
        let mut place = self.store_hook.write();
        if place
            .as_ref()
            .is_some_and(|there| std::ptr::addr_eq(Arc::as_ptr(there), store_hook))
        {
            self.hooked.store(false, Ordering::Release);
            *place = None;
        }
    }

    // --- ends -----------------------------------------------------------------------------------

    /// Ends a worker's incarnation and tells. `false` if it had ended before.
    pub(crate) fn end(&self, worker: &WorkerRef, end: Termination) -> bool {
        let telling = LogInFlight::begin(self);
        let (ended, event) = self.end_quietly(worker, end);
        if let Some(event) = event {
            self.subscribers.wake();
            let in_log = self.unreturned.begin_logging(&worker.record);
            self.log(&event);
            drop(in_log);
        }
        drop(telling);
        ended
    }

    /// Ends a worker's incarnation; what is to be logged is left to the caller, who is telling.
    fn end_quietly(&self, worker: &WorkerRef, end: Termination) -> (bool, Option<Event>) {
        let _events = self.lock_events(&worker.record);
        match worker.end(end, &self.observed_now(), self.clock.wall()) {
            Some(health) => (true, self.publish_end(worker, health)),
            None => (false, None),
        }
    }

    /// Ends this life of a worker whose place another one has taken elsewhere, and tells.
    pub(crate) fn fence(&self, worker: &WorkerRef, incarnation: u32) {
        let _telling = LogInFlight::begin(self);
        let turn = self.lock_events(&worker.record);
        // No other life begins in this turn.
        if worker.record.incarnation() != incarnation {
            return;
        }
        let worker = &*worker.current();
        let end = Termination::Dead(DeathCause::Fenced);
        let (ended, wakers) = worker.cut_off(
            StopCause::Fenced,
            end,
            &self.observed_now(),
            self.clock.wall(),
        );
        let event = ended.and_then(|health| self.publish_end(worker, health));
        drop(turn);
        wakers.into_iter().for_each(wake);
        if let Some(event) = event {
            self.subscribers.wake();
            self.log(&event);
        }
    }

    fn publish_end(&self, worker: &WorkerRef, health: Health) -> Option<Event> {
        self.changed.store(true, Ordering::Release);
        self.publish(Some(&worker.record), EventKind::Became(health))
    }

    /// Ends workers whatever they are at; executors and the log, which may take their time, are told
    /// by [`PendingNotices::deliver`].
    pub(crate) fn cut_off(
        &self,
        workers: &[WorkerRef],
        request: &StopCause,
        end: impl Fn() -> Termination,
    ) -> PendingNotices<'_> {
        let mut notices = PendingNotices::new(self);
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            let worker = &*worker.current();
            let (ended, wakers) = worker.cut_off(
                request.clone(),
                end(),
                &self.observed_now(),
                self.clock.wall(),
            );
            notices.wakers.extend(wakers);
            if let Some(health) = ended {
                notices.note(&worker.record, self.publish_end(worker, health));
            }
        }
        notices
    }

    /// Whether the log has been told of every end.
    pub(crate) fn all_logged(&self) -> bool {
        self.telling.load(Ordering::Acquire) == 0
    }

    /// Asks workers to stop; idle ones are stopped at once. When this returns, all of them know;
    /// executors and the log, which may take their time, are told by [`PendingNotices::deliver`].
    pub(crate) fn request_stop(
        &self,
        workers: &[WorkerRef],
        cause: &StopCause,
    ) -> PendingNotices<'_> {
        let mut notices = PendingNotices::new(self);
        // Subscribers first, so that nobody hears of a worker's end before the request.
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            let worker = worker.current();
            if worker.claim_stop(cause.clone()) == Some(true) {
                let kind = EventKind::Became(Health::Stopping);
                notices.note(&worker.record, self.publish(Some(&worker.record), kind));
            }
        }
        for worker in workers {
            let _events = self.lock_events(&worker.record);
            let worker = &*worker.current();
            let (ended, wakers) = worker.show_stop(&self.observed_now(), self.clock.wall());
            notices.wakers.extend(wakers);
            if let Some(health) = ended {
                notices.note(&worker.record, self.publish_end(worker, health));
            }
        }
        notices
    }

    /// Something ended that others may wait for.
    fn note_end(&self) {
        *self.ends.lock() += 1;
        self.ended.notify_all();
    }

    /// Waits until `over` says so, for no longer than the patience lasts. It is asked at every end,
    /// and once in a slice: a log that blocks keeps an end from being counted. Returns what it said
    /// last.
    pub(crate) fn wait_for_ends(
        &self,
        patience: &Patience,
        mut over: impl FnMut() -> bool,
    ) -> bool {
        loop {
            let before = *self.ends.lock();
            if over() {
                return true;
            }
            let Some(slice) = patience.slice() else {
                return false;
            };
            let mut ends = self.ends.lock();
            if *ends == before {
                self.ended.wait_for(&mut ends, slice);
            }
        }
    }

    /// All workers that hold a cell, in the order of their cells.
    pub(crate) fn worker_refs(&self) -> Vec<WorkerRef> {
        let mut workers = Vec::new();
        for chunk in &*self.slab.chunks() {
            workers.extend(
                chunk
                    .occupants()
                    .into_iter()
                    .map(|(offset, record)| WorkerRef {
                        chunk: Arc::clone(chunk),
                        offset,
                        record,
                    }),
            );
        }
        workers
    }

    /// How many workers of each type live. One pass over the cells.
    pub(crate) fn living_by_type(&self) -> BTreeMap<String, usize> {
        let mut by_profile = BTreeMap::<u32, usize>::new();
        for chunk in &*self.slab.chunks() {
            for cell in chunk.cells() {
                let life = cell.state();
                if life.phase == Phase::Live {
                    *by_profile.entry(life.profile).or_default() += 1;
                }
            }
        }
        let mut by_type = BTreeMap::new();
        for (number, count) in by_profile {
            if let Some(profile) = self.profiles.get(number) {
                *by_type.entry(profile.worker_type.to_string()).or_default() += count;
            }
        }
        by_type
    }

    // --- timers for futures ---------------------------------------------------------------------

    /// Wakes a future's task once the clock shows `at`. Returns the number to forget it by, and to
    /// replace it by. The caller rings the pacemaker.
    pub(crate) fn set_timer(&self, known: Option<u64>, at: Moment, waker: &Waker) -> u64 {
        // Neither made nor dropped under the lock: wakers belong to executors.
        let timer = (at, waker.clone());
        let mut timers = self.timers.lock();
        let number = known.unwrap_or_else(|| {
            timers.next += 1;
            timers.next
        });
        let replaced = timers.by_number.insert(number, timer);
        drop(timers);
        drop(replaced);
        number
    }

    pub(crate) fn forget_timer(&self, number: u64) {
        let forgotten = self.timers.lock().by_number.remove(&number);
        drop(forgotten);
    }

    /// Takes out the timers that are due, and tells when the next one is.
    pub(crate) fn due_timers(&self, now: Moment) -> (Vec<Waker>, Moment) {
        let mut timers = self.timers.lock();
        if timers.by_number.is_empty() {
            return (Vec::new(), Moment::NEVER);
        }
        let is_due = |(_, (at, _)): &(&u64, &(Moment, Waker))| *at <= now;
        let due = timers.by_number.iter().filter(is_due);
        let due: Vec<u64> = due.map(|(number, _)| *number).collect();
        let due = due
            .iter()
            .filter_map(|number| timers.by_number.remove(number))
            .map(|(_, waker)| waker)
            .collect();
        let next = timers.by_number.values().map(|(at, _)| *at).min();
        (due, next.unwrap_or(Moment::NEVER))
    }
}

/// Somebody is about to tell the log of an end: a process that waits for the ends of its workers
/// waits for that too.
#[derive(Debug)]
struct LogInFlight<R: Deref<Target = Core>>(R);

impl<R: Deref<Target = Core>> LogInFlight<R> {
    fn begin(core: R) -> Self {
        core.telling.fetch_add(1, Ordering::AcqRel);
        Self(core)
    }
}

impl<R: Deref<Target = Core>> Drop for LogInFlight<R> {
    fn drop(&mut self) {
        self.0.telling.fetch_sub(1, Ordering::AcqRel);
        self.0.note_end();
    }
}

/// What is left to do once workers were asked to stop.
#[must_use = "executors wait to be told"]
pub(crate) struct PendingNotices<'a> {
    core: &'a Core,
    _telling: LogInFlight<&'a Core>,
    wakers: Vec<Waker>,
    events: Vec<(Arc<Record>, Event)>,
}

impl<'a> PendingNotices<'a> {
    fn new(core: &'a Core) -> Self {
        Self {
            core,
            _telling: LogInFlight::begin(core),
            wakers: Vec::new(),
            events: Vec::new(),
        }
    }

    fn note(&mut self, record: &Arc<Record>, event: Option<Event>) {
        self.events
            .extend(event.map(|event| (Arc::clone(record), event)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && self.events.is_empty()
    }

    /// Wakes those who wait to be asked. [`deliver`](Self::deliver) does too, before it logs.
    pub(crate) fn wake(&mut self) {
        self.wakers.drain(..).for_each(wake);
        self.core.subscribers.wake();
    }

    pub(crate) fn deliver(mut self) {
        self.wake();
        for (record, event) in std::mem::take(&mut self.events) {
            self.core.log_unless_over(&record, &event);
        }
    }

    /// As [`deliver`](Self::deliver), with the log told by another thread. The core is the same.
    pub(crate) fn deliver_in_background(mut self, core: &Arc<Core>) {
        self.wake();
        core.log_in_background(std::mem::take(&mut self.events));
    }
}

/// Whether the pacemaker has convicted a worker in this state.
pub(crate) const fn is_conviction(state: State) -> bool {
    matches!(state, State::NeverStarted | State::Stalled | State::Stale)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::health::Thresholds;
    use profile::ProfileKey;

    #[test]
    fn a_worker_that_comes_while_the_pacemaker_relaxes_is_watched_as_closely_as_it_needs() {
        let core = Core::new(Clock::system());
        let profile = core.profiles.intern(ProfileKey {
            worker_type: "w".into(),
            group: "local".into(),
            thresholds: Thresholds::new(Duration::from_millis(100)),
            interval: Duration::from_millis(10),
        });
        // Both begin each round at once, as near as can be, and a little apart, now one, now the other.
        let arrived = AtomicU64::new(0);
        let meet = |n: u64| {
            arrived.fetch_add(1, Ordering::AcqRel);
            while arrived.load(Ordering::Acquire) < 2 * n {
                std::thread::yield_now();
            }
        };
        let rounds = 100_000;
        let mut coarse = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    meet(2 * round - 1);
                    core.coarsen_resolution();
                    meet(2 * round);
                }
            });
            for round in 1..=rounds {
                meet(2 * round - 1);
                (0..round % 32).for_each(|_| std::hint::spin_loop());
                profile.enter();
                core.refine_resolution(profile.thresholds.shortest());
                meet(2 * round);
                let found = core.resolution();
                coarse += u32::from(found > timeline::SHORTEST_RESOLUTION);
                profile.leave();
                core.coarsen_resolution();
            }
        });
        assert_eq!(coarse, 0);
    }
}
