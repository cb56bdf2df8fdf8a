//! The settings that all connections of a store share.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Config;
use tokio_postgres::config::Host;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::credentials::{PostgresCredentials, Provider};
use super::error::PgError;
use super::hosts::Wanted;
use crate::error::Error;
use crate::fleet::event_rules::{LONGEST_STACK, LONGEST_TEXT};
use crate::fleet::rules::MOST_WITHDRAWN;
use crate::fleet::shapes::{DEFAULT_THRESHOLD, PIECES, severity_rank};
use crate::health::State;
use crate::sync::printable::UNPRINTABLE;
use crate::worker::LONGEST_NAME;

/// Placeholder for the name of the schema, with its quotes.
const SCHEMA: &str = "@schema@";
/// How many passwords that were in use are kept out of errors.
const MOST_SECRETS: usize = 4;

/// Not `Debug`: it contains the password.
pub(super) struct Settings {
    pub target: Target,
    /// The passwords in use, the newest first.
    pub secrets: Mutex<Vec<String>>,
    pub config: Config,
    pub wanted: Wanted,
    pub credentials: Option<Provider>,
    pub tls: Option<MakeRustlsConnect>,
    /// With its quotes.
    pub schema: String,
    pub migrations: bool,
    pub connect_timeout: Duration,
    pub statement_timeout: Duration,
    /// Begins a transaction with its time limits.
    pub begin: String,
    pub session_liveness: bool,
}

impl Settings {
    pub(super) fn sql(&self, text: &str) -> String {
        expand(text, &self.schema)
    }

    pub(super) fn error(&self, operation: &'static str, error: &PgError) -> Error {
        // A process may use several servers.
        let mut message = format!("{:?}: {error}", self.target);
        for secret in self.secrets.lock().iter() {
            message = message.replace(secret.as_str(), "***");
        }
        Error::store_kind(operation, error.kind(), message)
    }

    /// What to connect with, instead of what the URL has. Asks the application.
    pub(super) async fn credentials(&self) -> Result<PostgresCredentials, PgError> {
        let Some(provider) = &self.credentials else {
            return Ok(PostgresCredentials::default());
        };
        let credentials = provider.ask().await?;
        if let Some(password) = credentials
            .password
            .as_ref()
            .filter(|text| !text.is_empty())
        {
            let mut secrets = self.secrets.lock();
            secrets.retain(|known| known != password);
            secrets.insert(0, password.clone());
            secrets.truncate(MOST_SECRETS);
        }
        Ok(credentials)
    }
}

/// Where a store is, for messages. Without the password.
pub(super) struct Target(String);

impl Target {
    pub(super) fn of(config: &Config) -> Self {
        let hosts = config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        });
        let addresses = config.get_hostaddrs().iter().map(ToString::to_string);
        let hosts: Vec<String> = hosts.chain(addresses).collect();
        let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
        let ports = if ports.is_empty() {
            "5432".to_owned()
        } else {
            ports.join(",")
        };
        let user = config.get_user().unwrap_or_default();
        let database = config.get_dbname().unwrap_or(user);
        Self(format!("{user}@{}:{ports}/{database}", hosts.join(",")))
    }

    /// A server that only the application knows.
    pub(super) fn lent() -> Self {
        Self("a connection of the application's".to_owned())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fills in the name of the schema, with its quotes, and the constants that SQL shares with Rust.
pub(super) fn expand(sql: &str, schema: &str) -> String {
    sql.replace(SCHEMA, schema)
        .replace("@max_metadata@", &crate::worker::MOST_METADATA.to_string())
        .replace("@longest_name@", &LONGEST_NAME.to_string())
        .replace("@unprintable@", &character_class(&UNPRINTABLE))
        .replace("@spaces@", &character_class(&SPACES))
        .replace("@most_withdrawn@", &MOST_WITHDRAWN.to_string())
        .replace("@longest_event@", &LONGEST_TEXT.to_string())
        .replace("@longest_stack@", &LONGEST_STACK.to_string())
        .replace("@pieces@", &PIECES.to_string())
        .replace(
            "@default_stale_after@",
            &DEFAULT_THRESHOLD.as_micros().to_string(),
        )
        .replace("@worst_first@", &worst_first().join(", "))
        .replace("@severity@", &severity())
}

/// The white space that `str::trim` removes and that is printable.
const SPACES: [(char, char); 7] = [
    (' ', ' '),
    ('\u{a0}', '\u{a0}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{2000}', '\u{200a}'),
    ('\u{202f}', '\u{202f}'),
    ('\u{205f}', '\u{205f}'),
    ('\u{3000}', '\u{3000}'),
];

/// The characters for brackets in a regular expression. (No text of PostgreSQL has the first one.)
fn character_class(ranges: &[(char, char)]) -> String {
    let escaped = |character: char| format!("\\U{:08x}", u32::from(character.max('\u{1}')));
    let ranges = ranges.iter();
    ranges
        .map(|(first, last)| format!("{}-{}", escaped(*first), escaped(*last)))
        .collect()
}

/// The names of the states, quoted, the worst first.
fn worst_first() -> [String; State::ALL.len()] {
    State::WORST_FIRST.map(|state| format!("'{state}'"))
}

/// The branches of the SQL function that gives the severity of a state.
fn severity() -> String {
    let states = State::WORST_FIRST.into_iter();
    let branches = states.map(|state| format!("WHEN '{state}' THEN {}", severity_rank(state)));
    branches.collect::<Vec<_>>().join(" ")
}
