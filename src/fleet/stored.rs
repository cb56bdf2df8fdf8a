//! A worker as a store knows it, and the verdict on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::host::ProcessIdentity;
use super::key::WorkerKey;
use crate::clock::Moment;
use crate::health::{
    Activity, Death, DeathCause, Ending, Health, Reading, StallCause, Stalled, State, StateCounts,
    StopCause, Summary, Thresholds, UnwellWorker, judge,
};

/// Longest time without a heartbeat, for workers that have no limit of their own.
pub(crate) const DEFAULT_THRESHOLD: Duration = Duration::from_secs(90);

/// A worker as a store knows it. Ages are those at the moment of the reading.
#[derive(Clone, Debug)]
pub struct StoredWorker {
    /// Its id and incarnation.
    pub key: WorkerKey,
    /// Its type.
    pub worker_type: String,
    /// Its group.
    pub group: String,
    /// How often its heartbeats are to be expected.
    pub interval: Duration,
    /// The limits that it is judged by, if it brought some.
    pub thresholds: Option<Thresholds>,
    /// What else is known of it.
    pub metadata: Vec<(String, String)>,
    /// How often it was started again by its supervisor.
    pub restarts: u32,
    /// The process that it runs in, if that is known.
    pub process: Option<ProcessIdentity>,
    /// The verdict in its own process, when it was last heard of.
    pub reported: State,
    /// Why, if that needed a reason.
    pub reason: Option<String>,
    /// Time since it was registered.
    pub registered_age: Duration,
    /// Age of its heartbeat; `None` if it never had one.
    pub heartbeat_age: Option<Duration>,
    /// Time since its last progress; `None` if it never made any.
    pub progress_age: Option<Duration>,
    /// The run that it is at, or was at when it ended.
    pub run_id: Option<String>,
    /// The task that it is at, or was at when it ended.
    pub task: Option<String>,
    /// Steps done and steps to do of its task.
    pub progress: Option<(u64, u64)>,
    /// Steps of progress of this incarnation.
    pub beats: u64,
    /// Time until the last of its leases expires; `None` if it has none.
    pub lease_remaining: Option<Duration>,
    /// How it ended, and how long ago.
    pub ending: Option<(StoredEnding, Duration)>,
}

/// How an incarnation ended, in words that every store can keep.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoredEnding {
    /// Stopped in good order; otherwise dead.
    pub stopped: bool,
    /// [`DeathCause::name`] or [`StopCause::name`].
    pub cause: String,
    /// What is known beyond that: the panic's message, the error, the exit status.
    pub detail: Option<String>,
}

impl StoredEnding {
    /// Marked offline by a sweep.
    pub(crate) fn swept(cause: &DeathCause) -> Self {
        Self {
            stopped: false,
            cause: cause.name().to_owned(),
            detail: None,
        }
    }

    pub(crate) fn restored(
        &self,
        run_id: Option<&str>,
        task: Option<&str>,
        ago: Duration,
    ) -> Ending {
        if self.stopped {
            let cause = StopCause::from_name(&self.cause, self.detail.as_deref());
            return Ending::Stopped(cause);
        }
        let at = SystemTime::now();
        Ending::Dead(Arc::new(Death {
            cause: DeathCause::from_name(&self.cause, self.detail.as_deref()),
            run_id: run_id.map(str::to_owned),
            task: task.map(str::to_owned),
            at: at.checked_sub(ago).unwrap_or(at),
            gave_up_after: None,
        }))
    }
}

impl From<&Ending> for StoredEnding {
    fn from(ending: &Ending) -> Self {
        match ending {
            Ending::Stopped(cause) => Self {
                stopped: true,
                cause: cause.name().to_owned(),
                detail: cause.detail(),
            },
            Ending::Dead(death) => Self {
                stopped: false,
                cause: death.cause.name().to_owned(),
                detail: match &death.cause {
                    DeathCause::Panicked {
                        message, location, ..
                    } => Some(match location {
                        Some(location) => format!("{message} (at {location})"),
                        None => message.clone(),
                    }),
                    DeathCause::Failed { error } => Some(error.clone()),
                    _ => None,
                },
            },
        }
    }
}

impl StoredWorker {
    /// The verdict on it now, by the same judge that judges in its process.
    #[must_use]
    pub fn health(&self) -> Health {
        self.judged(DEFAULT_THRESHOLD, Duration::MAX)
    }

    /// The verdict, with a limit for workers that have none of their own, by somebody who has been
    /// watching for so long: silence before that is not charged.
    ///
    /// For a store, the process of a worker is what its pacemaker is for a registry: it vouches for
    /// the worker, and the worker is stale once nothing has vouched for it for too long.
    pub(crate) fn judged(&self, threshold: Duration, watched_for: Duration) -> Health {
        const NOW: Moment = Moment::from_nanos(u64::MAX / 2);
        let seen = |age: Duration| NOW.before(age.min(watched_for));
        let mut reading = Reading::new(seen(self.registered_age));
        reading.heartbeat_at = self.heartbeat_age.map(seen);
        reading.progress_at = reading.heartbeat_at;
        reading.stop_requested = self.reported == State::Stopping;
        reading.activity = match self.reported {
            State::Idle => Activity::Idle,
            State::Processing => Activity::Processing,
            _ => Activity::Active,
        };
        reading.ending = self.ending.as_ref().map(|(ending, ago)| {
            let (run_id, task) = (self.run_id.as_deref(), self.task.as_deref());
            (ending.restored(run_id, task, *ago), *ago)
        });
        let mut thresholds = self
            .thresholds
            .clone()
            .unwrap_or_else(|| Thresholds::new(threshold));
        let stall_after = thresholds.stall_after.take();
        // Its own pacemaker knew better what kind of silence it was.
        thresholds.beats_only = false;
        let health = judge(&reading, &thresholds, NOW);
        match (health.is_recent(), self.reported) {
            (true, State::Stalled) => Health::Stalled(Stalled {
                cause: StallCause::Unknown,
                silent: self.progress_age.unwrap_or_default(),
                allowance: stall_after.unwrap_or_default(),
                run_id: self.run_id.clone(),
                task: self.task.clone(),
            }),
            (true, State::Unobserved) => Health::Unobserved {
                unwatched: self.heartbeat_age.unwrap_or_default(),
            },
            _ => health,
        }
    }
}

/// All workers together, as [`Registry::summary`](crate::Registry::summary) tells it of a process.
pub(crate) fn summarize(workers: &[StoredWorker]) -> Summary {
    let mut summary = Summary::default();
    let mut types = BTreeMap::<&str, StateCounts>::new();
    let mut groups = BTreeMap::<&str, StateCounts>::new();
    for worker in workers {
        let health = worker.health();
        let state = health.state();
        summary.states.add(state);
        types.entry(&worker.worker_type).or_default().add(state);
        groups.entry(&worker.group).or_default().add(state);
        let list = match state {
            State::Stalled => &mut summary.stalled_workers,
            state if state.is_offline() => &mut summary.dead_workers,
            _ => continue,
        };
        list.push(UnwellWorker {
            id: worker.key.id.clone(),
            worker_type: worker.worker_type.clone(),
            group: worker.group.clone(),
            health,
        });
    }
    summary.total = summary.states.total();
    summary.total_active = summary.states.active();
    summary.total_dead = summary.states.dead();
    let named = |(name, counts): (&str, StateCounts)| (name.to_owned(), counts);
    summary.stats_by_type = types
        .into_iter()
        .map(named)
        .map(|(name, counts)| (name, counts.into()))
        .collect();
    summary.groups = groups
        .into_iter()
        .map(named)
        .map(|(name, counts)| (name, counts.into()))
        .collect();
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    pub(crate) fn worker() -> StoredWorker {
        StoredWorker {
            key: WorkerKey {
                id: "a".into(),
                incarnation: 1,
            },
            worker_type: "poller".into(),
            group: "local".into(),
            interval: 30 * SECOND,
            thresholds: None,
            metadata: Vec::new(),
            restarts: 0,
            process: None,
            reported: State::Processing,
            reason: None,
            registered_age: 1_000 * SECOND,
            heartbeat_age: Some(SECOND),
            progress_age: Some(SECOND),
            run_id: None,
            task: None,
            progress: None,
            beats: 1,
            lease_remaining: None,
            ending: None,
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
            State::Unobserved,
        ] {
            worker.reported = state;
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
        worker.reported = State::Starting;
        assert_eq!(worker.health().state(), State::NeverStarted);
        worker.registered_age = 90 * SECOND;
        assert_eq!(worker.health().state(), State::Starting);
    }

    #[test]
    fn silence_that_nobody_watched_is_not_charged() {
        let mut worker = worker();
        worker.heartbeat_age = Some(10_000 * SECOND);
        let judged = |watched| worker.judged(DEFAULT_THRESHOLD, watched).state();
        assert_eq!(judged(90 * SECOND), State::Processing);
        assert_eq!(judged(91 * SECOND), State::Stale);
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
        ] {
            let said = cause.to_string();
            let ending = Ending::Dead(Arc::new(Death {
                cause,
                run_id: None,
                task: None,
                at: SystemTime::UNIX_EPOCH,
                gave_up_after: None,
            }));
            worker.ending = Some((StoredEnding::from(&ending), 3 * SECOND));
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
            let ending = StoredEnding::from(&Ending::Stopped(cause.clone()));
            worker.ending = Some((ending, SECOND));
            let Health::Stopped { by, .. } = worker.health() else {
                panic!("{:?}", worker.health());
            };
            assert_eq!(by, cause);
        }
    }
}
