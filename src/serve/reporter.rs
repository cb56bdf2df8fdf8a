//! A thread that tells somebody outside how the workers are: at once when something happens, and at
//! each interval.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, select};
use once_cell::sync::OnceCell;

use super::process::Process;
use crate::clock::Patience;
use crate::error::Error;
use crate::registry::Registry;
use crate::registry::at_exit::{self, ProcessEnd};
use crate::sync::background::Background;
use crate::sync::catch::catch;

/// However much happens, it is not told more often than this.
const PAUSE: Duration = Duration::from_millis(100);
/// How long its end may take. Who is told may hang.
const FAREWELL: Duration = Duration::from_secs(1);

/// What there is to report.
pub(super) enum Report<'a> {
    /// How the workers are.
    Reading(&'a Process),
    /// The last report, and why the process ends, if that is known.
    Last(Option<&'a ProcessEnd>),
}

/// The thread; it ends when this is dropped, or with the process.
#[derive(Debug)]
pub(super) struct Reporter {
    stop: Option<Sender<()>>,
    /// Why the process ends, if this is dropped for that.
    end: Arc<OnceCell<ProcessEnd>>,
    thread: Option<Background>,
}

impl Reporter {
    /// Calls `tell` with a fresh reading at each interval of real time, and when something happens;
    /// and once more when it is over.
    pub(super) fn start(
        name: &'static str,
        registry: &Registry,
        interval: Duration,
        mut tell: impl FnMut(Report<'_>) + Send + 'static,
    ) -> Result<Self, Error> {
        let (stop, stopped) = bounded::<()>(0);
        let (ending, ended) = bounded::<()>(0);
        let exits = registry.report_exit(ended);
        let end = Arc::new(OnceCell::new());
        let dropped_for = Arc::clone(&end);
        let registry = registry.clone();
        // Which event it was does not matter.
        let events = registry.subscribe_with_capacity(1);
        let thread = Background::start(name, move || {
            let _ending = ending;
            let mut tell = |report: Report<'_>| drop(catch(|| tell(report)));
            let pause = PAUSE.min(interval / 2);
            loop {
                tell(Report::Reading(&Process::read(&registry)));
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
            tell(Report::Last(
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
        // One that hangs is left behind.
        if let Some(thread) = self.thread.take() {
            thread.join_within(&Patience::new(FAREWELL));
        }
    }
}
