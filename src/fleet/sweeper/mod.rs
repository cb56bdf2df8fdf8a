//! Marks workers offline whose processes can't do it themselves.

mod condition;
mod local;
mod running;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::shapes::{DEFAULT_THRESHOLD, Retention, Sweep};
use super::store::HeartbeatStore;
use crate::clock::Clock;
use crate::error::Error;
use crate::health::{SweepReport, SweepTotals};
use crate::registry::core::counts::SweepCounts;
use condition::Condition;
pub use running::RunningSweeper;
use watch::Watch;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(120);

type OnReport = Arc<dyn Fn(&Result<SweepReport, Error>) + Send + Sync>;

/// Sweeps a store: marks stale workers offline, releases their leases, and forgets workers that ended
/// long ago. Any number of processes may have a sweeper for one store: those on threads leave most of
/// the work to one of them.
///
/// * A worker is stale by its own limits; without limits of its own, by the
///   [`threshold`](Self::threshold).
/// * A worker whose process is gone, on the same host, is dead at once, since the kernel knows. (Pid,
///   start time, boot and pid namespace are compared.) It was [killed](crate::DeathCause::Killed) if
///   the kernel proves that, which it can until the parent of the process has collected its exit
///   status; otherwise it is [gone](crate::DeathCause::Gone).
/// * Silence that was not watched is not charged: after its start, after a pause of its own, and
///   after the store could not be reached, a sweeper watches for as long as a worker may be silent
///   before it convicts. Time that its own sweeps take is watched. Gaps that come again and again
///   only delay a conviction: after four times as long in pieces, it convicts too.
/// * A sweep that is skipped, because another one is running, was not done, and neither was one that
///   failed: see [`check`](Self::check).
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
    retention: Retention,
    on_report: Option<OnReport>,
    watch: Arc<Mutex<Watch>>,
    counts: Arc<SweepCounts>,
    condition: Arc<Mutex<Condition>>,
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
            retention: Retention::new(),
            on_report: None,
            watch: Arc::default(),
            counts: Arc::default(),
            condition: Arc::default(),
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

    /// How long the records of ended workers are kept. By default, stopped workers are forgotten after
    /// an hour, dead ones after seven days, dead ones that were replaced after a day.
    ///
    /// ```
    /// use std::time::Duration;
    /// use worker_heartbeat::fleet::Retention;
    /// use worker_heartbeat::{MemoryStore, Sweeper};
    ///
    /// let day = Duration::from_secs(86_400);
    /// let sweeper = Sweeper::new(MemoryStore::new()).retention(Retention::new().stopped(day));
    /// assert_eq!(sweeper.sweep()?.forgotten, 0);
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Report what would be done, and change nothing. It needs no right to write.
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
        let now = self.now();
        *self.watch.lock() = Watch::for_long(watched_for, now);
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
        self.sweep_unless(None)
    }

    /// Sweeps, unless another sweeper has done the same within this time.
    fn sweep_unless(&self, swept_within: Option<Duration>) -> Result<SweepReport, Error> {
        let mut watch = self.watch.lock();
        let begun = self.now();
        watch.begin(begun, self.interval);
        let swept = self.ask_store(&watch, swept_within);
        let ended = self.now();
        let swept = swept.map(|mut report| {
            report.duration = ended.clock.since(begun.clock);
            report.slow = report.duration > watch::slack(self.interval);
            report
        });
        match &swept {
            Ok(report) => {
                watch.work_done(ended, self.interval);
                self.counts.note(report, self.dry_run, ended.clock);
            }
            Err(_) => {
                self.counts.failures.add(1);
                // Meanwhile, no worker could send heartbeats to the store either.
                watch.interrupt(begun.clock);
            }
        }
        drop(watch);
        let line = self.condition.lock().note(&swept, begun.clock);
        if let Some(line) = line {
            line.log();
        }
        self.note_overdue();
        swept
    }

    fn ask_store(
        &self,
        watch: &Watch,
        swept_within: Option<Duration>,
    ) -> Result<SweepReport, Error> {
        let ended = local::ended_workers(&*self.store)?;
        let now = self.clock.now();
        let forgets = swept_within.is_none() || self.condition.lock().forgets(now);
        self.store.sweep(&Sweep {
            threshold: self.threshold,
            watched_for: watch.unbroken(now),
            watched_before: watch.before(now),
            // What the kernel of this host proves, no other sweeper may know.
            unless_swept_within: swept_within.filter(|_| ended.is_empty()),
            killed: ended.killed,
            gone: ended.gone,
            dry_run: self.dry_run,
            retention: forgets.then_some(self.retention),
        })
    }

    fn now(&self) -> watch::Now {
        watch::Now {
            clock: self.clock.now(),
            wall: self.clock.wall(),
        }
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
        let mut totals = self.counts.totals(self.clock.now());
        totals.overdue = self.overdue(&totals).is_some();
        totals
    }

    /// Whether sweeping is up to date: the last successful sweep, or that of another process that made
    /// one unneeded, is no longer ago than the [`threshold`](Self::threshold), or twice the
    /// [`interval`](Self::interval) if that is longer. For probes and alerts.
    ///
    /// ```
    /// use worker_heartbeat::{MemoryStore, Sweeper};
    ///
    /// let sweeper = Sweeper::new(MemoryStore::new());
    /// assert_eq!(sweeper.check().unwrap_err(), "the store was not swept yet");
    /// sweeper.sweep()?;
    /// assert_eq!(sweeper.check(), Ok(()));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// The reason why it is not up to date.
    pub fn check(&self) -> Result<(), String> {
        let totals = self.counts.totals(self.clock.now());
        match self.overdue(&totals) {
            Some(reason) => Err(reason),
            None if self.condition.lock().is_untried() => {
                Err("the store was not swept yet".to_owned())
            }
            None => Ok(()),
        }
    }

    /// Why the last success is too long ago, if it is.
    fn overdue(&self, totals: &SweepTotals) -> Option<String> {
        let allowed = self.threshold.max(self.interval.saturating_mul(2));
        let condition = self.condition.lock();
        let age = totals
            .last_success_age
            .or_else(|| condition.tried_for(self.clock.now()))?;
        (age > allowed).then(|| condition.overdue(age, allowed))
    }

    /// Logs when the last success becomes too long ago, and when it no longer is.
    fn note_overdue(&self) {
        let overdue = self.overdue(&self.counts.totals(self.clock.now()));
        let line = self.condition.lock().note_overdue(overdue);
        if let Some(line) = line {
            line.log();
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
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}
