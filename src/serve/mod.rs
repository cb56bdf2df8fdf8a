//! Reports the health of workers to programs and people outside the process.
//!
//! * [`HealthEndpoint`]: over HTTP, for probes and people, with a dashboard (feature `http`).
//! * [`SystemdNotifier`]: to systemd (feature `systemd`).
//! * [`Beacon`]: in a file (feature `beacon`).
//! * [`Metrics`]: to Prometheus (feature `prometheus`).
//!
#![cfg_attr(feature = "http", doc = include_str!("../guide/links/http.md"))]
#![cfg_attr(feature = "systemd", doc = include_str!("../guide/links/systemd.md"))]
#![cfg_attr(feature = "beacon", doc = include_str!("../guide/links/beacon.md"))]
#![cfg_attr(feature = "prometheus", doc = include_str!("../guide/links/prometheus.md"))]
#![doc = include_str!("../guide/links/elsewhere.md")]

#[cfg(feature = "beacon")]
mod beacon;
#[cfg(feature = "http")]
mod dashboard;
#[cfg(feature = "http")]
mod disclosure;
#[cfg(feature = "http")]
mod fleet_events;
#[cfg(feature = "http")]
mod health;
#[cfg(feature = "prometheus")]
mod metrics;
#[cfg(any(feature = "http", all(unix, feature = "systemd")))]
mod policies;
#[cfg(any(feature = "beacon", feature = "http", all(unix, feature = "systemd")))]
mod process_health;
#[cfg(any(feature = "beacon", all(unix, feature = "systemd")))]
mod reporter;
#[cfg(feature = "http")]
mod selection;
#[cfg(feature = "http")]
mod store_reader;
#[cfg(feature = "systemd")]
mod systemd;
#[cfg(any(feature = "beacon", feature = "http"))]
mod views;

#[cfg(feature = "beacon")]
pub use beacon::{Beacon, RunningBeacon};
#[cfg(feature = "http")]
pub use health::{HealthEndpoint, RunningHealthEndpoint};
#[cfg(feature = "prometheus")]
pub use metrics::Metrics;
#[cfg(feature = "systemd")]
pub use systemd::SystemdNotifier;
