//! The query parameters of a request.

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

/// Names and values in the order of the query string; a name may occur more than once.
pub(crate) struct QueryParameters(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for QueryParameters {
    type Rejection = QueryRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Query(parameters) = Query::from_request_parts(parts, state).await?;
        Ok(Self(parameters))
    }
}

impl QueryParameters {
    /// The first value of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.get_all(name).next()
    }

    /// All values of this name.
    pub(crate) fn get_all(&self, name: &str) -> impl Iterator<Item = &str> {
        let parameters = self.0.iter().filter(move |(other, _)| other == name);
        parameters.map(|(_, value)| value.as_str())
    }
}
