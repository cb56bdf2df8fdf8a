//! Refuses numbers of a store that went back: it has lost data, or another store took its place.
//!
//! An incarnation or a fence that is not higher than an earlier one would let a late writer overwrite
//! the work of a newer one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::shapes::WorkerKey;
use crate::error::{Error, StoreErrorKind};

/// The highest incarnation and the highest fence that this process was given.
#[derive(Debug, Default)]
pub(super) struct HighestNumbers {
    incarnation: AtomicU64,
    fence: AtomicU64,
}

/// The same, at the time before a request: the answer has a higher number.
#[derive(Clone, Copy, Debug)]
pub(super) struct NumbersBefore {
    incarnation: u64,
    fence: u64,
}

impl HighestNumbers {
    pub(super) fn before_request(&self) -> NumbersBefore {
        NumbersBefore {
            incarnation: self.incarnation.load(Ordering::Acquire),
            fence: self.fence.load(Ordering::Acquire),
        }
    }

    /// Checks the incarnations that a store gave.
    pub(super) fn check_incarnations<'a>(
        &self,
        before: NumbersBefore,
        keys: impl Iterator<Item = &'a WorkerKey> + Clone,
    ) -> Result<(), Error> {
        let numbers = keys.map(|key| key.incarnation);
        if let Some(lowest) = numbers.clone().min() {
            check("register", "incarnation", before.incarnation, lowest)?;
        }
        let highest = numbers.max().unwrap_or_default();
        self.incarnation.fetch_max(highest, Ordering::AcqRel);
        Ok(())
    }

    /// Checks the fence that a store gave.
    pub(super) fn check_fence(&self, before: NumbersBefore, fence: u64) -> Result<(), Error> {
        check("claim", "fence", before.fence, fence)?;
        self.fence.fetch_max(fence, Ordering::AcqRel);
        Ok(())
    }
}

fn check(operation: &'static str, what: &str, before: u64, number: u64) -> Result<(), Error> {
    if number > before {
        return Ok(());
    }
    let message = format!(
        "it gave the {what} {number}, after {before}: it has lost data, or is another store; if \
         nothing relies on the earlier numbers, restart this process"
    );
    let kind = StoreErrorKind::Incompatible;
    Err(Error::store_kind(operation, kind, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_must_be_higher_than_those_before_the_request() {
        let highest = HighestNumbers::default();
        let first = highest.before_request();
        let keys = |numbers: &[u64]| -> Vec<WorkerKey> {
            numbers.iter().map(|n| WorkerKey::new("a", *n)).collect()
        };
        let given =
            |before, numbers: &[u64]| highest.check_incarnations(before, keys(numbers).iter());
        given(first, &[7, 5]).unwrap();
        // Answers to requests that overlap come in any order.
        given(first, &[6]).unwrap();
        highest.check_fence(first, 3).unwrap();
        let second = highest.before_request();
        for number in [0, 6, 7] {
            let refused = given(second, &[9, number]);
            let text = refused.unwrap_err().to_string();
            assert!(text.contains("after 7"), "{text}");
        }
        assert!(highest.check_fence(second, 3).is_err());
        highest.check_fence(second, 4).unwrap();
        given(second, &[8]).unwrap();
        given(second, &[]).unwrap();
    }
}
