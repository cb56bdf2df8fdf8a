//! What is known of one worker beyond its cell: names, task, announced silences, deaths.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use once_cell::race::OnceBox;
use once_cell::sync::OnceCell;
use parking_lot::{Mutex, MutexGuard};

use super::Core;
use super::profile::Profile;
use super::slab::Chunk;
use super::tasks::Tasks;
use crate::cell::{CellKey, CellSnapshot};
use crate::clock::Moment;
use crate::health::evidence::Sample;
use crate::health::{Death, Ending, StallCause, StopCause};
use crate::sync::latch::Latch;
use crate::sync::threads;

/// One worker. Most of it comes into being only when it is needed: a worker that just beats costs
/// its cell, its id and this.
#[derive(Debug)]
pub(crate) struct Record {
    /// As it was registered with in this process, and is found by. See [`id`](Self::id).
    pub id: Box<str>,
    /// Nobody chose the id.
    generated: bool,
    /// It was registered by a thread that was unwinding from a panic.
    pub born_unwinding: bool,
    pub profile: Arc<Profile>,
    /// Where its present life is. Changes under the lock of the detail.
    place: AtomicU64,
    incarnation: AtomicU32,
    more: OnceBox<More>,
}

#[derive(Debug)]
struct More {
    /// The id that a store assigned, if it is another one.
    adopted: OnceCell<Box<str>>,
    detail: Mutex<Detail>,
}

/// See [`Record`].
#[derive(Debug)]
pub(crate) struct Detail {
    pub tasks: Tasks,
    /// The chunk of its present life, if it is not the one that it was registered in.
    pub chunk: Option<Arc<Chunk<Record>>>,
    /// Lives that are over, of which handles or futures are left.
    pub former: Vec<Former>,
    /// Beats that came after the end of lives of which nothing is left.
    pub late_beats: u64,
    /// The next number for a silence or a waker.
    next_number: u64,
    /// Announced silences that have not been taken back, by number, the latest last.
    pub silences: Vec<(u64, Moment)>,
    pub ended: Option<Ended>,
    /// Who asked it to stop.
    pub stop_cause: Option<StopCause>,
    /// Threads that reported for this life, besides the last one.
    pub threads: Reporters,
    pub thread_ended: Option<ThreadEnded>,
    /// When the present episode's silence began.
    pub silent_since: Moment,
    pub first_sample: Option<Sample>,
    pub evidence: StallCause,
    /// How often its thread was looked at; beyond a few, it is not counted.
    pub looks: u32,
    pub last_death: Option<Arc<Death>>,
    pub restarts: u32,
    pub metadata: Vec<(String, String)>,
    /// Updates that came after the end.
    pub late_updates: u64,
    /// Tasks of the present life that failed.
    pub failed_tasks: u64,
    /// It may be started again; not any more once its last handle is gone.
    pub returns: bool,
    /// A sweep has told that it is offline.
    pub marked_offline: bool,
    /// A store was told of the end of this life.
    pub told: Option<u32>,
    /// Another worker has taken over its id.
    pub superseded: bool,
    /// Whom to wake when it is asked to stop, by number.
    pub on_stop: Vec<(u64, Waker)>,
    /// Told when it is asked to stop.
    pub stop_latch: Latch<()>,
    /// Those whose lives depend on the present life.
    pub linked: Vec<Arc<dyn Dependents>>,
}

/// Workers that are to end with the life of another one.
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
    /// There were more than are kept.
    many: bool,
    /// The last one that reported while the worker was bound to another, and the beats by then.
    helper: Option<(u32, u64)>,
}

impl Reporters {
    /// Threads come and go; so many are kept.
    const MOST: usize = 64;

    /// A thread reports that is not the `last` one, to which the worker was bound. `beats`: with the
    /// report.
    pub(crate) fn note(&mut self, last: u32, thread: u32, beats: u64) {
        self.helper = Some((thread, beats));
        if last != 0 {
            self.keep(last);
        }
    }

    /// The thread that gave the worker's last sign, with so many beats, if it was not the one that
    /// the worker was bound to.
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

    /// Whether one of them may still live.
    pub(crate) fn any(&self, lives: impl Fn(u32) -> bool) -> bool {
        self.many || self.numbers.iter().any(|number| lives(*number))
    }
}

/// That the thread of a worker has ended, as the pacemaker found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadEnded {
    pub at: Moment,
    /// The worker's beats at that time: one that has made more goes on without the thread.
    pub beats: u64,
}

/// What the verdict on a living worker needs beyond its cell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Adjustments {
    /// Until when it announced to be silent.
    pub quiet_until: Option<Moment>,
    /// When its thread was found to have ended, if it has not beaten since.
    pub thread_ended_at: Option<Moment>,
}

/// A life that is over, while others still hold its cell.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    pub chunk: Arc<Chunk<Record>>,
    pub offset: usize,
    pub incarnation: u32,
    pub ended: Ended,
    /// Its beats that are counted already.
    pub counted: u64,
}

impl Former {
    /// Beats that came after its end.
    pub(crate) fn late_beats(&self) -> u64 {
        let beats = self.chunk.cell(self.offset).beats();
        beats.saturating_sub(self.ended.beats)
    }
}

/// The end of an incarnation.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub ending: Ending,
    /// It had been asked to stop before.
    pub asked: bool,
    /// By the clock.
    pub at: Moment,
    pub beats: u64,
    /// Beats that came after the end.
    pub late_beats: u64,
    /// Age of the heartbeat at the end.
    pub heartbeat_age: Option<Duration>,
}

impl Record {
    pub(crate) fn new(id: &str, generated: bool, profile: Arc<Profile>, place: CellKey) -> Self {
        Self {
            id: id.into(),
            generated,
            born_unwinding: std::thread::panicking(),
            profile,
            place: AtomicU64::new(place.word()),
            incarnation: AtomicU32::new(1),
            more: OnceBox::new(),
        }
    }

    #[inline]
    pub(crate) fn cell_key(&self) -> CellKey {
        CellKey::from_word(self.place.load(Ordering::Acquire))
    }

    pub(crate) fn set_cell_key(&self, place: CellKey) {
        self.place.store(place.word(), Ordering::Release);
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
                detail: Mutex::new(Detail::new()),
            })
        })
    }

    /// The worker's id: what a store assigned, if one did.
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

    /// Takes over the id that a store assigned. It stays.
    pub(crate) fn adopt(&self, id: &str) {
        if self.id() != id {
            // Once: a worker whose id changed again could not be found by either.
            let _ = self.more().adopted.set(id.into());
        }
    }

    /// The detail, made if there is none yet.
    pub(crate) fn detail(&self) -> MutexGuard<'_, Detail> {
        self.more().detail.lock()
    }

    /// The detail, if there is any and nobody is at it.
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

    /// The worker's death, if it came after the request to stop, and not before this moment.
    pub(crate) fn death_while_stopping(&self, since: Moment) -> Option<Arc<Death>> {
        match self.ended()? {
            Ended {
                ending: Ending::Dead(death),
                asked: true,
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

    /// Whether a store was told of the end of this life.
    pub(crate) fn is_end_stored(&self) -> bool {
        let told = self.known_detail().and_then(|detail| detail.told);
        told == Some(self.incarnation())
    }

    /// A store was told of the end of this life; another one may have begun meanwhile.
    pub(crate) fn set_end_stored(&self, life: u32) {
        self.detail().told = Some(life);
    }

    /// Whether another worker may take over its id: it is over, and will not be started again.
    pub(crate) fn is_free(&self) -> bool {
        self.known_detail()
            .is_some_and(|detail| detail.ended.is_some() && !detail.returns)
    }

    pub(crate) fn is_superseded(&self) -> bool {
        self.known_detail().is_some_and(|detail| detail.superseded)
    }
}

impl Detail {
    fn new() -> Self {
        Self {
            tasks: Tasks::default(),
            chunk: None,
            former: Vec::new(),
            late_beats: 0,
            next_number: 0,
            silences: Vec::new(),
            ended: None,
            stop_cause: None,
            threads: Reporters::default(),
            thread_ended: None,
            silent_since: Moment::ZERO,
            first_sample: None,
            evidence: StallCause::Unknown,
            looks: 0,
            last_death: None,
            restarts: 0,
            metadata: Vec::new(),
            late_updates: 0,
            failed_tasks: 0,
            returns: false,
            marked_offline: false,
            told: None,
            superseded: false,
            on_stop: Vec::new(),
            stop_latch: Latch::new(),
            linked: Vec::new(),
        }
    }

    /// A number that no life of the worker has used.
    pub(crate) fn new_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// What the verdict on a living worker needs beyond its cell.
    pub(crate) fn adjustments(&self, snapshot: &CellSnapshot) -> Adjustments {
        let thread_ended = self.thread_ended.filter(|_| snapshot.work.thread_ended);
        Adjustments {
            quiet_until: self.silences.iter().map(|(_, until)| *until).max(),
            thread_ended_at: thread_ended
                .filter(|ended| ended.beats == snapshot.beats)
                .map(|ended| ended.at),
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
