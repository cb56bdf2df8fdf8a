//! The threads that do work: numbers that are never reused, and which of the threads have ended.
//!
//! A thread is entered when it first speaks for a worker. Its end is noticed by the destructor of a
//! thread-local, so that watching threads costs nothing while they run. Other destructors may still
//! run then; the thread counts as ended when the kernel no longer has it, where that can be asked.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::sync::procfs::{Presence, Stat};

/// So many endings are looked into at once, so that no look takes long.
const MOST_LOOKS: usize = 256;
/// From so many endings on, the next thread that comes looks into them.
const CROWD: usize = 64;

static TABLE: Mutex<Table> = Mutex::new(Table {
    next: 1,
    known: BTreeMap::new(),
    ending: Vec::new(),
});
/// How many are at their end, and not known to have ended.
static ENDING: AtomicUsize = AtomicUsize::new(0);
/// How many have ended.
static ENDED: AtomicU64 = AtomicU64::new(0);

struct Table {
    next: u32,
    /// All that have not ended, by number, as the kernel knows them; `None` where it does not say.
    known: BTreeMap<u32, Option<KernelThread>>,
    ending: Vec<u32>,
}

impl Table {
    /// Forgets threads that have ended, unless another thread has done so meanwhile.
    fn forget(&mut self, ended: &[(u32, Option<KernelThread>)]) {
        let mut forgotten = 0;
        for (number, _) in ended {
            forgotten += usize::from(self.known.remove(number).is_some());
        }
        let Self { known, ending, .. } = self;
        ending.retain(|number| known.contains_key(number));
        // A crowd that has gone leaves no room behind.
        ending.shrink_to(CROWD);
        ENDING.fetch_sub(forgotten, Ordering::Relaxed);
        ENDED.fetch_add(forgotten as u64, Ordering::Release);
    }
}

/// A thread, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelThread {
    pub id: u32,
    /// When it started, in clock ticks since boot.
    started: u64,
    /// The process that it is of.
    process: u32,
}

impl KernelThread {
    /// The calling thread. Linux only.
    fn current() -> Option<Self> {
        Stat::read("/proc/thread-self/stat").map(|stat| Self {
            id: stat.id,
            started: stat.started,
            process: std::process::id(),
        })
    }

    /// What the kernel says of it.
    pub(crate) fn look(&self) -> Presence {
        Presence::at(&format!("/proc/self/task/{}/stat", self.id), self.started)
    }

    /// As it is known in this process. In a forked child, only the thread that forked is left, with
    /// the child's own id.
    fn here(self) -> Option<Self> {
        let process = std::process::id();
        if self.process == process {
            return Some(self);
        }
        Stat::read("/proc/self/stat").map(|stat| Self {
            id: process,
            started: stat.started,
            process,
        })
    }
}

thread_local! {
    /// The thread's number; 0 until it has one.
    static NUMBER: Cell<u32> = const { Cell::new(0) };
    static END: End = const { End(Cell::new(0)) };
}

/// Notices the end of its thread.
struct End(Cell<u32>);

impl Drop for End {
    fn drop(&mut self) {
        let number = self.0.get();
        if number != 0 {
            TABLE.lock().ending.push(number);
            ENDING.fetch_add(1, Ordering::Release);
        }
    }
}

/// The calling thread's number; 0 if it is at its end already.
#[inline]
pub(crate) fn current() -> u32 {
    NUMBER
        .try_with(|number| match number.get() {
            0 => enter(number),
            known => known,
        })
        .unwrap_or(0)
}

#[cold]
fn enter(number: &Cell<u32>) -> u32 {
    if ENDING.load(Ordering::Relaxed) >= CROWD {
        look_for_ended();
    }
    let thread = KernelThread::current();
    END.try_with(|end| {
        let mut table = TABLE.lock();
        let new = table.next;
        // After four thousand million threads, the first numbers are free again.
        table.next = new.wrapping_add(1).max(1);
        table.known.insert(new, thread);
        drop(table);
        end.0.set(new);
        number.set(new);
        new
    })
    .unwrap_or(0)
}

/// The thread with this number, as the kernel knows it.
pub(crate) fn kernel_thread(number: u32) -> Option<KernelThread> {
    let known = *TABLE.lock().known.get(&number)?;
    known?.here()
}

/// Looks for threads that have ended. Returns how many have, ever: as long as that does not change,
/// nobody has to look which.
pub(crate) fn look_for_ended() -> u64 {
    if ENDING.load(Ordering::Acquire) > 0 {
        let mut ending: Vec<(u32, Option<KernelThread>)> = {
            let table = TABLE.lock();
            let some = table.ending.iter().take(MOST_LOOKS);
            some.map(|number| (*number, table.known.get(number).copied().flatten()))
                .collect()
        };
        // Not under the lock: this asks the kernel.
        ending.retain(|(_, thread)| {
            !thread.is_some_and(|thread| matches!(thread.look(), Presence::There(_)))
        });
        TABLE.lock().forget(&ending);
    }
    ENDED.load(Ordering::Acquire)
}

/// The numbers of all threads that have not ended, in order.
pub(crate) fn living() -> Vec<u32> {
    TABLE.lock().known.keys().copied().collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn wait_for_the_end_of(number: u32) {
        while living().binary_search(&number).is_ok() {
            look_for_ended();
            // The kernel needs a moment to take a joined thread off its list.
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_has_one_number_until_it_ends() {
        let here = current();
        assert_ne!(here, 0);
        assert_eq!(current(), here);
        let ended_before = look_for_ended();
        let other = std::thread::spawn(|| {
            let number = current();
            assert!(living().binary_search(&number).is_ok());
            number
        });
        let other = other.join().unwrap();
        assert_ne!(other, here);
        wait_for_the_end_of(other);
        assert!(look_for_ended() > ended_before);
        assert!(living().binary_search(&here).is_ok());
        assert_eq!(kernel_thread(other), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_knows_this_thread() {
        let thread = kernel_thread(current()).unwrap();
        assert!(matches!(thread.look(), Presence::There(stat) if stat.state == 'R'));
        let other = KernelThread {
            started: thread.started + 1,
            ..thread
        };
        assert_eq!(other.look(), Presence::Gone, "its id was used again");
    }

    #[test]
    fn many_threads_that_ended_leave_nothing_behind() {
        let numbers: Vec<u32> = (0..300)
            .map(|_| std::thread::spawn(current).join().unwrap())
            .collect();
        for number in numbers {
            wait_for_the_end_of(number);
        }
    }
}
