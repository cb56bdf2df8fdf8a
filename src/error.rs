//! The one error type of the crate.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt::Display;
use std::io;
use std::sync::Arc;

use crate::health::Exit;
use crate::sync::describe::{chain, describe_text, written};

/// Everything that this crate can refuse or fail at.
///
/// Each message names the field, the value that was given and what is allowed, so that it can be
/// shown to the person who wrote the configuration.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::{Error, WorkerHeartbeat};
///
/// let refused = WorkerHeartbeat::builder("mailer").stall_after(Duration::ZERO).start();
/// let error = refused.unwrap_err();
/// assert!(matches!(error, Error::Invalid { field: "stall_after", .. }));
/// assert_eq!(error.to_string(), "invalid stall_after: 0ns; allowed: 10ms to 365 days");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value given in code is not allowed.
    #[error("invalid {field}: {value}; allowed: {allowed}")]
    #[non_exhaustive]
    Invalid {
        /// Name of the builder method or argument.
        field: &'static str,
        /// The value that was given, as text.
        value: String,
        /// What would have been accepted.
        allowed: String,
    },
    /// A value found in the environment is not allowed.
    #[error("invalid environment variable {variable}={value}; allowed: {allowed}")]
    #[non_exhaustive]
    Environment {
        /// Name of the environment variable.
        variable: String,
        /// The value that was found, as text.
        value: String,
        /// What would have been accepted.
        allowed: String,
    },
    /// A living worker of the registry already has this id.
    #[error(
        "invalid id: {id:?} belongs to a living worker of this registry; allowed: an id that no living worker has"
    )]
    #[non_exhaustive]
    DuplicateId {
        /// The id that was asked for.
        id: String,
    },
    /// A thread could not be started.
    #[error("cannot start the thread {name:?}: {error}")]
    #[non_exhaustive]
    Thread {
        /// Name of the thread.
        name: String,
        /// What the operating system said.
        error: io::Error,
    },
    /// A signal could not be hooked.
    #[error("cannot hook {signal}: {error}")]
    #[non_exhaustive]
    Signal {
        /// Name of the signal, such as `SIGTERM`.
        signal: &'static str,
        /// What the operating system said.
        error: io::Error,
    },
    /// Signals were to be hooked that every thread of the process blocks, so that they would never
    /// arrive. The mask is usually inherited: from `env --block-signal`, or from a parent process
    /// that did not reset its own.
    #[error(
        "cannot hook {signals}: every thread of this process blocks it, so it would never arrive; unblock it in the process that starts this one or before any thread is started, or leave it out of signals()"
    )]
    #[non_exhaustive]
    SignalBlocked {
        /// Names of the signals, such as `SIGTERM, SIGINT`.
        signals: String,
    },
    /// Signals belong to another [`Shutdown`](crate::Shutdown) of this process.
    #[error("cannot hook {signals}: hooked by another Shutdown of this process")]
    #[non_exhaustive]
    AlreadyInstalled {
        /// Names of the signals, such as `SIGTERM, SIGINT`.
        signals: String,
    },
    /// Supervised work panicked.
    #[error("worker {id:?} panicked: {message}")]
    #[non_exhaustive]
    Panicked {
        /// The worker's id.
        id: String,
        /// The panic message.
        message: String,
        /// File, line and column.
        location: Option<String>,
    },
    /// Supervised work ended otherwise than by returning without an error; made by
    /// [`Exit::into_result`].
    #[error("supervised work did not complete: {exit}")]
    #[non_exhaustive]
    NotCompleted {
        /// How it ended.
        exit: Exit,
    },
    /// A supervisor was to start a worker during its [shutdown](crate::Supervisor#shutdown), or after
    /// it.
    #[error("the supervisor is shutting down, or has shut down: it starts no more workers")]
    ShuttingDown,
    /// A store cannot be reached, or failed.
    #[error("store: cannot {operation}: {message}")]
    #[non_exhaustive]
    Store {
        /// What was asked of it, such as `beat`.
        operation: &'static str,
        /// What kind of failure it is.
        kind: StoreErrorKind,
        /// What went wrong. Never a password.
        message: String,
        /// The error of the store's driver, of which the message repeats nothing. `None` if there is
        /// none, or if it may show passwords or values of rows.
        source: Option<BoxError>,
    },
    /// The registry is attached to a store already.
    #[error("this registry is attached to a store already; it can be attached to one at a time")]
    AlreadyAttached,
    /// A run was to be claimed, but the worker's registry is not attached to a store.
    #[error("worker {id:?} belongs to a registry that is not attached to a store")]
    #[non_exhaustive]
    NotAttached {
        /// The worker's id.
        id: String,
    },
    /// An address cannot be listened at.
    #[cfg(feature = "http")]
    #[error("cannot listen at {address}: {error}")]
    #[non_exhaustive]
    Listen {
        /// The address that was asked for.
        address: String,
        /// What the operating system said.
        error: io::Error,
    },
    /// A file cannot be written.
    #[cfg(feature = "beacon")]
    #[error("cannot write {path}: {error}")]
    #[non_exhaustive]
    File {
        /// The file.
        path: String,
        /// What the operating system said.
        error: io::Error,
    },
    /// The call stack of a worker's thread cannot be read.
    #[cfg(feature = "stacks")]
    #[error("no call stack of worker {id:?}: {reason}")]
    #[non_exhaustive]
    CallStack {
        /// The worker's id.
        id: String,
        /// Why: the thread is running, for example.
        reason: String,
    },
    /// A store refuses the worker: it is over, or another incarnation has taken its place.
    #[error(
        "worker {id:?} is refused by the store: it is over, or another incarnation has taken its place"
    )]
    #[non_exhaustive]
    Refused {
        /// The worker's id.
        id: String,
    },
}

impl Error {
    /// An error of a [`HeartbeatStore`](crate::HeartbeatStore): what was asked of it, and what went
    /// wrong. Its kind is [`StoreErrorKind::Other`].
    ///
    /// ```
    /// use worker_heartbeat::Error;
    ///
    /// let error = Error::store("beat", "connection refused");
    /// assert!(error.to_string().contains("cannot beat"));
    /// ```
    pub fn store(operation: &'static str, message: impl Display) -> Self {
        Self::store_kind(operation, StoreErrorKind::Other, message)
    }

    /// An error of a [`HeartbeatStore`](crate::HeartbeatStore), with its kind and what caused it. The
    /// message does not repeat what the cause says.
    ///
    /// ```
    /// use std::error::Error as _;
    /// use std::io;
    /// use worker_heartbeat::{Error, StoreErrorKind};
    ///
    /// let cause = io::Error::from(io::ErrorKind::ConnectionRefused);
    /// let kind = StoreErrorKind::Unreachable;
    /// let error = Error::store_failed("beat", kind, "the server is not there", cause);
    /// assert_eq!(error.to_string(), "store: cannot beat: the server is not there");
    /// assert_eq!(error.source().unwrap().to_string(), "connection refused");
    /// assert!(matches!(error, Error::Store { kind: StoreErrorKind::Unreachable, .. }));
    /// ```
    pub fn store_failed(
        operation: &'static str,
        kind: StoreErrorKind,
        message: impl Display,
        source: impl Into<BoxError>,
    ) -> Self {
        Self::Store {
            operation,
            kind,
            message: written(format_args!("{message}")),
            source: Some(source.into()),
        }
    }

    /// As [`store`](Self::store), of this kind.
    pub(crate) fn store_kind(
        operation: &'static str,
        kind: StoreErrorKind,
        message: impl Display,
    ) -> Self {
        Self::Store {
            operation,
            kind,
            message: written(format_args!("{message}")),
            source: None,
        }
    }

    /// A value is not allowed: of which field or argument, as text, and what is allowed instead. A
    /// [`HeartbeatStore`](crate::HeartbeatStore) refuses a worker by it.
    ///
    /// ```
    /// use worker_heartbeat::Error;
    ///
    /// let error = Error::invalid("group", "\"x\"", "a group of this fleet");
    /// assert_eq!(error.to_string(), "invalid group: \"x\"; allowed: a group of this fleet");
    /// ```
    pub fn invalid(
        field: &'static str,
        value: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            field,
            value: value.into(),
            allowed: allowed.into(),
        }
    }
}

/// What kind of failure of a store an [`Error::Store`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// There is no connection: the server is not there, or the file cannot be opened.
    Unreachable,
    /// There was no answer in time.
    Timeout,
    /// Others keep it busy; a later attempt may succeed.
    Busy,
    /// Access is denied: a password or a token is wrong, or a right is missing.
    Denied,
    /// It is not a store of this library, is damaged, or is of another version.
    Incompatible,
    /// Anything else.
    Other,
}

/// Any error that a worker may return; what [`Supervisor::spawn`](crate::Supervisor::spawn) takes.
///
/// ```
/// use worker_heartbeat::{BoxError, WorkerHeartbeat};
///
/// fn work(hb: &WorkerHeartbeat) -> Result<(), BoxError> {
///     hb.beat();
///     let price: f64 = "n/a".parse()?;
///     println!("{price:.2}");
///     Ok(())
/// }
///
/// let hb = WorkerHeartbeat::builder("importer").start()?;
/// let result = hb.run(|| work(&hb))?;
/// assert_eq!(result.unwrap_err().to_string(), "invalid float literal");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Any value that is returned as an error, with its causes if they are known.
pub(crate) fn describe<E: Display + 'static>(value: &E) -> String {
    match known_error(value) {
        Some(error) => chain(error),
        None => describe_text(value),
    }
}

/// The value as an error, if its type is known to be one: a value that is only known as [`Display`]
/// can't be asked for its source.
pub(crate) fn known_error(value: &dyn Any) -> Option<&(dyn StdError + 'static)> {
    None.or_else(|| value.downcast_ref().map(|error: &BoxError| &**error as _))
        .or_else(|| {
            let error = value.downcast_ref::<Box<dyn StdError + Send>>();
            error.map(|error| &**error as _)
        })
        .or_else(|| {
            let error = value.downcast_ref::<Box<dyn StdError>>();
            error.map(|error| &**error as _)
        })
        .or_else(|| {
            let error = value.downcast_ref::<Arc<dyn StdError + Send + Sync>>();
            error.map(|error| &**error as _)
        })
        .or_else(|| value.downcast_ref::<io::Error>().map(|error| error as _))
        .or_else(|| value.downcast_ref::<Error>().map(|error| error as _))
}
