//! The events of a registry, and those that two readings of a store imply.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::rows::{WorkerRow, cut};
use crate::health::{Death, Health, State};
use crate::registry::core::events::{Event, EventKind};
use crate::serve::disclosure::Audience;

/// An event as the page shows it.
#[derive(Clone, Debug)]
pub(super) struct DashboardEvent {
    /// Everything but its id.
    pub fields: Value,
    /// Minor events are dropped from the log first.
    pub minor: bool,
    /// If it is a death: the worker, its incarnation and the death.
    pub death: Option<(String, u32, Arc<Death>)>,
}

impl DashboardEvent {
    pub(super) fn from_registry(event: Event, audience: Audience) -> Self {
        let (state, death) = match &event.kind {
            EventKind::Became(Health::Dead { death, .. }) => {
                (Some(State::Dead), Some(Arc::clone(death)))
            }
            EventKind::Became(health) => (Some(health.state()), None),
            _ => (None, None),
        };
        let level = event.level();
        let at = unix_millis(event.at);
        let worker = event.worker.clone();
        // The page shows the worker beside the text.
        let event = Event {
            worker: None,
            ..event
        };
        let text = match (&event.kind, state) {
            _ if audience == Audience::Full => cut(event.to_string()),
            (_, Some(state)) => state.name().to_owned(),
            (EventKind::Missing(_), _) => "workers are missing".to_owned(),
            (EventKind::Complete { .. }, _) => "no more workers are missing".to_owned(),
            (EventKind::StoreFailing { .. }, _) => "store failing".to_owned(),
            (EventKind::Refused { .. }, _) => "refused by the store".to_owned(),
            (EventKind::LeaseLost { .. }, _) => "a lease was lost".to_owned(),
            (EventKind::StackCaptured { .. }, _) => "its call stack was read".to_owned(),
            (EventKind::TaskFailed { .. }, _) => "a task failed".to_owned(),
            (EventKind::ChildHung { .. }, _) => "a child did not end in time".to_owned(),
            _ => event.to_string(),
        };
        Self {
            fields: json!({
                "at": at,
                "level": level.as_str().to_ascii_lowercase(),
                "worker": worker.as_ref().map(|worker| &worker.id),
                "incarnation": worker.as_ref().map(|worker| worker.incarnation),
                "state": state.map(State::name),
                "text": text,
                "died": death.is_some(),
            }),
            minor: level >= log::Level::Debug,
            death: worker
                .zip(death)
                .map(|(worker, death)| (worker.id, worker.incarnation, death)),
        }
    }

    fn from_store(id: &str, state: Option<State>, level: &str, text: &str) -> Self {
        let at = unix_millis(SystemTime::now());
        let state = state.map(State::name);
        Self {
            fields: json!({
                "at": at, "level": level, "worker": id, "state": state, "text": text, "died": false,
            }),
            minor: level == "debug",
            death: None,
        }
    }
}

pub(super) fn unix_millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The workers of the previous reading of a store, to find out what has changed.
#[derive(Debug, Default)]
pub(super) struct PreviousReading {
    workers: BTreeMap<String, (State, u32)>,
    /// No worker was left out, so another one is new.
    is_complete: bool,
}

impl PreviousReading {
    pub(super) fn new(rows: &[WorkerRow], is_complete: bool) -> Self {
        let entry = |row: &WorkerRow| (row.id.clone(), (row.state, row.incarnation));
        let workers = rows.iter().map(entry).collect();
        Self {
            workers,
            is_complete,
        }
    }

    /// What happened between the previous reading and this one. `is_complete`: no worker was left
    /// out, so a missing worker was removed from the store.
    pub(super) fn changes(&self, rows: &[WorkerRow], is_complete: bool) -> Vec<DashboardEvent> {
        let mut events = Vec::new();
        for row in rows {
            if let Some((level, text)) = self.change(row) {
                let state = Some(row.state);
                events.push(DashboardEvent::from_store(&row.id, state, level, &text));
            }
        }
        if is_complete {
            let present: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
            let removed = self
                .workers
                .keys()
                .filter(|id| !present.contains(id.as_str()));
            let event = |id: &String| {
                DashboardEvent::from_store(id, None, "info", "removed from the store")
            };
            events.extend(removed.map(event));
        }
        events
    }

    fn change(&self, row: &WorkerRow) -> Option<(&'static str, String)> {
        let state = row.state;
        let reason = row.reason.as_deref().map(|reason| format!(": {reason}"));
        let reason = reason.unwrap_or_default();
        let Some((was, incarnation)) = self.workers.get(&row.id) else {
            if !self.is_complete {
                // It may have been left out so far.
                let offline = || ("error", format!("went offline: {state}{reason}"));
                return state.is_offline().then(offline);
            }
            return Some(if state.is_offline() {
                ("error", format!("new, and {state}{reason}"))
            } else {
                ("debug", format!("new: {state}"))
            });
        };
        Some(match (was.is_offline(), state.is_offline()) {
            (false, true) => ("error", format!("went offline: {state}{reason}")),
            (true, false) => ("info", format!("came back: {state}, was {was}")),
            _ if *was != state && state == State::Stopped => ("info", format!("stopped{reason}")),
            _ if *was != state && is_convicted(state) => ("error", format!("{state}{reason}")),
            _ if is_convicted(*was) && *was != state => ("info", format!("recovered: {state}")),
            _ if *incarnation != row.incarnation => ("info", format!("new incarnation: {state}")),
            _ => return None,
        })
    }
}

/// Whether a worker in this state is not well, and not offline.
const fn is_convicted(state: State) -> bool {
    state.is_unwell() && !state.is_offline()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::CallStack;

    fn row(id: &str, state: State, incarnation: u32) -> WorkerRow {
        WorkerRow {
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
            heard_age: None,
            restarts: 0,
            incarnation,
            died: false,
        }
    }

    #[test]
    fn what_hangs_or_fails_is_shown_with_reasons_only() {
        let stack = CallStack::from_backtrace("0: s3cret::reserve");
        let kinds = [
            EventKind::StackCaptured {
                stack: Arc::new(stack),
            },
            EventKind::TaskFailed {
                run_id: Some("s3cret".into()),
                task: Some("s3cret".into()),
                error: "s3cret".into(),
            },
        ];
        for kind in kinds {
            let event = Event {
                at: SystemTime::now(),
                worker: None,
                kind,
            };
            let shown = |audience| {
                let event = DashboardEvent::from_registry(event.clone(), audience);
                event.fields.to_string().contains("s3cret")
            };
            assert!(shown(Audience::Full) && !shown(Audience::Public), "{event}");
        }
    }

    fn texts(before: &[WorkerRow], after: &[WorkerRow], is_complete: bool) -> Vec<String> {
        let events = PreviousReading::new(before, is_complete).changes(after, is_complete);
        let text =
            |event: DashboardEvent| format!("{}: {}", event.fields["worker"], event.fields["text"]);
        let texts = events.into_iter().map(text);
        texts.map(|text| text.replace('"', "")).collect()
    }

    #[test]
    fn two_readings_of_a_store_imply_what_happened_in_between() {
        use State::{Dead, Idle, Overdue, Processing, Stale, Stalled, Stopped};
        for (before, after, expected) in [
            (Idle, Processing, None),
            (Idle, Stale, Some("went offline: stale")),
            (Stale, Dead, None),
            (Dead, Idle, Some("came back: idle, was dead")),
            (Idle, Stopped, Some("stopped")),
            (Processing, Stalled, Some("stalled")),
            (Stalled, Processing, Some("recovered: processing")),
            (Processing, Overdue, Some("overdue")),
            (Overdue, Stalled, Some("stalled")),
            (Overdue, Idle, Some("recovered: idle")),
            (Overdue, Stopped, Some("stopped")),
            (Stalled, Dead, Some("went offline: dead")),
        ] {
            let found = texts(&[row("a", before, 1)], &[row("a", after, 1)], true);
            let expected: Vec<String> = expected.iter().map(|text| format!("a: {text}")).collect();
            assert_eq!(found, expected, "{before} to {after}");
        }
        assert_eq!(texts(&[], &[row("a", Idle, 1)], true), ["a: new: idle"]);
        assert_eq!(
            texts(&[row("a", Idle, 1)], &[row("a", Idle, 2)], true),
            ["a: new incarnation: idle"]
        );
        let removed = texts(&[row("a", Idle, 1)], &[], true);
        assert_eq!(removed, ["a: removed from the store"]);
        assert!(texts(&[row("a", Idle, 1)], &[], false).is_empty());
        // Of too many workers, the worst are listed: one that comes in need not be new.
        assert!(texts(&[], &[row("a", Idle, 1)], false).is_empty());
        assert_eq!(
            texts(&[], &[row("a", Dead, 1)], false),
            ["a: went offline: dead"]
        );
    }
}
