//! Errors of a server, and what they mean for the connection and the statement.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::error::{Error, StoreErrorKind};

#[derive(Debug)]
pub(super) enum PgError {
    Postgres(tokio_postgres::Error),
    Timeout(Duration),
    /// There was no answer to a commit: it may have been done.
    Commit(Duration),
    /// No connection is free, or an earlier call is not finished.
    Busy(String),
    Unreachable(String),
    /// The server is not of the wanted kind.
    Unwanted(&'static str),
    /// Of each host.
    Hosts(Vec<(String, PgError)>),
    /// The failure of another caller that tried the same meanwhile.
    Shared(StoreErrorKind, String),
    Other(String),
}

/// A statement that failed, and whether that is the fault of one of its items.
#[derive(Debug)]
pub(super) struct Failed {
    pub cause: Cause,
    pub error: Error,
}

/// See [`Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Another transaction locks a row, or a table, for longer than the statement waits.
    Locked,
    /// The encoding of the database lacks a character of a text.
    Encoding,
    /// The database cannot keep a value.
    Data,
    /// No fault of an item.
    Other,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let cause = Cause::Other;
        Self { cause, error }
    }
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl PgError {
    pub(super) fn hosts(mut errors: Vec<(String, Self)>) -> Self {
        match errors.pop() {
            None => Self::Unreachable("there is no host".to_owned()),
            Some((_, only)) if errors.is_empty() => only,
            Some(last) => {
                errors.push(last);
                Self::Hosts(errors)
            }
        }
    }

    /// The server, or a proxy, does not accept a parameter of the request to connect.
    pub(super) fn is_refused_parameter(error: &tokio_postgres::Error) -> bool {
        let class = error.code().and_then(|code| code.code().get(..2));
        matches!(class, Some("08" | "0A" | "22" | "42" | "XX"))
    }

    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// The transaction was rolled back because of concurrent ones, and may be tried again.
    pub(super) fn is_conflict(&self) -> bool {
        let codes = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        self.code().is_some_and(|code| codes.contains(code))
    }

    /// A lock could not be had within `lock_timeout`.
    pub(super) fn is_lock_timeout(&self) -> bool {
        self.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    pub(super) fn cause(&self) -> Cause {
        match self.code().map(SqlState::code) {
            Some("55P03") => Cause::Locked,
            Some("22021" | "22P05") => Cause::Encoding,
            Some(code) if code.starts_with("22") || code.starts_with("23") => Cause::Data,
            _ => Cause::Other,
        }
    }

    /// The kind of an [`Error::Store`](crate::Error::Store) that is made of it.
    pub(super) fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Postgres(_) => {}
            Self::Timeout(_) | Self::Commit(_) | Self::Busy(_) => return StoreErrorKind::Timeout,
            Self::Unreachable(_) | Self::Unwanted(_) => return StoreErrorKind::Unreachable,
            Self::Hosts(errors) => {
                let last = errors.last().map(|(_, error)| error.kind());
                return last.unwrap_or(StoreErrorKind::Unreachable);
            }
            Self::Shared(kind, _) => return *kind,
            Self::Other(_) => return StoreErrorKind::Other,
        }
        // By the class of its code.
        match self.code().map(SqlState::code) {
            None => StoreErrorKind::Unreachable,
            Some("40001" | "40P01") => StoreErrorKind::Busy,
            Some("42501") => StoreErrorKind::Denied,
            // Cancelled, as by statement_timeout.
            Some("57014") => StoreErrorKind::Timeout,
            Some(code) => match code.get(..2) {
                Some("08") => StoreErrorKind::Unreachable,
                Some("28") => StoreErrorKind::Denied,
                Some("53" | "55") => StoreErrorKind::Busy,
                Some("57") => StoreErrorKind::Unreachable,
                Some("3F" | "42") => StoreErrorKind::Incompatible,
                _ => StoreErrorKind::Other,
            },
        }
    }

    /// The connection cannot be used any more.
    pub(super) fn breaks_connection(&self) -> bool {
        match (self, self.code()) {
            (Self::Postgres(_), Some(code)) => {
                // The server is shutting down, the connection failed, or the server is read-only
                // because another one was promoted.
                let code = code.code();
                code.starts_with("57P") || code.starts_with("08") || code == "25006"
            }
            (Self::Postgres(_), None) => true,
            _ => false,
        }
    }

    /// There was no answer in time.
    pub(super) const fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_) | Self::Commit(_))
    }

    /// The server is starting, has no free connection, or is to be promoted: a later attempt may
    /// succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unwanted(_) => return true,
            Self::Hosts(errors) => return errors.iter().any(|(_, error)| error.is_transient()),
            _ => {}
        }
        let codes = [SqlState::TOO_MANY_CONNECTIONS, SqlState::CANNOT_CONNECT_NOW];
        self.code().is_some_and(|code| codes.contains(code))
    }
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(error) => {
                // Without the details, which contain values of rows.
                if let Some(error) = error.as_db_error() {
                    let code = error.code().code();
                    return write!(f, "{}: {} ({code})", error.severity(), error.message());
                }
                write!(f, "{error}")?;
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    write!(f, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
            Self::Timeout(limit) => write!(f, "no answer within {limit:?}"),
            Self::Commit(limit) => write!(
                f,
                "no answer to the commit within {limit:?}: it may wait for a standby"
            ),
            Self::Unwanted(missing) => f.write_str(missing),
            Self::Hosts(errors) => {
                for (n, (host, error)) in errors.iter().enumerate() {
                    let separator = if n == 0 { "" } else { "; " };
                    write!(f, "{separator}{host}: {error}")?;
                }
                Ok(())
            }
            Self::Busy(text)
            | Self::Unreachable(text)
            | Self::Shared(_, text)
            | Self::Other(text) => f.write_str(text),
        }
    }
}

pub(super) async fn with_timeout<T, E>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, PgError>
where
    PgError: From<E>,
{
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome.map_err(PgError::from),
        Err(_) => Err(PgError::Timeout(limit)),
    }
}
