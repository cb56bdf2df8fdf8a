//! Supervised work that has begun and not returned. A shutdown waits for it: the work of an idle
//! worker that was stopped may still be returning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Core;
use super::record::Record;
use crate::sync::threads;

/// The unreturned work of a registry.
#[derive(Debug, Default)]
pub(crate) struct Unreturned(Mutex<WorkInProgress>);

#[derive(Debug, Default)]
struct WorkInProgress {
    by_key: BTreeMap<WorkKey, Arc<RunningWork>>,
    next: u64,
}

/// The address of the record, which the work keeps alive, and a unique number.
type WorkKey = (usize, u64);

#[derive(Debug)]
struct RunningWork {
    record: Arc<Record>,
    /// The number of the thread that runs it now; 0 between two polls of a future.
    thread: AtomicU32,
    /// The number of its waits for the end of a shutdown, in tasks and on threads.
    waits: AtomicUsize,
    /// The number of these waits that block its thread.
    blocking_waits: AtomicUsize,
    /// Since when its thread has been writing its end to the log.
    logging_since: Mutex<Option<Instant>>,
}

impl RunningWork {
    /// Whether a shutdown has to wait for it. It does not wait for work that waits for the
    /// shutdown, nor longer than this for a log that blocks.
    fn is_awaited(&self, log_patience: Duration) -> bool {
        let logging_since = *self.logging_since.lock();
        let blocks = logging_since.is_some_and(|since| since.elapsed() >= log_patience);
        self.waits.load(Ordering::Acquire) == 0 && !blocks
    }

    /// Whether it is blocked until a shutdown is over.
    fn is_blocked(&self) -> bool {
        self.blocking_waits.load(Ordering::Acquire) > 0
    }
}

/// Held while supervised work runs: by its thread, or by its future from the first poll on.
#[derive(Debug)]
pub(crate) struct AtWork {
    core: Arc<Core>,
    key: WorkKey,
    work: Arc<RunningWork>,
}

impl AtWork {
    pub(crate) fn begin(core: &Arc<Core>, record: &Arc<Record>) -> Self {
        let work = Arc::new(RunningWork {
            record: Arc::clone(record),
            thread: AtomicU32::new(0),
            waits: AtomicUsize::new(0),
            blocking_waits: AtomicUsize::new(0),
            logging_since: Mutex::new(None),
        });
        let mut running = core.unreturned.0.lock();
        let key = (Arc::as_ptr(record).addr(), running.next);
        running.next += 1;
        running.by_key.insert(key, Arc::clone(&work));
        drop(running);
        Self {
            core: Arc::clone(core),
            key,
            work,
        }
    }

    /// Notes that the calling thread runs it, until the result is dropped.
    pub(crate) fn on_this_thread(&self) -> OnThread<'_> {
        self.on_thread(threads::current())
    }

    /// As [`on_this_thread`](Self::on_this_thread), for a caller that knows the number of its thread.
    pub(crate) fn on_thread(&self, thread: u32) -> OnThread<'_> {
        let before = self.work.thread.swap(thread, Ordering::AcqRel);
        OnThread {
            work: &self.work,
            before,
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut running = self.core.unreturned.0.lock();
        let returned = running.by_key.remove(&self.key);
        drop(running);
        drop(returned);
        self.core.note_end();
    }
}

/// See [`AtWork::on_this_thread`].
pub(crate) struct OnThread<'a> {
    work: &'a RunningWork,
    before: u32,
}

impl Drop for OnThread<'_> {
    fn drop(&mut self) {
        self.work.thread.store(self.before, Ordering::Release);
    }
}

/// Work that waits for the end of a shutdown. The shutdown does not wait for it as long as this is
/// held.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    work: Vec<(Arc<Core>, Arc<RunningWork>)>,
    blocking: bool,
}

impl Waits {
    /// The work that the calling thread runs. `blocking`: the wait blocks the thread.
    pub(crate) fn begin<'a>(cores: impl Iterator<Item = &'a Arc<Core>>, blocking: bool) -> Self {
        let thread = threads::current();
        let mut waits = Self {
            work: Vec::new(),
            blocking,
        };
        if thread == 0 {
            // The thread is ending, and runs no work any more.
            return waits;
        }
        for core in cores {
            let running = core.unreturned.0.lock();
            let of_thread =
                |work: &&Arc<RunningWork>| work.thread.load(Ordering::Acquire) == thread;
            for work in running.by_key.values().filter(of_thread) {
                work.waits.fetch_add(1, Ordering::AcqRel);
                work.blocking_waits
                    .fetch_add(usize::from(blocking), Ordering::AcqRel);
                waits.work.push((Arc::clone(core), Arc::clone(work)));
            }
        }
        waits.work.iter().for_each(|(core, _)| core.note_end());
        waits
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        for (_, work) in &self.work {
            work.waits.fetch_sub(1, Ordering::AcqRel);
            work.blocking_waits
                .fetch_sub(usize::from(self.blocking), Ordering::AcqRel);
        }
    }
}

/// Work whose thread is writing its end to the log, until this is dropped.
pub(crate) struct Logging(Vec<Arc<RunningWork>>);

impl Drop for Logging {
    fn drop(&mut self) {
        for work in &self.0 {
            *work.logging_since.lock() = None;
        }
    }
}

impl Unreturned {
    /// Whether the calling thread runs work of this worker.
    pub(crate) fn is_here(&self, record: &Record) -> bool {
        !self.here(record).is_empty()
    }

    /// The work of a worker that the calling thread runs.
    fn here(&self, record: &Record) -> Vec<Arc<RunningWork>> {
        let thread = threads::current();
        let address = std::ptr::from_ref(record).addr();
        let running = self.0.lock();
        let work = running.by_key.range((address, 0)..=(address, u64::MAX));
        let work = work.map(|(_, work)| work);
        let here = work.filter(|work| {
            // A thread that is ending has no number, and runs no work any more.
            thread != 0 && work.thread.load(Ordering::Acquire) == thread
        });
        here.cloned().collect()
    }

    /// The calling thread, which may run work of this worker, is about to log the worker's end.
    pub(crate) fn begin_logging(&self, record: &Record) -> Logging {
        let here = self.here(record);
        for work in &here {
            *work.logging_since.lock() = Some(Instant::now());
        }
        Logging(here)
    }

    /// The workers whose work a shutdown has to wait for, in the order in which it began.
    pub(crate) fn awaited(&self, log_patience: Duration) -> Vec<Arc<Record>> {
        let running = self.0.lock();
        let awaited = running.by_key.iter();
        let awaited = awaited.filter(|(_, work)| work.is_awaited(log_patience));
        let mut awaited: Vec<_> = awaited
            .map(|((_, number), work)| (*number, Arc::clone(&work.record)))
            .collect();
        drop(running);
        awaited.sort_unstable_by_key(|(number, _)| *number);
        awaited.into_iter().map(|(_, record)| record).collect()
    }

    /// Whether there is work that a shutdown has to wait for.
    pub(crate) fn is_awaited(&self, log_patience: Duration) -> bool {
        let running = self.0.lock();
        let mut work = running.by_key.values();
        work.any(|work| work.is_awaited(log_patience))
    }

    /// The workers whose threads are blocked until a shutdown is over.
    pub(crate) fn blocked(&self) -> Vec<Arc<Record>> {
        let running = self.0.lock();
        let blocked = running.by_key.values().filter(|work| work.is_blocked());
        blocked.map(|work| Arc::clone(&work.record)).collect()
    }
}
