//! The stores that need no server conform to the contract of stores.

use worker_heartbeat::MemoryStore;
use worker_heartbeat::fleet::conformance;

#[test]
fn the_store_in_memory_conforms() {
    conformance::assert_conforms(&MemoryStore::new());
}
