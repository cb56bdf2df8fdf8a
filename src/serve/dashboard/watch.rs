//! Looks at the workers about once a second, and tells the boards. On the runtime that serves the
//! router; what may block is done on its blocking threads.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::history::News;
use super::source::{self, Known};
use super::{Dashboard, Fleet};
use crate::fleet::StoredWorker;

/// How often the workers are looked at. With very many of them, less often: looking takes one part
/// in [`SHARE`] of the time.
const PERIOD: Duration = Duration::from_secs(1);
const LONGEST_PERIOD: Duration = Duration::from_secs(30);
const SHARE: u32 = 50;
/// A reading waits so long, at most, for a pacemaker that is overdue: once for the summary, and once
/// for the rows.
const PACEMAKER_PATIENCE: Duration = Duration::from_millis(200);
/// How soon an event is told while somebody watches.
const PROMPT: Duration = Duration::from_millis(200);
/// A store is read at most so often, and only while somebody watches, or did a minute ago: each
/// process may have a dashboard, and they all ask the same store.
const FLEET_PERIOD: Duration = Duration::from_secs(2);
const FLEET_LINGERS: Duration = Duration::from_secs(60);
const FLEET_TIMEOUT: Duration = Duration::from_secs(5);
/// What the page is told to expect: a reading may take its time.
const FLEET_PATIENCE: Duration = Duration::from_secs(4);
/// After a longer gap between two readings of a store, what differs is not told event by event.
const LONGEST_GAP: Duration = Duration::from_secs(120);

/// Looks until the dashboard is gone, or closed.
pub(super) async fn watch(dashboard: Weak<Dashboard>) {
    let Some(mut closing) = dashboard.upgrade().map(|d| d.closing.subscribe()) else {
        return;
    };
    let mut process = Process::default();
    loop {
        let Some(dashboard) = dashboard.upgrade() else {
            return;
        };
        let pause = process.look(&dashboard).await;
        if let Some(fleet) = &dashboard.fleet {
            look_at_fleet(&dashboard, fleet);
        }
        let news = Arc::clone(&dashboard.joined);
        drop(dashboard);
        tokio::select! {
            _ = closing.wait_for(|closed| *closed) => return,
            () = news.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// When the registry was looked at.
#[derive(Default)]
struct Process {
    looked: Option<Instant>,
    /// Until the next look.
    period: Duration,
}

impl Process {
    /// Returns when there is something to do again.
    async fn look(&mut self, dashboard: &Arc<Dashboard>) -> Duration {
        let due = self.looked.is_none_or(|at| at.elapsed() >= self.period);
        if due || !dashboard.events.receiver().is_empty() {
            let steady = self.is_steady();
            let own = Arc::clone(dashboard);
            let done = spawn_blocking(move || own.look(due, steady)).await;
            if done.is_err() {
                log::error!("the dashboard cannot read the workers");
            }
            if due {
                self.looked = Some(Instant::now());
                self.period = done.unwrap_or(PERIOD);
            }
        }
        let left = self
            .looked
            .map_or(PERIOD, |at| self.period.saturating_sub(at.elapsed()));
        if dashboard.process.watchers() > 0 {
            left.min(PROMPT)
        } else {
            left.min(PERIOD)
        }
    }

    fn is_steady(&self) -> bool {
        self.looked.is_some_and(|at| at.elapsed() < self.period * 3)
    }
}

impl Dashboard {
    /// Tells what happened, and if it is time, how the workers are. Blocks. Returns when it will be
    /// time again.
    fn look(&self, all: bool, steady: bool) -> Duration {
        // What happened comes first: a worker that it is told of is then on the next reading.
        let events: Vec<News> = self
            .events
            .try_iter()
            .take(super::MOST_EVENTS)
            .map(|event| source::news(event, self.shown()))
            .collect();
        self.process.tell(events);
        let begun = Instant::now();
        let mut period = PERIOD;
        if all {
            let draining = self.shutdown.as_ref().is_some_and(|s| s.requested());
            let mut reading = source::read_registry(&self.registry, self.shown(), draining);
            // To wait for an overdue pacemaker is no work.
            let work = begun.elapsed().saturating_sub(PACEMAKER_PATIENCE);
            period = (work * SHARE).clamp(PERIOD, LONGEST_PERIOD);
            reading.head["period"] = period.as_secs_f64().into();
            self.process.show(reading, self.now(), steady);
        }
        period
    }
}

/// What was read of a store, and when.
#[derive(Default)]
pub(super) struct FleetState {
    /// Somebody watched.
    pub wanted: Option<Instant>,
    begun: Option<Instant>,
    read: Option<Instant>,
    known: Known,
    pub workers: Arc<Vec<StoredWorker>>,
}

/// Has the store read, if it is time and nobody is at it.
fn look_at_fleet(dashboard: &Arc<Dashboard>, fleet: &Arc<Fleet>) {
    {
        let mut state = fleet.state.lock();
        if fleet.board.watchers() > 0 {
            state.wanted = Some(Instant::now());
        }
        let wanted = state.wanted.is_some_and(|at| at.elapsed() < FLEET_LINGERS);
        let due = state.begun.is_none_or(|at| at.elapsed() >= FLEET_PERIOD);
        if !wanted || !due {
            return;
        }
        state.begun = Some(Instant::now());
    }
    let weak = Arc::downgrade(dashboard);
    let fleet = Arc::clone(fleet);
    match Arc::clone(&fleet.reading).try_acquire_owned() {
        Ok(turn) => drop(tokio::spawn(read_fleet(weak, fleet, turn))),
        // The reading before hangs.
        Err(_) => fleet.fails(dashboard, "the store has not answered yet"),
    }
}

async fn read_fleet(dashboard: Weak<Dashboard>, fleet: Arc<Fleet>, turn: OwnedSemaphorePermit) {
    let own = Arc::clone(&fleet);
    let show = |work: &dyn Fn(&Dashboard)| dashboard.upgrade().iter().for_each(|d| work(d));
    let reader = dashboard.clone();
    let reading = spawn_blocking(move || {
        let shown = reader.upgrade().is_some_and(|d| d.shown());
        let read = source::read_store(&*own.store, shown);
        // Until here, however long it takes, nobody else reads.
        drop(turn);
        match (read, reader.upgrade()) {
            (Ok((reading, workers)), Some(dashboard)) => {
                own.succeeds(&dashboard, reading, workers);
                None
            }
            (Err(error), _) => Some(error.to_string()),
            (Ok(_), None) => None,
        }
    });
    match timeout(FLEET_TIMEOUT, reading).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(error))) => show(&|d| fleet.fails(d, &error)),
        Ok(Err(_)) => show(&|d| fleet.fails(d, "the store panicked")),
        Err(_) => show(&|d| fleet.fails(d, "the store does not answer")),
    }
}

impl Fleet {
    fn succeeds(
        &self,
        dashboard: &Dashboard,
        mut reading: source::Reading,
        workers: Vec<StoredWorker>,
    ) {
        let mut state = self.state.lock();
        let whole = reading.head["not_shown"] == json!(0);
        let gap = state.read.map(|at| at.elapsed());
        let news = if gap.is_some_and(|gap| gap < LONGEST_GAP) {
            source::differences(&state.known, &reading.rows, whole)
        } else {
            Vec::new()
        };
        state.known = source::known(&reading.rows);
        state.read = Some(Instant::now());
        state.workers = Arc::new(workers);
        drop(state);
        let now = dashboard.now();
        reading.head["store"] = json!({"read": now.as_secs_f64()});
        reading.head["period"] = FLEET_PATIENCE.as_secs_f64().into();
        let steady = gap.is_some_and(|gap| gap < FLEET_PERIOD * 5);
        self.board.tell(news);
        self.board.show(reading, now, steady);
    }

    fn fails(&self, dashboard: &Dashboard, error: &str) {
        let now = dashboard.now();
        let read = self.state.lock().read;
        let read = read.map(|at| now.as_secs_f64() - at.elapsed().as_secs_f64());
        let error = if dashboard.shown() {
            Value::from(error)
        } else {
            Value::from("the store fails")
        };
        self.board
            .amend("store", json!({"read": read, "error": error}), now);
    }
}
