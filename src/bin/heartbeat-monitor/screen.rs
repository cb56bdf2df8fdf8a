//! What is known of the terminal that a command prints to: its width, and whether it shows colours.

use std::env;
use std::io::{self, IsTerminal};

use clap::ValueEnum;
use worker_heartbeat::State;

/// The width of a terminal that does not report its own.
const USUAL_WIDTH: usize = 80;

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    Always,
    Never,
}

impl When {
    /// Whether colours go to stdout.
    pub fn colors(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => allows_colors() && io::stdout().is_terminal(),
        }
    }
}

/// Whether the environment allows colours. (By the convention, an empty NO_COLOR counts as unset.)
pub fn allows_colors() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The columns of stdout, if lines have to fit: those of the terminal, or those that COLUMNS states
/// for what is no terminal.
pub fn width() -> Option<usize> {
    let stated = || {
        let columns = env::var("COLUMNS").ok()?;
        columns.parse().ok().filter(|columns| *columns > 0)
    };
    if !io::stdout().is_terminal() {
        return stated();
    }
    let size = terminal_size::terminal_size_of(io::stdout());
    let columns = size.map(|(width, _)| usize::from(width.0));
    let columns = columns.filter(|columns| *columns > 0);
    Some(columns.or_else(stated).unwrap_or(USUAL_WIDTH))
}

/// How a text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Plain,
    Bold,
    Dim,
    Good,
    Doubtful,
    Bad,
}

impl Look {
    pub const fn of(state: State) -> Self {
        match state {
            State::Dead | State::NeverStarted | State::Stalled | State::Stale => Self::Bad,
            State::Active | State::Idle | State::Processing => Self::Good,
            State::Stopped => Self::Dim,
            // Overdue, unobserved, starting, stopping, and what later versions add.
            _ => Self::Doubtful,
        }
    }

    /// The sequence that begins it, of the 16 colours that every terminal has.
    pub const fn begin(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\u{1b}[1m",
            Self::Dim => "\u{1b}[2m",
            Self::Good => "\u{1b}[32m",
            Self::Doubtful => "\u{1b}[33m",
            Self::Bad => "\u{1b}[31m",
        }
    }
}

/// The sequence that ends every look.
pub const END: &str = "\u{1b}[0m";
