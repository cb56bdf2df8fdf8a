//! Marks workers offline whose processes can't do it themselves.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::host::{Fate, ProcessIdentity};
use super::shapes::{DEFAULT_THRESHOLD, Sweep, WorkerFilter, WorkerKey};
use super::store::{HeartbeatStore, Pages};
use crate::clock::{Alarm, Clock, Moment, Sleeper};
use crate::error::Error;
use crate::health::{SweepReport, SweepTotals};
use crate::registry::core::counts::SweepCounts;
use crate::sync::background::Background;
use crate::sync::catch::catch;
use crate::sync::random::Jitter;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(120);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// Name of the thread; the kernel keeps 15 bytes of it.
const THREAD_NAME: &str = "wh-sweeper";

type OnReport = Arc<dyn Fn(&Result<SweepReport, Error>) + Send + Sync>;

/// Sweeps a store: marks stale workers offline and releases their leases. Any number of processes may
/// have a sweeper for one store: one of them works at a time.
///
/// * A worker is stale by its own limits; without limits of its own, by the
///   [`threshold`](Self::threshold).
/// * A worker whose process is gone, on the same host, is dead at once, since the kernel knows. (Pid,
///   start time, boot and pid namespace are compared.) It was [killed](crate::DeathCause::Killed) if
///   the kernel proves that, which it can until the parent of the process has collected its exit
///   status; otherwise it is [gone](crate::DeathCause::Gone).
/// * Silence that was not watched is not charged: after its start, after a pause of its own, and
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
    watch: Arc<Mutex<Option<WatchedTime>>>,
    counts: Arc<SweepCounts>,
}

/// How long the store has been watched without a gap.
#[derive(Clone, Copy, Debug)]
struct WatchedTime {
    since: Moment,
    /// Watched time before that.
    before: Duration,
    last: Moment,
    last_wall: std::time::SystemTime,
}

impl Sweeper {
    /// A sweeper of this store.
    ///
    /// ```no_run
    /// use worker_heartbeat::{PostgresStore, Sweeper};
    ///
    /// let store = PostgresStore::connect("postgres://app@localhost/app")?;
    /// let sweeper = Sweeper::new(store).start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
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
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MemoryStore, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new()).interval(Duration::from_secs(5)).start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Longest time without a heartbeat, for workers without a limit of their own; 90 s by default.
    pub const fn threshold(mut self, threshold: Duration) -> Self {
        self.threshold = threshold;
        self
    }

    /// Report what would be done, and change nothing.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::{MemoryStore, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new()).dry_run(true);
    /// let report = sweeper.watched_for(Duration::from_secs(300)).sweep()?;
    /// println!("{report}"); // nothing to mark offline
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The clock of the sweeper; the system's by default.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
    /// use worker_heartbeat::{MemoryStore, MockClock, Sweeper};
    ///
    /// let time = MockClock::new();
    /// let store = MemoryStore::with_clock(time.clock());
    /// store.register(&[Registration::new("indexer", "indexer-1")])?;
    /// let sweeper = Sweeper::new(store).clock(time.clock()).watched_for(Duration::from_secs(3600));
    /// time.advance(Duration::from_secs(100));
    /// assert_eq!(sweeper.sweep()?.marked_offline, ["indexer-1"]);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Called after each sweep of [`start`](Self::start), on its thread, with its report: workers
    /// marked offline, offline groups and released leases.
    ///
    /// ```
    /// use worker_heartbeat::{MemoryStore, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new())
    ///     .on_report(|swept| match swept {
    ///         Ok(report) => println!("{report}"),
    ///         Err(error) => eprintln!("{error}"),
    ///     })
    ///     .start()?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn on_report(
        mut self,
        on_report: impl Fn(&Result<SweepReport, Error>) + Send + Sync + 'static,
    ) -> Self {
        self.on_report = Some(Arc::new(on_report));
        self
    }

    /// How long the caller has already watched the store; for a command, for example, that sweeps
    /// once at an operator's request.
    pub fn watched_for(self, watched_for: Duration) -> Self {
        let now = self.clock.now();
        *self.watch.lock() = Some(WatchedTime {
            since: now,
            before: watched_for,
            last: now,
            last_wall: self.clock.wall(),
        });
        self
    }

    /// Sweeps once. Another call within the interval continues the watch; see [`Sweeper`].
    ///
    /// ```
    /// use worker_heartbeat::{MemoryStore, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new());
    /// assert_eq!(sweeper.sweep()?.to_string(), "nothing to mark offline");
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
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
                // Meanwhile, no worker could send heartbeats to the store either.
                *watch = None;
            }
        }
        swept
    }

    /// The totals of all sweeps of this sweeper and its clones, those on threads included.
    ///
    /// ```
    /// use worker_heartbeat::{MemoryStore, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new());
    /// sweeper.sweep()?;
    /// sweeper.sweep()?;
    /// assert_eq!(sweeper.totals().successes, 2);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[must_use]
    pub fn totals(&self) -> SweepTotals {
        self.counts.totals(self.clock.now())
    }

    /// Continues the watch, or begins a new one after a gap. Returns how long it has lasted.
    fn look(&self, watch: &mut Option<WatchedTime>) -> Duration {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let slack = Duration::from_secs(1).saturating_add(self.interval / 4);
        let unbroken = watch.filter(|watch| {
            let paused = now.since(watch.last);
            // The monotonic clock stops while a machine is suspended, the wall clock does not.
            let by_wall = wall.duration_since(watch.last_wall).unwrap_or_default();
            paused <= self.interval.saturating_add(slack) && by_wall <= paused.saturating_add(slack)
        });
        let watch = watch.insert(WatchedTime {
            since: unbroken.map_or(now, |watch| watch.since),
            before: unbroken.map_or(Duration::ZERO, |watch| watch.before),
            last: now,
            last_wall: wall,
        });
        now.since(watch.since).saturating_add(watch.before)
    }

    /// The workers of this host whose processes were killed, and those whose processes are gone for
    /// an unknown reason.
    fn ended(&self) -> Result<(Vec<WorkerKey>, Vec<WorkerKey>), Error> {
        let here = ProcessIdentity::current();
        let (mut killed, mut gone) = (Vec::new(), Vec::new());
        if !here.is_local() {
            return Ok((killed, gone));
        }
        for page in Pages::new(&*self.store, WorkerFilter::new().host(here)) {
            for worker in page? {
                let process = worker.info.process.as_ref();
                match process.and_then(ProcessIdentity::fate) {
                    Some(Fate::Killed) => killed.push(worker.key),
                    Some(Fate::Gone) => gone.push(worker.key),
                    None => {}
                }
            }
        }
        Ok((killed, gone))
    }

    /// Sweeps on a background thread, at each interval, until the returned value is dropped.
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
