//! The metrics of a store. It may be slow or hang, so a background thread reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::encoder::{Encoder, label};
use super::registry::{cause_sample, state_sample};
use crate::error::Error;
use crate::fleet::{HeartbeatStore, Pages, StoredWorker, WorkerFilter};
use crate::health::{GroupState, Health, StateCounts};
use crate::registry::core::counts::{MOST_TYPES, OTHERS};
use crate::sync::background;
use crate::sync::catch::catch;

/// The shortest time between the beginnings of two readings.
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// A store that takes longer counts as down.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a scrape waits for a reading.
const SCRAPE_WAIT: Duration = Duration::from_secs(1);
/// An older reading is not exported.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The kernel keeps 15 bytes of a thread's name.
const THREAD_NAME: &str = "wh-metrics";

/// The metrics of one store.
#[derive(Debug)]
pub(super) struct FleetMetrics {
    store: Arc<dyn HeartbeatStore>,
    progress: Mutex<ReadProgress>,
    finished: Condvar,
}

#[derive(Clone, Debug, Default)]
struct ReadProgress {
    /// A thread is reading. There is at most one, so a store that hangs blocks one thread.
    is_reading: bool,
    /// When the last reading began.
    begun: Option<Instant>,
    /// The last finished reading succeeded.
    succeeded: bool,
    failures: u64,
    latest: Option<(Instant, Arc<FleetFigures>)>,
}

/// One reading of a store.
#[derive(Debug, Default)]
struct FleetFigures {
    types: BTreeMap<String, FleetType>,
    groups: BTreeMap<String, StateCounts>,
    leased_workers: usize,
}

/// The stored workers of one type.
#[derive(Debug, Default)]
struct FleetType {
    states: StateCounts,
    /// The dead by cause.
    dead: BTreeMap<&'static str, usize>,
}

impl FleetMetrics {
    pub(super) fn new(store: Arc<dyn HeartbeatStore>) -> Self {
        Self {
            store,
            progress: Mutex::default(),
            finished: Condvar::new(),
        }
    }

    pub(super) fn encode(self: &Arc<Self>, encoder: &mut Encoder<'_>) -> fmt::Result {
        let progress = self.read_if_due();
        let hangs = progress.is_reading && progress.age() >= Some(READ_TIMEOUT);
        encoder.gauge(
            "fleet_up",
            "Whether the last reading of the store succeeded and none hangs",
            u32::from(progress.succeeded && !hangs),
        )?;
        encoder.counter(
            "fleet_read_failures",
            "Failed readings of the store",
            progress.failures,
        )?;
        let Some((at, figures)) = progress.latest else {
            return Ok(());
        };
        let age = at.elapsed();
        encoder.gauge(
            "fleet_reading_age_seconds",
            "Time since the last reading of the store; its metrics are absent after a minute",
            age.as_secs_f64(),
        )?;
        if age > MAX_AGE {
            return Ok(());
        }
        figures.encode(encoder)
    }

    /// Starts a reading if it is due, and waits a while for it.
    fn read_if_due(self: &Arc<Self>) -> ReadProgress {
        let mut progress = self.progress.lock();
        if !progress.is_reading && progress.age().is_none_or(|age| age >= READ_INTERVAL) {
            self.start_reading(&mut progress);
        }
        if let Some(deadline) = progress.begun.and_then(|at| at.checked_add(SCRAPE_WAIT)) {
            let is_reading = |progress: &mut ReadProgress| progress.is_reading;
            self.finished
                .wait_while_until(&mut progress, is_reading, deadline);
        }
        progress.clone()
    }

    fn start_reading(self: &Arc<Self>, progress: &mut ReadProgress) {
        progress.begun = Some(Instant::now());
        let reader = Arc::clone(self);
        let started = background::detach(THREAD_NAME, move || reader.read());
        progress.is_reading = started.is_ok();
        if started.is_err() {
            progress.succeeded = false;
            progress.failures += 1;
        }
    }

    fn read(&self) {
        let begun = Instant::now();
        let read = catch(|| FleetFigures::read(&*self.store))
            .unwrap_or_else(|_| Err(Error::store("be read", "it panicked")));
        let mut progress = self.progress.lock();
        progress.is_reading = false;
        progress.succeeded = read.is_ok();
        match read {
            // Its age counts from its beginning: it may have taken long.
            Ok(figures) => progress.latest = Some((begun, Arc::new(figures))),
            Err(_) => progress.failures += 1,
        }
        drop(progress);
        self.finished.notify_all();
    }
}

impl ReadProgress {
    /// Time since the last reading began.
    fn age(&self) -> Option<Duration> {
        self.begun.map(|at| at.elapsed())
    }
}

impl FleetFigures {
    /// Reads page by page, so that not all workers are in memory at once.
    fn read(store: &dyn HeartbeatStore) -> Result<Self, Error> {
        let mut figures = Self::default();
        for page in Pages::new(store, WorkerFilter::new()) {
            page?.iter().for_each(|worker| figures.add(worker));
        }
        Ok(figures)
    }

    fn add(&mut self, worker: &StoredWorker) {
        let health = worker.health();
        let of_type = entry(&mut self.types, &worker.info.worker_type);
        of_type.states.add(health.state());
        if let Health::Dead { death, .. } = &health {
            *of_type.dead.entry(death.cause.name()).or_default() += 1;
        }
        entry(&mut self.groups, &worker.info.group).add(health.state());
        let has_lease = worker.lease_remaining.is_some_and(|left| !left.is_zero());
        self.leased_workers += usize::from(has_lease);
    }

    fn encode(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        encoder.gauges(
            "fleet_workers",
            "Workers in the store, by type and state",
            self.types.iter().flat_map(|(name, of_type)| {
                let states = of_type.states.iter();
                states.map(|(state, count)| state_sample(name, state, count))
            }),
        )?;
        encoder.gauges(
            "fleet_dead_workers",
            "Dead workers in the store, by cause",
            self.types.iter().flat_map(|(name, of_type)| {
                let dead = of_type.dead.iter();
                dead.map(|(cause, count)| cause_sample(name, cause, *count as u64))
            }),
        )?;
        let states = [
            ("online", GroupState::Online),
            ("offline", GroupState::Offline),
            ("stopped", GroupState::Stopped),
        ];
        encoder.gauges(
            "fleet_groups",
            "Groups by state; a group is offline if all its workers that were not stopped are",
            states.map(|(name, state)| {
                let groups = self.groups.values();
                let groups = groups.filter(|counts| GroupState::of(counts) == state);
                ([("state", name)], groups.count() as u64)
            }),
        )?;
        encoder.gauge(
            "fleet_leased_workers",
            "Workers in the store that hold a lease",
            self.leased_workers as u64,
        )
    }
}

/// The entry of this name, or a common one if there are too many names.
fn entry<'m, T: Default>(entries: &'m mut BTreeMap<String, T>, name: &str) -> &'m mut T {
    let name = label(name);
    let name = if entries.len() < MOST_TYPES || entries.contains_key(name) {
        name
    } else {
        OTHERS
    };
    entries.entry(name.to_owned()).or_default()
}
