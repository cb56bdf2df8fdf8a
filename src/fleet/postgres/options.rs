//! How to connect to PostgreSQL, and what to do there.

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::PostgresStore;
use super::migrate;
use super::settings::{Settings, Target};
use super::tls;
use crate::error::Error;

const DEFAULT_SCHEMA: &str = "worker_heartbeat";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
/// The server cuts longer names, so two of them could be one.
const LONGEST_NAME: usize = 63;
const APPLICATION_NAME: &str = "worker-heartbeat";

/// How to connect to PostgreSQL, and what to do there; for a [`PostgresStore`].
///
/// ```no_run
/// use std::time::Duration;
/// use worker_heartbeat::PostgresOptions;
///
/// let store = PostgresOptions::new()
///     .schema("pm_pipeline")
///     .statement_timeout(Duration::from_secs(5))
///     .connect("postgres://app@db.example.com/app?sslmode=require")?;
/// # Ok::<(), worker_heartbeat::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is connected before connect() or open()"]
pub struct PostgresOptions {
    schema: String,
    migrations: bool,
    connect_timeout: Option<Duration>,
    statement_timeout: Duration,
    tcp_user_timeout: Option<Duration>,
    session_liveness: bool,
    root_certificate: Option<PathBuf>,
}

impl PostgresOptions {
    /// The defaults, as each method names them.
    pub fn new() -> Self {
        Self {
            schema: DEFAULT_SCHEMA.to_owned(),
            migrations: true,
            connect_timeout: None,
            statement_timeout: DEFAULT_STATEMENT_TIMEOUT,
            tcp_user_timeout: None,
            session_liveness: true,
            root_certificate: None,
        }
    }

    /// The schema that everything is in; `worker_heartbeat` by default. ASCII letters, digits, `_`
    /// and `-`.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Whether the schema is set up, and brought up to date, when connecting; `true` by default.
    /// Otherwise somebody else does that, with [`migration_sql`](Self::migration_sql), and it is
    /// only checked.
    pub const fn migrations(mut self, migrations: bool) -> Self {
        self.migrations = migrations;
        self
    }

    /// How long it may take until a connection can be used; that of the URL by default, or 5 s.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// How long a call may take, other than to connect; 5 s by default. Kept on both sides: a server
    /// that answers ends the statement, and one that does not is given up. (Without
    /// [`session_liveness`](Self::session_liveness), only on this side. Setting up the schema may take
    /// a minute.)
    pub const fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// After this time without a sign that what was sent has arrived, the kernel gives a connection
    /// up; that of the URL by default, or 10 s. Linux only.
    pub const fn tcp_user_timeout(mut self, timeout: Duration) -> Self {
        self.tcp_user_timeout = Some(timeout);
        self
    }

    /// Whether the end of a process's session tells that the process is gone; `true` by default. A
    /// worker of such a process is dead within seconds then, instead of at its `stale_after`; it takes
    /// a small statement each 1.5 s.
    ///
    /// **Switch it off behind a proxy that pools transactions**, such as PgBouncer with
    /// `pool_mode = transaction`: there, a session is not a process's own. Such a proxy is noticed,
    /// as well as one can, and then nothing is concluded; but what is set for a session there may
    /// reach other clients.
    pub const fn session_liveness(mut self, session_liveness: bool) -> Self {
        self.session_liveness = session_liveness;
        self
    }

    /// A PEM file with the root certificates that the server's has to come from; those of the
    /// system by default.
    ///
    /// They are used with `sslmode=require`, which checks the server's certificate and its name (so
    /// do `verify-ca` and `verify-full`, which mean the same here). With `sslmode=prefer`, the
    /// default, nothing is checked unless this file is given.
    pub fn root_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificate = Some(path.into());
        self
    }

    /// Connects, and sets up the schema unless that is switched off. The URL is one of libpq's:
    /// `postgres://user:password@host:port/database?sslmode=require`, or `host=... user=...`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL or an option is not allowed; [`Error::Store`] if the server
    /// cannot be reached, or refuses.
    pub fn connect(self, url: &str) -> Result<PostgresStore, Error> {
        let store = self.open(url)?;
        store.reach()?;
        Ok(store)
    }

    /// As [`connect`](Self::connect), but connects at the first use: a process can start while the
    /// server is down, and its workers register later.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL or an option is not allowed.
    pub fn open(self, url: &str) -> Result<PostgresStore, Error> {
        Ok(PostgresStore::of(self.settings(url)?))
    }

    /// What sets up the schema and brings it up to date, as plain SQL; for `psql`, by somebody who
    /// may do that. It can be run again and again.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name of the schema is not allowed.
    pub fn migration_sql(&self) -> Result<String, Error> {
        Ok(migrate::script(&quoted(&self.schema)?))
    }

    fn settings(self, url: &str) -> Result<Settings, Error> {
        let schema = quoted(&self.schema)?;
        let mut config = parsed(url)?;
        let connect_timeout = self
            .connect_timeout
            .or_else(|| config.get_connect_timeout().copied())
            .unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        let tcp_user_timeout = self
            .tcp_user_timeout
            .or_else(|| config.get_tcp_user_timeout().copied())
            .unwrap_or(DEFAULT_TCP_USER_TIMEOUT);
        for (name, timeout) in [
            ("connect_timeout", connect_timeout),
            ("statement_timeout", self.statement_timeout),
            ("tcp_user_timeout", tcp_user_timeout),
        ] {
            if timeout < SHORTEST_TIMEOUT {
                let allowed = format!("at least {SHORTEST_TIMEOUT:?}");
                return Err(Error::invalid(name, format!("{timeout:?}"), allowed));
            }
        }
        // So that the last one of several hosts is tried in time, too.
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
        let hosts = u32::try_from(hosts.max(1)).unwrap_or(u32::MAX);
        config
            .connect_timeout(connect_timeout / hosts)
            .tcp_user_timeout(tcp_user_timeout)
            .keepalives_idle(tcp_user_timeout);
        if config.get_application_name().is_none() {
            config.application_name(APPLICATION_NAME);
        }
        let remote = |host: &Host| matches!(host, Host::Tcp(_));
        let mode = config.get_ssl_mode();
        let tls = if config.get_hosts().iter().any(remote) || mode != SslMode::Prefer {
            tls::connector(mode, self.root_certificate.as_deref())?
        } else {
            None
        };
        Ok(Settings {
            target: Target::of(&config),
            secret: config
                .get_password()
                .map(|password| String::from_utf8_lossy(password).into_owned())
                .filter(|password| !password.is_empty()),
            config,
            tls,
            schema,
            migrations: self.migrations,
            connect_timeout,
            statement_timeout: self.statement_timeout,
            session_liveness: self.session_liveness,
        })
    }
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Names without a quote, a backslash or a dollar can be put into any SQL.
fn quoted(schema: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let allowed = !schema.is_empty()
        && schema.len() <= LONGEST_NAME
        && schema.chars().all(plain)
        && !schema.starts_with("pg_");
    if allowed {
        Ok(format!("\"{schema}\""))
    } else {
        Err(Error::invalid(
            "schema",
            format!("{schema:?}"),
            "1 to 63 ASCII letters, digits, `_` and `-`, not beginning with `pg_`",
        ))
    }
}

/// What is wrong with it is not told in its own words: they could be a part of the password.
fn parsed(url: &str) -> Result<Config, Error> {
    let strict = url
        .replace("sslmode=verify-full", "sslmode=require")
        .replace("sslmode=verify-ca", "sslmode=require");
    let invalid = |what: &str| {
        Error::invalid(
            "url",
            format!("{what} (it is not shown: it may hold a password)"),
            "postgres://user:password@host:port/database?sslmode=require, special characters as \
             %XX, or host=.. port=.. user=.. password=.. dbname=..",
        )
    };
    let config: Config = strict.parse().map_err(|_| invalid("cannot be read"))?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(invalid("names no host"));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_anything_else_are_refused() {
        for name in ["worker_heartbeat", "pm_pipeline", "A-1", &"x".repeat(63)] {
            assert_eq!(quoted(name).unwrap(), format!("\"{name}\""));
        }
        for name in [
            "",
            "pg_catalog",
            "a b",
            "a\"b",
            "a'b",
            "a;b",
            "a$b",
            "ä",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(quoted(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_url_is_told_without_it() {
        for url in [
            "postgres://app:hunter2@/db",
            "postgres://app:x@host/db?hunter2=1",
            "postgres://app:hunter2@host:port/db",
            "host=h password='hunter2",
            "password=hunter2",
            "hunter2",
        ] {
            let options = PostgresOptions::new();
            let error = options.open(url).unwrap_err();
            for text in [error.to_string(), format!("{error:?}")] {
                assert!(
                    !text.contains("hunter2") && !text.contains("ter2"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn the_url_says_how_long_unless_the_options_do() {
        let settings = |options: PostgresOptions, url| options.settings(url).unwrap();
        let url = "postgres://a@h/d?connect_timeout=3";
        let new = PostgresOptions::new;
        let short = Duration::from_millis(70);
        assert_eq!(
            settings(new(), "postgres://a@h/d").connect_timeout,
            DEFAULT_CONNECT_TIMEOUT
        );
        assert_eq!(settings(new(), url).connect_timeout.as_secs(), 3);
        let both = settings(new().connect_timeout(short), url);
        assert_eq!(both.connect_timeout, short);
        let none = new().statement_timeout(Duration::ZERO).settings(url);
        assert!(matches!(none, Err(Error::Invalid { field, .. }) if field == "statement_timeout"));
    }

    #[test]
    fn tls_follows_the_url() {
        let tls = |url: &str| {
            PostgresOptions::new()
                .settings(url)
                .map(|s| s.tls.is_some())
        };
        assert!(!tls("postgres://a@h/d?sslmode=disable").unwrap());
        assert!(tls("postgres://a@h/d").unwrap());
        assert!(tls("postgres://a@h/d?sslmode=prefer").unwrap());
        assert!(!tls("host=/tmp user=a").unwrap(), "nobody listens there");
        let missing = PostgresOptions::new()
            .root_certificate("/nonexistent.pem")
            .settings("postgres://a@h/d?sslmode=verify-full");
        assert!(missing.is_err());
    }
}
