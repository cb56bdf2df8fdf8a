//! The workers of a registry or a store as rows.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::fleet::Worst;
use crate::fleet::{FleetCounts, HeartbeatStore, StoredWorker};
use crate::health::{Health, Policy, State, StateCounts, Summary, racing_text};
use crate::registry::core::timeline::ObservedNow;
use crate::registry::core::worker_ref::WorkerRef;
use crate::registry::{Registry, Snapshot};
use crate::serve::disclosure::Audience;
use crate::serve::process_health::worst_state;
use crate::serve::selection::Selection;

/// The most rows on a page; of more workers, those in the worst states come first.
const MAX_ROWS: usize = 1_000;
/// The most tiles of types, and of groups.
const MAX_TILES: usize = 200;
/// The longest text in a row, in characters. The details contain the whole text.
const MAX_TEXT: usize = 500;

/// All workers at one moment.
pub(super) struct Listing {
    /// What the page shows of all workers together.
    pub head: Value,
    pub rows: Vec<WorkerRow>,
}

/// One worker, with the names of the page.
#[derive(Debug, Serialize)]
pub(super) struct WorkerRow {
    pub id: String,
    #[serde(rename = "type")]
    pub worker_type: String,
    pub group: String,
    pub state: State,
    pub reason: Option<String>,
    #[serde(rename = "run")]
    pub run_id: Option<String>,
    pub task: Option<String>,
    #[serde(rename = "done")]
    pub progress: Option<(u64, u64)>,
    #[serde(skip)]
    pub heartbeat_age: Option<Duration>,
    #[serde(skip)]
    pub progress_age: Option<Duration>,
    #[serde(skip)]
    pub ended_age: Option<Duration>,
    /// For a death that was found later than the worker was last heard of.
    #[serde(skip)]
    pub heard_age: Option<Duration>,
    pub restarts: u32,
    pub incarnation: u32,
    /// Whether a death of it is known.
    pub died: bool,
}

/// One reading of a registry, for lists of several selections.
pub(super) struct RegistryReading<'a> {
    registry: &'a Registry,
    summary: Summary,
    workers: Vec<WorkerRef>,
    now: ObservedNow,
    audience: Audience,
    draining: bool,
}

impl<'a> RegistryReading<'a> {
    pub(super) fn new(registry: &'a Registry, audience: Audience, draining: bool) -> Self {
        Self {
            registry,
            summary: registry.summary(),
            now: registry.observed_now(),
            workers: registry.worker_refs(),
            audience,
            draining,
        }
    }

    /// The worst workers of this selection, and the counts of all.
    pub(super) fn listing(&self, policy: &Policy, selection: &Selection) -> Listing {
        let mut workers = self.select(selection);
        let has_more = workers.len() > MAX_ROWS;
        workers.truncate(MAX_ROWS);
        let snapshots = workers
            .into_iter()
            .map(|worker| self.registry.snapshot_at(worker, &self.now));
        let rows: Vec<WorkerRow> = snapshots
            .map(|snapshot| WorkerRow::from_snapshot(snapshot, self.audience))
            .collect();
        let mut head = head(&self.summary, policy, selection, &rows, has_more);
        head["tick_age"] = self.summary.tick_age.as_secs_f64().into();
        head["draining"] = self.draining.into();
        if self.audience == Audience::Full {
            let missing = self.summary.missing.iter().map(ToString::to_string);
            head["missing"] = missing.collect();
        } else {
            head["missing_count"] = self.summary.missing.len().into();
        }
        Listing { head, rows }
    }

    /// The worst workers of this selection: one more than the rows, if there are more.
    fn select(&self, selection: &Selection) -> Vec<&WorkerRef> {
        if selection.is_all() && self.workers.len() <= MAX_ROWS {
            return self.workers.iter().collect();
        }
        let filter = selection.filter();
        let mut worst = Worst::new(MAX_ROWS + 1);
        for worker in &self.workers {
            let (id, profile) = (worker.record.id(), &worker.record.profile);
            if filter.admits_names(id, &profile.worker_type, &profile.group) {
                let state = worker.health(&self.now).state();
                if filter.admits_state(state) && filter.is_after(state, id) {
                    worst.add(state, id, || worker);
                }
            }
        }
        worst.into_vec()
    }
}

/// The worst workers of this selection, and the counts of all, which `counts` reads if the list
/// doesn't have them.
pub(super) fn read_store(
    store: &dyn HeartbeatStore,
    policy: &Policy,
    audience: Audience,
    selection: &Selection,
    counts: impl FnOnce() -> Result<FleetCounts, Error>,
) -> Result<Listing, Error> {
    let mut workers = store.worst_first(&selection.filter().limit(MAX_ROWS + 1))?;
    let has_more = workers.len() > MAX_ROWS;
    workers.truncate(MAX_ROWS);
    let counts = if selection.is_all() && !has_more {
        let mut counts = FleetCounts::new();
        workers.iter().for_each(|worker| counts.add(worker));
        counts
    } else {
        counts()?
    };
    let rows: Vec<WorkerRow> = workers
        .iter()
        .map(|worker| WorkerRow::from_stored(worker, audience))
        .collect();
    let summary = counts.summary(Vec::new());
    let head = head(&summary, policy, selection, &rows, has_more);
    Ok(Listing { head, rows })
}

fn head(
    summary: &Summary,
    policy: &Policy,
    selection: &Selection,
    rows: &[WorkerRow],
    has_more: bool,
) -> Value {
    let types = summary.stats_by_type.iter();
    let groups = summary.groups.iter();
    json!({
        "total": summary.total,
        "healthy": summary.verdict(policy).is_well(),
        "states": counts(&summary.states),
        "types": tiles(types.map(|(name, stats)| (name, None, &stats.states))),
        "types_total": summary.stats_by_type.len() + summary.unlisted_types,
        "groups": tiles(groups.map(|(name, stats)| (name, Some(json!(stats.state)), &stats.states))),
        "groups_total": summary.groups.len() + summary.unlisted_groups,
        // Of the list of all workers only: how many others a selection has is not counted.
        "not_shown": selection.is_all().then(|| summary.total.saturating_sub(rows.len())),
        "next": rows.last().filter(|_| has_more).map(|last| (last.state, &last.id)),
    })
}

/// One tile for each type or group; of too many, those with the worst states.
fn tiles<'a>(
    all: impl Iterator<Item = (&'a String, Option<Value>, &'a StateCounts)>,
) -> Vec<Value> {
    let mut all: Vec<_> = all.collect();
    if all.len() > MAX_TILES {
        all.sort_by_key(|(_, _, states)| {
            worst_state(states).map_or(usize::MAX, State::severity_rank)
        });
        all.truncate(MAX_TILES);
    }
    let tile = |(name, state, states): (&String, Option<Value>, &StateCounts)| {
        json!({
            "name": cut(name.clone()),
            "state": state,
            "total": states.total(),
            "states": counts(states),
        })
    };
    all.into_iter().map(tile).collect()
}

/// The counts of the states that occur.
fn counts(states: &StateCounts) -> Value {
    let present = states.iter().filter(|(_, count)| *count > 0);
    present
        .map(|(state, count)| (state.name(), count))
        .collect()
}

/// Shortens a text for a row.
pub(super) fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl WorkerRow {
    fn from_snapshot(snapshot: Snapshot, audience: Audience) -> Self {
        let health = &snapshot.health;
        let private = |text: Option<String>| audience.filter(text).map(cut);
        Self {
            state: health.state(),
            reason: private(reason(health).or_else(|| {
                let racing = snapshot.racing.zip(snapshot.at_most);
                racing.map(|(rate, at_most)| racing_text(rate, at_most))
            })),
            ended_age: match health {
                Health::Dead { ago, .. } | Health::Stopped { ago, .. } => Some(*ago),
                _ => None,
            },
            heard_age: heard_age(health),
            died: snapshot.last_death.is_some() || health.state() == State::Dead,
            id: snapshot.id,
            worker_type: cut(snapshot.worker_type),
            group: cut(snapshot.group),
            run_id: private(snapshot.run_id),
            task: private(snapshot.task),
            progress: snapshot.progress,
            heartbeat_age: snapshot.heartbeat_age,
            progress_age: snapshot.progress_age,
            restarts: snapshot.restarts,
            incarnation: snapshot.incarnation,
        }
    }

    fn from_stored(worker: &StoredWorker, audience: Audience) -> Self {
        let health = worker.health();
        let private = |text: Option<String>| audience.filter(text).map(cut);
        let is_reported = worker.ending.is_none() && health.state() == worker.status.state;
        let reported = worker.reason().filter(|_| is_reported);
        Self {
            id: worker.key.id.clone(),
            worker_type: cut(worker.info.worker_type.clone()),
            group: cut(worker.info.group.clone()),
            state: health.state(),
            reason: private(reported.or_else(|| reason(&health))),
            run_id: private(worker.status.run_id.clone()),
            task: private(worker.status.task.clone()),
            progress: worker.status.progress,
            heartbeat_age: worker.heartbeat_age,
            progress_age: worker.progress_age,
            ended_age: worker.ending.as_ref().map(|(_, ago)| *ago),
            heard_age: heard_age(&health),
            restarts: worker.info.restarts,
            incarnation: u32::try_from(worker.key.incarnation).unwrap_or(u32::MAX),
            died: worker.last_death.is_some() || health.state() == State::Dead,
        }
    }

    /// The row at this time by the dashboard's clock. Ages become times, which don't change while
    /// nothing happens.
    pub(super) fn fields(&self, now: f64) -> Map<String, Value> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(self) else {
            return Map::new();
        };
        for (name, age) in [
            ("heartbeat", self.heartbeat_age),
            ("progress", self.progress_age),
            ("ended", self.ended_age),
            ("heard", self.heard_age),
        ] {
            let time = age.map(|age| ((now - age.as_secs_f64()) * 10.0).round() / 10.0);
            fields.insert(name.to_owned(), time.into());
        }
        fields
    }
}

/// How long ago a worker was last heard of whose death was found later.
fn heard_age(health: &Health) -> Option<Duration> {
    let Health::Dead { death, ago } = health else {
        return None;
    };
    let unheard = death.unheard_for.filter(|unheard| !unheard.is_zero())?;
    Some(ago.saturating_add(unheard))
}

/// The reason without ages and without the task, which the row shows beside it.
fn reason(health: &Health) -> Option<String> {
    match health {
        Health::Dead { death, .. } => Some(match death.gave_up_after {
            Some(restarts) => format!("{}; gave up after {restarts} restarts", death.cause),
            None => death.cause.to_string(),
        }),
        Health::Stopped { by, .. } => Some(by.to_string()),
        other => other.reason(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("ä".repeat(MAX_TEXT)), "ä".repeat(MAX_TEXT));
        let long = cut("ä".repeat(MAX_TEXT + 1));
        assert_eq!(long.chars().count(), MAX_TEXT + 1);
        assert!(long.ends_with('…'));
    }
}
