//! One connection: opened at its first use, opened again when it broke, and never waited for
//! without a limit.
//!
//! This is tokio-postgres on a runtime of its own, driven by whoever calls: no thread, as in the
//! `postgres` crate. That one cannot give up a server that accepts connections and then says nothing.

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

use super::error::{Trouble, within};
use super::migrate;
use super::settings::Settings;
use crate::error::Error;
use crate::registry::core::say;
use crate::sync::panics;

/// Stands for the session that the connection vouches by, or NULL.
const SESSION: &str = "@session@";
/// What a farewell may take.
const FAREWELL: Duration = Duration::from_millis(250);
/// Between two tries to connect to a server that is just starting, or full.
const SPACING: Duration = Duration::from_millis(60);

pub(super) type Params<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// See the module.
pub(super) struct Link {
    settings: Arc<Settings>,
    /// Its end tells that the process is gone.
    vouches: bool,
    live: Mutex<Option<Live>>,
    /// It was opened since [`keep`](Self::keep) was last asked.
    renewed: AtomicBool,
    /// There is a proxy that pools transactions.
    pooled: AtomicBool,
}

struct Live {
    client: Client,
    session: Option<Session>,
    /// Dropped with its connection in it, and so that nobody has to wait.
    runtime: Option<Runtime>,
}

struct Session {
    id: i64,
    epoch: String,
}

impl Link {
    pub(super) fn new(settings: Arc<Settings>, vouches: bool) -> Self {
        Self {
            vouches: vouches && settings.session_liveness,
            settings,
            live: Mutex::new(None),
            renewed: AtomicBool::new(false),
            pooled: AtomicBool::new(false),
        }
    }

    /// Connects, if it is not connected. Waits for a server that is starting, or full.
    pub(super) fn reach(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.settings.connect_timeout;
        loop {
            let reached = self.apart(|| {
                let mut slot = self.lock("connect")?;
                let reached = self.fresh(&mut slot).map(|_| ());
                Ok(reached.map_err(|trouble| {
                    let passes = trouble.passes() && Instant::now() + SPACING < deadline;
                    (passes, self.settings.error("connect", &trouble))
                }))
            })?;
            match reached {
                Err((true, _)) => thread::sleep(SPACING),
                other => return other.map_err(|(_, error)| error),
            }
        }
    }

    /// One statement, and so one transaction. `again`: it may be sent twice, if the connection broke
    /// before there was an answer.
    pub(super) fn query(
        &self,
        operation: &'static str,
        again: bool,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Error> {
        let sql = self.settings.sql(sql);
        self.apart(|| {
            let mut slot = self.lock(operation)?;
            let mut first = true;
            loop {
                let old = slot.is_some();
                match self.send(&mut slot, &sql, params) {
                    Ok(rows) => return Ok(rows),
                    Err(trouble) => {
                        if trouble.breaks() {
                            *slot = None;
                        }
                        let broke = again && old && trouble.is_closed();
                        if !(first && (broke || trouble.is_conflict())) {
                            return Err(self.settings.error(operation, &trouble));
                        }
                        first = false;
                    }
                }
            }
        })
    }

    fn send(
        &self,
        slot: &mut Option<Live>,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Trouble> {
        let limit = self.settings.statement_timeout;
        let live = self.fresh(slot)?;
        let session = live.session.as_ref();
        let sql = sql.replace(
            SESSION,
            &session.map_or("NULL".to_owned(), |session| session.id.to_string()),
        );
        let client = &live.client;
        live.run(within(limit, client.query_typed(&sql, params)))
    }

    /// Sees whether the session is still there, and opens another one if not. Returns whether one
    /// was opened since this was last asked.
    pub(super) fn keep(&self) -> Result<bool, Error> {
        if !self.vouches || self.pooled.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.apart(|| {
            let mut slot = self.lock("keep alive")?;
            if let Some(live) = &mut *slot {
                match self.check_session(live) {
                    Ok(()) => {}
                    Err(trouble) if trouble.breaks() => *slot = None,
                    Err(trouble) => return Err(self.settings.error("keep alive", &trouble)),
                }
            }
            self.fresh(&mut slot)
                .map_err(|trouble| self.settings.error("keep alive", &trouble))?;
            Ok(self.renewed.swap(false, Ordering::Relaxed))
        })
    }

    fn check_session(&self, live: &mut Live) -> Result<(), Trouble> {
        let Some(session) = &live.session else {
            return Ok(());
        };
        let (own, valid, epoch) = {
            let ask = ask_session(&live.client, &self.settings, session.id);
            live.run(within(self.settings.statement_timeout, ask))?
        };
        if !own {
            self.notice_pool();
            live.session = None;
            self.renewed.store(true, Ordering::Relaxed);
        } else if !valid || epoch != session.epoch {
            // Forgotten, or known from before the server crashed.
            let open = open_session(&live.client, &self.settings);
            live.session = live.run(within(self.settings.statement_timeout, open))?;
            self.renewed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn notice_pool(&self) {
        if !self.pooled.swap(true, Ordering::Relaxed) {
            say(
                log::Level::Warn,
                format_args!(
                    "postgres: sessions are pooled by a proxy, so nothing is concluded from their \
                     end; switch session_liveness off"
                ),
            );
        }
    }

    /// Nobody waits longer for others than for the server.
    fn lock(&self, operation: &'static str) -> Result<MutexGuard<'_, Option<Live>>, Error> {
        let limit = self.settings.statement_timeout;
        self.live.try_lock_for(limit).ok_or_else(|| {
            let trouble = Trouble::Said(format!("the connection is busy for {limit:?}"));
            self.settings.error(operation, &trouble)
        })
    }

    /// A connection that was not found broken.
    fn fresh<'a>(&self, slot: &'a mut Option<Live>) -> Result<&'a mut Live, Trouble> {
        let usable = slot.take().filter(Live::is_usable);
        let live = match usable {
            Some(live) => live,
            None => self.open()?,
        };
        Ok(slot.insert(live))
    }

    fn open(&self) -> Result<Live, Trouble> {
        let settings = &self.settings;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Trouble::Said(format!("no runtime: {error}")))?;
        let client = runtime.block_on(within(settings.connect_timeout, connect(settings)));
        let mut live = match client {
            Ok(client) => Live {
                client,
                session: None,
                runtime: Some(runtime),
            },
            Err(trouble) => {
                // A name may still be looked up.
                runtime.shutdown_background();
                return Err(trouble);
            }
        };
        live.run(migrate::check(&live.client, settings))?;
        if settings.session_liveness {
            live.run(within(
                settings.statement_timeout,
                set_up(&live.client, settings),
            ))?;
        }
        if self.vouches && !self.pooled.load(Ordering::Relaxed) {
            live.session = live.run(within(
                settings.statement_timeout,
                open_session(&live.client, settings),
            ))?;
            self.check_session(&mut live)?;
        }
        self.renewed.store(true, Ordering::Relaxed);
        Ok(live)
    }

    /// Runs it on another thread if this one belongs to a runtime, which would not have it wait.
    fn apart<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        if Handle::try_current().is_err() {
            return work();
        }
        thread::scope(|scope| {
            let work = || panics::catch(work);
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

impl Live {
    fn run<T>(&self, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(Trouble::Said("it is closed".to_owned())),
        }
    }

    /// Whether nothing is known to be wrong with it. What the server said meanwhile is read: that it
    /// is ending, for instance.
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

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Link {
    /// The process lives on: the end of this session says nothing.
    fn drop(&mut self) {
        let Some(live) = self.live.get_mut().take() else {
            return;
        };
        let Some(Session { id, .. }) = live.session else {
            return;
        };
        let farewell = format!("DELETE FROM @schema@.sessions WHERE session_id = {id}");
        let farewell = self.settings.sql(&farewell);
        // If it fails, the workers are convicted sooner than they would be; they are refused then,
        // and told so, if they live.
        drop(self.apart(|| {
            let said = live.run(within(FAREWELL, live.client.batch_execute(&farewell)));
            said.map_err(|trouble| self.settings.error("close", &trouble))
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

/// The server gives up a little before the caller does, and says so. Whatever others prefer, each
/// step of a function sees what was committed until then.
async fn set_up(client: &Client, settings: &Settings) -> Result<(), tokio_postgres::Error> {
    let millis = settings.statement_timeout.mul_f64(0.9).as_millis().max(1);
    let sql = format!(
        "SELECT set_config('statement_timeout', '{millis}', false), \
         set_config('idle_in_transaction_session_timeout', '{millis}', false), \
         set_config('default_transaction_isolation', 'read committed', false)"
    );
    client.query_typed(&sql, &[]).await.map(|_| ())
}

/// `None` if the server does not tell of it.
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

/// Whether it is this client's own, whether it is known, and of which life of the server.
async fn ask_session(
    client: &Client,
    settings: &Settings,
    id: i64,
) -> Result<(bool, bool, String), tokio_postgres::Error> {
    let sql = format!(
        "SELECT current_setting('worker_heartbeat.session', true) IS NOT DISTINCT FROM '{id}', \
         @schema@.is_session({id}), @schema@.server_epoch()"
    );
    let row = client.query_typed_one(&settings.sql(&sql), &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}
