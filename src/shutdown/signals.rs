//! The signals that can begin a shutdown.

use std::fmt;

/// A signal that can begin a shutdown.
///
/// ```
/// use worker_heartbeat::Signal;
///
/// assert!(Signal::DEFAULT.contains(&Signal::Hangup));
/// assert_eq!(Signal::Terminate.to_string(), "SIGTERM");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGINT`: Ctrl-C.
    Interrupt,
    /// `SIGTERM`: what `kill`, service managers and container runtimes send.
    Terminate,
    /// `SIGQUIT`: Ctrl-\.
    Quit,
    /// `SIGHUP`: the terminal is gone.
    Hangup,
    /// `SIGUSR1`.
    User1,
    /// `SIGUSR2`.
    User2,
}

impl Signal {
    /// The signals that are hooked by default.
    pub const DEFAULT: [Self; 4] = [Self::Interrupt, Self::Terminate, Self::Quit, Self::Hangup];

    /// The name, such as `SIGTERM`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Quit => "SIGQUIT",
            Self::Hangup => "SIGHUP",
            Self::User1 => "SIGUSR1",
            Self::User2 => "SIGUSR2",
        }
    }

    /// The number on this system; `None` if it has no such signal.
    #[cfg(unix)]
    pub(super) const fn number(self) -> Option<i32> {
        use signal_hook::consts as number;
        Some(match self {
            Self::Interrupt => number::SIGINT,
            Self::Terminate => number::SIGTERM,
            Self::Quit => number::SIGQUIT,
            Self::Hangup => number::SIGHUP,
            Self::User1 => number::SIGUSR1,
            Self::User2 => number::SIGUSR2,
        })
    }

    #[cfg(not(unix))]
    pub(super) const fn number(self) -> Option<i32> {
        use signal_hook::consts as number;
        match self {
            Self::Interrupt => Some(number::SIGINT),
            Self::Terminate => Some(number::SIGTERM),
            _ => None,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
