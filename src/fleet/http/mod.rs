//! The store protocol over HTTP: its client and its server.

mod batch;
mod builder;
mod client;
mod reduce;
mod response;
mod server;
mod wire;

pub use builder::HttpStoreBuilder;
pub use client::HttpStore;
pub use server::{Coordinator, RunningCoordinator};
