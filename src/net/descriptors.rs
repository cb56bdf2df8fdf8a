//! How many file descriptors connections leave to the rest of the process: to a beacon, a store, a
//! log.

use tokio::net::TcpStream;

/// The most descriptors that are left to the rest.
#[cfg(unix)]
const RESERVE: u64 = 64;

/// See the module. Without a limit that is known, connections are limited by their number alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    /// Connections with this descriptor or a higher one use what is left to the rest.
    #[cfg(unix)]
    first_reserved: Option<u64>,
}

impl Descriptors {
    /// Reads the limit of this process.
    pub(crate) fn of_process() -> Self {
        Self {
            #[cfg(unix)]
            first_reserved: limit().map(|limit| limit - RESERVE.min(limit / 4)),
        }
    }

    /// Whether this new connection uses what is left to the rest: the kernel gives a file the lowest
    /// descriptor that is free, so all lower ones are in use.
    #[cfg(unix)]
    pub(crate) fn are_reserved(self, stream: &TcpStream) -> bool {
        use std::os::fd::AsRawFd;

        let descriptor = u64::try_from(stream.as_raw_fd()).unwrap_or_default();
        self.first_reserved.is_some_and(|first| descriptor >= first)
    }

    #[cfg(not(unix))]
    pub(crate) const fn are_reserved(self, _: &TcpStream) -> bool {
        false
    }
}

/// The soft limit.
#[cfg(unix)]
fn limit() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

#[cfg(unix)]
fn parse(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let limit = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    limit.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             15234                15234                processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(parse(limits), Some(1024));
        let unlimited = "Max open files            unlimited            unlimited            files";
        assert_eq!(parse(unlimited), None);
        assert_eq!(parse(""), None);
    }
}
