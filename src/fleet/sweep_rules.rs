//! The rules of a sweep, independent of a store's tables: who is marked offline, which leases are
//! released, and when a sweep is not needed.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use super::event_rules;
use super::rules::{SweepMark, Tables, WorkerEntry};
use super::shapes::{Retention, StoredEnding, Sweep, WorkerKey};
use crate::clock::Moment;
use crate::error::Error;
use crate::health::{DeathCause, State, SweepReport};

/// See [`HeartbeatStore::sweep`](super::HeartbeatStore::sweep). It forgets at most `most` workers.
pub(crate) fn sweep(
    tables: &mut dyn Tables,
    sweep: &Sweep,
    now: Moment,
    most: usize,
) -> Result<SweepReport, Error> {
    if let Some(within) = sweep.unless_swept_within {
        let mark = SweepMark {
            at: now,
            watched_since: now.before(sweep.watched_for),
            threshold: sweep.threshold,
        };
        let recent = tables.last_sweep()?;
        if let Some(ago) = recent.and_then(|last| is_enough(&last, &mark, within)) {
            return Ok(SweepReport {
                recently_swept: Some(ago),
                ..SweepReport::default()
            });
        }
        if !sweep.dry_run {
            tables.note_sweep(&mark)?;
        }
    }
    let mut report = SweepReport {
        success: true,
        ..SweepReport::default()
    };
    let mut groups = BTreeSet::new();
    let mut convicted = HashSet::new();
    for (mut row, cause) in candidates(tables, sweep, now)? {
        report.marked_offline.push(row.key.id.clone());
        groups.insert(row.info.group.clone());
        convicted.insert(row.key.id.clone());
        release_leases(tables, &row, &cause, sweep.dry_run, now, &mut report)?;
        if !sweep.dry_run {
            row.ending = Some((StoredEnding::dead(&cause), now));
            tables.put_worker(&row)?;
            event_rules::ended(tables, &row)?;
        }
    }
    for lease in tables.expired_leases(now)? {
        let owner = &lease.key.worker;
        let gone = tables
            .worker(&owner.id)?
            .is_none_or(|row| row.key.incarnation != owner.incarnation || row.ending.is_some());
        if gone {
            report.released_leases.push(lease.key.run_id.clone());
        }
        if !sweep.dry_run {
            tables.remove_lease(&lease.key.run_id)?;
        }
    }
    let mut is_alive = |tables: &mut dyn Tables, group: &str| {
        let mut wanted = |row: &WorkerEntry| {
            let state = row.stored(now, &[]).judged_in(sweep).state();
            !convicted.contains(&row.key.id) && state != State::Stopped && !state.is_offline()
        };
        tables.any_in_group(group, &mut wanted)
    };
    for group in groups {
        // Each of its workers stopped or is dead; at least the convicted one is dead.
        if !is_alive(tables, &group)? {
            report.affected_groups.push(group);
        }
    }
    if !sweep.dry_run {
        event_rules::swept(tables, &report, now, &mut is_alive)?;
    }
    if let Some(retention) = &sweep.retention {
        report.forgotten = tables.forget(retention, now, sweep.dry_run, most)?;
        if !sweep.dry_run {
            tables.trim_events(retention, now)?;
        }
    }
    report.marked_offline.sort_unstable();
    report.released_leases.sort_unstable();
    report.released_leases.dedup();
    Ok(report)
}

/// How long ago the last sweep was, if this one is not needed: the last one was a moment ago, and
/// convicted all that this one would.
fn is_enough(last: &SweepMark, this: &SweepMark, within: Duration) -> Option<Duration> {
    let ago = this.at.since(last.at);
    let is_recent = last.at <= this.at && ago < within;
    let is_as_sharp = last.threshold <= this.threshold && last.watched_since <= this.watched_since;
    (is_recent && is_as_sharp).then_some(ago)
}

/// The workers to be marked, with the cause: those whose processes have ended, then the silent ones.
fn candidates(
    tables: &mut dyn Tables,
    sweep: &Sweep,
    now: Moment,
) -> Result<Vec<(WorkerEntry, DeathCause)>, Error> {
    let mut found = Vec::new();
    let mut seen = HashSet::<&WorkerKey>::new();
    let killed = sweep.killed.iter().map(|key| (key, DeathCause::Killed));
    let gone = sweep.gone.iter().map(|key| (key, DeathCause::Gone));
    for (key, cause) in killed.chain(gone).filter(|(key, _)| seen.insert(*key)) {
        let row = tables.worker(&key.id)?;
        if let Some(row) = row.filter(|row| row.key == *key && row.ending.is_none()) {
            found.push((row, cause));
        }
    }
    for row in tables.silent(sweep.threshold, now)? {
        let is_living = row.ending.is_none() && !seen.contains(&row.key);
        if is_living && row.stored(now, &[]).judged_in(sweep).state().is_offline() {
            found.push((row, DeathCause::Lost));
        }
    }
    Ok(found)
}

/// Releases the leases that the worker no longer believes in, and shortens the others.
fn release_leases(
    tables: &mut dyn Tables,
    row: &WorkerEntry,
    cause: &DeathCause,
    dry_run: bool,
    now: Moment,
    report: &mut SweepReport,
) -> Result<(), Error> {
    // A process that is gone believes in no lease; a silent one may.
    let end = match cause {
        DeathCause::Killed | DeathCause::Gone => now,
        _ => row.belief_ends(),
    };
    for mut lease in tables.leases_of(&row.key.id)? {
        if lease.key.worker != row.key {
            continue;
        }
        if lease.expires_at.min(end) <= now {
            report.released_leases.push(lease.key.run_id.clone());
            if !dry_run {
                tables.remove_lease(&lease.key.run_id)?;
            }
        } else if lease.expires_at > end && !dry_run {
            lease.expires_at = end;
            tables.put_lease(&lease)?;
        }
    }
    Ok(())
}

/// The retention under which [`HeartbeatStore::purge`](super::HeartbeatStore::purge) works.
pub(crate) const fn purge_after(age: Duration) -> Retention {
    let mut retention = Retention::none();
    retention.stopped = Some(age);
    retention.dead = Some(age);
    retention
}
