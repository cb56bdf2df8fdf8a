//! A reference to a worker: its cell and its record. Reads both, and makes the worker's own changes.
//!
//! Order of locks: the event lock of the worker (see `Core::lock_events`), chunk, detail. Only the event
//! lock is held while an event is sent.

mod evidence;
mod facts;
mod lives;
mod pace;
mod updates;

use std::borrow::Cow;
use std::sync::Arc;

use super::record::{Detail, Ended, Former, Record};
use super::slab::Chunk;
use crate::cell::{Cell, CellSnapshot, Phase};
pub(crate) use facts::{Facts, signs};
pub(crate) use lives::{Termination, settle};
pub(crate) use updates::Updated;

/// See the module. It refers to the life that holds this cell. A life that began later in another cell
/// is reached by [`current`](Self::current).
#[derive(Clone, Debug)]
pub(crate) struct WorkerRef {
    pub chunk: Arc<Chunk<Record>>,
    pub offset: usize,
    pub record: Arc<Record>,
}

impl WorkerRef {
    /// The worker in this cell; `None` if the cell is free.
    pub(crate) fn at(chunk: &Arc<Chunk<Record>>, offset: usize) -> Option<Self> {
        Some(Self {
            record: chunk.occupant(offset)?,
            chunk: Arc::clone(chunk),
            offset,
        })
    }

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

    /// A reference to the worker's present life.
    pub(crate) fn current(&self) -> Cow<'_, Self> {
        if self.is_current() {
            return Cow::Borrowed(self);
        }
        // The cell key and its chunk change together, under this lock.
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

    /// The end of the life in this cell, if it is over.
    pub(crate) fn ended<'a>(&self, detail: &'a Detail) -> Option<&'a Ended> {
        if self.is_current() {
            detail.ended.as_ref()
        } else {
            self.former(detail).map(|former| &former.ended)
        }
    }

    /// The number of the life in this cell.
    pub(crate) fn incarnation(&self, detail: Option<&Detail>) -> u32 {
        detail
            .and_then(|detail| self.former(detail))
            .map_or_else(|| self.record.incarnation(), |former| former.incarnation)
    }

    /// Beats after the end of any of the worker's lives.
    pub(crate) fn late_beats(&self, detail: &Detail) -> u64 {
        let own = match &detail.ended {
            // The cell counts as long as a handle exists.
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

    /// A snapshot of the cell, if the worker's present life is in it.
    #[inline]
    fn current_snapshot(&self) -> Option<CellSnapshot> {
        let place = self.record.cell_key();
        if !place.is_in(self.chunk.slot(self.offset)) {
            return None;
        }
        let snapshot = self.cell().snapshot()?;
        (snapshot.state.tag == place.tag()).then_some(snapshot)
    }

    /// A snapshot of the cell, if the worker's present life is in it and is not over.
    #[inline]
    pub(crate) fn living_snapshot(&self) -> Option<CellSnapshot> {
        self.current_snapshot()
            .filter(|snapshot| snapshot.state.phase == Phase::Live)
    }
}
