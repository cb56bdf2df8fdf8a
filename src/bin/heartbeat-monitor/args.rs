//! What the program is told on its command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Watches workers in a store of heartbeats, and tells how they are.
#[derive(Parser)]
#[command(
    name = "heartbeat-monitor",
    version,
    arg_required_else_help = true,
    after_help = "\
Every command but `check --file` works on one store: --sqlite FILE, --postgres URL, or the
environment variable POSTGRES_URL. A URL on the command line can be read by every user of the
machine while the program runs; the environment can not.

Exit status:
  0  done; for `check`: all is well
  1  `check`: something is wrong, and is told
  2  the command line cannot be understood
  3  the store cannot be reached, or failed; or another thing that was needed

Log lines go to stderr; RUST_LOG sets what is told (info by default).",
    max_term_width = 100
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Sweep the store for ever: mark dead workers offline, release their leases
    Watch(Watch),
    /// Tell how all workers of the store are
    Status(Status),
    /// Sweep the store once
    ///
    /// The word of the operator counts: workers that are silent for longer than their limit are
    /// marked offline at once. (`watch` charges nobody for silence that it has not watched itself.)
    Sweep(Sweep),
    /// Forget workers that ended long ago
    Purge(Purge),
    /// Set up the tables of the store, or bring them up to date
    Migrate(Migrate),
    /// Tell by the exit status whether all is well: by a beacon file, or by the store
    Check(Check),
}

#[derive(Args)]
pub struct Watch {
    #[command(flatten)]
    pub store: Store,

    /// Time from one sweep to the next, a day at most
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = interval)]
    pub interval: Duration,

    #[command(flatten)]
    pub threshold: Threshold,

    /// Forget workers that ended so long ago; never, if it is not given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub purge_after: Option<Duration>,

    /// Serve the dashboard, metrics, probes and a coordinator at this address, such as 127.0.0.1:7717
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,

    /// A file with the bearer token that workers have to show to the coordinator; without one, only
    /// a loopback address can be listened at
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub token_file: Option<PathBuf>,

    /// Show reasons, tasks and metadata to whoever asks, even where not only this machine can
    #[arg(long, requires = "listen")]
    pub show_reasons: bool,

    /// Write how the sweeps go to this file, for `check --file`
    #[arg(long, value_name = "FILE")]
    pub beacon: Option<PathBuf>,
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    pub store: Store,

    /// One JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Sweep {
    #[command(flatten)]
    pub store: Store,

    #[command(flatten)]
    pub threshold: Threshold,

    /// Only tell what would be done
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct Purge {
    #[command(flatten)]
    pub store: Store,

    /// Only those that ended so long ago
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    pub older_than: Duration,
}

#[derive(Args)]
pub struct Migrate {
    #[command(flatten)]
    pub store: Store,

    /// Print the SQL for PostgreSQL instead, for somebody who may run it; needs no connection
    #[arg(long, conflicts_with = "sqlite")]
    pub print: bool,
}

#[derive(Args)]
pub struct Check {
    #[command(flatten)]
    pub store: Store,

    /// A file that a `Beacon` writes, instead of a store
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sqlite", "postgres", "schema"])]
    pub file: Option<PathBuf>,

    /// The longest time since the file was written
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration, requires = "file")]
    pub max_age: Duration,
}

#[derive(Args)]
pub struct Threshold {
    /// Longest time without a heartbeat, for workers that brought no limit of their own
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    pub threshold: Duration,
}

/// Which store.
#[derive(Args)]
pub struct Store {
    /// A store in a SQLite file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["postgres", "schema"])]
    pub sqlite: Option<PathBuf>,

    /// A store in PostgreSQL, such as postgres://user@host/database [environment: POSTGRES_URL]
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,

    /// The schema in PostgreSQL
    #[arg(long, value_name = "NAME", default_value = "worker_heartbeat")]
    pub schema: String,
}

fn interval(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(86_400);
    let interval = duration(text)?;
    if interval > DAY {
        return Err("a day at most".to_owned());
    }
    Ok(interval)
}

/// `90s`, `5m`, `1h 30m`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; such as 90s, 5m, 2h, 7d"))?;
    if parsed.is_zero() {
        return Err("it has to be longer than that".to_owned());
    }
    Ok(parsed)
}
