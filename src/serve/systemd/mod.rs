//! Notifies systemd of the health of the workers.

#[cfg_attr(not(unix), path = "unsupported.rs")]
mod notifier;

use std::time::Duration;

use self::notifier::Notifier;
use crate::error::Error;
use crate::health::Policy;
use crate::registry::Registry;
use crate::serve::policies::Policies;

/// Notifies systemd of the health of a registry's workers (sd_notify(3)) until it is dropped. For
/// units with `Type=notify` and, preferably, `WatchdogSec=`:
///
/// * `READY=1` once every worker has started and is healthy, and all
///   [expected](Registry::expect_workers) workers exist. Register or expect the workers first: a
///   registry without workers is ready immediately.
/// * `WATCHDOG=1` twice per `WATCHDOG_USEC`, but only under the condition of `/livez`
///   ([`Policy::liveness`]): no worker is
///   dead, stale, stalled or never started, and the pacemaker ticks. Otherwise systemd's watchdog
///   restarts the service as configured. `WATCHDOG_PID` is respected.
/// * `STATUS=…`, the [summary](Registry::summary) in one line, for `systemctl status`; once a
///   [`Trigger`](crate::Trigger) has begun a shutdown, its cause comes first.
/// * `STOPPING=1` when a shutdown begins, when the process ends by itself, or when this is dropped.
///
/// Without `NOTIFY_SOCKET` in the environment, and on platforms other than Unix, there is no service
/// manager to notify. No thread is started then, and this type does nothing.
///
/// ```
/// use worker_heartbeat::{Registry, SystemdNotifier};
///
/// # let registry = Registry::new();
/// let _systemd = SystemdNotifier::start(&registry)?; // Registry::global() in an application
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping this notifies systemd that the service is stopping"]
pub struct SystemdNotifier(Option<Notifier>);

impl SystemdNotifier {
    /// Starts a background thread that sends the notifications.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, SystemdNotifier};
    ///
    /// let registry = Registry::global();
    /// registry.expect_workers("mailer", 1); // the service is ready when it has come
    /// let systemd = SystemdNotifier::start(registry)?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Thread`] if the thread can't be started.
    pub fn start(registry: &Registry) -> Result<Self, Error> {
        Self::start_with(registry, [])
    }

    /// As [`start`](Self::start), with these policies: one from [`Policy::startup`] for `READY=1`, one from
    /// [`Policy::liveness`] for `WATCHDOG=1`. The one that is not given makes the exceptions of the last that
    /// is.
    ///
    /// ```
    /// use worker_heartbeat::{Policy, Registry, SystemdNotifier};
    ///
    /// let policy = Policy::liveness().ignore_type("batch");
    /// let systemd = SystemdNotifier::start_with(Registry::global(), [policy])?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start); [`Error::Invalid`] if a policy contradicts itself.
    pub fn start_with(
        registry: &Registry,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Result<Self, Error> {
        let mut all = Policies::default();
        policies.into_iter().for_each(|policy| all.add(policy));
        all.check()?;
        Notifier::start(registry, all).map(Self)
    }

    /// Whether there is a service manager to notify.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, SystemdNotifier};
    ///
    /// let systemd = SystemdNotifier::start(Registry::global())?;
    /// if !systemd.is_active() {
    ///     println!("not started by systemd");
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// The timeout of systemd's watchdog; `None` if it is off.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, SystemdNotifier};
    ///
    /// let systemd = SystemdNotifier::start(Registry::global())?;
    /// match systemd.watchdog() {
    ///     Some(timeout) => println!("systemd restarts the service after {timeout:?} without health"),
    ///     None => println!("WatchdogSec= is not set"),
    /// }
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        match &self.0 {
            Some(notifier) => notifier.watchdog(),
            None => None,
        }
    }
}
