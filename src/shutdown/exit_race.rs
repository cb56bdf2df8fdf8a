//! Two exits that race: the process is being ended by force, and meanwhile `main` returns or calls
//! `std::process::exit`. The exit status would then contradict the last message.
//!
//! When a thread ends the process, the destructors of its thread-locals run, where the system does
//! that (Linux with glibc does). A destructor here makes that thread wait for the forced exit.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::registry::at_exit;

/// The time between the end of a thread and the exit of the process that it causes.
const DEPARTURE: Duration = Duration::from_millis(100);
/// How long a thread waits for the forced exit, which takes at most about a second, plus the time
/// that stores are given.
const HOLD: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(10);

static WAY_OUT: Mutex<WayOut> = Mutex::new(WayOut {
    forced: false,
    departed: None,
});

struct WayOut {
    /// A forced exit is in progress.
    forced: bool,
    /// When the last thread ended that could have caused the exit.
    departed: Option<Instant>,
}

struct Leaving;

thread_local! {
    static LEAVING: Leaving = const { Leaving };
}

/// Watches the calling thread: its end may be the exit of the process.
pub(super) fn watch_this_thread() {
    // This fails if the thread is ending already.
    let _ = LEAVING.try_with(|_| {});
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let now = Instant::now();
        WAY_OUT.lock().departed = Some(now);
        // The forced exit does not depend on this thread.
        while WAY_OUT.lock().forced && now.elapsed() < HOLD.saturating_add(at_exit::longest()) {
            thread::sleep(STEP);
        }
    }
}

/// Makes the forced exit the only one. An exit that has begun comes first.
pub(super) fn force() {
    let mut way_out = WAY_OUT.lock();
    way_out.forced = true;
    let departing = way_out
        .departed
        .is_some_and(|departed| departed.elapsed() < DEPARTURE);
    drop(way_out);
    if departing {
        thread::sleep(DEPARTURE);
    }
}
