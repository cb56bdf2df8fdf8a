//! The atomics of the lock-free parts, so that a model checker can take their place.

#[cfg(all(loom, test))]
pub(crate) use crate::models::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
