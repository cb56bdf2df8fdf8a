//! What the documentation shows, run as it is shown.

mod examples;
#[path = "../support/mod.rs"]
mod support;
