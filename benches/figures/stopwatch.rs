//! Time without preemption: wall time less the time in which this thread waited for a processor.

use std::fs;
use std::time::{Duration, Instant};

/// Runs from its start on.
pub(crate) struct Stopwatch {
    queued_before: Duration,
    begun: Instant,
}

/// A reading of a stopwatch.
#[derive(Clone, Copy)]
pub(crate) struct Lap {
    /// By the clock on the wall.
    pub(crate) whole: Duration,
    /// Less the time in which this thread was ready to run and another one ran.
    pub(crate) own: Duration,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            queued_before: queued(),
            begun: Instant::now(),
        }
    }

    pub(crate) fn lap(&self) -> Lap {
        let whole = self.begun.elapsed();
        let queued = queued().saturating_sub(self.queued_before);
        Lap {
            whole,
            own: whole.saturating_sub(queued),
        }
    }
}

/// How long this thread has waited for a processor since it began; zero where the kernel does not count it.
fn queued() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').nth(1).and_then(|field| field.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
