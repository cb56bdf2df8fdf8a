//! What `top` shows, and what the keys do.

use std::time::SystemTime;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use worker_heartbeat::State;
use worker_heartbeat::fleet::StoredWorker;

use super::changes::{Changes, is_unwell};
use super::reader::{Answer, Query, Reading};
use crate::scope::{Scope, UNWELL};

/// The longest text to search for.
const LONGEST_SEARCH: usize = 200;

/// In which order the workers are listed. Those that are read are sorted; only the first two decide
/// which ones are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Worst,
    Id,
    Type,
    Group,
    Heartbeat,
}

impl Order {
    const ALL: [Self; 5] = [
        Self::Worst,
        Self::Id,
        Self::Type,
        Self::Group,
        Self::Heartbeat,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Worst => "worst first",
            Self::Id => "id",
            Self::Type => "type",
            Self::Group => "group",
            Self::Heartbeat => "oldest heartbeat",
        }
    }

    fn next(self) -> Self {
        let here = Self::ALL.iter().position(|order| *order == self);
        Self::ALL[here.map_or(0, |here| (here + 1) % Self::ALL.len())]
    }

    fn sort(self, workers: &mut [StoredWorker]) {
        match self {
            Self::Worst | Self::Id => {}
            Self::Type => workers.sort_by(|a, b| a.info.worker_type.cmp(&b.info.worker_type)),
            Self::Group => workers.sort_by(|a, b| a.info.group.cmp(&b.info.group)),
            Self::Heartbeat => {
                let age =
                    |worker: &StoredWorker| worker.heartbeat_age.unwrap_or(worker.registered_age);
                workers.sort_by_key(|worker| std::cmp::Reverse(age(worker)));
            }
        }
    }
}

/// The lower part of the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    #[default]
    None,
    Details,
    Events,
    Help,
}

/// What the caller does after a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Draw,
    /// Something else is to be read.
    Ask,
    Quit,
}

pub struct App {
    pub store: String,
    /// As the command line says.
    base: Scope,
    only_unwell: bool,
    pub order: Order,
    pub search: String,
    /// The search is being typed.
    pub is_typing: bool,
    pub is_paused: bool,
    pub pane: Pane,
    /// The first line of the pane that is shown.
    pub scroll: u16,
    pub workers: Vec<StoredWorker>,
    pub counts: Vec<(State, usize)>,
    /// The worker of the details.
    pub worker: Option<StoredWorker>,
    pub read_at: Option<SystemTime>,
    pub error: Option<String>,
    pub changes: Changes,
    /// The row with the cursor; it follows its worker.
    pub selected: usize,
    /// Rows on the screen, as they were drawn last.
    pub page: usize,
    number: u64,
    /// Other workers are to be read, or in another order.
    goes_to_top: bool,
}

impl App {
    pub fn new(store: String, scope: Scope) -> Self {
        Self {
            store,
            base: scope,
            only_unwell: false,
            order: Order::default(),
            search: String::new(),
            is_typing: false,
            is_paused: false,
            pane: Pane::default(),
            scroll: 0,
            workers: Vec::new(),
            counts: Vec::new(),
            worker: None,
            read_at: None,
            error: None,
            changes: Changes::default(),
            selected: 0,
            page: 1,
            number: 0,
            goes_to_top: false,
        }
    }

    pub fn shows_only_unwell(&self) -> bool {
        self.only_unwell
    }

    pub fn query(&self) -> Query {
        let mut scope = self.base.clone();
        if self.only_unwell {
            let asked = scope.states.clone();
            let is_asked = |state: &State| asked.is_empty() || asked.contains(state);
            scope.states = UNWELL.into_iter().filter(is_asked).collect();
            if scope.states.is_empty() {
                // No state is both.
                scope.states.push(State::Dead);
            }
        }
        scope.search = (!self.search.is_empty()).then(|| self.search.clone());
        let details = self.pane == Pane::Details;
        let worker = self.workers.get(self.selected).filter(|_| details);
        Query {
            scope,
            by_id: self.order == Order::Id,
            worker: worker.map(|worker| worker.key.id.clone()),
            number: self.number,
        }
    }

    pub fn answered(&mut self, answer: Answer) {
        if answer.number != self.number {
            return;
        }
        match answer.reading {
            Ok(reading) => self.show(reading),
            // What was read last stays.
            Err(error) => self.error = Some(error),
        }
    }

    fn show(&mut self, reading: Reading) {
        let selected = self.workers.get(self.selected);
        let selected = selected.map(|worker| worker.key.id.clone());
        self.workers = reading.workers;
        self.changes.observe(&self.workers, reading.read_at);
        self.order.sort(&mut self.workers);
        self.counts = reading.counts;
        self.worker = reading.worker.or(self.worker.take());
        self.read_at = Some(reading.read_at);
        self.error = None;
        let mut ids = self.workers.iter().map(|worker| Some(&worker.key.id));
        let place = ids.position(|id| id == selected.as_ref());
        let is_anew = std::mem::take(&mut self.goes_to_top);
        self.select(if is_anew {
            0
        } else {
            place.unwrap_or(self.selected)
        });
    }

    fn select(&mut self, row: usize) {
        self.selected = row.min(self.workers.len().saturating_sub(1));
    }

    /// How many workers the store has, of the types, groups and states that are shown; `None` if it
    /// does not count those that are searched for.
    pub fn total(&self) -> Option<usize> {
        let states = self.query().scope.states;
        let counts = self.counts.iter();
        let counts = counts.filter(|(state, _)| states.is_empty() || states.contains(state));
        self.search
            .is_empty()
            .then(|| counts.map(|(_, count)| count).sum())
    }

    pub fn unwell(&self) -> usize {
        let counts = self.counts.iter().filter(|(state, _)| is_unwell(*state));
        counts.map(|(_, count)| count).sum()
    }

    pub fn press(&mut self, key: KeyEvent) -> Next {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Next::Quit;
        }
        if self.is_typing {
            return self.type_search(key.code);
        }
        match key.code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc if self.pane != Pane::None => self.open(Pane::None),
            KeyCode::Esc if !self.search.is_empty() => {
                self.search.clear();
                return self.ask_anew();
            }
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('s') => {
                let was_by_id = self.order == Order::Id;
                self.order = self.order.next();
                if was_by_id || self.order == Order::Id {
                    return self.ask_anew();
                }
                self.goes_to_top = true;
                return Next::Ask;
            }
            KeyCode::Char('u') => {
                self.only_unwell = !self.only_unwell;
                return self.ask_anew();
            }
            KeyCode::Char('p' | ' ') => {
                self.is_paused = !self.is_paused;
                return if self.is_paused {
                    Next::Draw
                } else {
                    Next::Ask
                };
            }
            KeyCode::Char('r') => return Next::Ask,
            KeyCode::Enter => {
                self.toggle(Pane::Details);
                self.worker = self.workers.get(self.selected).cloned();
                return Next::Ask;
            }
            KeyCode::Char('e') => self.toggle(Pane::Events),
            KeyCode::Char('?' | 'h') => self.toggle(Pane::Help),
            KeyCode::Char('J') => self.scroll = self.scroll.saturating_add(1),
            KeyCode::Char('K') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => return self.go(self.selected.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => return self.go(self.selected.saturating_sub(1)),
            KeyCode::PageDown => return self.go(self.selected.saturating_add(self.page)),
            KeyCode::PageUp => return self.go(self.selected.saturating_sub(self.page)),
            KeyCode::Home | KeyCode::Char('g') => return self.go(0),
            KeyCode::End | KeyCode::Char('G') => return self.go(usize::MAX),
            _ => {}
        }
        Next::Draw
    }

    fn type_search(&mut self, code: KeyCode) -> Next {
        match code {
            KeyCode::Enter => {
                self.is_typing = false;
                return self.ask_anew();
            }
            KeyCode::Esc => {
                self.is_typing = false;
                self.search.clear();
                return self.ask_anew();
            }
            KeyCode::Backspace => drop(self.search.pop()),
            KeyCode::Char(letter) if self.search.len() < LONGEST_SEARCH => self.search.push(letter),
            _ => {}
        }
        Next::Draw
    }

    /// Other workers are to be read: an answer to an earlier question is not shown.
    fn ask_anew(&mut self) -> Next {
        self.number += 1;
        self.goes_to_top = true;
        self.changes.restart();
        Next::Ask
    }

    fn go(&mut self, row: usize) -> Next {
        self.select(row);
        if self.pane == Pane::Details {
            self.worker = self.workers.get(self.selected).cloned();
            self.scroll = 0;
            return Next::Ask;
        }
        Next::Draw
    }

    fn toggle(&mut self, pane: Pane) {
        self.open(if self.pane == pane { Pane::None } else { pane });
    }

    fn open(&mut self, pane: Pane) {
        self.pane = pane;
        self.scroll = 0;
    }
}
