//! Notifies systemd of how the workers are.

#[cfg_attr(not(unix), path = "elsewhere.rs")]
mod notifier;

use std::time::Duration;

use self::notifier::Notifier;
use crate::error::Error;
use crate::registry::Registry;

/// Tells systemd how the workers of a registry are, until it is dropped (sd_notify(3)). For a unit
/// with `Type=notify` and, best, `WatchdogSec=`:
///
/// * `READY=1` when every worker has started and is well, and those that are
///   [expected](Registry::expect_workers) are there. Register the workers before, or expect them:
///   without any, it is ready at once.
/// * `WATCHDOG=1` twice in each `WATCHDOG_USEC`, but only while every worker is well, as `/livez`
///   has it: none dead, stale, stalled or never started, and the pacemaker looks. Otherwise systemd
///   does to the service what its `WatchdogSec=` says. `WATCHDOG_PID` is respected.
/// * `STATUS=…`, the [summary](Registry::summary) on one line, for `systemctl status`.
/// * `STOPPING=1` when a shutdown begins, when the process ends by itself, or when this is dropped.
///
/// Without `NOTIFY_SOCKET` in the environment there is no service manager to notify, and no thread is
/// started. The same holds on platforms other than Unix, which have no systemd: there, this type does
/// nothing.
///
/// ```
/// use worker_heartbeat::{Registry, SystemdNotifier};
///
/// # let registry = Registry::new();
/// let _systemd = SystemdNotifier::start(&registry)?; // Registry::global() in an application
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "systemd is told that the service stops when this is dropped"]
pub struct SystemdNotifier(Option<Notifier>);

impl SystemdNotifier {
    /// Begins to tell, on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Thread`] if the thread cannot be started.
    pub fn start(registry: &Registry) -> Result<Self, Error> {
        Notifier::start(registry).map(Self)
    }

    /// Whether there is a service manager that wants to be told.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// The time without a sign after which systemd gives the service up; `None` if it does not
    /// watch.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        match &self.0 {
            Some(notifier) => notifier.watchdog(),
            None => None,
        }
    }
}
