//! What becomes an event of a store: changes of a worker's life, found by the code that writes them.
//!
//! An event is recorded in the transaction of the change that it records. It is a record only: a store
//! that cannot keep it makes the change all the same.

use std::time::Duration;

use super::rules::{Tables, WorkerEntry};
use super::shapes::{
    FleetEvent, FleetEventKind, Registration, StoredDeath, StoredEnding, WorkerKey, WorkerStatus,
};
use crate::clock::Moment;
use crate::error::Error;
use crate::health::{State, SweepReport};
use crate::sync::printable::cut;

/// Bytes of a text of an event. The row of the worker has more.
pub(crate) const LONGEST_TEXT: usize = 2_048;
/// Bytes of a call stack of an event.
pub(crate) const LONGEST_STACK: usize = 8_192;
/// Two reports of one death have different ages, because each takes time on its way.
const SAME_DEATH: Duration = Duration::from_secs(2);

/// An event to be recorded, and when it happened.
#[derive(Clone, Debug)]
pub(crate) struct NewEvent {
    pub at: Moment,
    pub event: FleetEvent,
}

impl NewEvent {
    fn new(kind: FleetEventKind, at: Moment) -> Self {
        let event = FleetEvent::new(kind);
        Self { at, event }
    }

    fn of_worker(kind: FleetEventKind, row: &WorkerEntry, at: Moment) -> Self {
        let mut new = Self::new(kind, at);
        let process = row.info.process.as_ref();
        let status = &row.status;
        new.event = FleetEvent {
            worker: Some(row.key.clone()),
            worker_type: Some(row.info.worker_type.clone()),
            group: Some(row.info.group.clone()),
            hostname: process.map(|process| process.hostname.clone()),
            pid: process.map(|process| process.pid),
            state: Some(status.state),
            reason: status.reason.clone(),
            last_location: status.last_location.clone(),
            run_id: status.run_id.clone(),
            task: status.task.clone(),
            stack: status.stack.clone().filter(|_| !status.state.is_recent()),
            restarts: row.info.restarts,
            ..new.event
        };
        new
    }

    fn of_group(kind: FleetEventKind, group: &str, now: Moment) -> Self {
        let mut new = Self::new(kind, now);
        new.event.group = Some(group.to_owned());
        new
    }

    /// With texts of bounded length.
    fn bounded(mut self) -> Self {
        let event = &mut self.event;
        let texts = [
            &mut event.reason,
            &mut event.last_location,
            &mut event.run_id,
            &mut event.task,
        ];
        for text in texts.into_iter().flatten() {
            cut(text, LONGEST_TEXT);
        }
        if let Some(stack) = &mut event.stack {
            cut(stack, LONGEST_STACK);
        }
        if let Some(ending) = &mut event.ending {
            for text in [&mut ending.detail, &mut ending.location]
                .into_iter()
                .flatten()
            {
                cut(text, LONGEST_TEXT);
            }
        }
        self
    }
}

/// How a worker can end, as stores count it.
#[cfg(feature = "prometheus")]
pub(crate) const ENDINGS: [&str; 4] = ["graceful", "failed", "gone", "timed_out"];

/// How a worker ended, of which this state was reported last.
fn how_ended(ending: &StoredEnding, last: State) -> &'static str {
    let is_gone = ["killed", "gone", "lost"].contains(&&*ending.cause);
    if last == State::Stopping && (is_gone || ending.cause == "process_exit") {
        "timed_out"
    } else if ending.stopped {
        "graceful"
    } else if is_gone {
        "gone"
    } else {
        "failed"
    }
}

fn put(tables: &mut dyn Tables, new: NewEvent) -> Result<(), Error> {
    tables.put_event(new.bounded())
}

/// A worker has ended, as this row says.
pub(crate) fn ended(tables: &mut dyn Tables, row: &WorkerEntry) -> Result<(), Error> {
    let Some((ending, at)) = &row.ending else {
        return Ok(());
    };
    let (kind, state) = if ending.stopped {
        (FleetEventKind::Stopped, State::Stopped)
    } else {
        (FleetEventKind::Died, State::Dead)
    };
    let mut new = NewEvent::of_worker(kind, row, *at);
    new.event.state = Some(state);
    new.event.ending = Some(ending.clone());
    tables.count_ending(&row.info.worker_type, how_ended(ending, row.status.state))?;
    put(tables, new)
}

/// A heartbeat was stored: `row` is the worker now, `before` its status until then.
pub(crate) fn beaten(
    tables: &mut dyn Tables,
    row: &WorkerEntry,
    before: &WorkerStatus,
    now: Moment,
) -> Result<(), Error> {
    let (was, is) = (before.state.is_unwell(), row.status.state.is_unwell());
    let kind = match (was, is) {
        (_, true) if before.state != row.status.state => FleetEventKind::Unwell,
        (true, true) if before.stack.is_none() && row.status.stack.is_some() => {
            FleetEventKind::StackCaptured
        }
        (true, false) => FleetEventKind::Recovered,
        _ => return Ok(()),
    };
    let mut new = NewEvent::of_worker(kind, row, now);
    if kind == FleetEventKind::Recovered {
        new.event.reason = Some(match &before.reason {
            Some(reason) => format!("was {}: {reason}", before.state),
            None => format!("was {}", before.state),
        });
    }
    put(tables, new)
}

/// A worker was registered as `row`, in the place of `before`. `reported`: the death of an earlier life
/// that its process knows, and its time.
pub(crate) fn registered(
    tables: &mut dyn Tables,
    row: &WorkerEntry,
    before: Option<&WorkerEntry>,
    registration: &Registration,
    now: Moment,
) -> Result<(), Error> {
    let unreported = registration
        .last_death
        .as_ref()
        .filter(|death| is_unknown(death, before, registration, now));
    if let Some(death) = unreported {
        // The process restarted the worker before the end of its life was stored.
        let told = before.unwrap_or(row);
        let mut new = NewEvent::of_worker(FleetEventKind::Died, told, now.before(death.age));
        if before.is_none() {
            new.event.worker = Some(WorkerKey::new(row.key.id.clone(), 0));
        }
        new.event.state = Some(State::Dead);
        new.event.ending = Some(death.ending.clone());
        new.event.run_id.clone_from(&death.run_id);
        new.event.task.clone_from(&death.task);
        tables.count_ending(&told.info.worker_type, "failed")?;
        put(tables, new)?;
    }
    let Some(before) = before else {
        return Ok(());
    };
    let died = match (&before.ending, unreported) {
        (_, Some(death)) => Some(&death.ending),
        (Some((ending, _)), None) => Some(ending).filter(|ending| !ending.stopped),
        (None, None) => {
            if is_of_one_process(before, registration) {
                return Ok(());
            }
            let mut new = NewEvent::of_worker(FleetEventKind::Superseded, before, now);
            let process = registration.info.process.as_ref();
            let process = process.map_or_else(
                || "another process".to_owned(),
                |process| format!("process {} on {}", process.pid, process.hostname),
            );
            new.event.reason = Some(format!("{process} registered its id"));
            return put(tables, new);
        }
    };
    let Some(ending) = died else {
        return Ok(());
    };
    let mut new = NewEvent::of_worker(FleetEventKind::Recovered, row, now);
    new.event.ending = Some(ending.clone());
    put(tables, new)
}

fn is_of_one_process(before: &WorkerEntry, registration: &Registration) -> bool {
    before.info.process.is_some() && before.info.process == registration.info.process
}

/// Whether the store has no record of this death yet.
fn is_unknown(
    death: &StoredDeath,
    before: Option<&WorkerEntry>,
    registration: &Registration,
    now: Moment,
) -> bool {
    let at = now.before(death.age);
    let Some(before) = before else {
        return true;
    };
    let was_restarted = is_of_one_process(before, registration)
        && registration.info.restarts > before.info.restarts;
    if before.ending.is_none() && was_restarted && at >= before.registered_at {
        // The stored life itself.
        return true;
    }
    let Some((known, known_at)) = before.latest_death() else {
        return true;
    };
    let least = if is_same(&known.ending, &death.ending) {
        known_at.after(SAME_DEATH)
    } else {
        known_at
    };
    at > least
}

fn is_same(one: &StoredEnding, other: &StoredEnding) -> bool {
    (&one.cause, &one.detail) == (&other.cause, &other.detail)
}

/// A sweep is over. `is_alive`: whether a group has a worker that is not offline.
pub(crate) fn swept(
    tables: &mut dyn Tables,
    report: &SweepReport,
    now: Moment,
    is_alive: &mut dyn FnMut(&mut dyn Tables, &str) -> Result<bool, Error>,
) -> Result<(), Error> {
    let (marked, released) = (report.marked_offline.len(), report.released_leases.len());
    if marked + released > 0 {
        let mut new = NewEvent::new(FleetEventKind::Swept, now);
        new.event.reason = Some(format!(
            "workers marked offline: {marked}, leases released: {released}"
        ));
        put(tables, new)?;
    }
    let told = tables.groups_told_offline()?;
    for group in &report.affected_groups {
        if !told.contains(group) {
            put(
                tables,
                NewEvent::of_group(FleetEventKind::GroupOffline, group, now),
            )?;
        }
    }
    for group in &told {
        if !report.affected_groups.contains(group) && is_alive(tables, group)? {
            put(
                tables,
                NewEvent::of_group(FleetEventKind::GroupOnline, group, now),
            )?;
        }
    }
    Ok(())
}
