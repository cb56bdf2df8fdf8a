//! Options of a PostgreSQL connection.

use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresStore;
use super::credentials::{PostgresCredentials, Provider};
use super::hosts::Wanted;
use super::lent::Source;
use super::migrate;
use super::names::{LONGEST_NAME, quoted};
use super::settings::{Settings, Target};
use super::tls;
use super::transaction;
use super::url::{self, Root, Url};
use crate::error::{BoxError, Error};

const DEFAULT_SCHEMA: &str = "worker_heartbeat";
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
const APPLICATION_NAME: &str = "worker-heartbeat";

/// Options of a [`PostgresStore`].
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
#[must_use = "does nothing before connect() or open()"]
pub struct PostgresOptions {
    schema: String,
    migrations: bool,
    connect_timeout: Option<Duration>,
    statement_timeout: Duration,
    tcp_user_timeout: Option<Duration>,
    session_liveness: bool,
    root_certificate: Option<PathBuf>,
    credentials: Option<Provider>,
}

impl PostgresOptions {
    /// The defaults, which each method names.
    pub fn new() -> Self {
        Self {
            schema: DEFAULT_SCHEMA.to_owned(),
            migrations: true,
            connect_timeout: None,
            statement_timeout: DEFAULT_STATEMENT_TIMEOUT,
            tcp_user_timeout: None,
            session_liveness: true,
            root_certificate: None,
            credentials: None,
        }
    }

    /// The schema of all tables, views and functions; `worker_heartbeat` by default. ASCII letters,
    /// digits, `_` and `-`.
    ///
    /// ```no_run
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// let store = PostgresOptions::new().schema("pm_pipeline").connect("postgres://app@localhost/app")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Whether the schema is set up, and brought up to date, when connecting; `true` by default.
    /// Otherwise its version is only checked; run [`migration_sql`](Self::migration_sql) to migrate
    /// it.
    ///
    /// ```no_run
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// // A role with more rights has run the migrations.
    /// let store = PostgresOptions::new().migrations(false).connect("postgres://app@localhost/app")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn migrations(mut self, migrations: bool) -> Self {
        self.migrations = migrations;
        self
    }

    /// Time limit for opening a connection; that of the URL by default, or 5 s. Several hosts are
    /// tried one by one, each within its share of what is left, so that one that accepts connections
    /// and never answers does not use up the time of the others.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Time limit for a call, without the time to connect; 5 s by default.
    ///
    /// Both sides enforce it: the server cancels a statement that takes longer than 0.9 of it, and one
    /// that waits for a lock longer than 0.6 of it. The limits are those of the statement's
    /// transaction, so that they also hold behind a proxy, and reach no other client. The caller asks
    /// a server that does not answer to cancel, which may take up to another half of the time.
    ///
    /// A commit that waits for a synchronous standby is never cancelled. The call fails in time; its
    /// connection is kept, and later calls of the same kind wait for it, so that no write is repeated
    /// behind it. Migrations may take a minute.
    pub const fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// The kernel closes a connection if sent data is not acknowledged for this time; that of the URL
    /// by default, or 10 s. Linux only.
    pub const fn tcp_user_timeout(mut self, timeout: Duration) -> Self {
        self.tcp_user_timeout = Some(timeout);
        self
    }

    /// Whether the end of a process's session proves that the process is gone; `true` by default. Its
    /// workers are dead within seconds then, instead of after `stale_after`. It costs a small statement
    /// every 1.5 s.
    ///
    /// Behind a proxy that pools connections, such as PgBouncer, processes share sessions, so their end
    /// proves nothing. A store detects such a proxy when it connects, and does without. Where you know
    /// of one, switch this off: connecting takes one attempt less then.
    ///
    /// ```no_run
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// // Through PgBouncer with pool_mode = transaction.
    /// let store = PostgresOptions::new()
    ///     .session_liveness(false)
    ///     .connect("postgres://app@pgbouncer:6432/app")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub const fn session_liveness(mut self, session_liveness: bool) -> Self {
        self.session_liveness = session_liveness;
        self
    }

    /// A PEM file with the root certificates that the server's certificate is checked against; the
    /// `sslrootcert` of the URL by default, or those of the system.
    ///
    /// They are used with `sslmode=require`, which checks the server's certificate and its name;
    /// `verify-ca` and `verify-full` mean the same. With `sslmode=prefer`, the default, and with
    /// `allow`, nothing is checked unless there is a file.
    ///
    /// ```no_run
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// let store = PostgresOptions::new()
    ///     .root_certificate("/etc/ssl/company-ca.pem")
    ///     .connect("postgres://app@db.example.com/app?sslmode=verify-full")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn root_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificate = Some(path.into());
        self
    }

    /// Asks for the credentials at each connect, for passwords that change, such as the tokens of a
    /// cloud's IAM or the users of a Vault. They take precedence over the URL's.
    ///
    /// It returns a password, as a `String`, or [`PostgresCredentials`] with a user. It is called on a
    /// thread of its own, within [`connect_timeout`](Self::connect_timeout). Connections that are open
    /// stay as they are.
    ///
    /// ```no_run
    /// use worker_heartbeat::{BoxError, PostgresCredentials, PostgresOptions};
    ///
    /// # fn token() -> Result<String, std::io::Error> { unimplemented!() }
    /// # fn lease() -> Result<(String, String), std::io::Error> { unimplemented!() }
    /// let store = PostgresOptions::new().credentials(token).connect("postgres://app@db/app")?;
    /// let store = PostgresOptions::new()
    ///     .credentials(|| {
    ///         let (user, password) = lease()?;
    ///         Ok::<_, BoxError>(PostgresCredentials::new(password).user(user))
    ///     })
    ///     .connect("postgres://db/app")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn credentials<C, E>(
        mut self,
        credentials: impl Fn() -> Result<C, E> + Send + Sync + 'static,
    ) -> Self
    where
        C: Into<PostgresCredentials>,
        E: Into<BoxError>,
    {
        self.credentials = Some(Provider::new(credentials));
        self
    }

    /// Reads the password from a file at each connect, for a secret that is mounted as a file and
    /// replaced from time to time. The file has the password alone; a line break at its end does not
    /// belong to it.
    ///
    /// ```no_run
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// let store = PostgresOptions::new()
    ///     .password_file("/run/secrets/postgres-password")
    ///     .connect("postgres://app@db/app")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Some(Provider::file(path.into()));
        self
    }

    /// Connects, and sets up the schema unless that is switched off. The URL has libpq's format:
    /// `postgres://user:password@host:port/database?sslmode=require`, or `host=... user=...`.
    ///
    /// Of several hosts, the store uses the first one that is as `target_session_attrs` asks: with
    /// `read-write`, their default, one that accepts writes. `primary`, `standby`, `prefer-standby`,
    /// `read-only` and `any` are the others. After a failover, the next call finds the new primary. A
    /// parameter that is not understood is an error that names it.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// let store = PostgresOptions::new()
    ///     .connect_timeout(Duration::from_secs(2))
    ///     .connect("host=db.example.com user=app dbname=app sslmode=require")?;
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL or an option is not allowed; [`Error::Store`] if the server
    /// cannot be reached, or refuses.
    pub fn connect(self, url: &str) -> Result<PostgresStore, Error> {
        let store = self.connect_lazy(url)?;
        store.ensure_connected()?;
        Ok(store)
    }

    /// As [`connect`](Self::connect), but connects at the first use, so that a process can start while
    /// the server is down; its workers register later.
    ///
    /// ```
    /// use worker_heartbeat::{Error, PostgresOptions};
    ///
    /// let store = PostgresOptions::new().connect_lazy("postgres://app@db.example.com/app")?;
    /// let refused = PostgresOptions::new().connect_lazy("db.example.com");
    /// assert!(matches!(refused, Err(Error::Invalid { .. })));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the URL or an option is not allowed.
    pub fn connect_lazy(self, url: &str) -> Result<PostgresStore, Error> {
        Ok(PostgresStore::new(self.settings(url)?, Source::Own))
    }

    /// The migrations as plain SQL, for `psql` and a role with the necessary rights. The script can be
    /// run repeatedly.
    ///
    /// ```
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// let sql = PostgresOptions::new().schema("pm_pipeline").migration_sql()?;
    /// assert!(sql.contains("pm_pipeline"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name of the schema is not allowed.
    pub fn migration_sql(&self) -> Result<String, Error> {
        Ok(migrate::script(&quoted(&self.schema)?))
    }

    /// The grants that a role needs to use the schema, as plain SQL, for a role that owns it. The role
    /// needs no other rights, and connects with [`migrations`](Self::migrations) switched off. Run them
    /// again after a migration.
    ///
    /// A role that only reads, for `status` and `check`, needs `USAGE` of the schema, `SELECT` on its tables
    /// and `EXECUTE` on its functions: these statements without the third one, and with `SELECT` only in
    /// the second one.
    ///
    /// ```
    /// use worker_heartbeat::PostgresOptions;
    ///
    /// let sql = PostgresOptions::new().grants_sql("app")?;
    /// assert!(sql.starts_with("GRANT USAGE ON SCHEMA"));
    /// # Ok::<(), worker_heartbeat::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the name of the schema or of the role is not allowed.
    pub fn grants_sql(&self, role: &str) -> Result<String, Error> {
        if role.is_empty() || role.len() > LONGEST_NAME || role.contains('\0') {
            let allowed = format!("1 to {LONGEST_NAME} bytes without zero bytes");
            return Err(Error::invalid("role", format!("{role:?}"), allowed));
        }
        let (schema, role) = (quoted(&self.schema)?, role.replace('"', "\"\""));
        Ok(format!(
            "GRANT USAGE ON SCHEMA {schema} TO \"{role}\";\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO \"{role}\";\n\
             GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {schema} TO \"{role}\";\n\
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO \"{role}\";\n"
        ))
    }

    fn settings(self, url: &str) -> Result<Settings, Error> {
        let Url {
            mut config,
            wanted,
            root,
        } = url::parse(url)?;
        let tcp_user_timeout = self
            .tcp_user_timeout
            .or_else(|| config.get_tcp_user_timeout().copied())
            .unwrap_or(DEFAULT_TCP_USER_TIMEOUT);
        long_enough("tcp_user_timeout", tcp_user_timeout)?;
        config
            .tcp_user_timeout(tcp_user_timeout)
            .keepalives_idle(tcp_user_timeout);
        if config.get_application_name().is_none() {
            config.application_name(APPLICATION_NAME);
        }
        let remote = |host: &Host| matches!(host, Host::Tcp(_));
        let mode = config.get_ssl_mode();
        let is_remote = config.get_hosts().iter().any(remote) || config.get_hosts().is_empty();
        let root = self.root_certificate.clone().or(match root {
            Some(Root::File(path)) => Some(path),
            Some(Root::System) | None => None,
        });
        let tls = if is_remote || mode != SslMode::Prefer {
            tls::connector(mode, root.as_deref())?
        } else {
            None
        };
        self.settings_of(config, wanted, tls)
    }

    /// For connections that the application opens. Requests to cancel may need TLS.
    pub(super) fn lent_settings(self) -> Result<Settings, Error> {
        let tls = tls::connector(SslMode::Prefer, None)?;
        let mut settings = self.settings_of(Config::new(), Wanted::Any, tls)?;
        settings.session_liveness = false;
        settings.target = Target::lent();
        Ok(settings)
    }

    fn settings_of(
        self,
        config: Config,
        wanted: Wanted,
        tls: Option<MakeRustlsConnect>,
    ) -> Result<Settings, Error> {
        let connect_timeout = self
            .connect_timeout
            .or_else(|| config.get_connect_timeout().copied())
            .unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        long_enough("connect_timeout", connect_timeout)?;
        long_enough("statement_timeout", self.statement_timeout)?;
        let secret = config
            .get_password()
            .map(|password| String::from_utf8_lossy(password).into_owned())
            .filter(|password| !password.is_empty());
        Ok(Settings {
            target: Target::of(&config),
            secrets: Mutex::new(secret.into_iter().collect()),
            config,
            wanted,
            credentials: self.credentials,
            tls,
            schema: quoted(&self.schema)?,
            migrations: self.migrations,
            connect_timeout,
            statement_timeout: self.statement_timeout,
            begin: transaction::begin(self.statement_timeout),
            // A session is recorded by a write.
            session_liveness: self.session_liveness && !wanted.reads_only(),
        })
    }
}

fn long_enough(name: &'static str, timeout: Duration) -> Result<(), Error> {
    if timeout < SHORTEST_TIMEOUT {
        let allowed = format!("at least {SHORTEST_TIMEOUT:?}");
        return Err(Error::invalid(name, format!("{timeout:?}"), allowed));
    }
    Ok(())
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_quote_the_url() {
        for url in [
            "postgres://app:hunter2@/db",
            "postgres://app:x?hunter2=1",
            "host=h password=x hunter2=1",
            "postgres://app:hunter2@host:port/db",
            "host=h password='hunter2",
            "password=hunter2",
            "hunter2",
        ] {
            let options = PostgresOptions::new();
            let error = options.connect_lazy(url).unwrap_err();
            for text in [error.to_string(), format!("{error:?}")] {
                assert!(
                    !text.contains("hunter2") && !text.contains("ter2"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn options_take_precedence_over_the_url() {
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
        assert!(!tls("host=/tmp user=a").unwrap(), "a Unix socket");
        let missing = PostgresOptions::new()
            .root_certificate("/nonexistent.pem")
            .settings("postgres://a@h/d?sslmode=verify-full");
        assert!(missing.is_err());
    }
}
