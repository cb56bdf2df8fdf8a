//! Counts workers that come and go meanwhile, each once.
//!
//! A worker that ends moves from its cell to the tombstones, and one that takes over an id brings its
//! predecessor from there to its end. Whoever looks at both places one after the other would see
//! some worker in both or in none.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use parking_lot::RwLock;

/// So often it is counted without keeping anybody from moving.
const ATTEMPTS: u32 = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ConsistentScan {
    begun: AtomicU64,
    done: AtomicU64,
    /// Shared by those who move; taken alone by who could not count for all their moves.
    moving: RwLock<()>,
}

impl ConsistentScan {
    /// A worker moves from one place to another.
    pub(super) fn move_with<T>(&self, change: impl FnOnce() -> T) -> T {
        let _moving = self.moving.read();
        self.begun.fetch_add(1, Ordering::Relaxed);
        // Who sees anything of what follows sees that it has begun.
        fence(Ordering::Release);
        let changed = change();
        self.done.fetch_add(1, Ordering::Release);
        changed
    }

    /// Counts all places at one moment: again if anybody moved meanwhile, and after a few times
    /// while nobody may.
    pub(super) fn count<T>(&self, mut count: impl FnMut() -> T) -> T {
        for _ in 0..ATTEMPTS {
            let done = self.done.load(Ordering::Acquire);
            if self.begun.load(Ordering::Relaxed) != done {
                std::hint::spin_loop();
                continue;
            }
            let counted = count();
            fence(Ordering::Acquire);
            if self.begun.load(Ordering::Relaxed) == done {
                return counted;
            }
        }
        let _alone = self.moving.write();
        count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_was_disturbed_is_repeated_and_then_comes_first() {
        let scan = ConsistentScan::default();
        let mut counted = 0;
        let undisturbed = scan.count(|| {
            counted += 1;
            counted
        });
        assert_eq!(undisturbed, 1, "nobody moved");
        let mut counted = 0;
        let disturbed = scan.count(|| {
            counted += 1;
            if counted <= ATTEMPTS {
                scan.move_with(|| ());
            }
            assert_eq!(scan.moving.try_read().is_none(), counted > ATTEMPTS);
            counted
        });
        assert_eq!(disturbed, ATTEMPTS + 1);
    }
}
