//! What the documentation shows, run as it is shown.

mod examples;
mod pages;
#[path = "../support/mod.rs"]
mod support;
