//! The workers of a registry, and what happens to them. Knows no threads but the one that writes the
//! log and the one that reads call stacks.

pub(crate) mod counts;
pub(crate) mod draining;
mod ends;
pub(crate) mod escalation;
pub(crate) mod events;
mod log_limiter;
mod log_thread;
pub(crate) mod pace;
pub(crate) mod polls;
pub(crate) mod profile;
pub(crate) mod record;
pub(crate) mod slab;
#[cfg(feature = "stacks")]
mod stack_queue;
pub(crate) mod store_hook;
pub(crate) mod subscribers;
pub(crate) mod tasks;
pub(crate) mod timeline;
mod timers;
pub(crate) mod unreturned;
pub(crate) mod worker_ref;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::cell::{CellKey, Phase};
use crate::clock::{Clock, Moment, nanos};
use crate::health::{Health, State};
use counts::Counts;
use draining::Draining;
pub(crate) use ends::PendingNotices;
use escalation::{Escalation, Escalations};
use events::{Event, EventKind, EventWorker};
use log_limiter::LogLimiter;
use log_thread::LogQueue;
use once_cell::sync::OnceCell;
use profile::Profiles;
use record::Record;
use slab::Slab;
use store_hook::StoreHookSlot;
use subscribers::Subscribers;
use timeline::{LONGEST_RESOLUTION, ObservedNow, Timeline, resolution_for};
use timers::WakerTimers;
use unreturned::Unreturned;
use worker_ref::WorkerRef;

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
    /// The time between two ticks of the pacemaker, in nanoseconds.
    resolution: AtomicU64,
    /// Held while the resolution changes, so that a worker that comes while the others are counted is
    /// never observed at the coarser resolution that suffices for them.
    resolving: Mutex<()>,
    /// Workers came, went, ended or became expected since the pacemaker last counted them.
    pub changed: AtomicBool,
    /// A limit got shorter since the last tick: a worker may have exceeded it already.
    pub shortened: AtomicBool,
    pub expected: Mutex<BTreeMap<String, Expectation>>,
    /// All workers were asked to stop.
    pub stopping: AtomicBool,
    pub draining: Draining,
    pub escalations: Escalations,
    /// What began the shutdown, if a trigger did.
    pub escalated: OnceCell<Escalation>,
    timers: WakerTimers,
    pub store_hook: StoreHookSlot,
    /// The number of ends that are about to be logged.
    logs_in_flight: AtomicUsize,
    log_queue: LogQueue,
    #[cfg(feature = "stacks")]
    stacks: stack_queue::StackQueue,
    pub unreturned: Unreturned,
    /// Counts ends and returns, for the threads that wait for one.
    ends: Mutex<u64>,
    ended: Condvar,
}

/// Workers share these locks.
const EVENT_LOCKS: usize = 64;

/// How many workers of a type have to live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expectation {
    pub count: usize,
    /// Since when some are missing, on the registry's time line. Subscribers know it.
    pub missing_since: Option<Moment>,
}

impl Core {
    pub(crate) fn new(clock: Clock) -> Self {
        let now = clock.now();
        #[cfg(feature = "stacks")]
        let stacks = stack_queue::StackQueue::new(&clock);
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
            shortened: AtomicBool::new(false),
            expected: Mutex::default(),
            stopping: AtomicBool::new(false),
            draining: Draining::default(),
            escalations: Escalations::default(),
            escalated: OnceCell::new(),
            timers: WakerTimers::default(),
            store_hook: StoreHookSlot::default(),
            logs_in_flight: AtomicUsize::new(0),
            log_queue: LogQueue::default(),
            #[cfg(feature = "stacks")]
            stacks,
            unreturned: Unreturned::default(),
            ends: Mutex::new(0),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn resolution(&self) -> Duration {
        Duration::from_nanos(self.resolution.load(Ordering::Relaxed))
    }

    /// Makes the pacemaker tick as often as this limit needs. Returns whether that is more often than
    /// before.
    pub(crate) fn refine_resolution(&self, threshold: Duration) -> bool {
        let needed = nanos(resolution_for(threshold));
        let _resolving = self.resolving.lock();
        self.resolution.fetch_min(needed, Ordering::Relaxed) > needed
    }

    /// Makes the pacemaker tick only as often as the present workers need.
    pub(crate) fn coarsen_resolution(&self) {
        let _resolving = self.resolving.lock();
        let shortest = self.profiles.shortest_threshold();
        let needed = nanos(shortest.map_or(LONGEST_RESOLUTION, resolution_for));
        self.resolution.store(needed, Ordering::Relaxed);
    }

    /// The registry's time now. Wakes no pacemaker that is overdue.
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

    /// Sends an event to subscribers and logs it. Never under a lock.
    pub(crate) fn emit(&self, worker: Option<&Record>, kind: EventKind) {
        let event = self.publish(worker, kind);
        self.act_on_events();
        if let Some(event) = event {
            self.log(&event);
        }
    }

    /// As [`emit`](Self::emit), but another thread writes the log.
    pub(crate) fn emit_in_background(self: &Arc<Self>, worker: &Arc<Record>, kind: EventKind) {
        if let Some(event) = self.publish(Some(worker), kind) {
            self.subscribers.wake();
            self.log_in_background(vec![(Arc::clone(worker), event)]);
        }
    }

    /// Held while a worker's life changes and the event is sent, so that events are in order: the last
    /// one is true. Taken before the detail's lock. No code of the application is called under it.
    pub(crate) fn lock_events(&self, record: &Record) -> MutexGuard<'_, ()> {
        // By its address, without the last bits, which are the same for all.
        let place = std::ptr::from_ref(record).addr() / size_of::<Record>();
        self.event_locks[place % EVENT_LOCKS].lock()
    }

    /// As [`publish`](Self::publish), for a worker that was found alive with this key. Nothing if that
    /// life is over: its end is the last event of a life.
    pub(crate) fn publish_alive(
        &self,
        record: &Record,
        key: CellKey,
        kind: EventKind,
    ) -> Option<Event> {
        let _events = self.lock_events(record);
        if record.is_over() || record.cell_key() != key {
            None
        } else {
            self.publish(Some(record), kind)
        }
    }

    /// As [`emit`](Self::emit), of a worker while this life lasts.
    pub(crate) fn emit_alive(&self, record: &Record, key: CellKey, kind: EventKind) {
        let event = self.publish_alive(record, key, kind);
        self.act_on_events();
        if let Some(event) = event {
            self.log(&event);
        }
    }

    /// Counts an event and sends it to subscribers, which never blocks. The caller logs what this
    /// returns and calls [`Subscribers::wake`] once it holds no lock: both may block.
    fn publish(&self, worker: Option<&Record>, kind: EventKind) -> Option<Event> {
        self.counts
            .note(worker.map(|record| &*record.profile.counts), &kind);
        if let Some(worker) = worker {
            self.escalations.note_event(worker, &kind);
        }
        let mut event = Event {
            at: self.clock.wall(),
            worker: None,
            kind,
        };
        if let Some(store_hook) = worker.and_then(|_| self.store_hook.get()) {
            store_hook.worker_changed();
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
        self.log_limiter.write(self.clock.now(), event);
    }

    /// How many log lines were left out so far.
    pub(in crate::registry) fn suppressed_log_lines(&self) -> u64 {
        self.log_limiter.suppressed()
    }

    /// As [`log`](Self::log), but never after the end of the worker.
    fn log_unless_over(&self, record: &Record, event: &Event) {
        let of_living = matches!(
            event.kind,
            EventKind::Became(Health::Stopping) | EventKind::StackCaptured { .. }
        );
        if !(of_living && record.is_over()) {
            self.log(event);
        }
    }

    /// Logs how many lines were suppressed, if it is time. `last`: no later call is to be expected soon.
    pub(crate) fn flush_log_limiter(&self, last: bool) {
        self.log_limiter.tick(self.clock.now(), last);
    }

    /// The workers that hold a cell, in the order of the cells.
    pub(crate) fn worker_refs(&self) -> Vec<WorkerRef> {
        let mut workers = Vec::new();
        for chunk in &*self.slab.chunks() {
            let occupants = chunk.occupants().into_iter();
            workers.extend(occupants.map(|(offset, record)| WorkerRef {
                chunk: Arc::clone(chunk),
                offset,
                record,
            }));
        }
        workers
    }

    /// The number of living workers of each type. One pass over the cells.
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
}

/// Whether the pacemaker has convicted a worker in this state.
pub(crate) const fn is_conviction(state: State) -> bool {
    matches!(
        state,
        State::NeverStarted | State::Stalled | State::Overdue | State::Stale
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::health::Thresholds;
    use pace::PaceSpec;
    use profile::ProfileKey;

    #[test]
    fn a_worker_that_comes_while_the_resolution_gets_coarser_keeps_its_own() {
        let core = Core::new(Clock::system());
        let profile = core.profiles.intern(ProfileKey {
            worker_type: "w".into(),
            group: "local".into(),
            thresholds: Thresholds::new(Duration::from_millis(100)),
            pace: PaceSpec::default(),
            interval: Duration::from_millis(10),
            site: std::panic::Location::caller(),
            drain_within: None,
        });
        // Both threads begin each round at about the same time, either of them first.
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
                core.refine_resolution(profile.shortest());
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
