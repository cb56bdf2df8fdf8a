//! One capture at a time in a process: reading debug information takes memory.

use std::process;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::NoStack;
use super::capture::capture as read;
use crate::health::CallStack;

/// A capture that takes longer hangs, such as on a file system that does not answer.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

static TURN: Turn = Turn {
    held: Mutex::new(()),
    since: Mutex::new(None),
};

struct Turn {
    held: Mutex<()>,
    /// Since when it is held, and in which process.
    since: Mutex<Option<(Instant, u32)>>,
}

/// The turn of one capture.
struct Taken<'a> {
    turn: &'a Turn,
    held: Option<MutexGuard<'a, ()>>,
}

impl Turn {
    fn take(&self, patience: Duration) -> Result<Taken<'_>, NoStack> {
        let since = *self.since.lock();
        if since.is_some_and(|(_, process)| process != process::id()) {
            // A forked child does not have the thread that holds it.
            return Ok(Taken {
                turn: self,
                held: None,
            });
        }
        let refused = |why: &str| NoStack::Temporary(why.to_owned());
        if since.is_some_and(|(since, _)| since.elapsed() > LONGEST) {
            return Err(refused("an earlier capture hangs"));
        }
        let held = self.held.try_lock_for(patience);
        let held = held.ok_or_else(|| refused("another call stack is being read"))?;
        *self.since.lock() = Some((Instant::now(), process::id()));
        Ok(Taken {
            turn: self,
            held: Some(held),
        })
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            *self.turn.since.lock() = None;
            // The one that has waited longest is next, even if this thread comes back at once.
            MutexGuard::unlock_fair(held);
        }
    }
}

/// The call stack of this thread of the process, by its kernel id. Waits for its turn for this long.
pub(crate) fn capture(thread: u32, patience: Duration) -> Result<CallStack, NoStack> {
    let own = std::fs::read_link("/proc/thread-self").ok();
    if own.is_some_and(|own| own.ends_with(thread.to_string())) {
        return Err(NoStack::Final("it is the thread that asks".to_owned()));
    }
    let _taken = TURN.take(patience)?;
    read(thread)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    fn turn() -> Turn {
        Turn {
            held: Mutex::new(()),
            since: Mutex::new(None),
        }
    }

    fn refused(turn: &Turn) -> String {
        turn.take(SHORT).err().unwrap().to_string()
    }

    #[test]
    fn a_capture_that_hangs_holds_up_no_later_one_for_long() {
        let turn = turn();
        drop(turn.take(SHORT).ok().unwrap());
        let hangs = turn.take(SHORT).ok().unwrap();
        assert_eq!(refused(&turn), "another call stack is being read");
        let long_ago = Instant::now().checked_sub(2 * LONGEST).unwrap();
        *turn.since.lock() = Some((long_ago, process::id()));
        assert_eq!(refused(&turn), "an earlier capture hangs");
        // As in a forked child, which has not got that thread.
        *turn.since.lock() = Some((long_ago, 0));
        for _ in 0..2 {
            assert!(turn.take(SHORT).is_ok());
        }
        drop(hangs);
        assert!(turn.take(SHORT).is_ok());
    }

    #[test]
    fn a_capture_waits_for_its_turn() {
        let turn = turn();
        std::thread::scope(|scope| {
            let taken = turn.take(SHORT).ok().unwrap();
            let next = scope.spawn(|| turn.take(6 * LONGEST).is_ok());
            drop(taken);
            assert!(next.join().unwrap());
        });
    }
}
