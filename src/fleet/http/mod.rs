//! The store protocol over HTTP: its client and its server.

mod client;
mod server;
mod wire;

pub use client::{HttpStore, HttpStoreBuilder};
pub use server::{Coordinator, RunningCoordinator};
