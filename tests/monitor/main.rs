//! Programs that watch a service from outside: `heartbeat-monitor`, systemd, and readers of a
//! beacon.

mod check;
mod fixtures;
mod heartbeat_monitor;
mod operation;
mod printed;
mod service;
mod status;
#[path = "../support/mod.rs"]
mod support;
