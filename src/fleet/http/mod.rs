//! A store that is reached over HTTP.

mod client;
mod items;
pub(crate) mod wire;

pub use client::{HttpStore, HttpStoreBuilder};
