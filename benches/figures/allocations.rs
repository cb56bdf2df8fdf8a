//! Counts what is asked of the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are in use, as requested, in the whole process.
static BYTES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Requests of this thread.
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count.
pub(crate) struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(block, layout) }
    }
}

fn count(taken: usize, returned: usize) {
    BYTES.fetch_add(taken, Ordering::Relaxed);
    BYTES.fetch_sub(returned, Ordering::Relaxed);
    REQUESTS.set(REQUESTS.get() + 1);
}

/// How often `work` asks for memory, on this thread.
pub(crate) fn requests_of(work: impl FnOnce()) -> u64 {
    let before = REQUESTS.get();
    work();
    REQUESTS.get() - before
}

/// Bytes that are in use, as requested.
pub(crate) fn bytes_in_use() -> usize {
    BYTES.load(Ordering::Relaxed)
}
