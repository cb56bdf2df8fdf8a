//! Heartbeats for background workers: no worker of a service can die, hang or vanish unseen.
//!
//! A *worker* is one loop of work: a thread, an async task, or the main thread. It reports progress with
//! [`WorkerHeartbeat::beat`], which costs about a nanosecond. One background thread observes all
//! workers. Any thread may ask for the verdict on each of them, with its reason:
//!
//! ```
//! use worker_heartbeat::{Registry, Supervisor, WorkerHeartbeat};
//!
//! fn main() -> Result<(), worker_heartbeat::Error> {
//!     let registry = Registry::global();
//!     let builder = WorkerHeartbeat::builder("importer").id("importer-1");
//!     let worker = Supervisor::new(registry).spawn(builder, |hb| {
//!         let _task = hb.begin_task("line-3", "reading a price");
//!         let price: f64 = "n/a".parse()?;
//!         println!("{price:.2}");
//!         Ok(())
//!     })?;
//!     worker.join();
//!     println!("{}", registry.summary());
//!     // 0 active, 1 dead; importer-1: dead: failed: invalid float literal, 1 ms ago,
//!     // during line-3 (reading a price)
//!     Ok(())
//! }
//! ```
//!
//! # Where to look
//!
//! | in order to | use | guide |
//! | --- | --- | --- |
//! | report progress, tasks and silences | [`WorkerHeartbeat`], [`Builder`], [`TaskGuard`] | [workers in a process] |
//! | read how workers are | [`Probe`], [`Health`], [`Registry`], [`Summary`], [`Event`] | [workers in a process], [troubleshooting] |
//! | record why work ended, and restart it | [`Supervisor`], [`Restart`], [`Exit`] | [supervision] |
//! | end a process in good order | [`Shutdown`], [`ShutdownReport`] | [shutdown] |
//! | test with time that does not pass | [`MockClock`] | [testing] |
//! | share one record among many processes | [`HeartbeatStore`], [`MemoryStore`], [`SqliteStore`], [`PostgresStore`], [`HttpStore`], [`Sweeper`], [`Lease`] | [fleet] |
//! | answer probes, and show a dashboard | [`HealthEndpoint`], [`Policy`], [`Coordinator`] | [HTTP] |
//! | export metrics | [`Metrics`] | [metrics] |
//! | report to systemd, or to a file | [`SystemdNotifier`], [`Beacon`] | [systemd] |
//! | look after a store from the command line | the program `heartbeat-monitor` | [monitor] |
//!
//! The [guide] has a page for each subject. The [design] page explains the two signals, progress and
//! heartbeat, and why both are kept. The [limitations] page lists what the crate cannot see.
//!
//! # Features
//!
//! None is on by default; the crate then depends on six small crates. `http`, `prometheus`, `sqlite`,
//! `postgres`, `systemd`, `beacon`, `stacks`, `exit-hook` and `serde` add the items of these names; `full`
//! is all of them. `cli` builds `heartbeat-monitor`. `test-util` adds the conformance suite of stores. The minimum
//! Rust version is 1.85.
//!
#![doc = include_str!("guide/links/always.md")]
#![cfg_attr(feature = "sqlite", doc = include_str!("guide/links/sqlite.md"))]
#![cfg_attr(feature = "postgres", doc = include_str!("guide/links/postgres.md"))]
#![cfg_attr(feature = "http", doc = include_str!("guide/links/http.md"))]
#![cfg_attr(feature = "prometheus", doc = include_str!("guide/links/prometheus.md"))]
#![cfg_attr(feature = "systemd", doc = include_str!("guide/links/systemd.md"))]
#![cfg_attr(feature = "beacon", doc = include_str!("guide/links/beacon.md"))]
#![cfg_attr(all(feature = "systemd", feature = "beacon"), doc = include_str!("guide/links/systemd_and_beacon.md"))]
#![doc = include_str!("guide/links/elsewhere.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
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
#[cfg(doc)]
pub mod guide;
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
#[cfg(feature = "stacks")]
mod stacks;
mod supervisor;
mod sync;
mod unwind;
mod worker;

pub use clock::{Clock, MockClock, Moment};
pub use error::{BoxError, Error, StoreErrorKind};
#[cfg(feature = "sqlite")]
#[doc(inline)]
pub use fleet::SqliteStore;
#[doc(inline)]
pub use fleet::{
    Attachment, FleetConfig, HeartbeatStore, Lease, MemoryStore, OnDuplicate, OnOffline,
    StoredWorker, Sweeper,
};
#[cfg(feature = "http")]
#[doc(inline)]
pub use fleet::{Coordinator, HttpStore, RunningCoordinator};
#[cfg(feature = "postgres")]
#[doc(inline)]
pub use fleet::{LentClient, PostgresCredentials, PostgresOptions, PostgresStore};
pub use health::{
    Activity, CallStack, Death, DeathCause, Ending, Exit, FutureInfo, GroupState, GroupStats,
    Health, Learn, Learned, Learner, LeaseLoss, MissingWorkers, Policy, Rate, Reading, RuleResult,
    SourceLocation, StackCapture, StackFrame, StallCause, Stalled, State, StateCounts, StopCause,
    StoreStatus, Summary, SweepReport, SweepTotals, Thresholds, TypeStats, UnwellWorker, Verdict,
    judge,
};
pub use registry::core::draining::Drains;
pub use registry::core::escalation::{Escalation, Trigger};
pub use registry::core::events::{Event, EventKind, EventWorker};
pub use registry::core::subscribers::Subscription;
pub use registry::{Counters, Probe, Registry, Snapshot, TypeCounters};
#[cfg(feature = "beacon")]
#[doc(inline)]
pub use serve::Beacon;
#[cfg(feature = "prometheus")]
#[doc(inline)]
pub use serve::Metrics;
#[cfg(feature = "systemd")]
#[doc(inline)]
pub use serve::SystemdNotifier;
#[cfg(feature = "http")]
#[doc(inline)]
pub use serve::{HealthEndpoint, RunningHealthEndpoint};
pub use shutdown::{
    CleanupReport, CleanupState, Shutdown, ShutdownBuilder, ShutdownCause, ShutdownReport, Signal,
};
pub use supervisor::{
    DeadWorker, DrainedWorker, HungWorker, Outcome, Restart, StopReport, Supervised,
    SupervisedFuture, SupervisedWorker, Supervisor,
};
pub use worker::{Builder, SilenceGuard, TaskGuard, Text, WorkerHeartbeat};
