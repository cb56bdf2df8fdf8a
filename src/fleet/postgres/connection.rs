//! One connection: opened at its first use, reopened after it broke, and with a time limit on every
//! wait.
//!
//! This is tokio-postgres on a runtime of its own, driven by the calling thread: no thread is needed,
//! as in the `postgres` crate. That crate has no time limit for a server that accepts a connection
//! and then sends nothing.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls, Row};

use super::error::{Failed, PgError, with_timeout};
use super::migrate;
use super::settings::Settings;
use crate::error::Error;
use crate::sync::catch::catch;
use crate::sync::log::log_line;

/// Placeholder for the id of the connection's session, or NULL.
const SESSION: &str = "@session@";
/// Time limit for the last statement of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);
/// Between two attempts to connect to a server that is starting, or has no free connection.
const RETRY_INTERVAL: Duration = Duration::from_millis(60);

pub(super) type Params<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// See the module.
pub(super) struct Connection {
    settings: Arc<Settings>,
    /// The end of its session proves that the process is gone.
    tracks_session: bool,
    open: Mutex<Option<OpenConnection>>,
    /// It was opened since the last [`keep_alive`](Self::keep_alive).
    reopened: AtomicBool,
    /// A proxy that pools transactions was detected.
    pooled: AtomicBool,
}

struct OpenConnection {
    client: Client,
    session: Option<Session>,
    /// Also drives the connection. `None` only while this is dropped: the runtime is shut down in the
    /// background, so that the drop does not block.
    runtime: Option<Runtime>,
}

struct Session {
    id: i64,
    epoch: String,
}

impl Connection {
    pub(super) fn new(settings: Arc<Settings>, tracks_session: bool) -> Self {
        Self {
            tracks_session: tracks_session && settings.session_liveness,
            settings,
            open: Mutex::new(None),
            reopened: AtomicBool::new(false),
            pooled: AtomicBool::new(false),
        }
    }

    /// Connects, unless it is connected. Waits for a server that is starting, or has no free
    /// connection.
    pub(super) fn connect(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.settings.connect_timeout;
        loop {
            let connected = self.outside_runtime(|| {
                let mut slot = self.lock("connect")?;
                let connected = self.usable(&mut slot).map(|_| ());
                Ok(connected.map_err(|error| {
                    let retry = error.is_transient() && Instant::now() + RETRY_INTERVAL < deadline;
                    (retry, self.settings.error("connect", &error))
                }))
            })?;
            match connected {
                Err((true, _)) => thread::sleep(RETRY_INTERVAL),
                other => return other.map_err(|(_, error)| error),
            }
        }
    }

    /// One statement, and so one transaction. `idempotent`: it may be sent twice if the connection
    /// broke before there was an answer.
    pub(super) fn query(
        &self,
        operation: &'static str,
        idempotent: bool,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        let rows = self.try_query(operation, idempotent, sql, params);
        rows.map_err(|failed| failed.error)
    }

    /// As [`query`](Self::query), and tells whether an item of the statement is at fault.
    pub(super) fn try_query(
        &self,
        operation: &'static str,
        idempotent: bool,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Failed> {
        let sql = self.settings.sql(sql);
        self.outside_runtime(|| {
            let mut slot = self.lock(operation)?;
            let mut first = true;
            loop {
                let was_open = slot.is_some();
                match self.send(&mut slot, &sql, params) {
                    Ok(rows) => return Ok(Ok(rows)),
                    Err(error) => {
                        if error.breaks_connection() {
                            *slot = None;
                        }
                        let broke = idempotent && was_open && error.is_closed();
                        if !(first && (broke || error.is_conflict())) {
                            let cause = error.cause();
                            let error = self.settings.error(operation, &error);
                            return Ok(Err(Failed { cause, error }));
                        }
                        first = false;
                    }
                }
            }
        })?
    }

    fn send(
        &self,
        slot: &mut Option<OpenConnection>,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, PgError> {
        let limit = self.settings.statement_timeout;
        let open = self.usable(slot)?;
        let session = open.session.as_ref();
        let sql = sql.replace(
            SESSION,
            &session.map_or("NULL".to_owned(), |session| session.id.to_string()),
        );
        let client = &open.client;
        open.run(with_timeout(limit, client.query_typed(&sql, params)))
    }

    /// Checks that the session still exists, and opens another one if it does not. Returns whether
    /// one was opened since the last call.
    pub(super) fn keep_alive(&self) -> Result<bool, Error> {
        if !self.tracks_session || self.pooled.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.outside_runtime(|| {
            let mut slot = self.lock("keep alive")?;
            if let Some(open) = &mut *slot {
                match self.check_session(open) {
                    Ok(()) => {}
                    Err(error) if error.breaks_connection() => *slot = None,
                    Err(error) => return Err(self.settings.error("keep alive", &error)),
                }
            }
            self.usable(&mut slot)
                .map_err(|error| self.settings.error("keep alive", &error))?;
            Ok(self.reopened.swap(false, Ordering::Relaxed))
        })
    }

    fn check_session(&self, open: &mut OpenConnection) -> Result<(), PgError> {
        let Some(session) = &open.session else {
            return Ok(());
        };
        let limit = self.settings.statement_timeout;
        let status = session_status(&open.client, &self.settings, session.id);
        let status = open.run(with_timeout(limit, status))?;
        if !status.is_own {
            self.report_pooling();
            open.session = None;
            self.reopened.store(true, Ordering::Relaxed);
        } else if !status.is_recorded || status.epoch != session.epoch {
            // Its record was deleted, or is from before a crash of the server.
            let session = open_session(&open.client, &self.settings);
            open.session = open.run(with_timeout(limit, session))?;
            self.reopened.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn report_pooling(&self) {
        if !self.pooled.swap(true, Ordering::Relaxed) {
            log_line(
                log::Level::Warn,
                format_args!(
                    "postgres: a proxy pools sessions, so the end of a session proves nothing; \
                     switch session_liveness off"
                ),
            );
        }
    }

    /// Waits for other callers no longer than for the server.
    fn lock(
        &self,
        operation: &'static str,
    ) -> Result<MutexGuard<'_, Option<OpenConnection>>, Error> {
        let limit = self.settings.statement_timeout;
        self.open.try_lock_for(limit).ok_or_else(|| {
            let error = PgError::Other(format!("the connection is busy for {limit:?}"));
            self.settings.error(operation, &error)
        })
    }

    /// The open connection, unless it is known to be broken; otherwise a new one.
    fn usable<'a>(
        &self,
        slot: &'a mut Option<OpenConnection>,
    ) -> Result<&'a mut OpenConnection, PgError> {
        let open = match slot.take().filter(OpenConnection::is_usable) {
            Some(open) => open,
            None => self.open()?,
        };
        Ok(slot.insert(open))
    }

    fn open(&self) -> Result<OpenConnection, PgError> {
        let settings = &self.settings;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| PgError::Other(format!("failed to start a runtime: {error}")))?;
        let client = runtime.block_on(with_timeout(settings.connect_timeout, connect(settings)));
        let mut open = match client {
            Ok(client) => OpenConnection {
                client,
                session: None,
                runtime: Some(runtime),
            },
            Err(error) => {
                // A host name may still be resolving.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let limit = settings.statement_timeout;
        open.run(migrate::check(&open.client, settings))?;
        if settings.session_liveness {
            open.run(with_timeout(limit, configure(&open.client, settings)))?;
        }
        if self.tracks_session && !self.pooled.load(Ordering::Relaxed) {
            let session = open_session(&open.client, settings);
            open.session = open.run(with_timeout(limit, session))?;
            self.check_session(&mut open)?;
        }
        self.reopened.store(true, Ordering::Relaxed);
        Ok(open)
    }

    /// Runs `work` on another thread if this one belongs to a runtime: a runtime does not allow its
    /// threads to block on another one.
    fn outside_runtime<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        if Handle::try_current().is_err() {
            return work();
        }
        thread::scope(|scope| {
            let work = || catch(work);
            let spawned = thread::Builder::new().spawn_scoped(scope, work);
            let failed = |what: &dyn fmt::Display| Error::store("start a thread", what);
            match spawned.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(Ok(done))) => done,
                Ok(_) => Err(failed(&"it panicked")),
                Err(error) => Err(failed(&error)),
            }
        })
    }
}

impl OpenConnection {
    fn run<T>(&self, work: impl Future<Output = Result<T, PgError>>) -> Result<T, PgError> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(PgError::Other("the connection is closed".to_owned())),
        }
    }

    /// Whether it is not known to be broken. Reads what the server sent since the last call, such as
    /// the notice that it is shutting down.
    fn is_usable(&self) -> bool {
        let Some(runtime) = &self.runtime else {
            return false;
        };
        runtime.block_on(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
        !self.client.is_closed()
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Connection {
    /// The process goes on, so the end of this session must prove nothing: its record is deleted.
    fn drop(&mut self) {
        let Some(open) = self.open.get_mut().take() else {
            return;
        };
        let Some(Session { id, .. }) = open.session else {
            return;
        };
        let delete = format!("DELETE FROM @schema@.sessions WHERE session_id = {id}");
        let delete = self.settings.sql(&delete);
        // If that fails, a sweep marks the workers offline too early. Those that live are refused at
        // their next heartbeat, and register again.
        drop(self.outside_runtime(|| {
            let done = open.run(with_timeout(
                CLOSE_TIMEOUT,
                open.client.batch_execute(&delete),
            ));
            done.map_err(|error| self.settings.error("close", &error))
        }));
    }
}

async fn connect(settings: &Settings) -> Result<Client, tokio_postgres::Error> {
    let config = &settings.config;
    match &settings.tls {
        Some(tls) => {
            let (client, connection) = config.connect(tls.clone()).await?;
            tokio::spawn(connection);
            Ok(client)
        }
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        }
    }
}

/// The server's time limit is a little shorter than the caller's, so that the error names it. The
/// functions of the schema rely on read committed: each of their steps sees what was committed before.
async fn configure(client: &Client, settings: &Settings) -> Result<(), tokio_postgres::Error> {
    let millis = settings.statement_timeout.mul_f64(0.9).as_millis().max(1);
    let sql = format!(
        "SELECT set_config('statement_timeout', '{millis}', false), \
         set_config('idle_in_transaction_session_timeout', '{millis}', false), \
         set_config('default_transaction_isolation', 'read committed', false)"
    );
    client.query_typed(&sql, &[]).await.map(|_| ())
}

/// `None` if the server does not show when the session began.
async fn open_session(
    client: &Client,
    settings: &Settings,
) -> Result<Option<Session>, tokio_postgres::Error> {
    let sql = settings.sql("SELECT @schema@.open_session(), @schema@.server_epoch()");
    let row = client.query_typed_one(&sql, &[]).await?;
    let id: Option<i64> = row.try_get(0)?;
    let epoch = row.try_get(1)?;
    Ok(id.map(|id| Session { id, epoch }))
}

struct SessionStatus {
    /// This statement ran in the session.
    is_own: bool,
    /// The session is in the table of sessions.
    is_recorded: bool,
    /// The server's life.
    epoch: String,
}

async fn session_status(
    client: &Client,
    settings: &Settings,
    id: i64,
) -> Result<SessionStatus, tokio_postgres::Error> {
    let sql = format!(
        "SELECT current_setting('worker_heartbeat.session', true) IS NOT DISTINCT FROM '{id}', \
         @schema@.is_session({id}), @schema@.server_epoch()"
    );
    let row = client.query_typed_one(&settings.sql(&sql), &[]).await?;
    Ok(SessionStatus {
        is_own: row.try_get(0)?,
        is_recorded: row.try_get(1)?,
        epoch: row.try_get(2)?,
    })
}
