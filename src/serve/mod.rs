//! How the workers are, told to whoever asks.
//!
//! * [`HealthEndpoint`] tells it over HTTP, for this process, on a dashboard too (feature `http`).
//! * [`Coordinator`] serves a store over HTTP to workers that reach no database (feature `http`).
//! * [`SystemdNotifier`] tells systemd (feature `systemd`).
//! * [`Beacon`] tells it in a file (feature `beacon`).
//! * [`Metrics`] tells it to Prometheus (feature `prometheus`).

#[cfg(feature = "http")]
mod audience;
#[cfg(feature = "http")]
mod batch;
#[cfg(feature = "beacon")]
mod beacon;
#[cfg(feature = "http")]
mod coordinator;
#[cfg(feature = "http")]
mod dashboard;
#[cfg(feature = "http")]
mod fresh;
#[cfg(feature = "http")]
mod gate;
#[cfg(feature = "http")]
mod health;
#[cfg(feature = "http")]
mod intake;
#[cfg(feature = "http")]
mod known;
#[cfg(any(feature = "beacon", all(unix, feature = "systemd")))]
mod lookout;
#[cfg(feature = "prometheus")]
mod metrics;
#[cfg(feature = "http")]
mod probes;
#[cfg(any(feature = "beacon", feature = "http", all(unix, feature = "systemd")))]
mod process;
#[cfg(feature = "http")]
mod server;
#[cfg(feature = "http")]
mod service;
#[cfg(feature = "systemd")]
mod systemd;
#[cfg(feature = "http")]
mod view;
#[cfg(feature = "http")]
mod workers;

#[cfg(feature = "beacon")]
pub use beacon::{Beacon, RunningBeacon};
#[cfg(feature = "http")]
pub use coordinator::{Coordinator, RunningCoordinator};
#[cfg(feature = "http")]
pub use health::{HealthEndpoint, HealthServer};
#[cfg(feature = "prometheus")]
pub use metrics::Metrics;
#[cfg(feature = "systemd")]
pub use systemd::SystemdNotifier;
