//! Every store that needs no server does what a store has to do.

use worker_heartbeat::MemoryStore;
use worker_heartbeat::fleet::conformance;

#[test]
fn the_store_in_memory_conforms() {
    conformance::assert_conforms(&MemoryStore::new());
}
