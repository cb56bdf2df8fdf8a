//! All cells of a registry, in chunks that never move, scanned in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::record::Record;
use crate::cell::{Cell, Life, Phase, Slot, Watch};

const SMALLEST_CHUNK: usize = 64;
/// A chunk of one mebibyte: adding one takes well below a millisecond.
const LARGEST_CHUNK: usize = 16_384;

/// A run of cells and the workers that are in them.
#[derive(Debug)]
pub(crate) struct Chunk {
    cells: Box<[Cell]>,
    /// Guards who is where, and with it the `watch` words.
    occupants: RwLock<Box<[Option<Arc<Record>>]>>,
    /// Cells from here on have never been used.
    used: AtomicUsize,
}

impl Chunk {
    fn new(size: usize) -> Self {
        Self {
            cells: (0..size).map(|_| Cell::new()).collect(),
            occupants: RwLock::new(vec![None; size].into_boxed_slice()),
            used: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn cell(&self, offset: usize) -> &Cell {
        // Proof: an offset comes from this slab's own free list, so it is within the chunk that it
        // was made for.
        &self.cells[offset]
    }

    /// The cells that have ever been used, in order.
    pub(crate) fn cells(&self) -> &[Cell] {
        let used = self.used.load(Ordering::Acquire).min(self.cells.len());
        &self.cells[..used]
    }

    pub(crate) fn occupant(&self, offset: usize) -> Option<Arc<Record>> {
        self.occupants.read().get(offset)?.clone()
    }

    pub(crate) fn occupants(&self) -> Vec<(usize, Arc<Record>)> {
        let used = self.cells().len();
        self.occupants.read()[..used]
            .iter()
            .enumerate()
            .filter_map(|(offset, record)| Some((offset, Arc::clone(record.as_ref()?))))
            .collect()
    }

    pub(crate) fn enter(&self, offset: usize, record: &Arc<Record>, settle: impl FnOnce(&Cell)) {
        let mut occupants = self.occupants.write();
        settle(&self.cells[offset]);
        occupants[offset] = Some(Arc::clone(record));
        self.used.fetch_max(offset + 1, Ordering::Release);
    }

    /// Changes a cell that its occupant keeps.
    pub(crate) fn resettle(&self, offset: usize, settle: impl FnOnce(&Cell)) {
        let _occupants = self.occupants.write();
        settle(&self.cells[offset]);
    }

    pub(crate) fn vacate(&self, offset: usize) {
        let mut occupants = self.occupants.write();
        let cell = &self.cells[offset];
        cell.set_watch(Watch::OFF);
        cell.set_state(Life {
            tag: cell.state().next_tag(),
            ..Life::EMPTY
        });
        occupants[offset] = None;
    }

    /// Nobody has to look at this cell any more, unless somebody lives in it again.
    pub(crate) fn unwatch(&self, offset: usize) {
        let _occupants = self.occupants.read();
        let cell = &self.cells[offset];
        if cell.state().phase != Phase::Live {
            cell.set_watch(Watch::OFF);
        }
    }

    /// Writes the `watch` word, unless the cell's occupant or incarnation changed meanwhile.
    pub(crate) fn set_watch(&self, offset: usize, tag: u32, watch: Watch) {
        let _occupants = self.occupants.read();
        let cell = &self.cells[offset];
        if cell.state().tag == tag {
            cell.set_watch(watch);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    chunks: RwLock<Arc<Vec<Arc<Chunk>>>>,
    free: Mutex<Vec<Slot>>,
}

impl Slab {
    /// All chunks, in order. A chunk added meanwhile is not among them.
    pub(crate) fn chunks(&self) -> Arc<Vec<Arc<Chunk>>> {
        Arc::clone(&self.chunks.read())
    }

    pub(crate) fn chunk(&self, slot: Slot) -> Arc<Chunk> {
        Arc::clone(&self.chunks.read()[slot.chunk as usize])
    }

    /// A free cell. The lowest first, so that the used ones lie together.
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
        grown.push(Arc::new(Chunk::new(size)));
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
        let slab = Slab::default();
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
