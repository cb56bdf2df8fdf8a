//! What every store does, on whatever tables it keeps: the one place where it is decided who may
//! write, who is stale, and who holds a run.
//!
//! Pure but for the tables: time is handed in. The safety of leases is checked exhaustively on this
//! code (`model.rs`); stores that leave the work to a database of their own are held to it
//! by the conformance suite.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use super::host::ProcessIdentity;
use super::store::{
    Answer, Beat, Claim, ClaimAnswer, LeaseKey, Registration, Stop, Sweep, WorkerKey,
};
use super::stored::{StoredEnding, StoredWorker};
use crate::clock::Moment;
use crate::error::Error;
use crate::health::{DeathCause, GroupState, State, StateCounts, SweepReport, Thresholds};

/// A worker, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub key: WorkerKey,
    pub worker_type: String,
    pub group: String,
    pub interval: Duration,
    pub thresholds: Option<Thresholds>,
    pub metadata: Vec<(String, String)>,
    pub restarts: u32,
    pub process: Option<ProcessIdentity>,
    pub reported: State,
    pub reason: Option<String>,
    pub registered_at: Moment,
    pub heartbeat_at: Option<Moment>,
    pub progress_at: Option<Moment>,
    pub run_id: Option<String>,
    pub task: Option<String>,
    pub progress: Option<(u64, u64)>,
    pub beats: u64,
    pub ending: Option<(StoredEnding, Moment)>,
}

/// A lease, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hold {
    pub key: LeaseKey,
    /// At this moment, it is over.
    pub expires_at: Moment,
}

/// Where a store keeps its workers and leases. One call at a time.
pub(crate) trait Tables {
    fn worker(&mut self, id: &str) -> Result<Option<Row>, Error>;
    fn put_worker(&mut self, row: &Row) -> Result<(), Error>;
    /// Those that have not ended.
    fn living(&mut self) -> Result<Vec<Row>, Error>;
    /// Everybody in these groups.
    fn in_groups(&mut self, groups: &BTreeSet<String>) -> Result<Vec<Row>, Error>;
    /// Forgets those that ended at this moment or before.
    fn forget_ended(&mut self, until: Moment) -> Result<usize, Error>;
    fn lease(&mut self, run_id: &str) -> Result<Option<Hold>, Error>;
    /// The leases of all incarnations of this worker.
    fn leases_of(&mut self, worker_id: &str) -> Result<Vec<Hold>, Error>;
    fn expired_leases(&mut self, now: Moment) -> Result<Vec<Hold>, Error>;
    fn put_lease(&mut self, hold: &Hold) -> Result<(), Error>;
    fn remove_lease(&mut self, run_id: &str) -> Result<(), Error>;
    /// A number that is higher than any that was given before.
    fn next_number(&mut self) -> Result<u64, Error>;
}

impl Row {
    fn new(registration: &Registration, key: WorkerKey, now: Moment) -> Self {
        Self {
            key,
            worker_type: registration.worker_type.clone(),
            group: registration.group.clone(),
            interval: registration.interval,
            thresholds: registration.thresholds.clone(),
            metadata: registration.metadata.clone(),
            restarts: registration.restarts,
            process: registration.process.clone(),
            reported: State::Starting,
            reason: None,
            registered_at: now,
            heartbeat_at: None,
            progress_at: None,
            run_id: None,
            task: None,
            progress: None,
            beats: 0,
            ending: None,
        }
    }

    fn take(&mut self, beat: &Beat, now: Moment) {
        self.reported = beat.state;
        self.reason.clone_from(&beat.reason);
        self.run_id.clone_from(&beat.run_id);
        self.task.clone_from(&beat.task);
        self.progress = beat.progress;
        self.beats = beat.beats;
        // A heartbeat never goes back: the way of one report may have been shorter than another's.
        let at = |age: Option<Duration>| age.map(|age| now.before(age));
        self.heartbeat_at = self.heartbeat_at.max(at(beat.heartbeat_age));
        self.progress_at = self.progress_at.max(at(beat.progress_age));
        for (name, value) in &beat.metadata {
            let full = self.metadata.len() >= crate::worker::MOST_METADATA;
            match self.metadata.iter_mut().find(|(other, _)| other == name) {
                Some((_, old)) => old.clone_from(value),
                // What comes with heartbeats does not grow without bound.
                None if full => {}
                None => self.metadata.push((name.clone(), value.clone())),
            }
        }
    }

    fn end(&mut self, ending: StoredEnding, at: Moment) {
        self.ending = Some((ending, at));
    }

    /// From this moment on, nobody who is this incarnation believes in a lease of it any more: see
    /// [`Lease::is_held`](super::Lease::is_held).
    fn belief_ends(&self) -> Moment {
        let limit = self
            .thresholds
            .as_ref()
            .map_or(super::stored::DEFAULT_THRESHOLD, |own| own.stale_after);
        // Its first heartbeat may tell of a time before it was registered: it believes from then on.
        self.heartbeat_at
            .map_or(self.registered_at, |at| at.max(self.registered_at))
            .after(limit)
    }

    pub(crate) fn stored(&self, now: Moment, leases: &[Hold]) -> StoredWorker {
        StoredWorker {
            key: self.key.clone(),
            worker_type: self.worker_type.clone(),
            group: self.group.clone(),
            interval: self.interval,
            thresholds: self.thresholds.clone(),
            metadata: self.metadata.clone(),
            restarts: self.restarts,
            process: self.process.clone(),
            reported: self.reported,
            reason: self.reason.clone(),
            registered_age: now.since(self.registered_at),
            heartbeat_age: self.heartbeat_at.map(|at| now.since(at)),
            progress_age: self.progress_at.map(|at| now.since(at)),
            run_id: self.run_id.clone(),
            task: self.task.clone(),
            progress: self.progress,
            beats: self.beats,
            lease_remaining: leases
                .iter()
                .filter(|hold| hold.key.worker == self.key && hold.expires_at > now)
                .map(|hold| hold.expires_at.since(now))
                .max(),
            ending: self
                .ending
                .as_ref()
                .map(|(ending, at)| (ending.clone(), now.since(*at))),
        }
    }
}

/// Whether this incarnation may write.
fn admit(row: Option<&Row>, key: &WorkerKey) -> Answer {
    match row {
        Some(row) if row.key.incarnation > key.incarnation => Answer::Superseded,
        Some(row) if row.key.incarnation == key.incarnation => {
            if row.ending.is_some() {
                Answer::Ended
            } else {
                Answer::Accepted
            }
        }
        // A number that was never given: the store has lost its memory, or it is another store.
        _ => Answer::Unknown,
    }
}

/// See [`HeartbeatStore::register`](super::HeartbeatStore::register).
pub(crate) fn register(
    tables: &mut dyn Tables,
    registration: &Registration,
    now: Moment,
) -> Result<WorkerKey, Error> {
    let incarnation = tables.next_number()?;
    let mut id = registration.id.clone();
    let mut before = tables.worker(&id)?;
    let is_anothers = |other: &Row| {
        !registration.explicit && (other.process != registration.process || other.process.is_none())
    };
    if before.as_ref().is_some_and(is_anothers) {
        // The number makes it one that nobody has.
        id = format!("{id}-{incarnation}");
        before = tables.worker(&id)?;
    }
    if let Some(before) = before {
        // Whoever it was may still be at work.
        let end = before.belief_ends();
        for mut hold in tables.leases_of(&id)? {
            if hold.expires_at > end {
                hold.expires_at = end;
                tables.put_lease(&hold)?;
            }
        }
    }
    let key = WorkerKey { id, incarnation };
    tables.put_worker(&Row::new(registration, key.clone(), now))?;
    Ok(key)
}

/// See [`HeartbeatStore::beat`](super::HeartbeatStore::beat).
pub(crate) fn beat(tables: &mut dyn Tables, beat: &Beat, now: Moment) -> Result<Answer, Error> {
    let mut row = tables.worker(&beat.key.id)?;
    let answer = admit(row.as_ref(), &beat.key);
    if let (Answer::Accepted, Some(row)) = (answer, &mut row) {
        row.take(beat, now);
        tables.put_worker(row)?;
    }
    Ok(answer)
}

/// See [`HeartbeatStore::stop`](super::HeartbeatStore::stop).
pub(crate) fn stop(tables: &mut dyn Tables, stop: &Stop, now: Moment) -> Result<Answer, Error> {
    let mut row = tables.worker(&stop.key.id)?;
    let answer = admit(row.as_ref(), &stop.key);
    if let (Answer::Accepted, Some(row)) = (answer, &mut row) {
        row.end(StoredEnding::from(&stop.ending), now.before(stop.ago));
        tables.put_worker(row)?;
    }
    if answer != Answer::Unknown {
        // Its worker says itself that it is over.
        for hold in tables.leases_of(&stop.key.id)? {
            if hold.key.worker == stop.key {
                tables.remove_lease(&hold.key.run_id)?;
            }
        }
    }
    Ok(answer)
}

/// See [`HeartbeatStore::claim`](super::HeartbeatStore::claim).
pub(crate) fn claim(
    tables: &mut dyn Tables,
    claim: &Claim,
    now: Moment,
) -> Result<ClaimAnswer, Error> {
    let mut row = tables.worker(&claim.worker.id)?;
    match (admit(row.as_ref(), &claim.worker), &mut row) {
        (Answer::Accepted, Some(row)) => {
            let hold = tables.lease(&claim.run_id)?;
            if hold.is_some_and(|hold| hold.expires_at > now && hold.key.worker != claim.worker) {
                return Ok(ClaimAnswer::Taken);
            }
            let fence = tables.next_number()?;
            tables.put_lease(&Hold {
                key: LeaseKey {
                    worker: claim.worker.clone(),
                    run_id: claim.run_id.clone(),
                    fence,
                },
                expires_at: now.after(claim.ttl),
            })?;
            if row.run_id.is_none() {
                row.run_id = Some(claim.run_id.clone());
                tables.put_worker(row)?;
            }
            Ok(ClaimAnswer::Granted(fence))
        }
        (refused, _) => Ok(ClaimAnswer::Refused(refused)),
    }
}

/// See [`HeartbeatStore::renew`](super::HeartbeatStore::renew).
pub(crate) fn renew(
    tables: &mut dyn Tables,
    key: &LeaseKey,
    ttl: Duration,
    now: Moment,
) -> Result<bool, Error> {
    let row = tables.worker(&key.worker.id)?;
    if admit(row.as_ref(), &key.worker) != Answer::Accepted {
        return Ok(false);
    }
    let Some(mut hold) = held(tables, key, now)? else {
        return Ok(false);
    };
    hold.expires_at = hold.expires_at.max(now.after(ttl));
    tables.put_lease(&hold)?;
    Ok(true)
}

/// See [`HeartbeatStore::release`](super::HeartbeatStore::release).
pub(crate) fn release(tables: &mut dyn Tables, key: &LeaseKey, now: Moment) -> Result<bool, Error> {
    let held = held(tables, key, now)?.is_some();
    if held {
        tables.remove_lease(&key.run_id)?;
    }
    Ok(held)
}

fn held(tables: &mut dyn Tables, key: &LeaseKey, now: Moment) -> Result<Option<Hold>, Error> {
    let hold = tables.lease(&key.run_id)?;
    Ok(hold.filter(|hold| hold.key == *key && hold.expires_at > now))
}

/// See [`HeartbeatStore::sweep`](super::HeartbeatStore::sweep).
pub(crate) fn sweep(
    tables: &mut dyn Tables,
    sweep: &Sweep,
    now: Moment,
) -> Result<SweepReport, Error> {
    let killed: HashSet<&WorkerKey> = sweep.killed.iter().collect();
    let gone: HashSet<&WorkerKey> = sweep.gone.iter().collect();
    let mut report = SweepReport {
        success: true,
        ..SweepReport::default()
    };
    let mut groups = BTreeSet::new();
    let mut convicted = HashSet::new();
    for mut row in tables.living()? {
        let stored = row.stored(now, &[]);
        let cause = if killed.contains(&row.key) {
            DeathCause::Killed
        } else if gone.contains(&row.key) {
            DeathCause::Gone
        } else if stored
            .judged(sweep.threshold, sweep.watched_for)
            .state()
            .is_offline()
        {
            DeathCause::Lost
        } else {
            continue;
        };
        report.marked_offline.push(row.key.id.clone());
        groups.insert(row.group.clone());
        convicted.insert(row.key.id.clone());
        for mut hold in tables.leases_of(&row.key.id)? {
            if hold.key.worker != row.key {
                continue;
            }
            // A process that is gone believes in nothing; one that is silent may still do.
            let end = match cause {
                DeathCause::Killed | DeathCause::Gone => now,
                _ => row.belief_ends(),
            };
            if hold.expires_at.min(end) <= now {
                report.released_leases.push(hold.key.run_id.clone());
                if !sweep.dry_run {
                    tables.remove_lease(&hold.key.run_id)?;
                }
            } else if hold.expires_at > end && !sweep.dry_run {
                hold.expires_at = end;
                tables.put_lease(&hold)?;
            }
        }
        if !sweep.dry_run {
            row.end(StoredEnding::swept(&cause), now);
            tables.put_worker(&row)?;
        }
    }
    for hold in tables.expired_leases(now)? {
        let owner = &hold.key.worker;
        let gone = tables
            .worker(&owner.id)?
            .is_none_or(|row| row.key.incarnation != owner.incarnation || row.ending.is_some());
        if gone {
            report.released_leases.push(hold.key.run_id.clone());
        }
        if !sweep.dry_run {
            tables.remove_lease(&hold.key.run_id)?;
        }
    }
    report.released_leases.sort_unstable();
    report.released_leases.dedup();
    let mut counts = BTreeMap::<String, StateCounts>::new();
    for row in tables.in_groups(&groups)? {
        let state = if convicted.contains(&row.key.id) {
            State::Dead
        } else {
            row.stored(now, &[])
                .judged(sweep.threshold, sweep.watched_for)
                .state()
        };
        counts.entry(row.group).or_default().add(state);
    }
    report.affected_groups = counts
        .into_iter()
        .filter(|(_, counts)| GroupState::of(counts) == GroupState::Offline)
        .map(|(group, _)| group)
        .collect();
    report.marked_offline.sort_unstable();
    Ok(report)
}
