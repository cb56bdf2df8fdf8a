//! A worker in its place: what can be read of it and what it can do to its own record.
//!
//! Order of locks: a worker's turn to be told of (see `Core`), chunk, detail; only the turn while
//! an event is sent.

mod evidence;
mod lives;
mod updates;

use std::borrow::Cow;
use std::sync::Arc;

use super::record::{Adjustments, Detail, Ended, Former, Record};
use super::slab::Chunk;
use super::timeline::ObservedNow;
use crate::cell::{Cell, CellSnapshot, Phase};
use crate::health::{Health, Limits, Reading, Signs, State, judge, verdict, vouched};
pub(crate) use lives::{Termination, settle, wake};
pub(crate) use updates::Updated;

/// See the module. It is of the life that holds this cell: one that began later, in another cell,
/// is not reached through it, but by [`current`](Self::current).
#[derive(Clone, Debug)]
pub(crate) struct WorkerRef {
    pub chunk: Arc<Chunk<Record>>,
    pub offset: usize,
    pub record: Arc<Record>,
}

impl WorkerRef {
    #[inline]
    pub(crate) fn cell(&self) -> &Cell {
        self.chunk.cell(self.offset)
    }

    // --- lives ----------------------------------------------------------------------------------

    /// Whether the worker's present life is in this cell.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.record.cell_key().is_in(self.chunk.slot(self.offset))
    }

    /// The worker of the worker's present life.
    pub(crate) fn current(&self) -> Cow<'_, Self> {
        if self.is_current() {
            return Cow::Borrowed(self);
        }
        // The place and its chunk change together, under this lock.
        let detail = self.record.detail();
        let chunk = detail.chunk.as_ref().unwrap_or(&self.chunk);
        Cow::Owned(Self {
            chunk: Arc::clone(chunk),
            offset: self.record.cell_key().slot().offset as usize,
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
            Some(ended) => self
                .current_snapshot()
                .map_or(ended.late_beats, |snapshot| {
                    snapshot.beats.saturating_sub(ended.beats)
                }),
            None => 0,
        };
        let former = detail.former.iter().map(Former::late_beats);
        former.fold(detail.late_beats.saturating_add(own), u64::saturating_add)
    }

    /// Everything in the cell, if the worker's present life is in it.
    #[inline]
    fn current_snapshot(&self) -> Option<CellSnapshot> {
        let place = self.record.cell_key();
        if !place.is_in(self.chunk.slot(self.offset)) {
            return None;
        }
        let snapshot = self.cell().snapshot()?;
        (snapshot.state.tag == place.tag()).then_some(snapshot)
    }

    // --- reading --------------------------------------------------------------------------------

    /// What is known of the worker now. Without texts and evidence, which only a stall needs.
    #[inline]
    pub(crate) fn reading(&self, observed: &ObservedNow) -> Reading {
        loop {
            if let Some(snapshot) = self.living_snapshot() {
                let adjustments = if snapshot.is_plain() {
                    None
                } else {
                    let detail = self.record.known_detail();
                    detail.map(|detail| detail.adjustments(&snapshot))
                };
                return self.living(&snapshot, observed, &adjustments.unwrap_or_default());
            }
            if let Some(detail) = self.record.known_detail() {
                if let Some(ended) = self.ended(&detail) {
                    return over(ended, observed);
                }
            }
            if !self.is_current() {
                // Nothing is left of the life that was here.
                return self.current().reading(observed);
            }
            // It is just being registered, restarted or ended.
            std::hint::spin_loop();
        }
    }

    /// Everything in the cell, if the worker is in it and lives.
    #[inline]
    pub(crate) fn living_snapshot(&self) -> Option<CellSnapshot> {
        self.current_snapshot()
            .filter(|snapshot| snapshot.state.phase == Phase::Live)
    }

    fn living(
        &self,
        snapshot: &CellSnapshot,
        observed: &ObservedNow,
        adjustments: &Adjustments,
    ) -> Reading {
        let signs = signs(snapshot, &self.record.profile.limits, observed, adjustments);
        let mut reading = Reading::new(signs.started_at);
        reading.unwatched = observed.unwatched;
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
    pub(crate) fn plain_state(&self, observed: &ObservedNow) -> Option<State> {
        let snapshot = self.living_snapshot().filter(CellSnapshot::is_plain)?;
        let limits = &self.record.profile.limits;
        let signs = signs(&snapshot, limits, observed, &Adjustments::default());
        Some(verdict(&signs, limits, observed.now))
    }

    pub(crate) fn health(&self, observed: &ObservedNow) -> Health {
        self.judge(&mut self.reading(observed), observed)
    }

    /// Judges a reading; a stall with its evidence.
    #[inline]
    pub(crate) fn judge(&self, reading: &mut Reading, observed: &ObservedNow) -> Health {
        let thresholds = &self.record.profile.thresholds;
        let health = judge(reading, thresholds, observed.now);
        if !matches!(health, Health::Stalled(_)) {
            return health;
        }
        // The worker may be taking up its next task, which is not the one that stalled: so all of it
        // is read again, at one moment.
        self.read_all(observed, |all, _, _| {
            std::mem::swap(reading, all);
            judge(reading, thresholds, observed.now)
        })
    }

    /// The reading, the snapshot (`None` if the worker is over) and the detail (if there is any) of
    /// one moment.
    pub(crate) fn read_all<T>(
        &self,
        observed: &ObservedNow,
        read: impl FnOnce(&mut Reading, Option<&CellSnapshot>, Option<&Detail>) -> T,
    ) -> T {
        loop {
            // Tasks and ends are written under this lock, so what is read under it fits together.
            let detail = self.record.known_detail();
            if let Some(ended) = detail.as_ref().and_then(|detail| self.ended(detail)) {
                let mut reading = over(ended, observed);
                return read(&mut reading, None, detail.as_deref());
            }
            if !self.is_current() {
                drop(detail);
                return self.current().read_all(observed, read);
            }
            if let Some(snapshot) = self.living_snapshot() {
                if detail.is_none() && self.record.has_detail() {
                    // It has just come into being, with what the snapshot may have seen already.
                    continue;
                }
                let adjustments = detail.as_ref().map(|detail| detail.adjustments(&snapshot));
                let mut reading =
                    self.living(&snapshot, observed, &adjustments.unwrap_or_default());
                if let Some(detail) = &detail {
                    reading.evidence = detail.evidence.clone();
                    (reading.run_id, reading.task) = detail.tasks.names();
                }
                return read(&mut reading, Some(&snapshot), detail.as_deref());
            }
            drop(detail);
            std::hint::spin_loop();
        }
    }
}

/// What a snapshot at a living worker's cell tells.
#[inline(always)]
pub(crate) fn signs(
    snapshot: &CellSnapshot,
    limits: &Limits,
    observed: &ObservedNow,
    adjustments: &Adjustments,
) -> Signs {
    let mut signs = Signs {
        activity: snapshot.work.activity,
        stop_requested: snapshot.state.stop_requested,
        unwatched: observed.unwatched.is_some(),
        started_at: snapshot.progress_at,
        // Whoever reads also observes: it moved since the last tick, so it is well now.
        progress_at: snapshot.beaten.then_some(if snapshot.moved {
            observed.now
        } else {
            snapshot.progress_at
        }),
        heartbeat_at: None,
        quiet_until: adjustments.quiet_until,
        thread_ended_at: adjustments.thread_ended_at,
    };
    signs.heartbeat_at = vouched(&signs, limits, observed.tick);
    signs
}

/// What is known of a worker whose life is over.
fn over(ended: &Ended, observed: &ObservedNow) -> Reading {
    let ago = observed.clock.since(ended.at);
    let mut reading = Reading::new(observed.now);
    reading.heartbeat_at = ended
        .heartbeat_age
        .map(|age| observed.now.before(ago.saturating_add(age)));
    reading.ending = Some((ended.ending.clone(), ago));
    reading
}
