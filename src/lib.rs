// The pictures of the page below, as link definitions. The first definition of a name counts.
#![doc = include_str!("../docs/embedded/tour.md")]
#![doc = include_str!("../docs/embedded/dashboard.md")]
#![doc = ""]
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![warn(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::todo,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod atomic;
mod cell;
mod clock;
mod error;
pub mod fleet;
mod health;
#[cfg(all(loom, test))]
mod models;
#[cfg(feature = "http")]
mod net;
mod registry;
#[cfg(feature = "serde")]
mod serial;
#[cfg(any(
    feature = "http",
    feature = "prometheus",
    feature = "systemd",
    feature = "beacon"
))]
pub mod serve;
mod shutdown;
mod supervisor;
mod sync;
mod worker;

pub use clock::{Clock, MockClock, Moment};
pub use error::{BoxError, Error};
#[cfg(feature = "sqlite")]
pub use fleet::SqliteStore;
pub use fleet::{
    Attachment, FleetConfig, HeartbeatStore, Lease, MemoryStore, OnOffline, StoredWorker, Sweeper,
};
#[cfg(feature = "http")]
pub use fleet::{Coordinator, HttpStore, RunningCoordinator};
#[cfg(feature = "postgres")]
pub use fleet::{PostgresOptions, PostgresStore};
pub use health::{
    Activity, Death, DeathCause, Ending, GroupState, GroupStats, Health, MissingWorkers, Reading,
    StallCause, Stalled, State, StateCounts, StopCause, StoreStatus, Summary, SweepReport,
    SweepTotals, Thresholds, TypeStats, UnwellWorker, judge,
};
pub use registry::core::events::{Event, EventKind, EventWorker, Subscription};
pub use registry::{Probe, Registry, Snapshot};
#[cfg(feature = "beacon")]
pub use serve::Beacon;
#[cfg(feature = "prometheus")]
pub use serve::Metrics;
#[cfg(feature = "systemd")]
pub use serve::SystemdNotifier;
#[cfg(feature = "http")]
pub use serve::{HealthEndpoint, HealthServer};
pub use shutdown::{
    CleanupReport, CleanupState, Shutdown, ShutdownBuilder, ShutdownCause, ShutdownReport, Signal,
};
pub use supervisor::{
    DeadWorker, Exit, HungWorker, Outcome, Restart, StopReport, Supervised, SupervisedWorker,
    Supervisor,
};
pub use worker::{Builder, SilenceGuard, TaskGuard, WorkerHeartbeat};
