//! What a process reports to a store about a worker.

use std::time::Duration;

use super::{StoredDeath, WorkerKey};
use crate::fleet::host::ProcessIdentity;
use crate::health::{SourceLocation, State, Thresholds};
#[cfg(feature = "serde")]
use crate::serial;

/// What a worker is. Metadata aside, it stays the same for an incarnation.
///
/// ```
/// use worker_heartbeat::fleet::WorkerInfo;
///
/// let mut info = WorkerInfo::new("indexer");
/// info.group = "machine-7".into();
/// assert!(info.thresholds.is_none() && info.metadata.is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its type.
    pub worker_type: String,
    /// Its group.
    pub group: String,
    /// The interval between its heartbeats.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "interval_s", with = "serial::seconds")
    )]
    pub interval: Duration,
    /// The limits that it is judged by. `None`: the reader's default.
    pub thresholds: Option<Thresholds>,
    /// Names and values that the application added.
    #[cfg_attr(feature = "serde", serde(default, with = "serial::pairs"))]
    pub metadata: Vec<(String, String)>,
    /// How often its supervisor restarted it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub restarts: u32,
    /// The process that it runs in, if that is known.
    pub process: Option<ProcessIdentity>,
}

impl WorkerInfo {
    /// A worker of this type, in the group `local`, with a heartbeat every 30 s.
    #[must_use]
    pub fn new(worker_type: impl Into<String>) -> Self {
        Self {
            worker_type: worker_type.into(),
            group: crate::worker::DEFAULT_GROUP.to_owned(),
            interval: crate::worker::DEFAULT_INTERVAL,
            thresholds: None,
            metadata: Vec::new(),
            restarts: 0,
            process: None,
        }
    }
}

/// What a worker's process last reported about it.
///
/// ```
/// use worker_heartbeat::State;
/// use worker_heartbeat::fleet::WorkerStatus;
///
/// let mut status = WorkerStatus::new(State::Processing);
/// status.run_id = Some("run-123".into());
/// assert_eq!(status.beats, 0);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The verdict in its own process.
    #[cfg_attr(
        feature = "serde",
        serde(alias = "reported", deserialize_with = "serial::reported")
    )]
    pub state: State,
    /// The reason for the verdict, where it has one.
    pub reason: Option<String>,
    /// The run that it works on.
    pub run_id: Option<String>,
    /// The task that it works on.
    pub task: Option<String>,
    /// Steps done and total steps of its task.
    pub progress: Option<(u64, u64)>,
    /// Where it last reported, as `src/jobs.rs:42`:
    /// [`Snapshot::last_location`](crate::Snapshot::last_location).
    pub last_location: Option<String>,
    /// Number of progress beats of this incarnation.
    pub beats: u64,
    /// The call stack of its thread, a line a call, or why there is none; of an unwell worker. In a
    /// heartbeat: one that is new. Without one, a store keeps the one before until the worker is
    /// reported well; an empty text removes it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub stack: Option<String>,
}

impl WorkerStatus {
    /// A worker in this state, without a task.
    #[must_use]
    pub const fn new(state: State) -> Self {
        Self {
            state,
            reason: None,
            run_id: None,
            task: None,
            progress: None,
            last_location: None,
            beats: 0,
            stack: None,
        }
    }

    /// What a store keeps of a heartbeat with this status, of a worker that had the other one before:
    /// the same, with the call stack that [`stack`](Self::stack) stands for.
    ///
    /// ```
    /// use worker_heartbeat::State;
    /// use worker_heartbeat::fleet::WorkerStatus;
    ///
    /// let mut before = WorkerStatus::new(State::Stalled);
    /// before.stack = Some("0: shop::stock::reserve".into());
    /// let still = WorkerStatus::new(State::Stalled).after(&before);
    /// assert_eq!(still.stack, before.stack);
    /// let well = WorkerStatus::new(State::Active).after(&before);
    /// assert_eq!(well.stack, None);
    /// ```
    #[must_use]
    pub fn after(&self, before: &Self) -> Self {
        let mut after = self.clone();
        after.stack = match &self.stack {
            Some(stack) => Some(stack).filter(|stack| !stack.is_empty()).cloned(),
            None if self.state.is_recent() => None,
            None => before.stack.clone(),
        };
        after
    }
}

impl WorkerStatus {
    pub(super) fn location(&self) -> Option<SourceLocation> {
        SourceLocation::parse(self.last_location.as_deref()?)
    }
}

/// A worker that begins.
///
/// ```
/// use worker_heartbeat::fleet::{HeartbeatStore, Registration};
/// use worker_heartbeat::MemoryStore;
///
/// let store = MemoryStore::new();
/// let keys = store.register(&[Registration::new("indexer", "indexer-1")])?;
/// assert_eq!(keys[0].id, "indexer-1");
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Registration {
    /// The requested id.
    pub id: String,
    /// The application chose the id, so the store must keep it. Otherwise the store assigns another
    /// id if a worker of another process has this one.
    pub explicit: bool,
    /// What the worker is.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: WorkerInfo,
    /// The last death of an earlier incarnation, as far as its process knows one: it may not have
    /// reached the store.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub last_death: Option<StoredDeath>,
    /// Refuse an [explicit](Self::explicit) id that belongs to a living worker of another process:
    /// [`Error::Invalid`](crate::Error::Invalid) says which. Otherwise, the new worker supersedes it.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "std::ops::Not::not")
    )]
    pub refuse_duplicate: bool,
}

impl Registration {
    /// A worker of this type with this id, chosen by the application.
    #[must_use]
    pub fn new(worker_type: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            explicit: true,
            info: WorkerInfo::new(worker_type),
            last_death: None,
            refuse_duplicate: false,
        }
    }
}

/// A heartbeat: what a process reports about one of its workers.
///
/// ```
/// use worker_heartbeat::State;
/// use worker_heartbeat::fleet::{Beat, WorkerKey};
///
/// let mut beat = Beat::new(WorkerKey::new("indexer-1", 7), State::Processing);
/// beat.status.task = Some("Researching example.com".into());
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[non_exhaustive]
pub struct Beat {
    /// The worker.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub key: WorkerKey,
    /// How it is.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub status: WorkerStatus,
    /// Age of its heartbeat; `None` if it never had one.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "heartbeat_age_s", default, with = "serial::optional_seconds")
    )]
    pub heartbeat_age: Option<Duration>,
    /// Time since its last progress; `None` if it never made any.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "progress_age_s", default, with = "serial::optional_seconds")
    )]
    pub progress_age: Option<Duration>,
    /// Metadata to add; an entry replaces one of the same name.
    #[cfg_attr(feature = "serde", serde(default, with = "serial::pairs"))]
    pub metadata: Vec<(String, String)>,
}

impl Beat {
    /// A worker in this state, with a heartbeat and progress at this moment.
    #[must_use]
    pub const fn new(key: WorkerKey, state: State) -> Self {
        Self {
            key,
            status: WorkerStatus::new(state),
            heartbeat_age: Some(Duration::ZERO),
            progress_age: Some(Duration::ZERO),
            metadata: Vec::new(),
        }
    }
}
