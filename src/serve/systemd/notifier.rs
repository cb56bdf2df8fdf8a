//! The notification protocol of systemd (sd_notify(3)).

use std::env;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::Error;
use crate::health::Preset;
use crate::registry::Registry;
use crate::registry::at_exit::ProcessEnd;
use crate::registry::core::escalation::Escalation;
use crate::serve::policies::Policies;
use crate::serve::process_health::ProcessHealth;
use crate::serve::reporter::{Report, Reporter};
use crate::sync::log::log_line;
use crate::sync::printable::prefix;

/// The interval of notifications without a watchdog.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// The longest status in bytes: `systemctl status` shows it in one line.
const MAX_STATUS: usize = 512;
/// The kernel keeps 15 bytes of a thread's name.
const THREAD_NAME: &str = "wh-systemd";

/// Notifies systemd from a background thread until it is dropped.
#[derive(Debug)]
pub(super) struct Notifier {
    _reporter: Reporter,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// `None` if there is no service manager to notify.
    pub(super) fn start(registry: &Registry, policies: Policies) -> Result<Option<Self>, Error> {
        if env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
            return Ok(None);
        }
        let watchdog = sd_notify::watchdog_enabled().filter(|watchdog| !watchdog.is_zero());
        let interval = watchdog.map_or(STATUS_INTERVAL, |watchdog| watchdog / 2);
        let mut protocol = Protocol {
            has_watchdog: watchdog.is_some(),
            policies,
            ..Protocol::default()
        };
        let watched = registry.clone();
        let reporter = Reporter::start(THREAD_NAME, registry, interval, move |report| {
            protocol.send(&match report {
                Report::Health(process) => protocol.notifications(process),
                Report::End(end) => protocol.final_notifications(end, watched.escalation()),
            });
        })?;
        Ok(Some(Self {
            _reporter: reporter,
            watchdog,
        }))
    }

    pub(super) const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }
}

/// Which notifications have arrived.
#[derive(Default)]
struct Protocol {
    policies: Policies,
    has_watchdog: bool,
    ready: bool,
    stopping: bool,
    /// The last attempt failed. Only the first failure is logged.
    failing: bool,
}

/// An owned [`NotifyState`].
#[derive(Debug, PartialEq, Eq)]
enum Notification {
    Ready,
    Watchdog,
    Status(String),
    Stopping,
}

impl Protocol {
    fn notifications(&self, process: &ProcessHealth) -> Vec<Notification> {
        let summary = &process.summary;
        let is_well = |preset| summary.verdict(&self.policies.of(preset)).is_well();
        let mut notifications = Vec::new();
        if summary.stopping {
            notifications.extend(self.stopping());
        } else if !self.ready && is_well(Preset::Startup) {
            notifications.push(Notification::Ready);
        }
        if self.has_watchdog && is_well(Preset::Liveness) {
            notifications.push(Notification::Watchdog);
        }
        notifications.push(Notification::Status(status(process)));
        notifications
    }

    fn stopping(&self) -> Option<Notification> {
        (!self.stopping).then_some(Notification::Stopping)
    }

    /// With the reason why the process ends, if it is known.
    fn final_notifications(
        &self,
        end: Option<&ProcessEnd>,
        escalation: Option<Escalation>,
    ) -> Vec<Notification> {
        let why = escalation.map(|why| format!("shut down by a trigger ({why})"));
        let end = end.map(ToString::to_string);
        let status = [end, why].into_iter().flatten().collect::<Vec<_>>();
        let status = (!status.is_empty()).then(|| Notification::Status(cut(status.join("; "))));
        self.stopping().into_iter().chain(status).collect()
    }

    fn note_sent(&mut self, notifications: &[Notification]) {
        self.ready |= notifications.contains(&Notification::Ready);
        self.stopping |= notifications.contains(&Notification::Stopping);
    }

    fn send(&mut self, notifications: &[Notification]) {
        if notifications.is_empty() {
            return;
        }
        let states: Vec<_> = notifications.iter().map(Notification::state).collect();
        let sent = sd_notify::notify(&states);
        let failing = sent.is_err();
        if let (Err(error), false) = (sent, self.failing) {
            log_line(
                log::Level::Warn,
                format_args!("failed to notify systemd: {error}"),
            );
        }
        self.failing = failing;
        if !failing {
            self.note_sent(notifications);
        }
    }
}

impl Notification {
    fn state(&self) -> NotifyState<'_> {
        match self {
            Self::Ready => NotifyState::Ready,
            Self::Watchdog => NotifyState::Watchdog,
            Self::Status(status) => NotifyState::Status(status),
            Self::Stopping => NotifyState::Stopping,
        }
    }
}

/// The summary in one line. It escapes the texts that workers report, so that they can't add lines,
/// which systemd would read as other notifications.
fn status(process: &ProcessHealth) -> String {
    cut(process.reason())
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_STATUS {
        text.truncate(prefix(&text, MAX_STATUS).len());
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MockClock, WorkerHeartbeat};

    fn sent(protocol: &mut Protocol, registry: &Registry) -> Vec<Notification> {
        let mut notifications = protocol.notifications(&ProcessHealth::read(registry));
        protocol.note_sent(&notifications);
        notifications.retain(|notification| !matches!(notification, Notification::Status(_)));
        notifications
    }

    #[test]
    fn ready_once_watchdog_while_all_are_healthy_and_stopping_once() {
        let time = MockClock::new();
        let registry = Registry::with_clock(time.clock());
        let mut protocol = Protocol {
            has_watchdog: true,
            ..Protocol::default()
        };
        let hb = WorkerHeartbeat::builder("poller")
            .stall_after(Duration::from_secs(5))
            .registry(&registry)
            .start()
            .unwrap();
        assert_eq!(sent(&mut protocol, &registry), [Notification::Watchdog]);
        hb.beat();
        assert_eq!(
            sent(&mut protocol, &registry),
            [Notification::Ready, Notification::Watchdog]
        );
        assert_eq!(sent(&mut protocol, &registry), [Notification::Watchdog]);
        time.advance(Duration::from_secs(7));
        assert_eq!(sent(&mut protocol, &registry), [], "stalled");
        hb.beat();
        assert_eq!(sent(&mut protocol, &registry), [Notification::Watchdog]);
        registry.request_stop(&crate::StopCause::Shutdown).deliver();
        assert_eq!(
            sent(&mut protocol, &registry),
            [Notification::Stopping, Notification::Watchdog]
        );
        assert_eq!(sent(&mut protocol, &registry), [Notification::Watchdog]);
        assert_eq!(protocol.stopping(), None);
    }

    #[test]
    fn a_worker_that_died_in_its_set_up_is_not_ready_and_a_lost_notification_is_repeated() {
        let registry = Registry::new();
        let mut protocol = Protocol::default();
        let start = || {
            WorkerHeartbeat::builder("poller")
                .id("a")
                .registry(&registry)
                .start()
        };
        start().unwrap().fail("no disk");
        assert_eq!(sent(&mut protocol, &registry), []);
        let hb = start().unwrap();
        hb.beat();
        let lost = protocol.notifications(&ProcessHealth::read(&registry));
        assert!(lost.contains(&Notification::Ready));
        assert_eq!(sent(&mut protocol, &registry), [Notification::Ready]);
        assert_eq!(sent(&mut protocol, &registry), []);
    }

    #[test]
    fn a_status_is_one_line_for_every_text_that_a_worker_reports() {
        let registry = Registry::new();
        let hb = WorkerHeartbeat::builder("poller")
            .registry(&registry)
            .start()
            .unwrap();
        hb.fail(format!("no disk\nWATCHDOG=1 {}", "é".repeat(1_000)));
        let status = status(&ProcessHealth::read(&registry));
        assert!(
            !status.contains('\n') && status.contains("no disk\\nWATCHDOG=1"),
            "{status}"
        );
        assert!(status.len() < MAX_STATUS + 4 && status.ends_with('…'));
    }
}
