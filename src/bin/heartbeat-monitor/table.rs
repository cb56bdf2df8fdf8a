//! The workers as a table.

use std::io::{self, Write};
use std::mem;
use std::time::Duration;

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
/// Longer texts are cut.
const MAX_WIDTH: usize = 60;

/// A table with columns as wide as its cells.
#[derive(Default)]
pub struct Table {
    widths: [usize; HEAD.len()],
    has_head: bool,
}

impl Table {
    /// Adds these rows, below the head if they are the first. Later rows are aligned with earlier ones
    /// unless they need more room.
    pub fn write(&mut self, out: &mut impl Write, workers: &[StoredWorker]) -> io::Result<()> {
        let mut rows = Vec::with_capacity(workers.len() + 1);
        if !mem::replace(&mut self.has_head, true) {
            rows.push(HEAD.map(str::to_owned));
        }
        rows.extend(workers.iter().map(row));
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &rows {
            let cells = row.iter().zip(self.widths);
            let line: String = cells
                .map(|(cell, width)| format!("{cell:width$}  "))
                .collect();
            writeln!(out, "{}", line.trim_end())?;
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

fn row(worker: &StoredWorker) -> [String; 7] {
    let health = worker.health();
    let task_or_reason = match (health.reason(), worker.status.progress) {
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
    let text = clean(text);
    if text.chars().count() <= MAX_WIDTH {
        return text;
    }
    text.chars().take(MAX_WIDTH - 1).chain(['…']).collect()
}

/// Escapes a text from outside for the terminal.
pub fn clean(text: &str) -> String {
    Printable(text).to_string()
}
