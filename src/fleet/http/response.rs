//! What an answer to a request means, where it is not the expected one. Pure.

use std::io;

use ureq::http::HeaderMap;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER};

use crate::error::{Error, StoreErrorKind};
use crate::sync::printable::Printable;

/// The most characters of a coordinator's message in an error.
const LONGEST_MESSAGE: usize = 300;
/// The most characters of a header in an error.
const LONGEST_HEADER: usize = 100;

/// Why a request was not fulfilled.
#[derive(Debug)]
pub(super) struct Failure {
    pub scope: Scope,
    pub error: Error,
}

/// What a failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The size of the body.
    Size,
    /// One or more items of the body.
    Items,
    /// The connection was closed without an answer. The cause may be the size of the body: a server
    /// that refuses one early may close the connection before the client has sent it.
    Connection,
    /// The call as a whole.
    Call,
}

impl Failure {
    pub(super) fn call(error: Error) -> Self {
        let scope = Scope::Call;
        Self { scope, error }
    }
}

/// An answer, without its body.
pub(super) struct Head<'a> {
    pub status: u16,
    pub headers: &'a HeaderMap,
}

impl Head<'_> {
    /// The meaning of an answer whose status is not a success.
    pub(super) fn refusal(&self, operation: &'static str, body: &[u8]) -> Failure {
        let said = message(body);
        if self.status == 503 && is_busy(body) {
            let message = said.unwrap_or_default();
            let message = format!("the coordinator answers 503: {message}");
            return Failure::call(Error::store_kind(operation, StoreErrorKind::Busy, message));
        }
        let scope = match (self.status, &said) {
            (413, _) => Scope::Size,
            // Another version of the protocol is a matter of the whole call.
            (400, Some(text)) if is_about_version(text) => Scope::Call,
            (400 | 422, Some(_)) => Scope::Items,
            // The coordinator is full: it may accept some of the workers.
            (429, Some(_)) if operation == "register" => Scope::Items,
            _ => Scope::Call,
        };
        let error = self.refusal_error(operation, scope, said);
        Failure { scope, error }
    }

    fn refusal_error(&self, operation: &'static str, scope: Scope, said: Option<String>) -> Error {
        let status = self.status;
        if operation == "register" && scope != Scope::Call {
            let allowed = said.unwrap_or_else(|| "a smaller one".to_owned());
            let value = format!("refused by the coordinator, {status}");
            return Error::invalid("registration", value, allowed);
        }
        let kind = match (status, &said) {
            (401 | 403 | 407, _) => StoreErrorKind::Denied,
            (429, _) | (503, None) => StoreErrorKind::Busy,
            (502, None) => StoreErrorKind::Unreachable,
            (504, _) | (408, None) => StoreErrorKind::Timeout,
            (300..=399 | 404 | 405 | 501, _) => StoreErrorKind::Incompatible,
            (400, Some(text)) if is_about_version(text) => StoreErrorKind::Incompatible,
            _ => StoreErrorKind::Other,
        };
        let message = match said {
            Some(text) => format!("the coordinator answers {status}: {text}"),
            None => format!(
                "the coordinator, or a proxy before it, answers {status}{}",
                self.advice(operation)
            ),
        };
        Error::store_kind(operation, kind, message)
    }

    /// What to do about an answer that does not come from a coordinator.
    fn advice(&self, operation: &str) -> String {
        match self.status {
            300..=399 => match self.header(&LOCATION) {
                // What follows may be secret.
                Some(location) => {
                    let location = location.split(['?', '#']).next().unwrap_or_default();
                    format!(", with a redirection to {location}, which is not followed")
                }
                None => ", a redirection".to_owned(),
            },
            404 | 405 | 501 => format!(
                ": /api/store/{operation} is not there; check the path of the URL and the version of \
                 the coordinator"
            ),
            429 | 503 => match self.header(&RETRY_AFTER) {
                Some(pause) if pause.bytes().all(|byte| byte.is_ascii_digit()) => {
                    format!("; retry after {pause} s")
                }
                Some(pause) => format!("; retry after {pause}"),
                None => String::new(),
            },
            _ => String::new(),
        }
    }

    /// The meaning of a success with a body that is not a coordinator's.
    pub(super) fn misunderstood(&self, operation: &'static str, error: serde_json::Error) -> Error {
        let encoding = self.header(&CONTENT_ENCODING);
        let content = self.header(&CONTENT_TYPE);
        let content = content.filter(|content| !content.contains("json"));
        let what = match (encoding, content) {
            (Some(encoding), _) => format!(", with Content-Encoding: {encoding}"),
            (_, Some(content)) => format!(", with Content-Type: {content}"),
            _ => String::new(),
        };
        let status = self.status;
        let status = (status != 200).then(|| format!(", with status {status}"));
        let message = format!(
            "this is not a coordinator's answer{what}{}",
            status.unwrap_or_default()
        );
        Error::store_failed(operation, StoreErrorKind::Incompatible, message, error)
    }

    fn header(&self, name: &ureq::http::HeaderName) -> Option<String> {
        let value = self.headers.get(name)?.to_str().ok()?;
        let value: String = value.chars().take(LONGEST_HEADER).collect();
        Some(Printable(&value).to_string())
    }
}

fn is_about_version(text: &str) -> bool {
    text.starts_with("version ") && text.contains("of the protocol")
}

/// There is no answer.
pub(super) fn unanswered(operation: &'static str, error: ureq::Error) -> Failure {
    let (scope, kind, message) = match &error {
        ureq::Error::Timeout(_) => (Scope::Call, StoreErrorKind::Timeout, "no answer in time"),
        ureq::Error::Io(io) if is_closed(io) => (
            Scope::Connection,
            StoreErrorKind::Unreachable,
            "the connection was closed without an answer",
        ),
        _ => (
            Scope::Call,
            StoreErrorKind::Unreachable,
            "the coordinator cannot be reached",
        ),
    };
    let error = Error::store_failed(operation, kind, message, error);
    Failure { scope, error }
}

/// The connection was there, and is closed.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
    )
}

/// An answer began, and its body can't be read.
pub(super) fn unreadable(operation: &'static str, largest: u64, error: ureq::Error) -> Error {
    let (kind, message) = match &error {
        ureq::Error::Timeout(_) => (
            StoreErrorKind::Timeout,
            "the answer is incomplete".to_owned(),
        ),
        ureq::Error::BodyExceedsLimit(_) => (
            StoreErrorKind::Incompatible,
            format!("the answer is too large; allowed: {largest} bytes"),
        ),
        _ => (
            StoreErrorKind::Unreachable,
            "the answer is incomplete".to_owned(),
        ),
    };
    Error::store_failed(operation, kind, message, error)
}

/// The message of a coordinator's refusal, on one line and shortened: `the token is missing or wrong`.
fn message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct ErrorBody {
        error: String,
    }
    let body = serde_json::from_slice::<ErrorBody>(body).ok()?;
    let words: String = body.error.chars().take(LONGEST_MESSAGE).collect();
    Some(Printable(&words).to_string())
}

/// Whether the coordinator's store, or one record of it, is busy.
fn is_busy(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct ErrorBody<'a> {
        #[serde(borrow)]
        code: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<ErrorBody<'_>>(body).is_ok_and(|body| body.code == "busy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinators_message_stays_on_one_line_and_short() {
        assert_eq!(message(b"{\"error\":\"a\\nb\"}").unwrap(), "a\\nb");
        assert_eq!(message(b"<html>"), None);
        let long = format!("{{\"error\":\"{}\"}}", "x".repeat(10_000));
        assert!(message(long.as_bytes()).unwrap().len() < 400);
    }
}
