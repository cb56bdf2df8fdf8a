//! What has happened to the workers of a store since the reading before.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use worker_heartbeat::fleet::StoredWorker;
use worker_heartbeat::{Error, GroupState, HeartbeatStore, State};

use crate::scope::{Scope, UNWELL};

/// The most unwell workers that are read: the worst. Further ones are only counted.
const MOST_UNWELL: usize = 1_000;
/// The most workers that are known to be unwell.
const MOST_KNOWN: usize = 10_000;
/// The most workers that are looked up after a reading, whether they are well again.
const MOST_LOOKED_UP: usize = 200;
/// The longest reason, in characters.
const LONGEST_REASON: usize = 300;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A worker is dead, stale or never started.
    Died,
    /// A worker is stalled or overdue.
    Stalled,
    Recovered,
    GroupOffline,
    GroupOnline,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Stalled => "stalled",
            Self::Recovered => "recovered",
            Self::GroupOffline => "group_offline",
            Self::GroupOnline => "group_online",
        }
    }

    const fn of(state: State) -> Self {
        if state.is_offline() {
            Self::Died
        } else {
            Self::Stalled
        }
    }
}

/// Something that happened to a worker or a group.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    /// The id of the worker, or the group.
    pub subject: String,
    pub is_group: bool,
    pub json: Value,
}

impl Event {
    #[cfg(test)]
    pub fn of(kind: Kind, subject: &str, is_group: bool) -> Self {
        let subject = subject.to_owned();
        Self {
            kind,
            subject,
            is_group,
            json: Value::Null,
        }
    }
}

#[derive(Default)]
pub struct Found {
    pub events: Vec<Event>,
    /// Workers that died and were not read.
    pub unnamed: usize,
}

impl Found {
    pub fn len(&self) -> usize {
        self.events.len() + self.unnamed
    }
}

/// The state of the last reading.
pub struct News {
    /// The address of the page.
    link: Option<String>,
    /// The unwell workers, by id: their incarnation, and what was reported of it.
    known: HashMap<String, (u64, Kind)>,
    offline_groups: BTreeSet<String>,
    /// Unwell workers beyond those that are read.
    unread: usize,
    /// Before, all is as it was when the program was started.
    has_begun: bool,
}

impl News {
    pub fn new(link: Option<String>) -> Self {
        let link = link.map(|link| link.trim_end_matches('/').to_owned());
        Self {
            link,
            known: HashMap::new(),
            offline_groups: BTreeSet::new(),
            unread: 0,
            has_begun: false,
        }
    }

    /// Reads counts, and the worst workers. What is so when it is first called is not news.
    pub fn read(&mut self, store: &dyn HeartbeatStore) -> Result<Found, Error> {
        let counts = store.counts()?;
        let total: usize = UNWELL.iter().map(|state| counts.states.get(*state)).sum();
        let unwell = match total {
            0 => Vec::new(),
            _ => Scope::default().states(UNWELL).worst(store, MOST_UNWELL)?,
        };
        let mut found = Found::default();
        let mut seen = HashSet::with_capacity(unwell.len());
        for worker in &unwell {
            seen.insert(&*worker.key.id);
            let kind = Kind::of(worker.health().state());
            let told = self.known.get(&worker.key.id);
            let is_news = match told {
                None => true,
                Some((incarnation, told)) => *incarnation != worker.key.incarnation || *told > kind,
            };
            if is_news {
                found.events.push(self.about(worker, kind));
                if self.known.len() < MOST_KNOWN || told.is_some() {
                    let now = (worker.key.incarnation, kind);
                    self.known.insert(worker.key.id.clone(), now);
                }
            }
        }
        let unseen = self.known.keys().filter(|id| !seen.contains(&***id));
        let unseen: Vec<String> = unseen.take(MOST_LOOKED_UP).cloned().collect();
        for id in unseen {
            let worker = store.find(&id)?;
            // It may be unwell, and not among the worst.
            if worker
                .as_ref()
                .is_some_and(|worker| UNWELL.contains(&worker.health().state()))
            {
                continue;
            }
            self.known.remove(&id);
            // One that was stopped or forgotten did not recover.
            if let Some(worker) = worker.filter(|worker| worker.ending.is_none()) {
                found.events.push(self.about(&worker, Kind::Recovered));
            }
        }
        let unread = total.saturating_sub(unwell.len());
        found.unnamed = unread.saturating_sub(self.unread);
        self.unread = unread;

        let states = counts
            .groups
            .iter()
            .map(|(name, states)| (name, GroupState::of(states)));
        let mut offline = BTreeSet::new();
        for (name, state) in states {
            let was_offline = self.offline_groups.contains(name);
            if state == GroupState::Offline {
                offline.insert(name.clone());
            }
            match state {
                GroupState::Offline if !was_offline => {
                    found
                        .events
                        .push(self.about_group(name, Kind::GroupOffline));
                }
                GroupState::Online if was_offline => {
                    found.events.push(self.about_group(name, Kind::GroupOnline));
                }
                _ => {}
            }
        }
        self.offline_groups = offline;
        if !std::mem::replace(&mut self.has_begun, true) {
            return Ok(Found::default());
        }
        Ok(found)
    }

    fn about(&self, worker: &StoredWorker, kind: Kind) -> Event {
        let health = worker.health();
        let reason = worker.reason().map(|reason| {
            let reason: String = reason.chars().take(LONGEST_REASON).collect();
            reason
        });
        Event {
            kind,
            subject: worker.key.id.clone(),
            is_group: false,
            json: json!({
                "event": kind.name(),
                "state": health.state().name(),
                "worker": worker.key.id,
                "type": worker.info.worker_type,
                "group": worker.info.group,
                "incarnation": worker.key.incarnation,
                "reason": reason,
                "since": time(since(worker)),
                "link": self.link("worker", &worker.key.id),
            }),
        }
    }

    fn about_group(&self, group: &str, kind: Kind) -> Event {
        let state = match kind {
            Kind::GroupOffline => "offline",
            _ => "online",
        };
        Event {
            kind,
            subject: group.to_owned(),
            is_group: true,
            json: json!({
                "event": kind.name(),
                "state": state,
                "group": group,
                "since": time(Duration::ZERO),
                "link": self.link("group", group),
            }),
        }
    }

    fn link(&self, name: &str, value: &str) -> Option<String> {
        let link = self.link.as_ref()?;
        Some(format!("{link}/#view=fleet&{name}={}", encoded(value)))
    }
}

/// How long a worker has been as it is.
fn since(worker: &StoredWorker) -> Duration {
    let heard = worker.heartbeat_age;
    match (worker.health().state(), &worker.ending) {
        (_, Some((_, ago))) => *ago,
        (State::Stale, _) => heard.unwrap_or(worker.registered_age),
        (State::NeverStarted, _) => worker.registered_age,
        (State::Stalled, _) => worker.progress_age.unwrap_or_default(),
        _ => Duration::ZERO,
    }
}

fn time(ago: Duration) -> String {
    let now = SystemTime::now();
    let at = now.checked_sub(ago).unwrap_or(now);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// For an address.
fn encoded(value: &str) -> String {
    let mut encoded = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_heartbeat::fleet::{Beat, Registration, Stop, StoredEnding, WorkerKey};
    use worker_heartbeat::{DeathCause, MemoryStore, StopCause};

    fn told(news: &mut News, store: &MemoryStore) -> Vec<String> {
        let found = news.read(store).unwrap();
        let events = found.events.iter();
        events
            .map(|event| format!("{} {}", event.kind.name(), event.subject))
            .collect()
    }

    fn register(store: &MemoryStore, ids: &[&str]) -> Vec<WorkerKey> {
        let workers: Vec<_> = ids
            .iter()
            .map(|id| Registration::new("poller", *id))
            .collect();
        let keys = store.register(&workers).unwrap();
        beat(store, &keys, State::Idle);
        keys
    }

    fn beat(store: &MemoryStore, keys: &[WorkerKey], state: State) {
        let beats: Vec<_> = keys
            .iter()
            .map(|key| Beat::new(key.clone(), state))
            .collect();
        store.beat(&beats).unwrap();
    }

    fn die(store: &MemoryStore, key: &WorkerKey) {
        let ending = StoredEnding::dead(&DeathCause::Exited);
        store.stop(&[Stop::new(key.clone(), ending)]).unwrap();
    }

    #[test]
    fn an_episode_is_told_of_when_it_begins_and_when_it_ends() {
        let store = MemoryStore::new();
        let keys = register(&store, &["a", "b", "c"]);
        die(&store, &keys[2]);
        let mut news = News::new(Some("http://localhost:7717/".to_owned()));
        assert!(told(&mut news, &store).is_empty(), "it was so at the start");
        beat(&store, &keys[..1], State::Stalled);
        assert_eq!(told(&mut news, &store), ["stalled a"]);
        assert!(told(&mut news, &store).is_empty(), "once");
        beat(&store, &keys[..1], State::Idle);
        assert_eq!(told(&mut news, &store), ["recovered a"]);
        beat(&store, &keys[..1], State::Stalled);
        told(&mut news, &store);
        die(&store, &keys[0]);
        assert_eq!(told(&mut news, &store), ["died a"]);
        die(&store, &keys[1]);
        assert_eq!(told(&mut news, &store), ["died b", "group_offline local"]);
        let again = register(&store, &["a"]);
        assert_eq!(
            told(&mut news, &store),
            ["recovered a", "group_online local"]
        );
        // Between two readings, it was registered anew and died again.
        die(&store, &again[0]);
        told(&mut news, &store);
        die(&store, &register(&store, &["a"])[0]);
        assert_eq!(told(&mut news, &store), ["died a"]);
        // One that was stopped is not well again.
        let key = register(&store, &["d"]).remove(0);
        beat(&store, std::slice::from_ref(&key), State::Overdue);
        assert_eq!(told(&mut news, &store), ["stalled d", "group_online local"]);
        let stop = Stop::new(key, StoredEnding::stopped(&StopCause::Stop));
        store.stop(&[stop]).unwrap();
        assert_eq!(told(&mut news, &store), ["group_offline local"]);
    }

    #[test]
    fn an_event_says_what_who_why_since_when_and_where_to_look() {
        let store = MemoryStore::new();
        let mut news = News::new(Some("http://localhost:7717/".to_owned()));
        told(&mut news, &store);
        let key = register(&store, &["a b/7"]).remove(0);
        let error = "no disk ".repeat(1_000);
        let ending = StoredEnding::dead(&DeathCause::Failed { error });
        store.stop(&[Stop::new(key, ending)]).unwrap();
        let event = news.read(&store).unwrap().events.remove(0).json;
        assert_eq!(
            (&event["event"], &event["state"]),
            (&json!("died"), &json!("dead"))
        );
        assert_eq!(event["worker"], "a b/7");
        assert!(
            event["reason"]
                .as_str()
                .unwrap()
                .starts_with("failed: no disk")
        );
        assert_eq!(
            event["reason"].as_str().unwrap().chars().count(),
            LONGEST_REASON
        );
        assert_eq!(
            event["link"],
            "http://localhost:7717/#view=fleet&worker=a%20b%2F7"
        );
        assert!(event["since"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn those_beyond_the_worst_are_counted() {
        let store = MemoryStore::new();
        let mut news = News::new(None);
        told(&mut news, &store);
        let ids: Vec<String> = (0..1_500).map(|n| format!("worker-{n:04}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let keys = register(&store, &ids);
        beat(&store, &keys, State::Stalled);
        let found = news.read(&store).unwrap();
        assert_eq!((found.events.len(), found.unnamed), (MOST_UNWELL, 500));
        assert_eq!(news.read(&store).unwrap().unnamed, 0);
    }
}
