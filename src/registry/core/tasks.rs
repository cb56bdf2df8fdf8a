//! What a worker says it is at: a stack of tasks, in buffers that are reused.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::clock::Moment;
use crate::health::Activity;
use crate::sync::printable::{cut, prefix};

/// Tasks nest this deep. Beyond, the outermost one is forgotten: guards that are leaked must not
/// hold memory without bound.
const MOST_OPEN: usize = 256;

/// An error reaches the supervisor within this time after the guards on its way were dropped. After
/// a longer rest, the error does not belong to the task.
const ERROR_LATENCY: Duration = Duration::from_millis(10);
/// The same for a panic, whose way may lead through destructors that take their time.
const PANIC_LATENCY: Duration = Duration::from_secs(1);

/// The tasks of one worker, the innermost last.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    /// The open ones first. Those behind lend their buffers to the next.
    frames: Vec<Task>,
    open: usize,
    next_number: u64,
    /// The last task that a guard closed, for the case that the worker dies on the way out of it.
    closed: Option<Box<Closed>>,
}

/// One task.
#[derive(Debug, Default)]
pub(crate) struct Task {
    /// Its guard's number; `None` without a guard.
    number: Option<u64>,
    pub activity: Activity,
    /// The number of the thread that works on it.
    thread: u32,
    pub run_id: String,
    /// Of a run id that was cut: the hash of the whole, by which it is known again.
    whole: Option<u64>,
    pub text: String,
    pub done: u64,
    pub total: u64,
    /// The step that it is at; empty if none was named.
    pub step: String,
    /// It was reported as failed.
    failed: bool,
    /// When the pacemaker first saw it, if that is not in the cell: an inner task took its place
    /// there.
    pub seen_at: Option<Moment>,
}

/// What a worker says it is doing, and on which thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskReport {
    pub activity: Activity,
    pub thread: u32,
}

/// A task that its guard closed.
#[derive(Debug, Default)]
struct Closed {
    task: Task,
    /// `None`: it is not worth a word any more.
    when: Option<Closing>,
}

/// How a guard closed a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Closing {
    /// By the clock.
    pub at: Moment,
    /// The worker's beats, that of the closing included.
    pub beats: u64,
    /// The number of the thread that did it.
    pub thread: u32,
    /// Its thread was unwinding from a panic.
    pub unwinding: bool,
}

impl Closing {
    /// Whether this is on the same way out, so much later.
    fn reaches(&self, now: Moment) -> bool {
        let latency = if self.unwinding {
            PANIC_LATENCY
        } else {
            ERROR_LATENCY
        };
        now.since(self.at) <= latency
    }
}

/// What the end of a task leaves the worker at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterTask {
    /// The task had ended before: nothing changes.
    Unchanged,
    /// At another task: its activity, and the thread that works on it.
    At(Activity, u32),
    /// At none.
    Idle,
}

/// How a worker died, as far as the task it died in is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It panicked, and its guards were dropped by the unwinding.
    Panic,
    /// It returned an error, and its guards were dropped on the way.
    Error,
    /// Otherwise: only a task that is still open is the one.
    Other,
}

/// Run and task, as far as they have a name.
pub(crate) type TaskNames = (Option<String>, Option<String>);

impl Tasks {
    /// The task that the worker is at.
    pub(crate) fn current(&self) -> Option<&Task> {
        self.frames.get(self.open.wrapping_sub(1))
    }

    #[inline]
    fn current_mut(&mut self) -> Option<&mut Task> {
        self.frames.get_mut(self.open.wrapping_sub(1))
    }

    /// Run and task that the worker is at.
    pub(crate) fn names(&self) -> TaskNames {
        self.current().map_or((None, None), Task::names)
    }

    /// Takes over what the worker is at: the innermost task is replaced. Returns whether that is
    /// another run than before.
    #[inline]
    pub(crate) fn update(&mut self, run_id: &str, text: &str, report: TaskReport) -> bool {
        let opened = self.open == 0;
        if opened {
            self.open_frame().number = None;
        }
        // Proof: there is an open frame now.
        self.current_mut()
            .is_some_and(|task| task.set(run_id, text, report, opened))
    }

    /// Opens a task within the present one. Returns its guard's number, and whether it is another
    /// run than before. `seen_at`: when the pacemaker first saw the present one, if it did.
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
            // A task without a guard gives way, and goes on if it is the same run.
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
    /// An outer task is restored to its own thread if the one that did the inner one from its
    /// beginning to its end is another.
    pub(crate) fn end(&mut self, number: u64, seen_at: Option<Moment>, when: Closing) -> AfterTask {
        let Some(place) = self.place_of(number) else {
            return AfterTask::Unchanged;
        };
        let innermost = place + 1 == self.open;
        let ended = self.frames.get(place);
        let began = ended.and_then(|task| task.seen_at.or(seen_at));
        let helper = ended.is_some_and(|task| task.thread == when.thread);
        self.close_frame(place);
        if let Some(task) = self.current_mut().filter(|_| innermost) {
            // It began before the one that it is restored from.
            task.seen_at = task.seen_at.or(began);
        }
        self.note_closed(when);
        self.current().map_or(AfterTask::Idle, |task| {
            let thread = if helper { task.thread } else { when.thread };
            AfterTask::At(task.activity, thread)
        })
    }

    /// Closes all tasks: the worker says itself that it is done with them.
    pub(crate) fn clear(&mut self) {
        self.open = 0;
        if let Some(closed) = &mut self.closed {
            closed.when = None;
        }
    }

    /// How far the task of the guard with this number is.
    pub(crate) fn set_progress(&mut self, number: u64, done: u64, total: u64) {
        if let Some(task) = self
            .place_of(number)
            .and_then(|place| self.frames.get_mut(place))
        {
            (task.done, task.total) = (done, total);
        }
    }

    /// Which step the task of the guard with this number is at.
    pub(crate) fn set_step(&mut self, number: u64, step: &str) {
        if let Some(task) = self
            .place_of(number)
            .and_then(|place| self.frames.get_mut(place))
        {
            write_cut(&mut task.step, step, Task::LONGEST_STEP);
        }
    }

    /// The task of the guard with this number failed. Returns its names; `None` if it has ended, or
    /// had failed before.
    pub(crate) fn fail(&mut self, number: u64) -> Option<TaskNames> {
        let place = self.place_of(number)?;
        let task = self.frames.get_mut(place)?;
        (!std::mem::replace(&mut task.failed, true)).then(|| task.names())
    }

    /// Run and task that the worker was at when it died. A task whose guard was dropped on the way
    /// out is the one, if nothing happened since.
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

    fn place_of(&self, number: u64) -> Option<usize> {
        let open = self.frames.get(..self.open)?;
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
        task
    }

    /// Takes a frame out of the open ones; it is the first of the others then.
    fn close_frame(&mut self, place: usize) {
        if let Some(frames) = self.frames.get_mut(place..self.open) {
            frames.rotate_left(1);
            self.open -= 1;
        }
    }

    /// Remembers the task that was just closed, unless it is the outer one of another that was
    /// closed on the same way out.
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

impl Task {
    /// Longer texts are cut.
    pub(crate) const LONGEST_RUN_ID: usize = 200;
    /// Longer texts are cut.
    const LONGEST_STEP: usize = 200;
    /// Longer texts are cut.
    pub(crate) const LONGEST_TEXT: usize = 1_024;

    /// Run and task, as far as they have a name.
    fn names(&self) -> TaskNames {
        (name(&self.run_id), name(&self.text))
    }

    /// Returns whether it is another run than before.
    #[inline(always)]
    fn set(&mut self, run_id: &str, text: &str, report: TaskReport, opened: bool) -> bool {
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

fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cold]
#[inline(never)]
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Writes a text into a buffer that is reused, cut if it is too long.
fn write_cut(buffer: &mut String, given: &str, longest: usize) {
    buffer.clear();
    if given.len() <= longest {
        buffer.push_str(given);
        return;
    }
    // One character more than allowed is enough to see that it is too long.
    buffer.push_str(prefix(given, longest + 4));
    cut(buffer, longest);
}

#[cfg(test)]
mod tests {
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
        tasks.update("run", &long, ACTIVE);
        let text = tasks.names().1.unwrap();
        assert!(text.len() <= Task::LONGEST_TEXT);
        assert!(text.len() > Task::LONGEST_TEXT - 4);
        assert!(text.ends_with(CUT));
        tasks.update("run", &"x".repeat(Task::LONGEST_TEXT), ACTIVE);
        let text = tasks.names().1.unwrap();
        assert!(!text.ends_with(CUT), "just short enough");
    }

    #[test]
    fn a_run_is_new_when_its_id_is_or_the_old_one_ended() {
        let mut tasks = Tasks::default();
        let mut update = |run_id: &str, text: &str| tasks.update(run_id, text, ACTIVE);
        assert!(update("run-1", "a"));
        assert!(!update("run-1", "b"));
        assert!(update("run-2", "b"));
        let long = "x".repeat(300);
        assert!(update(&long, ""));
        assert!(!update(&long, "a run whose id is cut is known again"));
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
        assert!(tasks.update("run-2", "b", ACTIVE));
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
        tasks.update("next", "", ACTIVE);
        assert_eq!(
            tasks.end(ended, None, closing(1, 3, false)),
            AfterTask::Unchanged
        );
        tasks.set_progress(ended, 1, 2);
        assert_eq!(tasks.names(), names("next", ""));
        assert_eq!(tasks.current().unwrap().total, 0);
    }

    #[test]
    fn a_task_without_a_guard_gives_way_to_one_with_a_guard() {
        let mut tasks = Tasks::default();
        tasks.update("run-1", "queued", ACTIVE);
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
        assert_eq!(died(101, 9, Manner::Error), NONE, "it went on after it");
        assert_eq!(died(10_000, 8, Manner::Error), NONE, "it rested after it");
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
            "destructors take their time"
        );
        assert_eq!(tasks.at_death(Manner::Panic, at(9_000), 7), NONE);
        assert_eq!(tasks.at_death(Manner::Error, at(101), 7), NONE);
        tasks.update("open", "", ACTIVE);
        assert_eq!(
            tasks.at_death(Manner::Other, at(9_000), 9),
            names("open", "")
        );
    }
}
