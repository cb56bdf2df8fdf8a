//! What is served over HTTP (feature `http`).
//!
//! * [`Coordinator`] serves a store to workers that reach no database.
//! * [`HealthEndpoint`] tells how the workers of this process are, on a dashboard too.

mod batch;
mod coordinator;
mod core;
mod dashboard;
mod gate;
mod health;
mod intake;
mod known;
mod server;
mod view;
mod workers;

pub use coordinator::{Coordinator, RunningCoordinator};
pub use health::{HealthEndpoint, HealthServer};
