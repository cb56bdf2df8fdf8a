//! The command line.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use worker_heartbeat::fleet::Retention;
use worker_heartbeat::{Policy, State};

use crate::logging::LogFormat;
use crate::scope::Scope;
use crate::screen::When;
use crate::store::UsageError;
use crate::values::{Age, address, age, duration, expected, interval, policy, state};

/// Monitors the workers in a heartbeat store
#[derive(Parser)]
#[command(
    name = "heartbeat-monitor",
    version,
    arg_required_else_help = true,
    after_help = "\
Every command except `check --file`, `completions` and `man` uses one store: --sqlite FILE, --postgres URL, or the URL in
the environment variable POSTGRES_URL, such as postgres://user@host/database. Other users of the
machine can read the command line of a running program, but not its environment: pass a URL with a
password in POSTGRES_URL.

Exit status:
  0  done; for `check`: all workers are healthy
  1  `check` found a problem and printed it
  2  the command line is invalid
  3  the store failed, or the store, a file or an address is not available

The log goes to stderr. RUST_LOG sets its level; the default is info.",
    max_term_width = 100
)]
pub struct Arguments {
    /// Format of the log
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        global = true
    )]
    pub log_format: LogFormat,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Sweep the store continuously: mark stale workers offline and release their leases
    Watch(WatchArgs),
    /// Show the workers in the store, the worst first; of more than 1,000, the worst
    Status(StatusArgs),
    /// Show the workers in the store live
    ///
    /// The keys are shown at the bottom of the screen, and by `?`.
    Top(TopArgs),
    /// Sweep the store once
    ///
    /// Workers without a heartbeat for longer than their limit are marked offline immediately. (The
    /// `watch` command only counts time during which it has observed the store.)
    Sweep(SweepArgs),
    /// Delete the records of workers that ended long ago
    Purge(PurgeArgs),
    /// Create the tables of the store, or update them
    Migrate(MigrateArgs),
    /// Show what happened to the workers: deaths, recoveries, sweeps
    ///
    /// Each event has the reason, where the worker was, and the call stack if it is known. The sweeps of
    /// `watch` keep them for as long as its options say.
    Events(EventsArgs),
    /// Check the health of all workers in the store or in a beacon file
    Check(CheckArgs),
    /// Print the completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, for `man -l -`
    Man,
}

#[derive(Args)]
pub struct WatchArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Time between two sweeps, at most a day
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = interval)]
    pub interval: Duration,

    /// Longest time without a heartbeat, for workers without a limit of their own
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    pub threshold: Duration,

    #[command(flatten)]
    pub retention: RetentionArgs,

    /// Delete the records of all workers that ended this long ago; the same as all `--keep-` options
    #[arg(long, value_name = "TIME", value_parser = duration,
        conflicts_with_all = ["keep_stopped", "keep_dead", "keep_replaced"])]
    pub purge_after: Option<Duration>,

    /// Serve the dashboard, metrics, probes and a coordinator at this address, e.g. localhost:7717
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub listen: Option<String>,

    /// File with the bearer token that every request to the coordinator must carry; required unless
    /// ADDRESS is a loopback address; read again on SIGHUP
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub token_file: Option<PathBuf>,

    /// Show reasons, tasks and metadata to all clients, not only to those on this machine
    #[arg(long, requires = "listen")]
    pub show_reasons: bool,

    /// Write the health of the sweeps to this file, for `check --file`
    #[arg(long, value_name = "FILE")]
    pub beacon: Option<PathBuf>,

    #[command(flatten)]
    pub notify: NotifyArgs,
}

/// The environment variable with the URL of `--notify`.
pub const NOTIFY_URL: &str = "HEARTBEAT_NOTIFY_URL";

/// Where deaths and recoveries are reported to.
#[derive(Args)]
pub struct NotifyArgs {
    /// Post a JSON document to this URL when workers die, stall or recover, or a group is offline
    /// [env: HEARTBEAT_NOTIFY_URL]
    #[arg(long = "notify", value_name = "URL")]
    notify: Option<String>,

    /// Run this program then, with the document on its standard input
    #[arg(long, value_name = "PROGRAM")]
    pub notify_command: Option<PathBuf>,

    /// Time between two notifications; what happens meanwhile is in the next one
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = interval)]
    pub notify_every: Duration,

    /// Address of the dashboard for the links in notifications; by default the one of --listen
    #[arg(long, value_name = "URL")]
    pub link: Option<String>,
}

impl NotifyArgs {
    /// Where to post, if anywhere.
    pub fn url(&self) -> Result<Option<String>, UsageError> {
        match (&self.notify, env::var(NOTIFY_URL)) {
            (Some(url), _) => Ok(Some(url.clone())),
            (None, Ok(url)) => Ok(Some(url).filter(|url| !url.is_empty())),
            (None, Err(env::VarError::NotPresent)) => Ok(None),
            (None, Err(env::VarError::NotUnicode(_))) => {
                Err(UsageError(format!("{NOTIFY_URL} is not valid Unicode")))
            }
        }
    }
}

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    #[command(flatten)]
    pub scope: ScopeArgs,

    /// Print a JSON document with all workers instead of a table
    #[arg(long)]
    pub json: bool,

    /// When to use colours
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub color: When,

    /// Show all workers, in the order of their ids
    #[arg(long, conflicts_with = "json")]
    pub all: bool,

    /// Show the whole reason of each unwell worker, and where its thread hangs
    #[arg(long, conflicts_with = "json")]
    pub details: bool,
}

/// Which workers to show.
#[derive(Args)]
pub struct ScopeArgs {
    /// Show only workers in this state, such as stalled; may be given for several states
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub state: Vec<State>,

    /// Show only workers of this type; may be given for several types
    #[arg(long = "type", value_name = "TYPE")]
    pub worker_type: Vec<String>,

    /// Show only workers of this group; may be given for several groups
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<String>,
}

impl ScopeArgs {
    pub fn scope(&self) -> Scope {
        Scope::new(&self.worker_type, &self.group).states(self.state.iter().copied())
    }
}

#[derive(Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    #[command(flatten)]
    pub scope: ScopeArgs,

    /// Time between two readings of the store
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
}

#[derive(Args)]
pub struct CompletionsArgs {
    pub shell: Shell,
}

#[derive(Args)]
pub struct EventsArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Go on with new events until the program is ended
    #[arg(long, short)]
    pub follow: bool,

    /// Print each event as a JSON object on a line of its own
    #[arg(long)]
    pub json: bool,

    /// Only events of this level, and more important ones: error, warn, info or debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub level: log::Level,

    /// Only events of the worker with this id
    #[arg(long, value_name = "ID")]
    pub worker: Option<String>,

    /// Only events of workers of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub worker_type: Option<String>,

    /// Only events of this group and its workers
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,

    /// How many of the latest events to show
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub limit: usize,
}

#[derive(Args)]
pub struct SweepArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Longest time without a heartbeat, for workers without a limit of their own
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    pub threshold: Duration,

    #[command(flatten)]
    pub retention: RetentionArgs,

    /// Print the changes without making them; needs no right to write
    #[arg(long)]
    pub dry_run: bool,
}

/// How long the records of ended workers are kept.
#[derive(Args)]
pub struct RetentionArgs {
    /// Delete the records of workers that stopped this long ago, or `never`
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = age)]
    pub keep_stopped: Age,

    /// Delete the records of workers that died this long ago, or `never`
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = age)]
    pub keep_dead: Age,

    /// Delete the records of workers that died this long ago and were replaced, or `never`
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = age)]
    pub keep_replaced: Age,

    /// Delete events that happened this long ago, or `never`
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = age)]
    pub keep_events: Age,

    /// How many events of each level are kept, the latest ones
    #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
    pub most_events: usize,
}

impl RetentionArgs {
    pub fn retention(&self) -> Retention {
        Retention::none()
            .stopped(self.keep_stopped.0)
            .dead(self.keep_dead.0)
            .replaced(self.keep_replaced.0)
            .events(self.keep_events.0)
            .most_events(self.most_events)
    }
}

#[derive(Args)]
pub struct PurgeArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Time since the end of the worker
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    pub older_than: Duration,
}

#[derive(Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Print the SQL for PostgreSQL instead of executing it; requires no connection
    #[arg(long, conflicts_with = "sqlite")]
    pub print: bool,

    /// Print the grants that this role of PostgreSQL needs instead of migrating; requires no connection
    #[arg(long, value_name = "ROLE", conflicts_with_all = ["sqlite", "print"])]
    pub grants: Option<String>,
}

#[derive(Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Check this beacon file instead of a store
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sqlite", "postgres", "schema", "sslrootcert"])]
    pub file: Option<PathBuf>,

    /// Maximum age of the beacon file
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration, requires = "file")]
    pub max_age: Duration,

    /// How many workers of a type must be well, such as indexer=3; may be given for several types
    #[arg(long, value_name = "TYPE=COUNT", value_parser = expected, conflicts_with = "file")]
    pub expect: Vec<(String, usize)>,

    /// Which states fail the check: liveness, startup, readiness, health or strict
    #[arg(long, value_name = "NAME", default_value = "health", value_parser = policy, conflicts_with = "file")]
    pub policy: Policy,

    /// Check only workers of this type; may be given for several types
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "file")]
    pub worker_type: Vec<String>,

    /// Check only workers of this group; may be given for several groups
    #[arg(long, value_name = "GROUP", conflicts_with = "file")]
    pub group: Vec<String>,

    /// Dead workers that were replaced don't count once they died this long ago, or `never`
    ///
    /// A worker was replaced if a living one of the same type and group was registered after it was
    /// last heard of.
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = age, conflicts_with = "file")]
    pub keep_replaced: Age,

    /// Workers of this type don't count; may be given for several types
    #[arg(long, value_name = "TYPE", conflicts_with = "file")]
    pub ignore_type: Vec<String>,

    /// How many workers may be dead, stale or never started
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 0,
        conflicts_with = "file"
    )]
    pub tolerate_dead: usize,
}

#[derive(Args)]
pub struct StoreArgs {
    /// SQLite file of the store
    #[arg(long, value_name = "FILE", conflicts_with_all = ["postgres", "schema"])]
    pub sqlite: Option<PathBuf>,

    /// PostgreSQL URL of the store [env: POSTGRES_URL]
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,

    /// PostgreSQL schema of the store
    #[arg(long, value_name = "NAME", default_value = "worker_heartbeat")]
    pub schema: String,

    /// PEM file with the root certificates for PostgreSQL's certificate
    #[arg(long, value_name = "FILE", conflicts_with = "sqlite")]
    pub sslrootcert: Option<PathBuf>,
}
