//! `heartbeat-monitor`: watches the workers in a store of heartbeats, and tells how they are.

mod args;
mod commands;
// The same text rules as in the library's own logs.
#[allow(dead_code, reason = "the library uses the rest")]
#[path = "../../sync/printable.rs"]
mod printable;
mod store;
mod table;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use worker_heartbeat::BoxError;

use args::{Arguments, Command};
use store::Usage;

/// Something is wrong with the workers.
const UNWELL: u8 = 1;
/// The command line cannot be understood.
const MISUSED: u8 = 2;
/// What was asked for could not be done.
const FAILED: u8 = 3;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return misunderstood(&error),
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let done = match &arguments.command {
        Command::Watch(watch) => watch::run(watch),
        Command::Status(status) => commands::status(status),
        Command::Sweep(sweep) => commands::sweep(sweep),
        Command::Purge(purge) => commands::purge(purge),
        Command::Migrate(migrate) => commands::migrate(migrate),
        Command::Check(check) => commands::check(check),
    };
    done.unwrap_or_else(|error| report(&error))
}

/// Help, or what cannot be understood. A URL in the wrong place may hold a password.
fn misunderstood(error: &clap::Error) -> ExitCode {
    // Arguments may be anything, not only Unicode text.
    let is_url = |argument: OsString| store::is_url(&argument.to_string_lossy());
    if !error.use_stderr() || !std::env::args_os().any(is_url) {
        error.exit();
    }
    let _ = writeln!(
        io::stderr(),
        "error: a URL is where none is expected (it is not shown: it may hold a password); give it \
         with --postgres or in POSTGRES_URL, and see --help"
    );
    ExitCode::from(MISUSED)
}

fn report(error: &BoxError) -> ExitCode {
    let reader_gone = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    if reader_gone {
        // As `head` does: it has seen enough.
        return ExitCode::SUCCESS;
    }
    // Without a place to write to, the status says it all.
    let _ = writeln!(io::stderr(), "heartbeat-monitor: {error}");
    let misused = error.is::<Usage>() || is_invalid(error);
    ExitCode::from(if misused { MISUSED } else { FAILED })
}

fn is_invalid(error: &BoxError) -> bool {
    let error = error.downcast_ref::<worker_heartbeat::Error>();
    matches!(error, Some(worker_heartbeat::Error::Invalid { .. }))
}
