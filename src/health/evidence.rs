//! What the kernel reports of a stalled worker's thread.
//!
//! Linux: `/proc/self/task/<tid>/{stat,schedstat,wchan}` (proc(5)), read twice. Elsewhere, or where
//! the files cannot be read, there is no evidence.

use std::fs;
use std::time::{Duration, Instant};

use super::StallCause;
use crate::sync::procfs::Presence;
use crate::sync::threads::{self, KernelThread};

/// A shorter time between two samples says nothing.
pub(crate) const SHORTEST_WINDOW: Duration = Duration::from_millis(10);
/// A longer time between two samples says nothing new.
pub(crate) const LONG_WINDOW: Duration = Duration::from_millis(100);

/// From this share of a processor on, a thread is busy.
const BUSY_PERCENT: u8 = 10;
/// From this share of its time in a run queue on, a thread that is not busy is starved.
const STARVED_PERCENT: u8 = 50;

/// One sample of a thread.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    at: Instant,
    /// Its number.
    thread: u32,
    cpu: Duration,
    queued: Duration,
    running: bool,
    place: Option<String>,
}

impl Sample {
    /// Samples the thread with this number. `None` if it is unknown, or the kernel does not report
    /// it.
    pub(crate) fn take(thread: u32) -> Option<Self> {
        let KernelThread { id, .. } = threads::kernel_thread(thread)?;
        let read = |file| fs::read_to_string(format!("/proc/self/task/{id}/{file}"));
        let (cpu, queued) = parse_schedstat(&read("schedstat").ok()?)?;
        let place = read("wchan")
            .ok()
            .filter(|place| !place.is_empty() && place != "0");
        // Last: if the thread is still there, the other files were its own.
        let Presence::There(stat) = threads::kernel_thread(thread)?.look() else {
            return None;
        };
        Some(Self {
            at: Instant::now(),
            thread,
            cpu,
            queued,
            running: stat.state == 'R',
            place,
        })
    }

    pub(crate) fn thread(&self) -> u32 {
        self.thread
    }

    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// What the thread did from `first` to this sample. `None`: the time is too short, or the
    /// thread another.
    pub(crate) fn since(&self, first: &Self) -> Option<StallCause> {
        let window = self.at.saturating_duration_since(first.at);
        if window < SHORTEST_WINDOW || self.thread != first.thread {
            return None;
        }
        let percent = |later: Duration, earlier: Duration| {
            let share = later.saturating_sub(earlier).as_nanos() * 100 / window.as_nanos().max(1);
            u8::try_from(share.min(100)).unwrap_or(100)
        };
        let cpu = percent(self.cpu, first.cpu);
        let queued = percent(self.queued, first.queued);
        // With a fair share of a processor, a thread is busy, even on a crowded host. With next to
        // none, and waiting for it, it is starved. A blocked thread neither uses nor waits for a
        // processor.
        Some(if cpu >= BUSY_PERCENT {
            StallCause::Busy { percent: cpu }
        } else if queued >= STARVED_PERCENT {
            StallCause::Starved { percent: queued }
        } else if self.running && cpu > 0 {
            StallCause::Busy { percent: cpu }
        } else {
            StallCause::Blocked {
                place: self.place.clone(),
            }
        })
    }
}

/// Time on a processor and time in a run queue.
fn parse_schedstat(text: &str) -> Option<(Duration, Duration)> {
    let mut fields = text
        .split_ascii_whitespace()
        .map(|field| field.parse().map(Duration::from_nanos).ok());
    Some((fields.next()??, fields.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, cpu: u64, queued: u64) -> Sample {
        Sample {
            at,
            thread: 7,
            cpu: Duration::from_millis(cpu),
            queued: Duration::from_millis(queued),
            running: false,
            place: Some("futex_wait_queue".into()),
        }
    }

    #[test]
    fn the_counter_that_rises_gives_the_cause() {
        let start = Instant::now();
        let first = sample(start, 1_000, 1_000);
        let later = |cpu: u64, queued: u64| {
            sample(
                start + Duration::from_millis(100),
                1_000 + cpu,
                1_000 + queued,
            )
            .since(&first)
        };
        assert_eq!(later(97, 3), Some(StallCause::Busy { percent: 97 }));
        assert_eq!(later(10, 90), Some(StallCause::Busy { percent: 10 }));
        assert_eq!(later(9, 50), Some(StallCause::Starved { percent: 50 }));
        assert!(matches!(later(9, 49), Some(StallCause::Blocked { .. })));
        assert_eq!(later(1, 98), Some(StallCause::Starved { percent: 98 }));
        assert_eq!(
            later(1, 0),
            Some(StallCause::Blocked {
                place: Some("futex_wait_queue".into())
            })
        );
    }

    #[test]
    fn too_short_a_time_or_another_thread_gives_no_cause() {
        let start = Instant::now();
        let first = sample(start, 0, 0);
        let soon = sample(start + SHORTEST_WINDOW - Duration::from_nanos(1), 9, 0);
        assert_eq!(soon.since(&first), None);
        let mut other = sample(start + LONG_WINDOW, 100, 0);
        other.thread = 8;
        assert_eq!(other.since(&first), None);
    }

    #[test]
    fn odd_files_are_no_evidence() {
        assert_eq!(parse_schedstat("12 x"), None);
        assert_eq!(parse_schedstat(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_sample_of_this_thread_can_be_taken() {
        let thread = threads::current();
        let sample = Sample::take(thread).unwrap();
        assert!(sample.running);
        assert!(Sample::take(0).is_none());
        assert!(Sample::take(u32::MAX).is_none());
    }
}
