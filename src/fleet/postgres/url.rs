//! Connection strings in libpq's format, as URLs and as `key=value`.
//!
//! tokio-postgres reads what it knows; this reads the rest, so that no parameter of libpq is refused
//! without a name. Errors quote nothing of a string that may be the password.

use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use super::hosts::{self, Wanted};
use crate::error::Error;

/// What tokio-postgres reads.
const READ: [&str; 21] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "keepalives_count",
    "channel_binding",
    "load_balance_hosts",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
];
/// Parameters of libpq that ask for what is so anyway, if they have one of these values.
const GIVEN: [(&str, &[&str]); 7] = [
    (
        "client_encoding",
        &["utf8", "UTF8", "UTF-8", "utf-8", "auto"],
    ),
    ("gssencmode", &["disable", "prefer"]),
    ("sslcompression", &["0"]),
    ("sslsni", &["1"]),
    ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ("replication", &["false", "off", "no", "0"]),
    ("sslcertmode", &["disable", "allow"]),
];
/// The other parameters of libpq: named in the error wherever they are.
const NOT_SUPPORTED: [&str; 16] = [
    "fallback_application_name",
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "passfile",
    "require_auth",
    "requirepeer",
    "service",
    "ssl_max_protocol_version",
    "sslcert",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslpassword",
];

pub(super) struct Url {
    pub config: Config,
    pub wanted: Wanted,
    pub root: Option<Root>,
}

/// The `sslrootcert` of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Root {
    System,
    File(PathBuf),
}

/// A parameter, as it is written and as it is meant.
struct Parameter {
    written: String,
    key: String,
    value: String,
    /// No part of it can belong to the password.
    is_plain: bool,
}

pub(super) fn parse(text: &str) -> Result<Url, Error> {
    let (head, separator, parameters) = split(text)?;
    let mut target = None;
    let mut root = None;
    let mut mode = None;
    let mut kept = Vec::new();
    for parameter in &parameters {
        let Parameter { key, value, .. } = parameter;
        match key.as_str() {
            "sslmode" => mode = Some(ssl_mode(parameter)?),
            "sslrootcert" if value == "system" => root = Some(Root::System),
            "sslrootcert" => root = Some(Root::File(PathBuf::from(value))),
            "target_session_attrs" => target = Some(target_of(parameter)?),
            "keepalives_count" => {
                let renamed =
                    parameter
                        .written
                        .replacen("keepalives_count", "keepalives_retries", 1);
                kept.push(renamed);
            }
            known if READ.contains(&known) => kept.push(parameter.written.clone()),
            known => match GIVEN.iter().find(|(name, _)| *name == known) {
                Some((_, values)) if values.contains(&value.as_str()) => {}
                Some((_, values)) => return Err(refused(parameter, &values.join(", "))),
                None => return Err(unknown(parameter)),
            },
        }
    }
    let rest = format!("{head}{}", kept.join(separator));
    let rest = rest.strip_suffix('?').unwrap_or(&rest);
    let mut config: Config = rest
        .parse()
        .map_err(|error| invalid(&what_is_wrong(&error)))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(invalid("names no host"));
    }
    let mode = mode.unwrap_or(match root {
        Some(Root::System) => SslMode::Require,
        _ => SslMode::Prefer,
    });
    if root == Some(Root::System) && mode == SslMode::Prefer {
        return Err(invalid("has sslrootcert=system with a weak sslmode"));
    }
    config.ssl_mode(mode);
    let several = hosts::count(&config) > 1;
    let default = if several {
        Wanted::ReadWrite
    } else {
        Wanted::Any
    };
    Ok(Url {
        config,
        wanted: target.unwrap_or(default),
        root,
    })
}

fn ssl_mode(parameter: &Parameter) -> Result<SslMode, Error> {
    Ok(match parameter.value.as_str() {
        "disable" => SslMode::Disable,
        // Encrypted if the server can: no weaker than what is asked for.
        "allow" | "prefer" => SslMode::Prefer,
        "require" | "verify-ca" | "verify-full" => SslMode::Require,
        _ => {
            let modes = "disable, allow, prefer, require, verify-ca, verify-full";
            return Err(refused(parameter, modes));
        }
    })
}

fn target_of(parameter: &Parameter) -> Result<Wanted, Error> {
    let found = Wanted::ALL
        .iter()
        .find(|(name, _)| *name == parameter.value);
    found.map(|(_, target)| *target).ok_or_else(|| {
        let names: Vec<&str> = Wanted::ALL.iter().map(|(name, _)| *name).collect();
        refused(parameter, &names.join(", "))
    })
}

/// What tokio-postgres says, without what it quotes.
fn what_is_wrong(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    let message = error.source().map(ToString::to_string).unwrap_or_default();
    if message.starts_with("invalid value for option `") {
        format!("cannot be read: {message}")
    } else {
        "cannot be read".to_owned()
    }
}

fn invalid(what: &str) -> Error {
    Error::invalid(
        "url",
        format!("{what} (not shown, because it may contain a password)"),
        "postgres://user:password@host:port/database?sslmode=require, special characters as %XX, or \
         host=.. port=.. user=.. password=.. dbname=..",
    )
}

fn refused(parameter: &Parameter, allowed: &str) -> Error {
    let value = if parameter.is_plain {
        &parameter.value
    } else {
        "***"
    };
    Error::invalid("url", format!("{}={value}", parameter.key), allowed)
}

fn unknown(parameter: &Parameter) -> Error {
    let key = parameter.key.as_str();
    let value = if NOT_SUPPORTED.contains(&key) {
        format!("the parameter {key}, which is not supported")
    } else if parameter.is_plain {
        format!("the unknown parameter {key:?}")
    } else {
        "an unknown parameter (not shown, because it may be part of a password)".to_owned()
    };
    Error::invalid("url", value, READ.join(", "))
}

/// What stands before the parameters, what separates them, and the parameters.
fn split(text: &str) -> Result<(String, &'static str, Vec<Parameter>), Error> {
    let scheme = ["postgres://", "postgresql://"];
    let Some(prefix) = scheme.iter().find(|prefix| text.starts_with(**prefix)) else {
        return Ok((String::new(), " ", pairs(text)?));
    };
    // A password ends at the first `@`, whatever it contains.
    let credentials = text.get(prefix.len()..).and_then(|rest| rest.find('@'));
    let from = prefix.len() + credentials.map_or(0, |at| at + 1);
    let start = text.get(from..).and_then(|rest| rest.find('?'));
    let Some(start) = start.map(|at| from + at) else {
        return Ok((text.to_owned(), "&", Vec::new()));
    };
    let (head, query) = text.split_at(start + 1);
    // Without a `@`, a password may have been meant that another character ended.
    let has_path = head
        .get(prefix.len()..)
        .is_some_and(|head| head.contains('/'));
    let is_plain = !query.contains('@') && (credentials.is_some() || has_path);
    let mut parameters = Vec::new();
    for written in query.split('&').filter(|written| !written.is_empty()) {
        let (key, value) = written
            .split_once('=')
            .ok_or_else(|| invalid("has a parameter without a value"))?;
        parameters.push(Parameter {
            written: written.to_owned(),
            key: decoded(key)?,
            value: decoded(value)?,
            is_plain,
        });
    }
    Ok((head.to_owned(), "&", parameters))
}

fn decoded(text: &str) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(invalid("has a % without two hexadecimal digits"));
        };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| invalid("is not valid UTF-8"))
}

/// Pairs of `key = value`, where a value may be quoted, and `\` escapes.
fn pairs(text: &str) -> Result<Vec<Parameter>, Error> {
    let mut rest = text.chars().peekable();
    let mut parameters = Vec::new();
    // A password with a space that is not quoted goes on as if it were other parameters.
    let mut is_plain = true;
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let mut key = String::new();
        while let Some(c) = rest.next_if(|c| *c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if key.is_empty() && rest.peek().is_none() {
            return Ok(parameters);
        }
        if rest.next() != Some('=') {
            return Err(invalid("cannot be read"));
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = rest.next_if(|c| *c == '\'').is_some();
        let mut value = String::new();
        loop {
            match rest.next_if(|c| quoted || !c.is_whitespace()) {
                Some('\'') if quoted => break,
                Some('\\') => value.extend(rest.next()),
                Some(c) => value.push(c),
                None if quoted => return Err(invalid("has a quote that does not end")),
                None => break,
            }
        }
        let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
        is_plain &= key != "password";
        parameters.push(Parameter {
            written: format!("{key}='{escaped}'"),
            key,
            value,
            is_plain,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(url: &str) -> String {
        parse(url).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn libpq_parameters_are_understood_or_named() {
        for (mode, meant) in [
            ("disable", SslMode::Disable),
            ("allow", SslMode::Prefer),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::Require),
            ("verify-full", SslMode::Require),
        ] {
            for url in [
                format!("postgres://a@h/d?sslmode={mode}&connect_timeout=3"),
                format!("host=h sslmode={mode} connect_timeout = '3'"),
            ] {
                let read = parse(&url).unwrap();
                assert_eq!(read.config.get_ssl_mode(), meant, "{url}");
                let timeout = read.config.get_connect_timeout().unwrap();
                assert_eq!(timeout.as_secs(), 3);
            }
        }
        let read =
            parse("postgresql://a@h/d?sslrootcert=%2Fetc%2Fca.pem&gssencmode=prefer").unwrap();
        assert_eq!(read.root, Some(Root::File("/etc/ca.pem".into())));
        let read = parse("postgres://a@h/d?sslrootcert=system").unwrap();
        assert_eq!(read.root, Some(Root::System));
        assert_eq!(read.config.get_ssl_mode(), SslMode::Require);
        for (url, named) in [
            ("postgres://a:x@h/d?sslmode=alow", "sslmode=alow"),
            ("postgres://a:x@h/d?pgbouncer=true", "\"pgbouncer\""),
            ("postgres://a:x@h/d?sslcert=c.pem", "sslcert"),
            (
                "postgres://a:x@h/d?gssencmode=require",
                "gssencmode=require",
            ),
            ("postgres://a:x@h/d?connect_timeout=soon", "connect_timeout"),
            (
                "postgres://a:x@h/d?target_session_attrs=master",
                "target_session_attrs=master",
            ),
            ("host=h passfile=/a", "passfile"),
            ("host=h foo=1", "\"foo\""),
        ] {
            assert!(message(url).contains(named), "{url}: {}", message(url));
        }
    }

    #[test]
    fn a_password_is_not_taken_for_a_parameter() {
        let password = |url: &str| {
            let read = parse(url).unwrap();
            String::from_utf8(read.config.get_password().unwrap().to_vec()).unwrap()
        };
        assert_eq!(
            password("postgres://a:x?sslmode=allow@h/d"),
            "x?sslmode=allow"
        );
        assert_eq!(
            password("postgres://a:sslmode=verify-full@h/d"),
            "sslmode=verify-full"
        );
        assert_eq!(password("host=h password='a \\'b\\\\'"), "a 'b\\");
        assert_eq!(password("host=h password=a\\ b"), "a b");
        for url in [
            "host=h password=a hunter2=b",
            "postgres://app:x?hunter2=1",
            "host=h password='hunter2",
            "hunter2",
        ] {
            assert!(!message(url).contains("hunter2"), "{url}: {}", message(url));
        }
    }

    #[test]
    fn several_hosts_are_searched_for_one_that_accepts_writes() {
        let target = |url: &str| parse(url).unwrap().wanted;
        assert_eq!(target("postgres://a@h/d"), Wanted::Any);
        assert_eq!(target("postgres://a@h,i:1/d"), Wanted::ReadWrite);
        assert_eq!(target("host=h,i target_session_attrs=any"), Wanted::Any);
        let primary = "postgres://a@h/d?target_session_attrs=primary";
        assert_eq!(target(primary), Wanted::Primary);
    }
}
