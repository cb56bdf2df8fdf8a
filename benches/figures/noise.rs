//! How quiet the machine is: the same work again and again, and the pauses that it puts into it.

use std::fmt;
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::contest::Spread;

/// Times of a loop that is always the same, and takes about a millisecond on a quiet machine.
pub(crate) struct Noise {
    micros: Spread,
    /// The longest time for which a thread that never waits was not run.
    longest_pause: Duration,
}

impl Noise {
    pub(crate) fn measure() -> Self {
        let micros = Spread::of((0..300).map(|_| {
            let begun = Instant::now();
            fixed_work();
            begun.elapsed().as_secs_f64() * 1e6
        }));
        Self {
            micros,
            longest_pause: longest_pause(Duration::from_millis(700)),
        }
    }
}

fn fixed_work() {
    let mut value = 1_u64;
    for _ in 0..400_000 {
        // Each step waits for the one before.
        value = black_box(value ^ value << 13 ^ value >> 7);
    }
    black_box(value);
}

fn longest_pause(window: Duration) -> Duration {
    let begun = Instant::now();
    let (mut last, mut longest) = (begun, Duration::ZERO);
    while last.duration_since(begun) < window {
        let now = Instant::now();
        longest = longest.max(now.duration_since(last));
        last = now;
    }
    longest
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max } = self.micros;
        write!(
            f,
            "{median:.0} µs ({min:.0}..{max:.0}), longest pause {:.1} ms",
            self.longest_pause.as_secs_f64() * 1e3
        )
    }
}

/// Processor, number of cores and compiler.
pub(crate) fn machine() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let compiler = Command::new("rustc").arg("-V").output();
    let compiler = compiler.map_or_else(
        |_| "unknown compiler".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    format!("{processor}, {cores} cores; {compiler}")
}
