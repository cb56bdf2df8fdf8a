//! Two ways out of a process at once: it is ended by force, and `main` returns or
//! `std::process::exit` is called meanwhile. What was said then would not be the exit status.
//!
//! The destructors of a thread's locals run when that thread ends the process, as far as the system
//! runs them (Linux does, with glibc). This is the place for what has to happen then.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::registry::at_exit;

/// How long a thread that ends may take to end the process with it.
const DEPARTURE: Duration = Duration::from_millis(100);
/// How long a thread waits for the end by force, which takes about a second at most, and as long as
/// stores may take to hear of it.
const HOLD: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(10);

static WAY_OUT: Mutex<WayOut> = Mutex::new(WayOut {
    forced: false,
    departed: None,
});

struct WayOut {
    /// The process is being ended by force.
    forced: bool,
    /// When the last thread ended that might have ended the process.
    departed: Option<Instant>,
}

struct Leaving;

thread_local! {
    static LEAVING: Leaving = const { Leaving };
}

/// The end of the calling thread may be the end of the process.
pub(super) fn mind_this_thread() {
    // It is ending already if that fails.
    let _ = LEAVING.try_with(|_| {});
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let now = Instant::now();
        WAY_OUT.lock().departed = Some(now);
        // The one that ends the process by force needs no step of this thread.
        while WAY_OUT.lock().forced && now.elapsed() < HOLD.saturating_add(at_exit::longest()) {
            thread::sleep(STEP);
        }
    }
}

/// From now on, the process ends by force only. Lets an end that has begun come first.
pub(super) fn close() {
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
