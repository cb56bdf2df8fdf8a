//! What happened to the workers of a store, as the store keeps it.

use std::fmt;
use std::time::Duration;

use log::Level;

use super::{StoredEnding, WorkerKey};
use crate::health::{DeathCause, State, StopCause};
#[cfg(feature = "serde")]
use crate::serial;
use crate::sync::printable::Printable;

/// The most events on a page.
pub(crate) const MOST_EVENTS: usize = 1_000;

/// What kind of event it is.
///
/// ```
/// use worker_heartbeat::fleet::FleetEventKind;
///
/// assert_eq!(FleetEventKind::Died.name(), "died");
/// assert_eq!(FleetEventKind::Died.level(), log::Level::Error);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Deserialize),
    serde(from = "std::borrow::Cow<'static, str>")
)]
#[non_exhaustive]
pub enum FleetEventKind {
    /// A worker died, as its process reports, or as a sweep found. Level: error.
    Died,
    /// All workers of a group that were not stopped are dead. Level: error.
    GroupOffline,
    /// Its process reports that a worker stalled, is overdue, went stale or never started. Level:
    /// warning.
    Unwell,
    /// Another process registered the id of a worker that had not ended. Level: warning.
    Superseded,
    /// A worker is well again, or was registered again after its death. Level: info.
    Recovered,
    /// The call stack of an unwell worker came later than its verdict. Level: info.
    StackCaptured,
    /// A worker of a group that was offline is alive. Level: info.
    GroupOnline,
    /// A sweep marked workers offline, or released leases. Level: info.
    Swept,
    /// A worker stopped in good order. Level: debug.
    Stopped,
    /// One that this version does not know.
    Other,
}

impl FleetEventKind {
    const ALL: [Self; 10] = [
        Self::Died,
        Self::GroupOffline,
        Self::Unwell,
        Self::Superseded,
        Self::Recovered,
        Self::StackCaptured,
        Self::GroupOnline,
        Self::Swept,
        Self::Stopped,
        Self::Other,
    ];

    /// The name in snake case, as in stores and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::GroupOffline => "group_offline",
            Self::Unwell => "unwell",
            Self::Superseded => "superseded",
            Self::Recovered => "recovered",
            Self::StackCaptured => "stack_captured",
            Self::GroupOnline => "group_online",
            Self::Swept => "swept",
            Self::Stopped => "stopped",
            Self::Other => "other",
        }
    }

    /// How important it is. Each level has room of its own in a store, so that events of one level never
    /// push out those of another.
    #[must_use]
    pub const fn level(self) -> Level {
        match self {
            Self::Died | Self::GroupOffline => Level::Error,
            Self::Unwell | Self::Superseded => Level::Warn,
            Self::Recovered
            | Self::StackCaptured
            | Self::GroupOnline
            | Self::Swept
            | Self::Other => Level::Info,
            Self::Stopped => Level::Debug,
        }
    }

    /// The inverse of [`name`](Self::name).
    pub(crate) fn from_name(name: &str) -> Self {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.unwrap_or(Self::Other)
    }
}

impl From<std::borrow::Cow<'_, str>> for FleetEventKind {
    fn from(name: std::borrow::Cow<'_, str>) -> Self {
        Self::from_name(&name)
    }
}

impl fmt::Display for FleetEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that happened in a fleet, as a store keeps it.
///
/// ```
/// use worker_heartbeat::{DeathCause, HeartbeatStore, MemoryStore};
/// use worker_heartbeat::fleet::{EventFilter, Registration, Stop, StoredEnding};
///
/// let store = MemoryStore::new();
/// let key = store.register(&[Registration::new("indexer", "indexer-1")])?.remove(0);
/// let ending = StoredEnding::dead(&DeathCause::Failed { error: "no disk".into() });
/// store.stop(&[Stop::new(key, ending)])?;
/// let page = store.events(&EventFilter::new())?.expect("this store keeps events");
/// assert_eq!(page.events[0].to_string(), "worker indexer-1: died: failed: no disk");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[non_exhaustive]
pub struct FleetEvent {
    /// Its number, higher than that of all events that the store recorded before.
    pub seq: u64,
    /// How long ago it happened, by the store's clock.
    #[cfg_attr(feature = "serde", serde(rename = "age_s", with = "serial::seconds"))]
    pub age: Duration,
    /// What kind of event it is.
    pub kind: FleetEventKind,
    /// The worker; `None` for a group and for a sweep.
    #[cfg_attr(feature = "serde", serde(default))]
    pub worker: Option<WorkerKey>,
    /// The type of the worker.
    #[cfg_attr(feature = "serde", serde(default))]
    pub worker_type: Option<String>,
    /// The group, or that of the worker.
    #[cfg_attr(feature = "serde", serde(default))]
    pub group: Option<String>,
    /// The name of the worker's host.
    #[cfg_attr(feature = "serde", serde(default))]
    pub hostname: Option<String>,
    /// The worker's process.
    #[cfg_attr(feature = "serde", serde(default))]
    pub pid: Option<u32>,
    /// The state that began.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "reported_state"))]
    pub state: Option<State>,
    /// How the worker ended. After a recovery: how it had died before.
    #[cfg_attr(feature = "serde", serde(default))]
    pub ending: Option<StoredEnding>,
    /// The reason for the state as its process reported it; of a group and of a sweep, what was found.
    #[cfg_attr(feature = "serde", serde(default))]
    pub reason: Option<String>,
    /// Where the worker last reported, as `src/jobs.rs:42`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub last_location: Option<String>,
    /// The run that it worked on.
    #[cfg_attr(feature = "serde", serde(default))]
    pub run_id: Option<String>,
    /// The task that it worked on.
    #[cfg_attr(feature = "serde", serde(default))]
    pub task: Option<String>,
    /// The call stack of its thread, a line a call, if it was unwell; shortened if it is long.
    #[cfg_attr(feature = "serde", serde(default))]
    pub stack: Option<String>,
    /// How often its process had restarted it until then.
    #[cfg_attr(feature = "serde", serde(default))]
    pub restarts: u32,
}

impl FleetEvent {
    /// An event of this kind, just now.
    #[must_use]
    pub const fn new(kind: FleetEventKind) -> Self {
        Self {
            seq: 0,
            age: Duration::ZERO,
            kind,
            worker: None,
            worker_type: None,
            group: None,
            hostname: None,
            pid: None,
            state: None,
            ending: None,
            reason: None,
            last_location: None,
            run_id: None,
            task: None,
            stack: None,
            restarts: 0,
        }
    }

    /// How the worker died: in this event, or before the recovery that it records.
    #[must_use]
    pub fn death(&self) -> Option<DeathCause> {
        let ending = self.ending.as_ref().filter(|ending| !ending.stopped)?;
        let detail = ending.detail.as_deref();
        let location = ending.location.as_deref();
        Some(DeathCause::from_name(&ending.cause, detail, location))
    }

    /// What happened, without the worker or group: `died: failed: no disk`.
    #[must_use]
    pub fn text(&self) -> String {
        let reason = self.reason.as_deref();
        let with = |what: &str| match reason {
            Some(reason) => format!("{what}: {}", Printable(reason)),
            None => what.to_owned(),
        };
        match self.kind {
            FleetEventKind::Died => match self.death() {
                Some(cause) => format!("died: {cause}"),
                None => "died".to_owned(),
            },
            FleetEventKind::Stopped => match &self.ending {
                Some(ending) => {
                    let cause = StopCause::from_name(&ending.cause, ending.detail.as_deref());
                    format!("stopped: {cause}")
                }
                None => "stopped".to_owned(),
            },
            FleetEventKind::Unwell => with(self.state.map_or("unwell", State::name)),
            FleetEventKind::Recovered => match self.death() {
                Some(cause) => format!("registered again after its death: {cause}"),
                None => with("recovered"),
            },
            FleetEventKind::Superseded => with("superseded"),
            FleetEventKind::StackCaptured => "its call stack was read".to_owned(),
            FleetEventKind::GroupOffline => with("offline as a whole"),
            FleetEventKind::GroupOnline => with("online again"),
            FleetEventKind::Swept => with("swept"),
            FleetEventKind::Other => with("other"),
        }
    }
}

impl fmt::Display for FleetEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.worker, &self.group) {
            (Some(worker), _) => write!(f, "worker {}: ", Printable(&worker.id))?,
            (None, Some(group)) => write!(f, "group {}: ", Printable(group))?,
            (None, None) => {}
        }
        f.write_str(&self.text())
    }
}

/// Which events of a store to read.
///
/// ```
/// use log::Level;
/// use worker_heartbeat::fleet::EventFilter;
///
/// let deaths_since = EventFilter::new().after(1_234).level(Level::Error);
/// let latest = EventFilter::new().limit(100);
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct EventFilter {
    /// Only events with a higher number: the first ones after it. Without it, the latest events.
    #[cfg_attr(feature = "serde", serde(default))]
    pub after: Option<u64>,
    /// Only events with a lower number.
    #[cfg_attr(feature = "serde", serde(default))]
    pub before: Option<u64>,
    /// Only events of this level, and more important ones; all by default.
    #[cfg_attr(feature = "serde", serde(default, with = "level_name"))]
    pub level: Option<Level>,
    /// Only events of the worker with this id.
    #[cfg_attr(feature = "serde", serde(default))]
    pub worker: Option<String>,
    /// Only events of workers of this type.
    #[cfg_attr(feature = "serde", serde(default))]
    pub worker_type: Option<String>,
    /// Only events of this group and its workers.
    #[cfg_attr(feature = "serde", serde(default))]
    pub group: Option<String>,
    /// The greatest number of events, at most 1,000; 100 by default.
    pub limit: usize,
}

impl EventFilter {
    /// The latest events.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            after: None,
            before: None,
            level: None,
            worker: None,
            worker_type: None,
            group: None,
            limit: 100,
        }
    }

    /// The first events with a number higher than this one: [`EventPage::cursor`].
    #[must_use]
    pub const fn after(mut self, seq: u64) -> Self {
        self.after = Some(seq);
        self
    }

    /// Only events with a lower number than this one.
    #[must_use]
    pub const fn before(mut self, seq: u64) -> Self {
        self.before = Some(seq);
        self
    }

    /// Only events of this level, and more important ones.
    #[must_use]
    pub const fn level(mut self, level: Level) -> Self {
        self.level = Some(level);
        self
    }

    /// Only events of the worker with this id.
    #[must_use]
    pub fn worker(mut self, id: impl Into<String>) -> Self {
        self.worker = Some(id.into());
        self
    }

    /// Only events of workers of this type.
    #[must_use]
    pub fn worker_type(mut self, worker_type: impl Into<String>) -> Self {
        self.worker_type = Some(worker_type.into());
        self
    }

    /// Only events of this group and its workers.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// The greatest number of events, at most 1,000.
    #[must_use]
    pub const fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// The limit that a store keeps to.
    pub(crate) fn page(&self) -> usize {
        self.limit.min(MOST_EVENTS)
    }

    /// The number of the least important level that is asked for.
    pub(crate) fn lowest_level(&self) -> i16 {
        self.level.map_or(i16::MAX, |level| level as i16)
    }

    /// Whether this event passes, apart from its number.
    pub(crate) fn admits(&self, event: &FleetEvent) -> bool {
        let is = |wanted: &Option<String>, found: Option<&String>| {
            wanted.is_none() || wanted.as_ref() == found
        };
        event.kind.level() as i16 <= self.lowest_level()
            && is(&self.worker, event.worker.as_ref().map(|worker| &worker.id))
            && is(&self.worker_type, event.worker_type.as_ref())
            && is(&self.group, event.group.as_ref())
    }
}

impl Default for EventFilter {
    fn default() -> Self {
        Self::new()
    }
}

/// A newer program may know states that this one does not.
#[cfg(feature = "serde")]
fn reported_state<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<State>, D::Error> {
    let name = <Option<String> as serde::Deserialize>::deserialize(deserializer)?;
    Ok(name.map(|name| State::reported(&name)))
}

/// A level by its name in lower case.
#[cfg(feature = "serde")]
mod level_name {
    use log::Level;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        level: &Option<Level>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let name = level.map(|level| level.as_str().to_ascii_lowercase());
        name.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Level>, D::Error> {
        let name = Option::<String>::deserialize(deserializer)?;
        let level = name.map(|name| name.parse());
        level
            .transpose()
            .map_err(|_| de::Error::custom("a level is error, warn, info, debug or trace"))
    }
}

/// Some events of a store.
///
/// ```
/// use worker_heartbeat::fleet::EventFilter;
/// use worker_heartbeat::{HeartbeatStore, MemoryStore};
///
/// let store = MemoryStore::new();
/// let page = store.events(&EventFilter::new())?.expect("this store keeps events");
/// // Later: what has happened since then.
/// let new = store.events(&EventFilter::new().after(page.cursor))?.expect("it keeps events");
/// assert!(new.events.is_empty());
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct EventPage {
    /// In the order in which the store recorded them.
    pub events: Vec<FleetEvent>,
    /// Events that are recorded later are those [after](EventFilter::after) this number.
    pub cursor: u64,
    /// There are more that pass the filter: after the last one if [`after`](EventFilter::after) was
    /// given, otherwise before the first one.
    pub more: bool,
}

impl EventPage {
    /// A page.
    #[must_use]
    pub const fn new(events: Vec<FleetEvent>, cursor: u64, more: bool) -> Self {
        Self {
            events,
            cursor,
            more,
        }
    }

    /// The page of a filter, from what a store found up to the number `latest`: one event more than the
    /// limit, if there are more; the latest ones first, unless `after` is given.
    pub(crate) fn of(filter: &EventFilter, mut found: Vec<FleetEvent>, latest: u64) -> Self {
        let more = found.len() > filter.page();
        found.truncate(filter.page());
        let cursor = match filter.after {
            Some(after) if more => found.last().map_or(after, |event| event.seq),
            Some(after) => latest.max(after),
            None => {
                found.reverse();
                latest
            }
        };
        Self::new(found, cursor, more)
    }

    /// Keeps the first events in the order of reading whose texts have no more than so many bytes, one
    /// at least.
    #[cfg(feature = "http")]
    pub(crate) fn cut(&mut self, filter: &EventFilter, largest: usize) {
        let size = |event: &FleetEvent| {
            let ending = event.ending.as_ref();
            let texts = [
                &event.reason,
                &event.stack,
                &event.run_id,
                &event.task,
                &event.last_location,
            ];
            let texts = texts.into_iter().flatten().map(String::len);
            let detail = ending.and_then(|ending| ending.detail.as_ref());
            // A text may take up to six times as much in JSON, and comes twice: in `text`.
            1_024 + 6 * texts.chain(detail.map(String::len)).sum::<usize>()
        };
        let mut sum = 0;
        let mut fits = |event: &FleetEvent| {
            sum += size(event);
            sum <= largest
        };
        let kept = if filter.after.is_some() {
            self.events.iter().take_while(|event| fits(event)).count()
        } else {
            self.events
                .iter()
                .rev()
                .take_while(|event| fits(event))
                .count()
        };
        let kept = kept.max(1);
        if kept >= self.events.len() {
            return;
        }
        self.more = true;
        if filter.after.is_some() {
            self.events.truncate(kept);
            self.cursor = self.events.last().map_or(self.cursor, |event| event.seq);
        } else {
            self.events.drain(..self.events.len() - kept);
        }
    }
}
