//! Programs that watch a service from outside: `heartbeat-monitor`, systemd, and readers of a
//! beacon.

mod check;
mod events;
mod fixtures;
mod heartbeat_monitor;
mod notify;
mod operation;
mod printed;
mod pty;
mod service;
mod status;
#[path = "../support/mod.rs"]
mod support;
mod top;
