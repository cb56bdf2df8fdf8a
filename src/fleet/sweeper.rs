//! Makes a store true again where the workers themselves can't.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::host::{Fate, ProcessIdentity};
use super::jitter::Jitter;
use super::store::{HeartbeatStore, Sweep, WorkerFilter, WorkerKey};
use super::stored::DEFAULT_THRESHOLD;
use crate::clock::{Alarm, Clock, Moment, Sleeper};
use crate::error::Error;
use crate::health::{SweepReport, SweepTotals};
use crate::registry::core::counts::SweepCounts;
use crate::sync::background::Background;
use crate::sync::catch::catch;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(120);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-sweeper";

type OnReport = Arc<dyn Fn(&Result<SweepReport, Error>) + Send + Sync>;

/// Sweeps a store: marks stale workers offline and releases their leases. One of a store's sweepers
/// works at a time, however many there are; so every process may have one.
///
/// * A worker is stale by its own limits; one that brought none, by the
///   [`threshold`](Self::threshold).
/// * A worker whose process is gone, on the same host, is dead at once: the kernel knows. (Its pid,
///   start time, boot and pid namespace are compared.) It was [killed](crate::DeathCause::Killed) if
///   the kernel proves that, which it can until the parent of the process has collected its exit
///   status; otherwise it is [gone](crate::DeathCause::Gone).
/// * Silence that nobody watched is not charged: after its start, after a pause of its own, and
///   after the store could not be reached, a sweeper watches for as long as a worker may be silent
///   before it convicts.
///
/// ```
/// use worker_heartbeat::{MemoryStore, Sweeper};
///
/// let sweeper = Sweeper::new(MemoryStore::new());
/// let report = sweeper.sweep()?;
/// assert!(report.success && report.marked_offline.is_empty());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "nothing is swept before sweep() or start()"]
pub struct Sweeper {
    store: Arc<dyn HeartbeatStore>,
    clock: Clock,
    interval: Duration,
    threshold: Duration,
    dry_run: bool,
    on_report: Option<OnReport>,
    watch: Arc<Mutex<Option<Watch>>>,
    counts: Arc<SweepCounts>,
}

/// How long has been watched without a gap.
#[derive(Clone, Copy, Debug)]
struct Watch {
    since: Moment,
    /// Watched before that.
    before: Duration,
    last: Moment,
    last_wall: std::time::SystemTime,
}

impl Sweeper {
    /// A sweeper of this store.
    pub fn new(store: impl HeartbeatStore + 'static) -> Self {
        Self {
            store: Arc::new(store),
            clock: Clock::system(),
            interval: DEFAULT_INTERVAL,
            threshold: DEFAULT_THRESHOLD,
            dry_run: false,
            on_report: None,
            watch: Arc::default(),
            counts: Arc::default(),
        }
    }

    /// How often [`start`](Self::start) sweeps; 120 s by default, at least 10 ms.
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Longest time without a heartbeat, for workers that have no limit of their own; 90 s by
    /// default.
    pub const fn threshold(mut self, threshold: Duration) -> Self {
        self.threshold = threshold;
        self
    }

    /// Only tell what would be done.
    pub const fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The clock to live by; the system's by default.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Called after each sweep of [`start`](Self::start), on its thread, with what was found, and
    /// which leases were released.
    pub fn on_report(
        mut self,
        on_report: impl Fn(&Result<SweepReport, Error>) + Send + Sync + 'static,
    ) -> Self {
        self.on_report = Some(Arc::new(on_report));
        self
    }

    /// Whoever runs this has watched the store for so long already: a command that sweeps once, for
    /// instance, on the word of an operator.
    pub fn watched_for(self, watched_for: Duration) -> Self {
        let now = self.clock.now();
        *self.watch.lock() = Some(Watch {
            since: now,
            before: watched_for,
            last: now,
            last_wall: self.clock.wall(),
        });
        self
    }

    /// Sweeps once. Called again in time, it goes on watching; see [`Sweeper`].
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be reached or fails.
    pub fn sweep(&self) -> Result<SweepReport, Error> {
        let mut watch = self.watch.lock();
        let swept = self.ended().and_then(|(killed, gone)| {
            let watched_for = self.look(&mut watch);
            self.store.sweep(&Sweep {
                threshold: self.threshold,
                watched_for,
                killed,
                gone,
                dry_run: self.dry_run,
            })
        });
        match &swept {
            Ok(report) => self.counts.note(report, self.dry_run, self.clock.now()),
            Err(_) => {
                self.counts.failures.add(1);
                // While the store could not be reached, nobody could tell it anything.
                *watch = None;
            }
        }
        swept
    }

    /// What came of all sweeps of this sweeper, its clones and what they [started](Self::start).
    #[must_use]
    pub fn totals(&self) -> SweepTotals {
        self.counts.totals(self.clock.now())
    }

    /// Goes on with the watch, or begins anew after a gap. Returns for how long it has lasted.
    fn look(&self, watch: &mut Option<Watch>) -> Duration {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let slack = Duration::from_secs(1).saturating_add(self.interval / 4);
        let unbroken = watch.filter(|watch| {
            let paused = now.since(watch.last);
            // The monotonic clock stands still while a machine sleeps, the wall clock does not.
            let by_wall = wall.duration_since(watch.last_wall).unwrap_or_default();
            paused <= self.interval.saturating_add(slack) && by_wall <= paused.saturating_add(slack)
        });
        let watch = watch.insert(Watch {
            since: unbroken.map_or(now, |watch| watch.since),
            before: unbroken.map_or(Duration::ZERO, |watch| watch.before),
            last: now,
            last_wall: wall,
        });
        now.since(watch.since).saturating_add(watch.before)
    }

    /// The workers of this host whose processes were killed, and those whose processes are gone.
    fn ended(&self) -> Result<(Vec<WorkerKey>, Vec<WorkerKey>), Error> {
        let here = ProcessIdentity::current();
        let (mut killed, mut gone) = (Vec::new(), Vec::new());
        if !here.is_local() {
            return Ok((killed, gone));
        }
        let mut filter = WorkerFilter {
            host: Some(here),
            ..WorkerFilter::default()
        };
        loop {
            let page = self.store.list(&filter)?;
            filter.after = page.last().map(|worker| worker.key.id.clone());
            let more = page.len() >= filter.limit;
            for worker in page {
                match worker.process.as_ref().and_then(ProcessIdentity::fate) {
                    Some(Fate::Killed) => killed.push(worker.key),
                    Some(Fate::Gone) => gone.push(worker.key),
                    None => {}
                }
            }
            if !more {
                return Ok((killed, gone));
            }
        }
    }

    /// Sweeps on a thread of its own, at each interval, until what is returned is dropped.
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
        while !stop.load(Ordering::Acquire) {
            match catch(|| self.sweep()) {
                Ok(swept) => self.report(&swept),
                Err(_) => self.counts.failures.add(1),
            }
            let next = self.clock.now().after(jitter.shorten(self.interval));
            sleeper.sleep_until(next);
        }
    }

    fn report(&self, swept: &Result<SweepReport, Error>) {
        if let Some(on_report) = &self.on_report {
            drop(catch(|| on_report(swept)));
        }
    }
}

impl fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweeper")
            .field("store", &self.store)
            .field("interval", &self.interval)
            .field("threshold", &self.threshold)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

/// A sweeper at work; made by [`Sweeper::start`]. Dropping it ends its thread, after the sweep that
/// it is at.
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
