//! The fleet's protocol over HTTP: the store that speaks it, and the coordinator that serves it.

mod client;
mod items;
mod server;
mod wire;

pub use client::{HttpStore, HttpStoreBuilder};
pub use server::{Coordinator, RunningCoordinator};
