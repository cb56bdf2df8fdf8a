//! A worker in its place: what can be read of it and what it can do to its own record.
//!
//! Order of locks: a worker's turn to be told of (see `Roster`), chunk, detail; only the turn while
//! an event is sent.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use super::record::{Detail, Ended, Former, Notes, Record, ThreadEnded};
use super::slab::Chunk;
use super::tasks::{Closing, Left, Manner, Names, Says, Tasks, cut};
use super::timeline::View;
use crossbeam_channel::Receiver;

use crate::cell::{Cell, Episode, Glance, Life, Phase, Place, Watch, Work};
use crate::clock::Moment;
use crate::health::evidence::{self, Sample};
use crate::health::{
    Activity, Death, DeathCause, Ending, Health, Limits, Reading, Signs, StallCause, State,
    StopCause, judge, verdict, vouched,
};
use crate::notice::Notice;
use crate::{panics, threads};

/// See the module. It is of the life that holds this cell: one that began later, in another cell,
/// is not reached through it, but by [`current`](Self::current).
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub chunk: Arc<Chunk<Record>>,
    pub offset: usize,
    pub record: Arc<Record>,
}

/// So many silences that were not taken back are kept: guards that are leaked must not hold memory
/// without bound.
const MOST_SILENCES: usize = 256;

/// The longest time between two looks at a stalled worker's thread: two to this many resolutions.
const LONGEST_WAIT: u32 = 6;

/// Longer reasons of a death are cut: the dead are remembered for long.
const LONGEST_REASON: usize = 8 * 1024;

/// How an incarnation is to end.
#[derive(Debug)]
pub(crate) enum End {
    /// In good order. If it was asked to stop, by whom it was asked.
    Stopped(StopCause),
    Dead(DeathCause),
    /// As `Dead`, even if the worker had ended in good order: its thread came to grief after.
    Overruled(DeathCause),
}

/// What an update changed.
#[derive(Debug, Default)]
pub(crate) struct Updated {
    /// It is another task than before.
    pub new_task: bool,
    /// The worker went idle, and was asked to stop.
    pub over: bool,
}

impl Post {
    #[inline]
    pub(crate) fn cell(&self) -> &Cell {
        self.chunk.cell(self.offset)
    }

    // --- lives ----------------------------------------------------------------------------------

    /// Whether the worker's present life is in this cell.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.record.place().slot() == self.chunk.slot(self.offset)
    }

    /// The post of the worker's present life.
    pub(crate) fn current(&self) -> Cow<'_, Self> {
        if self.is_current() {
            return Cow::Borrowed(self);
        }
        // The place and its chunk change together, under this lock.
        let detail = self.record.detail();
        let chunk = detail.chunk.as_ref().unwrap_or(&self.chunk);
        Cow::Owned(Self {
            chunk: Arc::clone(chunk),
            offset: self.record.place().slot().offset as usize,
            record: Arc::clone(&self.record),
        })
    }

    /// The former life that is in this cell, if it is one.
    fn former<'a>(&self, detail: &'a Detail) -> Option<&'a Former> {
        let is_here = |former: &&Former| {
            former.offset == self.offset && Arc::ptr_eq(&former.chunk, &self.chunk)
        };
        detail.former.iter().find(is_here)
    }

    /// The end of the life that is in this cell, if it is over.
    pub(crate) fn ended<'a>(&self, detail: &'a Detail) -> Option<&'a Ended> {
        if self.is_current() {
            detail.ended.as_ref()
        } else {
            self.former(detail).map(|former| &former.ended)
        }
    }

    /// Which life of the worker is in this cell.
    pub(crate) fn incarnation(&self, detail: Option<&Detail>) -> u32 {
        detail
            .and_then(|detail| self.former(detail))
            .map_or_else(|| self.record.incarnation(), |former| former.incarnation)
    }

    /// Beats that came after the end of any of the worker's lives.
    pub(crate) fn late_beats(&self, detail: &Detail) -> u64 {
        let own = match &detail.ended {
            // While a handle is there, the cell still counts.
            Some(ended) => self.current_glance().map_or(ended.late_beats, |glance| {
                glance.beats.saturating_sub(ended.beats)
            }),
            None => 0,
        };
        let former = detail.former.iter().map(Former::late_beats);
        former.fold(detail.late_beats.saturating_add(own), u64::saturating_add)
    }

    /// Everything in the cell, if the worker's present life is in it.
    fn current_glance(&self) -> Option<Glance> {
        let place = self.record.place();
        let glance = self.cell().glance()?;
        (glance.state.tag == place.tag() && place.slot() == self.chunk.slot(self.offset))
            .then_some(glance)
    }

    // --- reading --------------------------------------------------------------------------------

    /// What is known of the worker now. Without texts and evidence, which only a stall needs.
    #[inline]
    pub(crate) fn reading(&self, view: &View) -> Reading {
        loop {
            if let Some(glance) = self.living_glance() {
                let notes = if glance.is_plain() {
                    None
                } else {
                    let detail = self.record.known_detail();
                    detail.map(|detail| detail.notes(&glance))
                };
                return self.living(&glance, view, &notes.unwrap_or_default());
            }
            if let Some(detail) = self.record.known_detail() {
                if let Some(ended) = self.ended(&detail) {
                    return over(ended, view);
                }
            }
            if !self.is_current() {
                // Nothing is left of the life that was here.
                return self.current().reading(view);
            }
            // It is just being registered, restarted or ended.
            std::hint::spin_loop();
        }
    }

    /// Everything in the cell, if the worker is in it and lives.
    #[inline]
    pub(crate) fn living_glance(&self) -> Option<Glance> {
        let glance = self.current_glance()?;
        (glance.state.phase == Phase::Live).then_some(glance)
    }

    fn living(&self, glance: &Glance, view: &View, notes: &Notes) -> Reading {
        let signs = signs(glance, &self.record.profile.limits, view, notes);
        let mut reading = Reading::new(signs.started_at);
        reading.unwatched = view.unwatched;
        reading.activity = signs.activity;
        reading.stop_requested = signs.stop_requested;
        reading.progress_at = signs.progress_at;
        reading.heartbeat_at = signs.heartbeat_at;
        reading.quiet_until = signs.quiet_until;
        reading.thread_ended_at = signs.thread_ended_at;
        reading
    }

    /// The state of a worker whose cell alone decides it.
    #[inline]
    pub(crate) fn plain_state(&self, view: &View) -> Option<State> {
        let glance = self.living_glance().filter(Glance::is_plain)?;
        let limits = &self.record.profile.limits;
        let signs = signs(&glance, limits, view, &Notes::default());
        Some(verdict(&signs, limits, view.now))
    }

    pub(crate) fn health(&self, view: &View) -> Health {
        self.judge(&mut self.reading(view), view)
    }

    /// Judges a reading; a stall with its evidence.
    #[inline]
    pub(crate) fn judge(&self, reading: &mut Reading, view: &View) -> Health {
        let thresholds = &self.record.profile.thresholds;
        let health = judge(reading, thresholds, view.now);
        if !matches!(health, Health::Stalled(_)) {
            return health;
        }
        // The worker may be taking up its next task, which is not the one that stalled: so all of it
        // is read again, at one moment.
        self.read_all(view, |all, _, _| {
            std::mem::swap(reading, all);
            judge(reading, thresholds, view.now)
        })
    }

    /// The reading, the glance (`None` if the worker is over) and the detail (if there is any) of
    /// one moment.
    pub(crate) fn read_all<T>(
        &self,
        view: &View,
        read: impl FnOnce(&mut Reading, Option<&Glance>, Option<&Detail>) -> T,
    ) -> T {
        loop {
            // Tasks and ends are written under this lock, so what is read under it fits together.
            let detail = self.record.known_detail();
            if let Some(ended) = detail.as_ref().and_then(|detail| self.ended(detail)) {
                let mut reading = over(ended, view);
                return read(&mut reading, None, detail.as_deref());
            }
            if !self.is_current() {
                drop(detail);
                return self.current().read_all(view, read);
            }
            if let Some(glance) = self.living_glance() {
                if detail.is_none() && self.record.has_detail() {
                    // It has just come into being, with what the glance may have seen already.
                    continue;
                }
                let notes = detail.as_ref().map(|detail| detail.notes(&glance));
                let mut reading = self.living(&glance, view, &notes.unwrap_or_default());
                if let Some(detail) = &detail {
                    reading.evidence = detail.evidence.clone();
                    (reading.run_id, reading.task) = detail.tasks.names();
                }
                return read(&mut reading, Some(&glance), detail.as_deref());
            }
            drop(detail);
            std::hint::spin_loop();
        }
    }

    /// Looks at the thread of a silent worker; for the first time in its episode, if `fresh`.
    /// Returns how many resolutions to wait before another look that would tell more.
    pub(crate) fn gather_evidence(&self, fresh: bool) -> Option<u32> {
        let glance = self.living_glance()?;
        let mut detail = self.record.detail();
        if fresh {
            detail.first_sample = None;
            detail.evidence = StallCause::Unknown;
        }
        if glance.work.parked {
            detail.evidence = StallCause::Blocked {
                // Polls of a worker that has to beat by itself are not counted.
                place: Some(if self.record.profile.thresholds.beats_only {
                    "its future, which makes no progress of its own".to_owned()
                } else {
                    "its future, which has not been polled".to_owned()
                }),
            };
            return None;
        }
        let thread = glance.work.thread;
        if threads::kernel_thread(thread).is_some_and(|known| known.stat().is_none()) {
            // It ended so abruptly that not even its destructors ran.
            detail.evidence = StallCause::ThreadEnded;
            return None;
        }
        let Some(first) = detail
            .first_sample
            .take_if(|first| first.thread() == thread)
        else {
            detail.looks = 0;
            detail.first_sample = Sample::take(thread);
            return detail.first_sample.as_ref().map(|_| 1);
        };
        let age = first.age();
        let long = age >= evidence::LONG_WINDOW;
        let first_finding =
            age >= evidence::SHORTEST_WINDOW && detail.evidence == StallCause::Unknown;
        detail.first_sample = if (long || first_finding)
            && let Some(now) = Sample::take(thread)
            && let Some(cause) = now.since(&first)
        {
            detail.evidence = cause;
            // The next finding is about the time from here on.
            Some(if long { now } else { first })
        } else {
            Some(first)
        };
        // Twice as long each time, so that neither a host with many stalled workers nor a mock
        // clock, whose time passes in no time, spends its days with looking.
        detail.looks = (detail.looks + 1).min(LONGEST_WAIT);
        Some(1 << detail.looks)
    }

    /// Notes that the worker's thread has ended: it is stalled from `now` on. If it has made more
    /// `beats` than these, it goes on without that thread instead. Returns whether it is stalled.
    pub(crate) fn abandon(&self, thread: u32, beats: Option<u64>, now: Moment) -> bool {
        let mut detail = self.record.detail();
        let Some(glance) = self.living_glance() else {
            return false;
        };
        let goes_on = beats.is_some_and(|beats| glance.beats != beats);
        if goes_on || glance.work.thread != thread {
            self.cell().change_work(|work| without_thread(work, thread));
            return false;
        }
        detail.thread_ended = Some(ThreadEnded {
            at: now,
            beats: glance.beats,
        });
        self.cell().change_work(|work| Work {
            thread_ended: work.thread == thread,
            ..work
        });
        true
    }

    /// A worker whose thread has ended made progress all the same: it has another one, which is not
    /// known.
    pub(crate) fn go_on_without_thread(&self) {
        let mut detail = self.record.detail();
        if detail.thread_ended.take().is_some() && self.living_glance().is_some() {
            self.cell().change_work(|work| {
                if work.thread_ended {
                    without_thread(work, work.thread)
                } else {
                    work
                }
            });
        }
    }

    // --- the worker's own doing -----------------------------------------------------------------

    /// Whether the life in this cell is over, so that it cannot change anything any more.
    fn is_over(&self, detail: &Detail) -> bool {
        detail.ended.is_some() || !self.is_current()
    }

    /// As [`is_over`](Self::is_over), for an update, which is counted then.
    fn is_late(&self, detail: &mut Detail) -> bool {
        let late = self.is_over(detail);
        detail.late_updates += u64::from(late);
        late
    }

    /// Takes over what the worker is at now.
    pub(crate) fn update_task(&self, run_id: &str, text: &str, activity: Activity) -> Updated {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return Updated::default();
        }
        let thread = threads::current();
        let says = Says { activity, thread };
        let new_task = detail.tasks.update(run_id, text, says);
        self.be_at(says, new_task);
        Updated {
            new_task,
            over: activity == Activity::Idle && self.cell().state().stop_requested,
        }
    }

    /// Opens a task within the present one. Returns its number; `None` if the worker has ended.
    pub(crate) fn begin_task(&self, run_id: &str, text: &str) -> (Option<u64>, Updated) {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return (None, Updated::default());
        }
        let (thread, seen_at) = (threads::current(), self.task_seen_at());
        let (number, new_task) = detail.tasks.begin(run_id, text, thread, seen_at);
        let activity = Activity::Processing;
        self.be_at(Says { activity, thread }, new_task);
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
            Left::Unchanged => return Updated::default(),
            Left::At(activity, thread) => (activity, thread),
            Left::Idle => (Activity::Idle, closing.thread),
        };
        self.be_at(Says { activity, thread }, true);
        let cell = self.cell();
        Updated {
            new_task: true,
            over: left == Left::Idle && cell.state_after_work().stop_requested,
        }
    }

    /// Puts into the cell what the worker is at. Counts as a beat.
    fn be_at(&self, says: Says, new_task: bool) {
        let Says { activity, thread } = says;
        self.cell().beat_with(|work| Work {
            activity,
            thread,
            thread_ended: false,
            task: if new_task {
                work.next_task()
            } else {
                work.task
            },
            ..work
        });
    }

    /// When the pacemaker first saw the task that is in the cell, if it did.
    fn task_seen_at(&self) -> Option<Moment> {
        self.cell().glance()?.task_at
    }

    /// Run and task that the worker is at; `None` if somebody is just changing it. Never waits.
    pub(crate) fn task_at_hand(&self) -> Option<Names> {
        Some(self.record.try_detail()?.tasks.names())
    }

    /// Returns whether the worker was asked to stop.
    pub(crate) fn mark_idle(&self) -> bool {
        let cell = self.cell();
        let thread = threads::current();
        let idle = |work: Work| Work {
            activity: Activity::Idle,
            thread,
            thread_ended: false,
            ..work
        };
        match self.record.known_detail() {
            Some(mut detail) => {
                if self.is_late(&mut detail) {
                    return false;
                }
                cell.beat_with(idle);
                detail.tasks.clear();
            }
            // Without a detail there is neither a task nor an end yet.
            None => cell.beat_with(idle),
        }
        cell.state_after_work().stop_requested
    }

    /// How far the task with this number is. Counts as a beat.
    pub(crate) fn set_progress(&self, number: Option<u64>, done: u64, total: u64) {
        let mut detail = self.record.detail();
        if self.is_late(&mut detail) {
            return;
        }
        if let Some(number) = number {
            detail.tasks.set_progress(number, done, total);
        }
        self.cell().beat();
    }

    /// Announces a silence. Returns its number.
    pub(crate) fn begin_silence(&self, until: Moment) -> u64 {
        let mut detail = self.record.detail();
        let number = detail.new_number();
        if !self.is_over(&detail) {
            if detail.silences.len() >= MOST_SILENCES {
                let ends = detail.silences.iter().map(|(_, until)| *until);
                let first = ends.enumerate().min_by_key(|(_, until)| *until);
                if let Some((place, _)) = first {
                    detail.silences.remove(place);
                }
            }
            detail.silences.push((number, until));
            let thread = threads::current();
            self.cell().beat_with(|work| Work {
                quiet: true,
                thread,
                thread_ended: false,
                ..work
            });
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

    /// Says which thread does the work, and whether it is between two polls of a future.
    pub(crate) fn bind_thread(&self, thread: u32, parked: bool) {
        self.cell().change_work(|work| Work {
            thread,
            thread_ended: false,
            parked,
            ..work
        });
    }

    // --- changes of life ------------------------------------------------------------------------

    /// Notes who asks the worker to stop; it does not see it yet. Returns whether it is at work.
    /// `None`: it was asked before, or has ended.
    pub(crate) fn claim_stop(&self, cause: StopCause) -> Option<bool> {
        let mut detail = self.record.detail();
        if detail.stop_cause.is_some() {
            return None;
        }
        detail.stop_cause = Some(cause);
        if detail.ended.is_some() {
            return None;
        }
        Some(self.cell().work().activity != Activity::Idle)
    }

    /// Lets the worker see that it was asked, and ends it if it is idle: at once, so that it cannot
    /// begin a task in between. Returns its health if it was ended, and whom to wake.
    pub(crate) fn show_stop(&self, view: &View, wall: SystemTime) -> (Option<Health>, Vec<Waker>) {
        let mut detail = self.record.detail();
        let mut ended = None;
        if detail.ended.is_none() {
            // Not ended, so the cell is still this worker's.
            let cell = self.cell();
            cell.set_state(Life {
                stop_requested: true,
                ..cell.state()
            });
            if cell.work().activity == Activity::Idle {
                let end = End::Stopped(StopCause::Completed);
                ended = self.end_locked(&mut detail, end, view, wall);
            }
        }
        detail.stop_notice.say(());
        let wakers = detail.on_stop.drain(..).map(|(_, waker)| waker);
        (ended, wakers.collect())
    }

    /// Wakes this waker once the worker is asked to stop; at once if it has been. Returns the number
    /// to forget it by, and to replace it by.
    pub(crate) fn on_stop(&self, known: Option<u64>, waker: &Waker) -> u64 {
        // Neither made nor dropped under the lock: wakers belong to executors.
        let mut waker = waker.clone();
        let mut detail = self.record.detail();
        let number = match known {
            Some(number) => number,
            None => detail.new_number(),
        };
        // A life that is over has nothing to wait for.
        if detail.stop_cause.is_some() || !self.is_current() {
            drop(detail);
            wake(waker);
            return number;
        }
        match detail
            .on_stop
            .iter_mut()
            .find(|(other, _)| *other == number)
        {
            Some((_, old)) => std::mem::swap(old, &mut waker),
            None => {
                detail.on_stop.push((number, waker));
                return number;
            }
        }
        drop(detail);
        drop(waker);
        number
    }

    pub(crate) fn forget_stop(&self, number: u64) {
        let forgotten = self.record.known_detail().and_then(|mut detail| {
            let at = detail
                .on_stop
                .iter()
                .position(|(other, _)| *other == number)?;
            Some(detail.on_stop.remove(at))
        });
        // Not under the lock: it belongs to an executor.
        drop(forgotten);
    }

    /// A channel that gets a message when the worker is asked to stop.
    pub(crate) fn stop_receiver(&self) -> Receiver<()> {
        let mut detail = self.record.detail();
        if self.is_current() {
            return detail.stop_notice.receiver();
        }
        // A life that is over has nothing to wait for.
        let mut over = Notice::new();
        over.say(());
        over.receiver()
    }

    /// Whether the worker was asked to stop, in this incarnation or between two.
    pub(crate) fn stop_requested(&self) -> bool {
        self.record
            .known_detail()
            .is_some_and(|detail| detail.stop_cause.is_some())
    }

    /// How it ended, if it has.
    pub(crate) fn ending(&self) -> Option<Ending> {
        let detail = self.record.known_detail()?;
        Some(self.ended(&detail)?.ending.clone())
    }

    /// Ends the incarnation. `None` if it has ended before: the first end counts, but that a
    /// failure overrules an end in good order that came before it.
    pub(crate) fn end(&self, end: End, view: &View, wall: SystemTime) -> Option<Health> {
        let mut detail = self.record.detail();
        if !self.is_current() {
            return None;
        }
        self.end_locked(&mut detail, end, view, wall)
    }

    fn end_locked(
        &self,
        detail: &mut Detail,
        end: End,
        view: &View,
        wall: SystemTime,
    ) -> Option<Health> {
        match (&detail.ended, &end) {
            (None, _) => {}
            (
                Some(Ended {
                    ending: Ending::Stopped(_),
                    ..
                }),
                End::Overruled(_),
            ) => {}
            _ => return None,
        }
        let cell = self.cell();
        let life = cell.state();
        let (beats, heartbeat_at) = cell.glance().map_or((0, None), |glance| {
            let reading = self.living(&glance, view, &detail.notes(&glance));
            (glance.beats, reading.heartbeat_at)
        });
        let (ending, phase) = match end {
            End::Stopped(cause) => {
                let cause = match (&detail.stop_cause, cause) {
                    (Some(asked), StopCause::Drop | StopCause::Completed) => asked.clone(),
                    (_, cause) => cause,
                };
                (Ending::Stopped(cause), Phase::Stopped)
            }
            End::Dead(mut cause) | End::Overruled(mut cause) => {
                if let DeathCause::Panicked { message: text, .. }
                | DeathCause::Failed { error: text } = &mut cause
                {
                    cut(text, LONGEST_REASON);
                }
                let manner = match &cause {
                    DeathCause::Panicked { .. } => Manner::Panic,
                    DeathCause::Failed { .. } => Manner::Error,
                    _ => Manner::Other,
                };
                let (run_id, task) = detail.tasks.at_death(manner, view.clock, beats);
                let death = Death {
                    cause,
                    run_id,
                    task,
                    at: wall,
                    gave_up_after: None,
                };
                (Ending::Dead(Arc::new(death)), Phase::Dead)
            }
        };
        let ended = Ended {
            ending,
            at: view.clock,
            beats,
            late_beats: 0,
            heartbeat_age: heartbeat_at.map(|at| view.now.since(at)),
        };
        let health = judge(
            &over(&ended, view),
            &self.record.profile.thresholds,
            view.now,
        );
        detail.ended = Some(ended);
        cell.set_state(Life { phase, ..life });
        Some(health)
    }

    /// Ends a worker whose place another one has taken elsewhere, and lets it see that it has to
    /// stop. Returns its health if it was ended, and whom to wake.
    pub(crate) fn fence(&self, view: &View, wall: SystemTime) -> (Option<Health>, Vec<Waker>) {
        let mut detail = self.record.detail();
        if detail.ended.is_some() {
            return (None, Vec::new());
        }
        detail.stop_cause.get_or_insert(StopCause::Fenced);
        let cell = self.cell();
        cell.set_state(Life {
            stop_requested: true,
            ..cell.state()
        });
        let end = End::Dead(DeathCause::Fenced);
        let ended = self.end_locked(&mut detail, end, view, wall);
        detail.stop_notice.say(());
        let wakers = detail.on_stop.drain(..).map(|(_, waker)| waker);
        (ended, wakers.collect())
    }

    /// Notes that the worker was given up, in its death.
    pub(crate) fn give_up(&self, restarts: u32) {
        let mut detail = self.record.detail();
        if let Some(Ended {
            ending: Ending::Dead(death),
            ..
        }) = &mut detail.ended
        {
            Arc::make_mut(death).gave_up_after = Some(restarts);
        }
    }

    /// Begins the next life: in this cell, or in another one if something is left of this life.
    /// `None` if the worker was asked to stop meanwhile. Returns the wakers of this life, whose
    /// waits are over.
    pub(crate) fn begin_next_life(
        &self,
        elsewhere: Option<&Self>,
        view: &View,
    ) -> Option<Vec<(u64, Waker)>> {
        let record = &self.record;
        let next = elsewhere.unwrap_or(self);
        let mut wakers = Vec::new();
        let mut settle_in = |cell: &Cell| {
            let mut detail = record.detail();
            if detail.stop_cause.is_some() {
                return false;
            }
            let beats = self.cell().beats();
            wakers = self.close_life(&mut detail, elsewhere.is_some(), beats);
            if elsewhere.is_some() {
                detail.chunk = Some(Arc::clone(&next.chunk));
                record.profile.counts.beats.add(beats);
            }
            record.set_incarnation(record.incarnation() + 1);
            let tag = cell.state().next_tag();
            record.set_place(Place::new(next.chunk.slot(next.offset), tag));
            let before = settle(cell, record, tag, view.now);
            let counts = &record.profile.counts;
            if elsewhere.is_none() {
                counts.beats.add(before);
            }
            counts.restarts.add(1);
            true
        };
        let begun = match elsewhere {
            Some(next) => next.chunk.enter(next.offset, record, settle_in),
            None => self.chunk.resettle(self.offset, &mut settle_in),
        };
        if begun && elsewhere.is_some() {
            self.chunk.leave_behind(self.offset);
        }
        begun.then_some(wakers)
    }

    /// What the record keeps of a life that is over, before the next one begins. `left`: others
    /// still hold its cell. Returns its wakers.
    fn close_life(&self, detail: &mut Detail, left: bool, beats: u64) -> Vec<(u64, Waker)> {
        if let Some(ended) = detail.ended.take() {
            if let Ending::Dead(death) = &ended.ending {
                detail.last_death = Some(Arc::clone(death));
            }
            if left {
                detail.former.push(Former {
                    chunk: Arc::clone(&self.chunk),
                    offset: self.offset,
                    incarnation: self.record.incarnation(),
                    ended,
                    counted: beats,
                });
            } else {
                detail.late_beats += beats.saturating_sub(ended.beats);
            }
        }
        detail.restarts += 1;
        detail.tasks = Tasks::default();
        detail.silences.clear();
        detail.first_sample = None;
        detail.evidence = StallCause::Unknown;
        detail.thread_ended = None;
        detail.marked_offline = false;
        // Those who wait for the end of this life need not wait for that of the next.
        detail.stop_notice.say(());
        detail.stop_notice = Notice::new();
        std::mem::take(&mut detail.on_stop)
    }

    /// Nothing is left of a former life: its cell becomes free.
    pub(crate) fn forget_former(&self) {
        let mut detail = self.record.detail();
        let former = &mut detail.former;
        let place = former.iter().position(|former| {
            former.offset == self.offset && Arc::ptr_eq(&former.chunk, &self.chunk)
        });
        if let Some(place) = place {
            let former = former.swap_remove(place);
            detail.late_beats = detail.late_beats.saturating_add(former.late_beats());
            let uncounted = self.cell().beats().saturating_sub(former.counted);
            self.record.profile.counts.beats.add(uncounted);
        }
        drop(detail);
        self.chunk.vacate(self.offset);
    }

    /// Leaves the cell to the next worker. It has ended before. Returns the wakers that nobody wakes
    /// any more, to be dropped where no lock is held: they belong to an executor.
    #[must_use]
    pub(crate) fn vacate(&self) -> Vec<(u64, Waker)> {
        let beats = self.cell().glance().map_or(0, |glance| glance.beats);
        let mut detail = self.record.detail();
        detail.returns = false;
        let forgotten = std::mem::take(&mut detail.on_stop);
        if let Some(ended) = &mut detail.ended {
            ended.late_beats = beats.saturating_sub(ended.beats);
        }
        drop(detail);
        self.record.profile.counts.beats.add(self.cell().beats());
        self.chunk.vacate(self.offset);
        forgotten
    }
}

/// The same, not bound to this thread.
fn without_thread(work: Work, thread: u32) -> Work {
    if work.thread == thread {
        Work {
            thread: 0,
            thread_ended: false,
            ..work
        }
    } else {
        work
    }
}

/// Wakes an executor's task; whatever that does is contained.
pub(crate) fn wake(waker: Waker) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        panics::dispose(payload);
    }
}

/// Puts a worker's new incarnation into its cell. Returns the beats of what was there before.
pub(crate) fn settle(cell: &Cell, record: &Record, tag: u32, now: Moment) -> u64 {
    let profile = &record.profile;
    let life = Life {
        phase: Phase::Live,
        stop_requested: false,
        tag,
        profile: profile.number,
    };
    let grace_ends = now.after(profile.thresholds.startup_grace);
    let watch = Watch {
        episode: Episode::Starting,
        due: grace_ends.after(Duration::from_nanos(1)),
    };
    cell.settle(life, now, watch)
}

/// What a glance at a living worker's cell tells.
#[inline]
pub(crate) fn signs(glance: &Glance, limits: &Limits, view: &View, notes: &Notes) -> Signs {
    let mut signs = Signs {
        activity: glance.work.activity,
        stop_requested: glance.state.stop_requested,
        unwatched: view.unwatched.is_some(),
        started_at: glance.progress_at,
        // Whoever reads also observes: it moved since the last tick, so it is well now.
        progress_at: glance.beaten.then_some(if glance.moved {
            view.now
        } else {
            glance.progress_at
        }),
        heartbeat_at: None,
        quiet_until: notes.quiet_until,
        thread_ended_at: notes.thread_ended_at,
    };
    signs.heartbeat_at = vouched(&signs, limits, view.tick);
    signs
}

/// What is known of a worker whose life is over.
fn over(ended: &Ended, view: &View) -> Reading {
    let ago = view.clock.since(ended.at);
    let mut reading = Reading::new(view.now);
    reading.heartbeat_at = ended
        .heartbeat_age
        .map(|age| view.now.before(ago.saturating_add(age)));
    reading.ending = Some((ended.ending.clone(), ago));
    reading
}
