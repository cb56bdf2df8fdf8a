//! Metrics for Prometheus: each metric's value, counters that never decrease, and the files of
//! rules and dashboards.

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
