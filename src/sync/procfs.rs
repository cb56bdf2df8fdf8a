//! Processes and threads as the kernel shows them in `/proc/<pid>/stat` (proc(5)).

/// The fields of a stat file that this crate uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The id of the process or thread.
    pub id: u32,
    /// Such as `R`: running.
    pub state: char,
    /// How many threads the process has.
    pub threads: u64,
    /// When it started, in clock ticks since boot: distinguishes it from an earlier owner of the id.
    pub started: u64,
    /// Its exit status, as wait(2) reports it; 0 while it lives, and for readers that may not trace it.
    pub status: i64,
}

impl Stat {
    /// Reads fields 1, 3, 20, 22 and 52, which old kernels lack. The second field is the name in
    /// parentheses, which may itself contain spaces and parentheses.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, _) = text.split_once(' ')?;
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Self {
            id: id.parse().ok()?,
            state: fields.next()?.chars().next()?,
            threads: fields.nth(16)?.parse().ok()?,
            started: fields.nth(1)?.parse().ok()?,
            status: fields
                .nth(29)
                .and_then(|status| status.parse().ok())
                .unwrap_or(0),
        })
    }

    /// Reads such a file; `None` if it does not exist or can't be read.
    pub(crate) fn read(path: &str) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(path).ok()?)
    }
}

/// Whether a process or thread still exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    There(Stat),
    Gone,
    /// The kernel gives no answer: no file can be opened, or `/proc` is not mounted.
    Unknown,
}

impl Presence {
    /// Looks for the process or thread that started at this time.
    pub(crate) fn at(path: &str, started: u64) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => match Stat::parse(&text) {
                Some(stat) if stat.started == started => Self::There(stat),
                Some(_) => Self::Gone,
                None => Self::Unknown,
            },
            // ESRCH: it ended while the file was read.
            Err(error) if error.raw_os_error() == Some(3) => Self::Gone,
            // A missing file proves something only if `/proc` shows this process.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && Stat::read("/proc/thread-self/stat").is_some() =>
            {
                Self::Gone
            }
            Err(_) => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_confuse_the_parser() {
        let fields = "R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 x";
        let stat = Stat::parse(&format!("7 (a ) b (R) {fields}")).unwrap();
        assert_eq!((stat.id, stat.state, stat.started), (7, 'R', 4711));
        assert_eq!((stat.threads, stat.status), (17, 0));
        let more = "0 ".repeat(29);
        let stat = Stat::parse(&format!("7 (a ) b (R) {fields} {more} 9"));
        assert_eq!(stat.unwrap().status, 0, "one field further");
        let more = "0 ".repeat(28);
        let stat = Stat::parse(&format!("7 (a ) b (R) {fields} {more} 9"));
        assert_eq!(stat.unwrap().status, 9);
        for text in ["", "7", "7 (x) R 1", "x (x) R 1"] {
            assert_eq!(Stat::parse(text), None);
        }
    }
}
