//! Credentials that change: they are asked for at each connect.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::PgError;
use crate::error::BoxError;

/// A user's name and password, as [`PostgresOptions::credentials`](super::PostgresOptions::credentials)
/// asks for them at each connect. Its `Debug` output does not contain the password.
///
/// ```
/// use worker_heartbeat::PostgresCredentials;
///
/// let credentials = PostgresCredentials::new("hunter2").user("v-app-8f3a");
/// assert!(!format!("{credentials:?}").contains("hunter2"));
/// ```
#[derive(Clone, Default)]
pub struct PostgresCredentials {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

impl PostgresCredentials {
    /// A password, for the user that the URL names.
    #[must_use]
    pub fn new(password: impl Into<String>) -> Self {
        Self {
            user: None,
            password: Some(password.into()),
        }
    }

    /// The user's name, where it changes together with the password.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }
}

impl From<String> for PostgresCredentials {
    fn from(password: String) -> Self {
        Self::new(password)
    }
}

impl From<&str> for PostgresCredentials {
    fn from(password: &str) -> Self {
        Self::new(password)
    }
}

impl fmt::Debug for PostgresCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresCredentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

type Ask = dyn Fn() -> Result<PostgresCredentials, BoxError> + Send + Sync;

/// What the application gave to be asked. A cheap clone.
#[derive(Clone)]
pub(super) struct Provider {
    ask: Arc<Ask>,
    /// Held while the application is asked.
    asking: Arc<Mutex<()>>,
}

impl Provider {
    pub(super) fn new<C, E>(ask: impl Fn() -> Result<C, E> + Send + Sync + 'static) -> Self
    where
        C: Into<PostgresCredentials>,
        E: Into<BoxError>,
    {
        Self {
            ask: Arc::new(move || ask().map(Into::into).map_err(Into::into)),
            asking: Arc::default(),
        }
    }

    /// Reads a file each time, without the line break at its end.
    pub(super) fn file(path: PathBuf) -> Self {
        Self::new(move || match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
        })
    }

    /// Asks on a thread of its own, so that the caller's time limit holds. One that does not return is
    /// not asked again meanwhile: no second thread waits.
    pub(super) async fn ask(&self) -> Result<PostgresCredentials, PgError> {
        let provider = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let Some(_asking) = provider.asking.try_lock() else {
                return Err("the previous request has not returned".into());
            };
            (provider.ask)()
        });
        let failed =
            |what: &dyn fmt::Display| PgError::Other(format!("there are no credentials: {what}"));
        match asked.await {
            Ok(asked) => asked.map_err(|error| failed(&error)),
            Err(_) => Err(failed(&"the provider panicked")),
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Provider")
    }
}
