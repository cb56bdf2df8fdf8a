//! Rate-limits log lines, and contains the panics of log implementations.

use std::time::Duration;

use parking_lot::Mutex;

use super::counts::Count;
use super::events::{Event, EventKind};
use crate::clock::Moment;
use crate::health::LONGEST_TEXT;
use crate::sync::log::{log_fields, log_line};
use crate::sync::printable::Printable;

/// At most this many lines of a kind are written in one window.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);
/// Lines are counted by kind, so that no flood of other lines suppresses a death. Each kind has the
/// level of the line that counts what was suppressed.
const KINDS: [(log::Level, &str); 3] = [
    (log::Level::Error, "errors"),
    (log::Level::Warn, "warnings"),
    (log::Level::Warn, "messages"),
];

/// The log limits of a registry.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    windows: Mutex<[Window; KINDS.len()]>,
    suppressed: Count,
}

#[derive(Debug, Default)]
struct Window {
    since: Moment,
    lines: u32,
    left_out: u64,
}

impl LogLimiter {
    pub(super) fn write(&self, now: Moment, event: &Event) {
        let level = event.level();
        if level > log::max_level() {
            return;
        }
        let kind = match level {
            log::Level::Error => 0,
            log::Level::Warn => 1,
            _ => 2,
        };
        let left_out = {
            let window = &mut self.windows.lock()[kind];
            window.turn(now);
            if window.lines >= LINES {
                window.left_out += 1;
                self.suppressed.add(1);
                return;
            }
            window.lines += 1;
            std::mem::take(&mut window.left_out)
        };
        log_left_out(kind, left_out);
        log_fields(level, format_args!("{event}"), &event.fields());
        if let EventKind::StackCaptured { stack } = &event.kind {
            let text = stack.text(LONGEST_TEXT);
            let id = Printable(event.id());
            log_fields(
                log::Level::Debug,
                format_args!("worker {id}: call stack\n{text}"),
                &event.fields(),
            );
        }
    }

    /// How many lines were suppressed so far.
    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed.get()
    }

    /// Logs the number of suppressed lines once its window is over. With `last`, logs it at once,
    /// since no later call may come, but only once in a window.
    pub(super) fn tick(&self, now: Moment, last: bool) {
        let left_out = {
            let mut windows = self.windows.lock();
            windows.each_mut().map(|window| {
                if window.left_out == 0 || !(window.turn(now) || last && window.lines == LINES) {
                    return 0;
                }
                window.lines += u32::from(last);
                std::mem::take(&mut window.left_out)
            })
        };
        for (kind, left_out) in left_out.into_iter().enumerate() {
            log_left_out(kind, left_out);
        }
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

fn log_left_out(kind: usize, lines: u64) {
    if lines > 0 {
        let (level, kind) = KINDS[kind];
        log_line(
            level,
            format_args!("{lines} {kind} about workers were left out"),
        );
    }
}
