//! The only place that catches panics of code outside this crate.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code that may panic on a thread that must go on: the application's code, a store, a log
/// implementation, a waker.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Caught> {
    let deeper = |by: fn(u32) -> u32| {
        // An ending thread has no thread-locals any more.
        let _ = DEPTH.try_with(|depth| depth.set(by(depth.get())));
    };
    deeper(|depth| depth.saturating_add(1));
    let result = catch_unwind(AssertUnwindSafe(work));
    deeper(|depth| depth.saturating_sub(1));
    result.map_err(|payload| Caught(Some(payload)))
}

thread_local! {
    /// The number of calls of [`catch`] that the thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether a panic of the calling thread would be caught here.
pub(crate) fn is_catching() -> bool {
    DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false)
}

/// A panic payload. It may be of any type and may panic in `drop`, which is contained.
pub(crate) struct Caught(Option<Box<dyn Any + Send>>);

impl Caught {
    pub(crate) fn payload(&self) -> &(dyn Any + Send) {
        self.0.as_deref().unwrap_or(&())
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        let payload = self.0.take();
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            // A payload that panics in `drop` twice in a row leaks.
            std::mem::forget(second);
        }
    }
}

impl fmt::Debug for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caught")
    }
}
