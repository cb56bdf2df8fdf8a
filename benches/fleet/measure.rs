//! Memory and processor time of processes.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

use crate::contest::Spread;

/// Seconds of the processor that this process used.
pub(crate) fn own_cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the usage");
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Seconds of the processor that these processes used, and the children that the first of them
/// collected.
pub(crate) fn cpu_of(pids: &[i32]) -> f64 {
    let ticks = pids.iter().enumerate().map(|(n, pid)| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<f64> = fields
            .split_whitespace()
            .filter_map(|f| f.parse().ok())
            .collect();
        // The state is no number: utime, stime, cutime and cstime are the 11th to 14th of the others.
        let last = if n == 0 { 14 } else { 12 };
        fields.get(10..last).map_or(0.0, |times| times.iter().sum())
    });
    ticks.sum::<f64>() / 100.0
}

/// The most memory that this process has had, in megabytes.
pub(crate) fn peak_mb(pid: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kb.unwrap_or_default() / 1024.0
}

/// Runs a program, and reports its time, its output and its memory: the only child of this process.
pub(crate) fn run_program(arguments: &[String]) {
    let repeats: usize = arguments[0].parse().expect("a number");
    let (mut millis, mut kilobytes) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for _ in 0..repeats {
        let started = Instant::now();
        let mut child = Command::new(&arguments[1])
            .args(&arguments[2..])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program");
        let mut length = 0;
        let mut buffer = vec![0; 1 << 16];
        let mut output = child.stdout.take().expect("a pipe");
        while let Ok(read @ 1..) = output.read(&mut buffer) {
            length += read;
        }
        let status = child.wait().expect("an end");
        assert!(status.code().is_some_and(|code| code <= 1), "{status}");
        millis.push(started.elapsed().as_secs_f64() * 1e3);
        kilobytes.push(length as f64 / 1024.0);
        if begun.elapsed() > crate::PATIENCE {
            break;
        }
    }
    report("ms", &millis);
    report("kB", &kilobytes);
    let children = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage");
    println!("memory {}", children.max_rss() as f64 / 1024.0);
}

/// Writes figures for [`Reported`].
pub(crate) fn report(name: &str, figures: &[f64]) {
    let figures: Vec<String> = figures.iter().map(ToString::to_string).collect();
    println!("figures {name} {}", figures.join(" "));
}

/// What the servers used while a client sent heartbeats.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub wal: Option<f64>,
    pub server_cpu: Option<f64>,
    pub connections: Option<f64>,
}

/// What a process reported.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    figures: Vec<(String, Vec<f64>)>,
    pub memory_mb: f64,
    pub used: Used,
}

impl Reported {
    /// Reads a line of it.
    pub(crate) fn read(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("figures") => {
                let name = words.next().unwrap_or_default().to_owned();
                let figures = words.filter_map(|word| word.parse().ok()).collect();
                self.figures.push((name, figures));
            }
            Some("memory") => {
                let memory = words.next().and_then(|word| word.parse().ok());
                self.memory_mb = memory.unwrap_or_default();
            }
            _ => eprintln!("{line}"),
        }
    }

    fn of(&self, name: &str) -> &[f64] {
        let found = self.figures.iter().find(|(other, _)| other == name);
        found.map_or_else(|| panic!("no {name} in {self:?}"), |(_, figures)| figures)
    }

    pub(crate) fn spread(&self, name: &str) -> Spread {
        Spread::of(self.of(name).iter().copied())
    }

    pub(crate) fn total(&self, name: &str) -> f64 {
        self.of(name).iter().sum()
    }
}
