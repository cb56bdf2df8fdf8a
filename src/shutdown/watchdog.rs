//! The watchdog of a shutdown: a thread that waits for signals and for the deadline. It never logs and
//! takes no part in the drain, so that it works when both hang.

use std::sync::Arc;
use std::time::Duration;

use super::hooks::SignalListener;
use super::termination::Finality;
use super::{End, Inner, Progress, ShutdownCause, Signal, exit_race};
use crate::registry::at_exit::{self, ProcessEnd};
use crate::registry::core::escalation::Escalate;
use crate::sync::background;
use crate::sync::last_words;
use crate::sync::log::log_line;

/// A signal that arrives again within this time is a duplicate: terminals and service managers send a
/// signal twice, to the process and to its group.
const DUPLICATE: Duration = Duration::from_secs(1);
const DID_NOT_EXIT: &str = "the process took too long to end after its shutdown";
pub(super) const TOO_SLOW: &str = "the shutdown took too long";

impl Progress {
    /// Records a signal. Returns the first signal and its time, if one arrived before.
    fn first(&mut self, signal: Signal, now: Duration) -> Option<(Signal, Duration)> {
        let first = self.signals.first().copied();
        if !self.signals.iter().any(|(known, _)| *known == signal) {
            self.signals.push((signal, now));
        }
        first
    }
}

impl Inner {
    pub(super) fn watch(self: &Arc<Self>, mut listener: SignalListener) {
        loop {
            let slice = self.slice(&self.progress.lock());
            let panics = self.panics.as_ref().and_then(|panics| panics.slice());
            for signal in listener.wait(slice.into_iter().chain(panics).min()) {
                self.receive(signal);
            }
            self.check_panics();
            Arc::clone(self).act();
            self.check_deadline();
        }
    }

    /// The time until the next check; `None` if there is no deadline.
    pub(super) fn slice(&self, progress: &Progress) -> Option<Duration> {
        let time = &self.begun.get()?.time;
        let now = time.read();
        if let Some(limit) = self.limit(progress) {
            return Some(limit.saturating_sub(now).min(time.slice()));
        }
        // Without checks, no time is observed, and a later signal would count as a duplicate.
        let newest = progress.signals.last();
        let newest = newest.map_or(Duration::ZERO, |(_, came)| *came);
        (now < newest.saturating_add(DUPLICATE)).then(|| time.slice())
    }

    /// The deadline in observed time; `None` if there is none.
    fn limit(&self, progress: &Progress) -> Option<Duration> {
        let matters = self.force_exit || progress.draining;
        match progress.end {
            End::Open if matters => Some(progress.limit),
            End::Reported(_) => progress.exit_limit,
            _ => None,
        }
    }

    /// Ends the shutdown, or the process, after the deadline.
    pub(super) fn check_deadline(self: &Arc<Self>) {
        let Some(begun) = self.begun.get() else {
            return;
        };
        let now = begun.time.read();
        let progress = self.progress.lock();
        let limit = self.limit(&progress);
        let reported = matches!(progress.end, End::Reported(_));
        drop(progress);
        if limit.is_none_or(|limit| now < limit) {
            return;
        }
        if reported {
            self.end_process(DID_NOT_EXIT, true);
        } else if self.force_exit {
            self.end_process(TOO_SLOW, false);
        } else if self.claim_report() {
            // On another thread: this logs and wakes.
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
        let now = begun.time.read();
        let first = self.progress.lock().first(signal, now);
        if begins {
            Self::announce_in_background(self, cause, false);
        } else if first.is_none() {
            // On another thread: the log may block.
            let begun_by = begun.cause;
            let _ = background::detach("wh-announce", move || {
                log_line(
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

    /// Ends the process with status 1 and names the workers that hung. Returns if the process is being
    /// ended already, or if there is a report and the exit is not `insisted` on.
    fn end_process(&self, why: &str, insisted: bool) {
        let mut progress = self.progress.lock();
        let open = matches!(progress.end, End::Open);
        if matches!(progress.end, End::Forced) || !(open || insisted) {
            return;
        }
        let end = std::mem::replace(&mut progress.end, End::Forced);
        drop(progress);
        exit_race::force();
        let begun = self.begun.get().filter(|begun| begun.cause.is_fault());
        let begun = begun.map(|begun| format!("; shutdown begun by {}", begun.cause));
        let begun = begun.unwrap_or_default();
        let message = format!("exit with status 1: {why}; {}{begun}", self.blockers(&end));
        // Both may hang, for a limited time.
        self.termination.write(Finality::Forced, &message);
        last_words::write(&message);
        at_exit::conclude(&ProcessEnd::Exit { status: Some(1) });
        signal_hook::low_level::exit(1)
    }

    /// What keeps the process from ending.
    fn blockers(&self, end: &End) -> String {
        let hung = self.hung();
        let progress = self.progress.lock();
        let named = !hung.is_empty() || progress.running.is_some();
        let state = match end {
            _ if named => None,
            _ if !progress.draining => Some("all workers ended, but wait() was not called"),
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
