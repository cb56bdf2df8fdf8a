//! Where a worker's cell is, and which of its occupants is meant.

use super::word::TAG_BITS;

/// The position of a cell in the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub chunk: u32,
    pub offset: u32,
}

/// Identifies one life: its cell, and the tag of the occupant. Packed into one word, so that a record can
/// change it atomically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CellKey(u64);

const OFFSET_BITS: u32 = 14;

impl CellKey {
    /// The largest number of cells in a chunk.
    pub(crate) const MOST_OFFSETS: usize = 1 << OFFSET_BITS;

    pub(crate) const fn new(slot: Slot, tag: u32) -> Self {
        Self(
            (slot.chunk as u64) << (OFFSET_BITS + TAG_BITS)
                | (slot.offset as u64) << TAG_BITS
                | tag as u64,
        )
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) const fn slot(self) -> Slot {
        Slot {
            chunk: (self.0 >> (OFFSET_BITS + TAG_BITS)) as u32,
            offset: (self.0 >> TAG_BITS) as u32 & (Self::MOST_OFFSETS as u32 - 1),
        }
    }

    /// Whether the life is in this cell.
    #[inline]
    pub(crate) const fn is_in(self, slot: Slot) -> bool {
        self.0 >> TAG_BITS == Self::new(slot, 0).0 >> TAG_BITS
    }

    #[inline]
    pub(crate) const fn tag(self) -> u32 {
        self.0 as u32 & ((1 << TAG_BITS) - 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_cell_key_survives_packing() {
        let slot = Slot {
            chunk: (1 << 21) - 1,
            offset: CellKey::MOST_OFFSETS as u32 - 1,
        };
        for (slot, tag) in [
            (slot, 0),
            (slot, (1 << TAG_BITS) - 1),
            (
                Slot {
                    chunk: 0,
                    offset: 7,
                },
                3,
            ),
        ] {
            let key = CellKey::from_word(CellKey::new(slot, tag).word());
            assert_eq!((key.slot(), key.tag()), (slot, tag));
        }
    }
}
