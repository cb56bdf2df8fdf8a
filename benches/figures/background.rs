//! Another thread that reads while something is measured.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How often the other thread reads.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    TightLoop,
    Each(Duration),
}

/// How often the other thread has read. In a cache line of its own, so that counting does
/// not disturb the measurement.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Reads(AtomicU64);

impl Reads {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Calls `read` on another thread, at this pace, from before `measure` begins until it has ended.
pub(crate) fn while_reading<R, T>(
    pace: Pace,
    read: impl Fn() -> R + Sync,
    measure: impl FnOnce(&Reads) -> T,
) -> T {
    let (reads, over) = (Reads::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                drop(read());
                reads.0.store(reads.count() + 1, Ordering::Relaxed);
                if let Pace::Each(pause) = pace {
                    thread::sleep(pause);
                }
            }
        });
        while reads.count() == 0 {
            thread::yield_now();
        }
        let measured = measure(&reads);
        over.store(true, Ordering::Relaxed);
        measured
    })
}
