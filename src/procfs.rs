//! What the kernel says of processes and threads: `/proc/<pid>/stat` (proc(5)).

/// The fields that this crate uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The id of the process or thread.
    pub id: u32,
    /// Such as `R`: running.
    pub state: char,
    /// When it started, in clock ticks since boot: tells it from another one with the same id.
    pub started: u64,
}

impl Stat {
    /// Fields 1, 3 and 22. The second field is the name in parentheses, which may itself contain
    /// spaces and parentheses.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, _) = text.split_once(' ')?;
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Self {
            id: id.parse().ok()?,
            state: fields.next()?.chars().next()?,
            started: fields.nth(18)?.parse().ok()?,
        })
    }

    /// Reads a file of this form; `None` if there is none, or none that can be read.
    pub(crate) fn read(path: &str) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(path).ok()?)
    }
}

/// What the kernel says of a process or thread that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    There(Stat),
    Gone,
    /// The kernel does not say: no file can be opened, or `/proc` is out of reach.
    Unknown,
}

impl Seen {
    /// Looks for the one that started at this time.
    pub(crate) fn at(path: &str, started: u64) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => match Stat::parse(&text) {
                Some(stat) if stat.started == started => Self::There(stat),
                Some(_) => Self::Gone,
                None => Self::Unknown,
            },
            // ESRCH: it went while the file was read.
            Err(error) if error.raw_os_error() == Some(3) => Self::Gone,
            // Only a `/proc` that shows this process shows what is not there.
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
        for text in ["", "7", "7 (x) R 1", "x (x) R 1"] {
            assert_eq!(Stat::parse(text), None);
        }
    }
}
