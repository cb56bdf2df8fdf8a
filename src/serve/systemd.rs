//! Tells systemd how the workers are.

use std::env;
use std::time::Duration;

use sd_notify::NotifyState;

use super::lookout::{Lookout, Report};
use super::process::Process;
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::at_exit::ProcessEnd;
use crate::roster::say;
use crate::roster::tasks::boundary;

/// Without a watchdog, the status is told anew each such time.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// systemd shows it on one line.
const LONGEST_STATUS: usize = 512;
/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-systemd";

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
/// Without `NOTIFY_SOCKET` in the environment nobody wants to be told, and there is no thread.
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
pub struct SystemdNotifier {
    lookout: Option<Lookout>,
    watchdog: Option<Duration>,
}

impl SystemdNotifier {
    /// Begins to tell, on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Thread`] if the thread cannot be started.
    pub fn start(registry: &Registry) -> Result<Self, Error> {
        if env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
            return Ok(Self {
                lookout: None,
                watchdog: None,
            });
        }
        let watchdog = sd_notify::watchdog_enabled().filter(|watchdog| !watchdog.is_zero());
        let interval = watchdog.map_or(STATUS_INTERVAL, |watchdog| watchdog / 2);
        let mut teller = Teller {
            watched: watchdog.is_some(),
            ..Teller::default()
        };
        let lookout = Lookout::start(THREAD_NAME, registry, interval, move |report| {
            let words = match report {
                Report::Reading(process) => teller.words(process),
                Report::Last(end) => teller.last(end),
            };
            teller.send(&words);
        })?;
        Ok(Self {
            lookout: Some(lookout),
            watchdog,
        })
    }

    /// Whether there is a service manager that wants to be told.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.lookout.is_some()
    }

    /// The time without a sign after which systemd gives the service up; `None` if it does not
    /// watch.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }
}

/// What has been told.
#[derive(Default)]
struct Teller {
    watched: bool,
    ready: bool,
    stopping: bool,
    failing: bool,
}

/// A message, owned.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Ready,
    Watchdog,
    Status(String),
    Stopping,
}

impl Teller {
    fn words(&self, process: &Process) -> Vec<Word> {
        let findings = process.findings();
        let mut words = Vec::new();
        if process.draining {
            words.extend(self.stop());
        } else if !self.ready && findings.has_started() && findings.is_live() {
            words.push(Word::Ready);
        }
        if self.watched && findings.is_live() {
            words.push(Word::Watchdog);
        }
        words.push(Word::Status(status(process)));
        words
    }

    fn stop(&self) -> Vec<Word> {
        if self.stopping {
            return Vec::new();
        }
        vec![Word::Stopping]
    }

    /// With why the process ends, if that is known.
    fn last(&self, end: Option<&ProcessEnd>) -> Vec<Word> {
        let mut words = self.stop();
        words.extend(end.map(|end| Word::Status(cut(end.to_string()))));
        words
    }

    /// It has arrived: it is not said again.
    fn note(&mut self, words: &[Word]) {
        self.ready |= words.contains(&Word::Ready);
        self.stopping |= words.contains(&Word::Stopping);
    }

    fn send(&mut self, words: &[Word]) {
        if words.is_empty() {
            return;
        }
        let states: Vec<_> = words.iter().map(Word::state).collect();
        let sent = sd_notify::notify(&states);
        let failing = sent.is_err();
        if let (Err(error), false) = (sent, self.failing) {
            say(
                log::Level::Warn,
                format_args!("systemd cannot be told how the workers are: {error}"),
            );
        }
        self.failing = failing;
        if !failing {
            self.note(words);
        }
    }
}

impl Word {
    fn state(&self) -> NotifyState<'_> {
        match self {
            Self::Ready => NotifyState::Ready,
            Self::Watchdog => NotifyState::Watchdog,
            Self::Status(status) => NotifyState::Status(status),
            Self::Stopping => NotifyState::Stopping,
        }
    }
}

/// The summary on one line, of a length that systemd shows. Nothing that workers report can break
/// the line, and so be taken for another message: a summary escapes it.
fn status(process: &Process) -> String {
    cut(process.reason())
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST_STATUS {
        text.truncate(boundary(&text, LONGEST_STATUS));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MockClock, WorkerHeartbeat};

    fn after(teller: &mut Teller, registry: &Registry) -> Vec<Word> {
        let mut words = teller.words(&Process::read(registry));
        teller.note(&words);
        words.retain(|word| !matches!(word, Word::Status(_)));
        words
    }

    #[test]
    fn ready_once_a_watchdog_while_all_are_well_and_stopping_once() {
        let time = MockClock::new();
        let registry = Registry::with_clock(time.clock());
        let mut teller = Teller {
            watched: true,
            ..Teller::default()
        };
        let hb = WorkerHeartbeat::builder("poller")
            .stall_after(Duration::from_secs(5))
            .registry(&registry)
            .start()
            .unwrap();
        assert_eq!(after(&mut teller, &registry), [Word::Watchdog]);
        hb.beat();
        assert_eq!(after(&mut teller, &registry), [Word::Ready, Word::Watchdog]);
        assert_eq!(after(&mut teller, &registry), [Word::Watchdog]);
        time.advance(Duration::from_secs(7));
        assert_eq!(after(&mut teller, &registry), [], "stalled");
        hb.beat();
        assert_eq!(after(&mut teller, &registry), [Word::Watchdog]);
        registry.request_stop(&crate::StopCause::Shutdown).tell();
        assert_eq!(
            after(&mut teller, &registry),
            [Word::Stopping, Word::Watchdog]
        );
        assert_eq!(after(&mut teller, &registry), [Word::Watchdog]);
        assert_eq!(teller.stop(), []);
    }

    #[test]
    fn a_worker_that_died_while_it_was_set_up_is_not_ready_and_what_did_not_arrive_is_said_again() {
        let registry = Registry::new();
        let mut teller = Teller::default();
        let start = || {
            WorkerHeartbeat::builder("poller")
                .id("a")
                .registry(&registry)
                .start()
        };
        start().unwrap().fail("no disk");
        assert_eq!(after(&mut teller, &registry), []);
        let hb = start().unwrap();
        hb.beat();
        let said = teller.words(&Process::read(&registry));
        assert!(said.contains(&Word::Ready));
        // It was not sent.
        assert_eq!(after(&mut teller, &registry), [Word::Ready]);
        assert_eq!(after(&mut teller, &registry), []);
    }

    #[test]
    fn a_status_is_one_line_whatever_a_worker_says() {
        let registry = Registry::new();
        let hb = WorkerHeartbeat::builder("poller")
            .registry(&registry)
            .start()
            .unwrap();
        hb.fail(format!("no disk\nWATCHDOG=1 {}", "é".repeat(1_000)));
        let status = status(&Process::read(&registry));
        assert!(
            !status.contains('\n') && status.contains("no disk\\nWATCHDOG=1"),
            "{status}"
        );
        assert!(status.len() < LONGEST_STATUS + 4 && status.ends_with('…'));
    }
}
