//! Random numbers: for jitter, and for nonces.

use std::hash::{BuildHasher, RandomState};
use std::process;
use std::time::{Duration, Instant, SystemTime};

/// A random number, not fit for secrets. The standard library's hash keys are random, but belong to the thread, and a
/// forked child has the same ones. So the process id and the time are hashed, too.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one((process::id(), Instant::now(), SystemTime::now()))
}

/// A number that no other party can predict, from the operating system.
#[cfg(feature = "http")]
pub(crate) fn unpredictable() -> Result<u64, getrandom::Error> {
    getrandom::u64()
}

/// Shortens intervals at random, so that processes that started together do not act together.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new() -> Self {
        Self(random() | 1)
    }

    /// Shortened by up to a tenth.
    pub(crate) fn shorten(&mut self, duration: Duration) -> Duration {
        // xorshift64 (Marsaglia, 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        duration - duration / 10_000 * (self.0 % 1_000) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_shortened_by_a_tenth_at_most_and_not_always_the_same() {
        let mut jitter = Jitter::new();
        let second = Duration::from_secs(1);
        let some: Vec<_> = (0..100).map(|_| jitter.shorten(second)).collect();
        assert!(
            some.iter()
                .all(|some| (second / 10 * 9..=second).contains(some))
        );
        assert!(some.iter().min() < some.iter().max());
    }
}
