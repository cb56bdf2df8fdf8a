//! So that a thousand processes that started together do not knock together.

use std::time::Duration;

use crate::sync::random::random;

/// Random numbers, good enough to spread what comes at once.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new() -> Self {
        Self(random() | 1)
    }

    /// Up to a tenth less.
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
    fn it_takes_away_a_tenth_at_most_and_not_always_the_same() {
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
