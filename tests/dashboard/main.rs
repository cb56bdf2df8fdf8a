//! The dashboard: its page in a real browser, and its routes over plain sockets.

mod page;
mod streams;
#[path = "../support/mod.rs"]
mod support;
