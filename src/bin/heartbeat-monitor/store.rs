//! Opens the store that the command line or the environment names.

use std::env;
use std::sync::Arc;

use worker_heartbeat::{BoxError, Error, HeartbeatStore, PostgresOptions, SqliteStore};

use crate::args::StoreArgs;

const POSTGRES_URL: &str = "POSTGRES_URL";

impl StoreArgs {
    /// Opens the store, and creates it on first use if it doesn't exist. An unreachable database is
    /// an error only on use.
    pub fn open_or_create(&self) -> Result<Arc<dyn HeartbeatStore>, BoxError> {
        self.check_file()?;
        Ok(match &self.sqlite {
            Some(file) => Arc::new(SqliteStore::open_lazy(file)),
            None => Arc::new(self.postgres().connect_lazy(&self.url()?)?),
        })
    }

    /// Opens an existing store.
    pub fn open(&self) -> Result<Arc<dyn HeartbeatStore>, BoxError> {
        self.check_file()?;
        match &self.sqlite {
            Some(file) if !file.exists() => {
                Err(format!("there is no file {}; `migrate` creates it", file.display()).into())
            }
            Some(_) => self.open_or_create(),
            None => Ok(Arc::new(
                self.postgres()
                    .migrations(false)
                    .connect_lazy(&self.url()?)?,
            )),
        }
    }

    /// Opens an existing store to read it. A SQLite file need not be writable.
    pub fn open_to_read(&self) -> Result<Arc<dyn HeartbeatStore>, BoxError> {
        match &self.sqlite {
            Some(file) if file.exists() => {
                self.check_file()?;
                Ok(Arc::new(SqliteStore::open_read_only(file)?))
            }
            _ => self.open(),
        }
    }

    /// For people; it shows no secret.
    pub fn name(&self) -> String {
        match &self.sqlite {
            Some(file) => file.display().to_string(),
            None => format!("PostgreSQL, schema {}", self.schema),
        }
    }

    /// Refuses SQLite names that are not files.
    fn check_file(&self) -> Result<(), UsageError> {
        let file = self.sqlite.as_ref().and_then(|file| file.to_str());
        match file {
            Some(file) if is_url(file) => Err(UsageError(
                "--sqlite takes a file, not a URL (not shown, because it may contain a password)"
                    .into(),
            )),
            Some("" | ":memory:") => Err(UsageError(
                "--sqlite takes a file: other processes can't share a store in memory".into(),
            )),
            _ => Ok(()),
        }
    }

    pub fn postgres(&self) -> PostgresOptions {
        let options = PostgresOptions::new().schema(self.schema.as_str());
        match &self.sslrootcert {
            Some(file) => options.root_certificate(file),
            None => options,
        }
    }

    fn url(&self) -> Result<String, BoxError> {
        match (&self.postgres, env::var(POSTGRES_URL)) {
            (Some(url), _) => Ok(url.clone()),
            (None, Ok(url)) if !url.is_empty() => Ok(url),
            (None, Err(env::VarError::NotUnicode(_))) => {
                Err(UsageError(format!("{POSTGRES_URL} is not valid Unicode")).into())
            }
            _ => Err(UsageError(format!(
                "missing store: use --sqlite FILE or --postgres URL, or set {POSTGRES_URL}"
            ))
            .into()),
        }
    }

    /// Creates or updates the tables.
    pub fn migrate(&self) -> Result<(), BoxError> {
        self.check_file()?;
        let migrated: Result<(), Error> = match &self.sqlite {
            Some(file) => SqliteStore::open(file).map(drop),
            None => self.postgres().connect(&self.url()?).map(drop),
        };
        Ok(migrated?)
    }
}

/// Whether this is a connection string, which may contain a password.
pub fn is_url(text: &str) -> bool {
    text.contains("://") || text.contains("password=")
}

/// Invalid arguments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);
