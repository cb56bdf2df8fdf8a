//! What can go wrong with a server, and what to do then.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio_postgres::error::SqlState;

/// What went wrong.
#[derive(Debug)]
pub(super) enum Trouble {
    Postgres(tokio_postgres::Error),
    Late(Duration),
    Said(String),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl Trouble {
    fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// The transaction was undone because of others, and may be tried again.
    pub(super) fn is_conflict(&self) -> bool {
        let codes = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ];
        self.code().is_some_and(|code| codes.contains(code))
    }

    /// The connection is of no use any more.
    pub(super) fn breaks(&self) -> bool {
        match (self, self.code()) {
            (Self::Postgres(_), Some(code)) => {
                // The server ends, is ending, or is not the one to write to any more.
                let code = code.code();
                code.starts_with("57P") || code.starts_with("08") || code == "25006"
            }
            (Self::Postgres(_) | Self::Late(_), None) => true,
            _ => false,
        }
    }

    /// It had gone already, or went before there was an answer.
    pub(super) fn is_closed(&self) -> bool {
        self.breaks() && !matches!(self, Self::Late(_))
    }

    /// The server says itself that it will soon be otherwise.
    pub(super) fn passes(&self) -> bool {
        let codes = [SqlState::TOO_MANY_CONNECTIONS, SqlState::CANNOT_CONNECT_NOW];
        self.code().is_some_and(|code| codes.contains(code))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(error) => {
                // Without its details: they hold what is in the rows.
                if let Some(said) = error.as_db_error() {
                    let code = said.code().code();
                    return write!(f, "{}: {} ({code})", said.severity(), said.message());
                }
                write!(f, "{error}")?;
                let mut source = std::error::Error::source(error);
                while let Some(cause) = source {
                    write!(f, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
            Self::Late(limit) => write!(f, "no answer within {limit:?}"),
            Self::Said(text) => f.write_str(text),
        }
    }
}

/// Gives up what takes longer.
pub(super) async fn within<T, E>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Trouble>
where
    Trouble: From<E>,
{
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome.map_err(Trouble::from),
        Err(_) => Err(Trouble::Late(limit)),
    }
}
