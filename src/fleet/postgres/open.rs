//! One open connection, driven by the calling thread: no thread is needed, as in the `postgres`
//! crate. That crate has no time limit for a server that accepts a connection and then sends nothing.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, Row};

use super::error::{PgError, with_timeout};
use super::hosts::{self, Request, Server};
use super::lent::{Lent, Source};
use super::migrate;
use super::session::Session;
use super::settings::Settings;
use super::transaction::{self, Params, Phase};
use crate::sync::catch::catch;

/// See the module.
pub(super) struct OpenConnection {
    client: Whose,
    /// Also drives the connection. `None` only while this is dropped: the runtime is shut down in the
    /// background, so that the drop does not block.
    runtime: Option<Runtime>,
    /// Of a pool of the application's, only the first one is asked.
    pub server: Option<Server>,
    pub host: usize,
    /// It has a session of its own at the server, which ends with it.
    pub own_session: bool,
    pub session: Option<Session>,
    /// A call was made on it.
    pub used: bool,
    phase: Cell<Phase>,
}

enum Whose {
    Own(Client),
    Lent(Lent),
}

/// Whether an abandoned call is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Done,
    Closed,
    NotYet,
}

impl OpenConnection {
    /// Opens one. `check_schema`: the version of the schema is checked, and brought up to date.
    pub(super) fn open(
        settings: &Settings,
        source: &Source,
        request: &Request,
        check_schema: bool,
        instead: impl Future<Output = ()>,
    ) -> Result<Option<Self>, PgError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| PgError::Other(format!("failed to start a runtime: {error}")))?;
        let opening = async {
            tokio::select! {
                biased;
                opened = Self::start(settings, source, request) => opened.map(Some),
                () = instead => Ok(None),
            }
        };
        let opened = runtime.block_on(opening);
        let parts = match opened {
            Ok(Some(parts)) => parts,
            other => {
                // A host name may still be resolving.
                runtime.shutdown_background();
                return other.map(|_| None);
            }
        };
        let (client, server, host, own_session) = parts;
        let mut open = Self {
            client,
            runtime: Some(runtime),
            server,
            host,
            own_session,
            session: None,
            used: false,
            phase: Cell::new(Phase::Sent),
        };
        if check_schema {
            if open.server.is_none() {
                let asked = with_timeout(settings.statement_timeout, Server::of(open.client()?));
                open.server = Some(open.run(asked)?);
            }
            open.run(migrate::check(open.client()?, settings))?;
        }
        Ok(Some(open))
    }

    async fn start(
        settings: &Settings,
        source: &Source,
        request: &Request,
    ) -> Result<(Whose, Option<Server>, usize, bool), PgError> {
        if matches!(source, Source::Own) {
            let limit = settings.connect_timeout;
            let opened = with_timeout(limit, hosts::connect(settings, request)).await?;
            let client = Whose::Own(opened.client);
            return Ok((client, Some(opened.server), opened.host, opened.own_session));
        }
        let lent = source.borrow(settings.connect_timeout).await?;
        Ok((Whose::Lent(lent), None, 0, false))
    }

    /// A connection that the application lends is its code: if that panics, this connection is broken.
    pub(super) fn client(&self) -> Result<&Client, PgError> {
        match &self.client {
            Whose::Own(client) => Ok(client),
            Whose::Lent(lent) => catch(|| lent.client())
                .map_err(|_| PgError::Unreachable("the lent connection panicked".to_owned())),
        }
    }

    /// A proxy may be between this connection and the server. What is lent is not closed here.
    pub(super) const fn may_be_held_back(&self) -> bool {
        !self.own_session && matches!(self.client, Whose::Own(_))
    }

    pub(super) fn run<T>(
        &self,
        work: impl Future<Output = Result<T, PgError>>,
    ) -> Result<T, PgError> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(work),
            None => Err(PgError::Other("the connection is closed".to_owned())),
        }
    }

    /// Runs one statement in a transaction of its own.
    pub(super) fn query(
        &self,
        settings: &Settings,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, PgError> {
        let limit = settings.statement_timeout;
        let running = transaction::run(self.client()?, &settings.begin, sql, params, &self.phase);
        let done = self.run(with_timeout(limit, running));
        done.map_err(|error| match error {
            PgError::Timeout(limit) if self.phase.get() == Phase::Committing => {
                PgError::Commit(limit)
            }
            error => error,
        })
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Asks the server to end the statement, and waits for that.
    ///
    /// A commit that waits for a synchronous standby is never cancelled: it would be done here alone,
    /// and others could read and confirm what a failover loses.
    pub(super) fn cancel(&self, settings: &Settings, limit: Duration) -> Settled {
        if self.phase.get() == Phase::Committing {
            return Settled::NotYet;
        }
        let Ok(client) = self.client() else {
            return Settled::Closed;
        };
        let token = client.cancel_token();
        let asked = async {
            match &settings.tls {
                Some(tls) => token.cancel_query(tls.clone()).await,
                None => token.cancel_query(tokio_postgres::NoTls).await,
            }
        };
        // The server does not say whether it cancelled anything. What counts is the end.
        drop(self.run(with_timeout(limit, asked)));
        self.settle(limit)
    }

    /// Waits until the server has answered everything that was sent.
    pub(super) fn settle(&self, limit: Duration) -> Settled {
        let Ok(client) = self.client() else {
            return Settled::Closed;
        };
        let answered = with_timeout(limit, client.check_connection());
        match self.run(answered) {
            Ok(()) => Settled::Done,
            Err(PgError::Timeout(_)) => Settled::NotYet,
            Err(_) => Settled::Closed,
        }
    }

    /// Whether it is not known to be broken. Reads what the server sent since the last call, such as
    /// the notice that it is shutting down.
    pub(super) fn is_usable(&self) -> bool {
        let Some(runtime) = &self.runtime else {
            return false;
        };
        runtime.block_on(async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        });
        self.client().is_ok_and(|client| !client.is_closed())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
