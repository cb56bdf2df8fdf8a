//! Heartbeats beyond the process: stores, leases, sweeps. Reads the registry; everything else here
//! works on plain data.
//!
//! [`Registry::attach`](crate::Registry::attach) sends the heartbeats of a process to a
//! [`HeartbeatStore`]. A [`Sweeper`], in any process, marks workers offline there whose process was
//! killed or is cut off. [`WorkerHeartbeat::claim`](crate::WorkerHeartbeat::claim) gives a worker the
//! right to work on a run, for as long as it lives.
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
//! let lease = hb.claim("run-17", Duration::from_secs(60))?.expect("the run is free");
//! assert!(lease.is_held());
//!
//! attachment.flush(Duration::from_secs(1));
//! assert_eq!(store.summary()?.total_active, 1);
//! # Ok::<(), worker_heartbeat::Error>(())
//! ```

mod claims;
#[cfg(feature = "test-util")]
pub mod conformance;
mod defaults;
mod event_log;
mod event_rules;
pub(crate) mod host;
#[cfg(feature = "http")]
mod http;
mod lease;
#[cfg(all(test, not(loom)))]
mod lease_model;
mod memory;
mod numbers;
mod pages;
#[cfg(feature = "postgres")]
mod postgres;
mod rules;
mod shapes;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod sweep_rules;
mod sweeper;
mod uploader;

#[cfg(feature = "http")]
pub(crate) use claims::{check_run_id, check_ttl};
#[cfg(feature = "prometheus")]
pub(crate) use event_rules::ENDINGS;
pub use host::ProcessIdentity;
#[cfg(feature = "http")]
pub use http::{Coordinator, HttpStore, HttpStoreBuilder, RunningCoordinator};
pub use lease::Lease;
pub use memory::MemoryStore;
pub use pages::Pages;
#[cfg(feature = "postgres")]
pub use postgres::{LentClient, PostgresCredentials, PostgresOptions, PostgresStore};
#[cfg(feature = "http")]
pub(crate) use shapes::Worst;
pub use shapes::{
    Answer, Beat, Claim, ClaimAnswer, EventFilter, EventPage, FleetCounts, FleetEvent,
    FleetEventKind, LeaseKey, Registration, Renewal, Retention, Stop, StoredDeath, StoredEnding,
    StoredWorker, Sweep, WatchedSpan, WorkerFilter, WorkerInfo, WorkerKey, WorkerStatus,
};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use store::HeartbeatStore;
pub use sweeper::{RunningSweeper, Sweeper};
pub use uploader::{Attachment, FleetConfig, OnDuplicate, OnOffline};
