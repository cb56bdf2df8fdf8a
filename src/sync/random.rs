//! Random numbers for jitter. They are not fit for secrets.

use std::hash::{BuildHasher, RandomState};
use std::process;
use std::time::{Instant, SystemTime};

/// A random number. The standard library's hash keys are random, but belong to the thread, and a
/// forked child has the same ones. So the process id and the time are hashed, too.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one((process::id(), Instant::now(), SystemTime::now()))
}
