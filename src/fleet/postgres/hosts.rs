//! Several hosts: one by one, each within its share of the time limit, until one is of the wanted
//! kind.

use std::time::{Duration, Instant};

use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, NoTls};

use super::error::{PgError, with_timeout};
use super::lookup;
use super::settings::Settings;

/// The `target_session_attrs` of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Wanted {
    pub(super) const ALL: [(&'static str, Self); 6] = [
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];

    /// Whether a server of this kind may refuse all writes.
    pub(super) const fn reads_only(self) -> bool {
        matches!(self, Self::ReadOnly | Self::Standby | Self::PreferStandby)
    }

    /// What a server lacks; `None` if it is of this kind.
    const fn missing(self, server: &Server) -> Option<&'static str> {
        match self {
            Self::ReadWrite if server.read_only => Some("it accepts no writes"),
            Self::ReadOnly if !server.read_only => Some("it accepts writes"),
            Self::Primary if server.in_recovery => Some("it is a standby"),
            Self::Standby | Self::PreferStandby if !server.in_recovery => {
                Some("it is not a standby")
            }
            _ => None,
        }
    }
}

/// What a server says of itself, and of a connection.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Differs from server to server, and after each start.
    pub epoch: String,
    /// The server's process of this connection; behind a proxy, of one statement.
    pub backend: i32,
    in_recovery: bool,
    read_only: bool,
    /// The setting [`TOKEN`] of this connection.
    token: Option<String>,
}

/// A setting that comes with the request to connect. It is there later if this connection has a
/// session of its own at the server. Proxies that pool connections refuse or ignore it.
const TOKEN: &str = "worker_heartbeat.connection";

pub(super) struct Connected {
    pub client: Client,
    pub server: Server,
    /// Which of the hosts it is.
    pub host: usize,
    /// It has a session of its own at the server. Only checked if that was asked for.
    pub own_session: bool,
}

/// What to ask for.
pub(super) struct Request {
    /// The host to begin with.
    pub first: usize,
    /// Finds out whether the connection has a session of its own.
    pub check_session: bool,
}

/// Connects. Tries each host, and each address of a host, in its share of the time that is left.
pub(super) async fn connect(settings: &Settings, request: &Request) -> Result<Connected, PgError> {
    let deadline = Instant::now() + settings.connect_timeout;
    let credentials = with_timeout(settings.connect_timeout, settings.credentials()).await?;
    let count = count(&settings.config);
    let mut passes = vec![settings.wanted];
    if settings.wanted == Wanted::PreferStandby {
        passes.push(Wanted::Any);
    }
    let mut left = u32::try_from(passes.len() * count).unwrap_or(u32::MAX);
    let mut errors = Vec::new();
    for wanted in passes {
        for n in 0..count {
            let host = (request.first + n) % count;
            let mut config = only(&settings.config, host);
            if let Some(user) = &credentials.user {
                config.user(user.as_str());
            }
            if let Some(password) = &credentials.password {
                config.password(password.as_str());
            }
            let mut share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            if errors.is_empty() && left == 1 {
                // The caller's limit ends it, and is named in the error.
                share = settings.connect_timeout;
            }
            left = left.saturating_sub(1);
            match addresses(settings, &config, share, wanted, request.check_session).await {
                Ok((client, server, own_session)) => {
                    return Ok(Connected {
                        client,
                        server,
                        host,
                        own_session,
                    });
                }
                Err(error) => errors.push((name(&config), error)),
            }
        }
    }
    Err(PgError::hosts(errors))
}

type Found = (Client, Server, bool);

/// Tries each address of a host.
async fn addresses(
    settings: &Settings,
    config: &Config,
    share: Duration,
    wanted: Wanted,
    check_session: bool,
) -> Result<Found, PgError> {
    let deadline = Instant::now() + share;
    let found = match (config.get_hosts(), config.get_hostaddrs()) {
        ([Host::Tcp(name)], []) => {
            let found = tokio::time::timeout(share, lookup::addresses(name))
                .await
                .map_err(|_| PgError::Timeout(share))?
                .map_err(PgError::Unreachable)?;
            found.into_iter().map(Some).collect()
        }
        _ => vec![None],
    };
    let mut last = PgError::Unreachable("the host has no address".to_owned());
    let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
    let mut left = count;
    for address in found {
        let mut config = config.clone();
        if let Some(address) = address {
            config.hostaddr(address);
        }
        let share = if count == 1 {
            share
        } else {
            deadline.saturating_duration_since(Instant::now()) / left.max(1)
        };
        left = left.saturating_sub(1);
        match with_timeout(share, open(settings, &config, wanted, check_session)).await {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn open(
    settings: &Settings,
    config: &Config,
    wanted: Wanted,
    check_session: bool,
) -> Result<Found, PgError> {
    let token = format!("{:016x}", crate::sync::random::random());
    let client = if check_session {
        let mut asking = config.clone();
        let own = config.get_options().unwrap_or_default();
        asking.options(format!("{own} -c {TOKEN}={token}").trim_start());
        match start(settings, &asking).await {
            Err(error) if PgError::is_refused_parameter(&error) => start(settings, config).await?,
            started => started?,
        }
    } else {
        start(settings, config).await?
    };
    let server = Server::of(&client).await?;
    if let Some(missing) = wanted.missing(&server) {
        return Err(PgError::Unwanted(missing));
    }
    let own_session = server.token.as_ref() == Some(&token);
    Ok((client, server, own_session))
}

async fn start(settings: &Settings, config: &Config) -> Result<Client, tokio_postgres::Error> {
    match &settings.tls {
        Some(tls) => {
            let (client, connection) = config.connect(tls.clone()).await?;
            tokio::spawn(connection);
            Ok(client)
        }
        None => {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        }
    }
}

impl Server {
    pub(super) async fn of(client: &Client) -> Result<Self, PgError> {
        let text = format!(
            "SELECT extract(epoch FROM pg_postmaster_start_time())::text, pg_backend_pid(), \
             pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', \
             current_setting('{TOKEN}', true)"
        );
        let row = client.query_typed_one(&text, &[]).await?;
        Ok(Self {
            epoch: row.try_get(0)?,
            backend: row.try_get(1)?,
            in_recovery: row.try_get(2)?,
            read_only: row.try_get(3)?,
            token: row.try_get(4)?,
        })
    }
}

pub(super) fn count(config: &Config) -> usize {
    let hosts = config.get_hosts().len();
    hosts.max(config.get_hostaddrs().len()).max(1)
}

fn name(config: &Config) -> String {
    let port = config.get_ports().first().copied().unwrap_or(5_432);
    match (config.get_hosts().first(), config.get_hostaddrs().first()) {
        (Some(Host::Tcp(name)), _) => format!("{name}:{port}"),
        #[cfg(unix)]
        (Some(Host::Unix(path)), _) => path.display().to_string(),
        (None, Some(address)) => format!("{address}:{port}"),
        (None, None) => String::new(),
    }
}

/// The configuration with one of its hosts.
fn only(config: &Config, host: usize) -> Config {
    let mut only = Config::new();
    match config.get_hosts().get(host) {
        Some(Host::Tcp(name)) => only.host(name.as_str()),
        #[cfg(unix)]
        Some(Host::Unix(path)) => only.host_path(path),
        None => &mut only,
    };
    if let Some(address) = config.get_hostaddrs().get(host) {
        only.hostaddr(*address);
    }
    let ports = config.get_ports();
    if let Some(port) = ports.get(host).or_else(|| ports.first()) {
        only.port(*port);
    }
    if let Some(user) = config.get_user() {
        only.user(user);
    }
    if let Some(password) = config.get_password() {
        only.password(password);
    }
    if let Some(name) = config.get_dbname() {
        only.dbname(name);
    }
    if let Some(options) = config.get_options() {
        only.options(options);
    }
    if let Some(name) = config.get_application_name() {
        only.application_name(name);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        only.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        only.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        only.keepalives_retries(retries);
    }
    only.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .channel_binding(config.get_channel_binding());
    only
}
