//! The store that the command line, or the environment, names.

use std::env;
use std::sync::Arc;

use worker_heartbeat::{BoxError, Error, HeartbeatStore, PostgresOptions, SqliteStore};

use crate::args::Store;

const POSTGRES_URL: &str = "POSTGRES_URL";

impl Store {
    /// Opens it, and makes it if it is not there. A database that is down is an error only when it is
    /// asked something.
    ///
    /// # Errors
    /// If none is named, or what is named makes no sense.
    pub fn make(&self) -> Result<Arc<dyn HeartbeatStore>, BoxError> {
        self.refuse()?;
        Ok(match &self.sqlite {
            Some(file) => Arc::new(SqliteStore::open_later(file)),
            None => Arc::new(self.postgres().open(&self.url()?)?),
        })
    }

    /// Opens one that is there.
    ///
    /// # Errors
    /// As [`make`](Self::make), and if there is no such file.
    pub fn open(&self) -> Result<Arc<dyn HeartbeatStore>, BoxError> {
        self.refuse()?;
        match &self.sqlite {
            Some(file) if !file.exists() => {
                Err(format!("there is no file {}; `migrate` makes one", file.display()).into())
            }
            Some(_) => self.make(),
            None => Ok(Arc::new(
                self.postgres().migrations(false).open(&self.url()?)?,
            )),
        }
    }

    /// Refuses what is no file that others share.
    fn refuse(&self) -> Result<(), Usage> {
        let file = self.sqlite.as_ref().and_then(|file| file.to_str());
        match file {
            Some(file) if is_url(file) => Err(Usage(
                "--sqlite takes a file, not a URL (it is not shown: it may hold a password)".into(),
            )),
            Some("" | ":memory:") => Err(Usage(
                "--sqlite takes a file: a store in memory is nobody else's".into(),
            )),
            _ => Ok(()),
        }
    }

    /// How to connect to PostgreSQL.
    pub fn postgres(&self) -> PostgresOptions {
        PostgresOptions::new().schema(self.schema.as_str())
    }

    fn url(&self) -> Result<String, BoxError> {
        match (&self.postgres, env::var(POSTGRES_URL)) {
            (Some(url), _) => Ok(url.clone()),
            (None, Ok(url)) if !url.is_empty() => Ok(url),
            (None, Err(env::VarError::NotUnicode(_))) => {
                Err(Usage(format!("{POSTGRES_URL} is not Unicode text")).into())
            }
            _ => Err(Usage(format!(
                "no store is named: give --sqlite FILE, --postgres URL, or set {POSTGRES_URL}"
            ))
            .into()),
        }
    }

    /// Sets up the tables.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn migrate(&self) -> Result<(), BoxError> {
        self.refuse()?;
        let ready: Result<(), Error> = match &self.sqlite {
            Some(file) => SqliteStore::open(file).map(drop),
            None => self.postgres().connect(&self.url()?).map(drop),
        };
        Ok(ready?)
    }
}

/// Whether this is a connection string, which may hold a password.
pub fn is_url(text: &str) -> bool {
    text.contains("://") || text.contains("password=")
}

/// What cannot be done as the command line says; exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
