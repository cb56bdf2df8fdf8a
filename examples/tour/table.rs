//! One table of all workers: what each one does, and its health as the crate reports it.

use std::time::Duration;

use worker_heartbeat::{Snapshot, StackCapture, State};

use crate::farm::ROLE;

/// The style of a line, where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tint {
    Plain,
    Bold,
    Dim,
    Yellow,
    Red,
}

/// One line of text, without control characters.
#[derive(Debug)]
pub struct Line {
    pub text: String,
    pub tint: Tint,
}

impl Line {
    pub fn new(text: impl AsRef<str>, tint: Tint) -> Self {
        Self {
            text: printable(text.as_ref()),
            tint,
        }
    }

    pub fn plain(text: impl AsRef<str>) -> Self {
        Self::new(text, Tint::Plain)
    }
}

/// Below this width, the table omits the column of roles.
const WIDE: usize = 100;
const HEADING: [&str; 7] = [
    "WORKER",
    "WHAT IT DOES",
    "STATE",
    "PROGRESS",
    "HEARTBEAT",
    "RESTARTS",
    "TASK",
];

/// The heading, and a row for each worker; below the row of an unwell one, the reason.
pub fn rows(workers: &[Snapshot], columns: usize) -> Vec<Line> {
    let wide = columns >= WIDE;
    let mut lines = vec![Line::new(row(wide, HEADING), Tint::Bold)];
    for worker in workers {
        let state = worker.health.state();
        let why = why(worker);
        let unwell = tint(state) == Tint::Red || tint(state) == Tint::Yellow;
        let cells = [
            &worker.id,
            role(worker),
            &name(state),
            &worker.progress_age.map_or("-".to_owned(), ago),
            &worker.heartbeat_age.map_or("never".to_owned(), ago),
            &worker.restarts.to_string(),
            match &why {
                Some(why) if !unwell => why,
                _ => &task(worker),
            },
        ];
        lines.push(Line::new(row(wide, cells), tint(state)));
        if let Some(why) = why.filter(|_| unwell) {
            lines.extend(wrapped(&why, columns).map(|text| Line::new(text, tint(state))));
        }
    }
    lines
}

pub fn name(state: State) -> String {
    state.name().replace('_', " ")
}

fn row(wide: bool, cells: [&str; 7]) -> String {
    let [id, role, state, progress, heartbeat, restarts, task] = cells;
    let role = if wide {
        format!("{role:<24}")
    } else {
        String::new()
    };
    let text =
        format!("{id:<11} {role}{state:<13} {progress:>10} {heartbeat:>10} {restarts:>9}   {task}");
    text.trim_end().to_owned()
}

/// Wraps a reason to at most three lines.
fn wrapped(why: &str, columns: usize) -> impl Iterator<Item = String> {
    const INDENTED: usize = 4;
    let mut lines = vec![String::from("  └")];
    let mut length = INDENTED;
    for word in why.split(' ') {
        length += 1 + word.chars().count();
        if length > columns && lines.len() < 3 {
            lines.push("   ".to_owned());
            length = INDENTED + word.chars().count();
        }
        if let Some(line) = lines.last_mut() {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.into_iter()
}

fn role(worker: &Snapshot) -> &str {
    let role = worker.metadata.iter().find(|(name, _)| name == ROLE);
    role.map_or("", |(_, role)| role)
}

/// The run, progress and task; the end may be cut.
fn task(worker: &Snapshot) -> String {
    let mut parts: Vec<String> = worker.run_id.iter().cloned().collect();
    if let Some((done, total)) = worker.progress {
        parts.push(format!("{done} of {total}"));
    }
    parts.extend(worker.task.clone());
    parts.join(", ")
}

/// The reason of the health, if it has one; the state has its own column.
fn why(worker: &Snapshot) -> Option<String> {
    let sentence = worker.health.to_string();
    let (_state, reason) = sentence.split_once(": ")?;
    // The call stack is in the reason; why there is none is not.
    Some(match &worker.stack {
        Some(missing @ StackCapture::Missing(_)) => format!("{reason}; {missing}"),
        _ => reason.to_owned(),
    })
}

const fn tint(state: State) -> Tint {
    match state {
        State::Starting | State::Stopped => Tint::Dim,
        state if state.is_recent() => Tint::Plain,
        state if state.is_offline() => Tint::Red,
        _ => Tint::Yellow,
    }
}

fn ago(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..100 => format!("{seconds}.{} s ago", age.subsec_millis() / 100),
        seconds => format!("{} min ago", seconds / 60),
    }
}

/// Replaces control characters and those that change the direction of writing: file names may hold
/// any character.
fn printable(text: &str) -> String {
    let redirects =
        |character| matches!(character, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|character| {
            if character.is_control() || redirects(character) {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect()
}
