//! Authentication of requests.

use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, ORIGIN};
use subtle::ConstantTimeEq;

use super::service::Refusal;

/// A secret. It is never shown.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    pub(super) const fn new(token: String) -> Self {
        Self(token)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares in a time that does not depend on the content. (The length is no secret.)
    fn is(&self, given: &[u8]) -> bool {
        // An empty token would match every request without one.
        !self.is_empty() && bool::from(self.0.as_bytes().ct_eq(given))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Refuses a request whose headers lack the token.
pub(super) fn check(token: Option<&Token>, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = token else {
        // Without a token, only this host has access. Web pages in a browser on this host have it
        // too, and browsers mark their requests.
        return if headers.contains_key(ORIGIN) {
            Err(Refusal::new(403, "requests from web pages need a token"))
        } else {
            Ok(())
        };
    };
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let right = match (given.next(), given.next()) {
        (Some(given), None) => bearer(given.as_bytes()).is_some_and(|given| token.is(given)),
        _ => false,
    };
    if right {
        return Ok(());
    }
    Err(Refusal::new(
        401,
        "the token is missing or wrong: Authorization: Bearer …",
    ))
}

/// The token of a bearer scheme, whose name is case-insensitive.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, given) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(token: &str, given: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for given in given {
            headers.append(AUTHORIZATION, given.parse().unwrap());
        }
        check(Some(&Token::new(token.into())), &headers).is_ok()
    }

    #[test]
    fn only_the_whole_token_matches() {
        assert!(asked("s3cret", &["Bearer s3cret"]));
        assert!(asked("s3cret", &["bearer s3cret"]));
        for wrong in [
            &[][..],
            &["s3cret"],
            &["Basic s3cret"],
            &["Bearer s3cre"],
            &["Bearer s3cret "],
            &["Bearer s3crex"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer s3cret", "Bearer s3cret"],
        ] {
            assert!(!asked("s3cret", wrong), "{wrong:?}");
        }
        assert!(!asked("", &["Bearer "]), "an empty token matches nothing");
        assert!(!format!("{:?}", Token::new("s3cret".into())).contains("s3cret"));
    }
}
