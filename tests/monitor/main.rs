//! Programs that watch a service from outside: `heartbeat-monitor`, systemd, and readers of a
//! beacon.

mod heartbeat_monitor;
mod service;
#[path = "../support/mod.rs"]
mod support;
