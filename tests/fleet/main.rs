//! Stores: what a registry writes to them, and what each of them guarantees.

mod attachment;
mod busy;
#[cfg(feature = "test-util")]
mod events;
mod lives;
mod lost_answers;
mod lost_leases;
#[cfg(feature = "test-util")]
mod memory;
mod numbers;
mod reads;
#[cfg(all(feature = "sqlite", feature = "test-util"))]
mod sqlite;
#[cfg(all(feature = "sqlite", feature = "test-util"))]
mod sqlite_files;
#[cfg(all(feature = "sqlite", feature = "test-util"))]
mod sqlite_shared;
#[path = "../support/mod.rs"]
mod support;
mod sweeper;
#[cfg(feature = "test-util")]
mod third_party;

/// Not a test: the processes that the tests of the SQLite store start run this.
#[test]
#[cfg(all(feature = "sqlite", feature = "test-util"))]
fn stage() {
    if let Some(role) = support::process::role() {
        sqlite::play(&role);
    }
}
