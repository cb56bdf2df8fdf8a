//! What is known of a worker beyond its cell: names, tasks, announced silences, deaths.

use std::any::Any;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use once_cell::race::{OnceBox, OnceRef};
use once_cell::sync::OnceCell;
use parking_lot::{Mutex, MutexGuard};

use super::Core;
use super::pace::Pace;
use super::polls::Polls;
use super::profile::Profile;
use super::slab::Chunk;
use super::tasks::Tasks;
use crate::cell::{CellKey, CellSnapshot};
use crate::clock::Moment;
use crate::health::evidence::Sample;
use crate::health::{
    CallSite, Deadline, Death, Ending, Limits, Rate, SourceLocation, StackCapture, StallCause,
    StopCause, Term,
};
use crate::sync::latch::Latch;
use crate::sync::threads;
use crate::sync::wakers::Wakers;

/// One worker. Most of it is allocated when needed: a worker that only beats costs its cell, its id
/// and this.
#[derive(Debug)]
pub(crate) struct Record {
    /// The id with which it was registered in this process, and by which it is found. See
    /// [`id`](Self::id).
    pub id: Box<str>,
    /// The id was generated.
    generated: bool,
    /// It was registered by a thread that was unwinding from a panic.
    pub born_unwinding: bool,
    pub profile: Arc<Profile>,
    /// Identifies the present life. Changes under the lock of the detail.
    key: AtomicU64,
    incarnation: AtomicU32,
    /// Where it goes idle, as long as it has no detail.
    idles_at: OnceRef<'static, Location<'static>>,
    more: OnceBox<More>,
}

#[derive(Debug)]
struct More {
    /// The id that a store assigned, if it differs.
    adopted: OnceCell<Box<str>>,
    detail: Mutex<Detail>,
}

/// See [`Record`].
#[derive(Debug)]
pub(crate) struct Detail {
    pub tasks: Tasks,
    /// Where it last reported.
    pub last_site: Option<CallSite>,
    /// The future that the present life runs, if it is one.
    pub polls: Option<Arc<Polls>>,
    /// The chunk of the present life, if it differs from the one of the registration.
    pub chunk: Option<Arc<Chunk<Record>>>,
    /// Lives that are over and still have holders.
    pub former: Vec<Former>,
    /// Beats after the end of lives that have no holders.
    pub late_beats: u64,
    /// The next number for a silence.
    next_number: u64,
    /// Announced silences that have not been withdrawn, by number, the latest last.
    pub silences: Vec<(u64, Moment)>,
    pub ended: Option<Ended>,
    /// The cause of the request to stop.
    pub stop_cause: Option<StopCause>,
    /// When it was asked to stop, on the registry's time line.
    pub asked_at: Option<Moment>,
    /// Threads that reported for this life, except the last one.
    pub threads: Reporters,
    pub thread_ended: Option<ThreadEnded>,
    /// When that began for which the worker was convicted: its silence, or its task.
    pub unwell_since: Moment,
    pub first_sample: Option<Sample>,
    pub evidence: StallCause,
    /// How often its thread was sampled, up to a limit.
    pub looks: u32,
    /// If the profile wants it watched.
    pub pace: Option<Box<Pace>>,
    /// The call stack of the thread in the present episode.
    pub stack: Option<Box<EpisodeStack>>,
    pub last_death: Option<Arc<Death>>,
    pub restarts: u32,
    pub metadata: Vec<(String, String)>,
    /// Updates after the end.
    pub late_updates: u64,
    /// Tasks of the present life that failed.
    pub failed_tasks: u64,
    /// A supervisor may restart it, as long as it has a handle.
    pub returns: bool,
    /// A sweep has reported it as offline.
    pub marked_offline: bool,
    /// The incarnation whose end is in the store.
    pub stored_end: Option<u32>,
    /// Another worker has taken over its id.
    pub superseded: bool,
    /// Tasks that wait for a request to stop.
    pub on_stop: Wakers,
    /// Set by a request to stop.
    pub stop_latch: Latch<()>,
    /// Workers that depend on the present life.
    pub linked: Vec<Arc<dyn Dependents>>,
}

/// Workers that end with the life of another one.
pub(crate) trait Dependents: std::fmt::Debug + Send + Sync {
    /// All of them have ended.
    fn are_gone(&self) -> bool;
    /// Asks them to stop, without waiting for them.
    fn dismiss(&self, core: &Arc<Core>);
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// The threads that reported for one life, by number.
#[derive(Debug, Default)]
pub(crate) struct Reporters {
    numbers: Vec<u32>,
    /// More threads reported than are kept.
    many: bool,
    /// The last thread that reported while the worker was bound to another one, and the beats by
    /// then.
    helper: Option<(u32, u64)>,
}

impl Reporters {
    /// The number of threads that are kept.
    const MOST: usize = 64;

    /// Notes a report of a thread other than the `last` one, to which the worker was bound.
    /// `beats`: including the report.
    pub(crate) fn note(&mut self, last: u32, thread: u32, beats: u64) {
        self.helper = Some((thread, beats));
        if last != 0 {
            self.keep(last);
        }
    }

    /// The thread that reported last, at this number of beats, if the worker was not bound to it.
    pub(crate) fn helper(&self, beats: u64) -> Option<u32> {
        let helper = self.helper.filter(|(_, reported)| *reported == beats);
        helper.map(|(thread, _)| thread)
    }

    fn keep(&mut self, thread: u32) {
        if self.many || self.numbers.contains(&thread) {
            return;
        }
        if self.numbers.len() >= Self::MOST {
            let living = threads::living();
            self.numbers
                .retain(|number| living.binary_search(number).is_ok());
            self.many = self.numbers.len() >= Self::MOST;
        }
        self.numbers.push(thread);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether any of them may still be alive.
    pub(crate) fn any(&self, lives: impl Fn(u32) -> bool) -> bool {
        self.many || self.numbers.iter().any(|number| lives(*number))
    }
}

/// The call stack that belongs to a conviction.
#[derive(Clone, Debug)]
pub(crate) struct EpisodeStack {
    pub capture: StackCapture,
    /// Identifies it.
    pub number: u64,
    /// How often it was tried while the thread ran.
    #[cfg(feature = "stacks")]
    pub attempts: u8,
    /// Another attempt may succeed.
    #[cfg(feature = "stacks")]
    pub may_retry: bool,
}

/// The end of a worker's thread, as found by the pacemaker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadEnded {
    pub at: Moment,
    /// The worker's beats at that time: with more beats, it goes on without the thread.
    pub beats: u64,
}

/// What the verdict on a living worker needs beyond its cell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Adjustments {
    /// The end of its announced silence.
    pub quiet_until: Option<Moment>,
    /// When its thread was found to have ended, unless it has beaten since.
    pub thread_ended_at: Option<Moment>,
    /// The deadline of its tasks that ends first.
    pub deadline: Option<Deadline>,
    /// Since when the progress of its tasks stands still, and how long it may.
    pub headway: Option<Term>,
}

/// A life that is over and whose cell still has holders.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    pub chunk: Arc<Chunk<Record>>,
    pub offset: usize,
    pub incarnation: u32,
    pub ended: Ended,
    /// Beats that are in the totals already.
    pub counted: u64,
}

impl Former {
    /// Beats after its end.
    pub(crate) fn late_beats(&self) -> u64 {
        let beats = self.chunk.cell(self.offset).beats();
        beats.saturating_sub(self.ended.beats)
    }
}

/// The end of an incarnation.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub ending: Ending,
    /// If it had been asked to stop: how long before.
    pub drained: Option<Duration>,
    /// By the clock.
    pub at: Moment,
    pub beats: u64,
    /// Beats after the end.
    pub late_beats: u64,
    /// Age of the heartbeat at the end.
    pub heartbeat_age: Option<Duration>,
}

impl Record {
    pub(crate) fn new(id: &str, generated: bool, profile: Arc<Profile>, key: CellKey) -> Self {
        Self {
            id: id.into(),
            generated,
            born_unwinding: std::thread::panicking(),
            profile,
            key: AtomicU64::new(key.word()),
            incarnation: AtomicU32::new(1),
            idles_at: OnceRef::new(),
            more: OnceBox::new(),
        }
    }

    #[inline]
    pub(crate) fn cell_key(&self) -> CellKey {
        CellKey::from_word(self.key.load(Ordering::Acquire))
    }

    pub(crate) fn set_cell_key(&self, key: CellKey) {
        self.key.store(key.word(), Ordering::Release);
    }

    pub(crate) fn incarnation(&self) -> u32 {
        self.incarnation.load(Ordering::Relaxed)
    }

    pub(crate) fn set_incarnation(&self, incarnation: u32) {
        self.incarnation.store(incarnation, Ordering::Relaxed);
    }

    fn more(&self) -> &More {
        self.more.get_or_init(|| {
            Box::new(More {
                adopted: OnceCell::new(),
                detail: Mutex::new(Detail {
                    last_site: self.idles_at.get(),
                    ..Detail::new()
                }),
            })
        })
    }

    /// The worker's id: the one that a store assigned, if it did.
    #[inline]
    pub(crate) fn id(&self) -> &str {
        self.adopted().unwrap_or(&self.id)
    }

    fn adopted(&self) -> Option<&str> {
        self.more.get()?.adopted.get().map(|id| &**id)
    }

    pub(crate) fn is_adopted(&self) -> bool {
        self.adopted().is_some()
    }

    pub(crate) const fn is_generated(&self) -> bool {
        self.generated
    }

    /// Takes over the id that a store assigned. Only the first one counts.
    pub(crate) fn adopt(&self, id: &str) {
        if self.id() != id {
            // A worker whose id changed twice could not be found by either id.
            let _ = self.more().adopted.set(id.into());
        }
    }

    /// Notes that a worker without a detail goes idle here. Returns whether that suffices: one that goes
    /// idle in several places needs a detail.
    #[inline]
    pub(crate) fn idles_at(&self, site: CallSite) -> bool {
        let known = self.idles_at.get_or_init(|| site);
        std::ptr::eq(known, site)
    }

    /// Where it last reported, other than by a mere beat. `detail`: that of the record.
    pub(crate) fn last_location(&self, detail: Option<&Detail>) -> Option<SourceLocation> {
        match detail {
            Some(detail) => detail.last_location(),
            None => self.idles_at.get().and_then(SourceLocation::of),
        }
    }

    /// The detail; allocated if there is none yet.
    pub(crate) fn detail(&self) -> MutexGuard<'_, Detail> {
        self.more().detail.lock()
    }

    /// The detail, if there is any and it is not locked.
    pub(crate) fn try_detail(&self) -> Option<MutexGuard<'_, Detail>> {
        self.more.get()?.detail.try_lock()
    }

    /// The detail, if there is any.
    pub(crate) fn known_detail(&self) -> Option<MutexGuard<'_, Detail>> {
        self.more.get().map(|more| more.detail.lock())
    }

    /// Whether there is any detail.
    pub(crate) fn has_detail(&self) -> bool {
        self.more.get().is_some()
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        self.known_detail()?.ended.clone()
    }

    /// The worker's death, if it came after the request to stop and not before this moment.
    pub(crate) fn death_while_stopping(&self, since: Moment) -> Option<Arc<Death>> {
        match self.ended()? {
            Ended {
                ending: Ending::Dead(death),
                drained: Some(_),
                at,
                ..
            } if at >= since => Some(death),
            _ => None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.known_detail()
            .is_some_and(|detail| detail.ended.is_some())
    }

    /// Whether the end of this life is in the store.
    pub(crate) fn is_end_stored(&self) -> bool {
        let stored = self.known_detail().and_then(|detail| detail.stored_end);
        stored == Some(self.incarnation())
    }

    /// The end of this life is in the store; the next life may have begun.
    pub(crate) fn set_end_stored(&self, life: u32) {
        self.detail().stored_end = Some(life);
    }

    /// Whether another worker may take over its id: it is over, and will not be restarted.
    pub(crate) fn is_free(&self) -> bool {
        self.known_detail()
            .is_some_and(|detail| detail.ended.is_some() && !detail.returns)
    }

    /// Whether it is over, and its supervisor is about to restart it.
    pub(crate) fn is_restarting(&self) -> bool {
        self.known_detail()
            .is_some_and(|detail| match &detail.ended {
                Some(Ended {
                    ending: Ending::Dead(death),
                    ..
                }) => detail.returns && death.gave_up_after.is_none(),
                _ => false,
            })
    }

    pub(crate) fn is_superseded(&self) -> bool {
        self.known_detail().is_some_and(|detail| detail.superseded)
    }
}

impl Detail {
    fn new() -> Self {
        Self {
            tasks: Tasks::default(),
            last_site: None,
            polls: None,
            chunk: None,
            former: Vec::new(),
            late_beats: 0,
            next_number: 0,
            silences: Vec::new(),
            ended: None,
            stop_cause: None,
            asked_at: None,
            threads: Reporters::default(),
            thread_ended: None,
            unwell_since: Moment::ZERO,
            first_sample: None,
            evidence: StallCause::Unknown,
            looks: 0,
            pace: None,
            stack: None,
            last_death: None,
            restarts: 0,
            metadata: Vec::new(),
            late_updates: 0,
            failed_tasks: 0,
            returns: false,
            marked_offline: false,
            stored_end: None,
            superseded: false,
            on_stop: Wakers::default(),
            stop_latch: Latch::new(),
            linked: Vec::new(),
        }
    }

    /// Where it last reported, other than by a mere beat.
    pub(crate) fn last_location(&self) -> Option<SourceLocation> {
        self.last_site.and_then(SourceLocation::of)
    }

    /// How fast the worker races, if it does.
    pub(crate) fn racing(&self) -> Option<Rate> {
        self.pace.as_ref()?.racing()
    }

    /// A number that no life of this worker has used.
    pub(crate) fn new_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// Makes a request to stop visible. Returns the wakers of the tasks that wait for it.
    pub(crate) fn announce_stop(&mut self) -> Vec<Waker> {
        self.stop_latch.set(());
        self.on_stop.take().collect()
    }

    /// Identifies what [`stack_capture`](Self::stack_capture) returns, unless that is pending.
    pub(crate) fn stack_number(&self) -> Option<(u64, bool)> {
        let stack = self.stack.as_ref()?;
        match stack.capture {
            StackCapture::Pending => None,
            StackCapture::Taken(_) => Some((stack.number, true)),
            StackCapture::Missing(_) => Some((stack.number, false)),
        }
    }

    /// The call stack of the present episode, or why there is none.
    pub(crate) fn stack_capture(&self) -> Option<StackCapture> {
        self.stack.as_ref().map(|stack| stack.capture.clone())
    }

    /// What the verdict on a living worker needs beyond its cell.
    /// `limits`: its worker's. If its tasks have limits, the snapshot is of the same moment.
    pub(crate) fn adjustments(&self, snapshot: &CellSnapshot, limits: &Limits) -> Adjustments {
        let (mut deadline, mut headway) = (None, None);
        if snapshot.work.limited {
            deadline = self.tasks.deadline(limits.task_deadline, snapshot.task_at);
            let allowance = limits.progress_after;
            let moved_at = snapshot.task_at.filter(|_| limits.limit_progress());
            let moved_at = moved_at.filter(|_| self.tasks.progress().is_some());
            headway = moved_at.map(|since| Term { since, allowance });
        }
        let thread_ended = self.thread_ended.filter(|_| snapshot.work.thread_ended);
        Adjustments {
            quiet_until: self.silences.iter().map(|(_, until)| *until).max(),
            thread_ended_at: thread_ended
                .filter(|ended| ended.beats == snapshot.beats)
                .map(|ended| ended.at),
            deadline,
            headway,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_small() {
        assert!(size_of::<Record>() <= 56, "{}", size_of::<Record>());
    }
}
