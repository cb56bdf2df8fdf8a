//! The one error type of the crate.

use std::io;

/// Everything that this crate can refuse or fail at.
///
/// Each message names the field, the value that was given and what is allowed, so that it can be
/// shown to the person who wrote the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value given in code is not allowed.
    #[error("invalid {field}: {value}; allowed: {allowed}")]
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
    DuplicateId {
        /// The id that was asked for.
        id: String,
    },
    /// A thread could not be started.
    #[error("cannot start the thread {name:?}: {source}")]
    Thread {
        /// Name of the thread.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A signal could not be hooked.
    #[error("cannot hook {signal}: {source}")]
    Signal {
        /// Name of the signal, such as `SIGTERM`.
        signal: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// [`Shutdown`](crate::Shutdown) is already installed in this process.
    #[error("shutdown is already installed in this process; it can be installed once")]
    AlreadyInstalled,
    /// A supervised future panicked.
    #[error("worker {id:?} panicked: {message}")]
    Panicked {
        /// The worker's id.
        id: String,
        /// The panic message.
        message: String,
    },
}

impl Error {
    pub(crate) fn invalid(
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

/// Any error that a worker may return; what [`Supervisor::spawn`](crate::Supervisor::spawn) takes.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
