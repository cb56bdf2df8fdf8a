//! The identity of a process, by which others on the same host see that it is gone.

use std::fs;

use parking_lot::Mutex;

use crate::sync::procfs::Stat;

/// A process, distinct from every other process on every host. (A pid alone is reused.)
///
/// ```
/// use worker_heartbeat::fleet::ProcessIdentity;
///
/// let here = ProcessIdentity::current();
/// assert_eq!(here.pid, std::process::id());
/// assert!(!here.is_gone());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ProcessIdentity {
    /// Name of the host, for people.
    pub hostname: String,
    /// The process id.
    pub pid: u32,
    /// Start time of the process in clock ticks since the host's boot; 0 if unknown.
    pub started: u64,
    /// Identifies one boot of one host; empty if unknown.
    pub boot_id: String,
    /// The namespace of the pid; 0 if unknown.
    pub pid_namespace: u64,
}

impl ProcessIdentity {
    /// This process. Read from `/proc` (proc(5)) at the first call, and again in a forked child;
    /// elsewhere, only the pid is known.
    ///
    /// ```
    /// use worker_heartbeat::fleet::ProcessIdentity;
    ///
    /// let here = ProcessIdentity::current();
    /// println!("process {} on {}", here.pid, here.hostname);
    /// ```
    #[must_use]
    pub fn current() -> Self {
        static CURRENT: Mutex<Option<ProcessIdentity>> = Mutex::new(None);
        let mut current = CURRENT.lock();
        match &*current {
            Some(known) if known.pid == std::process::id() => known.clone(),
            _ => current.insert(Self::read()).clone(),
        }
    }

    fn read() -> Self {
        let line = |path| {
            fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let hostname = line("/proc/sys/kernel/hostname");
        let pid = std::process::id();
        Self {
            hostname: if hostname.is_empty() {
                "localhost".to_owned()
            } else {
                hostname
            },
            pid,
            started: Stat::read("/proc/self/stat")
                .filter(|_| !shifts_time())
                .map_or(0, |stat| stat.started),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            pid_namespace: fs::read_link("/proc/self/ns/pid")
                .ok()
                .and_then(|link| namespace_number(link.to_str()?))
                .unwrap_or(0),
        }
    }

    /// Whether the process is on this host, in the pid namespace of this process.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let here = Self::current();
        !self.boot_id.is_empty()
            && self.boot_id == here.boot_id
            && self.pid_namespace != 0
            && self.pid_namespace == here.pid_namespace
            && self.started != 0
    }

    /// Whether both are the same process; the host's name is for people.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.pid, self.started, self.pid_namespace)
            == (other.pid, other.started, other.pid_namespace)
            && self.boot_id == other.boot_id
    }

    /// Whether the kernel reports that the process is gone: no process has its pid, or a younger one
    /// has, or it is a zombie. `false` if it runs elsewhere, or if that cannot be known.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.fate().is_some()
    }

    /// How the process ended, if the kernel reports that it is gone.
    pub(crate) fn fate(&self) -> Option<Fate> {
        if !self.is_local() {
            return None;
        }
        let fate = match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(text) => fate(&Stat::parse(&text)?, self.started),
            // Only "not found" proves anything.
            Err(error) => {
                (error.kind() == std::io::ErrorKind::NotFound && sees_all()).then_some(Fate::Gone)
            }
        };
        fate.filter(|_| is_own_proc())
    }
}

/// How a process ended, as far as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// A signal killed it.
    Killed,
    /// It exited, or the kernel does not report how it ended.
    Gone,
}

/// Time since the host's boot, by a clock that cannot be set and that counts suspension; `None`
/// where there is no such clock.
#[cfg(any(feature = "beacon", feature = "sqlite"))]
pub(crate) fn uptime() -> Option<std::time::Duration> {
    #[cfg(target_os = "linux")]
    {
        use nix::time::{ClockId, clock_gettime};
        clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Into::into)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Whether `/proc` shows the processes of this process's own pid namespace. In a new namespace it shows
/// those of another one, under other numbers, until it is mounted again.
fn is_own_proc() -> bool {
    let here = std::process::id().to_string();
    let shows_here = fs::read_link("/proc/self").is_ok_and(|link| link.to_str() == Some(&*here));
    // This process's number in each namespace, from that of `/proc` to its own. Old kernels lack it.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    shows_here
        && numbers.is_none_or(|numbers| numbers.split_whitespace().eq([&*here]))
        && Stat::read("/proc/self/stat")
            .is_some_and(|stat| stat.started == ProcessIdentity::current().started)
}

/// Whether the time since boot is another one for this process than for others of the host: it is in
/// a time namespace (time_namespaces(7)), and so sees other start times of processes.
fn shifts_time() -> bool {
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    let mut fields = offsets
        .lines()
        .filter_map(|line| line.trim().strip_prefix("boottime"));
    fields.any(|offset| offset.split_whitespace().any(|part| part != "0"))
}

/// Whether `/proc` shows the processes of other users too: the mount option `hidepid` hides them
/// (`ProtectProc` in systemd).
fn sees_all() -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return false;
    };
    let mut proc = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(1) == Some(&"/proc"));
    // The last mount hides earlier ones.
    proc.next_back().is_some_and(|fields| {
        let options = fields.get(3).copied().unwrap_or_default().split(',');
        options
            .filter_map(|option| option.strip_prefix("hidepid="))
            .all(|hidden| matches!(hidden, "0" | "off"))
    })
}

/// `pid:[4026531836]`
fn namespace_number(link: &str) -> Option<u64> {
    link.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()
}

/// The bits of a wait status with the signal that ended a process; 0 if it exited.
const SIGNAL: i64 = 0x7f;

/// How the process with this start time ended, if this is the status of its pid.
fn fate(stat: &Stat, started: u64) -> Option<Fate> {
    if stat.started != started {
        return Some(Fate::Gone);
    }
    // It has not ended before its last thread has.
    let over = matches!(stat.state, 'Z' | 'X') && stat.threads <= 1;
    over.then_some(if stat.status & SIGNAL == 0 {
        Fate::Gone
    } else {
        Fate::Killed
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[cfg(target_os = "linux")]
    fn started(child: &std::process::Child) -> u64 {
        let stat = Stat::read(&format!("/proc/{}/stat", child.id()));
        stat.unwrap().started
    }

    #[test]
    fn this_process_is_not_gone() {
        let here = ProcessIdentity::current();
        assert_eq!(here.pid, std::process::id());
        assert!(!here.is_gone());
        assert!(!here.hostname.is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_killed_process_is_gone_even_before_its_parent_collects_it() {
        let mut child = Command::new("sleep")
            .arg("100")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let identity = ProcessIdentity {
            pid: child.id(),
            started: started(&child),
            ..ProcessIdentity::current()
        };
        assert!(identity.is_local() && !identity.is_gone());
        let elsewhere = ProcessIdentity {
            boot_id: "another".into(),
            ..identity.clone()
        };
        let younger = ProcessIdentity {
            started: identity.started + 1,
            ..identity.clone()
        };
        assert!(younger.is_gone(), "its pid was used again");
        child.kill().unwrap();
        while !identity.is_gone() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(identity.is_gone());
        assert!(!elsewhere.is_gone(), "other hosts cannot be seen");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_a_signal_that_the_kernel_reports_is_a_kill() {
        for (script, before, after) in [
            ("kill -KILL $$", Fate::Killed, Fate::Gone),
            ("kill -ABRT $$", Fate::Killed, Fate::Gone),
            ("exit 0", Fate::Gone, Fate::Gone),
            ("exit 137", Fate::Gone, Fate::Gone),
        ] {
            let mut child = Command::new("sh")
                .args(["-c", &format!("read line; ulimit -c 0; {script}")])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let identity = ProcessIdentity {
                pid: child.id(),
                started: started(&child),
                ..ProcessIdentity::current()
            };
            assert_eq!(identity.fate(), None, "{script}");
            drop(child.stdin.take());
            let fate = loop {
                match identity.fate() {
                    Some(fate) => break fate,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(fate, before, "{script}");
            child.wait().unwrap();
            assert_eq!(identity.fate(), Some(after), "{script}");
        }
    }

    #[test]
    fn a_wait_status_shows_whether_a_signal_ended_a_process() {
        let stat = |state, threads, status| Stat {
            id: 1,
            state,
            threads,
            started: 77,
            status,
        };
        let fate = |state, threads, status| super::fate(&stat(state, threads, status), 77);
        assert_eq!(fate('Z', 1, 9), Some(Fate::Killed));
        assert_eq!(fate('X', 0, 134), Some(Fate::Killed), "with a core");
        for status in [0, 3 << 8, 137 << 8] {
            assert_eq!(fate('Z', 1, status), Some(Fate::Gone), "{status:?}");
        }
        for state in ['S', 'R', 'T'] {
            // A stopped process may show the signal that stopped it.
            assert_eq!(fate(state, 1, 19), None);
        }
        assert_eq!(fate('Z', 2, 9), None, "threads of it still run");
        let younger = super::fate(&stat('Z', 1, 9), 76);
        assert_eq!(younger, Some(Fate::Gone));
    }

    #[test]
    fn a_namespace_has_a_number() {
        assert_eq!(namespace_number("pid:[4026531836]"), Some(4_026_531_836));
    }
}
