//! The same truth across processes and machines: stores of heartbeats, leases, sweeps.
//!
//! [`Registry::attach`](crate::Registry::attach) carries the heartbeats of a process to a
//! [`HeartbeatStore`]; a [`Sweeper`], in any process, makes true there what killed processes and
//! machines that are cut off can't; [`WorkerHeartbeat::claim`](crate::WorkerHeartbeat::claim) gives
//! a worker the right to work on a run, for as long as it lives.
//!
//! ```
//! use std::time::Duration;
//! use worker_heartbeat::{FleetConfig, HeartbeatStore, MemoryStore, Registry, WorkerHeartbeat};
//!
//! let store = MemoryStore::new();
//! let registry = Registry::new();
//! let attachment = registry.attach(store.clone(), FleetConfig::new())?;
//!
//! let hb = WorkerHeartbeat::builder("indexer").registry(&registry).start()?;
//! hb.beat();
//! let lease = hb.claim("run-17", Duration::from_secs(60))?.expect("nobody else wants it");
//! assert!(lease.is_held());
//!
//! attachment.flush(Duration::from_secs(1));
//! assert_eq!(store.summary()?.total_active, 1);
//! # Ok::<(), worker_heartbeat::Error>(())
//! ```

mod config;
#[cfg(feature = "test-util")]
pub mod conformance;
pub(crate) mod host;
#[cfg(feature = "http")]
mod http;
mod jitter;
mod key;
mod lease;
mod memory;
#[cfg(all(test, not(loom)))]
mod model;
#[cfg(feature = "postgres")]
mod postgres;
mod rules;
mod session;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod stored;
mod sweeper;
mod uploader;

pub use config::{FleetConfig, OnOffline};
pub use host::ProcessIdentity;
#[cfg(feature = "http")]
pub use http::{Coordinator, HttpStore, HttpStoreBuilder, RunningCoordinator};
pub use lease::Lease;
#[cfg(feature = "http")]
pub(crate) use lease::{check_run_id, check_ttl};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOptions, PostgresStore};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use store::{
    Answer, Beat, Claim, ClaimAnswer, HeartbeatStore, LeaseKey, Registration, Stop, Sweep,
    WorkerFilter, WorkerKey,
};
#[cfg(feature = "http")]
pub(crate) use stored::summarize;
pub use stored::{StoredEnding, StoredWorker};
pub use sweeper::{RunningSweeper, Sweeper};
pub use uploader::Attachment;
