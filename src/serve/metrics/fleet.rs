//! The metrics of a store. It may be slow or hang, so a background thread reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::encoder::{Encoder, label};
use super::registry::{cause_sample, state_sample};
use crate::error::Error;
use crate::fleet::ENDINGS;
use crate::fleet::{FleetCounts, HeartbeatStore};
use crate::health::{DeathCause, GroupState, StateCounts};
use crate::registry::core::counts::{MOST_TYPES, OTHERS};
use crate::sync::background;
use crate::sync::catch::catch;

/// The shortest time between the beginnings of two readings, so that no scrape exports older figures.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// If a reading takes long, the interval grows, so that readings take at most half of the time.
const INTERVAL_PER_WORK: u32 = 2;
/// A store that takes longer counts as down.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a scrape waits for a reading. It does not wait if the last reading took longer.
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
    /// How long the last finished one took.
    took: Duration,
    /// The last finished reading succeeded.
    succeeded: bool,
    failures: u64,
    latest: Option<(Instant, Arc<FleetCounts>)>,
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
        encode(&figures, encoder)
    }

    /// Starts a reading if it is due, and waits a while for it.
    fn read_if_due(self: &Arc<Self>) -> ReadProgress {
        let mut progress = self.progress.lock();
        let interval = READ_INTERVAL.max(progress.took * INTERVAL_PER_WORK);
        if !progress.is_reading && progress.age().is_none_or(|age| age >= interval) {
            self.start_reading(&mut progress);
        }
        let wait = if progress.took < SCRAPE_WAIT {
            SCRAPE_WAIT
        } else {
            Duration::ZERO
        };
        if let Some(deadline) = progress.begun.and_then(|at| at.checked_add(wait)) {
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
        let read = catch(|| self.store.counts())
            .unwrap_or_else(|_| Err(Error::store("be read", "it panicked")));
        let mut progress = self.progress.lock();
        progress.is_reading = false;
        progress.took = begun.elapsed();
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

fn encode(counts: &FleetCounts, encoder: &mut Encoder<'_>) -> fmt::Result {
    let types = types(counts);
    encoder.gauges(
        "fleet_workers",
        "Workers in the store, by type and state",
        types.iter().flat_map(|(name, of_type)| {
            let states = of_type.states.iter();
            states.map(|(state, count)| state_sample(name, state, count))
        }),
    )?;
    encoder.gauges(
        "fleet_dead_workers",
        "Dead workers in the store, by cause",
        types.iter().flat_map(|(name, of_type)| {
            let dead = of_type.dead.iter();
            dead.map(|(cause, count)| cause_sample(name, cause, *count as u64))
        }),
    )?;
    encoder.counters(
        "fleet_endings",
        "Workers of the store that ended, by type and how: graceful, failed, gone or timed_out",
        types.iter().flat_map(|(name, of_type)| {
            ENDINGS.map(|how| {
                let total = of_type.endings.get(how).copied().unwrap_or(0);
                ([("worker_type", label(name)), ("how", how)], total)
            })
        }),
    )?;
    let states = [
        ("online", GroupState::Online),
        ("offline", GroupState::Offline),
        ("stopped", GroupState::Stopped),
    ];
    let count = |wanted: GroupState| {
        let groups = counts.groups.values();
        groups
            .filter(|states| GroupState::of(states) == wanted)
            .count()
    };
    let listed = states.map(|(name, state)| ([("state", name)], count(state) as u64));
    // Those whose states the store does not list.
    let unlisted = ([("state", "unlisted")], counts.unlisted_groups as u64);
    encoder.gauges(
        "fleet_groups",
        "Groups by state; a group is offline if all its workers that were not stopped are",
        listed
            .into_iter()
            .chain((counts.unlisted_groups > 0).then_some(unlisted)),
    )?;
    encoder.gauge(
        "fleet_leased_workers",
        "Workers in the store that hold a lease",
        counts.leased_workers as u64,
    )
}

/// The stored workers of one type.
#[derive(Debug, Default)]
struct FleetType {
    states: StateCounts,
    /// The dead by cause.
    dead: BTreeMap<&'static str, usize>,
    /// How workers ended since the store was set up.
    endings: BTreeMap<String, u64>,
}

/// By the label of the type; of too many types, the last ones share a label.
fn types(counts: &FleetCounts) -> BTreeMap<String, FleetType> {
    let mut types = BTreeMap::<String, FleetType>::new();
    let mut listed = StateCounts::default();
    for (name, states) in &counts.types {
        listed.add_all(states);
        let of_type = entry(&mut types, name);
        of_type.states.add_all(states);
        for (cause, count) in counts.deaths.get(name).into_iter().flatten() {
            let cause = DeathCause::from_name(cause, None, None).name();
            *of_type.dead.entry(cause).or_default() += count;
        }
    }
    for (name, endings) in &counts.endings {
        let of_type = entry(&mut types, name);
        for (how, total) in endings {
            *of_type.endings.entry(how.clone()).or_default() += total;
        }
    }
    if counts.unlisted_types > 0 {
        let others = types.entry(OTHERS.to_owned()).or_default();
        for (state, count) in counts.states.iter() {
            let unlisted = count.saturating_sub(listed.get(state));
            others.states.add_many(state, unlisted);
        }
    }
    types
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
