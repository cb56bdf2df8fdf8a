//! How much memory is left for debug information: a container may have little.

use std::fs;

/// The least of what the host has available, and of what the control group of this process may still
/// take. `u64::MAX` if neither is known.
pub(super) fn free_memory() -> u64 {
    let host = fs::read_to_string("/proc/meminfo").ok();
    let host = host.and_then(|text| available(&text));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let read = |path: String| fs::read_to_string(path).ok();
    let group = groups(&own).filter_map(|group| left(&group, read)).min();
    host.into_iter().chain(group).min().unwrap_or(u64::MAX)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The directories of the process's control groups and of those that contain them, as `/proc/self/cgroup`
/// names them (cgroups(7)). In a container, the first one is the file system's root.
fn groups(own: &str) -> impl Iterator<Item = String> {
    let paths = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            names if names.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
            _ => return None,
        };
        Some((root, path))
    });
    paths.flat_map(|(root, path)| {
        let ends = path.match_indices('/').map(|(end, _)| end);
        let ends = ends.chain([path.len()]);
        ends.map(move |end| format!("{root}{}", &path[..end]))
    })
}

/// What a control group may still take. File pages can be dropped, so they don't count as taken.
fn left(group: &str, read: impl Fn(String) -> Option<String>) -> Option<u64> {
    let number = |name: &str| read(format!("{group}/{name}"))?.trim().parse::<u64>().ok();
    // Version 2, then version 1, in which a huge number stands for no limit.
    let (most, taken) = match number("memory.max") {
        Some(most) => (most, number("memory.current")?),
        None => (
            number("memory.limit_in_bytes")?,
            number("memory.usage_in_bytes")?,
        ),
    };
    let stat = read(format!("{group}/memory.stat")).unwrap_or_default();
    let file_pages = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok());
    Some(most.saturating_sub(taken.saturating_sub(file_pages.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_says_what_is_available() {
        let text = "MemTotal:  4028 kB\nMemAvailable:    1000 kB\n";
        assert_eq!(available(text), Some(1_024_000));
        assert_eq!(available("MemTotal: 4028 kB"), None);
        assert!(free_memory() > 0);
    }

    #[test]
    fn every_control_group_around_the_process_counts() {
        let found: Vec<_> = groups("0::/a/b\n").collect();
        assert_eq!(
            found,
            ["/sys/fs/cgroup", "/sys/fs/cgroup/a", "/sys/fs/cgroup/a/b"]
        );
        let old: Vec<_> = groups("5:cpu:/a\n4:memory,hugetlb:/b\nodd\n").collect();
        assert_eq!(old, ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/b"]);
    }

    #[test]
    fn a_control_group_says_what_is_left() {
        let files = |entries: &'static [(&'static str, &'static str)]| {
            move |path: String| {
                let found = entries.iter().find(|(name, _)| path == format!("g/{name}"));
                found.map(|(_, text)| (*text).to_owned())
            }
        };
        let limited = files(&[
            ("memory.max", "1000\n"),
            ("memory.current", "700\n"),
            ("memory.stat", "anon 1\ninactive_file 200\n"),
        ]);
        assert_eq!(left("g", limited), Some(500));
        let unlimited = files(&[("memory.max", "max\n"), ("memory.current", "700\n")]);
        assert_eq!(left("g", unlimited), None);
        let old = files(&[
            ("memory.limit_in_bytes", "1000"),
            ("memory.usage_in_bytes", "2000"),
        ]);
        assert_eq!(left("g", old), Some(0));
    }
}
