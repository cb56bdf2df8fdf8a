//! The polls of a worker that is a future.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock::Moment;
use crate::health::{CallSite, FutureInfo, SourceLocation};
use crate::sync::printable::cut;
use crate::sync::threads;

/// Written by the thread that polls the future; only one does at a time.
#[derive(Debug)]
pub(crate) struct Polls {
    type_name: &'static str,
    site: CallSite,
    count: AtomicU64,
    /// Polls that returned, unless the future ended.
    returned: AtomicU64,
    /// The last moment at which the last poll may have begun, on the registry's time line.
    began_by: AtomicU64,
    /// The number of the thread of the last poll.
    thread: AtomicU32,
}

impl Polls {
    pub(crate) const fn new(type_name: &'static str, site: CallSite) -> Self {
        Self {
            type_name,
            site,
            count: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            began_by: AtomicU64::new(0),
            thread: AtomicU32::new(0),
        }
    }

    /// Notes that a poll begins on the thread with this number. Reads no clock.
    #[inline]
    pub(crate) fn begin(&self, thread: u32, by: Moment) {
        self.began_by.store(by.as_nanos(), Ordering::Relaxed);
        self.thread.store(thread, Ordering::Relaxed);
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }

    /// Notes that the poll is over and the future is not.
    #[inline]
    pub(crate) fn end(&self) {
        let count = self.count.load(Ordering::Relaxed);
        self.returned.store(count, Ordering::Release);
    }

    /// `now`: on the registry's time line, if the worker lives. `progress_at`: when it last made progress,
    /// if polls are progress.
    pub(crate) fn info(&self, now: Option<Moment>, progress_at: Option<Moment>) -> FutureInfo {
        let returned = self.returned.load(Ordering::Acquire);
        let polls = self.count.load(Ordering::Acquire);
        let began_by = Moment::from_nanos(self.began_by.load(Ordering::Relaxed));
        // A poll that is progress began no later than the last progress.
        let began_by = progress_at.map_or(began_by, |at| began_by.min(at));
        let mut type_name = self.type_name.to_owned();
        cut(&mut type_name, FutureInfo::LONGEST_TYPE);
        let polled = now.filter(|_| polls > 0);
        FutureInfo {
            type_name,
            location: SourceLocation::of(self.site),
            polls,
            last_poll_age: polled.map(|now| now.since(began_by)),
            last_poll_thread: threads::description(self.thread.load(Ordering::Relaxed)),
            is_polled_now: polled.is_some() && returned != polls,
        }
    }
}
