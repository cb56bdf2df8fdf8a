//! The rules of every store, independent of its tables: which incarnation may write, which worker is
//! stale, and which worker holds a run.
//!
//! Pure apart from the tables: time is an argument. The model test (`lease_model`) checks the safety of
//! leases exhaustively on this code; the conformance suite checks stores that implement the rules in
//! a database.

use std::time::Duration;

use super::event_rules::{self, NewEvent};
use super::shapes::{
    Answer, Beat, Claim, ClaimAnswer, DEFAULT_THRESHOLD, JudgedFacts, LeaseKey, Registration,
    Retention, Stop, StoredDeath, StoredEnding, StoredWorker, WorkerInfo, WorkerKey, WorkerStatus,
};
use crate::clock::Moment;
use crate::error::Error;
use crate::health::State;

/// How many withdrawn attempts of an incarnation are remembered: more than a worker loses answers
/// while a request is on its way.
pub(crate) const MOST_WITHDRAWN: usize = 64;

/// A worker in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WorkerEntry {
    pub key: WorkerKey,
    pub info: WorkerInfo,
    pub status: WorkerStatus,
    pub registered_at: Moment,
    pub heartbeat_at: Option<Moment>,
    pub progress_at: Option<Moment>,
    pub ending: Option<(StoredEnding, Moment)>,
    /// The death of an earlier incarnation, of the age 0, and its time.
    pub last_death: Option<(StoredDeath, Moment)>,
    /// Attempts to claim a run that are never granted, the latest last.
    pub withdrawn: Vec<u64>,
}

/// A lease in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LeaseEntry {
    pub key: LeaseKey,
    /// It is held before this moment.
    pub expires_at: Moment,
    /// The attempt that it was granted to.
    pub attempt: Option<u64>,
}

/// A sweep that was noted, so that other sweepers need not do the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SweepMark {
    pub at: Moment,
    /// Since when the sweeper had watched the store.
    pub watched_since: Moment,
    pub threshold: Duration,
}

/// The tables of a store, in one transaction.
pub(crate) trait Tables {
    fn worker(&mut self, id: &str) -> Result<Option<WorkerEntry>, Error>;
    fn put_worker(&mut self, row: &WorkerEntry) -> Result<(), Error>;
    /// Living workers that are silent for longer than they may; workers without limits, for longer
    /// than `threshold`. It may return others too: each is judged.
    fn silent(&mut self, threshold: Duration, now: Moment) -> Result<Vec<WorkerEntry>, Error>;
    /// Whether there is such a worker in this group.
    fn any_in_group(
        &mut self,
        group: &str,
        wanted: &mut dyn FnMut(&WorkerEntry) -> bool,
    ) -> Result<bool, Error>;
    /// Deletes workers whose retention is over, at most so many. `dry_run`: only counts them.
    fn forget(
        &mut self,
        retention: &Retention,
        now: Moment,
        dry_run: bool,
        most: usize,
    ) -> Result<usize, Error>;
    /// The last sweep that was noted.
    fn last_sweep(&mut self) -> Result<Option<SweepMark>, Error>;
    fn note_sweep(&mut self, mark: &SweepMark) -> Result<(), Error>;
    fn lease(&mut self, run_id: &str) -> Result<Option<LeaseEntry>, Error>;
    /// The leases of all incarnations of this worker.
    fn leases_of(&mut self, worker_id: &str) -> Result<Vec<LeaseEntry>, Error>;
    fn expired_leases(&mut self, now: Moment) -> Result<Vec<LeaseEntry>, Error>;
    fn put_lease(&mut self, lease: &LeaseEntry) -> Result<(), Error>;
    fn remove_lease(&mut self, run_id: &str) -> Result<(), Error>;
    /// A number higher than all that were returned before.
    fn next_number(&mut self) -> Result<u64, Error>;
    /// Records an event under the next number. One that cannot be kept is not, and fails nothing.
    fn put_event(&mut self, new: NewEvent) -> Result<(), Error>;
    /// Counts the end of a worker of this type. A count that cannot be kept fails nothing.
    fn count_ending(&mut self, worker_type: &str, how: &'static str) -> Result<(), Error>;
    /// Removes events that are not kept any longer.
    fn trim_events(&mut self, retention: &Retention, now: Moment) -> Result<(), Error>;
    /// The groups that are offline according to the last event about each.
    fn groups_told_offline(&mut self) -> Result<Vec<String>, Error>;
}

impl WorkerEntry {
    fn new(info: WorkerInfo, key: WorkerKey, now: Moment) -> Self {
        Self {
            key,
            info,
            status: WorkerStatus::new(State::Starting),
            registered_at: now,
            heartbeat_at: None,
            progress_at: None,
            ending: None,
            last_death: None,
            withdrawn: Vec::new(),
        }
    }

    fn apply(&mut self, beat: &Beat, now: Moment) {
        self.status = beat.status.after(&self.status);
        // A heartbeat never goes back: reports may arrive out of order.
        let at = |age: Option<Duration>| age.map(|age| now.before(age));
        self.heartbeat_at = self.heartbeat_at.max(at(beat.heartbeat_age));
        self.progress_at = self.progress_at.max(at(beat.progress_age));
        let metadata = &mut self.info.metadata;
        for (name, value) in &beat.metadata {
            let is_full = metadata.len() >= crate::worker::MOST_METADATA;
            match metadata.iter_mut().find(|(other, _)| other == name) {
                Some((_, old)) => old.clone_from(value),
                // Heartbeats can't make it grow without bound.
                None if is_full => {}
                None => metadata.push((name.clone(), value.clone())),
            }
        }
    }

    /// From this moment on, a process that runs this incarnation believes in none of its leases: see
    /// [`Lease::is_held`](super::Lease::is_held).
    pub(super) fn belief_ends(&self) -> Moment {
        let limits = self.info.thresholds.as_ref();
        let limit = limits.map_or(DEFAULT_THRESHOLD, |own| own.stale_after);
        // Its first heartbeat may be older than its registration, from which on it believes.
        self.heartbeat_at
            .map_or(self.registered_at, |at| at.max(self.registered_at))
            .after(limit)
    }

    /// Its state; allocates nothing.
    pub(crate) fn state(&self, now: Moment) -> State {
        let facts = JudgedFacts {
            reported: self.status.state,
            registered_age: now.since(self.registered_at),
            heartbeat_age: self.heartbeat_at.map(|at| now.since(at)),
            thresholds: self.info.thresholds.clone(),
            stopped: self.ending.as_ref().map(|(ending, _)| ending.stopped),
        };
        facts.state()
    }

    pub(crate) fn stored(&self, now: Moment, leases: &[LeaseEntry]) -> StoredWorker {
        let own = |lease: &&LeaseEntry| lease.key.worker == self.key && lease.expires_at > now;
        let ending = self.ending.as_ref();
        StoredWorker {
            key: self.key.clone(),
            info: self.info.clone(),
            status: self.status.clone(),
            registered_age: now.since(self.registered_at),
            heartbeat_age: self.heartbeat_at.map(|at| now.since(at)),
            progress_age: self.progress_at.map(|at| now.since(at)),
            lease_remaining: leases
                .iter()
                .filter(own)
                .map(|lease| lease.expires_at.since(now))
                .max(),
            ending: ending.map(|(ending, at)| (ending.clone(), now.since(*at))),
            last_death: self.last_death.as_ref().map(|(death, at)| StoredDeath {
                age: now.since(*at),
                ..death.clone()
            }),
        }
    }

    /// The last death up to now, this incarnation's included.
    pub(super) fn latest_death(&self) -> Option<(StoredDeath, Moment)> {
        match &self.ending {
            Some((ending, at)) if !ending.stopped => {
                let death = StoredDeath {
                    run_id: self.status.run_id.clone(),
                    task: self.status.task.clone(),
                    ..StoredDeath::new(ending.clone(), Duration::ZERO)
                };
                Some((death, *at))
            }
            _ => self.last_death.clone(),
        }
    }

    /// Refuses a registration that must not supersede a living worker of another process.
    fn check_duplicate(&self, registration: &Registration, now: Moment) -> Result<(), Error> {
        let process = &self.info.process;
        let is_other = *process != registration.info.process || process.is_none();
        let is_living = !self.stored(now, &[]).health().state().is_offline();
        if !registration.explicit
            || !registration.refuse_duplicate
            || !is_other
            || self.ending.is_some()
            || !is_living
        {
            return Ok(());
        }
        let holder = process.as_ref().map_or_else(String::new, |process| {
            format!(" of process {} on {}", process.pid, process.hostname)
        });
        let age = now.since(self.registered_at).as_secs();
        let allowed = format!(
            "an id that no living worker has; this one belongs to a worker{holder}, registered {age} s ago"
        );
        Err(Error::invalid("id", format!("{:?}", self.key.id), allowed))
    }
}

/// Whether this incarnation may write.
fn admit(row: Option<&WorkerEntry>, key: &WorkerKey) -> Answer {
    match row {
        Some(row) if row.key.incarnation > key.incarnation => Answer::Superseded,
        Some(row) if row.key.incarnation == key.incarnation => {
            if row.ending.is_some() {
                Answer::Ended
            } else {
                Answer::Accepted
            }
        }
        // The number was never assigned here: the store has lost its data, or it is another store.
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
    let info = registration.info.clone();
    let is_of_another_process = |other: &WorkerEntry| {
        let process = &other.info.process;
        !registration.explicit && (*process != info.process || process.is_none())
    };
    if before.as_ref().is_some_and(is_of_another_process) {
        // The number makes it unique.
        id = format!("{id}-{incarnation}");
        before = tables.worker(&id)?;
    }
    let mut row = WorkerEntry::new(
        info,
        WorkerKey {
            id: id.clone(),
            incarnation,
        },
        now,
    );
    let of_process = registration.last_death.as_ref().map(|death| {
        let at = now.before(death.age);
        let age = Duration::ZERO;
        (
            StoredDeath {
                age,
                ..death.clone()
            },
            at,
        )
    });
    let of_store = before.as_ref().and_then(WorkerEntry::latest_death);
    row.last_death = of_process
        .into_iter()
        .chain(of_store)
        .max_by_key(|(_, at)| *at);
    if let Some(before) = &before {
        before.check_duplicate(registration, now)?;
        // The earlier incarnation may still be at work.
        let end = before.belief_ends();
        for mut lease in tables.leases_of(&id)? {
            if lease.expires_at > end {
                lease.expires_at = end;
                tables.put_lease(&lease)?;
            }
        }
    }
    tables.put_worker(&row)?;
    event_rules::registered(tables, &row, before.as_ref(), registration, now)?;
    Ok(row.key)
}

/// See [`HeartbeatStore::find`](super::HeartbeatStore::find).
pub(crate) fn find(
    tables: &mut dyn Tables,
    id: &str,
    now: Moment,
) -> Result<Option<StoredWorker>, Error> {
    let leases = tables.leases_of(id)?;
    let row = tables.worker(id)?;
    Ok(row.map(|row| row.stored(now, &leases)))
}

/// See [`HeartbeatStore::beat`](super::HeartbeatStore::beat).
pub(crate) fn beat(tables: &mut dyn Tables, beat: &Beat, now: Moment) -> Result<Answer, Error> {
    let mut row = tables.worker(&beat.key.id)?;
    let answer = admit(row.as_ref(), &beat.key);
    if let (Answer::Accepted, Some(row)) = (answer, &mut row) {
        let before = row.status.clone();
        row.apply(beat, now);
        tables.put_worker(row)?;
        event_rules::beaten(tables, row, &before, now)?;
    }
    Ok(answer)
}

/// See [`HeartbeatStore::stop`](super::HeartbeatStore::stop).
pub(crate) fn stop(tables: &mut dyn Tables, stop: &Stop, now: Moment) -> Result<Answer, Error> {
    let mut row = tables.worker(&stop.key.id)?;
    let answer = admit(row.as_ref(), &stop.key);
    if let (Answer::Accepted, Some(row)) = (answer, &mut row) {
        row.ending = Some((stop.ending.clone(), now.before(stop.ago)));
        tables.put_worker(row)?;
        event_rules::ended(tables, row)?;
    }
    if answer != Answer::Unknown {
        // The worker itself reports its end, so it does not believe in its leases.
        for lease in tables.leases_of(&stop.key.id)? {
            if lease.key.worker == stop.key {
                tables.remove_lease(&lease.key.run_id)?;
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
            let is_withdrawn = |attempt| row.withdrawn.contains(&attempt);
            if claim.attempt.is_some_and(is_withdrawn) {
                return Ok(ClaimAnswer::Taken);
            }
            let expires_at = now.after(claim.ttl);
            let lease = tables.lease(&claim.run_id)?;
            if let Some(mut lease) = lease.filter(|lease| lease.expires_at > now) {
                if lease.key.worker != claim.worker {
                    return Ok(ClaimAnswer::Taken);
                }
                if claim.attempt.is_some() && lease.attempt == claim.attempt {
                    // The answer was lost, or the request came twice.
                    lease.expires_at = lease.expires_at.max(expires_at);
                    tables.put_lease(&lease)?;
                    return Ok(ClaimAnswer::Granted(lease.key.fence));
                }
            }
            let fence = tables.next_number()?;
            tables.put_lease(&LeaseEntry {
                key: LeaseKey::new(claim.worker.clone(), &claim.run_id, fence),
                expires_at,
                attempt: claim.attempt,
            })?;
            if row.status.run_id.is_none() {
                row.status.run_id = Some(claim.run_id.clone());
                tables.put_worker(row)?;
            }
            Ok(ClaimAnswer::Granted(fence))
        }
        (refused, _) => Ok(ClaimAnswer::Refused(refused)),
    }
}

/// See [`HeartbeatStore::withdraw`](super::HeartbeatStore::withdraw).
pub(crate) fn withdraw(tables: &mut dyn Tables, claim: &Claim, now: Moment) -> Result<bool, Error> {
    let row = tables.worker(&claim.worker.id)?;
    // All claims of an earlier incarnation, and of one that has ended, are refused anyway.
    let row = row.filter(|row| row.key == claim.worker && row.ending.is_none());
    if let (Some(mut row), Some(attempt)) = (row, claim.attempt) {
        if !row.withdrawn.contains(&attempt) {
            let surplus = (row.withdrawn.len() + 1).saturating_sub(MOST_WITHDRAWN);
            row.withdrawn.drain(..surplus);
            row.withdrawn.push(attempt);
            tables.put_worker(&row)?;
        }
    }
    let lease = tables.lease(&claim.run_id)?.filter(|lease| {
        lease.key.worker == claim.worker && lease.attempt == claim.attempt && lease.expires_at > now
    });
    if lease.is_some() {
        tables.remove_lease(&claim.run_id)?;
    }
    Ok(lease.is_some())
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
    let Some(mut lease) = held(tables, key, now)? else {
        return Ok(false);
    };
    lease.expires_at = lease.expires_at.max(now.after(ttl));
    tables.put_lease(&lease)?;
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

fn held(tables: &mut dyn Tables, key: &LeaseKey, now: Moment) -> Result<Option<LeaseEntry>, Error> {
    let lease = tables.lease(&key.run_id)?;
    Ok(lease.filter(|lease| lease.key == *key && lease.expires_at > now))
}
