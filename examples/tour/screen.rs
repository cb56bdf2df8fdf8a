//! Draws the pages: over each other in a terminal, one after the other elsewhere.

use std::io::{self, IsTerminal, Write};
use std::panic;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::table::{Line, Tint};

/// For a terminal that does not know its size.
const DEFAULT_SIZE: Size = Size {
    columns: 120,
    rows: 40,
};
/// Terminals are resized now and then.
const FRAMES_PER_SIZE_CHECK: u32 = 8;

/// Alternate screen, hidden cursor, no wrapping of long lines.
const OPEN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const CLOSE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

#[derive(Clone, Copy)]
struct Size {
    columns: usize,
    rows: usize,
}

pub struct Screen {
    /// `None` if this is not a terminal.
    terminal: Option<Size>,
    frames: u32,
    coloured: bool,
    is_open: bool,
}

impl Screen {
    /// Takes over the terminal, if there is one.
    pub fn open() -> io::Result<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb");
        let is_terminal = io::stdout().is_terminal() && !dumb;
        let screen = Self {
            terminal: is_terminal.then(size),
            frames: 0,
            coloured: is_terminal && std::env::var_os("NO_COLOR").is_none(),
            is_open: is_terminal,
        };
        if is_terminal {
            keep_panics_off_the_table();
            write(OPEN)?;
        }
        Ok(screen)
    }

    /// The longest line that fits; unlimited where the output is no terminal.
    pub fn columns(&self) -> usize {
        self.terminal.map_or(usize::MAX, |size| size.columns)
    }

    /// The number of lines that fit on a page.
    pub fn rows(&self) -> usize {
        self.terminal.map_or(usize::MAX, |size| size.rows)
    }

    /// The time between two pages.
    pub fn refresh(&self) -> Duration {
        match self.terminal {
            Some(_) => Duration::from_millis(250),
            None => Duration::from_secs(1),
        }
    }

    /// Draws a page over the previous one, or prints it after that.
    pub fn draw(&mut self, page: &[Line]) -> io::Result<()> {
        if self.terminal.is_none() {
            return self.print(page);
        }
        // One write that overwrites the old text without clearing it first: nothing flickers.
        let mut frame = String::from("\x1b[H");
        for (number, line) in page.iter().take(self.rows()).enumerate() {
            if number > 0 {
                frame += "\r\n";
            }
            frame += &self.painted(line);
            // After a full line, erasing would clear its last character.
            if line.text.chars().count() < self.columns() {
                frame += "\x1b[K";
            }
        }
        frame += "\x1b[J";
        write(&frame)?;
        self.frames += 1;
        if self.frames % FRAMES_PER_SIZE_CHECK == 0 {
            self.terminal = Some(size());
        }
        Ok(())
    }

    /// Prints a page, and an empty line.
    pub fn print(&self, page: &[Line]) -> io::Result<()> {
        let mut text = String::new();
        for line in page {
            text += &self.painted(line);
            text += "\n";
        }
        text += "\n";
        write(&text)
    }

    /// Restores the terminal.
    pub fn close(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_open) {
            write(CLOSE)?;
        }
        Ok(())
    }

    fn painted(&self, line: &Line) -> String {
        let text = shortened(&line.text, self.columns());
        let code = match line.tint {
            Tint::Bold => "1",
            Tint::Dim => "2",
            Tint::Yellow => "33",
            Tint::Red => "31",
            Tint::Plain => return text,
        };
        if self.coloured {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // An error cannot be reported from here.
        let _ = self.close();
    }
}

/// The default panic hook would write into the table, which shows the panics of workers anyway. A
/// panic of the main thread restores the terminal and is written.
fn keep_panics_off_the_table() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().name() == Some("main") {
            let _ = write(CLOSE);
            default(info);
        }
    }));
}

/// The size from the environment, or else from the terminal.
fn size() -> Size {
    let size = ask_terminal().unwrap_or(DEFAULT_SIZE);
    Size {
        columns: number_from_environment("COLUMNS").unwrap_or(size.columns),
        rows: number_from_environment("LINES").unwrap_or(size.rows),
    }
}

/// Runs `stty`, since the standard library cannot query the size of a terminal.
fn ask_terminal() -> Option<Size> {
    let answer = Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let answer = String::from_utf8(answer.stdout).ok()?;
    let (rows, columns) = answer.trim().split_once(' ')?;
    // A terminal that does not know its size reports 0.
    let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
    Some(Size {
        columns: number(columns)?,
        rows: number(rows)?,
    })
}

fn number_from_environment(name: &str) -> Option<usize> {
    let number = std::env::var(name).ok()?.parse().ok()?;
    (number > 0).then_some(number)
}

fn shortened(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(columns.saturating_sub(1)).collect();
    short.push('…');
    short
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
