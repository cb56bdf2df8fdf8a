//! The views of the events of a store.

use std::time::SystemTime;

use serde::Serialize;

use super::Withheld;
use super::workers::PublicEnding;
use crate::fleet::{EventPage, FleetEvent, WorkerKey};
use crate::health::State;
use crate::serial::{Seconds, unix};
use crate::serve::disclosure::Audience;

/// What everybody may see of an event.
#[derive(Serialize)]
pub(in crate::serve) struct PublicEvent<'a> {
    seq: u64,
    at: f64,
    age_s: Seconds,
    level: String,
    kind: &'static str,
    worker: &'a Option<WorkerKey>,
    worker_type: &'a Option<String>,
    group: &'a Option<String>,
    state: Option<State>,
    text: Withheld,
    #[serde(skip_serializing_if = "Option::is_none")]
    ending: Option<PublicEnding<'a>>,
}

impl<'a> PublicEvent<'a> {
    fn of(event: &'a FleetEvent) -> Self {
        Self {
            seq: event.seq,
            at: unix(SystemTime::now().checked_sub(event.age)),
            age_s: Seconds(event.age),
            level: event.kind.level().as_str().to_ascii_lowercase(),
            kind: event.kind.name(),
            worker: &event.worker,
            worker_type: &event.worker_type,
            group: &event.group,
            state: event.state,
            text: Withheld,
            ending: event.ending.as_ref().map(PublicEnding::of),
        }
    }
}

/// An event of a store.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::serve) enum EventView<'a> {
    // Boxed: it is much larger than the other.
    Public(Box<PublicEvent<'a>>),
    Full(&'a FleetEvent),
}

impl<'a> EventView<'a> {
    pub(in crate::serve) fn new(event: &'a FleetEvent, audience: Audience) -> Self {
        match audience {
            Audience::Public => Self::Public(Box::new(PublicEvent::of(event))),
            Audience::Full => Self::Full(event),
        }
    }
}

/// Some events, and where to read on.
#[derive(Serialize)]
pub(in crate::serve) struct EventPageView<'a> {
    events: Vec<EventView<'a>>,
    cursor: u64,
    more: bool,
}

impl<'a> EventPageView<'a> {
    pub(in crate::serve) fn new(page: &'a EventPage, audience: Audience) -> Self {
        let events = page.events.iter();
        Self {
            events: events
                .map(|event| EventView::new(event, audience))
                .collect(),
            cursor: page.cursor,
            more: page.more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{FleetEventKind, StoredEnding};
    use crate::health::DeathCause;

    #[test]
    fn reasons_places_and_call_stacks_are_not_for_everybody() {
        let mut event = FleetEvent::new(FleetEventKind::Died);
        let secret = || Some("s3cret".to_owned());
        event.worker = Some(WorkerKey::new("indexer-1", 7));
        event.hostname = secret();
        event.reason = secret();
        event.last_location = secret();
        event.run_id = secret();
        event.task = secret();
        event.stack = secret();
        let mut ending = StoredEnding::dead(&DeathCause::Failed {
            error: "s3cret".into(),
        });
        ending.location = secret();
        event.ending = Some(ending);
        let page = EventPage::new(vec![event], 8, false);
        let shown = |audience| serde_json::to_string(&EventPageView::new(&page, audience)).unwrap();
        let public = shown(Audience::Public);
        assert!(!public.contains("s3cret"), "{public}");
        assert!(public.contains("indexer-1") && public.contains("\"cause\":\"failed\""));
        assert_eq!(shown(Audience::Full).matches("s3cret").count(), 9);
    }
}
