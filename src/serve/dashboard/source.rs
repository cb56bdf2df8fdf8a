//! What the dashboard shows: the workers of a registry, or of a store, as rows.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::history::News;
use crate::error::Error;
use crate::fleet::{HeartbeatStore, StoredWorker, WorkerFilter, summarize};
use crate::health::{Death, Health, State, StateCounts, Summary};
use crate::registry::core::events::{Event, EventKind};
use crate::registry::{Registry, Snapshot};
use crate::serve::process::WORST_FIRST;

/// The most workers that are shown; of more, those in the worst states.
pub(super) const MOST_ROWS: usize = 5_000;
/// The most workers of a store that are read to find those.
const MOST_READ: usize = 20_000;
const READ_AT_A_TIME: usize = 5_000;
/// The most tiles of types, and of groups.
const MOST_TILES: usize = 200;
/// The longest text in a row, in characters. All of it is in the details.
const LONGEST_TEXT: usize = 500;

/// All workers at one moment.
pub(super) struct Reading {
    pub head: Value,
    pub rows: Vec<Row>,
}

/// One worker.
#[derive(Debug)]
pub(super) struct Row {
    pub id: String,
    pub worker_type: String,
    pub group: String,
    pub state: State,
    pub reason: Option<String>,
    pub run_id: Option<String>,
    pub task: Option<String>,
    pub progress: Option<(u64, u64)>,
    pub heartbeat_age: Option<Duration>,
    pub progress_age: Option<Duration>,
    /// How long ago it ended.
    pub ended_age: Option<Duration>,
    pub restarts: u32,
    pub incarnation: u32,
    /// Whether a death of it is known.
    pub died: bool,
}

/// The place of a state among all, the worst first.
pub(super) fn rank(state: State) -> usize {
    let place = WORST_FIRST.iter().position(|other| *other == state);
    place.unwrap_or(WORST_FIRST.len())
}

/// The workers of a registry. `shown`: with reasons, tasks and runs.
pub(super) fn read_registry(registry: &Registry, shown: bool, draining: bool) -> Reading {
    let summary = registry.summary();
    let view = registry.observed_now();
    let mut workers = registry.worker_refs();
    if workers.len() > MOST_ROWS {
        workers.sort_by_cached_key(|worker| rank(worker.health(&view).state()));
        workers.truncate(MOST_ROWS);
    }
    let snapshots = workers
        .iter()
        .map(|worker| registry.snapshot_at(worker, &view));
    let rows: Vec<Row> = snapshots.map(|snapshot| Row::of(snapshot, shown)).collect();
    let mut head = head(&summary, rows.len());
    head["tick_age"] = summary.tick_age.as_secs_f64().into();
    head["draining"] = draining.into();
    if shown {
        let missing = summary.missing.iter().map(ToString::to_string);
        head["missing"] = missing.collect();
    } else {
        head["missing_count"] = summary.missing.len().into();
    }
    Reading { head, rows }
}

/// The workers of a store, and as it knows them.
pub(super) fn read_store(
    store: &dyn HeartbeatStore,
    shown: bool,
) -> Result<(Reading, Vec<StoredWorker>), Error> {
    let mut workers = Vec::new();
    let mut filter = WorkerFilter {
        limit: READ_AT_A_TIME,
        ..WorkerFilter::default()
    };
    let mut all = false;
    while !all && workers.len() < MOST_READ {
        let page = store.list(&filter)?;
        all = page.len() < filter.limit;
        filter.after = page.last().map(|worker| worker.key.id.clone());
        workers.extend(page);
    }
    let summary = if all {
        summarize(&workers)
    } else {
        store.summary()?
    };
    if workers.len() > MOST_ROWS {
        workers.sort_by_cached_key(|worker| rank(worker.health().state()));
        workers.truncate(MOST_ROWS);
    }
    let rows: Vec<Row> = workers
        .iter()
        .map(|worker| Row::stored(worker, shown))
        .collect();
    let head = head(&summary, rows.len());
    Ok((Reading { head, rows }, workers))
}

fn head(summary: &Summary, shown: usize) -> Value {
    let types = summary.stats_by_type.iter();
    let groups = summary.groups.iter();
    json!({
        "total": summary.total,
        "healthy": summary.is_healthy(),
        "states": counts(&summary.states),
        "types": tiles(types.map(|(name, stats)| (name, None, &stats.states))),
        "types_total": summary.stats_by_type.len(),
        "groups": tiles(groups.map(|(name, stats)| (name, Some(json!(stats.state)), &stats.states))),
        "groups_total": summary.groups.len(),
        "not_shown": summary.total.saturating_sub(shown),
    })
}

/// Those that are in the worst states first.
fn tiles<'a>(
    all: impl Iterator<Item = (&'a String, Option<Value>, &'a StateCounts)>,
) -> Vec<Value> {
    let mut all: Vec<_> = all.collect();
    if all.len() > MOST_TILES {
        all.sort_by_key(|(_, _, states)| {
            let worst = WORST_FIRST.iter().position(|state| states.get(*state) > 0);
            worst.unwrap_or(usize::MAX)
        });
        all.truncate(MOST_TILES);
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

/// Only the states that somebody is in.
fn counts(states: &StateCounts) -> Value {
    let some = states.iter().filter(|(_, count)| *count > 0);
    some.map(|(state, count)| (state.name().to_owned(), json!(count)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Row {
    fn of(snapshot: Snapshot, shown: bool) -> Self {
        let health = &snapshot.health;
        Self {
            state: health.state(),
            reason: reason(health).filter(|_| shown).map(cut),
            ended_age: match health {
                Health::Dead { ago, .. } | Health::Stopped { ago, .. } => Some(*ago),
                _ => None,
            },
            died: snapshot.last_death.is_some() || health.state() == State::Dead,
            id: snapshot.id,
            worker_type: cut(snapshot.worker_type),
            group: cut(snapshot.group),
            run_id: snapshot.run_id.filter(|_| shown).map(cut),
            task: snapshot.task.filter(|_| shown).map(cut),
            progress: snapshot.progress,
            heartbeat_age: snapshot.heartbeat_age,
            progress_age: snapshot.progress_age,
            restarts: snapshot.restarts,
            incarnation: snapshot.incarnation,
        }
    }

    fn stored(worker: &StoredWorker, shown: bool) -> Self {
        let health = worker.health();
        let reported = || {
            let says_more = health.state() == worker.reported;
            worker.reason.clone().filter(|_| says_more)
        };
        let told = |text: &Option<String>| text.clone().filter(|_| shown).map(cut);
        Self {
            id: worker.key.id.clone(),
            worker_type: cut(worker.worker_type.clone()),
            group: cut(worker.group.clone()),
            state: health.state(),
            reason: reported()
                .filter(|_| worker.ending.is_none())
                .or_else(|| reason(&health))
                .filter(|_| shown)
                .map(cut),
            run_id: told(&worker.run_id),
            task: told(&worker.task),
            progress: worker.progress,
            heartbeat_age: worker.heartbeat_age,
            progress_age: worker.progress_age,
            ended_age: worker.ending.as_ref().map(|(_, ago)| *ago),
            restarts: worker.restarts,
            incarnation: u32::try_from(worker.key.incarnation).unwrap_or(u32::MAX),
            died: health.state() == State::Dead,
        }
    }
}

/// Why it is so, without how long ago and without its task: those are told beside it, and go on
/// changing.
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

/// What happened to a worker of the registry, as the page tells it.
pub(super) fn news(event: Event, shown: bool) -> News {
    let (state, death) = match &event.kind {
        EventKind::Became(health) => (Some(health.state()), death_of(health)),
        _ => (None, None),
    };
    let worker = event.worker.clone();
    let minor = event.level() >= log::Level::Debug;
    let level = event.level().as_str().to_ascii_lowercase();
    let at = unix_millis(event.at);
    let bare = Event {
        worker: None,
        ..event
    };
    let text = match (&bare.kind, state) {
        _ if shown => cut(bare.to_string()),
        (_, Some(state)) => state.name().to_owned(),
        (EventKind::Missing(_), _) => "workers are missing".to_owned(),
        (EventKind::Complete { .. }, _) => "no workers are missing any more".to_owned(),
        (EventKind::StoreFailing { .. }, _) => "store failing".to_owned(),
        (EventKind::Refused { .. }, _) => "not let in by the store".to_owned(),
        (EventKind::LeaseLost { .. }, _) => "a lease was lost".to_owned(),
        (EventKind::ChildHung { .. }, _) => "a child did not end in time".to_owned(),
        _ => bare.to_string(),
    };
    News {
        fields: json!({
            "at": at,
            "level": level,
            "worker": worker.as_ref().map(|worker| &worker.id),
            "incarnation": worker.as_ref().map(|worker| worker.incarnation),
            "state": state.map(State::name),
            "text": text,
            "died": death.is_some(),
        }),
        minor,
        death: worker
            .zip(death)
            .map(|(worker, death)| (worker.id, worker.incarnation, death)),
    }
}

fn death_of(health: &Health) -> Option<std::sync::Arc<Death>> {
    match health {
        Health::Dead { death, .. } => Some(std::sync::Arc::clone(death)),
        _ => None,
    }
}

fn unix_millis(at: SystemTime) -> u64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What is known of the workers of a store, to find out what happened between two readings.
pub(super) type Known = BTreeMap<String, (State, u32)>;

pub(super) fn known(rows: &[Row]) -> Known {
    let one = |row: &Row| (row.id.clone(), (row.state, row.incarnation));
    rows.iter().map(one).collect()
}

/// What happened to the workers of a store between two readings. `whole`: nobody was left out of
/// them, so that who is not there any more is gone.
pub(super) fn differences(before: &Known, rows: &[Row], whole: bool) -> Vec<News> {
    let mut found = Vec::new();
    for row in rows {
        let reason = row.reason.as_deref().map(|reason| format!(": {reason}"));
        let reason = reason.unwrap_or_default();
        let state = row.state;
        let told = match before.get(&row.id) {
            None if state.is_offline() => ("error", format!("new, and {state}{reason}")),
            None => ("debug", format!("new: {state}")),
            Some((was, _)) if !was.is_offline() && state.is_offline() => {
                ("error", format!("went offline: {state}{reason}"))
            }
            Some((was, _)) if was.is_offline() && !state.is_offline() => {
                ("info", format!("came back: {state}, was {was}"))
            }
            Some((was, _)) if *was != state && state == State::Stopped => {
                ("info", format!("stopped{reason}"))
            }
            Some((was, _)) if *was != state && state == State::Stalled => {
                ("error", format!("stalled{reason}"))
            }
            Some((State::Stalled, _)) if state != State::Stalled => {
                ("info", format!("recovered: {state}"))
            }
            Some((_, incarnation)) if *incarnation != row.incarnation => {
                ("info", format!("began anew: {state}"))
            }
            Some(_) => continue,
        };
        found.push(stored_news(&row.id, Some(state), told.0, &told.1));
    }
    if whole {
        let here: std::collections::HashSet<&str> =
            rows.iter().map(|row| row.id.as_str()).collect();
        let gone = before.keys().filter(|id| !here.contains(id.as_str()));
        found.extend(
            gone.map(|id| stored_news(id, None, "info", "gone: the store has forgotten it")),
        );
    }
    found
}

fn stored_news(id: &str, state: Option<State>, level: &str, text: &str) -> News {
    News {
        fields: json!({
            "at": unix_millis(SystemTime::now()),
            "level": level,
            "worker": id,
            "state": state.map(State::name),
            "text": text,
            "died": false,
        }),
        minor: level == "debug",
        death: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, state: State, incarnation: u32) -> Row {
        Row {
            id: id.into(),
            worker_type: "x".into(),
            group: "local".into(),
            state,
            reason: None,
            run_id: None,
            task: None,
            progress: None,
            heartbeat_age: None,
            progress_age: None,
            ended_age: None,
            restarts: 0,
            incarnation,
            died: false,
        }
    }

    fn texts(before: &[Row], after: &[Row], whole: bool) -> Vec<String> {
        let found = differences(&known(before), after, whole);
        let text = |news: News| format!("{}: {}", news.fields["worker"], news.fields["text"]);
        let texts = found.into_iter().map(text);
        texts.map(|text| text.replace('"', "")).collect()
    }

    #[test]
    fn what_happened_to_a_fleet_is_found_out_from_two_readings() {
        use State::{Dead, Idle, Processing, Stale, Stalled, Stopped};
        for (before, after, told) in [
            (Idle, Processing, None),
            (Idle, Stale, Some("went offline: stale")),
            (Stale, Dead, None),
            (Dead, Idle, Some("came back: idle, was dead")),
            (Idle, Stopped, Some("stopped")),
            (Processing, Stalled, Some("stalled")),
            (Stalled, Processing, Some("recovered: processing")),
            (Stalled, Dead, Some("went offline: dead")),
        ] {
            let found = texts(&[row("a", before, 1)], &[row("a", after, 1)], true);
            let told: Vec<String> = told.iter().map(|told| format!("a: {told}")).collect();
            assert_eq!(found, told, "{before} to {after}");
        }
        assert_eq!(texts(&[], &[row("a", Idle, 1)], true), ["a: new: idle"]);
        assert_eq!(
            texts(&[row("a", Idle, 1)], &[row("a", Idle, 2)], true),
            ["a: began anew: idle"]
        );
        let gone = texts(&[row("a", Idle, 1)], &[], true);
        assert_eq!(gone, ["a: gone: the store has forgotten it"]);
        assert!(texts(&[row("a", Idle, 1)], &[], false).is_empty());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("ä".repeat(LONGEST_TEXT)), "ä".repeat(LONGEST_TEXT));
        let long = cut("ä".repeat(LONGEST_TEXT + 1));
        assert_eq!(long.chars().count(), LONGEST_TEXT + 1);
        assert!(long.ends_with('…'));
    }
}
