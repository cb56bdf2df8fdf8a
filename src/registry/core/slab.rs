//! The cells of a registry, in chunks that never move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::cell::{Cell, CellKey, Lifecycle, Phase, Schedule, Slot};

const SMALLEST_CHUNK: usize = 64;
/// One mebibyte: a chunk of this size is added in well under a millisecond.
const LARGEST_CHUNK: usize = CellKey::MOST_OFFSETS;

/// A run of cells and their workers, each with a record `R`.
#[derive(Debug)]
pub(crate) struct Chunk<R> {
    number: u32,
    cells: Box<[Cell]>,
    /// The number of holders of each cell: handles and supervised futures.
    holders: Box<[AtomicU32]>,
    /// Guards the assignment of workers to cells, and the `schedule` words.
    occupants: RwLock<Box<[Option<Arc<R>>]>>,
    /// Cells from here on were never used.
    used: AtomicUsize,
}

impl<R> Chunk<R> {
    fn new(number: u32, size: usize) -> Self {
        Self {
            number,
            cells: (0..size).map(|_| Cell::new()).collect(),
            holders: (0..size).map(|_| AtomicU32::new(0)).collect(),
            occupants: RwLock::new((0..size).map(|_| None).collect()),
            used: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn slot(&self, offset: usize) -> Slot {
        Slot {
            chunk: self.number,
            offset: offset as u32,
        }
    }

    #[inline]
    pub(crate) fn cell(&self, offset: usize) -> &Cell {
        // Proof: an offset comes from this slab's own free list, so it is within the chunk.
        &self.cells[offset]
    }

    /// The cells that have ever been used, in order.
    pub(crate) fn cells(&self) -> &[Cell] {
        let used = self.used.load(Ordering::Acquire).min(self.cells.len());
        &self.cells[..used]
    }

    pub(crate) fn occupant(&self, offset: usize) -> Option<Arc<R>> {
        self.occupants.read().get(offset)?.clone()
    }

    pub(crate) fn occupants(&self) -> Vec<(usize, Arc<R>)> {
        let used = self.cells().len();
        self.occupants.read()[..used]
            .iter()
            .enumerate()
            .filter_map(|(offset, record)| Some((offset, Arc::clone(record.as_ref()?))))
            .collect()
    }

    /// Puts a worker into a cell, with one holder, if `settle` agrees.
    pub(crate) fn enter(
        &self,
        offset: usize,
        record: &Arc<R>,
        settle: impl FnOnce(&Cell) -> bool,
    ) -> bool {
        let mut occupants = self.occupants.write();
        if !settle(&self.cells[offset]) {
            return false;
        }
        self.holders[offset].store(1, Ordering::Relaxed);
        occupants[offset] = Some(Arc::clone(record));
        self.used.fetch_max(offset + 1, Ordering::Release);
        true
    }

    /// Adds a holder of a cell.
    pub(crate) fn hold(&self, offset: usize) {
        self.holders[offset].fetch_add(1, Ordering::Relaxed);
    }

    /// Removes a holder. Returns whether it was the last one.
    pub(crate) fn release(&self, offset: usize) -> bool {
        self.holders[offset].fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether there is only one holder, so that no other thread can add one.
    pub(crate) fn has_one_holder(&self, offset: usize) -> bool {
        self.holders[offset].load(Ordering::Acquire) == 1
    }

    /// Changes a cell whose occupant stays.
    pub(crate) fn resettle(&self, offset: usize, settle: impl FnOnce(&Cell) -> bool) -> bool {
        let _occupants = self.occupants.write();
        settle(&self.cells[offset])
    }

    /// The occupant has moved to another cell. Holders of its former life keep this one, and find
    /// there that it is over.
    pub(crate) fn leave_behind(&self, offset: usize) {
        self.clear(offset, |state| Lifecycle {
            phase: Phase::Dead,
            stop_requested: true,
            ..state
        });
    }

    pub(crate) fn vacate(&self, offset: usize) {
        self.clear(offset, |state| Lifecycle {
            tag: state.next_tag(),
            ..Lifecycle::EMPTY
        });
    }

    fn clear(&self, offset: usize, left: impl FnOnce(Lifecycle) -> Lifecycle) {
        let mut occupants = self.occupants.write();
        let cell = &self.cells[offset];
        cell.set_schedule(Schedule::OFF);
        cell.set_state(left(cell.state()));
        occupants[offset] = None;
    }

    /// The cell needs no judgement any more, unless it has a new life.
    pub(crate) fn unschedule(&self, offset: usize) {
        let _occupants = self.occupants.read();
        let cell = &self.cells[offset];
        if cell.state().phase != Phase::Live {
            cell.set_schedule(Schedule::OFF);
        }
    }

    /// Writes the `schedule` word, unless the occupant or its incarnation has changed.
    pub(crate) fn set_schedule(&self, offset: usize, tag: u32, schedule: Schedule) {
        let _occupants = self.occupants.read();
        let cell = &self.cells[offset];
        if cell.state().tag == tag {
            cell.set_schedule(schedule);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slab<R> {
    chunks: RwLock<Arc<Chunks<R>>>,
    free: Mutex<Vec<Slot>>,
}

type Chunks<R> = Vec<Arc<Chunk<R>>>;

impl<R> Default for Slab<R> {
    fn default() -> Self {
        Self {
            chunks: RwLock::default(),
            free: Mutex::default(),
        }
    }
}

impl<R> Slab<R> {
    /// All chunks, in order, without those that are added later.
    pub(crate) fn chunks(&self) -> Arc<Chunks<R>> {
        Arc::clone(&self.chunks.read())
    }

    pub(crate) fn chunk(&self, slot: Slot) -> Arc<Chunk<R>> {
        Arc::clone(&self.chunks.read()[slot.chunk as usize])
    }

    /// A free cell: the lowest, so that the used ones are close together.
    pub(crate) fn take(&self) -> Slot {
        let mut free = self.free.lock();
        if free.is_empty() {
            self.grow(&mut free);
        }
        // Proof: `grow` adds at least one.
        free.pop().expect("a grown slab has a free cell")
    }

    pub(crate) fn give_back(&self, slot: Slot) {
        self.free.lock().push(slot);
    }

    fn grow(&self, free: &mut Vec<Slot>) {
        let chunks = self.chunks();
        let size = LARGEST_CHUNK.min(SMALLEST_CHUNK << chunks.len().min(16));
        let number = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let mut grown = Vec::clone(&chunks);
        grown.push(Arc::new(Chunk::new(number, size)));
        *self.chunks.write() = Arc::new(grown);
        free.extend((0..size as u32).rev().map(|offset| Slot {
            chunk: number,
            offset,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_handed_out_in_order_and_reused() {
        let slab = Slab::<()>::default();
        let slots: Vec<_> = (0..300).map(|_| slab.take()).collect();
        assert_eq!(
            slots[0],
            Slot {
                chunk: 0,
                offset: 0
            }
        );
        assert_eq!(slots[63].offset, 63);
        assert_eq!(
            slots[64],
            Slot {
                chunk: 1,
                offset: 0
            }
        );
        assert_eq!(
            slots[192],
            Slot {
                chunk: 2,
                offset: 0
            }
        );
        assert_eq!(slab.chunks().len(), 3);
        slab.give_back(slots[5]);
        assert_eq!(slab.take(), slots[5]);
    }
}
