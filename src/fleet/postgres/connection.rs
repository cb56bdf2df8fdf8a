//! One kind of call, such as heartbeats: at most one call at a time, on a connection of the store's
//! [`Pool`], and with a time limit on every wait.
//!
//! A call that was given up keeps its connection until it is over, and the next call of the kind waits
//! for that: a write that waits for a lock or for a standby is not repeated by another one behind it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio_postgres::Row;

use super::error::{Failed, PgError};
use super::open::{OpenConnection, Settled};
use super::pool::{Pool, Verdict};
use super::session::Check;
use super::transaction::{Params, Phase};
use crate::error::Error;
use crate::sync::catch::catch;

/// Placeholder for the id of the connection's session, or NULL.
const SESSION: &str = "@session@";
/// Between two attempts to connect to a server that is starting, or has no free connection.
const RETRY_INTERVAL: Duration = Duration::from_millis(60);
/// A call that was given up is over at once, or needs to be asked about.
const SETTLE_TIME: Duration = Duration::from_millis(50);
/// Longest wait for a cancelled statement to end.
const LONGEST_CANCEL: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Connection {
    pool: Arc<Pool>,
    /// Its calls refer to the session of the process.
    tracks_session: bool,
    /// The connection of a call that was given up and is not over.
    abandoned: Mutex<Option<OpenConnection>>,
    /// A session was opened since the last [`keep_alive`](Self::keep_alive), or is of no more use.
    reopened: AtomicBool,
}

impl Connection {
    pub(super) fn new(pool: Arc<Pool>, tracks_session: bool) -> Self {
        Self {
            pool,
            tracks_session,
            abandoned: Mutex::new(None),
            reopened: AtomicBool::new(false),
        }
    }

    /// Connects, unless it is connected. Waits for a server that is starting, or has no free
    /// connection.
    pub(super) fn connect(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.pool.settings.connect_timeout;
        loop {
            let connected = self.outside_runtime(|| {
                let mut abandoned = self.lock("connect")?;
                let connected = self.on_connection(&mut abandoned, |_| Ok(()));
                Ok(connected.map_err(|error| {
                    let retry = error.is_transient() && Instant::now() + RETRY_INTERVAL < deadline;
                    (retry, self.pool.settings.error("connect", &error))
                }))
            })?;
            match connected {
                Err((true, _)) => thread::sleep(RETRY_INTERVAL),
                other => return other.map_err(|(_, error)| error),
            }
        }
    }

    /// One statement, in a transaction of its own. `idempotent`: it may be sent twice if the
    /// connection broke before there was an answer.
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

    /// As [`query`](Self::query), and reports whether an item of the statement is at fault.
    pub(super) fn try_query(
        &self,
        operation: &'static str,
        idempotent: bool,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Failed> {
        let sql = self.pool.settings.sql(sql);
        self.outside_runtime(|| {
            let mut abandoned = self.lock(operation)?;
            let mut first = true;
            loop {
                let mut was_used = false;
                let done = self.on_connection(&mut abandoned, |open| {
                    was_used = std::mem::replace(&mut open.used, true);
                    self.send(open, &sql, params)
                });
                let error = match done {
                    Ok(rows) => return Ok(Ok(rows)),
                    Err(error) => error,
                };
                let broke = idempotent && was_used && error.breaks_connection();
                if !(first && (broke || error.is_conflict())) {
                    let cause = error.cause();
                    let error = self.pool.settings.error(operation, &error);
                    return Ok(Err(Failed { cause, error }));
                }
                first = false;
            }
        })?
    }

    fn send(
        &self,
        open: &mut OpenConnection,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, PgError> {
        if self.tracks_session {
            self.open_session(open)?;
        }
        let session = open.session.as_ref().filter(|_| self.tracks_session);
        let session = session.map_or("NULL".to_owned(), |session| session.id.to_string());
        let sql = sql.replace(SESSION, &session);
        open.query(&self.pool.settings, &sql, params)
    }

    fn open_session(&self, open: &mut OpenConnection) -> Result<(), PgError> {
        if self.pool.tracks_sessions()
            && open.own_session
            && self.pool.sessions.open(open, &self.pool.settings)?
        {
            self.reopened.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Checks that the session still exists, and opens another one if it does not. Returns whether
    /// one was opened since the last call.
    pub(super) fn keep_alive(&self) -> Result<bool, Error> {
        // A connection in use is checked the next time.
        if !self.tracks_session || !self.pool.tracks_sessions() || !self.pool.is_idle() {
            return Ok(self.reopened.swap(false, Ordering::Relaxed));
        }
        self.outside_runtime(|| {
            let mut abandoned = self.lock("keep alive")?;
            if abandoned.is_some() {
                // Heartbeats ask about it.
                return Ok(false);
            }
            let mut first = true;
            loop {
                match self.on_connection(&mut abandoned, |open| self.check_session(open)) {
                    Ok(()) => return Ok(self.reopened.swap(false, Ordering::Relaxed)),
                    Err(error) if first && error.breaks_connection() => first = false,
                    Err(error) => return Err(self.pool.settings.error("keep alive", &error)),
                }
            }
        })
    }

    fn check_session(&self, open: &mut OpenConnection) -> Result<(), PgError> {
        open.used = true;
        if let Some(session) = &open.session {
            match session.check(open, &self.pool.settings)? {
                Check::Unchanged => return Ok(()),
                Check::Gone => open.session = None,
                Check::Pooled => {
                    self.pool.report_pooling();
                    open.session = None;
                    self.reopened.store(true, Ordering::Relaxed);
                }
            }
        }
        self.open_session(open)
    }

    /// Runs `work` on a connection that no other call uses meanwhile.
    fn on_connection<T>(
        &self,
        abandoned: &mut Option<OpenConnection>,
        work: impl FnOnce(&mut OpenConnection) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        let mut open = self.acquire(abandoned)?;
        let done = work(&mut open);
        match &done {
            Err(error) if error.is_timeout() => self.give_up(abandoned, open),
            Err(error) if error.breaks_connection() => self.pool.discard(open),
            _ => self.pool.give_back(open),
        }
        done
    }

    /// An abandoned call comes first: its connection is used again once it is over, or replaced once
    /// it is known to be of no use.
    fn acquire(&self, abandoned: &mut Option<OpenConnection>) -> Result<OpenConnection, PgError> {
        let Some(old) = abandoned.take() else {
            return self.pool.take(self.tracks_session);
        };
        let mut settled = old.settle(SETTLE_TIME);
        if settled == Settled::NotYet {
            let why = match self.pool.ask_about(&old) {
                Ok(Verdict::Replaced(new)) => {
                    self.pool.reclaim();
                    return Ok(*new);
                }
                Ok(Verdict::Unfinished(why)) => {
                    settled = old.settle(self.pool.settings.statement_timeout);
                    PgError::Busy(why)
                }
                Err(error) => error,
            };
            if settled == Settled::NotYet {
                *abandoned = Some(old);
                return Err(why);
            }
        }
        self.pool.reclaim();
        if settled == Settled::Done {
            return Ok(old);
        }
        self.pool.discard(old);
        self.pool.take(self.tracks_session)
    }

    /// There was no answer in time.
    fn give_up(&self, abandoned: &mut Option<OpenConnection>, open: OpenConnection) {
        let settings = &self.pool.settings;
        let limit = (settings.statement_timeout / 4).min(LONGEST_CANCEL);
        match open.cancel(settings, limit) {
            Settled::Done => self.pool.give_back(open),
            Settled::Closed => self.pool.discard(open),
            // A proxy that holds a request back, for lack of a connection, forgets it once its client
            // is gone.
            Settled::NotYet if open.phase() == Phase::Sent && open.may_be_held_back() => {
                self.pool.discard(open);
            }
            Settled::NotYet => {
                self.pool.abandon(&open);
                *abandoned = Some(open);
            }
        }
    }

    /// How long a statement may take.
    pub(super) fn statement_timeout(&self) -> Duration {
        self.pool.settings.statement_timeout
    }

    /// Waits for other callers no longer than for the server.
    fn lock(
        &self,
        operation: &'static str,
    ) -> Result<MutexGuard<'_, Option<OpenConnection>>, Error> {
        let limit = self.statement_timeout();
        self.abandoned.try_lock_for(limit).ok_or_else(|| {
            let error = PgError::Busy(format!("other calls of this kind wait for {limit:?}"));
            self.pool.settings.error(operation, &error)
        })
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

    /// At the end of the store.
    pub(super) fn close(&self) {
        drop(self.outside_runtime(|| {
            self.pool.close();
            Ok(())
        }));
    }
}
