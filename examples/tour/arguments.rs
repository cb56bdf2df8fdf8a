//! The command line.

use std::ffi::OsString;
use std::time::Duration;

pub const USAGE: &str = "\
Usage: cargo run --example tour [-- OPTIONS]

Shows supervised workers, some of which go wrong, until Ctrl-C.

Options:
  --seconds N  end after N seconds, 1 to 86400
  --help       show this";

const LONGEST: u64 = 86_400;

/// What the command line requests.
#[derive(Debug)]
pub enum Request {
    Help,
    Run { time_limit: Option<Duration> },
}

/// The error is a message for the user.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    let mut time_limit = None;
    while let Some(argument) = arguments.next() {
        if argument == "--help" || argument == "-h" {
            return Ok(Request::Help);
        } else if argument == "--seconds" {
            let value = arguments.next().ok_or("--seconds needs a number")?;
            time_limit = Some(seconds(&value)?);
        } else if let Some(value) = argument.strip_prefix("--seconds=") {
            time_limit = Some(seconds(value)?);
        } else {
            return Err(format!("unknown argument {argument:?}"));
        }
    }
    Ok(Request::Run { time_limit })
}

fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse() {
        Ok(number @ 1..=LONGEST) => Ok(Duration::from_secs(number)),
        _ => Err(format!(
            "--seconds takes a whole number from 1 to {LONGEST}, not {value:?}"
        )),
    }
}
