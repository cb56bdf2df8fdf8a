//! What others are told, each by a feature of its own.
//!
//! * `Coordinator` (`http`) serves a store to workers that reach no database.
//! * `HealthEndpoint` (`http`) tells how the workers of this process are.
//! * `Metrics` (`prometheus`) tells Prometheus.

#[cfg(feature = "http")]
mod batch;
#[cfg(feature = "http")]
mod coordinator;
#[cfg(feature = "http")]
mod core;
#[cfg(feature = "http")]
mod gate;
#[cfg(feature = "http")]
mod health;
#[cfg(feature = "http")]
mod intake;
#[cfg(feature = "http")]
mod known;
#[cfg(feature = "prometheus")]
mod metrics;
#[cfg(feature = "http")]
mod server;
#[cfg(feature = "http")]
mod view;
#[cfg(feature = "http")]
mod workers;

#[cfg(feature = "http")]
pub use coordinator::{Coordinator, RunningCoordinator};
#[cfg(feature = "http")]
pub use health::{HealthEndpoint, HealthServer};
#[cfg(feature = "prometheus")]
pub use metrics::Metrics;
