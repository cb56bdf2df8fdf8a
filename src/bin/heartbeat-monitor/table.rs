//! The workers as a table.

use std::io::{self, Write};
use std::mem;

use unicode_width::UnicodeWidthStr;
use worker_heartbeat::{State, StoredWorker};

use crate::screen::{END, Look};
use crate::text::{ago, clean, cut, cut_middle, pad};

const COLUMNS: usize = 7;
pub const HEAD: [&str; COLUMNS] = [
    "WORKER",
    "TYPE",
    "GROUP",
    "STATE",
    "HEARTBEAT",
    "RUN",
    "TASK OR REASON",
];
/// The column of the state, which has a colour.
const STATE: usize = 3;
/// The column of the run, which few workers have.
const RUN: usize = 5;
/// The widest that each column is where the width is not limited.
const WIDEST: usize = 60;
/// What remains of each column where the width is limited. States and times are never cut.
const LEAST: [usize; COLUMNS] = [14, 8, 8, WIDEST, WIDEST, 6, 20];
/// The columns that are left out, one after the other, where even that does not fit.
const DROPPED: [usize; 4] = [RUN, 2, 1, 6];
/// The columns that get back what is to spare, one after the other.
const GROWING: [usize; 5] = [0, 6, 1, 2, RUN];
/// Between two columns.
const GAP: usize = 2;

/// The cells of a worker.
pub type Row = [String; COLUMNS];

/// The widths of the columns.
#[derive(Clone, Copy, Default)]
pub struct Columns {
    /// 0: a column is left out.
    widths: [usize; COLUMNS],
    /// Whether a worker has something in the column.
    filled: [bool; COLUMNS],
}

/// A cell as it is shown.
pub struct Piece {
    pub text: String,
    pub look: Look,
    /// The columns that it takes, with the gap behind it; 0: as many as its text.
    width: usize,
}

impl Piece {
    pub fn padded(&self) -> String {
        pad(&self.text, self.width)
    }
}

impl Columns {
    /// Makes room for the head.
    pub fn add_head(&mut self) {
        let heads = self.widths.iter_mut().zip(HEAD);
        heads.for_each(|(width, head)| *width = (*width).max(head.len()));
    }

    /// Makes room for this row.
    pub fn add(&mut self, row: &Row) {
        for (column, cell) in row.iter().enumerate() {
            let width = &mut self.widths[column];
            *width = (*width).max(cell.width().min(WIDEST));
            self.filled[column] |= !cell.is_empty();
        }
    }

    /// As narrow as the terminal demands: columns without content are left out, the widest are cut,
    /// and what is to spare is given back.
    pub fn fitted(mut self, width: Option<usize>) -> Self {
        let Some(width) = width else { return self };
        let natural = self.widths;
        if self.needed() > width && !self.filled[RUN] {
            self.widths[RUN] = 0;
        }
        let mut dropped = DROPPED.into_iter();
        while self.needed() > width {
            let flexible = (0..COLUMNS).filter(|column| self.widths[*column] > LEAST[*column]);
            if let Some(widest) = flexible.max_by_key(|column| self.widths[*column]) {
                self.widths[widest] -= 1;
            } else if let Some(column) = dropped.next() {
                self.widths[column] = 0;
            } else if self.widths[0] > 1 {
                self.widths[0] -= 1;
            } else {
                break;
            }
        }
        for column in GROWING {
            let spare = width.saturating_sub(self.needed());
            if self.widths[column] > 0 {
                self.widths[column] = natural[column].min(self.widths[column] + spare);
            }
        }
        self
    }

    fn needed(&self) -> usize {
        let shown = self.widths.iter().filter(|width| **width > 0);
        let needed: usize = shown.map(|width| width + GAP).sum();
        needed.saturating_sub(GAP)
    }

    /// The cells of a row. Nothing stands behind the last one that is not empty.
    pub fn pieces(&self, row: &Row, look: Look, of_state: Look) -> Vec<Piece> {
        let shown = (0..COLUMNS).filter(|column| self.widths[*column] > 0);
        let last = shown.clone().rfind(|column| !row[*column].is_empty());
        let shown = shown.take_while(|column| Some(*column) <= last);
        let piece = |column: usize| {
            let width = self.widths[column];
            Piece {
                text: match column {
                    0 => cut_middle(&row[column], width),
                    _ => cut(&row[column], width),
                },
                look: if column == STATE { of_state } else { look },
                width: if Some(column) == last { 0 } else { width + GAP },
            }
        };
        shown.map(piece).collect()
    }
}

/// A table with columns as wide as its cells, or as the terminal allows.
#[derive(Default)]
pub struct Table {
    columns: Columns,
    has_head: bool,
    pub has_details: bool,
    pub colors: bool,
    /// The columns of the terminal.
    pub width: Option<usize>,
}

impl Table {
    /// Adds these rows, below the head if they are the first. Later rows are aligned with earlier ones
    /// unless they need more room.
    pub fn write(&mut self, out: &mut impl Write, workers: &[StoredWorker]) -> io::Result<()> {
        let head = (!mem::replace(&mut self.has_head, true)).then(|| HEAD.map(str::to_owned));
        let rows: Vec<_> = workers.iter().map(row).collect();
        if head.is_some() {
            self.columns.add_head();
        }
        rows.iter().for_each(|row| self.columns.add(row));
        let columns = self.columns.fitted(self.width);
        if let Some(head) = head {
            self.write_line(out, &columns.pieces(&head, Look::Bold, Look::Bold))?;
        }
        for (row, worker) in rows.iter().zip(workers) {
            let look = Look::of(worker.health().state());
            self.write_line(out, &columns.pieces(row, Look::Plain, look))?;
            if self.has_details {
                write_details(out, worker)?;
            }
        }
        Ok(())
    }

    fn write_line(&self, out: &mut impl Write, pieces: &[Piece]) -> io::Result<()> {
        let mut line = String::new();
        for piece in pieces {
            let (begin, padded) = (piece.look.begin(), piece.padded());
            let padding = padded.get(piece.text.len()..).unwrap_or_default();
            if self.colors && !begin.is_empty() {
                line += &format!("{begin}{}{END}{padding}", piece.text);
            } else {
                line += &padded;
            }
        }
        if let Some(width) = self.width.filter(|_| !self.colors) {
            line = cut(&line, width);
        }
        writeln!(out, "{line}")
    }
}

/// The last line of the table: how many workers are in which states.
pub fn totals(states: impl Iterator<Item = (State, usize)>) -> String {
    let states: Vec<_> = states.filter(|(_, count)| *count > 0).collect();
    let total: usize = states.iter().map(|(_, count)| count).sum();
    let plural = if total == 1 { "" } else { "s" };
    let mut text = format!("{total} worker{plural}");
    for (n, (state, count)) in states.into_iter().enumerate() {
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

/// Its task, with the progress.
pub fn task(worker: &StoredWorker) -> String {
    let task = worker.status.task.as_deref();
    match worker.status.progress {
        Some((done, all)) => format!("{}, {done} of {all}", task.unwrap_or("at work")),
        None => task.unwrap_or_default().to_owned(),
    }
}

pub fn heard(worker: &StoredWorker) -> String {
    worker.heartbeat_age.map_or_else(|| "never".to_owned(), ago)
}

pub fn row(worker: &StoredWorker) -> Row {
    [
        clean(&worker.key.id),
        clean(&worker.info.worker_type),
        clean(&worker.info.group),
        worker.health().state().to_string(),
        heard(worker),
        clean(worker.status.run_id.as_deref().unwrap_or_default()),
        clean(&worker.reason().unwrap_or_else(|| task(worker))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_heartbeat::fleet::{WorkerInfo, WorkerKey};

    fn columns(line: &str, text: &str) -> usize {
        line[..line.find(text).expect(text)].width()
    }

    fn worker(id: &str, worker_type: &str) -> StoredWorker {
        StoredWorker::new(WorkerKey::new(id, 1), WorkerInfo::new(worker_type))
    }

    fn drawn(mut table: Table, workers: &[StoredWorker]) -> String {
        let mut out = Vec::new();
        table.write(&mut out, workers).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn wide_and_combining_characters_break_no_column() {
        let long = "検".repeat(100);
        let workers = [
            worker("plain", "poller"),
            worker("検索-1", "検索"),
            worker("e\u{301}te\u{301}", "poller"),
            worker(&long, "poller"),
            worker("a\u{202e}b", "poller"),
        ];
        for width in [None, Some(200), Some(100)] {
            let table = Table {
                width,
                ..Table::default()
            };
            let text = drawn(table, &workers);
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
            let widest = text.lines().map(UnicodeWidthStr::width).max();
            assert!(widest <= Some(width.unwrap_or(200)), "{text}");
        }
    }

    #[test]
    fn a_table_fits_every_width_and_says_the_state_in_the_narrowest() {
        let mut workers: Vec<_> = (0..20)
            .map(|n| worker(&format!("fleet-east-billing-{n:04}"), "company_research"))
            .collect();
        workers[7].status.run_id = Some("run-".repeat(20));
        workers[8].status.reason = Some("検".repeat(200));
        workers[8].status.state = State::Stalled;
        workers[8].heartbeat_age = Some(std::time::Duration::from_secs(1));
        for width in 1..200 {
            let table = Table {
                width: Some(width),
                ..Table::default()
            };
            let text = drawn(table, &workers);
            for line in text.lines() {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
            if width >= 40 {
                assert!(text.contains("STATE"), "{width}: {text}");
                assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
            }
            if width >= 80 {
                let row = text.lines().find(|line| line.contains("stalled")).unwrap();
                assert!(row.contains("検検") && row.contains("-0008"), "{row}");
            }
        }
    }

    #[test]
    fn colours_change_no_column() {
        let workers = [worker("a", "poller"), worker("b", "poller")];
        let plain = Table {
            width: Some(80),
            ..Table::default()
        };
        let plain = drawn(plain, &workers);
        let colored = Table {
            colors: true,
            width: Some(80),
            ..Table::default()
        };
        let colored = drawn(colored, &workers);
        assert!(
            colored.contains("\u{1b}[33mstarting\u{1b}[0m"),
            "{colored:?}"
        );
        let mut without = String::new();
        for (n, part) in colored.split("\u{1b}[").enumerate() {
            let part = if n == 0 {
                part
            } else {
                part.split_once('m').unwrap().1
            };
            without += part;
        }
        assert_eq!(without, plain);
    }
}
