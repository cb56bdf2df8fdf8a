//! The `top` command: the workers of a store, live.

mod app;
mod changes;
mod draw;
mod reader;
mod terminal;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use worker_heartbeat::BoxError;

use crate::args::TopArgs;
use crate::commands::CommandResult;
use crate::screen;
use crate::store::UsageError;
use crate::text::clean;
use app::{App, Next};
use reader::Answer;
use terminal::Screen;

/// The ages on the screen are drawn again after this time.
const REDRAW: Duration = Duration::from_secs(1);
/// Messages that wait to be handled. Keys beyond it wait in the terminal.
const MOST_MESSAGES: usize = 64;

/// The time in which it has to end after a signal.
#[cfg_attr(not(unix), expect(dead_code, reason = "there are no such signals"))]
const END_TIMEOUT: Duration = Duration::from_secs(2);

pub enum Message {
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    Answer(Box<Answer>),
    /// Ends it as this signal would.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there are no such signals"))]
    Signal(i32),
    /// The terminal cannot be read.
    Broken(io::Error),
}

pub fn run(args: &TopArgs) -> CommandResult {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let message = "top needs a terminal; `status` prints the workers anywhere";
        return Err(UsageError(message.to_owned()).into());
    }
    if io::stderr().is_terminal() {
        // Its lines would go over the screen. What fails is shown.
        log::set_max_level(log::LevelFilter::Off);
    }
    let store = args.store.open_to_read()?;
    let mut app = App::new(clean(&args.store.name()), args.scope.scope());
    let (sender, messages) = bounded(MOST_MESSAGES);
    signals(&sender)?;
    let questions = reader::start(store, sender.clone())?;
    let mut screen = Screen::open()?;
    keys(sender)?;
    questions.ask(app.query());
    let ended = live(&mut app, &mut screen, args.interval, &messages, &questions);
    // Before the process ends, or an error is printed.
    drop(screen);
    match ended? {
        None => Ok(ExitCode::SUCCESS),
        Some(signal) => Ok(end_by(signal)),
    }
}

/// Draws and handles messages until it is to end; by a signal, if it is one.
fn live(
    app: &mut App,
    screen: &mut Screen,
    interval: Duration,
    messages: &Receiver<Message>,
    questions: &reader::Questions,
) -> Result<Option<i32>, BoxError> {
    let colors = screen::allows_colors();
    let mut ask_at = Instant::now() + interval;
    loop {
        // An error: the terminal is gone. The thread that reads keys may not notice.
        screen
            .terminal
            .draw(|frame| draw::draw(frame, app, colors))?;
        let wait = ask_at.saturating_duration_since(Instant::now()).min(REDRAW);
        let message = match messages.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(error) if error.is_timeout() => None,
            Err(_) => return Err("the threads of top ended".into()),
        };
        let mut ask = false;
        match message {
            None => {}
            Some(Message::Key(key)) => match app.press(key) {
                Next::Quit => return Ok(None),
                Next::Ask => ask = true,
                Next::Draw => {}
            },
            Some(Message::Resized) => screen.terminal.clear()?,
            Some(Message::Answer(answer)) => app.answered(*answer),
            Some(Message::Signal(signal)) => return Ok(Some(signal)),
            Some(Message::Broken(error)) => return Err(error.into()),
        }
        if !app.is_paused && Instant::now() >= ask_at {
            ask = true;
        }
        if ask {
            questions.ask(app.query());
        }
        if ask || app.is_paused {
            ask_at = Instant::now() + interval;
        }
    }
}

/// Reads keys on a thread that the end of the process ends: crossterm may never return from a
/// terminal that is gone.
fn keys(messages: Sender<Message>) -> io::Result<()> {
    let read = move || {
        loop {
            let message = match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Message::Key(key),
                Ok(Event::Resize(..)) => Message::Resized,
                Ok(_) => continue,
                Err(error) => {
                    // The receiver may have ended.
                    let _ = messages.send(Message::Broken(error));
                    return;
                }
            };
            if messages.send(message).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(())
}

#[cfg(unix)]
fn signals(messages: &Sender<Message>) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    use signal_hook::iterator::Signals;

    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let messages = messages.clone();
    let wait = move || {
        for signal in signals.forever() {
            // Where there is no room, the loop stands still, too.
            let _ = messages.try_send(Message::Signal(signal));
            // It ends at once, unless it is in a write to a terminal that is stopped (Ctrl-S).
            thread::sleep(END_TIMEOUT);
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)?;
    Ok(())
}

#[cfg(not(unix))]
fn signals(_messages: &Sender<Message>) -> io::Result<()> {
    Ok(())
}

/// Ends as the signal would have ended it, so that a shell sees the cause.
#[cfg(unix)]
fn end_by(signal: i32) -> ExitCode {
    // It returns only if it failed.
    let _ = signal_hook::low_level::emulate_default_handler(signal);
    ExitCode::from(crate::FAILED)
}

#[cfg(not(unix))]
fn end_by(_signal: i32) -> ExitCode {
    ExitCode::from(crate::FAILED)
}
