//! What a sweeper says of itself: that it is slow, or that the store was not swept for too long.

use std::time::Duration;

use log::Level;

use crate::clock::Moment;
use crate::error::Error;
use crate::health::SweepReport;
use crate::sync::describe::chain;
use crate::sync::log::log_line;
use crate::sync::printable::{Age, Printable};

#[derive(Debug, Default)]
pub(super) struct Condition {
    /// The begin of the first sweep.
    tried_since: Option<Moment>,
    /// Why the latest sweep had no success, if so.
    problem: Option<String>,
    slow: bool,
    overdue: bool,
    forgot_at: Option<Moment>,
}

/// The shortest time between two sweeps of a thread that forget workers: they read all that have ended.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// A line for the log.
pub(super) struct Line(Level, String);

impl Line {
    pub(super) fn log(&self) {
        log_line(self.0, format_args!("sweeper: {}", self.1));
    }
}

impl Condition {
    /// Notes a sweep. Returns what there is to log.
    pub(super) fn note(
        &mut self,
        swept: &Result<SweepReport, Error>,
        begun: Moment,
    ) -> Option<Line> {
        self.tried_since.get_or_insert(begun);
        self.problem = match swept {
            Ok(report) if report.success || report.recently_swept.is_some() => None,
            Ok(_) => Some("another sweep is running".to_owned()),
            Err(error) => Some(Printable(&chain(error)).to_string()),
        };
        let report = swept.as_ref().ok().filter(|report| report.success)?;
        if std::mem::replace(&mut self.slow, report.slow) == report.slow {
            return None;
        }
        let took = Age(report.duration);
        Some(if report.slow {
            let text = format!("a sweep took {took}: dead workers are found later");
            Line(Level::Warn, text)
        } else {
            Line(Level::Info, format!("sweeps are quick again: {took}"))
        })
    }

    /// Whether it is time again to forget workers.
    pub(super) fn forgets(&mut self, now: Moment) -> bool {
        let is_due = self
            .forgot_at
            .is_none_or(|at| now.since(at) >= FORGET_INTERVAL);
        if is_due {
            self.forgot_at = Some(now);
        }
        is_due
    }

    pub(super) const fn is_untried(&self) -> bool {
        self.tried_since.is_none()
    }

    /// The time since the first sweep began.
    pub(super) fn tried_for(&self, now: Moment) -> Option<Duration> {
        self.tried_since.map(|since| now.since(since))
    }

    pub(super) fn overdue(&self, age: Duration, allowed: Duration) -> String {
        let problem = self
            .problem
            .as_deref()
            .map(|problem| format!(": {problem}"));
        format!(
            "the store was not swept for {}, allowed: {}{}",
            Age(age),
            Age(allowed),
            problem.unwrap_or_default()
        )
    }

    /// Returns what there is to log when an episode begins or ends.
    pub(super) fn note_overdue(&mut self, overdue: Option<String>) -> Option<Line> {
        if std::mem::replace(&mut self.overdue, overdue.is_some()) == overdue.is_some() {
            return None;
        }
        Some(match overdue {
            Some(reason) => Line(Level::Error, reason),
            None => Line(Level::Info, "the store is swept again".to_owned()),
        })
    }
}
