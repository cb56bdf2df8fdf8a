//! Serving bytes over HTTP, with limits. Knows nothing of what is served.

pub(crate) mod server;
pub(crate) mod single_flight;
