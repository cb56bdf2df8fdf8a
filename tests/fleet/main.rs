//! Stores: what a registry writes to them, and what each of them guarantees.

mod attachment;
#[cfg(feature = "test-util")]
mod memory;
#[cfg(all(feature = "sqlite", feature = "test-util"))]
mod sqlite;
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "test-util")]
mod third_party;

/// Not a test: what the processes do that the tests of the store in a file start.
#[test]
#[cfg(all(feature = "sqlite", feature = "test-util"))]
fn stage() {
    if let Some(role) = support::process::role() {
        sqlite::play(&role);
    }
}
