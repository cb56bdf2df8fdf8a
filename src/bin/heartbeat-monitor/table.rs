//! The workers as a table.

use std::io::{self, Write};
use std::mem;
use std::time::Duration;

use unicode_width::UnicodeWidthStr;
use worker_heartbeat::{StateCounts, StoredWorker};

use crate::printable::Printable;

const HEAD: [&str; 7] = [
    "WORKER",
    "TYPE",
    "GROUP",
    "STATE",
    "HEARTBEAT",
    "RUN",
    "TASK OR REASON",
];
/// Columns of a cell; longer texts are cut.
const MAX_WIDTH: usize = 60;

/// A table with columns as wide as its cells.
#[derive(Default)]
pub struct Table {
    widths: [usize; HEAD.len()],
    has_head: bool,
    has_details: bool,
}

impl Table {
    /// `has_details`: below the row of an unwell worker is the whole reason, and its call stack.
    pub fn new(has_details: bool) -> Self {
        Self {
            has_details,
            ..Self::default()
        }
    }

    /// Adds these rows, below the head if they are the first. Later rows are aligned with earlier ones
    /// unless they need more room.
    pub fn write(&mut self, out: &mut impl Write, workers: &[StoredWorker]) -> io::Result<()> {
        let head = (!mem::replace(&mut self.has_head, true)).then(|| HEAD.map(str::to_owned));
        let rows: Vec<_> = workers.iter().map(row).collect();
        for row in head.iter().chain(&rows) {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let line = |row: &[String; HEAD.len()]| {
            let cells = row.iter().zip(self.widths);
            let line: String = cells
                .map(|(cell, width)| {
                    let padding = width.saturating_sub(cell.width()) + 2;
                    format!("{cell}{:padding$}", "")
                })
                .collect();
            line.trim_end().to_owned()
        };
        if let Some(head) = head {
            writeln!(out, "{}", line(&head))?;
        }
        for (row, worker) in rows.iter().zip(workers) {
            writeln!(out, "{}", line(row))?;
            if self.has_details {
                write_details(out, worker)?;
            }
        }
        Ok(())
    }
}

/// The last line of the table.
pub fn totals(states: &StateCounts) -> String {
    let total = states.total();
    let plural = if total == 1 { "" } else { "s" };
    let mut text = format!("{total} worker{plural}");
    let counts = states.iter().filter(|(_, count)| *count > 0);
    for (n, (state, count)) in counts.enumerate() {
        let separator = if n == 0 { ": " } else { ", " };
        text.push_str(&format!("{separator}{count} {state}"));
    }
    text
}

/// The whole reason, and the call stack, of an unwell worker.
fn write_details(out: &mut impl Write, worker: &StoredWorker) -> io::Result<()> {
    let Some(reason) = worker.reason().filter(|_| !worker.health().is_recent()) else {
        return Ok(());
    };
    writeln!(out, "  {}", clean(&reason))?;
    for line in worker.call_stack().into_iter().flat_map(str::lines) {
        writeln!(out, "    {}", clean(line))?;
    }
    Ok(())
}

fn row(worker: &StoredWorker) -> [String; 7] {
    let health = worker.health();
    let task_or_reason = match (worker.reason(), worker.status.progress) {
        (Some(reason), _) => reason,
        (None, Some((done, all))) => {
            let task = worker.status.task.as_deref().unwrap_or("at work");
            format!("{task}, {done} of {all}")
        }
        (None, None) => worker.status.task.clone().unwrap_or_default(),
    };
    [
        cell(&worker.key.id),
        cell(&worker.info.worker_type),
        cell(&worker.info.group),
        health.state().to_string(),
        worker.heartbeat_age.map_or_else(|| "never".to_owned(), ago),
        cell(worker.status.run_id.as_deref().unwrap_or_default()),
        cell(&task_or_reason),
    ]
}

fn ago(age: Duration) -> String {
    let tenths = if age.as_secs() < 10 {
        age.subsec_millis() / 100
    } else {
        0
    };
    let rounded = Duration::new(age.as_secs(), tenths * 100_000_000);
    format!("{} ago", humantime::format_duration(rounded))
}

fn cell(text: &str) -> String {
    cut(clean(text))
}

/// Cuts a text that takes too many columns: some characters take two, and some are a part of the one
/// before them.
fn cut(text: String) -> String {
    if text.width() <= MAX_WIDTH {
        return text;
    }
    let ends = text.char_indices().map(|(start, _)| start);
    let fits = |end: &usize| {
        text.get(..*end)
            .is_some_and(|part| part.width() < MAX_WIDTH)
    };
    let end = ends.take_while(fits).last().unwrap_or_default();
    format!("{}…", text.get(..end).unwrap_or_default())
}

/// Escapes a text from outside for the terminal.
pub fn clean(text: &str) -> String {
    Printable(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_heartbeat::fleet::{WorkerInfo, WorkerKey};

    fn columns(line: &str, text: &str) -> usize {
        line[..line.find(text).expect(text)].width()
    }

    #[test]
    fn wide_and_combining_characters_break_no_column() {
        let worker = |id: &str, worker_type: &str| {
            StoredWorker::new(WorkerKey::new(id, 1), WorkerInfo::new(worker_type))
        };
        let long = "検".repeat(100);
        let workers = [
            worker("plain", "poller"),
            worker("検索-1", "検索"),
            worker("e\u{301}te\u{301}", "poller"),
            worker(&long, "poller"),
            worker("a\u{202e}b", "poller"),
        ];
        let mut out = Vec::new();
        Table::default().write(&mut out, &workers).unwrap();
        let text = String::from_utf8(out).unwrap();
        let places: Vec<_> = text
            .lines()
            .skip(1)
            .map(|line| columns(line, "local"))
            .collect();
        assert_eq!(places.len(), workers.len());
        assert!(
            places.iter().all(|place| *place == places[0]),
            "{places:?}\n{text}"
        );
        assert!(text.contains("a\\u{202e}b"), "{text}");
        assert!(cut(long).width() <= MAX_WIDTH);
    }
}
