//! A store in PostgreSQL: for many hosts.

mod batch;
mod clock;
mod connection;
mod credentials;
mod error;
mod events;
mod hosts;
mod leases;
mod lent;
mod lists;
mod lookup;
mod migrate;
mod names;
mod open;
mod options;
mod pool;
mod reads;
mod register;
mod rows;
mod session;
mod settings;
mod sweep;
mod texts;
mod tls;
mod transaction;
mod url;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::host::ProcessIdentity;
use super::pages::summary_of_counts;
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, EventFilter, EventPage, FleetCounts, LeaseKey, Registration,
    Renewal, Stop, StoredWorker, Sweep, WorkerFilter, WorkerKey,
};
use super::store::HeartbeatStore;
use super::sweep_rules::purge_after;
use crate::error::Error;
use crate::health::{Summary, SweepReport};
use batch::Suspects;
use clock::ClockWatch;
use connection::Connection;
pub use credentials::PostgresCredentials;
pub use lent::LentClient;
use lent::Source;
pub use options::PostgresOptions;
use pool::Pool;
use settings::Settings;
use texts::{LoggedIds, Texts};

/// How often the session is checked: several times within the grace of a missing one.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);

/// A [`HeartbeatStore`] in PostgreSQL (12 or newer): for many hosts. A cheap clone; all clones are
/// one store.
///
/// * All tables, views and functions are in one schema, which is set up at the first connection.
///   `psql`, `cron` and other languages use its views and functions, which work on the same rows.
/// * All times are the database's own.
/// * It opens one connection. Heartbeats, claims, sweeps and lists don't wait for each other: if the
///   connection is in use for longer than 100 ms, another one is opened for the meantime, up to four,
///   and a fifth one for a moment where a server does not answer. The next call reopens a
///   connection that was lost. Every call has a time limit: see [`PostgresOptions`].
/// * The application may lend its own connections: [`with_client`](Self::with_client) and
///   [`PostgresOptions::with_pool`].
/// * The end of the connection proves that a process is gone: if its session is
///   missing, and its workers don't come back through another one within 5 s, a sweep marks them gone.
///   The end of a session together with the server proves nothing. The leases of workers that are gone
///   are released only when no process can believe in them any more, because the process may be alive
///   and cut off. This needs a sweep every few seconds; see
///   [`Sweeper::interval`](crate::Sweeper::interval).
///
/// * Incarnations and fences never go back: a server that takes over, a restored backup, a logical copy
///   and a schema that was dropped and set up again all continue with higher numbers. After a failover,
///   claims have to wait for 10 s ([`claim`](crate::WorkerHeartbeat::claim) finds each run taken), while
///   processes learn which leases the new server has lost.
///
/// Limitations: a standby that was promoted before it received all changes, or a restored backup, has
/// lost granted claims. A process that is cut off from the new server for longer than these 10 s may
/// still believe in such a lease, until it expires; a resource that checks fences refuses its writes.
/// Replicate synchronously where that matters. A backup that is restored into a running database, with
/// the values of sequences, is not recognized as such. The clock of the database decides: if it is set
/// forward, leases end earlier. Sweeps notice that, and count silence from the start.
///
/// It may be called from async code; it blocks the calling thread.
///
/// ```no_run
/// use worker_heartbeat::{FleetConfig, PostgresStore, Registry};
///
/// let store = PostgresStore::connect("postgres://app@localhost/app")?;
/// Registry::global().attach(store, FleetConfig::new())?;
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    connections: Arc<Connections>,
}

struct Connections {
    settings: Arc<Settings>,
    pool: Arc<Pool>,
    /// Renewals too: a claim that waits must not cost the process its leases.
    heartbeats: Connection,
    leases: Connection,
    /// Sweeps and purges.
    sweeps: Connection,
    /// Lists. They don't wait for a sweep whose commit waits for a standby.
    scans: Connection,
    clock: ClockWatch,
    texts: Texts,
    suspects: Suspects,
    suspects_among_leases: Suspects,
    logged: LoggedIds,
}

impl PostgresStore {
    /// Connects with the default options: [`PostgresOptions::connect`].
    ///
    /// ```no_run
    /// use worker_heartbeat::{HeartbeatStore, PostgresStore};
    ///
    /// let store = PostgresStore::connect("postgres://app@localhost/app")?;
    /// println!("{}", store.summary()?);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL is not allowed; [`Error::Store`] if the server cannot be
    /// reached, or refuses.
    pub fn connect(url: &str) -> Result<Self, Error> {
        PostgresOptions::new().connect(url)
    }

    /// Connects at the first use, with the default options: [`PostgresOptions::connect_lazy`].
    ///
    /// ```
    /// use worker_heartbeat::{FleetConfig, PostgresStore, Registry};
    ///
    /// // The process starts even while the database is down.
    /// let store = PostgresStore::connect_lazy("postgres://app@localhost/app")?;
    /// # let _ = store;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL is not allowed.
    pub fn connect_lazy(url: &str) -> Result<Self, Error> {
        PostgresOptions::new().connect_lazy(url)
    }

    /// On a connection that the application lends, with the default options:
    /// [`PostgresOptions::with_client`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if an option is not allowed.
    pub fn with_client(client: tokio_postgres::Client) -> Result<Self, Error> {
        PostgresOptions::new().with_client(client)
    }

    fn new(settings: Settings, source: Source) -> Self {
        let settings = Arc::new(settings);
        let pool = Arc::new(Pool::new(Arc::clone(&settings), source));
        Self {
            connections: Arc::new(Connections {
                heartbeats: Connection::new(Arc::clone(&pool), true),
                leases: Connection::new(Arc::clone(&pool), false),
                sweeps: Connection::new(Arc::clone(&pool), false),
                scans: Connection::new(Arc::clone(&pool), false),
                pool,
                clock: ClockWatch::default(),
                settings,
                texts: Texts::default(),
                suspects: Suspects::default(),
                suspects_among_leases: Suspects::default(),
                logged: LoggedIds::default(),
            }),
        }
    }

    fn ensure_connected(&self) -> Result<(), Error> {
        self.connections.heartbeats.connect()
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.heartbeats.close();
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("target", &self.connections.settings.target)
            .field(
                "schema",
                &self.connections.settings.schema.trim_matches('"'),
            )
            .finish_non_exhaustive()
    }
}

impl HeartbeatStore for PostgresStore {
    fn register(&self, workers: &[Registration]) -> Result<Vec<WorkerKey>, Error> {
        self.connections.register(workers)
    }

    fn register_each(
        &self,
        workers: &[Registration],
    ) -> Result<Vec<Result<WorkerKey, Error>>, Error> {
        self.connections.register_each(workers)
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        self.connections.beat(beats)
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.connections.stop(stops)
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.connections.list(filter)
    }

    fn find(&self, id: &str) -> Result<Option<StoredWorker>, Error> {
        self.connections.find(id)
    }

    fn processes(&self, host: &ProcessIdentity) -> Result<Vec<ProcessIdentity>, Error> {
        sweep::processes(&self.connections.scans, host)
    }

    fn worst_first(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        self.connections.worst_first(filter)
    }

    fn counts(&self) -> Result<FleetCounts, Error> {
        self.connections.counts()
    }

    fn events(&self, filter: &EventFilter) -> Result<Option<EventPage>, Error> {
        self.connections.events(filter).map(Some)
    }

    fn summary(&self) -> Result<Summary, Error> {
        summary_of_counts(self.counts()?, |filter| self.worst_first(filter))
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        let sweeps = &self.connections.sweeps;
        self.connections.clock.check(sweeps, sweep.dry_run)?;
        sweep::sweep(sweeps, &self.connections.clock.clip(sweep))
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        sweep::forget(&self.connections.sweeps, &purge_after(age), false)
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        self.connections.claim(claim)
    }

    fn withdraw(&self, claims: &[Claim]) -> Result<Vec<bool>, Error> {
        self.connections.withdraw(claims)
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        let renewals = self.connections.renew(leases, ttl)?;
        if renewals.contains(&Renewal::Busy) {
            return Err(leases::locked("renew"));
        }
        let renewed = renewals
            .into_iter()
            .map(|renewal| renewal == Renewal::Renewed);
        Ok(renewed.collect())
    }

    fn try_renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<Renewal>, Error> {
        self.connections.renew(leases, ttl)
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        self.connections.release(leases)
    }

    fn replaced_texts(&self) -> u64 {
        self.connections.texts.replaced()
    }

    fn keep_alive_interval(&self) -> Option<Duration> {
        self.connections
            .pool
            .tracks_sessions()
            .then_some(KEEP_ALIVE)
    }

    fn keep_alive(&self) -> Result<bool, Error> {
        self.connections.heartbeats.keep_alive()
    }
}

fn column<'a, T, C>(items: &'a [T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    items.iter().map(of).collect()
}

fn one<'a, T: tokio_postgres::types::FromSql<'a>>(
    rows: &'a [Row],
    operation: &'static str,
) -> Result<T, Error> {
    let row = rows
        .first()
        .ok_or_else(|| Error::store(operation, "the server returned no row"))?;
    row.try_get(0)
        .map_err(|error| rows::unreadable(operation, &error))
}
