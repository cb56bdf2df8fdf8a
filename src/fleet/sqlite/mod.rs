//! A store in a SQLite file: without a server or set-up.

mod tables;
mod time;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::rules::{self, Tables};
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, StoredWorker, Sweep,
    WorkerFilter, WorkerKey,
};
use super::store::HeartbeatStore;
use crate::clock::Moment;
use crate::error::{Error, StoreErrorKind};
use crate::health::SweepReport;
use tables::InTransaction;

/// How long a call waits for another process that is writing.
const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const SCHEMA: &str = include_str!("schema.sql");
/// Distinguishes these files from those of other programs.
const APPLICATION_ID: i32 = 0x7768_6274;
/// In the field `user_version` of the file. A later version that only adds to the tables writes the
/// oldest version that may still use them into the upper 16 bits, so that processes of both work
/// during an upgrade.
const SCHEMA_VERSION: i32 = 2;
/// Brings a file of version 1 up to date.
const MIGRATION: &str = "ALTER TABLE workers ADD COLUMN ending_location TEXT";

/// The write-ahead log grows while another process reads for long. It is cut to this size afterwards.
const LARGEST_WAL: i64 = 8 * 1024 * 1024;

/// A [`HeartbeatStore`] in a SQLite file, for all processes of one host.
///
/// The file is in WAL mode, and every commit is synced to disk, so that incarnations and fences are
/// never given twice, even after a power failure. Time is counted from the host's boot: setting the
/// wall clock has no effect. The file must not be on a network file system, and all its users must run
/// on one kernel.
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
    /// `None` until the next call opens it.
    connection: Arc<Mutex<Option<Connection>>>,
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

    fn lazy(path: impl AsRef<Path>, busy_timeout: Duration) -> Self {
        Self {
            path: path.as_ref().into(),
            busy_timeout,
            connection: Arc::default(),
        }
    }

    fn connect(&self) -> Result<Connection, Error> {
        let failed = |error| self.cannot_open(error);
        // Without SQLITE_OPEN_URI: a path is never taken for a URI.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags).map_err(failed)?;
        connection.busy_timeout(self.busy_timeout).map_err(failed)?;
        // Without a lock, so that readers don't wait for another process that is writing.
        if !is_usable(&connection).map_err(failed)? {
            self.check(&mut connection)?;
        }
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .and_then(|()| connection.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| connection.pragma_update(None, "journal_size_limit", LARGEST_WAL))
            .map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    }

    /// Creates the tables if there are none; refuses files of other programs.
    fn check(&self, connection: &mut Connection) -> Result<(), Error> {
        let failed = |error| self.cannot_open(error);
        // Immediate: if several processes start at once, one of them creates the tables.
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let pragma = |name| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let application = pragma("application_id").map_err(failed)?;
        let version = pragma("user_version").map_err(failed)?;
        match (application, version) {
            (APPLICATION_ID, SCHEMA_VERSION) => {}
            (APPLICATION_ID, 1) => transaction
                .execute_batch(MIGRATION)
                .and_then(|()| transaction.pragma_update(None, "user_version", SCHEMA_VERSION))
                .map_err(failed)?,
            (0, 0) => {
                let tables: i64 = transaction
                    .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
                    .map_err(failed)?;
                if tables > 0 {
                    return Err(self.foreign("it belongs to another program"));
                }
                transaction
                    .execute_batch(SCHEMA)
                    .and_then(|()| {
                        transaction.pragma_update(None, "application_id", APPLICATION_ID)
                    })
                    .and_then(|()| transaction.pragma_update(None, "user_version", SCHEMA_VERSION))
                    .map_err(failed)?;
            }
            (APPLICATION_ID, _) => {
                return Err(self.foreign("it was made by a newer version of this library"));
            }
            _ => return Err(self.foreign("it belongs to another program")),
        }
        transaction.commit().map_err(failed)
    }

    fn foreign(&self, why: &str) -> Error {
        let message = format!("{}: {why}", self.path.display());
        Error::store_kind("open", StoreErrorKind::Incompatible, message)
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
        let mut place = self.connection.lock();
        let connection = match &mut *place {
            Some(connection) => connection,
            closed => closed.insert(self.connect()?),
        };
        let done = (|| {
            let failed = |error| tables::failed(operation, error);
            let behavior = if writes {
                TransactionBehavior::Immediate
            } else {
                TransactionBehavior::Deferred
            };
            let transaction = connection
                .transaction_with_behavior(behavior)
                .map_err(failed)?;
            // Read once the transaction has started, so that a later write has a later time.
            let now = time::now(&transaction, writes).map_err(failed)?;
            let mut tables = InTransaction::new(&transaction, operation);
            let done = act(&mut tables, now)?;
            transaction.commit().map_err(failed)?;
            Ok(done)
        })();
        if done.is_err() {
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
}

/// Whether the file has the tables of this version, or of a newer one that this version may use.
fn is_usable(connection: &Connection) -> rusqlite::Result<bool> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    Ok(application == APPLICATION_ID
        && (version == SCHEMA_VERSION
            || (version & 0xffff > SCHEMA_VERSION
                && (1..=SCHEMA_VERSION).contains(&(version >> 16)))))
}

impl HeartbeatStore for SqliteStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.each("register", workers, rules::register)
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.each("beat", beats, rules::beat)
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.each("stop", stops, rules::stop)
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.transact("list", false, |tables, now| tables.list(filter, now))
    }

    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        self.transact("find", false, |tables, now| rules::find(tables, id, now))
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        self.write("sweep", |tables, now| rules::sweep(tables, sweep, now))
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        self.write("purge", |tables, now| tables.forget_ended(now.before(age)))
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.write("claim", |tables, now| rules::claim(tables, claim, now))
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        self.each("renew", leases, |tables, key, now| {
            rules::renew(tables, key, ttl, now)
        })
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.each("release", leases, rules::release)
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
