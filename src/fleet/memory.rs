//! A store in memory: for tests, and for a coordinator whose workers need not survive its process.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::event_log::EventLog;
use super::event_rules::NewEvent;
use super::host::ProcessIdentity;
use super::pages::summary_of_counts;
use super::rules::{self, LeaseEntry, SweepMark, Tables, WorkerEntry};
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, EventFilter, EventPage, FleetCounts, LeaseKey, Registration,
    Retention, Stop, StoredWorker, Sweep, WorkerFilter, WorkerKey, Worst,
};
use super::store::HeartbeatStore;
use super::sweep_rules;
use crate::clock::{Clock, Moment};
use crate::error::Error;
use crate::health::{Summary, SweepReport};

/// A [`HeartbeatStore`] in memory. A clone is cheap, and shares the store.
///
/// ```
/// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
/// use worker_heartbeat::MemoryStore;
///
/// let store = MemoryStore::new();
/// store.register(&[Registration::new("indexer", "indexer-1")])?;
/// assert_eq!(store.summary()?.total, 1);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    clock: Clock,
    tables: Arc<Mutex<MemoryTables>>,
}

/// Its data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct MemoryTables {
    pub workers: BTreeMap<String, WorkerEntry>,
    pub leases: BTreeMap<String, LeaseEntry>,
    /// The leases by worker: worker and run of each.
    held: BTreeSet<(String, String)>,
    last_sweep: Option<SweepMark>,
    pub last_number: u64,
    events: EventLog,
}

impl MemoryStore {
    /// An empty store on the system's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// An empty store on this clock.
    ///
    /// Its numbers begin at the microseconds of the wall clock, so that they are higher than those of
    /// a store that was lost.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
    /// use worker_heartbeat::{MemoryStore, MockClock};
    ///
    /// let time = MockClock::new();
    /// let store = MemoryStore::with_clock(time.clock());
    /// store.register(&[Registration::new("indexer", "indexer-1")])?;
    /// time.advance(Duration::from_secs(3600));
    /// assert_eq!(store.summary()?.total_dead, 1); // never started
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        let since_epoch = clock
            .wall()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let tables = MemoryTables {
            last_number: since_epoch.as_micros() as u64,
            events: EventLog::new(),
            ..MemoryTables::default()
        };
        Self {
            clock,
            tables: Arc::new(Mutex::new(tables)),
        }
    }

    /// Far from the beginning of the time line, so that no age reaches beyond it.
    fn now(&self) -> Moment {
        Moment::from_nanos(1 << 62).after(self.clock.now().since(Moment::ZERO))
    }

    fn each<T, A>(
        &self,
        items: &[T],
        act: impl Fn(&mut dyn Tables, &T, Moment) -> Result<A, Error>,
    ) -> Result<Vec<A>, Error> {
        let mut tables = self.tables.lock();
        let now = self.now();
        items
            .iter()
            .map(|item| act(&mut *tables, item, now))
            .collect()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("workers", &self.tables.lock().workers.len())
            .finish_non_exhaustive()
    }
}

impl HeartbeatStore for MemoryStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.each(workers, rules::register)
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.each(beats, rules::beat)
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.each(stops, rules::stop)
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let tables = self.tables.lock();
        let now = self.now();
        let after = filter.after.as_deref().unwrap_or("");
        let rows = tables
            .workers
            .range::<str, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
            .map(|(_, row)| row)
            .filter(|row| filter.admits_entry(row, now))
            .take(filter.limit);
        Ok(rows.map(|row| tables.stored(row, now)).collect())
    }

    fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let tables = self.tables.lock();
        Ok(tables.worst_first(filter, self.now()))
    }

    fn counts(&self) -> Result<FleetCounts, Error> {
        let tables = self.tables.lock();
        Ok(tables.counts(self.now()))
    }

    fn summary(&self) -> Result<Summary, Error> {
        let tables = self.tables.lock();
        let now = self.now();
        let worst_first = |filter: &WorkerFilter| Ok(tables.worst_first(filter, now));
        summary_of_counts(tables.counts(now), worst_first)
    }

    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        let mut tables = self.tables.lock();
        let now = self.now();
        rules::find(&mut *tables, id, now)
    }

    fn events(&self, filter: &EventFilter) -> Result<Option<EventPage>, Error> {
        let tables = self.tables.lock();
        let latest = tables.last_number;
        Ok(Some(tables.events.read(filter, self.now(), latest)))
    }

    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        let tables = self.tables.lock();
        let now = self.now();
        let on_host = WorkerFilter::new().host(host.clone());
        let rows = tables
            .workers
            .values()
            .filter(|row| on_host.admits_entry(row, now));
        let processes: HashSet<_> = rows.filter_map(|row| row.info.process.as_ref()).collect();
        Ok(processes.into_iter().cloned().collect())
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        let mut tables = self.tables.lock();
        let now = self.now();
        sweep_rules::sweep(&mut *tables, sweep, now, usize::MAX)
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        let mut tables = self.tables.lock();
        let now = self.now();
        tables.forget(&sweep_rules::purge_after(age), now, false, usize::MAX)
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        let mut tables = self.tables.lock();
        let now = self.now();
        rules::claim(&mut *tables, claim, now)
    }

    fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        self.each(claims, rules::withdraw)
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.each(leases, |tables, key, now| {
            rules::renew(tables, key, ttl, now)
        })
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.each(leases, rules::release)
    }
}

impl WorkerFilter {
    /// Whether this worker passes, apart from `after` and `limit`.
    fn admits_entry(&self, row: &WorkerEntry, now: Moment) -> bool {
        let state = || row.state(now);
        self.admits_row(&row.key.id, &row.info, row.ending.is_some(), state)
    }
}

impl MemoryTables {
    fn stored(&self, row: &WorkerEntry, now: Moment) -> StoredWorker {
        let leases: Vec<LeaseEntry> = self.leases_held(&row.key.id).cloned().collect();
        row.stored(now, &leases)
    }

    fn worst_first(&self, filter: &WorkerFilter, now: Moment) -> Vec<StoredWorker> {
        let mut worst = Worst::new(filter.limit);
        for row in self.workers.values() {
            let (state, id) = (row.state(now), &*row.key.id);
            if filter.is_after(state, id) && filter.admits_entry(row, now) {
                worst.add(state, id, || row);
            }
        }
        let rows = worst.into_vec().into_iter();
        rows.map(|row| self.stored(row, now)).collect()
    }

    fn counts(&self, now: Moment) -> FleetCounts {
        let mut counts = FleetCounts::new();
        for row in self.workers.values() {
            let cause = row.ending.as_ref().map_or("", |(ending, _)| &ending.cause);
            let info = &row.info;
            counts.add_many(&info.worker_type, &info.group, row.state(now), cause, 1);
        }
        counts.leased_workers = self.leased_workers(now);
        counts.endings = self.events.endings();
        counts.bounded()
    }

    /// The leases of all incarnations of this worker.
    fn leases_held<'a>(&'a self, worker_id: &'a str) -> impl Iterator<Item = &'a LeaseEntry> {
        let from = (worker_id.to_owned(), String::new());
        self.held
            .range(from..)
            .take_while(move |(holder, _)| holder == worker_id)
            .filter_map(|(_, run_id)| self.leases.get(run_id))
    }

    /// How many workers hold a lease.
    fn leased_workers(&self, now: Moment) -> usize {
        let holds = |lease: &&LeaseEntry| {
            let holder = &lease.key.worker;
            let row = self.workers.get(&holder.id);
            lease.expires_at > now && row.is_some_and(|row| row.key == *holder)
        };
        let held = self.leases.values().filter(holds);
        let holders: BTreeSet<&str> = held.map(|lease| &*lease.key.worker.id).collect();
        holders.len()
    }
}

impl Tables for MemoryTables {
    fn worker(&mut self, id: &str) -> Result<Option<WorkerEntry>, Error> {
        Ok(self.workers.get(id).cloned())
    }

    fn put_worker(&mut self, row: &WorkerEntry) -> Result<(), Error> {
        self.workers.insert(row.key.id.clone(), row.clone());
        Ok(())
    }

    fn silent(&mut self, threshold: Duration, now: Moment) -> Result<Vec<WorkerEntry>, Error> {
        let silent = self.workers.values().filter(|row| {
            let limits = row.info.thresholds.as_ref();
            let allowed = limits.map_or(threshold, |own| own.stale_after.min(own.startup_grace));
            let heard = row.heartbeat_at.unwrap_or(row.registered_at);
            row.ending.is_none() && now.since(heard) > allowed
        });
        Ok(silent.cloned().collect())
    }

    fn any_in_group(
        &mut self,
        group: &str,
        wanted: &mut dyn FnMut(&WorkerEntry) -> bool,
    ) -> Result<bool, Error> {
        let mut inside = self.workers.values().filter(|row| row.info.group == group);
        Ok(inside.any(wanted))
    }

    fn forget(
        &mut self,
        retention: &Retention,
        now: Moment,
        dry_run: bool,
        most: usize,
    ) -> Result<usize, Error> {
        let over =
            |kept: Option<Duration>, at: Moment| kept.is_some_and(|kept| now.before(kept) >= at);
        // The last registration of a living worker, by type and group.
        let mut newest = HashMap::<(&str, &str), Moment>::new();
        if retention.replaced.is_some() {
            for row in self.workers.values().filter(|row| row.ending.is_none()) {
                let of = newest.entry((&row.info.worker_type, &row.info.group));
                let at = of.or_insert(row.registered_at);
                *at = row.registered_at.max(*at);
            }
        }
        let is_replaced = |row: &WorkerEntry| {
            let heard = row.heartbeat_at.unwrap_or(row.registered_at);
            let newest = newest.get(&(&*row.info.worker_type, &*row.info.group));
            newest.is_some_and(|newest| *newest > heard)
        };
        let is_over = |row: &&WorkerEntry| match &row.ending {
            None => false,
            Some((ending, at)) if ending.stopped => over(retention.stopped, *at),
            Some((_, at)) => {
                over(retention.dead, *at) || over(retention.replaced, *at) && is_replaced(row)
            }
        };
        let forgotten = self.workers.values().filter(is_over).take(most);
        let forgotten: Vec<String> = forgotten.map(|row| row.key.id.clone()).collect();
        if !dry_run {
            for id in &forgotten {
                self.workers.remove(id);
            }
        }
        Ok(forgotten.len())
    }

    fn last_sweep(&mut self) -> Result<Option<SweepMark>, Error> {
        Ok(self.last_sweep)
    }

    fn note_sweep(&mut self, mark: &SweepMark) -> Result<(), Error> {
        self.last_sweep = Some(*mark);
        Ok(())
    }

    fn lease(&mut self, run_id: &str) -> Result<Option<LeaseEntry>, Error> {
        Ok(self.leases.get(run_id).cloned())
    }

    fn leases_of(&mut self, worker_id: &str) -> Result<Vec<LeaseEntry>, Error> {
        Ok(self.leases_held(worker_id).cloned().collect())
    }

    fn expired_leases(&mut self, now: Moment) -> Result<Vec<LeaseEntry>, Error> {
        let expired = self.leases.values().filter(|lease| lease.expires_at <= now);
        Ok(expired.cloned().collect())
    }

    fn put_lease(&mut self, lease: &LeaseEntry) -> Result<(), Error> {
        self.remove_lease(&lease.key.run_id)?;
        let LeaseKey { worker, run_id, .. } = &lease.key;
        self.held.insert((worker.id.clone(), run_id.clone()));
        self.leases.insert(run_id.clone(), lease.clone());
        Ok(())
    }

    fn remove_lease(&mut self, run_id: &str) -> Result<(), Error> {
        if let Some(lease) = self.leases.remove(run_id) {
            self.held.remove(&(lease.key.worker.id, lease.key.run_id));
        }
        Ok(())
    }

    fn next_number(&mut self) -> Result<u64, Error> {
        self.last_number += 1;
        Ok(self.last_number)
    }

    fn put_event(&mut self, new: NewEvent) -> Result<(), Error> {
        if self.events.is_kept() {
            let seq = self.next_number()?;
            self.events.push(seq, new);
        }
        Ok(())
    }

    fn count_ending(&mut self, worker_type: &str, how: &'static str) -> Result<(), Error> {
        self.events.count_ending(worker_type, how);
        Ok(())
    }

    fn trim_events(&mut self, retention: &Retention, now: Moment) -> Result<(), Error> {
        self.events.trim(retention, now);
        Ok(())
    }

    fn groups_told_offline(&mut self) -> Result<Vec<String>, Error> {
        Ok(self.events.offline_groups())
    }
}
