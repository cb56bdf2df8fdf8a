//! What is served over HTTP (feature `http`).
//!
//! [`Coordinator`] serves a store to workers that reach no database.

mod batch;
mod coordinator;
mod core;
mod gate;
mod intake;
mod known;
mod server;
mod workers;

pub use coordinator::{Coordinator, RunningCoordinator};
