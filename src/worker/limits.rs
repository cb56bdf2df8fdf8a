//! The allowed values of a worker's names, metadata and limits, and their defaults.

use std::time::Duration;

use crate::error::Error;
use crate::health::Thresholds;
use crate::registry::core::timeline::SHORTEST_RESOLUTION;
use crate::sync::printable::{is_printable, prefix};

pub(crate) const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
pub(crate) const DEFAULT_GROUP: &str = "local";
/// A heartbeat moves once per resolution: even a healthy worker could not keep a shorter limit.
const SHORTEST_STALE_AFTER: Duration = Duration::from_millis(20);
pub(super) const SHORTEST_BUDGET: Duration = Duration::from_millis(1);
pub(crate) const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Bytes of an id, a type, a group or a name of a metadata entry.
pub(crate) const LONGEST_NAME: usize = 200;
/// Bytes of the value of a metadata entry.
pub(crate) const LONGEST_VALUE: usize = 1_024;
pub(crate) const MOST_METADATA: usize = 64;

/// Limits that are not given follow from the interval.
pub(crate) fn check_limits(
    interval: Duration,
    stale_after: Option<Duration>,
    stall_after: Option<Duration>,
    startup_grace: Option<Duration>,
) -> Result<Thresholds, Error> {
    check_duration("interval", interval, SHORTEST_INTERVAL)?;
    let stale_after = match stale_after {
        Some(stale_after) => {
            check_duration("stale_after", stale_after, SHORTEST_STALE_AFTER)?;
            if stale_after < interval.saturating_mul(2) {
                return Err(Error::invalid(
                    "stale_after",
                    format!("{stale_after:?}"),
                    format!("at least 2 x interval, which is {interval:?}"),
                ));
            }
            stale_after
        }
        None => (interval * 3).clamp(SHORTEST_STALE_AFTER, LONGEST * 3),
    };
    if let Some(stall_after) = stall_after {
        check_duration("stall_after", stall_after, SHORTEST_RESOLUTION)?;
    }
    if let Some(startup_grace) = startup_grace {
        check_duration("startup_grace", startup_grace, SHORTEST_RESOLUTION)?;
    }
    Ok(Thresholds {
        stale_after,
        stall_after,
        startup_grace: startup_grace.unwrap_or(stale_after),
        ..Thresholds::new(stale_after)
    })
}

pub(super) fn check_task_limits(
    task_deadline: Option<Duration>,
    progress_after: Option<Duration>,
) -> Result<(), Error> {
    for (field, limit) in [
        ("task_deadline", task_deadline),
        ("progress_after", progress_after),
    ] {
        if let Some(limit) = limit {
            check_duration(field, limit, SHORTEST_RESOLUTION)?;
        }
    }
    Ok(())
}

pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), Error> {
    check_id(field, name, LONGEST_NAME)
}

/// Checks a name or an id. Names that look alike must not differ in invisible characters.
pub(crate) fn check_id(field: &'static str, name: &str, longest: usize) -> Result<(), Error> {
    let fault = if name.is_empty() {
        "it is empty"
    } else if name.len() > longest {
        "it is too long"
    } else if name.chars().any(char::is_control) {
        "it has control characters"
    } else if !name.chars().all(is_printable) {
        "it has invisible characters"
    } else if name.trim() != name {
        "it begins or ends with a space"
    } else {
        return Ok(());
    };
    Err(Error::invalid(
        field,
        format!("{:?} ({fault})", shortened(name)),
        format!(
            "1 to {longest} bytes without control characters, invisible characters, and spaces at \
             either end"
        ),
    ))
}

pub(crate) fn check_metadata(metadata: &[(String, String)]) -> Result<(), Error> {
    if metadata.len() > MOST_METADATA {
        return Err(Error::invalid(
            "metadata",
            format!("{} entries", metadata.len()),
            format!("at most {MOST_METADATA} entries"),
        ));
    }
    for (name, value) in metadata {
        check_name("metadata name", name)?;
        if value.len() > LONGEST_VALUE {
            return Err(Error::invalid(
                "metadata value",
                format!("{:?} for {name:?}", shortened(value)),
                format!("at most {LONGEST_VALUE} bytes"),
            ));
        }
    }
    Ok(())
}

pub(crate) fn check_duration(
    field: &'static str,
    value: Duration,
    least: Duration,
) -> Result<(), Error> {
    if (least..=LONGEST).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!("{value:?}"),
        format!("{least:?} to 365 days"),
    ))
}

/// The beginning of a text, for an error message.
pub(crate) fn shortened(text: &str) -> &str {
    prefix(text, 64)
}
