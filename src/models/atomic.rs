//! Loom's atomics, each access of which may come before or after any access of other threads.
//!
//! By itself loom leaves out orders that make no difference. It tracks only the last access to an atomic,
//! which is not enough for the load and the store of a beat: the beat's own load hides an earlier load by
//! the pacemaker, so loom never tries the store before that. Therefore each access also touches one object
//! that all threads share, and that orders nothing.

pub(crate) use loom::sync::atomic::Ordering;

loom::lazy_static! {
    /// No thread ever waits for it.
    static ref BATON: loom::sync::Condvar = loom::sync::Condvar::new();
}

pub(super) fn pause() {
    BATON.notify_one();
}

pub(crate) fn fence(order: Ordering) {
    pause();
    loom::sync::atomic::fence(order);
}

#[derive(Debug)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    #[track_caller]
    pub(crate) fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    #[track_caller]
    pub(crate) fn load(&self, order: Ordering) -> u64 {
        pause();
        self.0.load(order)
    }

    #[track_caller]
    pub(crate) fn store(&self, value: u64, order: Ordering) {
        pause();
        self.0.store(value, order);
    }

    #[track_caller]
    pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        pause();
        self.0.fetch_max(value, order)
    }

    #[track_caller]
    pub(crate) fn compare_exchange_weak(
        &self,
        known: u64,
        value: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        pause();
        self.0.compare_exchange_weak(known, value, success, failure)
    }
}
