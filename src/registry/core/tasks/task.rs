//! One task, in buffers that are reused.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;

use super::{TaskNames, TaskReport};
use crate::clock::Moment;
use crate::health::{Activity, Limits, Term};
use crate::sync::printable::{cut, prefix};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Task {
    /// Its guard's number; `None` without a guard.
    pub(super) number: Option<u64>,
    pub activity: Activity,
    /// The number of the thread that works on it.
    pub(super) thread: u32,
    pub run_id: String,
    /// The hash of a run id that was cut, to recognise it.
    whole: Option<NonZeroU64>,
    pub text: String,
    pub done: u64,
    pub total: u64,
    /// Its present step; empty if it has no name.
    pub step: String,
    /// It was reported as failed.
    failed: bool,
    /// When the pacemaker first saw it; `None` if it did not, or while that is in the cell.
    pub seen_at: Option<Moment>,
    /// The deadline that its guard set.
    pub(super) deadline: Option<Box<Term>>,
}

impl Task {
    /// Longer ids are cut.
    pub(crate) const LONGEST_RUN_ID: usize = 200;
    /// Longer texts are cut.
    const LONGEST_STEP: usize = 200;
    /// Longer texts are cut.
    pub(crate) const LONGEST_TEXT: usize = 1_024;

    /// Its deadline. `default`: in nanoseconds, for a task that has none of its own. `seen_at`: when the
    /// pacemaker first saw it, if it did.
    pub(super) fn deadline(&self, default: u64, seen_at: Option<Moment>) -> Option<Term> {
        if let Some(own) = &self.deadline {
            return Some(**own);
        }
        // A report without names is at no task.
        let is_task = self.number.is_some() || !self.run_id.is_empty() || !self.text.is_empty();
        let allowance = default;
        (is_task && allowance < Limits::ENDLESS)
            .then_some(seen_at)
            .flatten()
            .map(|since| Term { since, allowance })
    }

    /// Run and task, as far as they have names.
    pub(super) fn names(&self) -> TaskNames {
        (name(&self.run_id), name(&self.text))
    }

    pub(super) fn set_step(&mut self, step: &str) {
        write_cut(&mut self.step, step, Self::LONGEST_STEP);
    }

    /// Marks it as failed. Returns its names; `None` if it had failed before.
    pub(super) fn fail(&mut self) -> Option<TaskNames> {
        (!std::mem::replace(&mut self.failed, true)).then(|| self.names())
    }

    /// Takes over a report. Returns whether it begins another run.
    #[inline(always)]
    pub(super) fn set(
        &mut self,
        run_id: &str,
        text: &str,
        report: TaskReport,
        opened: bool,
    ) -> bool {
        (self.activity, self.thread) = (report.activity, report.thread);
        let whole = (run_id.len() > Self::LONGEST_RUN_ID).then(|| hash(run_id));
        let same_run = match whole {
            None => self.whole.is_none() && self.run_id == run_id,
            whole => self.whole == whole,
        };
        let new = opened || run_id.is_empty() || !same_run;
        if new {
            self.whole = whole;
            write_cut(&mut self.run_id, run_id, Self::LONGEST_RUN_ID);
            (self.done, self.total, self.seen_at) = (0, 0, None);
            self.step.clear();
            self.failed = false;
        }
        if text.len() > Self::LONGEST_TEXT || self.text != text {
            write_cut(&mut self.text, text, Self::LONGEST_TEXT);
        }
        new
    }
}

pub(super) fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cold]
#[inline(never)]
fn hash(text: &str) -> NonZeroU64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN)
}

/// Writes a text into a reused buffer, cut if it is too long.
#[inline]
fn write_cut(buffer: &mut String, given: &str, longest: usize) {
    buffer.clear();
    if given.len() <= longest {
        buffer.push_str(given);
    } else {
        push_cut(buffer, given, longest);
    }
}

#[cold]
fn push_cut(buffer: &mut String, given: &str, longest: usize) {
    // One character more than allowed is enough for `cut` to see that it is too long.
    buffer.push_str(prefix(given, longest + 4));
    cut(buffer, longest);
}
