//! What a store is asked for, and its answers.

use std::time::Duration;

use super::{StoredEnding, WorkerKey};
#[cfg(feature = "serde")]
use crate::serial;

/// Whether a store accepted a write.
///
/// ```
/// use worker_heartbeat::{MemoryStore, State};
/// use worker_heartbeat::fleet::{Answer, Beat, HeartbeatStore, Registration};
///
/// let store = MemoryStore::new();
/// let first = store.register(&[Registration::new("indexer", "indexer-1")])?.remove(0);
/// let second = store.register(&[Registration::new("indexer", "indexer-1")])?.remove(0);
/// let beats = [first, second].map(|worker| Beat::new(worker, State::Idle));
/// let answers = store.beat(&beats)?;
/// assert_eq!(answers, [Answer::Superseded, Answer::Accepted]);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Answer {
    /// Accepted.
    Accepted,
    /// The store does not know this worker: it must be registered again.
    Unknown,
    /// Refused: another incarnation has taken its place.
    Superseded,
    /// Refused: this incarnation has ended, or a sweep marked it offline.
    Ended,
    /// Nothing was written, because another client of the store locks the worker's record. Ask again
    /// later: it is neither accepted nor refused.
    Busy,
    /// Refused: the store cannot keep what this report contains.
    Invalid,
}

/// Whether a store extended a lease.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::MemoryStore;
/// use worker_heartbeat::fleet::{HeartbeatStore, LeaseKey, Renewal, WorkerKey};
///
/// let unknown = LeaseKey::new(WorkerKey::new("indexer-1", 7), "run-123", 8);
/// let renewals = MemoryStore::new().try_renew(&[unknown], Duration::from_secs(60))?;
/// assert_eq!(renewals, [Renewal::Lost]);
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Renewal {
    /// The lease is held, and was extended.
    Renewed,
    /// The lease is not held any more.
    Lost,
    /// Nothing was changed, because another client of the store locks the record of the lease or of
    /// its worker. Ask again later: the lease is held until it expires.
    Busy,
}

impl From<bool> for Renewal {
    /// `true`: it is held.
    fn from(held: bool) -> Self {
        if held { Self::Renewed } else { Self::Lost }
    }
}

/// The end of an incarnation.
///
/// ```
/// use worker_heartbeat::StopCause;
/// use worker_heartbeat::fleet::{Stop, StoredEnding, WorkerKey};
///
/// let key = WorkerKey::new("indexer-1", 7);
/// let stop = Stop::new(key, StoredEnding::stopped(&StopCause::Completed));
/// assert!(stop.ago.is_zero());
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stop {
    /// The incarnation that ended.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub key: WorkerKey,
    /// How it ended.
    pub ending: StoredEnding,
    /// How long ago.
    #[cfg_attr(feature = "serde", serde(rename = "ago_s", with = "serial::seconds"))]
    pub ago: Duration,
}

impl Stop {
    /// This incarnation ended just now.
    #[must_use]
    pub const fn new(key: WorkerKey, ending: StoredEnding) -> Self {
        Self {
            key,
            ending,
            ago: Duration::ZERO,
        }
    }

    /// How long ago it ended.
    #[must_use]
    pub const fn ago(mut self, ago: Duration) -> Self {
        self.ago = ago;
        self
    }
}

/// A request for the right to work on a run.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::MemoryStore;
/// use worker_heartbeat::fleet::{Claim, ClaimAnswer, HeartbeatStore, Registration};
///
/// let store = MemoryStore::new();
/// let worker = store.register(&[Registration::new("indexer", "indexer-1")])?.remove(0);
/// let answer = store.claim(&Claim::new(worker, "run-123", Duration::from_secs(60)))?;
/// assert!(matches!(answer, ClaimAnswer::Granted(_)));
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Claim {
    /// The claiming worker.
    pub worker: WorkerKey,
    /// The run.
    pub run_id: String,
    /// How long the lease lasts unless it is renewed.
    #[cfg_attr(feature = "serde", serde(rename = "ttl_s", with = "serial::seconds"))]
    pub ttl: Duration,
    /// Identifies this attempt to claim the run. A worker that does not know the outcome of an attempt
    /// asks again with the same number: if the run was granted, it gets the same fence. Or it
    /// [withdraws](crate::HeartbeatStore::withdraw) the claim.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none")
    )]
    pub attempt: Option<u64>,
}

impl Claim {
    /// A claim of this run by this worker.
    #[must_use]
    pub fn new(worker: WorkerKey, run_id: impl Into<String>, ttl: Duration) -> Self {
        let run_id = run_id.into();
        Self {
            worker,
            run_id,
            ttl,
            attempt: None,
        }
    }

    /// With this number of the attempt, which no other attempt of the worker has.
    #[must_use]
    pub const fn attempt(mut self, attempt: u64) -> Self {
        self.attempt = Some(attempt);
        self
    }
}

/// The answer to a claim.
///
/// ```
/// use std::time::Duration;
/// use worker_heartbeat::MemoryStore;
/// use worker_heartbeat::fleet::{Claim, ClaimAnswer, HeartbeatStore, Registration};
///
/// let store = MemoryStore::new();
/// let ids = ["indexer-1", "indexer-2"].map(|id| Registration::new("indexer", id));
/// for worker in store.register(&ids)? {
///     match store.claim(&Claim::new(worker, "run-123", Duration::from_secs(60)))? {
///         ClaimAnswer::Granted(fence) => println!("granted, with fence {fence}"),
///         ClaimAnswer::Taken => println!("taken"),
///         answer => unreachable!("{answer:?}"),
///     }
/// }
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum ClaimAnswer {
    /// The worker holds the run, with this fence: a number higher than that of every earlier claim.
    Granted(u64),
    /// Another worker holds the run.
    Taken,
    /// The worker itself is refused; never with [`Answer::Accepted`].
    Refused(Answer),
}
