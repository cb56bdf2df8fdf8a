//! A thread that tells somebody outside how the workers are: at once when something happens, and at
//! each interval.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use super::process::Process;
use crate::error::Error;
use crate::panics;
use crate::registry::Registry;

/// However much happens, it is not told more often than this.
const PAUSE: Duration = Duration::from_millis(100);
/// How long its end may take. Who is told may hang.
const FAREWELL: Duration = Duration::from_secs(1);

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Lookout {
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Lookout {
    /// Calls `tell` with a fresh reading at each interval of real time, and when something happens;
    /// and with `None` when it is over.
    pub(super) fn start(
        name: &'static str,
        registry: &Registry,
        interval: Duration,
        mut tell: impl FnMut(Option<&Process>) + Send + 'static,
    ) -> Result<Self, Error> {
        let (stop, stopped) = bounded::<()>(0);
        let (ending, ended) = bounded::<()>(0);
        let registry = registry.clone();
        // Which event it was does not matter.
        let events = registry.subscribe_with_capacity(1);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _ending = ending;
                let mut tell = |process: Option<&Process>| {
                    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| tell(process))) {
                        panics::dispose(payload);
                    }
                };
                let pause = PAUSE.min(interval / 2);
                loop {
                    tell(Some(&Process::read(&registry)));
                    if is_over(&stopped, pause) {
                        break;
                    }
                    select! {
                        recv(stopped) -> _ => break,
                        recv(events.receiver()) -> _ => {}
                        default(interval.saturating_sub(pause)) => {}
                    }
                }
                tell(None);
            })
            .map_err(|source| Error::Thread {
                name: name.to_owned(),
                source,
            })?;
        Ok(Self {
            stop: Some(stop),
            ended,
            thread: Some(thread),
        })
    }
}

/// Waits for the other side to go, for so long at most. Whether it has gone.
fn is_over(other: &Receiver<()>, time: Duration) -> bool {
    other.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.stop.take();
        // One that hangs is left behind.
        if is_over(&self.ended, FAREWELL)
            && let Some(thread) = self.thread.take()
        {
            // Every panic on it is contained.
            drop(thread.join());
        }
    }
}
