//! What the documentation shows, run as it is shown.

mod escalation;
mod examples;
mod files;
mod pages;
#[path = "../support/mod.rs"]
mod support;
