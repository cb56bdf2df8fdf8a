//! Counts workers that move, for those who look at all workers and never make anybody wait: one that
//! moves meanwhile may be seen twice, or not at all.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Moves of one kind, numbered from 1.
#[derive(Debug, Default)]
pub(super) struct Moves {
    begun: AtomicU64,
    done: AtomicU64,
}

/// How often it is looked again if somebody is just moving.
const LOOKS: u32 = 1_000;

impl Moves {
    /// Begins a move; it is done when what this returns is dropped.
    pub(super) fn begin(&self) -> Move<'_> {
        // Who sees anything of the move sees this: cells, graves and records are changed by releases.
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        Move {
            moves: self,
            number,
        }
    }

    /// All moves up to this number have been done; 0 if some take long and it is not known which.
    pub(super) fn done(&self) -> u64 {
        for _ in 0..LOOKS {
            let done = self.done.load(Ordering::Acquire);
            if self.begun.load(Ordering::Relaxed) == done {
                return done;
            }
            std::hint::spin_loop();
        }
        0
    }

    /// Of moves beyond this number, nothing has been seen before.
    pub(super) fn begun(&self) -> u64 {
        fence(Ordering::Acquire);
        self.begun.load(Ordering::Relaxed)
    }
}

/// See [`Moves::begin`].
#[must_use = "the move is done when this is dropped"]
pub(super) struct Move<'a> {
    moves: &'a Moves,
    pub(super) number: u64,
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.moves.done.fetch_add(1, Ordering::Release);
    }
}
