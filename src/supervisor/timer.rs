//! Wakes tasks at a moment of real time. One thread of the process serves all timers; it starts with
//! the first timer and ends with the last.
//!
//! These are not the pacemaker's timers, which use the registry's clock: waiting for real threads and
//! tasks takes real time, while a mock clock may stand still and a log may delay the pacemaker.

use std::collections::BTreeMap;
use std::io;
use std::task::Waker;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::sync::background;
use crate::sync::wakers::wake;

/// Name of the thread.
const THREAD_NAME: &str = "wh-timer";

static TIMERS: Mutex<Timers> = Mutex::new(Timers {
    by_time: BTreeMap::new(),
    next: 0,
    running: false,
});
static CHANGED: Condvar = Condvar::new();

/// The number distinguishes timers of the same time.
type Key = (Instant, u64);

struct Timers {
    by_time: BTreeMap<Key, Waker>,
    next: u64,
    /// The thread runs.
    running: bool,
}

/// A timer of one task. Dropping it cancels it.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Key>);

impl Timer {
    /// Wakes this task at that time, in place of an earlier setting.
    pub(super) fn set(&mut self, at: Instant, waker: &Waker) -> io::Result<()> {
        // Cloned and dropped outside the lock: wakers run code of executors.
        let waker = waker.clone();
        let mut timers = TIMERS.lock();
        let old = self.0.take().and_then(|key| timers.by_time.remove(&key));
        timers.next += 1;
        let key = (at, timers.next);
        timers.by_time.insert(key, waker);
        self.0 = Some(key);
        let running = if timers.running {
            CHANGED.notify_all();
            Ok(())
        } else {
            // Under the lock, so that a concurrent caller can rely on the thread.
            background::detach(THREAD_NAME, serve).map(|()| timers.running = true)
        };
        drop(timers);
        drop(old);
        running
    }

    pub(super) fn clear(&mut self) {
        if let Some(key) = self.0.take() {
            let forgotten = TIMERS.lock().by_time.remove(&key);
            CHANGED.notify_all();
            drop(forgotten);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Runs on the timer thread.
fn serve() {
    let mut timers = TIMERS.lock();
    while let Some((at, _)) = timers.by_time.keys().next().copied() {
        if at > Instant::now() {
            CHANGED.wait_until(&mut timers, at);
            continue;
        }
        let due = timers.by_time.pop_first();
        drop(timers);
        if let Some((_, waker)) = due {
            wake(waker);
        }
        timers = TIMERS.lock();
    }
    timers.running = false;
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    struct Sends(mpsc::Sender<()>);

    impl Wake for Sends {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }

    #[test]
    fn a_timer_wakes_its_last_task_once_and_the_thread_ends_with_the_last_timer() {
        let (first, replaced) = mpsc::channel();
        let (second, woken) = mpsc::channel();
        let now = Instant::now();
        let mut timer = Timer::default();
        let mut far = Timer::default();
        let never = Waker::noop();
        far.set(now + Duration::from_secs(3600), never).unwrap();
        let hour = now + Duration::from_secs(3600);
        timer
            .set(hour, &Waker::from(Arc::new(Sends(first))))
            .unwrap();
        timer
            .set(now, &Waker::from(Arc::new(Sends(second))))
            .unwrap();
        assert!(woken.recv_timeout(Duration::from_secs(30)).is_ok());
        assert!(woken.recv().is_err(), "its waker is gone");
        assert!(replaced.recv().is_err(), "so is the one before");
        drop(far);
        while TIMERS.lock().running {
            thread::yield_now();
        }
    }
}
