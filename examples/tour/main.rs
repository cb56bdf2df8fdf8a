//! Eight workers in one live table: some work, some wait, and some go wrong, each in its own way.
//!
//! ```text
//! cargo run --example tour
//! ```
//!
//! Ctrl-C ends it; `-- --seconds N` ends it after N seconds. Two workers checksum every file below the
//! current directory, and a third one, a future, collects the results. Of the others, one waits, one
//! panics, one hangs, one spins and one fails repeatedly.

mod arguments;
mod checksum;
mod farm;
mod screen;
mod table;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use arguments::Request;
use farm::Farm;
use screen::Screen;
use table::{Line, Tint};
use worker_heartbeat::{BoxError, Event, Registry, Shutdown, ShutdownReport, Subscription};

/// How many of the last events are shown.
const EVENTS: usize = 6;

fn main() -> ExitCode {
    match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Request::Help) => {
            println!("{}", arguments::USAGE);
            ExitCode::SUCCESS
        }
        Ok(Request::Run { time_limit }) => run(time_limit).unwrap_or_else(|error| {
            eprintln!("tour: {error}");
            ExitCode::FAILURE
        }),
        Err(complaint) => {
            eprintln!("tour: {complaint}\n\n{}", arguments::USAGE);
            ExitCode::from(2)
        }
    }
}

fn run(time_limit: Option<Duration>) -> Result<ExitCode, BoxError> {
    let registry = Registry::global();
    // First, since the panic hook of the crate, which `install` sets, calls the one set here. The
    // other way round, this one would hide the places of panics from the crate.
    let mut screen = Screen::open()?;
    let shutdown = Shutdown::builder().registry(registry).install()?;
    let mut events = RecentEvents::new(registry.subscribe());
    let mut farm = Farm::start(registry)?;

    let watched = watch(&mut screen, &farm, &mut events, &shutdown, time_limit);
    // The workers end in order even if the output failed.
    shutdown.trigger();
    // Restores the terminal first, whatever happens afterwards.
    screen.close()?;
    // A thread cannot be killed: the hanging one ends only when its call does.
    farm.hang_up();
    let report = shutdown.wait();
    events.receive();
    let parting =
        watched.and_then(|()| screen.print(&last_page(&farm, &events, screen.columns(), &report)));
    match parting {
        // The reader, such as `head`, has closed the pipe.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        result => result?,
    }
    // Not the report's own exit code: that the uploader is given up is part of the tour.
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Shows the farm until a signal comes or the time is up.
fn watch(
    screen: &mut Screen,
    farm: &Farm,
    events: &mut RecentEvents,
    shutdown: &Shutdown,
    time_limit: Option<Duration>,
) -> io::Result<()> {
    let begun = Instant::now();
    let requested = shutdown.receiver();
    loop {
        events.receive();
        let mut page = head(begun.elapsed(), time_limit);
        page.extend(table::rows(&farm.snapshots(), screen.columns()));
        page.extend(events.lines(screen.rows().saturating_sub(page.len())));
        screen.draw(&page)?;
        let left = time_limit.map(|limit| limit.saturating_sub(begun.elapsed()));
        if left == Some(Duration::ZERO) {
            return Ok(());
        }
        let pause = left.unwrap_or(Duration::MAX).min(screen.refresh());
        if requested.recv_timeout(pause).is_ok() {
            return Ok(());
        }
    }
}

fn head(elapsed: Duration, time_limit: Option<Duration>) -> Vec<Line> {
    let end = match time_limit {
        Some(limit) => format!("It ends after {} s; Ctrl-C ends it now.", limit.as_secs()),
        None => "Press Ctrl-C to stop.".to_owned(),
    };
    vec![
        Line::new(
            format!("worker-heartbeat, after {} s. {end}", elapsed.as_secs()),
            Tint::Bold,
        ),
        Line::plain(state_counts()),
        Line::plain(""),
    ]
}

/// The number of workers in each state.
fn state_counts() -> String {
    let summary = Registry::global().summary();
    let counts: Vec<_> = summary
        .states
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {}", table::name(state)))
        .collect();
    format!("{} workers: {}", summary.total, counts.join(", "))
}

/// The final state of all workers, and how the tour ended.
fn last_page(
    farm: &Farm,
    events: &RecentEvents,
    columns: usize,
    report: &ShutdownReport,
) -> Vec<Line> {
    let mut page = vec![
        Line::new("The end of the tour", Tint::Bold),
        Line::plain(state_counts()),
        Line::plain(""),
    ];
    page.extend(table::rows(&farm.snapshots(), columns));
    page.extend(events.lines(usize::MAX));
    let end = if report.is_clean() {
        "every worker ended in time".to_owned()
    } else {
        format!("{} workers hung", report.hung.len())
    };
    page.push(Line::plain(""));
    page.push(Line::new(
        format!(
            "Shut down by {} within {} ms: {end}.",
            report.cause,
            report.took.as_millis()
        ),
        Tint::Bold,
    ));
    page
}

/// The last few events.
struct RecentEvents {
    subscription: Subscription,
    begun: SystemTime,
    last: VecDeque<Event>,
}

impl RecentEvents {
    fn new(subscription: Subscription) -> Self {
        Self {
            subscription,
            begun: SystemTime::now(),
            last: VecDeque::new(),
        }
    }

    fn receive(&mut self) {
        for event in self.subscription.try_iter() {
            self.last.push_back(event);
            if self.last.len() > EVENTS {
                self.last.pop_front();
            }
        }
    }

    /// The newest that fit into the room, oldest first.
    fn lines(&self, room: usize) -> Vec<Line> {
        let mut lines = vec![Line::plain(""), Line::new("LAST EVENTS", Tint::Bold)];
        let too_many = (lines.len() + self.last.len()).saturating_sub(room);
        lines.extend(self.last.iter().skip(too_many).map(|event| {
            let at = event.at.duration_since(self.begun).unwrap_or_default();
            Line::plain(format!("{:6.1} s  {event}", at.as_secs_f64()))
        }));
        lines
    }
}
