//! The task that reads the workers about once a second and updates the live views. It runs on the
//! serving runtime; blocking work runs on the threads for that.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::events::{DashboardEvent, PreviousReading};
use super::lists::List;
use super::rows::{self, Listing, RegistryReading};
use super::{Dashboard, FleetView, Subject};
use crate::error::Error;
use crate::fleet::{FleetCounts, StoredWorker};
use crate::net::response::RequestError;
use crate::serve::disclosure::Audience;
use crate::shutdown::Shutdown;
use crate::sync::describe::chain;

/// How often the registry is read. If a reading takes long, the period grows, so that readings take
/// at most one part in [`PERIOD_PER_WORK`] of the time.
const PERIOD: Duration = Duration::from_secs(1);
const MAX_PERIOD: Duration = Duration::from_secs(30);
const PERIOD_PER_WORK: u32 = 50;
/// The longest time that a reading waits for an overdue pacemaker: once for the summary, and once
/// for the rows.
const PACEMAKER_WAIT: Duration = Duration::from_millis(200);
/// How soon an event is sent while a page is open.
const EVENT_DELAY: Duration = Duration::from_millis(200);
/// How often a store is read, and only while a page is open or was a minute ago: every process may
/// have a dashboard, and all of them read the same store.
const FLEET_PERIOD: Duration = Duration::from_secs(2);
/// If a reading takes long, the period grows, so that readings take at most one part in this many.
const FLEET_PERIOD_PER_WORK: u32 = 5;
const FLEET_LINGER: Duration = Duration::from_secs(60);
const FLEET_TIMEOUT: Duration = Duration::from_secs(5);
/// After a longer gap between two readings of a store, the differences are not shown as events.
const MAX_GAP: Duration = Duration::from_secs(120);

/// Runs until the dashboard is dropped or closed.
pub(super) async fn run(dashboard: Weak<Dashboard>) {
    let Some(mut closing) = dashboard.upgrade().map(|d| d.closing.subscribe()) else {
        return;
    };
    let mut schedule = RegistrySchedule::default();
    loop {
        let Some(dashboard) = dashboard.upgrade() else {
            return;
        };
        let pause = schedule.refresh_if_due(&dashboard).await;
        if let Some(fleet) = &dashboard.fleet {
            refresh_fleet_if_due(&dashboard, fleet);
        }
        let subscribed = Arc::clone(&dashboard.subscribed);
        drop(dashboard);
        tokio::select! {
            _ = closing.wait_for(|closed| *closed) => return,
            () = subscribed.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// When the registry was read, and when it will be read again.
#[derive(Default)]
struct RegistrySchedule {
    last: Option<Instant>,
    period: Duration,
}

impl RegistrySchedule {
    /// Returns the time until the next call.
    async fn refresh_if_due(&mut self, dashboard: &Arc<Dashboard>) -> Duration {
        let due = self.last.is_none_or(|at| at.elapsed() >= self.period);
        if due || !dashboard.events.receiver().is_empty() {
            let continuous = self.last.is_some_and(|at| at.elapsed() < self.period * 3);
            let refreshed = Arc::clone(dashboard);
            let refresh = spawn_blocking(move || refreshed.refresh(due, continuous));
            let period = refresh.await.unwrap_or_else(|_| {
                log::error!("dashboard: failed to read the workers");
                PERIOD
            });
            if due {
                self.last = Some(Instant::now());
                self.period = period;
            }
        }
        let left = self
            .last
            .map_or(PERIOD, |at| self.period.saturating_sub(at.elapsed()));
        left.min(if dashboard.process.has_viewers() {
            EVENT_DELAY
        } else {
            PERIOD
        })
    }
}

impl Dashboard {
    /// Sends the new events, and the rows if they are due. Blocks. Returns the period until the rows
    /// are due again.
    fn refresh(&self, due: bool, continuous: bool) -> Duration {
        // Events first: the next reading then contains the workers that they are about.
        let events = self
            .events
            .try_iter()
            .take(super::MAX_QUEUED_EVENTS)
            .map(|event| DashboardEvent::from_registry(event, self.audience()))
            .collect();
        self.process.add_events(events);
        if !due {
            return PERIOD;
        }
        let begun = Instant::now();
        let Subject {
            registry,
            shutdown,
            policy,
            ..
        } = &self.subject;
        let draining = shutdown.as_ref().is_some_and(Shutdown::requested);
        let reading = RegistryReading::new(registry, self.audience(), draining);
        let lists = self.process.shown().into_iter();
        let listings = lists.map(|list| (reading.listing(policy, &list.selection), list));
        let listings: Vec<_> = listings.collect();
        // Waiting for an overdue pacemaker is not work.
        let work = begun.elapsed().saturating_sub(PACEMAKER_WAIT);
        let period = (work * PERIOD_PER_WORK).clamp(PERIOD, MAX_PERIOD);
        let now = self.now();
        for (mut listing, list) in listings {
            listing.head["period"] = period.as_secs_f64().into();
            list.live.update(listing, now, continuous);
        }
        period
    }
}

/// The latest readings of a store.
#[derive(Default)]
pub(super) struct FleetReadings {
    /// When a page was last open.
    requested: Option<Instant>,
    begun: Option<Instant>,
    succeeded: Option<Instant>,
    /// How long the last reading took.
    took: Duration,
    previous: PreviousReading,
}

impl FleetReadings {
    fn period(&self) -> Duration {
        (self.took * FLEET_PERIOD_PER_WORK).clamp(FLEET_PERIOD, MAX_PERIOD)
    }
}

fn refresh_fleet_if_due(dashboard: &Arc<Dashboard>, fleet: &Arc<FleetView>) {
    for list in fleet.lists.shown() {
        refresh_list_if_due(dashboard, fleet, &list);
    }
}

fn refresh_list_if_due(dashboard: &Arc<Dashboard>, fleet: &Arc<FleetView>, list: &Arc<List>) {
    let mut readings = list.readings.lock();
    if list.has_viewers() {
        readings.requested = Some(Instant::now());
    }
    let requested = readings.requested;
    let is_requested = requested.is_some_and(|at| at.elapsed() < FLEET_LINGER);
    let is_due = readings
        .begun
        .is_none_or(|at| at.elapsed() >= readings.period());
    if !is_requested || !is_due {
        return;
    }
    match Arc::clone(&list.reading).try_acquire_owned() {
        Ok(permit) => {
            readings.begun = Some(Instant::now());
            let refresh = refresh_list(
                Arc::downgrade(dashboard),
                Arc::clone(fleet),
                Arc::clone(list),
                permit,
            );
            drop(tokio::spawn(refresh));
        }
        // The previous reading still runs.
        Err(_)
            if readings
                .begun
                .is_some_and(|at| at.elapsed() >= FLEET_TIMEOUT) =>
        {
            let silent = readings.begun.map(|at| at.elapsed());
            drop(readings);
            list.reading_failed(dashboard, &Failure::Slow(silent.unwrap_or_default()));
        }
        Err(_) => {}
    }
}

/// Why a list is not up to date.
enum Failure {
    /// The store has not answered for this long.
    Slow(Duration),
    Failed(String),
}

async fn refresh_list(
    dashboard: Weak<Dashboard>,
    fleet: Arc<FleetView>,
    list: Arc<List>,
    permit: OwnedSemaphorePermit,
) {
    let (reader, read_list) = (dashboard.clone(), Arc::clone(&list));
    let reading = spawn_blocking(move || {
        let audience = reader.upgrade().map_or(Audience::Public, |d| d.audience());
        let policy = reader.upgrade().map(|d| d.subject.policy.clone());
        let (policy, selection) = (policy.unwrap_or_default(), &read_list.selection);
        let counts = || fleet.counts();
        let read = rows::read_store(&*fleet.store, &policy, audience, selection, counts);
        // No other reading begins before this one has ended, however long it takes.
        drop(permit);
        let listing = read.map_err(|error| chain(&error))?;
        if let Some(dashboard) = reader.upgrade() {
            read_list.reading_succeeded(&dashboard, &fleet, listing);
        }
        Ok::<_, String>(())
    });
    let failure = match timeout(FLEET_TIMEOUT, reading).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => Failure::Failed(error),
        Ok(Err(_)) => Failure::Failed("the store panicked".to_owned()),
        Err(_) => Failure::Slow(FLEET_TIMEOUT),
    };
    if let Some(dashboard) = dashboard.upgrade() {
        list.reading_failed(&dashboard, &failure);
    }
}

impl FleetView {
    /// The counts of all workers, read at most every [`FLEET_PERIOD`].
    fn counts(&self) -> Result<FleetCounts, Error> {
        let mut latest = self.counts.lock();
        if let Some((read, counts)) = &*latest {
            if read.elapsed() < FLEET_PERIOD {
                return Ok(counts.clone());
            }
        }
        let counts = self.store.counts()?;
        *latest = Some((Instant::now(), counts.clone()));
        Ok(counts)
    }

    /// The worker as the store knows it now.
    pub(super) async fn look_up(&self, id: String) -> Result<Option<StoredWorker>, RequestError> {
        self.reader.read(move |store| store.find(&id)).await
    }
}

impl List {
    fn reading_succeeded(&self, dashboard: &Dashboard, fleet: &FleetView, mut listing: Listing) {
        let mut readings = self.readings.lock();
        let gap = readings.succeeded.map(|at| at.elapsed());
        let mut events = Vec::new();
        if self.selection.is_all() {
            let is_complete = listing.head["not_shown"] == json!(0);
            if gap.is_some_and(|gap| gap < MAX_GAP) {
                events = readings.previous.changes(&listing.rows, is_complete);
            }
            readings.previous = PreviousReading::new(&listing.rows, is_complete);
        }
        readings.succeeded = Some(Instant::now());
        readings.took = readings.begun.map_or(Duration::ZERO, |at| at.elapsed());
        let period = readings.period();
        drop(readings);
        let now = dashboard.now();
        listing.head["store"] = json!({"read": now.as_secs_f64()});
        // With time for a slow reading.
        listing.head["period"] = (period * 2).as_secs_f64().into();
        let continuous = gap.is_some_and(|gap| gap < period * 5);
        fleet.lists.add_events(events);
        self.live.update(listing, now, continuous);
    }

    fn reading_failed(&self, dashboard: &Dashboard, failure: &Failure) {
        let now = dashboard.now();
        let succeeded = self.readings.lock().succeeded;
        let read = succeeded.map(|at| now.as_secs_f64() - at.elapsed().as_secs_f64());
        let store = match failure {
            Failure::Slow(silent) => json!({"read": read, "silent": silent.as_secs_f64()}),
            Failure::Failed(error) => {
                let error = dashboard.audience().filter(Some(error.as_str()));
                json!({"read": read, "error": error.unwrap_or("the store fails")})
            }
        };
        self.live.update_head("store", store, now);
    }
}
