//! A sweeper on a background thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Sweeper;
use crate::clock::{Alarm, Sleeper};
use crate::error::Error;
use crate::health::SweepReport;
use crate::sync::background::Background;
use crate::sync::catch::catch;
use crate::sync::random::Jitter;

const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-sweeper";

impl Sweeper {
    /// Sweeps on a background thread, at each interval, until the returned value is dropped. A sweep
    /// is not needed if another sweeper of the store that has watched it for longer began one within
    /// half the interval.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{Error, MemoryStore, Sweeper};
    ///
    /// let running = Sweeper::new(MemoryStore::new()).start()?;
    /// let refused = Sweeper::new(MemoryStore::new()).interval(Duration::ZERO).start();
    /// assert!(matches!(refused, Err(Error::Invalid { field: "interval", .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the interval is too short; [`Error::Thread`] if the thread cannot be
    /// started.
    pub fn start(self) -> Result<RunningSweeper, Error> {
        if self.interval < SHORTEST_INTERVAL {
            return Err(Error::invalid(
                "interval",
                format!("{:?}", self.interval),
                format!("at least {SHORTEST_INTERVAL:?}"),
            ));
        }
        let sleeper = Sleeper::new(&self.clock);
        let alarm = sleeper.alarm();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Background::start(THREAD_NAME, move || self.run(&sleeper, &stopped))?;
        Ok(RunningSweeper {
            alarm,
            stop,
            thread: Some(thread),
        })
    }

    fn run(&self, sleeper: &Sleeper, stop: &AtomicBool) {
        let mut jitter = Jitter::new();
        let swept_within = (!self.dry_run).then_some(self.interval / 2);
        while !stop.load(Ordering::Acquire) {
            match catch(|| self.sweep_unless(swept_within)) {
                Ok(swept) => self.report(&swept),
                Err(_) => self.counts.failures.add(1),
            }
            // The application's report is work too.
            let now = self.now();
            self.watch.lock().work_done(now, self.interval);
            sleeper.sleep_until(now.clock.after(jitter.shorten(self.interval)));
        }
    }

    fn report(&self, swept: &Result<SweepReport, Error>) {
        if let Some(on_report) = &self.on_report {
            drop(catch(|| on_report(swept)));
        }
    }
}

/// A sweeper on a background thread; made by [`Sweeper::start`]. Dropping it ends the thread, after
/// the current sweep.
///
/// ```
/// use worker_heartbeat::{MemoryStore, Sweeper};
///
/// let running = Sweeper::new(MemoryStore::new()).start()?;
/// // while it lives, the store is swept
/// drop(running);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "sweeping ends when this is dropped"]
pub struct RunningSweeper {
    alarm: Alarm,
    stop: Arc<AtomicBool>,
    thread: Option<Background>,
}

impl Drop for RunningSweeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.alarm.ring();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}
