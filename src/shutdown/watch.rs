//! The thread that depends on nothing: it waits for signals and for the end of the time. It never
//! logs and never takes part in the drain: it has to be there when all that hangs.

use std::sync::Arc;
use std::time::Duration;

use super::hooks::Ear;
use super::{End, Inner, Progress, ShutdownCause, Signal, leaving};
use crate::registry::at_exit::{self, ProcessEnd};
use crate::registry::core::say;
use crate::sync::background;
use crate::sync::last_words;

/// A signal that comes again within this time is a duplicate: terminals and service managers send
/// the same wish twice, to the process and to its group.
const DUPLICATE: Duration = Duration::from_secs(1);
const STAYED: &str = "the process took too long to end after its shutdown";
pub(super) const TOO_LONG: &str = "the shutdown took too long";

impl Progress {
    /// Notes a signal. Returns the first one that came, and when, if one came before.
    fn first(&mut self, signal: Signal, now: Duration) -> Option<(Signal, Duration)> {
        let first = self.signals.first().copied();
        if !self.signals.iter().any(|(known, _)| *known == signal) {
            self.signals.push((signal, now));
        }
        first
    }
}

impl Inner {
    pub(super) fn watch(self: &Arc<Self>, mut ear: Ear) {
        loop {
            let slice = self.slice(&self.progress.lock());
            for signal in ear.wait(slice) {
                self.receive(signal);
            }
            self.look();
        }
    }

    /// How long to wait for the next look; `None` if there is nothing to watch.
    pub(super) fn slice(&self, progress: &Progress) -> Option<Duration> {
        let time = &self.begun.get()?.time;
        let now = time.look();
        if let Some(limit) = self.limit(progress) {
            return Some(limit.saturating_sub(now).min(time.slice()));
        }
        // Without looks, no time is observed, and a later signal would be a duplicate.
        let newest = progress.signals.last();
        let newest = newest.map_or(Duration::ZERO, |(_, came)| *came);
        (now < newest.saturating_add(DUPLICATE)).then(|| time.slice())
    }

    /// When the time is over, in observed time; `None` if that changes nothing.
    fn limit(&self, progress: &Progress) -> Option<Duration> {
        let matters = self.force_exit || progress.attended;
        match progress.end {
            End::Open if matters => Some(progress.limit),
            End::Reported(_) => progress.exit_limit,
            _ => None,
        }
    }

    /// Ends the shutdown, or the process, if the time is over.
    pub(super) fn look(self: &Arc<Self>) {
        let Some(begun) = self.begun.get() else {
            return;
        };
        let now = begun.time.look();
        let progress = self.progress.lock();
        let limit = self.limit(&progress);
        let reported = matches!(progress.end, End::Reported(_));
        drop(progress);
        if limit.is_none_or(|limit| now < limit) {
            return;
        }
        if reported {
            self.end_process(STAYED, true);
        } else if self.force_exit {
            self.end_process(TOO_LONG, false);
        } else if self.claim_report() {
            // On a thread of its own: it speaks, and wakes.
            let inner = Arc::clone(self);
            if background::detach("wh-report", move || inner.conclude(inner.hung())).is_err() {
                self.conclude(self.hung());
            }
        }
    }

    fn receive(self: &Arc<Self>, signal: Signal) {
        let cause = ShutdownCause::Signal(signal);
        let begins = self.begin(cause);
        let Some(begun) = self.begun.get() else {
            return;
        };
        let now = begun.time.look();
        let first = self.progress.lock().first(signal, now);
        if begins {
            Self::announce_aside(self, cause, false);
        } else if first.is_none() {
            // On a thread of its own: the log may block.
            let begun_by = begun.cause;
            let _ = background::detach("wh-announce", move || {
                say(
                    log::Level::Info,
                    format_args!("{signal} came during the shutdown begun by {begun_by}"),
                );
            });
        }
        let Some((first, came)) = first else {
            return;
        };
        if self.force_exit && now.saturating_sub(came) >= DUPLICATE {
            let how = if first == signal {
                "again".to_owned()
            } else {
                format!("after {first}")
            };
            self.end_process(&format!("{signal} came {how}"), true);
        }
    }

    /// Ends the process with status 1, and names who hung. Returns if the shutdown has come to
    /// another end: if the process is being ended already, or if there is a report, unless the end
    /// is `insisted` on.
    fn end_process(&self, why: &str, insisted: bool) {
        let mut progress = self.progress.lock();
        let open = matches!(progress.end, End::Open);
        if matches!(progress.end, End::Forced) || !(open || insisted) {
            return;
        }
        let end = std::mem::replace(&mut progress.end, End::Forced);
        drop(progress);
        leaving::close();
        let words = format!("exit with status 1: {why}; {}", self.culprits(&end));
        last_words::say(&words);
        at_exit::conclude(&ProcessEnd::Exit { status: Some(1) });
        signal_hook::low_level::exit(1)
    }

    /// What kept the process from ending.
    fn culprits(&self, end: &End) -> String {
        let hung = self.hung();
        let progress = self.progress.lock();
        let named = !hung.is_empty() || progress.running.is_some();
        let state = match end {
            _ if named => None,
            _ if !progress.attended => Some("all workers ended, but nobody called wait()"),
            End::Reported(_) => Some("all workers and cleanups ended, but the process did not"),
            _ => Some("all workers have just ended"),
        };
        let report = self.report(&progress, hung);
        let faults = report.map(|report| report.faults());
        let faults = faults.filter(|faults| !faults.is_empty());
        let parts = state.map(ToOwned::to_owned).into_iter().chain(faults);
        parts.collect::<Vec<_>>().join("; ")
    }
}
