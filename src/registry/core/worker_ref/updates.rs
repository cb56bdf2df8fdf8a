//! What a worker reports of itself.

use std::time::Duration;

use super::WorkerRef;
use super::lives::LONGEST_REASON;
use crate::cell::{CellKey, Work};
use crate::clock::{Moment, nanos};
use crate::health::{Activity, CallSite};
use crate::registry::core::events::EventKind;
use crate::registry::core::record::Detail;
use crate::registry::core::tasks::{AfterTask, Closing, TaskNames, TaskReport};
use crate::sync::printable::cut;
use crate::sync::threads;

/// Silences that are kept although they were not withdrawn, so that leaked guards can't hold memory
/// without bound.
const MOST_SILENCES: usize = 256;

/// What an update changed.
#[derive(Debug, Default)]
pub(crate) struct Updated {
    /// The worker began another task.
    pub new_task: bool,
    /// The worker went idle, and was asked to stop.
    pub over: bool,
}

impl WorkerRef {
    /// Whether the life in this cell is over, so that updates have no effect.
    fn is_over(&self, detail: &Detail) -> bool {
        detail.ended.is_some() || !self.is_current()
    }

    /// As [`is_over`](Self::is_over), for an update, which is counted as late.
    #[inline]
    fn is_late(&self, detail: &mut Detail) -> bool {
        let late = self.is_over(detail);
        detail.late_updates += u64::from(late);
        late
    }

    /// Takes over the worker's present task.
    pub(crate) fn update_task(
        &self,
        run_id: &str,
        text: &str,
        activity: Activity,
        site: CallSite,
    ) -> Updated {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return Updated::default();
        }
        detail.last_site = Some(site);
        let thread = threads::current();
        let report = TaskReport { activity, thread };
        let nested = detail.tasks.is_nested();
        let seen_at = if nested { self.task_seen_at() } else { None };
        let new_task = detail.tasks.update(run_id, text, report, seen_at);
        self.be_at(&mut detail, report, new_task);
        Updated {
            new_task,
            over: activity == Activity::Idle && self.cell().state().stop_requested,
        }
    }

    /// Opens a task within the present one. Returns its number; `None` if the worker has ended.
    pub(crate) fn begin_task(
        &self,
        run_id: &str,
        text: &str,
        site: CallSite,
    ) -> (Option<u64>, Updated) {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return (None, Updated::default());
        }
        detail.last_site = Some(site);
        let (thread, seen_at) = (threads::current(), self.task_seen_at());
        let (number, new_task) = detail.tasks.begin(run_id, text, thread, seen_at);
        let activity = Activity::Processing;
        self.be_at(&mut detail, TaskReport { activity, thread }, new_task);
        let updated = Updated {
            new_task,
            over: false,
        };
        (Some(number), updated)
    }

    /// Closes the task with this number: the worker is at the outer one again, or idle.
    pub(crate) fn end_task(&self, number: Option<u64>, now: Moment) -> Updated {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return Updated::default();
        }
        let Some(number) = number else {
            return Updated::default();
        };
        let closing = Closing {
            at: now,
            beats: self.cell().beats().wrapping_add(1),
            thread: threads::current(),
            unwinding: std::thread::panicking(),
        };
        let left = detail.tasks.end(number, self.task_seen_at(), closing);
        let (activity, thread) = match left {
            AfterTask::Unchanged => return Updated::default(),
            AfterTask::At(activity, thread) => (activity, thread),
            AfterTask::Idle => (Activity::Idle, closing.thread),
        };
        self.be_at(&mut detail, TaskReport { activity, thread }, true);
        let cell = self.cell();
        Updated {
            new_task: true,
            over: left == AfterTask::Idle && cell.state_after_work().stop_requested,
        }
    }

    /// Writes the report into the cell. Counts as a beat.
    #[inline]
    fn be_at(&self, detail: &mut Detail, report: TaskReport, new_task: bool) {
        let TaskReport { activity, thread } = report;
        let before = self.cell().report(activity, thread, new_task);
        if before != thread {
            self.note_thread(detail, before, thread);
        }
    }

    #[cold]
    #[inline(never)]
    fn note_thread(&self, detail: &mut Detail, before: u32, thread: u32) {
        detail.threads.note(before, thread, self.cell().beats());
    }

    /// When the pacemaker first saw the task in the cell, if it did.
    fn task_seen_at(&self) -> Option<Moment> {
        self.cell().snapshot()?.task_at
    }

    /// The worker's present run and task.
    pub(crate) fn task(&self) -> TaskNames {
        let detail = self.record.known_detail();
        detail.map_or((None, None), |detail| detail.tasks.names())
    }

    /// The worker's present run and task; `None` if the record is locked. Never waits.
    pub(crate) fn task_at_hand(&self) -> Option<TaskNames> {
        Some(self.record.try_detail()?.tasks.names())
    }

    /// Returns whether the worker was asked to stop.
    pub(crate) fn mark_idle(&self, site: CallSite) -> bool {
        let cell = self.cell();
        let thread = threads::current();
        let bound = cell.work().thread;
        let mut detail = self.record.known_detail();
        let same_thread = bound == thread || bound == 0;
        if detail.is_none() && !(same_thread && self.record.idles_at(site)) {
            detail = Some(self.record.detail());
        }
        match detail {
            Some(mut detail) => {
                if self.is_late(&mut detail) {
                    return false;
                }
                detail.last_site = Some(site);
                let activity = Activity::Idle;
                self.be_at(&mut detail, TaskReport { activity, thread }, false);
                detail.tasks.clear();
            }
            // Without a detail there is neither a task nor an end yet.
            None => drop(cell.report(Activity::Idle, thread, false)),
        }
        cell.state_after_work().stop_requested
    }

    /// Sets the progress of the task with this number. Counts as a beat.
    pub(crate) fn set_progress(&self, number: Option<u64>, done: u64, total: u64, site: CallSite) {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return;
        }
        detail.last_site = Some(site);
        let moved = number.is_some_and(|n| detail.tasks.set_progress(n, done, total));
        if moved && self.record.profile.limits().limit_progress() {
            self.begin_stage(&mut detail);
        } else {
            self.cell().beat();
        }
    }

    /// Sets the deadline of the task with this number, from its beginning. Counts as a beat. `now`: the
    /// registry's time.
    pub(crate) fn set_deadline(
        &self,
        number: Option<u64>,
        deadline: Duration,
        now: Moment,
        site: CallSite,
    ) {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return;
        }
        detail.last_site = Some(site);
        let (allowance, seen_at) = (nanos(deadline), self.task_seen_at());
        let tasks = &mut detail.tasks;
        if number.is_some_and(|n| tasks.set_deadline(n, allowance, seen_at, now)) {
            self.begin_stage(&mut detail);
        }
    }

    /// Has the pacemaker note the time of what has changed at the present task, and judge the worker by
    /// its limits, as if it had begun a new task. Counts as a beat.
    fn begin_stage(&self, detail: &mut Detail) {
        detail.tasks.keep_seen_at(self.task_seen_at());
        self.cell().beat_with(|work| Work {
            task: work.next_task(),
            limited: true,
            ..work
        });
    }

    /// Sets the step of the task with this number. Counts as a beat.
    pub(crate) fn set_step(&self, number: Option<u64>, step: &str, site: CallSite) {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return;
        }
        detail.last_site = Some(site);
        if let Some(number) = number {
            detail.tasks.set_step(number, step);
        }
        self.cell().beat();
    }

    /// The task with this number failed, for this reason. Counts as a beat. Returns what is to be
    /// reported, and of which life; `None` if it has ended, or has failed before.
    pub(crate) fn fail_task(
        &self,
        number: Option<u64>,
        mut error: String,
        site: CallSite,
    ) -> Option<(CellKey, EventKind)> {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return None;
        }
        detail.last_site = Some(site);
        self.cell().beat();
        let (run_id, task) = detail.tasks.fail(number?)?;
        detail.failed_tasks += 1;
        cut(&mut error, LONGEST_REASON);
        let failed = EventKind::TaskFailed {
            run_id,
            task,
            error,
        };
        Some((self.record.cell_key(), failed))
    }

    /// Announces a silence. Returns its number.
    pub(crate) fn begin_silence(&self, until: Moment, site: CallSite) -> u64 {
        let mut detail = self.record.detail();
        let number = detail.new_number();
        if !self.is_over(&detail) {
            detail.last_site = Some(site);
            if detail.silences.len() >= MOST_SILENCES {
                let ends = detail.silences.iter().map(|(_, until)| *until);
                let first = ends.enumerate().min_by_key(|(_, until)| *until);
                if let Some((place, _)) = first {
                    detail.silences.remove(place);
                }
            }
            detail.silences.push((number, until));
            let thread = threads::current();
            let before = self.cell().work().thread;
            self.cell().beat_with(|work| Work {
                quiet: true,
                ..work.reported_by(thread)
            });
            if before != thread {
                self.note_thread(&mut detail, before, thread);
            }
        }
        number
    }

    pub(crate) fn end_silence(&self, number: u64) {
        let mut detail = self.record.detail();
        if !self.is_over(&detail) {
            detail.silences.retain(|(other, _)| *other != number);
            let quiet = !detail.silences.is_empty();
            self.cell().beat_with(|work| Work { quiet, ..work });
        }
    }

    /// Notes where the worker reports what it did not report by a task: that it has failed, for instance.
    pub(crate) fn note_site(&self, site: CallSite) {
        let mut detail = self.record.detail();
        if !self.is_over(&detail) {
            detail.last_site = Some(site);
        }
    }

    /// Binds the work to a thread, as the worker demands.
    pub(crate) fn bind_thread(&self, thread: u32) {
        if let Some(mut detail) = self.record.known_detail() {
            if self.is_over(&detail) {
                return;
            }
            detail.threads.clear();
        }
        self.cell().change_work(|work| Work {
            thread,
            thread_ended: false,
            ..work
        });
    }

    /// Binds the work to the thread on which a supervisor runs it; `None`: between two polls of a
    /// future.
    pub(crate) fn run_on(&self, thread: Option<u32>) {
        self.cell().change_work(|work| Work {
            thread: thread.unwrap_or(0),
            thread_ended: false,
            parked: thread.is_none(),
            supervised: true,
            ..work
        });
    }
}
