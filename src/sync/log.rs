//! Writing to the log without being harmed by it.

use super::catch::catch;

/// Logs one line. A panic of the log implementation is contained.
pub(crate) fn log_line(level: log::Level, text: std::fmt::Arguments<'_>) {
    drop(catch(|| {
        log::log!(target: "worker_heartbeat", level, "{text}");
    }));
}
