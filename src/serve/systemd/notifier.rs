//! The protocol of systemd (sd_notify(3)).

use std::env;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::Error;
use crate::registry::Registry;
use crate::registry::at_exit::ProcessEnd;
use crate::registry::core::say;
use crate::serve::process::Process;
use crate::serve::reporter::{Report, Reporter};
use crate::sync::printable::prefix;

/// Without a watchdog, the status is told anew each such time.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// systemd shows it on one line.
const LONGEST_STATUS: usize = 512;
/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-systemd";

/// Tells systemd, on a thread of its own, until it is dropped.
#[derive(Debug)]
pub(super) struct Notifier {
    _lookout: Reporter,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// `None` if no service manager asks.
    pub(super) fn start(registry: &Registry) -> Result<Option<Self>, Error> {
        if env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
            return Ok(None);
        }
        let watchdog = sd_notify::watchdog_enabled().filter(|watchdog| !watchdog.is_zero());
        let interval = watchdog.map_or(STATUS_INTERVAL, |watchdog| watchdog / 2);
        let mut teller = Teller {
            watched: watchdog.is_some(),
            ..Teller::default()
        };
        let reporter = Reporter::start(THREAD_NAME, registry, interval, move |report| {
            let words = match report {
                Report::Reading(process) => teller.words(process),
                Report::Last(end) => teller.last(end),
            };
            teller.send(&words);
        })?;
        Ok(Some(Self {
            _lookout: reporter,
            watchdog,
        }))
    }

    pub(super) const fn watchdog(&self) -> Option<Duration> {
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
        text.truncate(prefix(&text, LONGEST_STATUS).len());
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
        registry.request_stop(&crate::StopCause::Shutdown).deliver();
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
