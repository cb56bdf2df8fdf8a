//! Random numbers, good enough to spread what would come at once. Nothing here is a secret.

use std::hash::{BuildHasher, RandomState};
use std::process;
use std::time::{Instant, SystemTime};

/// A random number. The standard library's hash keys are random, but a thread has them from its start:
/// children that it forks have the same. So the process and the time count as well.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one((process::id(), Instant::now(), SystemTime::now()))
}
