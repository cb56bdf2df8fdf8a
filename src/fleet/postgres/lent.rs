//! Connections that the application lends.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_postgres::Client;

use super::error::{PgError, with_timeout};
use super::{PostgresOptions, PostgresStore};
use crate::error::{BoxError, Error};

/// A connection that an application's pool lends for one call: see
/// [`PostgresOptions::with_pool`](super::PostgresOptions::with_pool). It goes back to the pool when it
/// is dropped.
pub trait LentClient: Send {
    /// The connection. No other call uses it meanwhile.
    fn client(&self) -> &Client;
}

impl LentClient for Client {
    fn client(&self) -> &Client {
        self
    }
}

impl<T: LentClient + ?Sized> LentClient for Box<T> {
    fn client(&self) -> &Client {
        (**self).client()
    }
}

impl PostgresOptions {
    /// A store on one connection that the application opened and lends for good; it connects nothing
    /// itself. Once this connection is closed, all calls fail.
    ///
    /// The application drives the connection, on its own runtime. A call of the store blocks its
    /// thread meanwhile, so this must not be the only thread of that runtime. All calls take turns.
    /// Nothing of a session is set, so [`session_liveness`](Self::session_liveness) is off; the limits
    /// to connect, the credentials and the certificates have no effect.
    ///
    /// ```no_run
    /// use worker_heartbeat::{BoxError, PostgresOptions};
    ///
    /// # async fn example() -> Result<(), BoxError> {
    /// let (client, connection) =
    ///     tokio_postgres::connect("postgres://app@localhost/app", tokio_postgres::NoTls).await?;
    /// tokio::spawn(connection);
    /// let store = PostgresOptions::new().with_client(client)?;
    /// # let _ = store;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if an option is not allowed.
    pub fn with_client(self, client: Client) -> Result<PostgresStore, Error> {
        Ok(PostgresStore::new(
            self.lent_settings()?,
            Source::one(client),
        ))
    }

    /// A store on the connections of the application's pool, such as deadpool or bb8. `lend` takes one
    /// out of the pool; the store gives it back after each call. It uses at most four at a time, and mostly one.
    ///
    /// `lend` runs as a task of this runtime, within [`connect_timeout`](Self::connect_timeout). A call
    /// of the store blocks its thread, so that must not be the only thread of the runtime. Nothing of
    /// a session is set, so [`session_liveness`](Self::session_liveness) is off.
    ///
    /// ```no_run
    /// use worker_heartbeat::{Error, LentClient, PostgresOptions, PostgresStore};
    ///
    /// # mod deadpool_postgres {
    /// #     use std::sync::Arc;
    /// #     #[derive(Clone)] pub struct Pool; pub struct Object(Arc<tokio_postgres::Client>);
    /// #     impl Pool { pub async fn get(&self) -> Result<Object, std::io::Error> { unimplemented!() } }
    /// #     impl std::ops::Deref for Object {
    /// #         type Target = tokio_postgres::Client;
    /// #         fn deref(&self) -> &tokio_postgres::Client { &self.0 }
    /// #     }
    /// # }
    /// struct Lent(deadpool_postgres::Object);
    ///
    /// impl LentClient for Lent {
    ///     fn client(&self) -> &tokio_postgres::Client {
    ///         &self.0
    ///     }
    /// }
    ///
    /// fn store(pool: deadpool_postgres::Pool) -> Result<PostgresStore, Error> {
    ///     let runtime = tokio::runtime::Handle::current();
    ///     PostgresOptions::new().with_pool(runtime, move || {
    ///         let pool = pool.clone();
    ///         async move { pool.get().await.map(Lent) }
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if an option is not allowed.
    pub fn with_pool<F, P, L, E>(self, runtime: Handle, lend: F) -> Result<PostgresStore, Error>
    where
        F: Fn() -> P + Send + Sync + 'static,
        P: Future<Output = Result<L, E>> + Send + 'static,
        L: LentClient + 'static,
        E: Into<BoxError>,
    {
        Ok(PostgresStore::new(
            self.lent_settings()?,
            Source::pool(runtime, lend),
        ))
    }
}

pub(super) type Lent = Box<dyn LentClient>;

type Answer = oneshot::Sender<Result<Lent, BoxError>>;

/// Where a store's connections come from.
pub(super) enum Source {
    /// The store opens them.
    Own,
    /// One that the application opened; `None` while it is in use, and once it is closed.
    One(Mutex<Option<Lent>>),
    /// A pool of the application's.
    Pool(Box<dyn Fn(Answer) + Send + Sync>),
}

impl Source {
    pub(super) fn one(client: Client) -> Self {
        Self::One(Mutex::new(Some(Box::new(client))))
    }

    pub(super) fn pool<F, P, L, E>(runtime: Handle, lend: F) -> Self
    where
        F: Fn() -> P + Send + Sync + 'static,
        P: Future<Output = Result<L, E>> + Send + 'static,
        L: LentClient + 'static,
        E: Into<BoxError>,
    {
        let lend = Arc::new(lend);
        Self::Pool(Box::new(move |answer| {
            let lend = Arc::clone(&lend);
            // If no caller waits for it any more, it goes back at once.
            drop(runtime.spawn(async move {
                let lent = lend().await.map(|lent| Box::new(lent) as Lent);
                drop(answer.send(lent.map_err(Into::into)));
            }));
        }))
    }

    /// How many connections a store may have at the same time.
    pub(super) const fn most(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Own | Self::Pool(_) => super::pool::MOST,
        }
    }

    /// Takes a connection of the application's.
    pub(super) async fn borrow(&self, limit: Duration) -> Result<Lent, PgError> {
        let closed = || PgError::Unreachable("the lent connection is closed".to_owned());
        match self {
            Self::Own => Err(closed()),
            Self::One(lent) => lent.lock().take().ok_or_else(closed),
            Self::Pool(lend) => {
                let (answer, answered) = oneshot::channel();
                lend(answer);
                let lent = async {
                    let lent = answered.await;
                    let ended = |_| PgError::Unreachable("the pool answers no more".to_owned());
                    lent.map_err(ended)?.map_err(|error| {
                        PgError::Unreachable(format!("the pool lends no connection: {error}"))
                    })
                };
                with_timeout(limit, lent).await
            }
        }
    }
}
