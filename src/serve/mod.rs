//! How the workers are, told to whoever asks.
//!
//! * [`HealthEndpoint`] tells it over HTTP, for this process, on a dashboard too (feature `http`).
//! * [`SystemdNotifier`] tells systemd (feature `systemd`).
//! * [`Beacon`] tells it in a file (feature `beacon`).
//! * [`Metrics`] tells it to Prometheus (feature `prometheus`).

#[cfg(feature = "beacon")]
mod beacon;
#[cfg(feature = "http")]
mod dashboard;
#[cfg(feature = "http")]
mod disclosure;
#[cfg(feature = "http")]
mod health;
#[cfg(feature = "prometheus")]
mod metrics;
#[cfg(feature = "http")]
mod probes;
#[cfg(any(feature = "beacon", feature = "http", all(unix, feature = "systemd")))]
mod process;
#[cfg(any(feature = "beacon", all(unix, feature = "systemd")))]
mod reporter;
#[cfg(feature = "systemd")]
mod systemd;
#[cfg(feature = "http")]
mod view;

#[cfg(feature = "beacon")]
pub use beacon::{Beacon, RunningBeacon};
#[cfg(feature = "http")]
pub use health::{HealthEndpoint, HealthServer};
#[cfg(feature = "prometheus")]
pub use metrics::Metrics;
#[cfg(feature = "systemd")]
pub use systemd::SystemdNotifier;
