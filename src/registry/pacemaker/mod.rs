//! The background thread of a registry: it observes every worker, vouches for the well ones, convicts the
//! others, and forgives the time in which it could not observe.

mod abandoned;
mod gaps;
mod tick;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::clock::{Alarm, Patience, Sleeper};
use crate::error::Error;
use crate::registry::core::Core;
use crate::sync::background::Background;
use crate::sync::catch::catch;
use tick::TickState;

/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-pacemaker";
/// How long the last handle's drop waits for a pacemaker that is held up, for instance by a log
/// implementation that blocks, before it leaves the thread behind.
const JOIN_PATIENCE: Duration = Duration::from_secs(1);

/// The pacemaker of one registry. It runs while it has an owner: a worker's cell, or a registry in which
/// workers are expected.
#[derive(Debug, Default)]
pub(crate) struct Pacemaker {
    owned: Mutex<Owned>,
    ticks: Arc<Ticks>,
}

#[derive(Debug, Default)]
struct Owned {
    owners: usize,
    thread: Option<PacemakerThread>,
}

#[derive(Debug)]
struct PacemakerThread {
    alarm: Alarm,
    stop: Arc<AtomicBool>,
    background: Background,
}

/// What the thread shares with those who wait for a tick.
#[derive(Debug, Default)]
struct Ticks {
    count: Mutex<u64>,
    counted: Condvar,
    /// One tick at a time, even while one thread replaces another.
    state: Mutex<TickState>,
}

impl Pacemaker {
    /// One more owner. The first one starts the thread.
    pub(crate) fn join(&self, core: &Arc<Core>) -> Result<(), Error> {
        let mut owned = self.owned.lock();
        if owned.thread.is_none() {
            owned.thread = Some(start(core, &self.ticks)?);
        }
        owned.owners += 1;
        Ok(())
    }

    /// One owner less. The last one ends the thread and waits for it. Returns how many are left.
    pub(crate) fn leave(&self) -> usize {
        let mut owned = self.owned.lock();
        owned.owners = owned.owners.saturating_sub(1);
        if owned.owners > 0 {
            return owned.owners;
        }
        let thread = owned.thread.take();
        drop(owned);
        if let Some(thread) = thread {
            thread.stop.store(true, Ordering::Release);
            thread.alarm.ring();
            // If a log implementation drops the last handle, on this thread, the thread ends by itself.
            thread.background.join_within(&Patience::new(JOIN_PATIENCE));
        }
        0
    }

    pub(crate) fn is_running(&self) -> bool {
        self.owned.lock().thread.is_some()
    }

    /// Makes the pacemaker tick now.
    pub(crate) fn ring(&self) {
        if let Some(thread) = &self.owned.lock().thread {
            thread.alarm.ring();
        }
    }

    /// Makes the pacemaker tick now, and waits for the tick for at most `patience`. Returns whether it
    /// came; `true` as well without a thread, since there are no workers to observe.
    pub(crate) fn await_tick(&self, patience: Duration) -> bool {
        let before = *self.ticks.count.lock();
        {
            let owned = self.owned.lock();
            let Some(thread) = &owned.thread else {
                return true;
            };
            if thread.background.is_current() {
                return false;
            }
            thread.alarm.ring();
        }
        let deadline = Instant::now() + patience;
        let mut count = self.ticks.count.lock();
        self.ticks
            .counted
            .wait_while_until(&mut count, |count| *count == before, deadline);
        *count != before
    }
}

fn start(core: &Arc<Core>, ticks: &Arc<Ticks>) -> Result<PacemakerThread, Error> {
    // There were no workers to charge the time before to. A predecessor that is still at its last tick
    // has marked the time.
    if let Some(_ticking) = ticks.state.try_lock() {
        core.timeline.tick(core.clock.now(), core.resolution());
    }
    // Made here, so that a mock clock waits for the first tick of a thread that is about to start.
    let sleeper = Sleeper::new(&core.clock);
    let alarm = sleeper.alarm();
    let stop = Arc::new(AtomicBool::new(false));
    let (core, ticks, stopped) = (Arc::clone(core), Arc::clone(ticks), Arc::clone(&stop));
    let background = Background::start(THREAD_NAME, move || {
        let mut next = core.clock.now().after(core.resolution());
        loop {
            sleeper.sleep_until(next);
            if stopped.load(Ordering::Acquire) {
                break;
            }
            let lateness = core.clock.now().since(next);
            core.counts.note_tick(lateness, core.resolution());
            let ticked = catch(|| tick::tick(&core, &ticks));
            next = ticked.unwrap_or_else(|_| core.clock.now().after(core.resolution()));
        }
        core.flush_log_limiter(true);
    })?;
    Ok(PacemakerThread {
        alarm,
        stop,
        background,
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_wait_for_a_tick_ends_with_the_tick() {
        let (core, pacemaker) = (Arc::new(Core::new(Clock::system())), Pacemaker::default());
        pacemaker.join(&core).unwrap();
        // If the tick were not seen, this would take the hour.
        assert!(pacemaker.await_tick(Duration::from_secs(3600)));
        assert_eq!(pacemaker.leave(), 0);
    }
}
