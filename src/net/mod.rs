//! Serving bytes over HTTP, with limits; independent of the content.

pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod server;
pub(crate) mod single_flight;
