//! A store in a SQLite file: without a server or set-up.

mod columns;
mod events;
mod file;
mod reader;
mod reads;
mod setup;
mod sweeps;
mod tables;
mod time;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Transaction, TransactionBehavior};

use super::host::ProcessIdentity;
use super::pages::summary_of_counts;
use super::rules::{self, Tables};
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, EventFilter, EventPage, FleetCounts, LeaseKey, Registration,
    Retention, Stop, StoredWorker, Sweep, WorkerFilter, WorkerKey,
};
use super::store::HeartbeatStore;
use super::sweep_rules;
use crate::clock::Moment;
use crate::error::{Error, StoreErrorKind};
use crate::health::{Summary, SweepReport};
use crate::sync::describe::chain;
use file::{FileId, OpenFile};
use tables::InTransaction;

/// How long a call waits for another process that is writing.
const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a process checks that its file was not replaced, apart from calls.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);
/// How many workers one transaction forgets.
const BATCH: usize = 2_000;

/// A [`HeartbeatStore`] in a SQLite file, for all processes of one host.
///
/// The file is in WAL mode, and every commit is synced to disk, so that incarnations and fences are
/// never given twice, even after a power failure. Time is counted from the host's boot: setting the
/// wall clock has no effect. All users of the file must run on one kernel; a file on NFS, SMB, AFS, Ceph
/// or Lustre is refused.
///
/// If the file is replaced or removed, or its `-wal` or `-shm` is, other processes do not see any more
/// what this one writes. A call that finds that fails, and the next one opens the file that is there
/// now. Workers that it does not know are registered again; their leases are lost. Each process checks
/// that before and after each transaction, and at least every 1.5 s; until then, it believes in its
/// leases. Incarnations and fences continue with higher numbers in any case.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # fn main() -> Result<(), worker_heartbeat::Error> {
/// use worker_heartbeat::{FleetConfig, Registry, SqliteStore};
///
/// # let directory = std::env::temp_dir().join(format!("worker-heartbeat-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory).expect("a temporary directory");
/// let registry = Registry::new();
/// registry.attach(SqliteStore::open(directory.join("fleet.db"))?, FleetConfig::new())?;
/// # drop(registry);
/// # std::fs::remove_dir_all(&directory).expect("it is there");
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "sqlite"))]
/// # fn main() {}
/// ```
///
/// A cheap clone; clones share one connection.
#[derive(Clone)]
pub struct SqliteStore {
    path: Arc<Path>,
    busy_timeout: Duration,
    read_only: bool,
    /// `None` until the next call opens it.
    connection: Arc<Mutex<Option<OpenFile>>>,
    /// The highest incarnation or fence that the file has had.
    highest: Arc<AtomicI64>,
}

impl SqliteStore {
    /// Opens the file, and creates it if it does not exist.
    ///
    /// ```
    /// use worker_heartbeat::{HeartbeatStore, SqliteStore};
    ///
    /// # let directory = std::env::temp_dir().join(format!("worker-heartbeat-open-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory)?;
    /// let store = SqliteStore::open(directory.join("fleet.db"))?;
    /// assert_eq!(store.summary()?.total, 0);
    /// # drop(store);
    /// # std::fs::remove_dir_all(&directory)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if it cannot be opened or written, belongs to another program, or was created
    /// by a newer version of this library.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with_timeout(path, DEFAULT_BUSY_TIMEOUT)
    }

    /// As [`open`](Self::open); calls wait for at most `busy_timeout`, instead of 5 s, while other
    /// processes write.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_timeout(
        path: impl AsRef<Path>,
        busy_timeout: Duration,
    ) -> Result<Self, Error> {
        let store = Self::lazy(path, busy_timeout);
        *store.connection.lock() = Some(store.connect()?);
        Ok(store)
    }

    /// As [`open`](Self::open), but the first call opens the file, so that a process can start while
    /// the file is not accessible.
    ///
    /// ```
    /// use worker_heartbeat::{HeartbeatStore, SqliteStore};
    ///
    /// let store = SqliteStore::open_lazy("/not/mounted/yet/fleet.db");
    /// assert!(store.summary().is_err());
    /// ```
    #[must_use]
    pub fn open_lazy(path: impl AsRef<Path>) -> Self {
        Self::lazy(path, DEFAULT_BUSY_TIMEOUT)
    }

    /// Opens an existing file to read it: `list` and `summary` work, all other calls fail. It changes
    /// nothing, so that a user who may not write the file or its folder can do that.
    ///
    /// While no other process has the file open, and if the folder may not be written, it reads the file
    /// as it is; a process that begins to write meanwhile is seen by the next call. The file must have
    /// been set up by this version of the library.
    ///
    /// ```
    /// use worker_heartbeat::{HeartbeatStore, SqliteStore};
    ///
    /// # let directory = std::env::temp_dir().join(format!("worker-heartbeat-read-{}", std::process::id()));
    /// # std::fs::create_dir_all(&directory)?;
    /// # drop(SqliteStore::open(directory.join("fleet.db"))?);
    /// let store = SqliteStore::open_read_only(directory.join("fleet.db"))?;
    /// println!("{}", store.summary()?);
    /// assert!(store.purge(std::time::Duration::ZERO).is_err());
    /// # drop(store);
    /// # std::fs::remove_dir_all(&directory)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`] if it cannot be opened or read, is not set up, belongs to another program, or
    /// was set up by another version of this library.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, Error> {
        let mut store = Self::lazy(path, DEFAULT_BUSY_TIMEOUT);
        store.read_only = true;
        *store.connection.lock() = Some(store.connect()?);
        Ok(store)
    }

    fn lazy(path: impl AsRef<Path>, busy_timeout: Duration) -> Self {
        let path = path.as_ref();
        // The process may change its current folder. SQLite knows these two names.
        let absolute = match path.to_str() {
            Some("" | ":memory:") => None,
            _ => std::path::absolute(path).ok(),
        };
        Self {
            path: absolute.as_deref().unwrap_or(path).into(),
            busy_timeout,
            read_only: false,
            connection: Arc::default(),
            highest: Arc::default(),
        }
    }

    fn connect(&self) -> Result<OpenFile, Error> {
        if let Ok(Some(network)) = file::network(&self.path) {
            let why =
                format!("it is on a network file system ({network}), whose locks are not reliable");
            return Err(self.foreign(&why));
        }
        let before = FileId::at(&self.path);
        let (connection, frozen) = if self.read_only {
            self.open_to_read()?
        } else {
            (self.open_to_write()?, false)
        };
        OpenFile::new(connection, &self.path, before, frozen)
            .map_err(|why| self.replaced("open", &why))
    }

    fn foreign(&self, why: &str) -> Error {
        let message = format!("{}: {why}", self.path.display());
        Error::store_kind("open", StoreErrorKind::Incompatible, message)
    }

    /// Other processes use other files than this one.
    fn replaced(&self, operation: &'static str, why: &str) -> Error {
        let message = format!("{why}: what was written to it is lost");
        Error::store_kind(operation, StoreErrorKind::Incompatible, message)
    }

    fn cannot_open(&self, error: rusqlite::Error) -> Error {
        let (kind, why) = tables::described(&error);
        let message = format!("{}: {why}", self.path.display());
        Error::store_failed("open", kind, message, error)
    }

    /// Runs `act` in one transaction, at one moment of the store's time.
    fn transact<T>(
        &self,
        operation: &'static str,
        writes: bool,
        act: impl FnOnce(&mut InTransaction<'_>, Moment) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if writes && self.read_only {
            let message = format!("{}: it was opened to be read only", self.path.display());
            return Err(Error::store_kind(
                operation,
                StoreErrorKind::Denied,
                message,
            ));
        }
        let mut place = self.connection.lock();
        let open = match &mut *place {
            Some(open) => open,
            closed => closed.insert(self.connect()?),
        };
        let frozen = open.frozen;
        let done = (|| {
            let failed = |error| tables::failed(operation, error);
            let behavior = if writes {
                TransactionBehavior::Immediate
            } else {
                TransactionBehavior::Deferred
            };
            // Its borrow is of the connection alone.
            let transaction =
                Transaction::new_unchecked(&open.connection, behavior).map_err(failed)?;
            let check = || open.check().map_err(|why| self.replaced(operation, &why));
            check()?;
            // Read once the transaction has started, so that a later write has a later time.
            let now = time::now(&transaction, writes).map_err(failed)?;
            let mut tables = InTransaction::new(&transaction, operation);
            if writes && !open.raised {
                // The file may be a new one, or an earlier copy.
                let least = self.highest.load(Ordering::Acquire);
                tables.raise_numbers(least.max(time::wall_micros()))?;
            }
            let done = act(&mut tables, now)?;
            if writes {
                let last = tables.last_number()?;
                self.highest.fetch_max(last, Ordering::AcqRel);
            }
            transaction.commit().map_err(failed)?;
            check()?;
            Ok(done)
        })();
        open.raised |= writes;
        if done.is_err() || frozen {
            // The next call opens the file again: it may have been replaced.
            *place = None;
        }
        done
    }

    fn write<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut InTransaction<'_>, Moment) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(operation, true, act)
    }

    /// Forgets in batches, each in a transaction of its own, as long as the last one was full.
    fn forget(&self, retention: &Retention, mut last: usize) -> Result<usize, Error> {
        let mut forgotten = 0;
        while last >= BATCH {
            last = self.write("purge", |tables, now| {
                tables.forget(retention, now, false, BATCH)
            })?;
            forgotten += last;
        }
        Ok(forgotten)
    }

    fn each<T, A>(
        &self,
        operation: &'static str,
        items: &[T],
        act: impl Fn(&mut dyn Tables, &T, Moment) -> Result<A, Error>,
    ) -> Result<Vec<A>, Error> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.write(operation, |tables, now| {
            items.iter().map(|item| act(tables, item, now)).collect()
        })
    }

    /// As [`each`](Self::each). An item that the file refuses, such as by a constraint that another
    /// program added, does not keep the others from being written.
    fn each_alone<T>(
        &self,
        operation: &'static str,
        items: &[T],
        act: impl Fn(&mut dyn Tables, &T, Moment) -> Result<Answer, Error>,
    ) -> Result<Vec<Answer>, Error> {
        match self.each(operation, items, &act) {
            Err(error) if tables::is_about_data(&error) => {}
            answers => return answers,
        }
        self.write(operation, |tables, now| {
            let alone = |item| match tables.alone(|tables| act(tables, item, now)) {
                Err(error) if tables::is_about_data(&error) => Ok(Answer::Invalid),
                answer => answer,
            };
            items.iter().map(alone).collect()
        })
    }
}

impl HeartbeatStore for SqliteStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        let keys = self.each("register", workers, rules::register);
        keys.map_err(|error| {
            if tables::is_about_data(&error) {
                let allowed = format!("what the file can keep ({})", chain(&error));
                return Error::invalid("registration", "one that the file refuses", allowed);
            }
            error
        })
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.each_alone("beat", beats, rules::beat)
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.each_alone("stop", stops, rules::stop)
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.transact("list", false, |tables, now| tables.list(filter, now))
    }

    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        self.transact("find", false, |tables, now| rules::find(tables, id, now))
    }

    fn events(&self, filter: &EventFilter) -> Result<Option<EventPage>, Error> {
        let page = self.transact("list", false, |tables, now| tables.read_events(filter, now));
        page.map(Some)
    }

    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        self.transact("list", false, |tables, _| tables.processes(host))
    }

    fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.transact("list", false, |tables, now| tables.worst_first(filter, now))
    }

    fn counts(&self) -> Result<FleetCounts, Error> {
        self.transact("count", false, |tables, now| tables.counts(now))
    }

    fn summary(&self) -> Result<Summary, Error> {
        self.transact("count", false, |tables, now| {
            let counts = tables.counts(now)?;
            summary_of_counts(counts, |filter| tables.worst_first(filter, now))
        })
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        let mut report = self.transact("sweep", !sweep.dry_run, |tables, now| {
            sweep_rules::sweep(tables, sweep, now, BATCH)
        })?;
        if let (Some(retention), false) = (&sweep.retention, sweep.dry_run) {
            report.forgotten += self.forget(retention, report.forgotten)?;
        }
        Ok(report)
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.forget(&sweep_rules::purge_after(age), BATCH)
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.write("claim", |tables, now| rules::claim(tables, claim, now))
    }

    fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        self.each("withdraw", claims, rules::withdraw)
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.each("renew", leases, |tables, key, now| {
            rules::renew(tables, key, ttl, now)
        })
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.each("release", leases, rules::release)
    }

    fn keep_alive_interval(&self) -> Option<Duration> {
        Some(KEEP_ALIVE)
    }

    /// Finds out early that the file was replaced.
    fn keep_alive(&self) -> Result<bool, Error> {
        // A call in progress checks it itself.
        let Some(mut place) = self.connection.try_lock() else {
            return Ok(false);
        };
        Ok(place.take_if(|open| open.check().is_err()).is_some())
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.path)
            .field("busy_timeout", &self.busy_timeout)
            .finish_non_exhaustive()
    }
}
