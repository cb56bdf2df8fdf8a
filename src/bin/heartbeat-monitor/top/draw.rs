//! Draws `top`.

use std::time::{Duration, SystemTime};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Wrap};
use worker_heartbeat::State;
use worker_heartbeat::fleet::StoredWorker;

use super::app::{App, Pane};
use super::changes::Change;
use super::reader::MOST_ROWS;
use crate::screen::Look;
use crate::table::{self, Columns};
use crate::text::{ago, clean, cut, cut_middle};

const KEYS: &str = "q quit  / search  s sort  u unwell  Enter details  e events  p pause  ? help";
const HELP: [(&str, &str); 12] = [
    ("q, Ctrl-C", "quit"),
    ("Up, Down, j, k", "the worker above or below"),
    (
        "PgUp, PgDn, Home, End",
        "a page, or the first or last worker",
    ),
    ("/", "search in ids, types and groups; Esc ends the search"),
    (
        "u",
        "only the unwell: dead, never started, stalled, stale, overdue",
    ),
    (
        "s",
        "sort: the worst first, by id, type, group, or the oldest heartbeat",
    ),
    ("Enter", "the details of the worker, or the list alone"),
    ("e", "what has changed since top was started"),
    ("J, K", "scroll the details or events"),
    ("p, Space", "pause: nothing is read"),
    ("r", "read now"),
    ("?, h", "this help"),
];

pub fn draw(frame: &mut Frame<'_>, app: &mut App, colors: bool) {
    let area = frame.area();
    // With few lines, the list comes first.
    let pane = match app.pane {
        Pane::None => 0,
        _ => area.height.saturating_sub(3) / 2,
    };
    let footer = u16::from(area.height >= 6);
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(pane),
        Constraint::Length(footer),
    ]);
    let [title, counts, list, pane, footer] = parts.areas(area);
    let painter = Painter { colors };
    frame.render_widget(painter.title(app, title.width), title);
    frame.render_widget(painter.counts(app), counts);
    painter.list(frame, app, list);
    painter.pane(frame, app, pane);
    let keys = match app.is_typing {
        true => format!("search: {}_   Enter: search, Esc: all", clean(&app.search)),
        false => KEYS.to_owned(),
    };
    let keys = cut(&keys, footer.width.into());
    frame.render_widget(Line::styled(keys, painter.style(Look::Dim)), footer);
}

struct Painter {
    colors: bool,
}

impl Painter {
    fn style(&self, look: Look) -> Style {
        let style = Style::new();
        match look {
            Look::Plain => style,
            Look::Bold => style.add_modifier(Modifier::BOLD),
            Look::Dim => style.add_modifier(Modifier::DIM),
            // What is bad is seen without colours, too.
            Look::Bad if !self.colors => style.add_modifier(Modifier::BOLD),
            _ if !self.colors => style,
            Look::Good => style.fg(Color::Green),
            Look::Doubtful => style.fg(Color::Yellow),
            Look::Bad => style.fg(Color::Red),
        }
    }

    /// What is shown, and how old it is; or why it cannot be read.
    fn title(&self, app: &App, width: u16) -> Line<'static> {
        let age = app.read_at.map(|at| ago(since(at)));
        let mut text = match (&app.error, age) {
            (Some(error), Some(age)) => format!("cannot read, last read {age}: {error}"),
            (Some(error), None) => format!("cannot read: {error}"),
            (None, Some(age)) => format!("{}, read {age}", app.store),
            (None, None) => format!("{}, reading …", app.store),
        };
        if app.is_paused {
            text = format!("PAUSED  {text}");
        }
        let look = match &app.error {
            Some(_) => Look::Bad,
            None => Look::Bold,
        };
        Line::styled(cut(&text, width.into()), self.style(look))
    }

    fn counts(&self, app: &App) -> Line<'static> {
        let total: usize = app.counts.iter().map(|(_, count)| count).sum();
        let mut spans = vec![Span::raw(format!("{total} workers"))];
        let order = State::WORST_FIRST.iter();
        let counts = order.filter_map(|state| app.counts.iter().find(|(other, _)| other == state));
        for (state, count) in counts.filter(|(_, count)| *count > 0) {
            let style = self.style(Look::of(*state));
            spans.push(Span::raw("  "));
            spans.push(Span::styled(format!("{count} {state}"), style));
        }
        if total > 0 && app.unwell() == 0 {
            spans.push(Span::styled("  none is unwell", self.style(Look::Good)));
        }
        Line::from(spans)
    }

    fn list(&self, frame: &mut Frame<'_>, app: &mut App, area: Rect) {
        let rows = usize::from(area.height.saturating_sub(2));
        app.page = rows.max(1);
        // The rows stand still until the cursor leaves the page.
        let first = app.selected / app.page * app.page;
        let shown = app.workers.iter().enumerate().skip(first).take(rows);
        let cells: Vec<_> = shown
            .map(|(n, worker)| (n, worker, table::row(worker)))
            .collect();
        let mut columns = Columns::default();
        columns.add_head();
        cells.iter().for_each(|(_, _, row)| columns.add(row));
        let columns = columns.fitted(Some(area.width.into()));
        let line = |row: &table::Row, look, of_state| {
            let pieces = columns.pieces(row, look, of_state).into_iter();
            let spans = pieces.map(|piece| Span::styled(piece.padded(), self.style(piece.look)));
            Line::from_iter(spans)
        };
        let mut lines = vec![line(
            &table::HEAD.map(str::to_owned),
            Look::Bold,
            Look::Bold,
        )];
        for (n, worker, row) in &cells {
            let look = Look::of(worker.health().state());
            let mut line = line(row, Look::Plain, look);
            if *n == app.selected {
                // As wide as the screen.
                let rest = usize::from(area.width).saturating_sub(line.width());
                line.push_span(" ".repeat(rest));
                line = line.patch_style(Modifier::REVERSED);
            }
            lines.push(line);
        }
        let list = Rect {
            height: area.height.saturating_sub(1),
            ..area
        };
        frame.render_widget(Paragraph::new(lines), list);
        let below = Rect {
            y: list.bottom(),
            height: area.height - list.height,
            ..area
        };
        frame.render_widget(Line::styled(self.place(app), self.style(Look::Dim)), below);
    }

    /// Which workers are listed, and how many more there are.
    fn place(&self, app: &App) -> String {
        let count = app.workers.len();
        let mut text = match app.total() {
            Some(total) if total > count => format!("{count} of {total}"),
            None if count >= MOST_ROWS => format!("{count} or more"),
            _ => format!("{count}"),
        };
        text += &format!(" listed, {}", app.order.name());
        if app.shows_only_unwell() {
            text += ", only the unwell";
        }
        if !app.search.is_empty() {
            text += &format!(", with {:?}", clean(&app.search));
        }
        text
    }

    fn pane(&self, frame: &mut Frame<'_>, app: &App, area: Rect) {
        let (title, lines) = match app.pane {
            Pane::None => return,
            Pane::Details => ("Details", self.details(app)),
            Pane::Events => ("Events", self.events(app, area.width)),
            Pane::Help => {
                let keys = HELP.iter();
                let lines = keys.map(|(key, what)| Line::raw(format!("{key:24}{what}")));
                ("Help", lines.collect())
            }
        };
        let block = Block::new().borders(Borders::TOP).title(title);
        let text = Paragraph::new(lines).block(block);
        let text = text.wrap(Wrap { trim: false }).scroll((app.scroll, 0));
        frame.render_widget(text, area);
    }

    fn events(&self, app: &App, width: u16) -> Vec<Line<'static>> {
        if app.changes.events.is_empty() {
            return vec![Line::raw("Nothing has changed since top was started.")];
        }
        let line = |change: &Change| {
            let name =
                |state: Option<State>, none: &'static str| state.map_or(none, |state| state.name());
            let text = format!(
                "{}: {}: {} -> {}{}{}",
                ago(since(change.at)),
                cut_middle(&clean(&change.id), 40),
                name(change.from, "(new)"),
                name(change.to, "(no longer listed)"),
                if change.reason.is_empty() { "" } else { ", " },
                clean(&change.reason),
            );
            let look = change.to.map_or(Look::Plain, Look::of);
            Line::styled(cut(&text, width.into()), self.style(look))
        };
        app.changes.events.iter().map(line).collect()
    }

    fn details(&self, app: &App) -> Vec<Line<'static>> {
        let Some(worker) = &app.worker else {
            return vec![Line::raw("There is no worker.")];
        };
        let mut lines = Vec::new();
        for (name, value) in facts(worker) {
            if name == "state" {
                let look = Look::of(worker.health().state());
                let value = Span::styled(value, self.style(look));
                lines.push(Line::from_iter([Span::raw(format!("{name:14}")), value]));
            } else {
                lines.push(Line::raw(format!("{name:14}{}", clean(&value))));
            }
        }
        let stack = worker.call_stack().into_iter().flat_map(str::lines);
        lines.extend(stack.map(|line| Line::raw(format!("  {}", clean(line)))));
        lines
    }
}

/// What is known of a worker, by name.
fn facts(worker: &StoredWorker) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        facts.extend(value.map(|value| (name.to_owned(), value)));
    };
    add("id", Some(worker.key.id.clone()));
    add("state", Some(worker.health().state().to_string()));
    add("reason", worker.reason());
    add("type", Some(worker.info.worker_type.clone()));
    add("group", Some(worker.info.group.clone()));
    add("heartbeat", Some(table::heard(worker)));
    add("progress", worker.progress_age.map(ago));
    add("registered", Some(ago(worker.registered_age)));
    let life = format!(
        "{}, restarts: {}",
        worker.key.incarnation, worker.info.restarts
    );
    add("incarnation", Some(life));
    add("run", worker.status.run_id.clone());
    add(
        "task",
        Some(table::task(worker)).filter(|task| !task.is_empty()),
    );
    if let Some(process) = &worker.info.process {
        add(
            "process",
            Some(format!("{} on {}", process.pid, process.hostname)),
        );
    }
    if let Some(death) = &worker.last_death {
        add(
            "last death",
            Some(format!("{}, {}", death.cause(), ago(death.age))),
        );
    }
    for (name, value) in &worker.info.metadata {
        add(&clean(name), Some(value.clone()));
    }
    facts
}

fn since(at: SystemTime) -> Duration {
    // A clock that was set back.
    at.elapsed().unwrap_or_default()
}
