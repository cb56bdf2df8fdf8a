//! Events in memory: as many of each level as fit, by their numbers.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::event_rules::NewEvent;
use super::shapes::{
    EventFilter, EventPage, FleetEvent, FleetEventKind, MOST_EVENTS_KEPT, MOST_NAMES, Retention,
};
use crate::clock::Moment;
use crate::registry::core::counts::OTHERS;

/// The levels of events, each with room of its own.
const LEVELS: usize = 5;

/// The events of a store in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventLog {
    /// The most of each level; 0: none are kept.
    most: usize,
    levels: [BTreeMap<u64, NewEvent>; LEVELS],
    /// The last event about each group as a whole: whether it is offline.
    groups: BTreeMap<String, (u64, bool)>,
    /// How workers ended, by type.
    endings: BTreeMap<String, BTreeMap<&'static str, u64>>,
}

/// What happened before is no part of the state: nothing that a store decides depends on it.
impl PartialEq for EventLog {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for EventLog {}

impl Hash for EventLog {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self {
            most: MOST_EVENTS_KEPT,
            ..Self::default()
        }
    }

    pub(crate) const fn is_kept(&self) -> bool {
        self.most > 0
    }

    /// Adds an event with this number. The earliest one of its level makes room for it.
    pub(crate) fn push(&mut self, seq: u64, mut new: NewEvent) {
        new.event.seq = seq;
        let is_offline = new.event.kind == FleetEventKind::GroupOffline;
        if is_offline || new.event.kind == FleetEventKind::GroupOnline {
            if let Some(group) = &new.event.group {
                self.groups.insert(group.clone(), (seq, is_offline));
            }
        }
        let most = self.most;
        let Some(level) = self.levels.get_mut(place(&new.event)) else {
            return;
        };
        level.insert(seq, new);
        if level.len() > most {
            level.pop_first();
        }
    }

    pub(crate) fn count_ending(&mut self, worker_type: &str, how: &'static str) {
        if !self.is_kept() {
            return;
        }
        let is_full = self.endings.len() >= MOST_NAMES;
        let worker_type = if is_full && !self.endings.contains_key(worker_type) {
            OTHERS
        } else {
            worker_type
        };
        let endings = self.endings.entry(worker_type.to_owned()).or_default();
        *endings.entry(how).or_default() += 1;
    }

    pub(crate) fn endings(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let endings = self.endings.iter().map(|(worker_type, endings)| {
            let endings = endings
                .iter()
                .map(|(how, total)| ((*how).to_owned(), *total));
            (worker_type.clone(), endings.collect())
        });
        endings.collect()
    }

    /// The groups that are offline according to the last event about each.
    pub(crate) fn offline_groups(&self) -> Vec<String> {
        let offline = self
            .groups
            .iter()
            .filter(|(_, (_, is_offline))| *is_offline);
        offline.map(|(group, _)| group.clone()).collect()
    }

    /// `latest`: the highest number that was given.
    pub(crate) fn read(&self, filter: &EventFilter, now: Moment, latest: u64) -> EventPage {
        let from = filter.after.map_or(0, |after| after.saturating_add(1));
        let to = filter.before.unwrap_or(u64::MAX).max(from);
        let wanted = filter.page().saturating_add(1);
        let mut found: Vec<&NewEvent> = Vec::new();
        for level in &self.levels {
            let of_level = level.range(from..to).map(|(_, new)| new);
            let passing = of_level.filter(|new| filter.admits(&new.event));
            // No more of one level than are wanted in total.
            if filter.after.is_some() {
                found.extend(passing.take(wanted));
            } else {
                found.extend(passing.rev().take(wanted));
            }
        }
        found.sort_unstable_by_key(|new| new.event.seq);
        if filter.after.is_none() {
            found.reverse();
        }
        found.truncate(wanted);
        let event = |new: &NewEvent| FleetEvent {
            age: now.since(new.at),
            ..new.event.clone()
        };
        EventPage::of(filter, found.into_iter().map(event).collect(), latest)
    }

    /// Removes what is not kept any longer.
    pub(crate) fn trim(&mut self, retention: &Retention, now: Moment) {
        let over =
            |kept: Option<Duration>, at: Moment| kept.is_some_and(|kept| now.before(kept) >= at);
        let most = retention.most_events.unwrap_or(self.most).min(self.most);
        for level in &mut self.levels {
            if retention.events.is_some() {
                level.retain(|_, new| !over(retention.events, new.at));
            }
            while level.len() > most {
                level.pop_first();
            }
        }
        let level = FleetEventKind::GroupOffline.level() as usize;
        let kept = self.levels.get(level.saturating_sub(1));
        self.groups.retain(|_, (seq, is_offline)| {
            *is_offline && kept.is_some_and(|kept| kept.contains_key(seq))
        });
    }
}

/// The place of its level.
const fn place(event: &FleetEvent) -> usize {
    (event.kind.level() as usize).saturating_sub(1)
}
