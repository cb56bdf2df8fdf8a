//! Supervised work that has begun and not returned. A shutdown waits for it: work whose worker was
//! idle, and is shown as stopped already, may still be on its way out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::Roster;
use super::record::Record;
use crate::threads;

/// All such work of a registry, in the order in which it began.
#[derive(Debug, Default)]
pub(crate) struct Unreturned(Mutex<Running>);

#[derive(Debug, Default)]
struct Running {
    by_number: BTreeMap<u64, Arc<Work>>,
    next: u64,
}

#[derive(Debug)]
struct Work {
    record: Arc<Record>,
    /// The number of the thread that runs it now; 0 between two polls of a future.
    thread: AtomicU32,
    /// How many of its waits for the end of a shutdown have not returned, in tasks and on threads.
    waits: AtomicUsize,
    /// Those of them that block its thread.
    blocking_waits: AtomicUsize,
}

impl Work {
    /// It can return only after a shutdown that waits for it.
    fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire) > 0
    }

    /// It can do nothing until a shutdown is over.
    fn is_blocked(&self) -> bool {
        self.blocking_waits.load(Ordering::Acquire) > 0
    }
}

/// Held while supervised work runs: by its thread, or by its future from the first poll on.
#[derive(Debug)]
pub(crate) struct AtWork {
    roster: Arc<Roster>,
    number: u64,
    work: Arc<Work>,
}

impl AtWork {
    pub(crate) fn begin(roster: &Arc<Roster>, record: &Arc<Record>) -> Self {
        let work = Arc::new(Work {
            record: Arc::clone(record),
            thread: AtomicU32::new(0),
            waits: AtomicUsize::new(0),
            blocking_waits: AtomicUsize::new(0),
        });
        let mut running = roster.unreturned.0.lock();
        let number = running.next;
        running.next += 1;
        running.by_number.insert(number, Arc::clone(&work));
        drop(running);
        Self {
            roster: Arc::clone(roster),
            number,
            work,
        }
    }

    /// Notes that the calling thread runs it, until what is returned is dropped.
    pub(crate) fn on_this_thread(&self) -> OnThread<'_> {
        let before = self.work.thread.swap(threads::current(), Ordering::AcqRel);
        OnThread {
            work: &self.work,
            before,
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let returned = self
            .roster
            .unreturned
            .0
            .lock()
            .by_number
            .remove(&self.number);
        drop(returned);
        self.roster.note_end();
    }
}

/// See [`AtWork::on_this_thread`].
pub(crate) struct OnThread<'a> {
    work: &'a Work,
    before: u32,
}

impl Drop for OnThread<'_> {
    fn drop(&mut self) {
        self.work.thread.store(self.before, Ordering::Release);
    }
}

/// Work that waits for the end of a shutdown, which does not wait for it as long as this is held.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    work: Vec<(Arc<Roster>, Arc<Work>)>,
    blocking: bool,
}

impl Waits {
    /// The work that the calling thread runs, which `blocking` keeps from everything else.
    pub(crate) fn begin<'a>(
        rosters: impl Iterator<Item = &'a Arc<Roster>>,
        blocking: bool,
    ) -> Self {
        let thread = threads::current();
        let mut waits = Self {
            work: Vec::new(),
            blocking,
        };
        if thread == 0 {
            // It is at its end, and runs no work any more.
            return waits;
        }
        for roster in rosters {
            let running = roster.unreturned.0.lock();
            let of_thread = |work: &&Arc<Work>| work.thread.load(Ordering::Acquire) == thread;
            for work in running.by_number.values().filter(of_thread) {
                work.waits.fetch_add(1, Ordering::AcqRel);
                work.blocking_waits
                    .fetch_add(usize::from(blocking), Ordering::AcqRel);
                waits.work.push((Arc::clone(roster), Arc::clone(work)));
            }
        }
        waits.work.iter().for_each(|(roster, _)| roster.note_end());
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

impl Unreturned {
    /// The workers whose work a shutdown has to wait for.
    pub(crate) fn awaited(&self) -> Vec<Arc<Record>> {
        let running = self.0.lock();
        let awaited = running.by_number.values().filter(|work| !work.waits());
        awaited.map(|work| Arc::clone(&work.record)).collect()
    }

    /// Whether there is work that a shutdown has to wait for.
    pub(crate) fn is_awaited(&self) -> bool {
        let running = self.0.lock();
        running.by_number.values().any(|work| !work.waits())
    }

    /// The workers whose threads are blocked until a shutdown is over.
    pub(crate) fn blocked(&self) -> Vec<Arc<Record>> {
        let running = self.0.lock();
        let blocked = running.by_number.values().filter(|work| work.is_blocked());
        blocked.map(|work| Arc::clone(&work.record)).collect()
    }
}
