//! The connections of a store: one, and more only while others are in use.
//!
//! Each kind of call has at most one under way, on a connection that no other call uses meanwhile. So a
//! heartbeat does not wait for a claim, nor for a sweep, and a store never has more connections than
//! there are kinds of calls, whatever the server does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tokio_postgres::config::LoadBalanceHosts;
use tokio_postgres::types::Type;

use super::error::{PgError, with_timeout};
use super::hosts::{self, Request, Server};
use super::lent::Source;
use super::open::OpenConnection;
use super::session::Sessions;
use super::settings::Settings;
use crate::error::StoreErrorKind;
use crate::sync::catch::catch;
use crate::sync::log::log_line;
use crate::sync::random::random;

/// One for each kind of call. One more may be open for a moment, to ask a server that does not answer
/// on another.
pub(super) const MOST: usize = 4;
/// A call waits this long for a connection that is in use before it opens another one.
const PATIENCE: Duration = Duration::from_millis(100);
/// Time limit for the last statement of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// See the module.
pub(super) struct Pool {
    pub settings: Arc<Settings>,
    source: Source,
    state: Mutex<State>,
    changed: Condvar,
    /// The same for callers that are opening a connection.
    idle: Notify,
    /// Only one at a time asks a server about another connection.
    asking: Mutex<()>,
    pub sessions: Sessions,
    /// A proxy that pools connections was detected.
    pooled: AtomicBool,
    /// The schema was checked through a connection of the application's.
    checked: AtomicBool,
    /// The host to begin with: not the one that did not answer last.
    first_host: AtomicUsize,
}

#[derive(Default)]
struct State {
    idle: VecDeque<OpenConnection>,
    in_use: usize,
    /// Their calls were given up, and are not finished.
    abandoned: usize,
    opening: bool,
    /// Attempts to open a connection that failed, and the last failure.
    failures: u64,
    failure: Option<(StoreErrorKind, String)>,
    /// The server that was connected to last.
    epoch: Option<String>,
}

/// What is to be done about an abandoned call.
pub(super) enum Verdict {
    /// Its connection is of no more use: this one replaces it.
    Replaced(Box<OpenConnection>),
    /// It is not finished, for this reason.
    Unfinished(String),
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>, source: Source) -> Self {
        Self {
            pooled: AtomicBool::new(!matches!(source, Source::Own)),
            settings,
            source,
            state: Mutex::default(),
            changed: Condvar::new(),
            idle: Notify::new(),
            asking: Mutex::new(()),
            sessions: Sessions::default(),
            checked: AtomicBool::new(false),
            first_host: AtomicUsize::new(0),
        }
    }

    /// Whether the end of a session may prove the end of this process.
    pub(super) fn tracks_sessions(&self) -> bool {
        self.settings.session_liveness && !self.pooled.load(Ordering::Relaxed)
    }

    pub(super) fn report_pooling(&self) {
        if !self.pooled.swap(true, Ordering::Relaxed) {
            log_line(
                log::Level::Info,
                format_args!(
                    "postgres: a proxy pools connections, so the end of a session proves nothing: \
                     session_liveness is off"
                ),
            );
        }
    }

    /// A connection that no other call uses. `prefers_session`: that of the store's session, if it is
    /// idle.
    pub(super) fn take(&self, prefers_session: bool) -> Result<OpenConnection, PgError> {
        let begun = Instant::now();
        let deadline = begun + self.settings.statement_timeout;
        let mut patience = begun + PATIENCE;
        let mut state = self.state.lock();
        let failures = state.failures;
        loop {
            if let Some(open) = state.take_idle(prefers_session) {
                state.in_use += 1;
                drop(state);
                if open.is_usable() {
                    return Ok(open);
                }
                self.discard(open);
                state = self.state.lock();
                continue;
            }
            if state.failures != failures {
                // It was tried while this call waited.
                if let Some((kind, text)) = &state.failure {
                    return Err(PgError::Shared(*kind, text.clone()));
                }
            }
            let alone = state.in_use == 0;
            let now = Instant::now();
            if !state.opening && state.has_room(&self.source) && (alone || now >= patience) {
                state.opening = true;
                drop(state);
                // A connection that the application lends is its code: `opening` must not stay set.
                let opened = catch(|| self.open(!alone))
                    .unwrap_or_else(|_| Err(PgError::Other("it panicked".to_owned())));
                state = self.state.lock();
                state.opening = false;
                self.changed.notify_all();
                match opened {
                    Ok(Some(open)) => {
                        state.in_use += 1;
                        return Ok(open);
                    }
                    // Another one became idle meanwhile.
                    Ok(None) => continue,
                    Err(error) if alone => {
                        state.failures += 1;
                        state.failure = Some((error.kind(), error.to_string()));
                        return Err(error);
                    }
                    // There is none to be had: those that there are have to do.
                    Err(_) => patience = deadline + PATIENCE,
                }
            }
            // Opening has its own limit.
            if state.opening {
                self.changed.wait(&mut state);
                continue;
            }
            if now >= deadline {
                let limit = self.settings.statement_timeout;
                return Err(PgError::Busy(format!(
                    "no connection is free for {limit:?}"
                )));
            }
            let until = if patience > now {
                patience.min(deadline)
            } else {
                deadline
            };
            self.changed.wait_until(&mut state, until);
        }
    }

    /// Opens one. `extra`: there is another one, so `None` as soon as that is idle.
    fn open(&self, extra: bool) -> Result<Option<OpenConnection>, PgError> {
        let instead = async {
            if !extra {
                return std::future::pending().await;
            }
            loop {
                let returned = self.idle.notified();
                if !self.state.lock().idle.is_empty() {
                    return;
                }
                returned.await;
            }
        };
        let config = &self.settings.config;
        let first = match config.get_load_balance_hosts() {
            LoadBalanceHosts::Random => random() as usize % hosts::count(config),
            _ => self.first_host.load(Ordering::Relaxed),
        };
        let checks = self.tracks_sessions();
        let request = Request {
            first,
            check_session: checks,
        };
        let check_schema =
            matches!(self.source, Source::Own) || !self.checked.load(Ordering::Relaxed);
        let settings = &self.settings;
        let opened = OpenConnection::open(settings, &self.source, &request, check_schema, instead)?;
        let Some(open) = opened else {
            return Ok(None);
        };
        self.checked.store(true, Ordering::Relaxed);
        if checks && !open.own_session {
            self.report_pooling();
        }
        if let Some(server) = &open.server {
            let mut state = self.state.lock();
            if state.epoch.as_ref() != Some(&server.epoch) {
                // Connections to the earlier server are of no use any more.
                state.epoch = Some(server.epoch.clone());
                let old = std::mem::take(&mut state.idle);
                drop(state);
                drop(old);
            }
        }
        Ok(Some(open))
    }

    /// Takes back a connection on which nothing is under way. Keeps one.
    pub(super) fn give_back(&self, open: OpenConnection) {
        let mut state = self.state.lock();
        state.in_use -= 1;
        let of_the_server = match (&open.server, &state.epoch) {
            (Some(server), Some(epoch)) => server.epoch == *epoch,
            _ => true,
        };
        let surplus;
        if matches!(self.source, Source::Pool(_)) || !of_the_server {
            surplus = Some(open);
        } else if open.session.is_some() || state.idle.is_empty() {
            surplus = state.idle.pop_front();
            state.idle.push_back(open);
        } else {
            surplus = Some(open);
        }
        drop(state);
        self.changed.notify_all();
        self.idle.notify_waiters();
        if let Some(open) = surplus {
            self.forget_session(&open);
        }
    }

    /// Closes a connection that is broken.
    pub(super) fn discard(&self, open: OpenConnection) {
        self.state.lock().in_use -= 1;
        self.changed.notify_all();
        self.idle.notify_waiters();
        drop(open);
    }

    /// The call on this connection was given up, and is not finished. It counts as open.
    pub(super) fn abandon(&self, open: &OpenConnection) {
        let mut state = self.state.lock();
        state.in_use -= 1;
        state.abandoned += 1;
        drop(state);
        if open.server.is_some() {
            let next = (open.host + 1) % hosts::count(&self.settings.config);
            self.first_host.store(next, Ordering::Relaxed);
        }
    }

    /// An abandoned one is in use again, or is to be discarded.
    pub(super) fn reclaim(&self) {
        let mut state = self.state.lock();
        state.abandoned -= 1;
        state.in_use += 1;
    }

    /// Asks, on another connection, whether what was abandoned on this one is still under way.
    pub(super) fn ask_about(&self, old: &OpenConnection) -> Result<Verdict, PgError> {
        let unfinished =
            |what: &str| Verdict::Unfinished(format!("an earlier call is not finished{what}"));
        if matches!(self.source, Source::One(_)) {
            return Ok(unfinished(""));
        }
        let Some(_asking) = self.asking.try_lock_for(self.settings.connect_timeout) else {
            return Ok(unfinished(""));
        };
        let Some(open) = self.open(false)? else {
            return Ok(unfinished(""));
        };
        let of_new = match &open.server {
            Some(server) => server.clone(),
            None => open.run(with_timeout(
                self.settings.statement_timeout,
                Server::of(open.client()?),
            ))?,
        };
        let of_old = match &old.server {
            Some(server) => Some(server.epoch.clone()),
            None => self.state.lock().epoch.clone(),
        };
        if of_old.is_some_and(|epoch| epoch != of_new.epoch) {
            self.state.lock().epoch = Some(of_new.epoch);
            return Ok(Verdict::Replaced(Box::new(open)));
        }
        // Behind a proxy it is not known which of the server's processes runs it.
        let backend = match &old.server {
            Some(server) if old.own_session => server.backend,
            _ => return Ok(unfinished("")),
        };
        let asked = open.query(
            &self.settings,
            "SELECT wait_event FROM pg_stat_activity WHERE pid = $1 AND state = 'active'",
            &[(&backend, Type::INT4)],
        );
        match asked {
            Ok(rows) => match rows.first().map(|row| row.try_get::<_, Option<&str>>(0)) {
                None => Ok(Verdict::Replaced(Box::new(open))),
                Some(Ok(Some("SyncRep"))) => Ok(unfinished(
                    ": its commit waits for a synchronous standby of the server",
                )),
                Some(_) => Ok(unfinished("")),
            },
            // This role may not see it.
            Err(PgError::Postgres(_)) => Ok(unfinished("")),
            Err(error) => Err(error),
        }
    }

    fn forget_session(&self, open: &OpenConnection) {
        if let (Some(session), Ok(client)) = (&open.session, open.client()) {
            let forget = session.forget(&self.settings);
            let done = client.batch_execute(&forget);
            // If that fails, a sweep marks the workers offline too early. Those that live are refused
            // at their next heartbeat, and register again.
            drop(open.run(with_timeout(CLOSE_TIMEOUT, done)));
        }
    }

    /// Closes all idle connections, at the end of the store.
    pub(super) fn close(&self) {
        let idle = std::mem::take(&mut self.state.lock().idle);
        for open in &idle {
            self.forget_session(open);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state.lock().in_use == 0
    }
}

impl State {
    fn take_idle(&mut self, prefers_session: bool) -> Option<OpenConnection> {
        let has_session = |open: &OpenConnection| open.session.is_some() == prefers_session;
        let preferred = self.idle.iter().position(has_session);
        self.idle.remove(preferred.unwrap_or(0))
    }

    fn has_room(&self, source: &Source) -> bool {
        self.in_use + self.abandoned + self.idle.len() < source.most()
    }
}
