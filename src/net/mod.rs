//! Serving bytes over HTTP, with limits; independent of the content.

pub(crate) mod caller;
pub(crate) mod connections;
mod descriptors;
pub(crate) mod refusals;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod server;
pub(crate) mod single_flight;
