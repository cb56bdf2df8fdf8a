//! The threads of workers: a number for each that is never reused, and which of them have ended.
//!
//! A thread is registered when it first reports progress for a worker. The destructor of a
//! thread-local notices its end, so that watching costs nothing while the thread runs. Other
//! destructors may still run then. Where the kernel can be asked, the thread counts as ended when the
//! kernel no longer lists it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::sync::procfs::{Presence, Stat};

/// The number of endings that one check looks into, so that no check takes long.
const MOST_LOOKS: usize = 256;
/// From this number of endings on, the next new thread looks into them.
const CROWD: usize = 64;

static TABLE: Mutex<Table> = Mutex::new(Table {
    next: 1,
    known: BTreeMap::new(),
    ending: Vec::new(),
});
/// How many threads are ending and not known to have ended.
static ENDING: AtomicUsize = AtomicUsize::new(0);
/// How many threads have ended.
static ENDED: AtomicU64 = AtomicU64::new(0);

struct Table {
    next: u32,
    /// The threads that have not ended, by number.
    known: BTreeMap<u32, KnownThread>,
    ending: Vec<u32>,
}

impl Table {
    /// Removes ended threads, unless another thread has removed them meanwhile.
    fn forget(&mut self, ended: &[(u32, Option<KernelThread>)]) {
        let mut forgotten = 0;
        for (number, _) in ended {
            forgotten += usize::from(self.known.remove(number).is_some());
        }
        let Self { known, ending, .. } = self;
        ending.retain(|number| known.contains_key(number));
        // Frees the memory of a burst of endings.
        ending.shrink_to(CROWD);
        ENDING.fetch_sub(forgotten, Ordering::Relaxed);
        ENDED.fetch_add(forgotten as u64, Ordering::Release);
    }
}

struct KnownThread {
    /// `None` where the kernel does not identify it.
    kernel: Option<KernelThread>,
    name: Option<Box<str>>,
}

/// The kernel's identity of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelThread {
    pub id: u32,
    /// When it started, in clock ticks since boot.
    started: u64,
    /// Its process.
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

    /// Asks the kernel whether it exists.
    pub(crate) fn look(&self) -> Presence {
        Presence::at(&format!("/proc/self/task/{}/stat", self.id), self.started)
    }

    /// Its identity in this process. In a forked child, only the forking thread is left, under the
    /// child's own id.
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
    static END: ThreadExit = const { ThreadExit(Cell::new(0)) };
}

/// Notices the end of its thread.
struct ThreadExit(Cell<u32>);

impl Drop for ThreadExit {
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
        count_ended();
    }
    let thread = KernelThread::current();
    END.try_with(|end| {
        // Its name can be asked for as long as it has thread-locals.
        let known = KnownThread {
            kernel: thread,
            name: std::thread::current().name().map(Into::into),
        };
        let mut table = TABLE.lock();
        let new = table.next;
        // After 2^32 threads, the first numbers are free again.
        table.next = new.wrapping_add(1).max(1);
        table.known.insert(new, known);
        drop(table);
        end.0.set(new);
        number.set(new);
        new
    })
    .unwrap_or(0)
}

/// The kernel's identity of the thread with this number.
pub(crate) fn kernel_thread(number: u32) -> Option<KernelThread> {
    let known = TABLE.lock().known.get(&number)?.kernel;
    known?.here()
}

/// The name and the kernel's number of the thread with this number, as far as they are known. `None` if it
/// has ended.
pub(crate) fn description(number: u32) -> Option<String> {
    let (name, kernel) = {
        let table = TABLE.lock();
        let known = table.known.get(&number)?;
        (known.name.clone(), known.kernel)
    };
    match (name, kernel) {
        (Some(name), Some(kernel)) => Some(format!("{name} ({})", kernel.id)),
        (Some(name), None) => Some(name.into()),
        (None, kernel) => kernel.map(|kernel| format!("thread {}", kernel.id)),
    }
}

/// Looks for threads that have ended. Returns how many have ended so far: while that does not change,
/// there is no need to look which.
pub(crate) fn count_ended() -> u64 {
    if ENDING.load(Ordering::Acquire) > 0 {
        let mut ending: Vec<(u32, Option<KernelThread>)> = {
            let table = TABLE.lock();
            let some = table.ending.iter().take(MOST_LOOKS);
            some.map(|number| {
                (
                    *number,
                    table.known.get(number).and_then(|known| known.kernel),
                )
            })
            .collect()
        };
        // Outside the lock: this asks the kernel.
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
            count_ended();
            // The kernel removes a joined thread from its list a moment later.
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_has_one_number_until_it_ends() {
        let here = current();
        assert_ne!(here, 0);
        assert_eq!(current(), here);
        let ended_before = count_ended();
        let other = std::thread::spawn(|| {
            let number = current();
            assert!(living().binary_search(&number).is_ok());
            number
        });
        let other = other.join().unwrap();
        assert_ne!(other, here);
        wait_for_the_end_of(other);
        assert!(count_ended() > ended_before);
        assert!(living().binary_search(&here).is_ok());
        assert_eq!(kernel_thread(other), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_is_described_by_its_name_and_number_until_it_ends() {
        let named = std::thread::Builder::new().name("jobs".to_owned());
        let described = || description(current());
        let name = named.spawn(described).unwrap().join().unwrap().unwrap();
        let number = name.strip_prefix("jobs (").unwrap();
        assert!(
            number.trim_end_matches(')').parse::<u32>().is_ok(),
            "{name}"
        );
        let unnamed = std::thread::spawn(described).join().unwrap().unwrap();
        assert!(unnamed.starts_with("thread "), "{unnamed}");
        assert_eq!(description(u32::MAX), None);
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
