//! Responses, which clients and proxies must not cache: they describe the present.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

/// The longest time until a response begins. The body of a stream may go on after that.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// When a client should retry if the server is busy, in seconds.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("10");

pub(crate) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, body.into()).into_response()
}

/// With the fields of objects in the order of their names.
pub(crate) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_value(value) {
        Ok(value) => respond(status, "application/json", value.to_string()),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

pub(crate) fn text_response(status: StatusCode, text: String) -> Response {
    respond(status, "text/plain; charset=utf-8", text)
}

/// A request that failed; the response is `{"error": message}`.
#[derive(Debug)]
pub(crate) struct RequestError {
    status: StatusCode,
    message: Cow<'static, str>,
}

impl RequestError {
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub(crate) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The caller sent a token, and it is not the right one.
    pub(crate) fn wrong_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "the token is wrong")
    }

    /// The request may succeed later.
    pub(crate) fn busy(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &json!({ "error": self.message }));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
        }
        response
    }
}

/// Limits the time until the response begins.
pub(crate) async fn with_timeout(request: Request, next: Next) -> Response {
    let response = timeout(RESPONSE_TIMEOUT, next.run(request)).await;
    response.unwrap_or_else(|_| {
        RequestError::busy(format!("no response within {RESPONSE_TIMEOUT:?}")).into_response()
    })
}
