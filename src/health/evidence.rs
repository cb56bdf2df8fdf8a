//! What a stalled worker's thread was found doing, from what the kernel says of it.
//!
//! Linux: `/proc/self/task/<tid>/{stat,schedstat,wchan}` (proc(5)), read twice. Elsewhere, or where
//! the files cannot be read, there is no evidence.

use std::cell::Cell;
use std::fs;
use std::time::{Duration, Instant};

use super::StallCause;

/// Less than this between two samples says nothing.
pub(crate) const SHORTEST_WINDOW: Duration = Duration::from_millis(10);
/// More than this says nothing new.
pub(crate) const LONG_WINDOW: Duration = Duration::from_millis(100);

/// From this share of a processor on, a thread is busy.
const BUSY_PERCENT: u8 = 10;
/// From this share of its time in a run queue on, a thread that is not busy is starved.
const STARVED_PERCENT: u8 = 50;

thread_local! {
    static THREAD: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The kernel's id of the calling thread; 0 if there is none to be had. Asked once a thread.
#[inline]
pub(crate) fn current_thread() -> u32 {
    THREAD
        .try_with(|known| {
            known.get().unwrap_or_else(|| {
                let id = ask_current_thread().unwrap_or(0);
                known.set(Some(id));
                id
            })
        })
        .unwrap_or(0)
}

#[cold]
fn ask_current_thread() -> Option<u32> {
    let link = fs::read_link("/proc/thread-self").ok()?;
    link.file_name()?.to_str()?.parse().ok()
}

/// One look at a thread.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    at: Instant,
    thread: u32,
    /// Which thread of that id: when it started, in clock ticks since boot.
    started: u64,
    cpu: Duration,
    queued: Duration,
    running: bool,
    place: Option<String>,
}

impl Sample {
    pub(crate) fn take(thread: u32) -> Option<Self> {
        if thread == 0 {
            return None;
        }
        let read = |file| fs::read_to_string(format!("/proc/self/task/{thread}/{file}"));
        let stat = Stat::parse(&read("stat").ok()?)?;
        let (cpu, queued) = parse_schedstat(&read("schedstat").ok()?)?;
        let place = read("wchan")
            .ok()
            .filter(|place| !place.is_empty() && place != "0");
        Some(Self {
            at: Instant::now(),
            thread,
            started: stat.started,
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

    /// What the thread did from `first` to this sample. `None`: too short a time to tell, or not
    /// the same thread.
    pub(crate) fn since(&self, first: &Self) -> Option<StallCause> {
        let window = self.at.saturating_duration_since(first.at);
        if window < SHORTEST_WINDOW || (self.thread, self.started) != (first.thread, first.started)
        {
            return None;
        }
        let percent = |later: Duration, earlier: Duration| {
            let share = later.saturating_sub(earlier).as_nanos() * 100 / window.as_nanos().max(1);
            u8::try_from(share.min(100)).unwrap_or(100)
        };
        let cpu = percent(self.cpu, first.cpu);
        let queued = percent(self.queued, first.queued);
        // One that got a fair piece of a processor is busy, even on a crowded host. One that got
        // next to none, and waited for it, is starved. A blocked one neither uses nor wants any.
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

struct Stat {
    state: char,
    started: u64,
}

impl Stat {
    /// Fields 3 and 22. The second field is the thread's name in parentheses, which may itself
    /// contain spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { state, started })
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
            started: 1,
            cpu: Duration::from_millis(cpu),
            queued: Duration::from_millis(queued),
            running: false,
            place: Some("futex_wait_queue".into()),
        }
    }

    #[test]
    fn what_rises_tells_the_cause() {
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
    fn too_short_a_time_or_another_thread_tells_nothing() {
        let start = Instant::now();
        let first = sample(start, 0, 0);
        let soon = sample(start + SHORTEST_WINDOW - Duration::from_nanos(1), 9, 0);
        assert_eq!(soon.since(&first), None);
        let mut other = sample(start + LONG_WINDOW, 100, 0);
        other.started = 2;
        assert_eq!(other.since(&first), None);
    }

    #[test]
    fn a_thread_name_cannot_confuse_the_parser() {
        let fields = "R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 x";
        let stat = Stat::parse(&format!("7 (a ) b (R) {fields}")).unwrap();
        assert_eq!((stat.state, stat.started), ('R', 4711));
        assert!(Stat::parse("").is_none());
        assert!(Stat::parse("7 (x) R 1").is_none());
        assert_eq!(parse_schedstat("12 x"), None);
        assert_eq!(parse_schedstat(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_sample_of_this_thread_can_be_taken() {
        let thread = current_thread();
        assert_ne!(thread, 0);
        let sample = Sample::take(thread).unwrap();
        assert!(sample.running);
        assert!(Sample::take(0).is_none());
        assert!(Sample::take(u32::MAX).is_none());
    }
}
