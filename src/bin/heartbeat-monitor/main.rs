//! `heartbeat-monitor`: monitors the workers in a heartbeat store.

mod args;
mod check;
mod commands;
mod events;
mod logging;
mod notify;
// The same text rules as in the library's own logs.
#[allow(dead_code, reason = "the library uses the rest")]
#[path = "../../sync/printable.rs"]
mod printable;
mod scope;
mod screen;
mod status;
mod store;
mod table;
mod text;
mod token;
mod top;
mod values;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use worker_heartbeat::{BoxError, Error};

use args::{Arguments, Command};
use store::UsageError;

/// Exit status: a check found a problem.
const UNHEALTHY: u8 = 1;
/// Exit status: the command line is invalid.
const INVALID_USAGE: u8 = 2;
/// Exit status: the command failed.
const FAILED: u8 = 3;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return report_usage(&error),
    };
    logging::start(arguments.log_format);
    let result = match &arguments.command {
        Command::Watch(args) => watch::run(args),
        Command::Status(args) => status::run(args),
        Command::Top(args) => top::run(args),
        Command::Sweep(args) => commands::sweep(args),
        Command::Purge(args) => commands::purge(args),
        Command::Migrate(args) => commands::migrate(args),
        Command::Events(args) => events::events(args),
        Command::Check(args) => check::run(args),
        Command::Completions(args) => commands::completions(args),
        Command::Man => commands::man(),
    };
    result.unwrap_or_else(|error| report_failure(&error))
}

/// Prints the help or a usage error, which must not show a misplaced URL and its password.
fn report_usage(error: &clap::Error) -> ExitCode {
    let is_url = |argument: OsString| store::is_url(&argument.to_string_lossy());
    if !error.use_stderr() || !std::env::args_os().any(is_url) {
        error.exit();
    }
    let _ = writeln!(
        io::stderr(),
        "error: unexpected URL (not shown, because it may contain a password); pass it with \
         --postgres or in POSTGRES_URL, and see --help"
    );
    ExitCode::from(INVALID_USAGE)
}

/// An error with what caused it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn report_failure(error: &BoxError) -> ExitCode {
    let io_error = error.downcast_ref::<io::Error>();
    if io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // The reader of the output, such as `head`, has ended early.
        return ExitCode::SUCCESS;
    }
    // If stderr is closed, the exit status has to suffice.
    let text = text::clean(&chain(&**error));
    let _ = writeln!(io::stderr(), "heartbeat-monitor: {text}");
    let is_invalid = matches!(error.downcast_ref(), Some(Error::Invalid { .. }));
    ExitCode::from(if is_invalid || error.is::<UsageError>() {
        INVALID_USAGE
    } else {
        FAILED
    })
}
