//! Workers as a table for people.

use std::io::{self, Write};
use std::time::Duration;

use worker_heartbeat::{StoredWorker, Summary};

use crate::printable::Printable;

const HEAD: [&str; 7] = [
    "WORKER",
    "TYPE",
    "GROUP",
    "STATE",
    "HEARTBEAT",
    "RUN",
    "TASK, OR WHY",
];
/// Longer texts are cut: a table is for looking at.
const WIDEST: usize = 60;

/// Writes a row for each worker, in columns.
pub fn write(out: &mut impl Write, workers: &[StoredWorker]) -> io::Result<()> {
    let rows: Vec<[String; 7]> = workers.iter().map(row).collect();
    let head = HEAD.map(str::to_owned);
    let mut widths = HEAD.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in std::iter::once(&head).chain(&rows) {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The last line of the table.
pub fn totals(summary: &Summary) -> String {
    let counts = summary.states.iter().filter(|(_, count)| *count > 0);
    let states: Vec<_> = counts
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let workers = if summary.total == 1 {
        "worker"
    } else {
        "workers"
    };
    let mut text = format!("{} {workers}", summary.total);
    if !states.is_empty() {
        text.push_str(": ");
        text.push_str(&states.join(", "));
    }
    text
}

fn row(worker: &StoredWorker) -> [String; 7] {
    let health = worker.health();
    let why = match (health.reason(), worker.progress) {
        (Some(reason), _) => reason,
        (None, Some((done, all))) => {
            format!(
                "{}, {done} of {all}",
                worker.task.as_deref().unwrap_or("at work")
            )
        }
        (None, None) => worker.task.clone().unwrap_or_default(),
    };
    [
        cell(&worker.key.id),
        cell(&worker.worker_type),
        cell(&worker.group),
        health.state().to_string(),
        worker.heartbeat_age.map_or_else(|| "never".to_owned(), ago),
        cell(worker.run_id.as_deref().unwrap_or_default()),
        cell(&why),
    ]
}

fn ago(age: Duration) -> String {
    let age = Duration::from_millis(u64::try_from(age.as_millis()).unwrap_or(u64::MAX) / 100 * 100);
    let age = if age >= Duration::from_secs(10) {
        Duration::from_secs(age.as_secs())
    } else {
        age
    };
    format!("{} ago", humantime::format_duration(age))
}

fn cell(text: &str) -> String {
    let text = clean(text);
    if text.chars().count() <= WIDEST {
        return text;
    }
    text.chars().take(WIDEST - 1).chain(['…']).collect()
}

/// An untrusted text, escaped for a terminal.
pub fn clean(text: &str) -> String {
    Printable(text).to_string()
}
