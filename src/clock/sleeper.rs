//! How a thread sleeps by a clock, and how other threads wake it.

use std::sync::Arc;
use std::task::Wake;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Clock, ClockSource, Moment, mock};

/// Owned by the sleeping thread. While it exists and is not asleep, a mock clock's `advance` waits
/// for it.
#[derive(Debug)]
pub(crate) struct Sleeper {
    clock: Clock,
    alarm: Alarm,
}

/// Wakes a [`Sleeper`], now or, if it is awake, at its next sleep.
#[derive(Clone, Debug)]
pub(crate) struct Alarm(Bell);

#[derive(Clone, Debug)]
enum Bell {
    System(Arc<(Mutex<bool>, Condvar)>),
    Mock { state: Arc<mock::MockTime>, id: u64 },
}

impl Sleeper {
    pub(crate) fn new(clock: &Clock) -> Self {
        let bell = match &clock.source {
            ClockSource::System { .. } => Bell::System(Arc::default()),
            ClockSource::Mock(state) => Bell::Mock {
                state: Arc::clone(state),
                id: state.join(),
            },
        };
        Self {
            clock: clock.clone(),
            alarm: Alarm(bell),
        }
    }

    pub(crate) fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    /// Returns at `due`, or earlier if the alarm rings.
    pub(crate) fn sleep_until(&self, due: Moment) {
        match &self.alarm.0 {
            Bell::System(bell) => {
                let (rung, condvar) = &**bell;
                let mut rung = rung.lock();
                while !std::mem::take(&mut *rung) {
                    let left = due.since(self.clock.now());
                    if left.is_zero() {
                        return;
                    }
                    // At most an hour at a time: the end of the time line is beyond what a wait
                    // accepts.
                    condvar.wait_for(&mut rung, left.min(Duration::from_secs(3600)));
                }
            }
            Bell::Mock { state, id } => state.sleep_until(*id, due),
        }
    }

    /// Reports to a mock clock that this thread has finished what was due, and does not depend on
    /// time now.
    pub(crate) fn step_away(&self) {
        if let Bell::Mock { state, id } = &self.alarm.0 {
            state.step_away(*id);
        }
    }

    /// Makes a mock clock wait for this thread again, until it sleeps.
    pub(crate) fn come_back(&self) {
        if let Bell::Mock { state, id } = &self.alarm.0 {
            state.come_back(*id);
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if let Bell::Mock { state, id } = &self.alarm.0 {
            state.leave(*id);
        }
    }
}

impl Alarm {
    pub(crate) fn ring(&self) {
        match &self.0 {
            Bell::System(bell) => {
                *bell.0.lock() = true;
                bell.1.notify_all();
            }
            Bell::Mock { state, id } => state.rouse(*id),
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_sleep_ends_at_its_time_or_at_the_alarm() {
        let clock = Clock::system();
        let sleeper = Sleeper::new(&clock);
        let due = clock.now().after(Duration::from_millis(2));
        sleeper.sleep_until(due);
        assert!(clock.now() >= due);
        sleeper.alarm().ring();
        sleeper.sleep_until(Moment::NEVER);
    }
}
