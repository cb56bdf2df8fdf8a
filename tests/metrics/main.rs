//! What Prometheus is told: each metric's value, counters that never go back, and the files that are
//! written for it.

#[path = "../support/mod.rs"]
mod support;

mod counters;
mod files;
mod fleet;
#[cfg(feature = "http")]
mod http;
mod labels;
mod scrape;
mod values;
