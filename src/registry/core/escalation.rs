//! What begins a shutdown without a signal: the states of workers that last too long, and deaths.
//!
//! Deaths and give-ups are noted when they are reported. Times are checked by the pacemaker, on the
//! registry's time line: unobserved time does not count.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::events::EventKind;
use super::record::{Ended, Record};
use super::{Core, Expectation};
use crate::clock::Moment;
use crate::health::{Death, Ending, Health, MissingWorkers, StallCause, State};
use crate::sync::panics::PanicReport;
use crate::sync::printable::{Age, Printable};

/// A condition that begins a [`Shutdown`](crate::Shutdown): see
/// [`ShutdownBuilder::on`](crate::ShutdownBuilder::on).
///
/// Times are at most one [resolution](crate::Registry::resolution) late and never early. Time that
/// nobody observed does not count: while the process was stopped or suspended, or got no processor
/// time. A worker that makes progress before the time is over does not trigger, nor does one whose
/// thread the host [starves](crate::StallCause::Starved).
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::Trigger;
///
/// let stalled = Trigger::StalledFor(Duration::from_secs(300));
/// assert_eq!(stalled.to_string(), "a worker stalled for 5 min");
/// assert_eq!(Trigger::DeadType("indexer").to_string(), "a worker of type indexer died");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trigger {
    /// A supervisor gave a worker up.
    GaveUp,
    /// A worker has been [`State::Stalled`](crate::State::Stalled) for this long, from the moment at
    /// which its allowance was used up.
    StalledFor(Duration),
    /// A worker has been [`State::Stale`](crate::State::Stale) for this long.
    StaleFor(Duration),
    /// A worker has been [`State::Overdue`](crate::State::Overdue) for this long.
    OverdueFor(Duration),
    /// A worker has been [`State::NeverStarted`](crate::State::NeverStarted) for this long.
    NeverStartedFor(Duration),
    /// [Expected](crate::Registry::expect_workers) workers of a type have been missing for this long.
    MissingFor(Duration),
    /// A worker of this type died, and no supervisor restarts it. See
    /// [`Trigger::DeadType`](Self::DeadType()).
    #[non_exhaustive]
    Dead {
        /// The type.
        worker_type: String,
    },
    /// A panic ended a thread that runs no supervised work.
    ///
    /// This installs the panic hook of this crate, which calls the previous hook. Whether a panic is
    /// caught is not known when it arises. It counts as uncaught if its thread ends within a second,
    /// and its call stack shows nothing that catches it. So these do not trigger: a panic that
    /// [`catch_unwind`](std::panic::catch_unwind) stops, a panic in a task or in a blocking task of an
    /// async runtime, a panic in a thread pool, and a panic whose unwinding takes longer than a second.
    /// Joining the thread makes no difference. A panic that ends the main thread ends the process
    /// with status 101, as ever, and without this shutdown.
    UncaughtPanic,
}

impl Trigger {
    /// A worker of this type died, and no supervisor restarts it.
    ///
    /// ```
    /// use worker_heartbeat::{Registry, Shutdown, Trigger, WorkerHeartbeat};
    ///
    /// let registry = Registry::new();
    /// let shutdown = Shutdown::builder()
    ///     .registry(&registry)
    ///     .on(Trigger::DeadType("indexer"))
    ///     .install()?;
    /// let hb = WorkerHeartbeat::builder("indexer").id("indexer-1").registry(&registry).start()?;
    /// hb.fail("disk full");
    /// assert!(shutdown.requested());
    /// println!("{}", shutdown.wait()); // shutdown by a trigger (worker indexer-1: dead: failed: disk full), ...
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    #[expect(non_snake_case, reason = "it reads like the other triggers")]
    #[must_use]
    pub fn DeadType(worker_type: impl Into<String>) -> Self {
        Self::Dead {
            worker_type: worker_type.into(),
        }
    }

    /// How long a worker may be in this state.
    const fn limit(&self, state: State) -> Option<Duration> {
        match (self, state) {
            (Self::StalledFor(limit), State::Stalled)
            | (Self::StaleFor(limit), State::Stale)
            | (Self::OverdueFor(limit), State::Overdue)
            | (Self::NeverStartedFor(limit), State::NeverStarted) => Some(*limit),
            _ => None,
        }
    }

    fn is_for_death_of(&self, of_type: &str) -> bool {
        matches!(self, Self::Dead { worker_type } if worker_type == of_type)
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GaveUp => f.write_str("a supervisor gave a worker up"),
            Self::StalledFor(limit) => write!(f, "a worker stalled for {}", Age(*limit)),
            Self::StaleFor(limit) => write!(f, "a worker stale for {}", Age(*limit)),
            Self::OverdueFor(limit) => write!(f, "a worker overdue for {}", Age(*limit)),
            Self::NeverStartedFor(limit) => {
                write!(f, "a worker that never started for {}", Age(*limit))
            }
            Self::MissingFor(limit) => write!(f, "workers missing for {}", Age(*limit)),
            Self::Dead { worker_type } => {
                write!(f, "a worker of type {} died", Printable(worker_type))
            }
            Self::UncaughtPanic => f.write_str("a panic ended a thread"),
        }
    }
}

/// What began a shutdown by a [`Trigger`]: the trigger, and what happened.
///
/// `Display` is what happened, with the worker.
///
/// ```
/// use worker_heartbeat::{Registry, Shutdown, ShutdownCause, Trigger, WorkerHeartbeat};
///
/// let registry = Registry::new();
/// let shutdown = Shutdown::builder()
///     .registry(&registry)
///     .on(Trigger::DeadType("indexer"))
///     .install()?;
/// let hb = WorkerHeartbeat::builder("indexer").id("indexer-1").registry(&registry).start()?;
/// hb.fail("disk full");
/// let ShutdownCause::Escalated(escalation) = shutdown.wait().cause else {
///     unreachable!("nothing else began it");
/// };
/// assert_eq!(escalation.trigger(), &Trigger::DeadType("indexer"));
/// assert_eq!(escalation.worker(), Some("indexer-1"));
/// assert_eq!(escalation.to_string(), "worker indexer-1: dead: failed: disk full");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Escalation(&'static Facts);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Facts {
    trigger: Trigger,
    worker: Option<String>,
    what: String,
}

impl Escalation {
    /// The trigger that applied.
    #[must_use]
    pub const fn trigger(&self) -> &Trigger {
        &self.0.trigger
    }

    /// The id of the worker; `None` for missing workers and for a thread that is no worker.
    #[must_use]
    pub fn worker(&self) -> Option<&str> {
        self.0.worker.as_deref()
    }

    /// Lives as long as the process, as the shutdown does that it begins; there is one for each.
    fn new(trigger: &Trigger, worker: Option<&str>, what: String) -> Self {
        Self(Box::leak(Box::new(Facts {
            trigger: trigger.clone(),
            worker: worker.map(ToOwned::to_owned),
            what,
        })))
    }

    fn of_worker(trigger: &Trigger, record: &Record, what: &dyn fmt::Display) -> Self {
        let id = record.id();
        let what = format!("worker {}: {what}", Printable(id));
        Self::new(trigger, Some(id), what)
    }

    /// A panic ended this thread.
    pub(crate) fn of_panic(report: &PanicReport) -> Self {
        let place = report.location.as_ref().map(|place| format!(" at {place}"));
        let what = format!(
            "thread {} panicked{}: {}",
            Printable(&report.thread),
            place.unwrap_or_default(),
            Printable(&report.message)
        );
        Self::new(&Trigger::UncaughtPanic, None, what)
    }
}

impl fmt::Display for Escalation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)
    }
}

/// Begins a shutdown. The first escalation counts.
pub(crate) trait Escalate: fmt::Debug + Send + Sync {
    /// Whether the shutdown has begun: there is nothing to note any more.
    fn has_begun(&self) -> bool;
    /// Takes note of the cause. Called under locks: it must neither wait nor run code of the
    /// application.
    fn note(&self, escalation: Escalation);
    /// Begins the shutdown if a cause was noted. Never called under a lock.
    fn act(self: Arc<Self>);
}

/// The triggers of all shutdowns of a registry.
#[derive(Debug, Default)]
pub(crate) struct Escalations {
    watches: RwLock<Vec<Watch>>,
    /// There are triggers.
    any: AtomicBool,
    /// A cause was noted since the last call of `act`.
    noted: AtomicBool,
    /// Triggers came: workers that are convicted already have to be examined again.
    new: AtomicBool,
    /// The present tick follows a gap.
    resumes: AtomicBool,
}

#[derive(Debug)]
struct Watch {
    triggers: Arc<[Trigger]>,
    shutdown: Arc<dyn Escalate>,
}

impl Escalations {
    #[inline]
    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Begins a tick. `resumes`: the workers were not observed before it, so they could not make
    /// progress, and none of them escalates in it. Returns whether triggers came since the last tick.
    pub(crate) fn begin_tick(&self, resumes: bool) -> bool {
        self.resumes.store(resumes, Ordering::Relaxed);
        !self.is_empty() && self.new.swap(false, Ordering::AcqRel)
    }

    /// Notes what `escalation` makes of each trigger of each shutdown that has not begun.
    fn check(&self, mut escalation: impl FnMut(&Trigger) -> Option<Escalation>) {
        if self.is_empty() {
            return;
        }
        for Watch { triggers, shutdown } in &*self.watches.read() {
            if shutdown.has_begun() {
                continue;
            }
            if let Some(escalation) = triggers.iter().find_map(&mut escalation) {
                shutdown.note(escalation);
                self.noted.store(true, Ordering::Release);
            }
        }
    }

    /// Begins the shutdowns for which a cause was noted. Never under a lock.
    #[inline]
    pub(super) fn act(&self) {
        if self.noted.load(Ordering::Acquire) && self.noted.swap(false, Ordering::AcqRel) {
            let shutdowns: Vec<_> = {
                let watches = self.watches.read();
                watches
                    .iter()
                    .map(|one| Arc::clone(&one.shutdown))
                    .collect()
            };
            shutdowns.into_iter().for_each(Escalate::act);
        }
    }

    /// Notes the event of a worker, under its lock of events.
    pub(super) fn note_event(&self, record: &Record, kind: &EventKind) {
        match kind {
            EventKind::GaveUp { restarts } if !self.is_empty() => {
                self.note_given_up(record, *restarts)
            }
            EventKind::Became(Health::Dead { .. }) if !self.is_empty() => {
                // A supervisor may restart it.
                let returns = record.known_detail().is_some_and(|detail| detail.returns);
                if !returns {
                    self.note_dead(record);
                }
            }
            _ => {}
        }
    }

    fn note_given_up(&self, record: &Record, restarts: u32) {
        let death = death_of(record);
        self.check(|trigger| {
            if *trigger != Trigger::GaveUp {
                return None;
            }
            let cause = death.as_ref().map(|death| format!(": {}", death.cause));
            let cause = cause.unwrap_or_default();
            let what = format!("given up after {restarts} restarts{cause}");
            Some(Escalation::of_worker(trigger, record, &what))
        });
    }

    /// Notes a death that no supervisor follows up.
    fn note_dead(&self, record: &Record) {
        let Some(death) = death_of(record) else {
            return;
        };
        let worker_type = &*record.profile.worker_type;
        self.check(|trigger| {
            if !trigger.is_for_death_of(worker_type) {
                return None;
            }
            let what = format!("dead: {}", death.cause);
            Some(Escalation::of_worker(trigger, record, &what))
        });
    }

    /// Notes types whose workers have been missing for too long.
    pub(crate) fn check_missing(&self, core: &Core, now: Moment) {
        if self.is_empty() || self.resumes.load(Ordering::Relaxed) {
            return;
        }
        let expected = core.expected.lock().clone();
        let missing = expected.iter().filter_map(|(worker_type, expectation)| {
            Some((worker_type, expectation, expectation.missing_since?))
        });
        let missing: Vec<(&String, &Expectation, Moment)> = missing.collect();
        self.check(|trigger| {
            let Trigger::MissingFor(limit) = trigger else {
                return None;
            };
            let late = missing
                .iter()
                .find(|(.., since)| now.since(*since) >= *limit);
            let (worker_type, expectation, since) = late?;
            let living = core.living_by_type().get(*worker_type).copied();
            let living = living.unwrap_or(0);
            let what = MissingWorkers::new((*worker_type).clone(), expectation.count, living);
            let what = format!("{what}, for {}", Age(now.since(*since)));
            // All may have come back just now.
            (living < expectation.count).then(|| Escalation::new(trigger, None, what))
        });
    }
}

impl Core {
    /// Adds the triggers of a shutdown, and notes those that apply to workers that have ended.
    pub(crate) fn add_triggers(&self, triggers: &Arc<[Trigger]>, shutdown: Arc<dyn Escalate>) {
        self.escalations.watches.write().push(Watch {
            triggers: Arc::clone(triggers),
            shutdown,
        });
        self.escalations.any.store(true, Ordering::Release);
        self.escalations.new.store(true, Ordering::Release);
    }

    /// Notes a worker that has been convicted for too long. Returns when to check it again.
    pub(crate) fn check_convicted(
        &self,
        record: &Record,
        health: &Health,
        since: Moment,
        now: Moment,
    ) -> Moment {
        let mut next = Moment::NEVER;
        let resumes = self.escalations.resumes.load(Ordering::Relaxed);
        // What the host does now says nothing of the time of a mock clock.
        let starved = !self.clock.is_mock()
            && matches!(
                health,
                Health::Stalled(stalled) if matches!(stalled.cause, StallCause::Starved { .. })
            );
        self.escalations.check(|trigger| {
            let limit = trigger.limit(health.state())?;
            let due = since.after(limit);
            if now >= due && !starved && !resumes {
                let what = format!("{health}, for {}", Age(now.since(since)));
                return Some(Escalation::of_worker(trigger, record, &what));
            }
            next = next.min(due.max(now.after(self.resolution())));
            None
        });
        next
    }

    /// Notes an ended worker: given up, or dead for good.
    pub(crate) fn note_ended(&self, record: &Record) {
        let given_up = death_of(record).and_then(|death| death.gave_up_after);
        if let Some(restarts) = given_up {
            self.escalations.note_given_up(record, restarts);
        }
        if record.is_free() {
            self.escalations.note_dead(record);
        }
    }

    /// No supervisor restarts this worker.
    pub(crate) fn leave_dead(&self, record: &Record) {
        self.escalations.note_dead(record);
        self.escalations.act();
    }

    /// Tells the tasks that wait for events, and begins a shutdown that an event called for. Never
    /// under a lock.
    pub(in crate::registry) fn act_on_events(&self) {
        self.subscribers.wake();
        self.escalations.act();
    }
}

fn death_of(record: &Record) -> Option<Arc<Death>> {
    match record.ended()? {
        Ended {
            ending: Ending::Dead(death),
            ..
        } => Some(death),
        Ended { .. } => None,
    }
}
