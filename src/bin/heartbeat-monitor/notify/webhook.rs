//! Posts notifications to a URL. The URL may contain a secret: only its host is ever shown.

use std::time::Duration;

use ureq::http::Uri;
use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER};
use worker_heartbeat::BoxError;

use super::queue::Queue;
use super::{Failure, Target};
use crate::store::UsageError;
use crate::text::clean;

/// The time limit of an attempt, from the name of the host to the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

pub struct Webhook {
    url: String,
    host: String,
    agent: ureq::Agent,
}

impl Webhook {
    pub fn new(url: &str) -> Result<Self, BoxError> {
        let invalid = || {
            let message = "--notify takes a URL such as https://hooks.example.com/…, without a user \
                           name (not shown, because it may contain a secret)";
            UsageError(message.to_owned())
        };
        let uri: Uri = url.trim().parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        let scheme = uri.scheme_str().unwrap_or_default();
        if !["http", "https"].contains(&scheme) || authority.as_str().contains('@') {
            return Err(invalid().into());
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            // A redirected request would lose its body.
            .max_redirects(0)
            .user_agent(concat!("heartbeat-monitor/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            url: url.trim().to_owned(),
            host: clean(&format!("{scheme}://{authority}")),
            agent: ureq::Agent::new_with_config(config),
        })
    }
}

impl Target for Webhook {
    fn name(&self) -> String {
        self.host.clone()
    }

    fn deliver(&self, id: &str, body: &[u8], _queue: &Queue) -> Result<(), Failure> {
        let request = self.agent.post(&self.url);
        let request = request.header(CONTENT_TYPE, "application/json");
        let answer = request.header("Idempotency-Key", id).send(body);
        let answer = answer.map_err(|error| Failure::new(describe(&error)))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let asked = answer.headers().get(RETRY_AFTER);
        let seconds = asked.and_then(|value| value.to_str().ok()?.parse().ok());
        Err(Failure {
            reason: format!("it answered with status {}", answer.status().as_u16()),
            retry_after: seconds.map(Duration::from_secs),
        })
    }
}

/// The texts of other errors may contain the URL.
fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => format!("no answer within {} s", TIMEOUT.as_secs()),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::HostNotFound => "its host has no address".to_owned(),
        ureq::Error::ConnectionFailed => "no connection".to_owned(),
        ureq::Error::Rustls(error) => format!("TLS: {error}"),
        ureq::Error::Tls(error) => format!("TLS: {error}"),
        ureq::Error::Protocol(_) => "its answer is not HTTP".to_owned(),
        _ => "the request failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_of_a_url_is_shown() {
        let webhook =
            Webhook::new("https://hooks.example.com:8443/T000/s3cret?token=s3cret").unwrap();
        assert_eq!(webhook.name(), "https://hooks.example.com:8443");
        for odd in [
            "s3cret",
            "ftp://host/s3cret",
            "https://",
            "https://me:s3cret@host/",
            "http://a b/s3cret",
        ] {
            let Err(error) = Webhook::new(odd) else {
                panic!("{odd}")
            };
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let agent = ureq::Agent::new_with_defaults();
        for odd in ["s3cret", "http://[s3cret]/", "foo://s3cret/s3cret"] {
            let error = agent.post(odd).send_empty().unwrap_err();
            assert!(!describe(&error).contains("s3cret"), "{error}");
        }
    }
}
