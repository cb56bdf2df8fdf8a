//! What a worker reports that it is doing: a stack of tasks.

mod closed;
mod deadlines;
mod task;

use crate::clock::Moment;
use crate::health::Activity;
use closed::Closed;
pub(crate) use closed::{Closing, Manner};
pub(crate) use task::Task;

/// Tasks nest this deep. Beyond, the outermost one is forgotten, so that leaked guards can't hold memory
/// without bound.
const MOST_OPEN: usize = 256;

/// The tasks of one worker, the innermost last.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    /// The open ones first. The others keep their buffers for the next.
    frames: Vec<Task>,
    open: usize,
    next_number: u64,
    /// The last task that a guard closed.
    closed: Option<Box<Closed>>,
}

/// What a worker reports that it is doing, and on which thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskReport {
    pub activity: Activity,
    pub thread: u32,
}

/// What the worker is doing after the end of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterTask {
    /// The task had ended before: nothing changes.
    Unchanged,
    /// Another task: its activity, and the thread that works on it.
    At(Activity, u32),
    /// None.
    Idle,
}

/// Run and task, as far as they have names.
pub(crate) type TaskNames = (Option<String>, Option<String>);

impl Tasks {
    /// The innermost task.
    pub(crate) fn current(&self) -> Option<&Task> {
        self.frames.get(self.open.wrapping_sub(1))
    }

    #[inline]
    fn current_mut(&mut self) -> Option<&mut Task> {
        self.frames.get_mut(self.open.wrapping_sub(1))
    }

    /// The innermost run and task.
    pub(crate) fn names(&self) -> TaskNames {
        self.current().map_or((None, None), Task::names)
    }

    /// Replaces the innermost task. Returns whether that begins another run. `seen_at`: when the
    /// pacemaker first saw the innermost task, if it did; needed for a nested one only.
    #[inline]
    pub(crate) fn update(
        &mut self,
        run_id: &str,
        text: &str,
        report: TaskReport,
        seen_at: Option<Moment>,
    ) -> bool {
        let opened = self.open == 0;
        if opened {
            self.open_frame().number = None;
        }
        if self.is_nested() {
            self.date_outer(self.open - 1, seen_at);
        }
        // Proof: there is an open frame now.
        self.current_mut()
            .is_some_and(|task| task.set(run_id, text, report, opened))
    }

    /// Opens a task within the present one. Returns its guard's number, and whether it begins another
    /// run. `seen_at`: when the pacemaker first saw the present one, if it did.
    pub(crate) fn begin(
        &mut self,
        run_id: &str,
        text: &str,
        thread: u32,
        seen_at: Option<Moment>,
    ) -> (u64, bool) {
        let report = TaskReport {
            activity: Activity::Processing,
            thread,
        };
        let number = self.next_number;
        self.next_number += 1;
        let mut opened = true;
        match self.current_mut() {
            // It replaces a task without a guard, which goes on if it is the same run.
            Some(task) if task.number.is_none() => opened = false,
            Some(task) => task.seen_at = task.seen_at.or(seen_at),
            None => {}
        }
        if opened {
            self.open_frame();
        }
        let new = self.current_mut().is_some_and(|task| {
            task.number = Some(number);
            task.set(run_id, text, report, opened)
        });
        (number, new)
    }

    /// Closes the task of the guard with this number. `seen_at`: when the pacemaker first saw the
    /// innermost task, if it did.
    ///
    /// An outer task returns to its own thread if another thread did the whole inner task.
    pub(crate) fn end(&mut self, number: u64, seen_at: Option<Moment>, when: Closing) -> AfterTask {
        let Some(place) = self.place_of(number) else {
            return AfterTask::Unchanged;
        };
        // If an outer task ends first, the cell will hold the time of that.
        self.keep_seen_at(seen_at);
        self.date_outer(place, seen_at);
        let ended = self.frames.get(place);
        let helper = ended.is_some_and(|task| task.thread == when.thread);
        self.close_frame(place);
        self.note_closed(when);
        self.current().map_or(AfterTask::Idle, |task| {
            let thread = if helper { task.thread } else { when.thread };
            AfterTask::At(task.activity, thread)
        })
    }

    /// Closes all tasks: the worker is idle.
    pub(crate) fn clear(&mut self) {
        self.open = 0;
        if let Some(closed) = &mut self.closed {
            closed.when = None;
        }
    }

    /// Sets the progress of the task of the guard with this number. Returns whether it moved.
    pub(crate) fn set_progress(&mut self, number: u64, done: u64, total: u64) -> bool {
        let task = self
            .place_of(number)
            .and_then(|place| self.frames.get_mut(place));
        task.is_some_and(|task| {
            let before = std::mem::replace(&mut task.done, done);
            let total_before = std::mem::replace(&mut task.total, total);
            (before, total_before) != (done, total)
        })
    }

    /// The progress of the innermost task that has reported any.
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        let tasks = self.open_ones().iter().rev();
        let mut progress = tasks.map(|task| (task.done, task.total));
        progress.find(|(_, total)| *total > 0)
    }

    /// The names of the open task at this position.
    pub(crate) fn names_at(&self, place: usize) -> TaskNames {
        let task = self.open_ones().get(place);
        task.map_or((None, None), Task::names)
    }

    fn open_ones(&self) -> &[Task] {
        self.frames.get(..self.open).unwrap_or_default()
    }

    /// Sets the step of the task of the guard with this number.
    pub(crate) fn set_step(&mut self, number: u64, step: &str) {
        if let Some(task) = self
            .place_of(number)
            .and_then(|place| self.frames.get_mut(place))
        {
            task.set_step(step);
        }
    }

    /// The task of the guard with this number failed. Returns its names; `None` if it has ended, or
    /// had failed before.
    pub(crate) fn fail(&mut self, number: u64) -> Option<TaskNames> {
        let place = self.place_of(number)?;
        self.frames.get_mut(place)?.fail()
    }

    /// The run and the task in which the worker died: those whose guard the error or panic dropped, if
    /// nothing happened since; otherwise the innermost.
    pub(crate) fn at_death(&self, manner: Manner, now: Moment, beats: u64) -> TaskNames {
        let left = self.closed.as_ref().filter(|closed| {
            closed.when.is_some_and(|when| {
                let on_the_way = match manner {
                    Manner::Panic => when.unwinding,
                    Manner::Error => !when.unwinding,
                    Manner::Other => false,
                };
                on_the_way && when.beats == beats && when.reaches(now)
            })
        });
        left.map_or_else(|| self.names(), |closed| closed.task.names())
    }

    /// Whether the innermost task is within another one.
    #[inline]
    pub(crate) fn is_nested(&self) -> bool {
        self.open > 1
    }

    /// The task at this position ends or is replaced. The task around it began before it: what is known
    /// of when that was is kept. `seen_at`: when the pacemaker first saw the innermost task, if it did.
    #[cold]
    fn date_outer(&mut self, place: usize, seen_at: Option<Moment>) {
        if let Some([outer, inner]) = self.frames.get_mut(place.saturating_sub(1)..=place) {
            outer.seen_at = outer.seen_at.or(inner.seen_at).or(seen_at);
        }
    }

    fn place_of(&self, number: u64) -> Option<usize> {
        let open = self.open_ones();
        open.iter().rposition(|task| task.number == Some(number))
    }

    #[cold]
    fn open_frame(&mut self) -> &mut Task {
        if self.open == MOST_OPEN {
            self.close_frame(0);
        }
        if self.open == self.frames.len() {
            self.frames.push(Task::default());
        }
        self.open += 1;
        let place = self.open - 1;
        // Proof: there is a frame at each place below `open`.
        let task = &mut self.frames[place];
        task.seen_at = None;
        task.deadline = None;
        task
    }

    /// Moves a frame from the open ones to the others.
    fn close_frame(&mut self, place: usize) {
        if let Some(frames) = self.frames.get_mut(place..self.open) {
            frames.rotate_left(1);
            self.open -= 1;
        }
    }

    /// Keeps the task that was just closed, unless the same error or panic has closed an inner one
    /// before.
    fn note_closed(&mut self, when: Closing) {
        let Some(task) = self.frames.get_mut(self.open) else {
            return;
        };
        let closed = self.closed.get_or_insert_default();
        let same_way = closed.when.is_some_and(|before| {
            before.beats.wrapping_add(1) == when.beats
                && before.unwinding == when.unwinding
                && before.reaches(when.at)
        });
        if !same_way {
            std::mem::swap(&mut closed.task, task);
        }
        closed.when = Some(when);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::task::name;
    use super::*;
    use crate::sync::printable::CUT;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.after(Duration::from_millis(millis))
    }

    fn closing(millis: u64, beats: u64, unwinding: bool) -> Closing {
        Closing {
            at: at(millis),
            beats,
            thread: 1,
            unwinding,
        }
    }

    const ACTIVE: TaskReport = TaskReport {
        activity: Activity::Active,
        thread: 1,
    };

    fn begin(tasks: &mut Tasks, run_id: &str) -> u64 {
        tasks.begin(run_id, "", 1, None).0
    }

    fn names(run_id: &str, text: &str) -> TaskNames {
        (name(run_id), name(text))
    }

    const NONE: TaskNames = (None, None);

    #[test]
    fn long_texts_are_cut_at_a_character_and_marked() {
        let mut tasks = Tasks::default();
        let long = "ä".repeat(Task::LONGEST_TEXT);
        tasks.update("run", &long, ACTIVE, None);
        let text = tasks.names().1.unwrap();
        assert!(text.len() <= Task::LONGEST_TEXT);
        assert!(text.len() > Task::LONGEST_TEXT - 4);
        assert!(text.ends_with(CUT));
        tasks.update("run", &"x".repeat(Task::LONGEST_TEXT), ACTIVE, None);
        let text = tasks.names().1.unwrap();
        assert!(!text.ends_with(CUT), "just short enough");
    }

    #[test]
    fn a_run_is_new_when_its_id_is_or_the_old_one_ended() {
        let mut tasks = Tasks::default();
        let mut update = |run_id: &str, text: &str| tasks.update(run_id, text, ACTIVE, None);
        assert!(update("run-1", "a"));
        assert!(!update("run-1", "b"));
        assert!(update("run-2", "b"));
        let long = "x".repeat(300);
        assert!(update(&long, ""));
        assert!(!update(&long, "a run whose id is cut is recognised"));
        assert!(update(
            &(long.clone() + "y"),
            "another one of the same beginning"
        ));
        assert!(update(&long[..100], ""));
        assert!(update("", "each task without a run id is a new one"));
        assert!(update("", "each task without a run id is a new one"));
        assert!(update("run-2", "b"));
        tasks.clear();
        assert_eq!(tasks.names(), NONE);
        assert!(tasks.update("run-2", "b", ACTIVE, None));
    }

    #[test]
    fn an_inner_task_that_ends_restores_the_outer_one() {
        let mut tasks = Tasks::default();
        let (outer, new) = tasks.begin("batch", "", 1, None);
        assert!(new);
        tasks.set_progress(outer, 3, 10);
        let (inner, _) = tasks.begin("item", "first", 2, Some(at(5)));
        assert_eq!(tasks.names(), names("item", "first"));
        tasks.set_progress(outer, 4, 10);
        assert_eq!(tasks.current().unwrap().done, 0, "the outer one moved");
        tasks.update(
            "item-2",
            "second",
            TaskReport {
                thread: 2,
                ..ACTIVE
            },
            None,
        );
        assert_eq!(tasks.names(), names("item-2", "second"));
        let by_helper = Closing {
            thread: 2,
            ..closing(9, 9, false)
        };
        let left = tasks.end(inner, Some(at(6)), by_helper);
        assert_eq!(
            left,
            AfterTask::At(Activity::Processing, 1),
            "back on its thread"
        );
        let task = tasks.current().unwrap();
        assert_eq!((task.done, task.total), (4, 10));
        assert_eq!(task.seen_at, Some(at(5)), "it is as old as it was");
        assert_eq!(
            tasks.end(outer, None, closing(9, 10, false)),
            AfterTask::Idle
        );
        assert_eq!(
            tasks.end(outer, None, closing(9, 11, false)),
            AfterTask::Unchanged
        );
    }

    #[test]
    fn an_outer_task_is_at_least_as_old_as_what_was_seen_of_an_inner_one() {
        let mut tasks = Tasks::default();
        begin(&mut tasks, "batch");
        let inner = begin(&mut tasks, "item");
        tasks.end(inner, Some(at(7)), closing(9, 9, false));
        assert_eq!(tasks.current().unwrap().seen_at, Some(at(7)));
    }

    #[test]
    fn the_outer_tasks_keep_what_is_known_of_their_age_when_one_between_them_ends() {
        let mut tasks = Tasks::default();
        begin(&mut tasks, "outer");
        let between = begin(&mut tasks, "between");
        let inner = tasks.begin("inner", "", 1, Some(at(5))).0;
        tasks.end(between, None, closing(9, 9, false));
        tasks.end(inner, None, closing(9, 10, false));
        assert_eq!(tasks.current().unwrap().seen_at, Some(at(5)));
    }

    #[test]
    fn an_outer_task_keeps_what_is_known_of_its_age_when_the_inner_one_is_replaced() {
        let mut tasks = Tasks::default();
        begin(&mut tasks, "batch");
        let inner = begin(&mut tasks, "item");
        assert!(tasks.update("item-2", "", ACTIVE, Some(at(7))));
        assert_eq!(tasks.current().unwrap().seen_at, None, "it begins");
        tasks.end(inner, None, closing(9, 9, false));
        assert_eq!(tasks.current().unwrap().seen_at, Some(at(7)));
    }

    #[test]
    fn guards_that_end_out_of_order_bring_nothing_back() {
        let mut tasks = Tasks::default();
        let outer = begin(&mut tasks, "outer");
        let inner = begin(&mut tasks, "inner");
        let left = tasks.end(outer, None, closing(1, 1, false));
        assert_eq!(left, AfterTask::At(Activity::Processing, 1));
        assert_eq!(tasks.names(), names("inner", ""));
        assert_eq!(
            tasks.end(inner, None, closing(1, 2, false)),
            AfterTask::Idle
        );

        let ended = begin(&mut tasks, "ended");
        tasks.clear();
        tasks.update("next", "", ACTIVE, None);
        assert_eq!(
            tasks.end(ended, None, closing(1, 3, false)),
            AfterTask::Unchanged
        );
        tasks.set_progress(ended, 1, 2);
        assert_eq!(tasks.names(), names("next", ""));
        assert_eq!(tasks.current().unwrap().total, 0);
    }

    #[test]
    fn a_task_with_a_guard_replaces_one_without() {
        let mut tasks = Tasks::default();
        tasks.update("run-1", "queued", ACTIVE, None);
        let (guard, new) = tasks.begin("run-1", "at work", 1, None);
        assert!(!new, "the same run goes on");
        assert_eq!(
            tasks.end(guard, None, closing(1, 1, false)),
            AfterTask::Idle
        );
    }

    #[test]
    fn leaked_guards_hold_a_bounded_number_of_tasks() {
        let mut tasks = Tasks::default();
        for n in 0..10 * MOST_OPEN {
            begin(&mut tasks, &n.to_string());
        }
        assert_eq!(tasks.frames.len(), MOST_OPEN);
        let last = (10 * MOST_OPEN - 1).to_string();
        assert_eq!(tasks.names(), names(&last, ""));
    }

    #[test]
    fn an_error_belongs_to_the_task_that_it_left() {
        let mut tasks = Tasks::default();
        let outer = begin(&mut tasks, "batch");
        let inner = begin(&mut tasks, "item");
        tasks.end(inner, None, closing(100, 7, false));
        tasks.end(outer, None, closing(100, 8, false));
        let died = |millis, beats, manner| tasks.at_death(manner, at(millis), beats);
        assert_eq!(died(101, 8, Manner::Error), names("item", ""));
        assert_eq!(died(101, 9, Manner::Error), NONE, "it went on since");
        assert_eq!(died(10_000, 8, Manner::Error), NONE, "it paused since");
        assert_eq!(died(101, 8, Manner::Panic), NONE, "no unwinding ended it");
        assert_eq!(died(101, 8, Manner::Other), NONE);
        tasks.clear();
        assert_eq!(tasks.at_death(Manner::Error, at(101), 8), NONE);
    }

    #[test]
    fn a_panic_belongs_to_the_task_that_it_unwound() {
        let mut tasks = Tasks::default();
        let guard = begin(&mut tasks, "job");
        tasks.end(guard, None, closing(100, 7, true));
        assert_eq!(
            tasks.at_death(Manner::Panic, at(500), 7),
            names("job", ""),
            "destructors may be slow"
        );
        assert_eq!(tasks.at_death(Manner::Panic, at(9_000), 7), NONE);
        assert_eq!(tasks.at_death(Manner::Error, at(101), 7), NONE);
        tasks.update("open", "", ACTIVE, None);
        assert_eq!(
            tasks.at_death(Manner::Other, at(9_000), 9),
            names("open", "")
        );
    }
}
