//! Stores: what a registry writes to them, and what each of them guarantees.

mod attachment;
#[cfg(feature = "test-util")]
mod memory;
#[cfg(all(feature = "sqlite", feature = "test-util"))]
mod sqlite;
#[path = "../support/mod.rs"]
mod support;
