//! A store that is reached over HTTP.

mod client;
pub(crate) mod wire;

pub use client::{HttpStore, HttpStoreBuilder};
