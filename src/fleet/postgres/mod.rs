//! A store in PostgreSQL: for many hosts.

mod connection;
mod error;
mod migrate;
mod options;
mod register;
mod rows;
mod settings;
mod sweep;
mod tls;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::host::ProcessIdentity;
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, StoredWorker, Sweep,
    WorkerFilter, WorkerKey,
};
use super::store::HeartbeatStore;
use crate::error::Error;
use crate::health::SweepReport;
use connection::Connection;
pub use options::PostgresOptions;
use settings::Settings;

/// How often the session is checked: several times within the grace of a missing one.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);

/// A [`HeartbeatStore`] in PostgreSQL (12 or newer): for many hosts. A cheap clone; all clones are
/// one store.
///
/// * All tables, views and functions are in one schema, which is set up at the first connection.
///   `psql`, `cron` and other languages use its views and functions, which work on the same rows.
/// * All times are the database's own.
/// * It opens one connection for heartbeats, a second one at the first claim, and a third one at the
///   first sweep or list, so that a claim does not wait for a batch of heartbeats, nor a heartbeat for
///   a sweep. The next call reopens a connection that was lost. Every call has a time limit: see
///   [`PostgresOptions`].
/// * The end of the connection for heartbeats proves that a process is gone: if its session is
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
/// the values of sequences, is not recognized as such. The clock of the database decides: if it is set forward, workers become stale and leases end
/// earlier.
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
    heartbeats: Connection,
    leases: Connection,
    /// Sweeps, lists and purges.
    scans: Connection,
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

    fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        Self {
            connections: Arc::new(Connections {
                heartbeats: Connection::new(Arc::clone(&settings), true),
                leases: Connection::new(Arc::clone(&settings), false),
                scans: Connection::new(Arc::clone(&settings), false),
                settings,
            }),
        }
    }

    fn ensure_connected(&self) -> Result<(), Error> {
        self.connections.heartbeats.connect()
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
        register::register(&self.connections.heartbeats, workers)
    }

    fn beat(&self, beats: &[Beat]) -> Result<Vec<Answer>, Error> {
        let here = ProcessIdentity::current();
        self.in_rounds(beats, |beat| &beat.key, |beats| {
            self.connections.heartbeats.query(
                "beat",
                true,
                "SELECT ord, answer FROM @schema@.beat_workers($1, $2, $3, $4, $5, $6, $7, $8, $9, \
                 $10, $11, $12, @session@, $13, $14, $15, $16)",
                &[
                    (&column(beats, |beat| rows::text(&beat.key.id)), Type::TEXT_ARRAY),
                    (&column(beats, |beat| rows::ordered(beat.key.incarnation)), Type::INT8_ARRAY),
                    (&column(beats, |beat| rows::status(beat.status.state)), Type::TEXT_ARRAY),
                    (&column(beats, |beat| beat.status.reason.as_deref().map(rows::text)), Type::TEXT_ARRAY),
                    (&column(beats, |beat| beat.heartbeat_age.map(rows::age)), Type::INT8_ARRAY),
                    (&column(beats, |beat| beat.progress_age.map(rows::age)), Type::INT8_ARRAY),
                    (&column(beats, |beat| beat.status.run_id.as_deref().map(rows::text)), Type::TEXT_ARRAY),
                    (&column(beats, |beat| beat.status.task.as_deref().map(rows::text)), Type::TEXT_ARRAY),
                    (&column(beats, |beat| beat.status.progress.map(|(n, _)| rows::number(n))), Type::INT8_ARRAY),
                    (&column(beats, |beat| beat.status.progress.map(|(_, n)| rows::number(n))), Type::INT8_ARRAY),
                    (&column(beats, |beat| rows::number(beat.status.beats)), Type::INT8_ARRAY),
                    (&column(beats, |beat| {
                        (!beat.metadata.is_empty()).then(|| rows::json(&beat.metadata))
                    }), Type::TEXT_ARRAY),
                    (&i64::from(here.pid), Type::INT8),
                    (&rows::number(here.started), Type::INT8),
                    (&here.boot_id, Type::TEXT),
                    (&rows::number(here.pid_namespace), Type::INT8),
                ],
            )
        })
    }

    fn stop(&self, stops: &[Stop]) -> Result<Vec<Answer>, Error> {
        self.in_rounds(
            stops,
            |stop| &stop.key,
            |stops| {
                let endings = column(stops, |stop| &stop.ending);
                self.connections.heartbeats.query(
                    "stop",
                    true,
                    "SELECT ord, answer FROM @schema@.stop_workers($1, $2, $3, $4, $5, $6, $7)",
                    &[
                        (
                            &column(stops, |stop| rows::text(&stop.key.id)),
                            Type::TEXT_ARRAY,
                        ),
                        (
                            &column(stops, |stop| rows::ordered(stop.key.incarnation)),
                            Type::INT8_ARRAY,
                        ),
                        (&column(&endings, |ending| ending.stopped), Type::BOOL_ARRAY),
                        (
                            &column(&endings, |ending| rows::text(&ending.cause)),
                            Type::TEXT_ARRAY,
                        ),
                        (
                            &column(&endings, |ending| ending.detail.as_deref().map(rows::text)),
                            Type::TEXT_ARRAY,
                        ),
                        (
                            &column(&endings, |ending| {
                                ending.location.as_deref().map(rows::text)
                            }),
                            Type::TEXT_ARRAY,
                        ),
                        (&column(stops, |stop| rows::age(stop.ago)), Type::INT8_ARRAY),
                    ],
                )
            },
        )
    }

    fn list(&self, filter: &WorkerFilter) -> Result<Vec<StoredWorker>, Error> {
        let host = filter.host.as_ref();
        let sql = format!(
            "SELECT {} FROM @schema@.worker_heartbeats w \
             WHERE ($1 IS NULL OR w.worker_type = $1) AND ($2 IS NULL OR w.worker_group = $2) \
             AND ($3 IS NULL OR w.ended_at IS NULL AND w.pid IS NOT NULL AND w.boot_id = $3 \
             AND w.pid_namespace = $4) \
             AND ($5 IS NULL OR w.worker_id > $5) ORDER BY w.worker_id LIMIT $6",
            rows::COLUMNS
        );
        let clean =
            |text: &Option<String>| text.as_deref().map(|text| rows::text(text).into_owned());
        let found = self.connections.scans.query(
            "list",
            true,
            &sql,
            &[
                (&clean(&filter.worker_type), Type::TEXT),
                (&clean(&filter.group), Type::TEXT),
                (&host.map(|host| host.boot_id.as_str()), Type::TEXT),
                (
                    &host.map(|host| rows::number(host.pid_namespace)),
                    Type::INT8,
                ),
                (&clean(&filter.after), Type::TEXT),
                (&i64::try_from(filter.limit).unwrap_or(i64::MAX), Type::INT8),
            ],
        )?;
        let workers: Result<Vec<_>, _> = found.iter().map(rows::worker).collect();
        workers.map_err(|error| rows::unreadable("list", &error))
    }

    fn sweep(&self, sweep: &Sweep) -> Result<SweepReport, Error> {
        sweep::sweep(&self.connections.scans, sweep)
    }

    fn purge(&self, age: Duration) -> Result<usize, Error> {
        let purged = self.connections.scans.query(
            "purge",
            false,
            "WITH purged AS (DELETE FROM @schema@.worker_heartbeats \
             WHERE ended_at <= now() - @schema@.micros($1) RETURNING 1) SELECT count(*) FROM purged",
            &[(&rows::limit(age), Type::INT8)],
        )?;
        let count: i64 = one(&purged, "purge")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn claim(&self, claim: &Claim) -> Result<ClaimAnswer, Error> {
        let answer = self.connections.leases.query(
            "claim",
            true,
            "SELECT answer, fence FROM @schema@.claim_run($1, $2, $3, $4)",
            &[
                (&rows::text(&claim.worker.id), Type::TEXT),
                (&rows::ordered(claim.worker.incarnation), Type::INT8),
                (&rows::text(&claim.run_id), Type::TEXT),
                (&rows::limit(claim.ttl), Type::INT8),
            ],
        )?;
        match one::<&str>(&answer, "claim")? {
            "taken" => Ok(ClaimAnswer::Taken),
            "granted" => {
                let fence = answer[0].try_get::<_, i64>(1);
                let fence = fence.map_err(|error| rows::unreadable("claim", &error))?;
                Ok(ClaimAnswer::Granted(rows::bits(fence)))
            }
            refused => Ok(ClaimAnswer::Refused(rows::answer(refused))),
        }
    }

    fn renew(&self, leases: &[LeaseKey], ttl: Duration) -> Result<Vec<bool>, Error> {
        let sql = "SELECT f FROM @schema@.renew_leases($1, $2, $3, $4, $5) f";
        let renewed = self.fences("renew", sql, leases, Some(rows::limit(ttl)))?;
        let is_renewed = |lease: &LeaseKey| renewed.contains(&rows::ordered(lease.fence));
        Ok(leases.iter().map(is_renewed).collect())
    }

    fn release(&self, leases: &[LeaseKey]) -> Result<Vec<bool>, Error> {
        let sql = "SELECT f FROM @schema@.release_leases($1, $2, $3, $4) f";
        let mut released = self.fences("release", sql, leases, None)?;
        // A lease that is listed twice is released once.
        let is_released = |lease: &LeaseKey| released.remove(&rows::ordered(lease.fence));
        Ok(leases.iter().map(is_released).collect())
    }

    fn keep_alive_interval(&self) -> Option<Duration> {
        self.connections
            .settings
            .session_liveness
            .then_some(KEEP_ALIVE)
    }

    fn keep_alive(&self) -> Result<bool, Error> {
        self.connections.heartbeats.keep_alive()
    }
}

impl PostgresStore {
    /// Sends several statements if a worker is in the batch more than once: each statement has every
    /// worker at most once. Sorted by id, so that two batches cannot deadlock.
    fn in_rounds<T: Clone>(
        &self,
        items: &[T],
        key: impl Fn(&T) -> &WorkerKey,
        send: impl Fn(&[T]) -> Result<Vec<Row>, Error>,
    ) -> Result<Vec<Answer>, Error> {
        let mut answers = vec![Answer::Accepted; items.len()];
        let mut left: Vec<usize> = (0..items.len()).collect();
        while !left.is_empty() {
            let mut seen = HashSet::new();
            let (mut round, later): (Vec<usize>, Vec<usize>) =
                left.into_iter().partition(|n| seen.insert(key(&items[*n])));
            round.sort_unstable_by_key(|n| key(&items[*n]));
            let batch: Vec<T> = round.iter().map(|n| items[*n].clone()).collect();
            for row in send(&batch)? {
                let refused = (|| Ok((row.try_get::<_, i64>(0)?, row.try_get::<_, &str>(1)?)))();
                let (ord, name) =
                    refused.map_err(|error| rows::unreadable("read answers", &error))?;
                let place = usize::try_from(ord - 1).ok().and_then(|n| round.get(n));
                if let Some(n) = place {
                    answers[*n] = rows::answer(name);
                }
            }
            left = later;
        }
        Ok(answers)
    }

    /// The fences that the statement returns for these leases.
    fn fences(
        &self,
        operation: &'static str,
        sql: &str,
        leases: &[LeaseKey],
        ttl: Option<i64>,
    ) -> Result<HashSet<i64>, Error> {
        if leases.is_empty() {
            return Ok(HashSet::new());
        }
        let mut sorted: Vec<&LeaseKey> = leases.iter().collect();
        sorted.sort_unstable_by_key(|lease| &lease.run_id);
        let ids = column(&sorted, |lease| rows::text(&lease.worker.id));
        let incarnations = column(&sorted, |lease| rows::ordered(lease.worker.incarnation));
        let runs = column(&sorted, |lease| rows::text(&lease.run_id));
        let fences = column(&sorted, |lease| rows::ordered(lease.fence));
        let mut params: Vec<(&(dyn tokio_postgres::types::ToSql + Sync), Type)> = vec![
            (&ids, Type::TEXT_ARRAY),
            (&incarnations, Type::INT8_ARRAY),
            (&runs, Type::TEXT_ARRAY),
            (&fences, Type::INT8_ARRAY),
        ];
        if let Some(ttl) = &ttl {
            params.push((ttl, Type::INT8));
        }
        // A release that succeeded, and is sent again, would find nothing to release.
        let idempotent = ttl.is_some();
        let found = self
            .connections
            .leases
            .query(operation, idempotent, sql, &params)?;
        found
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()
            .map_err(|error| rows::unreadable(operation, &error))
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
