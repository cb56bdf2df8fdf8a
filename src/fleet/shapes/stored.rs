//! A worker as a store knows it, and the verdict on it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Sweep, WorkerInfo, WorkerKey, WorkerStatus};
use crate::clock::Moment;
use crate::health::{
    Activity, Death, DeathCause, Ending, Health, Reading, StallCause, Stalled, State, StopCause,
    Thresholds, judge,
};
#[cfg(feature = "serde")]
use crate::serial;

/// Longest time without a heartbeat, for workers without a limit of their own.
pub(crate) const DEFAULT_THRESHOLD: Duration = Duration::from_secs(90);

/// A worker as a store knows it. Ages are those at the moment of the reading.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::State;
/// use worker_heartbeat::fleet::{StoredWorker, WorkerInfo, WorkerKey};
///
/// // As a store of another kind builds one from what it keeps.
/// let mut worker = StoredWorker::new(WorkerKey::new("indexer-1", 7), WorkerInfo::new("indexer"));
/// worker.heartbeat_age = Some(Duration::from_secs(91));
/// assert_eq!(worker.health().state(), State::Stale);
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[non_exhaustive]
pub struct StoredWorker {
    /// Its id and incarnation.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub key: WorkerKey,
    /// What it is.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: WorkerInfo,
    /// What its process last reported. After its end: what it last worked on.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub status: WorkerStatus,
    /// Time since its registration.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "registered_age_s", with = "serial::seconds")
    )]
    pub registered_age: Duration,
    /// Age of its heartbeat; `None` if it never had one.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "heartbeat_age_s", default, with = "serial::optional_seconds")
    )]
    pub heartbeat_age: Option<Duration>,
    /// Time since its last progress; `None` if it never made any.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "progress_age_s", default, with = "serial::optional_seconds")
    )]
    pub progress_age: Option<Duration>,
    /// Time until the last of its leases expires; `None` if it has none.
    #[cfg_attr(
        feature = "serde",
        serde(
            rename = "lease_remaining_s",
            default,
            with = "serial::optional_seconds"
        )
    )]
    pub lease_remaining: Option<Duration>,
    /// How it ended, and how long ago.
    #[cfg_attr(feature = "serde", serde(flatten, deserialize_with = "serial::ended"))]
    pub ending: Option<(StoredEnding, Duration)>,
    /// How an earlier incarnation of it died last: kept through registrations, and through
    /// incarnations that stopped in good order.
    #[cfg_attr(feature = "serde", serde(default))]
    pub last_death: Option<StoredDeath>,
}

/// The death of an earlier incarnation.
///
/// ```
/// use worker_heartbeat::{DeathCause, HeartbeatStore, MemoryStore};
/// use worker_heartbeat::fleet::{Registration, Stop, StoredEnding, WorkerFilter};
///
/// let store = MemoryStore::new();
/// let registration = Registration::new("indexer", "indexer-1");
/// let first = store.register(&[registration.clone()])?.remove(0);
/// let ending = StoredEnding::dead(&DeathCause::Failed { error: "no disk".into() });
/// store.stop(&[Stop::new(first, ending)])?;
/// store.register(&[registration])?;
/// let worker = store.list(&WorkerFilter::new())?.remove(0);
/// assert!(worker.ending.is_none());
/// assert_eq!(worker.last_death.expect("it died").cause().to_string(), "failed: no disk");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[non_exhaustive]
pub struct StoredDeath {
    /// How it died.
    pub ending: StoredEnding,
    /// The run that it was working on.
    pub run_id: Option<String>,
    /// The task that it was working on.
    pub task: Option<String>,
    /// How long ago.
    #[cfg_attr(feature = "serde", serde(rename = "age_s", with = "serial::seconds"))]
    pub age: Duration,
}

impl StoredDeath {
    /// A death this long ago, at no run or task.
    #[must_use]
    pub const fn new(ending: StoredEnding, age: Duration) -> Self {
        Self {
            ending,
            run_id: None,
            task: None,
            age,
        }
    }

    /// Why it died.
    #[must_use]
    pub fn cause(&self) -> DeathCause {
        let ending = &self.ending;
        let detail = ending.detail.as_deref();
        DeathCause::from_name(&ending.cause, detail, ending.location.as_deref())
    }
}

/// How an incarnation ended, in a form that every store can keep.
///
/// ```
/// use worker_heartbeat::DeathCause;
/// use worker_heartbeat::fleet::StoredEnding;
///
/// let ending = StoredEnding::dead(&DeathCause::Failed { error: "no disk".into() });
/// assert_eq!((&*ending.cause, ending.detail.as_deref()), ("failed", Some("no disk")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StoredEnding {
    /// Stopped in good order; otherwise dead.
    pub stopped: bool,
    /// [`DeathCause::name`] or [`StopCause::name`].
    pub cause: String,
    /// The panic message, the error, or the exit status.
    pub detail: Option<String>,
    /// File, line and column of a panic.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub location: Option<String>,
}

impl StoredEnding {
    /// Stopped for this cause.
    #[must_use]
    pub fn stopped(cause: &StopCause) -> Self {
        Self {
            stopped: true,
            cause: cause.name().to_owned(),
            detail: cause.detail(),
            location: None,
        }
    }

    /// Dead for this cause.
    #[must_use]
    pub fn dead(cause: &DeathCause) -> Self {
        let (detail, location) = cause.detail();
        Self {
            stopped: false,
            cause: cause.name().to_owned(),
            detail: detail.map(str::to_owned),
            location: location.map(str::to_owned),
        }
    }

    /// `heard`: how long ago it was last heard of.
    fn ending(&self, status: &WorkerStatus, ago: Duration, heard: Duration) -> Ending {
        let detail = self.detail.as_deref();
        if self.stopped {
            return Ending::Stopped(StopCause::from_name(&self.cause, detail));
        }
        let at = SystemTime::now();
        let cause = DeathCause::from_name(&self.cause, detail, self.location.as_deref());
        // No worker reported these: a store, or a process on its behalf, found them later.
        let was_found = matches!(
            cause,
            DeathCause::Killed | DeathCause::Gone | DeathCause::Fenced | DeathCause::Lost
        );
        Ending::Dead(Arc::new(Death {
            cause,
            unheard_for: was_found.then(|| heard.saturating_sub(ago)),
            run_id: status.run_id.clone(),
            task: status.task.clone(),
            last_location: status.location(),
            at: at.checked_sub(ago).unwrap_or(at),
            gave_up_after: None,
        }))
    }
}

impl From<&Ending> for StoredEnding {
    fn from(ending: &Ending) -> Self {
        match ending {
            Ending::Stopped(cause) => Self::stopped(cause),
            Ending::Dead(death) => Self::dead(&death.cause),
        }
    }
}

impl StoredWorker {
    /// A worker that was registered just now and has not been heard from.
    #[must_use]
    pub const fn new(key: WorkerKey, info: WorkerInfo) -> Self {
        Self {
            key,
            info,
            status: WorkerStatus::new(State::Starting),
            registered_age: Duration::ZERO,
            heartbeat_age: None,
            progress_age: None,
            lease_remaining: None,
            ending: None,
            last_death: None,
        }
    }

    /// The verdict on it, by the judge that also judges in its process.
    #[must_use]
    pub fn health(&self) -> Health {
        self.judged_in(&Sweep::default())
    }

    /// The reason for the verdict. That of its own process explains more, but only of the state that
    /// the process reported.
    ///
    /// ```
    /// use worker_heartbeat::State;
    /// use worker_heartbeat::fleet::{StoredWorker, WorkerInfo, WorkerKey};
    ///
    /// let mut worker = StoredWorker::new(WorkerKey::new("indexer-1", 7), WorkerInfo::new("indexer"));
    /// worker.heartbeat_age = Some(std::time::Duration::from_secs(1));
    /// worker.status.state = State::Stalled;
    /// worker.status.reason = Some("no progress for 6 s, 5 s allowed; blocked in futex_wait".into());
    /// assert_eq!(worker.reason(), worker.status.reason);
    /// ```
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let health = self.health();
        let is_reported = self.ending.is_none() && health.state() == self.status.state;
        let reported = self.status.reason.clone().filter(|_| is_reported);
        reported.or_else(|| health.reason())
    }

    /// The call stack of its thread, a line a call, or why there is none; of a worker that is unwell,
    /// or was when it ended.
    #[must_use]
    pub fn call_stack(&self) -> Option<&str> {
        // A program of an older version does not remove it.
        let stack = self.status.stack.as_deref();
        stack.filter(|_| !self.status.state.is_recent())
    }

    /// The verdict, with a limit for workers that have none of their own. Silence before
    /// `watched_for` is not charged.
    ///
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn judged(&self, threshold: Duration, watched_for: Duration) -> Health {
        self.judged_in(&Sweep {
            threshold,
            watched_for,
            ..Sweep::default()
        })
    }

    /// The verdict of this sweep.
    ///
    /// In a store, the worker's process takes the part that the pacemaker has in a registry: it
    /// vouches for the worker, and the worker is stale once that has not happened for too long.
    pub(crate) fn judged_in(&self, sweep: &Sweep) -> Health {
        const NOW: Moment = Moment::from_nanos(u64::MAX / 2);
        let seen = |age: Duration| NOW.before(sweep.charged(age));
        let mut reading = Reading::new(seen(self.registered_age));
        reading.heartbeat_at = self.heartbeat_age.map(seen);
        reading.progress_at = reading.heartbeat_at;
        reading.stop_requested = self.status.state == State::Stopping;
        reading.activity = match self.status.state {
            State::Idle => Activity::Idle,
            State::Processing => Activity::Processing,
            _ => Activity::Active,
        };
        let heard = self
            .heartbeat_age
            .map_or(self.registered_age, |age| age.min(self.registered_age));
        reading.ending = self
            .ending
            .as_ref()
            .map(|(ending, ago)| (ending.ending(&self.status, *ago, heard), *ago));
        let own = self.info.thresholds.clone();
        let mut thresholds = own.unwrap_or_else(|| Thresholds::new(sweep.threshold));
        let stall_after = thresholds.stall_after.take();
        // Its own pacemaker knows better what kind of silence it was.
        thresholds.beats_only = false;
        let health = judge(&reading, &thresholds, NOW);
        match (health.is_recent(), self.status.state) {
            (true, State::Stalled) => Health::Stalled(Stalled {
                cause: StallCause::Unknown,
                silent: self.progress_age.unwrap_or_default(),
                last_location: self.status.location(),
                future: None,
                allowance: self.stall_allowance(stall_after.unwrap_or_default()),
                stack: None,
                run_id: self.status.run_id.clone(),
                task: self.status.task.clone(),
            }),
            (true, State::Overdue) => Health::Overdue {
                task_age: Duration::ZERO,
                allowance: Duration::ZERO,
                last_location: None,
                run_id: self.status.run_id.clone(),
                task: self.status.task.clone(),
            },
            (true, State::Unobserved) => Health::Unobserved {
                unwatched: self.heartbeat_age.unwrap_or_default(),
            },
            _ => health,
        }
    }

    /// What a stalled worker was allowed: its heartbeat stands where its allowance ended. A limit that
    /// is learned is shorter than the one that it was registered with.
    fn stall_allowance(&self, stall_after: Duration) -> Duration {
        let ages = self.progress_age.zip(self.heartbeat_age);
        let vouched = ages.map(|(progress, heartbeat)| progress.saturating_sub(heartbeat));
        let vouched = vouched.filter(|vouched| !vouched.is_zero());
        vouched.map_or(stall_after, |vouched| vouched.min(stall_after))
    }
}

/// What the state of a stored worker follows from. To judge a row, a store need not read the rest.
#[derive(Clone, Debug)]
pub(crate) struct JudgedFacts {
    pub reported: State,
    pub registered_age: Duration,
    pub heartbeat_age: Option<Duration>,
    pub thresholds: Option<Thresholds>,
    /// Whether it ended, and if so, in good order.
    pub stopped: Option<bool>,
}

impl JudgedFacts {
    /// As [`StoredWorker::health`] judges; allocates nothing.
    pub(crate) fn state(self) -> State {
        match self.stopped {
            Some(true) => return State::Stopped,
            Some(false) => return State::Dead,
            None => {}
        }
        let info = WorkerInfo {
            worker_type: String::new(),
            group: String::new(),
            interval: Duration::ZERO,
            thresholds: self.thresholds,
            metadata: Vec::new(),
            restarts: 0,
            process: None,
        };
        let worker = StoredWorker {
            status: WorkerStatus::new(self.reported),
            registered_age: self.registered_age,
            heartbeat_age: self.heartbeat_age,
            ..StoredWorker::new(WorkerKey::new(String::new(), 0), info)
        };
        worker.health().state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn worker() -> StoredWorker {
        StoredWorker {
            status: WorkerStatus::new(State::Processing),
            registered_age: 1_000 * SECOND,
            heartbeat_age: Some(SECOND),
            progress_age: Some(SECOND),
            ..StoredWorker::new(WorkerKey::new("a", 1), WorkerInfo::new("poller"))
        }
    }

    #[test]
    fn what_was_reported_counts_while_the_heartbeat_is_fresh() {
        let mut worker = worker();
        for state in [
            State::Idle,
            State::Active,
            State::Processing,
            State::Stopping,
            State::Stalled,
            State::Overdue,
            State::Unobserved,
        ] {
            worker.status.state = state;
            worker.heartbeat_age = Some(90 * SECOND);
            assert_eq!(worker.health().state(), state);
            worker.heartbeat_age = Some(91 * SECOND);
            assert_eq!(worker.health().state(), State::Stale, "{state}");
        }
    }

    #[test]
    fn without_a_heartbeat_its_grace_counts() {
        let mut worker = worker();
        worker.heartbeat_age = None;
        worker.status.state = State::Starting;
        assert_eq!(worker.health().state(), State::NeverStarted);
        worker.registered_age = 90 * SECOND;
        assert_eq!(worker.health().state(), State::Starting);
    }

    #[test]
    fn silence_that_was_not_watched_is_not_charged() {
        let mut worker = worker();
        worker.heartbeat_age = Some(10_000 * SECOND);
        let judged = |watched| worker.judged(DEFAULT_THRESHOLD, watched).state();
        assert_eq!(judged(90 * SECOND), State::Processing);
        assert_eq!(judged(91 * SECOND), State::Stale);
    }

    #[test]
    fn a_death_that_was_found_says_when_the_worker_was_last_heard_of() {
        let mut worker = worker();
        worker.heartbeat_age = Some(13 * SECOND);
        let mut said = |cause: &DeathCause, ago: Duration| {
            worker.ending = Some((StoredEnding::dead(cause), ago));
            worker.health().to_string()
        };
        let ago = Duration::from_millis(45);
        assert_eq!(
            said(&DeathCause::Killed, ago),
            "dead: its process was killed, last heard of 13 s ago, found 45 ms ago"
        );
        for cause in [DeathCause::Gone, DeathCause::Lost, DeathCause::Fenced] {
            let said = said(&cause, 3 * SECOND);
            assert!(
                said.ends_with(", last heard of 13 s ago, found 3 s ago"),
                "{said}"
            );
        }
        // Its process reported the time itself.
        let failed = DeathCause::Failed {
            error: "no disk".into(),
        };
        assert_eq!(said(&failed, 3 * SECOND), "dead: failed: no disk, 3 s ago");
        assert_eq!(
            said(&DeathCause::Exited, ago),
            "dead: returned while not asked to, 45 ms ago"
        );
        worker.heartbeat_age = None;
        worker.registered_age = 20 * SECOND;
        worker.ending = Some((StoredEnding::dead(&DeathCause::Gone), ago));
        assert_eq!(
            worker.health().to_string(),
            "dead: its process is gone, last heard of 20 s ago, found 45 ms ago"
        );
    }

    #[test]
    fn endings_come_back_as_they_were() {
        let mut worker = worker();
        for cause in [
            DeathCause::Exited,
            DeathCause::Killed,
            DeathCause::Gone,
            DeathCause::Fenced,
            DeathCause::Lost,
            DeathCause::Failed {
                error: "no disk".into(),
            },
            DeathCause::Panicked {
                message: "boom".into(),
                location: Some("src/jobs.rs:19:5".into()),
                thread: "jobs".into(),
                backtrace: None,
            },
        ] {
            let said = cause.to_string();
            worker.ending = Some((StoredEnding::dead(&cause), 3 * SECOND));
            assert_eq!(
                worker.health().to_string(),
                format!("dead: {said}, 3 s ago")
            );
        }
        for cause in [
            StopCause::Stop,
            StopCause::Drop,
            StopCause::Completed,
            StopCause::Cancelled,
            StopCause::Shutdown,
            StopCause::Supervisor,
            StopCause::Signal("SIGTERM"),
            StopCause::Fenced,
            StopCause::ProcessExit { status: None },
            StopCause::ProcessExit { status: Some(-3) },
        ] {
            worker.ending = Some((StoredEnding::stopped(&cause), SECOND));
            let Health::Stopped { by, .. } = worker.health() else {
                panic!("{:?}", worker.health());
            };
            assert_eq!(by, cause);
        }
    }
}
