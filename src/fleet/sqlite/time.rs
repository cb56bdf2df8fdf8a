//! The store's time: since the host's boot, plus an offset that all processes share.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, params};

use crate::clock::{Moment, nanos};
use crate::fleet::ProcessIdentity;
use crate::fleet::host::uptime;

/// The current time. `may_write`: whether a new boot of the host may be recorded.
pub(super) fn now(connection: &Connection, may_write: bool) -> rusqlite::Result<Moment> {
    let (boot_id, ticking) = host_time();
    let (known, offset): (String, i64) = connection
        .prepare_cached("SELECT boot_id, offset_ns FROM clock")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if known == boot_id {
        return Ok(moment(ticking.saturating_add(offset)));
    }
    // After another boot, time continues from the wall clock, but never goes back.
    let latest: i64 = connection.query_row(
        "SELECT max(coalesce(max(registered_at), 0), coalesce(max(heartbeat_at), 0),
                    coalesce(max(ended_at), 0)) FROM workers",
        [],
        |row| row.get(0),
    )?;
    let now = wall().max(latest);
    if may_write {
        connection.execute(
            "UPDATE clock SET boot_id = ?1, offset_ns = ?2",
            params![boot_id, now.saturating_sub(ticking)],
        )?;
    }
    Ok(moment(now))
}

/// The boot, and the nanoseconds since then, by a clock that cannot be set and that counts sleep; the
/// wall clock where there is no such clock.
fn host_time() -> (String, i64) {
    let boot_id = ProcessIdentity::current().boot_id;
    match uptime() {
        Some(uptime) if !boot_id.is_empty() => (boot_id, to_i64(uptime)),
        _ => ("wall".to_owned(), wall()),
    }
}

fn wall() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    to_i64(since.unwrap_or_default())
}

/// For numbers that are higher than those of a file that was lost.
pub(super) fn wall_micros() -> i64 {
    wall() / 1_000
}

fn to_i64(duration: Duration) -> i64 {
    i64::try_from(nanos(duration)).unwrap_or(i64::MAX)
}

fn moment(nanos: i64) -> Moment {
    Moment::from_nanos(nanos.max(0).unsigned_abs())
}
