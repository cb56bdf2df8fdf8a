//! The metrics of a store: it may be slow, and may hang, so it is read aside.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::process::in_state;
use super::sheet::{Sheet, label};
use crate::error::Error;
use crate::fleet::{HeartbeatStore, StoredWorker, WorkerFilter};
use crate::health::{GroupState, Health, StateCounts};
use crate::registry::core::counts::{MOST_TYPES, OTHERS};
use crate::sync::background;
use crate::sync::catch::catch;

/// The store is read no oftener than this.
const FRESH: Duration = Duration::from_secs(5);
/// A store that takes longer than this hangs.
const HANGING: Duration = Duration::from_secs(10);
/// A scrape waits so long for a reading.
const PATIENCE: Duration = Duration::from_secs(1);
/// An older reading is not told any more.
const LONGEST_AGE: Duration = Duration::from_secs(60);
/// Name of the thread that reads; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-metrics";

/// A store, and what is known of it.
#[derive(Debug)]
pub(super) struct Fleet {
    store: Arc<dyn HeartbeatStore>,
    desk: Mutex<Desk>,
    read: Condvar,
}

#[derive(Debug, Default)]
struct Desk {
    /// Somebody is reading. One at a time: a store that hangs holds up one thread.
    reading: bool,
    /// When the last reading began.
    begun: Option<Instant>,
    /// The last one that ended was good.
    good: bool,
    failures: u64,
    latest: Option<(Instant, Arc<Reading>)>,
}

/// What was found in a store.
#[derive(Debug, Default)]
struct Reading {
    types: BTreeMap<String, OfType>,
    groups: BTreeMap<String, StateCounts>,
    /// Workers that hold a lease.
    leased: usize,
}

#[derive(Debug, Default)]
struct OfType {
    states: StateCounts,
    dead: BTreeMap<&'static str, usize>,
}

impl Fleet {
    pub(super) fn new(store: Arc<dyn HeartbeatStore>) -> Self {
        Self {
            store,
            desk: Mutex::default(),
            read: Condvar::new(),
        }
    }

    pub(super) fn encode(self: &Arc<Self>, sheet: &mut Sheet<'_>) -> fmt::Result {
        let (up, failures, latest) = self.look();
        sheet.gauge(
            "fleet_up",
            "Whether the store could be read when it was last tried, and does not hang",
            u32::from(up),
        )?;
        sheet.counter(
            "fleet_read_failures",
            "Readings of the store that failed",
            failures,
        )?;
        let Some((at, reading)) = latest else {
            return Ok(());
        };
        let age = at.elapsed();
        sheet.gauge(
            "fleet_reading_age_seconds",
            "Time since the store was read; what is older than a minute is not told",
            age.as_secs_f64(),
        )?;
        if age > LONGEST_AGE {
            return Ok(());
        }
        reading.encode(sheet)
    }

    /// The latest reading, made now if that is possible in time.
    fn look(self: &Arc<Self>) -> (bool, u64, Option<(Instant, Arc<Reading>)>) {
        let mut desk = self.desk.lock();
        if !desk.reading && desk.begun.is_none_or(|begun| begun.elapsed() >= FRESH) {
            self.begin(&mut desk);
        }
        let deadline = desk.begun.and_then(|begun| begun.checked_add(PATIENCE));
        if let Some(deadline) = deadline {
            while desk.reading && !self.read.wait_until(&mut desk, deadline).timed_out() {}
        }
        let hangs = desk.reading && desk.begun.is_some_and(|begun| begun.elapsed() >= HANGING);
        (desk.good && !hangs, desk.failures, desk.latest.clone())
    }

    fn begin(self: &Arc<Self>, desk: &mut Desk) {
        desk.begun = Some(Instant::now());
        let fleet = Arc::clone(self);
        let started = background::detach(THREAD_NAME, move || fleet.read());
        desk.reading = started.is_ok();
        if started.is_err() {
            desk.good = false;
            desk.failures += 1;
        }
    }

    fn read(&self) {
        let begun = Instant::now();
        let read = catch(|| Reading::of(&*self.store))
            .unwrap_or_else(|_| Err(Error::store("be read", "it panicked")));
        let mut desk = self.desk.lock();
        desk.reading = false;
        desk.good = read.is_ok();
        match read {
            // From its beginning on: it may have taken long.
            Ok(reading) => desk.latest = Some((begun, Arc::new(reading))),
            Err(_) => desk.failures += 1,
        }
        drop(desk);
        self.read.notify_all();
    }
}

impl Reading {
    /// Page by page, so that not all workers have to be in memory at once.
    fn of(store: &dyn HeartbeatStore) -> Result<Self, Error> {
        let mut reading = Self::default();
        let mut filter = WorkerFilter::default();
        loop {
            let page = store.list(&filter)?;
            page.iter().for_each(|worker| reading.add(worker));
            let last = page.last().map(|worker| worker.key.id.clone());
            // A store that does not get on would be read for ever.
            if page.len() < filter.limit || last <= filter.after {
                return Ok(reading);
            }
            filter.after = last;
        }
    }

    fn add(&mut self, worker: &StoredWorker) {
        let health = worker.health();
        let of_type = entry(&mut self.types, &worker.worker_type);
        of_type.states.add(health.state());
        if let Health::Dead { death, .. } = &health {
            *of_type.dead.entry(death.cause.name()).or_default() += 1;
        }
        entry(&mut self.groups, &worker.group).add(health.state());
        self.leased += usize::from(worker.lease_remaining.is_some_and(|left| !left.is_zero()));
    }

    fn encode(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        sheet.gauges(
            "fleet_workers",
            "Workers that the store knows, by type and state",
            self.types.iter().flat_map(|(name, of_type)| {
                let states = of_type.states.iter();
                states.map(|(state, count)| in_state(name, state, count))
            }),
        )?;
        sheet.gauges(
            "fleet_dead_workers",
            "Dead workers that the store remembers, by cause",
            self.types.iter().flat_map(|(name, of_type)| {
                let dead = of_type.dead.iter();
                dead.map(|(cause, count)| {
                    let labels = [("worker_type", label(name)), ("cause", *cause)];
                    (labels, *count as u64)
                })
            }),
        )?;
        let groups = [
            ("online", GroupState::Online),
            ("offline", GroupState::Offline),
            ("stopped", GroupState::Stopped),
        ];
        sheet.gauges(
            "fleet_groups",
            "Groups by state: one is offline when all its workers are that were not stopped",
            groups.map(|(name, state)| {
                let groups = self.groups.values();
                let count = groups.filter(|states| GroupState::of(states) == state);
                ([("state", name)], count.count() as u64)
            }),
        )?;
        sheet.gauge(
            "fleet_leased_workers",
            "Workers in the store that hold a lease",
            self.leased as u64,
        )
    }
}

/// The place of this name, or of all others if there are too many.
fn entry<'m, T: Default>(places: &'m mut BTreeMap<String, T>, name: &str) -> &'m mut T {
    let name = label(name);
    let name = if places.len() < MOST_TYPES || places.contains_key(name) {
        name
    } else {
        OTHERS
    };
    places.entry(name.to_owned()).or_default()
}
