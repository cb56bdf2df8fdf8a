//! Log lines: few enough to be read, and never the death of whoever writes them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Moment;

/// At most this many lines are written in one window.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts what a registry logs.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    since: Moment,
    lines: u32,
    left_out: u64,
}

impl Journal {
    pub(super) fn write(&self, now: Moment, level: log::Level, text: &dyn std::fmt::Display) {
        if level > log::max_level() {
            return;
        }
        let left_out = {
            let mut window = self.window.lock();
            window.turn(now);
            if window.lines >= LINES {
                window.left_out += 1;
                return;
            }
            window.lines += 1;
            std::mem::take(&mut window.left_out)
        };
        tell_left_out(left_out);
        say(level, format_args!("{text}"));
    }

    /// Tells what was left out, once its window is over.
    pub(super) fn tick(&self, now: Moment) {
        let left_out = {
            let mut window = self.window.lock();
            if window.left_out == 0 || !window.turn(now) {
                return;
            }
            std::mem::take(&mut window.left_out)
        };
        tell_left_out(left_out);
    }
}

impl Window {
    fn turn(&mut self, now: Moment) -> bool {
        let over = now.since(self.since) >= WINDOW;
        if over {
            self.since = now;
            self.lines = 0;
        }
        over
    }
}

fn tell_left_out(lines: u64) {
    if lines > 0 {
        say(
            log::Level::Warn,
            format_args!("{lines} messages about workers were left out"),
        );
    }
}

/// Logs one line. A log implementation that panics harms nobody but itself.
pub(crate) fn say(level: log::Level, text: std::fmt::Arguments<'_>) {
    let written = catch_unwind(AssertUnwindSafe(|| {
        log::log!(target: "worker_heartbeat", level, "{text}");
    }));
    if let Err(payload) = written {
        crate::panics::dispose(payload);
    }
}
