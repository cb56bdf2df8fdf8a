//! The dashboard: its page in a real browser, and its routes over plain sockets.

mod fleet;
mod page;
mod streams;
#[path = "../support/mod.rs"]
mod support;

use page::{assert_calm, row};
