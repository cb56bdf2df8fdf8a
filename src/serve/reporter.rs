//! A background thread that reports the health of the workers at each interval, and immediately when
//! an event occurs.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, select};
use once_cell::sync::OnceCell;

use super::process_health::ProcessHealth;
use crate::clock::Patience;
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::at_exit::{self, ProcessEnd};
use crate::sync::background::Background;
use crate::sync::catch::catch;

/// The shortest time between two reports.
const PAUSE: Duration = Duration::from_millis(100);
/// How long dropping a reporter waits for its thread, whose last report may hang.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) enum Report<'a> {
    Health(&'a ProcessHealth),
    /// The last report, with the reason why the process ends, if it is known.
    End(Option<&'a ProcessEnd>),
}

/// The thread; it ends when this is dropped, or with the process.
#[derive(Debug)]
pub(super) struct Reporter {
    stop: Option<Sender<()>>,
    /// Why the process ends, if that is why this is dropped.
    end: Arc<OnceCell<ProcessEnd>>,
    thread: Option<Background>,
}

impl Reporter {
    /// Calls `report` with the present health at each interval and after events, and finally with
    /// the end.
    pub(super) fn start(
        name: &'static str,
        registry: &Registry,
        interval: Duration,
        mut report: impl FnMut(Report<'_>) + Send + 'static,
    ) -> Result<Self, Error> {
        let (stop, stopped) = bounded::<()>(0);
        let (ending, ended) = bounded::<()>(0);
        let exits = registry.report_exit(ended);
        let end = Arc::new(OnceCell::new());
        let dropped_for = Arc::clone(&end);
        let registry = registry.clone();
        // One slot suffices: every event has the same effect.
        let events = registry.subscribe_with_capacity(1);
        let thread = Background::start(name, move || {
            let _ending = ending;
            let mut send = |contents: Report<'_>| drop(catch(|| report(contents)));
            let pause = PAUSE.min(interval / 2);
            loop {
                send(Report::Health(&ProcessHealth::read(&registry)));
                select! {
                    recv(stopped) -> _ => break,
                    recv(exits) -> _ => break,
                    default(pause) => {}
                }
                select! {
                    recv(stopped) -> _ => break,
                    recv(exits) -> _ => break,
                    recv(events.receiver()) -> _ => {}
                    default(interval.saturating_sub(pause)) => {}
                }
            }
            send(Report::End(
                registry.process_end().or_else(|| dropped_for.get()),
            ));
        })?;
        Ok(Self {
            stop: Some(stop),
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(cause) = at_exit::unwinding() {
            let _ = self.end.set(ProcessEnd::Panic(cause));
        }
        self.stop.take();
        // A thread that hangs is left behind.
        if let Some(thread) = self.thread.take() {
            thread.join_within(&Patience::new(STOP_TIMEOUT));
        }
    }
}
