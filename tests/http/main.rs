//! The HTTP servers: the coordinator and the health endpoint, over real sockets.

#[cfg(feature = "test-util")]
mod coordinator;
mod coordinator_faults;
mod fleet_events;
mod health_endpoint;
mod lost_answers;
mod numbers;
mod policies;
mod protocol;
mod proxies;
mod reads;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod sweepers;
mod views;

/// Not a test: the process that a test kills runs this.
#[test]
fn stage() {
    if let Some(url) = support::process::role() {
        coordinator_faults::play(&url);
    }
}
