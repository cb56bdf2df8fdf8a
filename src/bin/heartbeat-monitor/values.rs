//! The values of options, as they are written on the command line.

use std::time::Duration;

use worker_heartbeat::{Policy, State};

/// `None`: never.
#[derive(Clone, Copy)]
pub struct Age(pub Option<Duration>);

pub fn age(text: &str) -> Result<Age, String> {
    match text {
        "never" => Ok(Age(None)),
        _ => duration(text).map(|age| Age(Some(age))),
    }
}

pub fn interval(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(86_400);
    let interval = duration(text)?;
    if interval > DAY {
        return Err("must be at most a day".to_owned());
    }
    Ok(interval)
}

pub fn policy(name: &str) -> Result<Policy, String> {
    let names = "must be liveness, startup, readiness, health or strict";
    Policy::from_name(name).ok_or_else(|| names.to_owned())
}

/// Parses `indexer=3`.
pub fn expected(text: &str) -> Result<(String, usize), String> {
    let (worker_type, count) = text.rsplit_once('=').ok_or("must be as in indexer=3")?;
    let count = count.parse().map_err(|_| "must be as in indexer=3")?;
    Ok((worker_type.to_owned(), count))
}

/// Parses `90s`, `5m`, `1h 30m` or `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; examples: 90s, 5m, 2h, 7d"))?;
    if parsed.is_zero() {
        return Err("must be greater than zero".to_owned());
    }
    Ok(parsed)
}

/// Checks `localhost:7717`. The name is resolved when it is used.
pub fn address(text: &str) -> Result<String, String> {
    let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '@', ' ']);
    match text.rsplit_once(':') {
        Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("must be HOST:PORT, such as localhost:7717 or 0.0.0.0:7717".to_owned()),
    }
}

/// Parses `stalled`.
pub fn state(name: &str) -> Result<State, String> {
    State::from_name(name).ok_or_else(|| {
        let names = State::WORST_FIRST.map(State::name);
        format!("must be one of {}", names.join(", "))
    })
}
