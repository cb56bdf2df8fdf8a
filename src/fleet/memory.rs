//! A store in memory: for tests, and for a coordinator whose workers need not survive its process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::rules::{self, LeaseEntry, Tables, WorkerEntry};
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, StoredWorker, Sweep,
    WorkerFilter, WorkerKey,
};
use super::store::HeartbeatStore;
use crate::clock::{Clock, Moment};
use crate::error::Error;
use crate::health::SweepReport;

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
    pub last_number: u64,
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
        let mut tables = self.tables.lock();
        let now = self.now();
        let after = filter.after.as_deref().unwrap_or("");
        let rows: Vec<WorkerEntry> = tables
            .workers
            .range::<str, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
            .map(|(_, row)| row)
            .filter(|row| filter.admits(row))
            .take(filter.limit)
            .cloned()
            .collect();
        rows.iter()
            .map(|row| Ok(row.stored(now, &tables.leases_of(&row.key.id)?)))
            .collect()
    }

    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        let mut tables = self.tables.lock();
        let now = self.now();
        rules::find(&mut *tables, id, now)
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        let mut tables = self.tables.lock();
        let now = self.now();
        rules::sweep(&mut *tables, sweep, now)
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        let mut tables = self.tables.lock();
        tables.forget_ended(self.now().before(age))
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
    fn admits(&self, row: &WorkerEntry) -> bool {
        let same =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        same(&self.worker_type, &row.info.worker_type)
            && same(&self.group, &row.info.group)
            && self.host.as_ref().is_none_or(|host| {
                row.ending.is_none()
                    && row.info.process.as_ref().is_some_and(|process| {
                        process.boot_id == host.boot_id
                            && process.pid_namespace == host.pid_namespace
                    })
            })
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

    fn living(&mut self) -> Result<Vec<WorkerEntry>, Error> {
        let living = self.workers.values().filter(|row| row.ending.is_none());
        Ok(living.cloned().collect())
    }

    fn in_groups(&mut self, groups: &BTreeSet<String>) -> Result<Vec<WorkerEntry>, Error> {
        let inside = self
            .workers
            .values()
            .filter(|row| groups.contains(&row.info.group));
        Ok(inside.cloned().collect())
    }

    fn forget_ended(&mut self, until: Moment) -> Result<usize, Error> {
        let before = self.workers.len();
        self.workers
            .retain(|_, row| row.ending.as_ref().is_none_or(|(_, at)| *at > until));
        Ok(before - self.workers.len())
    }

    fn lease(&mut self, run_id: &str) -> Result<Option<LeaseEntry>, Error> {
        Ok(self.leases.get(run_id).cloned())
    }

    fn leases_of(&mut self, worker_id: &str) -> Result<Vec<LeaseEntry>, Error> {
        let from = (worker_id.to_owned(), String::new());
        let held = self
            .held
            .range(from..)
            .take_while(|(holder, _)| holder == worker_id)
            .filter_map(|(_, run_id)| self.leases.get(run_id));
        Ok(held.cloned().collect())
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
}
