//! How everything that is reported looks in JSON, and in every other format that serde knows.
//!
//! * Names are those of the fields. A duration is a number of seconds, and `_s` is added to its
//!   name: `heartbeat_age` becomes `"heartbeat_age_s": 2.5`.
//! * A time is Unix time in seconds, 0.0 if there is none.
//! * States, activities and causes are their names in snake case; counts by state are an object
//!   with every state in it, so that a graph does not lose a line when a count is zero.
//! * A verdict is `{"state": "stale", "reason": "no heartbeat for 2 min, 1 min 30 s allowed"}`, with
//!   a `reason` of `null` where none is needed.
//!
//! The call stack of a convicted worker is a text, a line a call. None of it has the call stack of a
//! panic: to resolve one takes long.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use crate::fleet::{Beat, FleetEvent, StoredDeath, StoredEnding, StoredWorker};
use crate::health::{
    Activity, Death, DeathCause, FutureInfo, GroupState, GroupStats, Health, Learned, LeaseLoss,
    MissingWorkers, Rate, RuleResult, StackCapture, State, StateCounts, StopCause, StoreStatus,
    Summary, SweepTotals, TypeStats, UnwellWorker, Verdict,
};
use crate::registry::Snapshot;
use crate::registry::core::events::{Event, EventKind, EventWorker};
use crate::shutdown::{CleanupReport, ShutdownReport};
use crate::supervisor::{DeadWorker, DrainedWorker, HungWorker, StopReport};

/// Each type with its names and values; after a `?`, those that are left out if they are `None`.
macro_rules! report {
    ($($type:ident($this:ident) {
        $($name:literal: $value:expr,)* $(? $optional:literal: $option:expr,)*
    })*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $this = self;
                let fields: &[&str] = &[$($name,)* $($optional),*];
                let mut object = serializer.serialize_struct(stringify!($type), fields.len())?;
                $(object.serialize_field($name, &$value)?;)*
                $(match &$option {
                    Some(value) => object.serialize_field($optional, value)?,
                    None => object.skip_field($optional)?,
                })*
                object.end()
            }
        }
    )*};
}

macro_rules! named {
    ($($type:ident($this:ident) => $name:expr,)*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $this = self;
                serializer.serialize_str($name)
            }
        }
    )*};
}

named! {
    State(this) => this.name(),
    Activity(this) => match this {
        Self::Active => "active",
        Self::Idle => "idle",
        Self::Processing => "processing",
    },
    GroupState(this) => match this {
        Self::Unknown => "unknown",
        Self::Online => "online",
        Self::Offline => "offline",
        Self::Stopped => "stopped",
    },
    EventKind(this) => match this {
        Self::Registered => "registered",
        Self::Started => "started",
        Self::Late { .. } => "late",
        Self::Racing { .. } => "racing",
        Self::Slowed { .. } => "slowed",
        Self::Became(_) => "became",
        Self::StackCaptured { .. } => "stack_captured",
        Self::Recovered { .. } => "recovered",
        Self::Restarting { .. } => "restarting",
        Self::GaveUp { .. } => "gave_up",
        Self::ChildHung { .. } => "child_hung",
        Self::OverBudget { .. } => "over_budget",
        Self::Unobserved { .. } => "unobserved",
        Self::Missing(_) => "missing",
        Self::StoreFailing { .. } => "store_failing",
        Self::StoreRestored { .. } => "store_restored",
        Self::Refused { .. } => "refused",
        Self::LeaseLost { .. } => "lease_lost",
        Self::TaskFailed { .. } => "task_failed",
        Self::Complete { .. } => "complete",
    },
    StopCause(this) => this.name(),
    DeathCause(this) => this.name(),
}

report! {
    Health(this) {
        "state": this.state(),
        "reason": this.reason(),
    }
    Death(this) {
        "cause": this.cause,
        "reason": this.cause.to_string(),
        "run_id": this.run_id,
        "task": this.task,
        "last_location": this.last_location.as_ref().map(ToString::to_string),
        "at": unix(Some(this.at)),
        "gave_up_after": this.gave_up_after,
        "unheard_for_s": this.unheard_for.map(Seconds),
    }
    Summary(this) {
        "total_active": this.total_active,
        "total_dead": this.total_dead,
        "total": this.total,
        "states": this.states,
        "dead_workers": this.dead_workers,
        "stalled_workers": this.stalled_workers,
        "overdue_workers": this.overdue_workers,
        "stats_by_type": this.stats_by_type,
        "groups": this.groups,
        "unlisted_workers": this.unlisted_workers,
        "unlisted_types": this.unlisted_types,
        "unlisted_groups": this.unlisted_groups,
        "missing": this.missing,
        "tick_age_s": this.tick_age.as_secs_f64(),
        "forgotten": this.forgotten,
        "failed_tasks": this.failed_tasks,
    }
    UnwellWorker(this) {
        "id": this.id,
        "worker_type": this.worker_type,
        "group": this.group,
        "health": this.health,
        "restarting": this.restarting,
    }
    Verdict(this) {
        "well": this.is_well(),
        "policy": this.policy,
        "rules": this.rules,
        "unknown_types": this.unknown_types,
    }
    RuleResult(this) {
        "rule": this.rule,
        "failure": this.failure,
        "tolerated": this.tolerated,
    }
    LeaseLoss(this) {
        "cause": this.name(),
        "reason": this.to_string(),
    }
    TypeStats(this) {
        "total": this.total,
        "active": this.active,
        "dead": this.dead,
        "states": this.states,
    }
    GroupStats(this) {
        "state": this.state,
        "states": this.states,
    }
    MissingWorkers(this) {
        "worker_type": this.worker_type,
        "expected": this.expected,
        "living": this.living,
    }
    StoreStatus(this) {
        "registered": this.registered,
        "refused": this.refused,
        "busy": this.busy,
        "replaced_texts": this.replaced_texts,
        "failures": this.failures,
        "failures_in_a_row": this.failures_in_a_row,
        "last_error": this.last_error,
        "last_success_age_s": this.last_success_age.map(Seconds),
    }
    SweepTotals(this) {
        "successes": this.successes,
        "skipped": this.skipped,
        "unneeded": this.unneeded,
        "failures": this.failures,
        "marked_offline": this.marked_offline,
        "released_leases": this.released_leases,
        "forgotten": this.forgotten,
        "slow": this.slow,
        "last_duration_s": this.last_duration.map(Seconds),
        "last_success_age_s": this.last_success_age.map(Seconds),
        "overdue": this.overdue,
    }
    Event(this) {
        "at": unix(Some(this.at)),
        "worker": this.worker,
        "kind": this.kind,
        "health": match &this.kind {
            EventKind::Became(health) => Some(health),
            _ => None,
        },
        "text": this.to_string(),
    }
    EventWorker(this) {
        "id": this.id,
        "worker_type": this.worker_type,
        "group": this.group,
        "incarnation": this.incarnation,
    }
    DeadWorker(this) {
        "id": this.id,
        "death": *this.death,
    }
    HungWorker(this) {
        "id": this.id,
        "health": this.health,
        "run_id": this.run_id,
        "task": this.task,
    }
    DrainedWorker(this) {
        "id": this.id,
        "took_s": this.took.as_secs_f64(),
        "budget_s": this.budget.map(Seconds),
        "over_budget": this.is_over_budget(),
    }
    StopReport(this) {
        "clean": this.is_clean(),
        "ended": this.ended,
        "died": this.died,
        "hung": this.hung,
        "drained": this.drained,
        "took_s": this.took.as_secs_f64(),
    }
    ShutdownReport(this) {
        "clean": this.is_clean(),
        "cause": this.cause.to_string(),
        "hung": this.hung,
        "died": this.died,
        "gave_up": this.gave_up,
        "drained": this.drained,
        "cleanups": this.cleanups,
        "took_s": this.took.as_secs_f64(),
    }
    CleanupReport(this) {
        "name": this.name,
        "state": this.state.to_string(),
        "panic": this.panic,
    }
    Snapshot(this) {
        "id": this.id,
        "worker_type": this.worker_type,
        "group": this.group,
        "incarnation": this.incarnation,
        "restarts": this.restarts,
        "spawn_location": this.spawn_location.as_ref().map(ToString::to_string),
        "health": this.health,
        "activity": this.activity,
        "run_id": this.run_id,
        "task": this.task,
        "progress": this.progress,
        "step": this.step,
        "last_location": this.last_location.as_ref().map(ToString::to_string),
        "future": this.future,
        "task_age_s": this.task_age.map(Seconds),
        "progress_age_s": this.progress_age.map(Seconds),
        "heartbeat_age_s": this.heartbeat_age.map(Seconds),
        "last_heartbeat": this.last_heartbeat_unix(),
        "beats": this.beats,
        "late_beats": this.late_beats,
        "late_updates": this.late_updates,
        "failed_tasks": this.failed_tasks,
        "last_death": this.last_death.as_deref(),
        "stack": this.stack.as_ref().and_then(StackCapture::text),
        "metadata": Pairs(&this.metadata),
        "thresholds": this.thresholds,
        "interval_s": this.interval.as_secs_f64(),
        "tick_age_s": this.tick_age.as_secs_f64(),
        "store": this.store,
        ? "learned": this.learned,
        ? "at_most_per_s": this.at_most.map(Rate::per_second_f64),
        ? "racing_per_s": this.racing.map(Rate::per_second_f64),
    }
    Learned(this) {
        "usual_s": this.usual.as_secs_f64(),
        "longest_s": this.longest.as_secs_f64(),
        "allowed_s": this.allowed.as_secs_f64(),
        "silences": this.silences,
        "is_learning": this.is_learning,
    }
    FutureInfo(this) {
        "type_name": this.type_name,
        "location": this.location.as_ref().map(ToString::to_string),
        "polls": this.polls,
        "last_poll_age_s": this.last_poll_age.map(Seconds),
        "last_poll_thread": this.last_poll_thread,
        "is_polled_now": this.is_polled_now,
    }
    Beat(this) {
        "id": this.key.id,
        "incarnation": this.key.incarnation,
        "state": this.status.state,
        "reason": this.status.reason,
        "heartbeat_age_s": this.heartbeat_age.map(Seconds),
        "progress_age_s": this.progress_age.map(Seconds),
        "run_id": this.status.run_id,
        "task": this.status.task,
        "progress": this.status.progress,
        "beats": this.status.beats,
        "metadata": Pairs(&this.metadata),
        ? "last_location": this.status.last_location,
        ? "stack": this.status.stack,
    }
    StoredDeath(this) {
        "ending": this.ending,
        "reason": this.cause().to_string(),
        "run_id": this.run_id,
        "task": this.task,
        "at": unix(SystemTime::now().checked_sub(this.age)),
        "age_s": this.age.as_secs_f64(),
    }
    StoredWorker(this) {
        "id": this.key.id,
        "incarnation": this.key.incarnation,
        "worker_type": this.info.worker_type,
        "group": this.info.group,
        "health": this.health(),
        "reported": this.status.state,
        "reason": this.status.reason,
        "run_id": this.status.run_id,
        "task": this.status.task,
        "progress": this.status.progress,
        "registered_age_s": this.registered_age.as_secs_f64(),
        "heartbeat_age_s": this.heartbeat_age.map(Seconds),
        "progress_age_s": this.progress_age.map(Seconds),
        "beats": this.status.beats,
        "restarts": this.info.restarts,
        "lease_remaining_s": this.lease_remaining.map(Seconds),
        "ending": this.ending.as_ref().map(|(ending, _)| ending),
        "ended_age_s": this.ending.as_ref().map(|(_, ago)| Seconds(*ago)),
        "interval_s": this.info.interval.as_secs_f64(),
        "thresholds": this.info.thresholds,
        "metadata": Pairs(&this.info.metadata),
        "process": this.info.process,
        ? "last_location": this.status.last_location,
        ? "last_death": this.last_death,
        ? "stack": this.call_stack(),
    }
    FleetEvent(this) {
        "seq": this.seq,
        "at": unix(SystemTime::now().checked_sub(this.age)),
        "age_s": this.age.as_secs_f64(),
        "level": this.kind.level().as_str().to_ascii_lowercase(),
        "kind": this.kind.name(),
        "worker": this.worker,
        "worker_type": this.worker_type,
        "group": this.group,
        "state": this.state,
        "text": this.text(),
        ? "hostname": this.hostname,
        ? "pid": this.pid,
        ? "ending": this.ending,
        ? "reason": this.reason,
        ? "last_location": this.last_location,
        ? "run_id": this.run_id,
        ? "task": this.task,
        ? "stack": this.stack,
        ? "restarts": Some(this.restarts).filter(|restarts| *restarts > 0),
    }
}

impl Serialize for StateCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(state, count)| (state.name(), count)))
    }
}

impl<'de> Deserialize<'de> for StateCounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let named = BTreeMap::<String, usize>::deserialize(deserializer)?;
        let mut counts = Self::default();
        for (name, count) in named {
            counts.add_many(State::reported(&name), count);
        }
        Ok(counts)
    }
}

/// Metadata as an object, in its order.
pub(crate) struct Pairs<'a>(pub(crate) &'a [(String, String)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            object.serialize_entry(name, value)?;
        }
        object.end()
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| de::Error::custom("not the name of a state"))
    }
}

/// For fields: the state that another program reports.
pub(crate) fn reported<'de, D: Deserializer<'de>>(deserializer: D) -> Result<State, D::Error> {
    String::deserialize(deserializer).map(|name| State::reported(&name))
}

/// Metadata from an object; of entries with one name, the last counts.
pub(crate) mod pairs {
    use super::*;

    /// More metadata of one worker is not even read. (The smaller limit of the library is checked
    /// later.)
    const MOST: usize = 4_096;

    pub(crate) fn set(pairs: &mut Vec<(String, String)>, name: String, value: String) {
        match pairs.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => pairs.push((name, value)),
        }
    }

    pub(crate) fn serialize<S: Serializer>(
        pairs: &[(String, String)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Pairs(pairs).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(String, String)>, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, String)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry()? {
                    // The search for an equal name is linear.
                    if pairs.len() > MOST {
                        return Err(de::Error::custom("too many metadata entries"));
                    }
                    set(&mut pairs, name, value);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// A duration as a number of seconds. A number that is too large becomes the longest duration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seconds(pub(crate) Duration);

impl Seconds {
    pub(crate) fn new(seconds: f64) -> Option<Self> {
        let is_duration = seconds >= 0.0;
        is_duration.then(|| Self(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Self::new(seconds).ok_or_else(|| de::Error::custom("a duration is 0 s or more"))
    }
}

/// For fields: a [`Duration`] as [`Seconds`].
pub(crate) mod seconds {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        Seconds(*duration).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        Seconds::deserialize(deserializer).map(|seconds| seconds.0)
    }
}

/// For fields: an optional [`Duration`] as [`Seconds`].
pub(crate) mod optional_seconds {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        duration.map(Seconds).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<Seconds>::deserialize(deserializer)?;
        Ok(seconds.map(|seconds| seconds.0))
    }
}

/// How a worker ended, and how long ago: two fields of its object.
pub(crate) fn ended<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<(StoredEnding, Duration)>, D::Error> {
    #[derive(serde::Deserialize)]
    struct EndingFields {
        ending: Option<StoredEnding>,
        ended_age_s: Option<Seconds>,
    }
    let EndingFields {
        ending,
        ended_age_s,
    } = EndingFields::deserialize(deserializer)?;
    let ago = ended_age_s.map_or(Duration::ZERO, |seconds| seconds.0);
    Ok(ending.map(|ending| (ending, ago)))
}

pub(crate) fn unix(at: Option<SystemTime>) -> f64 {
    at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use super::*;
    use crate::{MockClock, Registry, WorkerHeartbeat};

    #[test]
    fn a_snapshot_and_a_summary_have_their_names() {
        let time = MockClock::new();
        let registry = Registry::with_clock(time.clock());
        let hb = WorkerHeartbeat::builder("poller")
            .id("a")
            .metadata("version", "1")
            .registry(&registry)
            .start()
            .unwrap();
        hb.update_task("run-1", "x", Activity::Processing);
        time.advance(Duration::from_secs(2));
        let snapshot = serde_json::to_value(hb.snapshot()).unwrap();
        assert_eq!(snapshot["health"]["state"], "processing");
        assert_eq!(snapshot["health"]["reason"], serde_json::Value::Null);
        assert_eq!(snapshot["activity"], "processing");
        assert_eq!(snapshot["interval_s"], 30.0);
        assert_eq!(snapshot["thresholds"]["stale_after_s"], 90.0);
        assert_eq!(snapshot["metadata"]["version"], "1");
        assert!(snapshot["last_heartbeat"].as_f64().unwrap() > 0.0);
        let events = registry.subscribe();
        hb.fail("no disk");
        let event = serde_json::to_value(events.recv().unwrap()).unwrap();
        assert_eq!(event["kind"], "became");
        assert_eq!(event["worker"]["id"], "a");
        assert_eq!(event["health"]["state"], "dead");
        assert_eq!(
            event["text"],
            "worker a: dead: failed: no disk, during run-1 (x)"
        );
        let report = crate::Supervisor::new(&registry).shutdown(Duration::ZERO);
        assert_eq!(serde_json::to_value(report).unwrap()["clean"], true);
        let summary = serde_json::to_value(registry.summary()).unwrap();
        assert_eq!(summary["states"]["dead"], 1);
        assert_eq!(summary["states"]["never_started"], 0);
        assert_eq!(summary["stats_by_type"]["poller"]["dead"], 1);
        assert_eq!(summary["groups"]["local"]["state"], "offline");
        let reason = summary["dead_workers"][0]["health"]["reason"].as_str();
        assert!(reason.unwrap().starts_with("failed: no disk"), "{summary}");
    }
}
